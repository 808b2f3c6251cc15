"""Any kill at any moment loses at most the part being written, and the next run ends as if nothing had happened."""

import os
import random
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
from disk import contents, write_jsonl
from flat_options import grouped

from pipelines.processes import start_command
from tokenstats.computing import compute
from tokenstats.errors import StoreError
from tokenstats.store import Store


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it, nothing tidies up."""


@pytest.fixture(scope="module")
def arguments(tmp_path_factory, chats, base, warmup) -> dict:
    data = write_jsonl(tmp_path_factory.mktemp("data") / "d.jsonl", chats[:30])
    return {"dataset": data, "model": warmup, "reference": base, "part_tokens": 800, "batch_tokens": 200}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, arguments) -> dict[str, bytes]:
    store = compute(**grouped(**arguments), store=tmp_path_factory.mktemp("undisturbed") / "store").store
    assert store.part_count >= 4
    return contents(store.path)


@pytest.mark.parametrize("when", ["before renaming", "after renaming"])
def test_killed_at_every_file_in_turn(arguments, undisturbed, tmp_path, monkeypatch, when):
    """Dies at the 1st, then the 2nd, … file it writes, each time going on from what was left."""
    real, deaths = os.replace, 0
    while True:
        written, lock = [], threading.Lock()

        def replace(source, target, written=written, lock=lock):
            with lock:  # all threads die together
                if len(written) == 1:
                    raise Killed
                written.append(target)
                real(source, target)
                if when == "after renaming":
                    raise Killed

        try:
            with monkeypatch.context() as patch:
                patch.setattr(os, "replace", replace)
                compute(**grouped(**arguments), store=tmp_path / "store")
            break
        except Killed:
            deaths += 1
            assert len(written) == 1, "each life gets exactly one file further: what is whole is never written again"
    assert deaths > 8
    assert contents(tmp_path / "store") == undisturbed


def test_a_real_kill_at_random_moments(arguments, undisturbed, tmp_path):
    command = [
        *("compute", arguments["dataset"], "--store", tmp_path / "store"),
        *("--model", arguments["model"], "--reference", arguments["reference"]),
        *("--part-tokens", arguments["part_tokens"], "--batch-tokens", arguments["batch_tokens"]),
    ]
    rng, killed = random.Random(0), 0
    while True:
        process = start_command(*command)
        parts = len(list(tmp_path.glob("store/*/**/part-*.parquet")))
        until = time.time() + 60
        while process.poll() is None and len(list(tmp_path.glob("store/*/**/part-*.parquet"))) <= parts and time.time() < until:
            time.sleep(0.005)
        time.sleep(rng.random() * 0.05)
        if killed == 3 or process.poll() is not None:
            _, errors = process.communicate()
            assert process.returncode == 0, errors
            break
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += 1
    assert killed > 0
    assert contents(tmp_path / "store") == undisturbed


def copy(arguments: dict, tmp_path: Path) -> Store:
    return compute(**grouped(**arguments), store=tmp_path / "store").store


def test_damaged_parts_are_errors_that_name_them(arguments, tmp_path):
    store = copy(arguments, tmp_path)
    path = store.path / "stats" / "warmup" / "part-00001.parquet"
    good = path.read_bytes()
    for damage in (good[: len(good) // 2], b"", bytes(1000)):
        path.write_bytes(damage)
        with pytest.raises(StoreError, match=r"part-00001\.parquet"):
            store.part("stats/warmup", 1)
    flipped = bytearray(good)
    flipped[500] ^= 0x10
    path.write_bytes(bytes(flipped))
    with pytest.raises(StoreError, match=r"part-00001\.parquet"):
        store.part("stats/warmup", 1)
    path.unlink()
    with pytest.raises(StoreError, match=r"part-00001.parquet is missing"):
        store.part("stats/warmup", 1)


def test_swapped_parts_are_noticed(arguments, tmp_path):
    store = copy(arguments, tmp_path)
    one, two = (store.path / "stats" / "warmup" / f"part-0000{i}.parquet" for i in (1, 2))
    shutil.move(one, tmp_path / "x")
    shutil.move(two, one)
    shutil.move(tmp_path / "x", two)
    with pytest.raises(StoreError, match=r"part-00001.parquet was changed after it was made"):
        list(store.aligned({"tokens": ["input_ids"], "stats/warmup": ["kl"]}))


def test_an_unfinished_store_says_so(arguments, tmp_path):
    store = copy(arguments, tmp_path)
    (store.path / "manifest.json").unlink()
    with pytest.raises(StoreError, match="run it again to finish"):
        Store(store.path)


def test_a_manifest_of_another_version_is_refused(arguments, tmp_path):
    store = copy(arguments, tmp_path)
    path = store.path / "manifest.json"
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 99'))
    with pytest.raises(StoreError, match="schema version 99"):
        Store(store.path)
    path.write_text("{}")
    with pytest.raises(StoreError, match="is not a manifest"):
        Store(store.path)
