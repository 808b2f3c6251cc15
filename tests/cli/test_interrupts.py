"""Ctrl-C and SIGTERM in mid-run: another status than 0, one line that says how to go on, and nothing half-written.

A signal is sent at a point that is known by what is on disk, or by a part that is a named pipe: there the command stands still.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from disk import contents, write_jsonl
from flat_options import grouped

from pipelines.processes import Started, start_command
from tokenstats import Rule, Store, build_mask
from tokenstats.computing import compute
from tokenstats.store.parts import part_path

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}
both = pytest.mark.parametrize("number", list(STATUS), ids=lambda number: number.name)


def until(process: Started, reached: Callable[[], object]) -> None:
    while not reached():
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


def ends_well(process: Started, number: signal.Signals) -> str:
    """Send the signal; the line that the command says."""
    process.send_signal(number)
    began = time.monotonic()
    out, err = process.communicate(timeout=120)
    assert time.monotonic() - began < 29, "something was waited for until patience ran out"
    assert process.returncode == STATUS[number], err
    assert out == ""
    *others, line = err.splitlines()  # a library may have warned before
    assert line.startswith("interrupted: ")
    assert not [other for other in others if other.startswith(("interrupted", "Traceback"))], err
    return line


def half_written(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.name.startswith((".writing-", ".former-", ".making-"))]


@pytest.fixture
def run(tmp_path, chats, base, warmup) -> dict[str, Any]:
    """A run of many parts: most of them are still to come when the first is there."""
    data = write_jsonl(tmp_path / "d.jsonl", chats[:40])
    return {"dataset": data, "model": warmup, "reference": base, "part_tokens": 200, "batch_tokens": 200}


@pytest.fixture
def arguments(run) -> list[object]:
    options = [[f"--{name.replace('_', '-')}", value] for name, value in run.items() if name != "dataset"]
    return ["compute", run["dataset"], *chain(*options)]


@both
def test_compute_goes_on_after_it_was_interrupted(run, arguments, tmp_path, number):
    store = tmp_path / "store"
    process = start_command(*arguments, "--store", store)
    until(process, lambda: len(list(store.glob("stats/warmup/part-*.parquet"))) > 1)
    said = ends_well(process, number)
    assert half_written(tmp_path) == []
    parts = len(list(store.glob("stats/warmup/part-*.parquet")))
    assert f"{parts} parts of warmup, whole; run the same command again" in said
    assert not (store / "stats" / "warmup" / "manifest.json").exists()
    for place in (store, tmp_path / "whole"):
        compute(**grouped(**run), store=place)
    assert contents(store) == contents(tmp_path / "whole")


def test_compute_stops_while_a_large_part_is_being_tokenized(tmp_path, chats, base):
    """One part takes the whole dataset: the thread that makes it is not waited for."""
    fifo = tmp_path / "d.jsonl"
    os.mkfifo(fifo)
    process = start_command("compute", fifo, "--model", base, "--store", tmp_path / "store")
    with open(fifo, "w"):  # it has the dataset open, and waits for the first row
        said = ends_well(process, signal.SIGINT)
    assert "nothing was written yet" in said
    assert half_written(tmp_path) == []


def pipe_at(path: Path) -> Path:
    path.unlink()
    os.mkfifo(path)
    return path


def stands_still_at(store: Store, family: str) -> Path:
    """Let a part be a named pipe: who reads it waits for what never comes."""
    return pipe_at(part_path(store.path / family, 1))


@pytest.mark.parametrize("command", ["mask", "mask --replace", "audit", "report", "compare", "sweep", "export"])
@both
def test_what_was_there_stays_and_nothing_else_is(own, tmp_path, command, number):
    before = build_mask(own, Rule(drop="entropy > 1"), "mine").manifest
    if command == "audit":  # it looks into parts before it reads them through, which a pipe does not let it
        pipe = pipe_at(own.path / "stats" / "warm" / "manifest.json")
    else:
        pipe = stands_still_at(own, "tokens" if command == "export" else "stats/warm")
    options = {
        "mask": ["--drop", "entropy > 2", "--name", "new"],
        "mask --replace": ["--drop", "entropy > 2", "--name", "mine", "--replace"],
        "report": ["--to", tmp_path / "out"],
        "compare": ["mine", "kl-only"],
        "sweep": ["--vary", "f=1,2", "--drop", "entropy > f"],
        "export": ["--mask", "mine", "--to", tmp_path / "out"],
    }
    name = command.split()[0]
    arguments = ["mine", "kl-only"] if name == "compare" else options.get(command, [])
    process = start_command(name, own.path, *arguments)
    with open(pipe, "wb"):  # opens when the command does
        said = ends_well(process, number)
    assert "run the same command again" in said
    assert half_written(tmp_path) == []
    assert not (tmp_path / "out").exists()
    assert "new" not in own.masks
    assert Store(own.path).masks["mine"].manifest == before


@both
def test_training_says_which_checkpoint_to_go_on_from(own, tmp_path, number):
    model, out = own.scorings.choose().manifest.model.source, tmp_path / "out"
    arguments = ["train", own.path, "--mask", "eksft", "--model", model, "--device", "cpu", "--batch-size", 1, "--out", out]
    process = start_command(*arguments, "--max-steps", 100_000, "--save-steps", 5)
    until(process, lambda: list(out.glob("checkpoint-*/trainer_state.json")))
    said = ends_well(process, number)
    assert "the last checkpoint is" in said
    assert "with --resume" in said
    shutil.rmtree(out)
    process = start_command(*arguments, "--max-steps", 100_000, "--eval-share", 0.1)
    until(process, out.exists)
    assert "begin anew" in ends_well(process, number)
    assert half_written(tmp_path) == []


def test_a_signal_that_the_caller_ignores_is_ignored(own, tmp_path):
    """As a shell does for jobs in the background."""
    pipe = pipe_at(own.path / "stats" / "warm" / "manifest.json")
    script = 'trap "" INT; exec "$0" -m tokenstats audit "$1"'
    process = subprocess.Popen(["sh", "-c", script, sys.executable, str(own.path)], stderr=subprocess.PIPE, text=True)
    with open(pipe, "wb"):
        process.send_signal(signal.SIGINT)
        assert ends_well_by_terminate(process) == 143


def ends_well_by_terminate(process: subprocess.Popen[str]) -> int:
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    return process.returncode


def test_a_cluster_does_not_hold_up_the_end(arguments, tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="needs the ray extra")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else actors get next to nothing of a machine that runs other tests too
    store = tmp_path / "store"
    process = start_command(*arguments, "--store", store, "--engine", "ray", "--workers", 1, "--device", "cpu")
    until(process, lambda: len(list(store.glob("stats/warmup/part-*.parquet"))) > 1)
    said = ends_well(process, signal.SIGTERM)
    assert "parts of warmup" in said
