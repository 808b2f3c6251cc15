"""A mask or report that is replaced: whoever looks meets the old one or the new one, at every moment and after every kill."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
from synthetic import random_store

from pipelines.processes import Started
from tokenstats import Rule, Store, build_mask
from tokenstats.errors import StoreError
from tokenstats.store import drafts

OLD, NEW = Rule(drop="entropy > 2"), Rule(drop="entropy > 1")


class Killed(BaseException):
    """Stands for SIGKILL: what would tidy up is made to do nothing, see :func:`dies_at`."""


@pytest.fixture
def store(tmp_path) -> Store:
    return random_store(tmp_path / "store", sequences=60, seed=7, rows_per_part=10)


@pytest.fixture(params=["in one step", "in two steps"])
def way(request, monkeypatch) -> str:
    """With the system's swap of two folders, and where there is none."""
    if request.param == "in two steps":
        monkeypatch.setattr(drafts, "swap", lambda one, two: False)
    return request.param


def kept(store: Store, mask: str) -> int:
    """Counted from every row on disk; the manifest must say the same."""
    total = sum(sum(map(sum, store.part(f"masks/{mask}", i)["keep"].to_pylist())) for i in range(store.part_count))
    assert total == store.masks[mask].manifest.kept
    return total


def dies_at(nth: int, patch: pytest.MonkeyPatch) -> list[str]:
    """Let the process 'die' before its nth move of a folder; returns the moves that were made."""
    moves: list[str] = []

    def dying(move):
        def moved(one, two):
            if Path(one).is_dir():
                if len(moves) == nth:
                    patch.setattr(drafts.shutil, "rmtree", lambda *_, **__: None)  # the dead do not tidy up
                    patch.setattr(os, "replace", refuse)
                    raise Killed
                moves.append(Path(one).name)
            return move(one, two)

        return moved

    def refuse(*_: object) -> None:
        raise Killed

    patch.setattr(os, "replace", dying(os.replace))
    patch.setattr(drafts, "swap", dying(drafts.swap))
    return moves


def test_a_mask_is_there_after_a_death_before_any_of_its_moves(store, way, monkeypatch):
    counts = {build_mask(store, rule, "mine", replace=True).manifest.kept for rule in (NEW, OLD)}
    before, deaths = kept(Store(store.path), "mine"), 0
    while True:
        with monkeypatch.context() as patch:
            moves = dies_at(deaths, patch)
            try:
                build_mask(Store(store.path), NEW, "mine", replace=True)
                break
            except Killed:
                deaths += 1
        seen = Store(store.path)
        assert list(seen.masks) == ["mine"]
        assert kept(seen, "mine") == before
        assert build_mask(seen, OLD, "mine").manifest.kept == before  # nothing to do: it is there
    assert deaths == len(moves) >= (2 if way == "in one step" else 4)
    assert kept(Store(store.path), "mine") in counts - {before}
    assert [p.name for p in (store.path / "masks").iterdir()] == ["mine"], "the next run clears what was left"


def test_who_opened_the_old_mask_is_told_that_it_is_another_one_now(store, way):
    build_mask(store, OLD, "mine")
    reader = Store(store.path)
    reader.part("masks/mine", 0)
    build_mask(store, NEW, "mine", replace=True)
    with pytest.raises(StoreError, match=r"masks/mine was replaced while it was being read; run again"):
        reader.part("masks/mine", 1)
    with pytest.raises(StoreError, match="was replaced"):
        reader.masks["mine"]
    assert kept(store, "mine") == store.masks["mine"].manifest.kept  # who replaced it sees the new one
    assert len(Store(store.path).scan("masks/mine").collect()) == 60


def test_a_draft_of_a_living_process_is_left_alone(store):
    with drafts.draft_of(store.path / "masks" / "mine") as draft:
        build_mask(store, OLD, "mine")
        assert draft.is_dir()
    assert not draft.exists()


REPLACED = "was replaced while it was being read"


def read_through(path: Path) -> int | str:
    """How many tokens the mask keeps, or that it was replaced on the way; any other error is one."""
    try:
        return kept(Store(path), "mine")
    except StoreError as error:
        if REPLACED in str(error):
            return REPLACED
        raise


REPLACES = """
import sys
from tokenstats import Rule, Store, build_mask
from tokenstats.store import drafts
if sys.argv[2] == "in two steps":
    drafts.swap = lambda one, two: False
while True:
    for limit in (1, 2):
        build_mask(Store(sys.argv[1]), Rule(drop=f"entropy > {limit}"), "mine", replace=True)
"""


@pytest.mark.parametrize("way", ["in one step", "in two steps"])
def test_a_reader_beside_a_writer_that_is_killed_again_and_again(store, way):
    counts = {build_mask(store, rule, "mine", replace=True).manifest.kept for rule in (NEW, OLD)}
    rng, read = random.Random(way), 0
    for _ in range(6):
        writer = Started(REPLACES, (store.path, way))
        before = os.stat(store.path / "masks").st_mtime_ns
        while os.stat(store.path / "masks").st_mtime_ns == before:
            assert writer.poll() is None
        until = time.monotonic() + rng.random() * 0.3
        while time.monotonic() < until:
            found = read_through(store.path)
            assert found in {*counts, REPLACED}
            read += found in counts
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        assert kept(Store(store.path), "mine") in counts
    assert read > 0
    build_mask(store, NEW, "mine", replace=True)
    assert [p.name for p in (store.path / "masks").iterdir()] == ["mine"]
