"""Many workers, little memory, bad disks and killed processes: the store ends as if nothing had happened."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from disk import contents, write_jsonl
from flat_options import grouped
from test_scoring import assert_tables_close, table

from pipelines.processes import Started, start_command
from tokenstats.computing import compute
from tokenstats.corpus.sources import Source
from tokenstats.errors import InputError, StoreError, TokenstatsWarning
from tokenstats.scoring.pair import ModelPair
from tokenstats.scoring.workers import Worker
from tokenstats.store import Store


@pytest.fixture(scope="module")
def arguments(tmp_path_factory, chats, base, warmup) -> dict:
    data = write_jsonl(tmp_path_factory.mktemp("data") / "d.jsonl", chats[:60])
    return {"dataset": data, "model": warmup, "reference": base, "part_tokens": 600, "batch_tokens": 200}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, arguments) -> dict[str, bytes]:
    store = compute(**grouped(**arguments), store=tmp_path_factory.mktemp("undisturbed") / "store").store
    assert store.part_count >= 9
    return contents(store.path)


def command(arguments: dict, store: Path) -> list[str]:
    dataset, *options = arguments.items()
    words = [word for name, value in options for word in (f"--{name.replace('_', '-')}", str(value))]
    return ["compute", str(dataset[1]), "--store", str(store), *words]


def start_three(arguments: dict, store: Path, names: tuple[str, str] = ("RANK", "WORLD_SIZE")) -> list[Started]:
    words = command(arguments, store)
    return [start_command(*words, **{names[0]: str(rank), names[1]: "3"}) for rank in range(3)]


def wait(workers: list[Started]) -> None:
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors


def parts(store: Path) -> dict[Path, tuple[int, int]]:
    """Finished parts of statistics; a part that is written again is another file."""
    found = {}
    for path in store.glob("stats/*/part-*.parquet"):
        state = path.stat()
        found[path] = (state.st_ino, state.st_mtime_ns)
    return found


def test_three_workers_killed_again_and_again_end_in_the_same_store(arguments, undisturbed, tmp_path):
    """One worker, then all of them, at random moments once there is something to lose; what is whole is never redone."""
    store, rng = tmp_path / "store", random.Random(1)
    for victims in ([rng.randrange(3)], [0, 1, 2]):
        before = parts(store)
        workers = start_three(arguments, store)
        until = time.monotonic() + 60
        while len(parts(store)) <= len(before) and time.monotonic() < until and any(w.poll() is None for w in workers):
            time.sleep(0.005)
        time.sleep(rng.random() * 0.05)
        for victim in victims:
            workers[victim].send_signal(signal.SIGKILL)
        if len(victims) < 3:  # nobody waits for one that died; and without worker 0 there are no more tokens to wait for
            time.sleep(0.3)
        for worker in workers:
            worker.kill()
            worker.communicate()
        after = parts(store)
        assert all(after.get(path) == state for path, state in before.items()), "a whole part was made again"
    before = parts(store)
    wait(start_three(arguments, store))
    after = parts(store)
    assert all(after[path] == state for path, state in before.items()), "a whole part was made again"
    assert contents(store) == undisturbed


@pytest.mark.thorough
def test_workers_of_two_passes_killed_in_each_of_them_end_in_the_store_of_one_process(arguments, tmp_path):
    """All three go down once while the reference's states are made, and once while these are scored."""
    separate = {**arguments, "reference_pass": "separate"}
    done = compute(**grouped(**separate), store=tmp_path / "alone")
    alone, name = done.store, done.name
    store = tmp_path / "store"
    folder = store / "stats" / name
    for made in (folder / ".reference" / "part-*", folder / "part-*"):
        before = parts(store)
        workers = start_three(separate, store)
        until = time.monotonic() + 120
        while len(list(made.parent.glob(made.name))) < 2 and time.monotonic() < until:
            assert any(w.poll() is None for w in workers), "all ended before they could be killed"
            time.sleep(0.002)
        for worker in workers:
            worker.kill()
            worker.communicate()
        after = parts(store)
        assert all(after.get(path) == state for path, state in before.items()), "a whole part was made again"
        assert not (folder / "manifest.json").exists()
    assert parts(store)
    wait(start_three(separate, store))
    assert contents(store) == contents(alone.path)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_each_part_belongs_to_one_worker(count):
    workers = [Worker(rank, count) for rank in range(count)]
    assert all(sum(w.takes(part) for w in workers) == 1 for part in range(50))


@pytest.mark.parametrize(("rank", "count"), [("3", "3"), ("-1", "3"), ("one", "3"), ("0", "0"), ("", "2")])
def test_ranks_that_make_no_sense_are_refused(rank, count, monkeypatch):
    for names in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")):
        with monkeypatch.context() as patch:
            patch.setenv(names[0], rank)
            patch.setenv(names[1], count)
            with pytest.raises(InputError, match="expected a rank below the number of workers"):
                Worker.from_environment()


@pytest.mark.parametrize("reference_pass", ["together", "separate"])
def test_a_worker_gives_up_on_tokens_that_never_come(arguments, tmp_path, monkeypatch, reference_pass):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(StoreError, match=r"part-00000.parquet did not come within .* worker 0 may be dead"):
        compute(**grouped(**arguments, patience=0.2, reference_pass=reference_pass), store=tmp_path / "store")


# ---- memory


def test_where_memory_runs_out_batches_get_smaller_and_the_numbers_stay(base, warmup, chats, tmp_path, monkeypatch):
    data = write_jsonl(tmp_path / "d.jsonl", chats[:40])
    options = {"model": warmup, "reference": base, "part_tokens": 1500, "batch_tokens": 1600}
    done = compute(data, **grouped(**options), store=tmp_path / "plenty")
    plenty, name = done.store, done.name
    assert plenty.scorings[name].manifest.batch_tokens == 1600
    real = ModelPair.score

    def score(self, input_ids, chosen, topk, states=None):
        if input_ids.numel() > 500:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return real(self, input_ids, chosen, topk, states)

    monkeypatch.setattr(ModelPair, "score", score)
    scarce = compute(data, **grouped(**options), store=tmp_path / "scarce").store
    assert 250 <= scarce.scorings[name].manifest.batch_tokens <= 500
    assert_tables_close(table(scarce, name), table(plenty, name))


def test_a_sequence_that_fits_in_no_memory_is_an_error_that_says_what_helps(base, chats, tmp_path, monkeypatch):
    def score(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(ModelPair, "score", score)
    data = write_jsonl(tmp_path / "d.jsonl", chats[:3])
    with pytest.raises(InputError, match=r"a single sequence of \d+ tokens .*max_length"):
        compute(data, model=base, store=tmp_path / "s")


PEAK = """
import resource, sys
from tokenstats.computing import compute
from tokenstats.corpus.options import CorpusOptions
compute(sys.argv[1], model=sys.argv[2], store=sys.argv[3], corpus=CorpusOptions(chat=False, part_tokens=2000))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_data(base, tmp_path):
    """Ten times the rows, in ten times the parts; more would only take longer."""
    peaks = []
    for rows in (400, 4_000):
        data = write_jsonl(tmp_path / f"{rows}.jsonl", [{"prompt": f"{i}+1=", "completion": f"{i + 1}"} for i in range(rows)])
        done = subprocess.run(
            [sys.executable, "-c", PEAK, str(data), base, str(tmp_path / str(rows))],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        peaks.append(int(done.stdout.split()[-1]))
    assert Store(tmp_path / "4000").part_count > 20
    assert peaks[1] < 1.10 * peaks[0]


# ---- disks


@pytest.mark.parametrize("damage", ["truncated", "flipped bytes"])
def test_a_part_that_was_damaged_before_the_run_ended_is_made_again(arguments, undisturbed, tmp_path, damage):
    done = compute(**grouped(**arguments), store=tmp_path / "store")
    store, name = done.store, done.name
    folder = store.path / "stats" / name
    (folder / "manifest.json").unlink()  # as if killed before the end
    path = folder / "part-00002.parquet"
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        del content[len(content) // 2 :]
    else:
        content[500] ^= 0x10
    path.write_bytes(bytes(content))
    before = parts(store.path)
    with pytest.warns(TokenstatsWarning, match="part-00002.parquet .*: made again"):
        compute(**grouped(**arguments), store=tmp_path / "store")
    after = parts(store.path)
    assert [p for p in before if before[p] != after[p]] == [path], "only the damaged part is made again"
    assert contents(store.path) == undisturbed


def test_a_part_that_another_worker_must_make_again_stops_nobody(arguments, undisturbed, tmp_path):
    """Three tasks of a SLURM step, each with a truncated part of its own."""
    done = compute(**grouped(**arguments), store=tmp_path / "store")
    store, name = done.store, done.name
    (store.path / "stats" / name / "manifest.json").unlink()
    for index in range(3):
        path = store.path / "stats" / name / f"part-0000{index}.parquet"
        path.write_bytes(path.read_bytes()[:700])
    wait(start_three(arguments, store.path, ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")))
    assert contents(store.path) == undisturbed


def test_no_manifest_vouches_for_bytes_that_nobody_read(arguments, undisturbed, tmp_path, monkeypatch):
    """Worker 1 is the last one out, but part 3 of worker 0 was damaged meanwhile."""
    done = compute(**grouped(**arguments), store=tmp_path / "store")
    store, name = done.store, done.name
    manifest, path = store.path / "stats" / name / "manifest.json", store.path / "stats" / name / "part-00003.parquet"
    manifest.unlink()
    content = bytearray(path.read_bytes())
    content[500] ^= 0x10
    path.write_bytes(bytes(content))
    being_written = manifest.with_name(".writing-0123abcd-manifest.json")  # by the other worker
    being_written.touch()
    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", "3")
        patch.setenv("RANK", "1")
        compute(**grouped(**arguments), store=store.path)
        assert not manifest.exists()
        assert being_written.exists()
        patch.setenv("RANK", "0")
        with pytest.warns(TokenstatsWarning, match="part-00003.parquet .*: made again"):
            compute(**grouped(**arguments), store=store.path)
    assert not being_written.exists()
    assert contents(store.path) == undisturbed


def test_beside_a_manifest_a_damaged_part_is_named(arguments, tmp_path):
    done = compute(**grouped(**arguments), store=tmp_path / "store")
    store, name = done.store, done.name
    folder = store.path / "stats" / name
    content = bytearray((folder / "part-00003.parquet").read_bytes())
    content[500] ^= 0x10
    (folder / "part-00003.parquet").write_bytes(bytes(content))
    (folder / "part-00001.parquet").unlink()
    with pytest.raises(StoreError, match=r"part-00003.parquet cannot be read .*delete it and run the command"):
        compute(**grouped(**arguments), store=store.path)


def test_a_full_disk_while_the_tokenizer_is_saved_is_an_error(arguments, tmp_path, cli, monkeypatch):
    from transformers import PreTrainedTokenizerFast

    def no_space(*_, **__):
        raise Exception("No space left on device (os error 28)")  # as the tokenizers library does

    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", no_space)
    status, _, errors = cli(*command(arguments, tmp_path / "store"))
    assert status == 2
    assert "store/tokenizer: No space left on device" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("folder", ["tokens", "stats"])
def test_a_full_disk_is_an_error_and_once_there_is_space_the_run_goes_on(
    arguments, undisturbed, tmp_path, monkeypatch, cli, folder
):
    real = os.replace

    def replace(source, target):
        if folder in Path(target).parts[-3:] and Path(target).name == "part-00003.parquet":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    words = command(arguments, tmp_path / "store")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        status, _, errors = cli(*words)
    assert status == 2
    last = errors.strip().splitlines()[-1]
    assert "No space left on device; free some space" in last
    assert "part-00003.parquet" in last
    before = parts(tmp_path / "store")
    assert cli(*words)[0] == 0
    after = parts(tmp_path / "store")
    assert all(after[path] == state for path, state in before.items())
    assert contents(tmp_path / "store") == undisturbed


@pytest.mark.parametrize("folder", ["store", "store/stats"])
def test_a_folder_that_cannot_be_written_is_an_error(arguments, tmp_path, folder):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "tokens").mkdir()
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / folder).chmod(0o500)
    # root may write anywhere, unless it gives up that right
    without = ["setpriv", "--bounding-set=-dac_override"] if os.geteuid() == 0 else []
    if without and shutil.which("setpriv") is None:
        pytest.skip("runs as root, and there is no setpriv to give up its right to write anywhere")
    started = [*without, sys.executable, "-m", "tokenstats", *command(arguments, tmp_path / "store")]
    done = subprocess.run(started, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert f"cannot write {tmp_path / folder}" in last
    assert "Permission denied; free some space or mend its rights" in last


# ---- data


def test_scoring_starts_before_all_data_have_been_read(arguments, chats, tmp_path, monkeypatch):
    """The source gives no more rows until the first part is scored."""
    store, waited = tmp_path / "store", threading.Event()

    def read():
        yield from chats[:300]  # rows are tokenized 256 at a time
        until = time.monotonic() + 30
        while not parts(store):
            assert time.monotonic() < until, "nothing was scored while rows were still to come"
            time.sleep(0.01)
        waited.set()
        yield from chats[300:310]

    monkeypatch.setattr("tokenstats.computing.open_source", lambda *_: Source("rows that come slowly", read))
    done = compute(**grouped(**{**arguments, "part_tokens": 10_000, "batch_tokens": 8192}), store=store).store
    assert waited.is_set()
    assert done.manifest.dataset.rows == 310


@pytest.mark.parametrize("row", [2, -1])
def test_rows_may_change_only_after_the_point_where_a_run_was_killed(arguments, chats, tmp_path, row):
    rows = chats[:60]
    data = write_jsonl(tmp_path / "d.jsonl", rows)
    options = {**arguments, "dataset": data, "store": tmp_path / "store"}
    done = compute(**grouped(**options))
    store, name = done.store, done.name
    for manifest in store.path.rglob("manifest.json"):
        manifest.unlink()
    for index in range(5, store.part_count):
        (store.path / "tokens" / f"part-{index:05d}.parquet").unlink()
        (store.path / "stats" / name / f"part-{index:05d}.parquet").unlink()
    changed = json.loads(json.dumps(rows))
    changed[row]["messages"][-1]["content"] += " 1"
    write_jsonl(data, changed)
    if row == 2:
        with pytest.raises(StoreError, match="was made of other rows"):
            compute(**grouped(**options))
        return
    done = compute(**grouped(**options)).store
    fresh = compute(**grouped(**{**options, "store": tmp_path / "fresh"})).store
    assert done.fingerprint == fresh.fingerprint != store.fingerprint
    np.testing.assert_array_equal(table(done, name)["seq_id"], table(fresh, name)["seq_id"])
