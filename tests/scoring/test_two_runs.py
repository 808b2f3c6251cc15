"""Two runs at once that want different things of one place: one of them is told, and nothing is a mixture of the two."""

import shutil

import pytest
from disk import contents, write_jsonl
from flat_options import grouped

from tokenstats.computing import compute
from tokenstats.corpus import build
from tokenstats.corpus.build import build_tokens, plan_corpus
from tokenstats.corpus.options import CorpusOptions
from tokenstats.corpus.sources import open_source
from tokenstats.errors import StoreError
from tokenstats.modeling.tokenizer import load_tokenizer
from tokenstats.scoring import local_engine
from tokenstats.store import Store


@pytest.fixture
def store(tmp_path, chats, warmup, base) -> Store:
    """Of several parts, with a scoring of the base."""
    data = write_jsonl(tmp_path / "d.jsonl", chats[:20])
    return compute(data, **grouped(model=base, part_tokens=600), store=tmp_path / "store").store


@pytest.mark.parametrize("written", [0, 3], ids=["behind", "ahead"])
def test_a_part_that_another_run_writes_meanwhile_is_never_taken_for_ones_own(store, tmp_path, warmup, monkeypatch, written):
    """It lies where this run has been already, or where it comes to next."""
    assert store.part_count >= 4
    real, mine = local_engine.write_scored, store.path / "stats" / "mine"

    def write(folder, index, *rest):
        real(folder, index, *rest)
        if index == 1:
            name = f"part-{written:05d}.parquet"
            shutil.copy(store.path / "stats" / "base" / name, mine / name)

    monkeypatch.setattr(local_engine, "write_scored", write)
    again = {"model": warmup, "name": "mine", "part_tokens": 600}
    said = r"scoring 'mine' in .* is being made by another run too, and a part of it was made with other settings: .*model"
    with pytest.raises(StoreError, match=said):
        compute(tmp_path / "d.jsonl", **grouped(**again), store=store.path)
    assert not (mine / "manifest.json").exists()
    assert "mine" not in Store(store.path).scorings


def test_a_part_of_the_same_run_elsewhere_disturbs_nobody(store, tmp_path, base, monkeypatch):
    """As when a worker is started twice."""
    real, mine = local_engine.write_scored, store.path / "stats" / "mine"

    def write(folder, index, *rest):
        real(folder, index, *rest)
        if index == 1:
            shutil.copy(store.path / "stats" / "base" / "part-00003.parquet", mine / "part-00003.parquet")

    monkeypatch.setattr(local_engine, "write_scored", write)
    compute(tmp_path / "d.jsonl", **grouped(model=base, name="mine", part_tokens=600), store=store.path)
    parts = [{n: b for n, b in contents(store.path / "stats" / name).items() if "part" in n} for name in ("mine", "base")]
    assert parts[0] == parts[1]


def test_of_two_datasets_that_become_one_store_at_once_one_is_refused(tmp_path, chats, base, monkeypatch):
    tokenizer, real = load_tokenizer(base), build._table
    plans = [
        plan_corpus(open_source(write_jsonl(tmp_path / f"{i}.jsonl", rows)), tokenizer, "here", CorpusOptions(part_tokens=600))
        for i, rows in enumerate((chats[:20], chats[20:40]))
    ]
    build_tokens(plans[0], tmp_path / "alone")

    def after_the_other(batch):
        monkeypatch.setattr(build, "_table", real)
        build_tokens(plans[0], tmp_path / "store")
        return real(batch)

    monkeypatch.setattr(build, "_table", after_the_other)
    with pytest.raises(StoreError, match="is being made of other rows by another run; choose another folder"):
        build_tokens(plans[1], tmp_path / "store")
    found, alone = (Store(tmp_path / name) for name in ("store", "alone"))
    assert (found.fingerprint, found.manifest.dataset.fingerprint) == (alone.fingerprint, alone.manifest.dataset.fingerprint)
