"""Several stores in one run: which rows an epoch has, what is learned of them, and where all of them are named."""

import json
import math
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training_fixtures import (
    QUICK,
    ROWS,
    add_mask,
    build_store,
    byte_tokenizer,
    every_third_dropped,
    largest_difference,
    losses,
    nll_of,
    saved_parameters,
    uneven,
)

from tokenstats.errors import InputError
from tokenstats.store import Store
from tokenstats.training import TrainOptions, train
from tokenstats.training.callbacks import Flow
from tokenstats.training.data import load_training_data
from tokenstats.training.mixture import Mixture, choose_sources, join
from tokenstats.training.rows import choose_mask

SHARES = (0.7, 0.3)


def every_second_dropped(row: int, is_target: np.ndarray) -> np.ndarray:
    return np.arange(len(is_target)) % 2 == 0


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Ten chats that the other store begins with too: rows of the same seq_id."""
    store = build_store(tmp_path_factory.mktemp("second"), rows=10, part_tokens=300)
    add_mask(store, "some", every_second_dropped)
    add_mask(store, "other", every_second_dropped, weighs=uneven)
    return store


numbers = st.integers(2, 4)
shares_of = numbers.flatmap(
    lambda n: st.tuples(*(st.lists(st.integers(1, most), min_size=n, max_size=n) for most in (400, 20)))
)


@settings(max_examples=100, deadline=None)
@given(shares_of)
def test_an_epoch_has_as_many_rows_as_there_can_be_in_these_shares(drawn: tuple[list[int], list[int]]) -> None:
    sizes, weights = drawn
    shares = [weight / sum(weights) for weight in weights]
    try:
        counts = Mixture(sizes, shares).counts
    except InputError:
        assert min(shares) * min(size / share for size, share in zip(sizes, shares, strict=True)) < 1, "a row for each store"
        return
    total = sum(counts)
    assert all(0 < count <= size for count, size in zip(counts, sizes, strict=True))
    assert all(abs(count - share * total) < 1 for count, share in zip(counts, shares, strict=True))
    assert any(share * (total + 1) > size for share, size in zip(shares, sizes, strict=True)), "one more would be too many"


@settings(max_examples=30, deadline=None)
@given(shares_of, st.integers(0, 5), st.integers(1, 7))
def test_over_epochs_each_row_of_a_store_is_learned_from_equally_often(
    drawn: tuple[list[int], list[int]], seed: int, epochs: int
) -> None:
    sizes, weights = drawn
    keys = np.random.default_rng(0).integers(0, 2**63, sum(sizes)).astype(np.uint64)
    try:
        mixture = Mixture(sizes, [weight / sum(weights) for weight in weights])
    except InputError:
        return
    taken = [mixture.rows_of(epoch, keys, seed) for epoch in range(epochs)]
    assert all(len(rows) == mixture.rows for rows in taken)
    assert all(np.array_equal(mixture.rows_of(epoch, keys, seed), rows) for epoch, rows in enumerate(taken))
    first = 0
    for size, count in zip(sizes, mixture.counts, strict=True):
        often = Counter(int(row) for rows in taken for row in rows if first <= row < first + size)
        assert sum(often.values()) == count * epochs
        assert max(often.values()) - min(often.get(row, 0) for row in range(first, first + size)) <= 1
        first += size


def test_an_epoch_of_a_mixture_is_a_shuffle_that_depends_on_the_seed() -> None:
    keys = np.arange(60, dtype=np.uint64)
    mixture = Mixture([40, 20], [0.5, 0.5])
    rows = [tuple(sorted(mixture.rows_of(epoch, keys, seed))) for epoch in range(2) for seed in range(2)]
    assert len(set(rows)) == 4
    assert all(set(range(40, 60)) <= set(found) for found in rows), "the scarce store gives all of its rows"


def test_without_shares_all_rows_of_all_stores_are_learned_with_the_mask_of_each(
    store: Store, second: Store, model: str, tmp_path: Path
) -> None:
    options = replace(QUICK, max_steps=1, batch_size=ROWS + 10)
    summary = train([store, second], model=model, mask="some", out=tmp_path / "out", options=options)
    one = nll_of(store, model, lambda row, is_target: is_target & every_third_dropped(row, is_target))
    two = nll_of(second, model, lambda row, is_target: is_target & every_second_dropped(row, is_target), range(10))
    assert summary.loss == pytest.approx((one[0] + two[0]) / (one[1] + two[1]), rel=1e-6)
    assert (summary.rows, summary.rows_left_out, summary.kept_tokens) == (ROWS - 1 + 10, 1, one[1] + two[1])
    assert summary.mixture == {str(store.path): ROWS - 1, str(second.path): 10}


def test_a_mask_that_weighs_beside_one_that_does_not(store: Store, second: Store, model: str, tmp_path: Path) -> None:
    options = replace(QUICK, max_steps=1, batch_size=ROWS + 10)
    summary = train([store, str(second.path)], model=model, mask="some,other", out=tmp_path / "out", options=options)
    one = nll_of(store, model, lambda row, is_target: is_target & every_third_dropped(row, is_target))
    two = nll_of(second, model, lambda row, flags: flags * every_second_dropped(row, flags) * uneven(row, flags), range(10))
    assert summary.loss == pytest.approx((one[0] + two[0]) / (one[1] + two[1]), rel=1e-6)


def test_shares_are_of_the_rows_of_an_epoch_and_what_is_said_of_it_is_so(
    store: Store, second: Store, model: str, tmp_path: Path
) -> None:
    options = replace(QUICK, max_steps=1, batch_size=40, shares=SHARES)
    summary = train([store, second], model=model, mask=["none", "some"], out=tmp_path / "out", options=options)
    assert summary.mixture == {str(store.path): 23, str(second.path): 10}  # 0.7 and 0.3 of 33: 23.1 and 9.9
    assert summary.rows == 33
    parts = [load_training_data(store, choose_mask(store, None)), load_training_data(second, choose_mask(second, "some"))]
    joined = join(parts, choose_sources([store, second], ["none", "some"])).train
    rows = Mixture([ROWS, 10], SHARES).rows_of(0, joined.keys, options.seed)
    assert summary.kept_tokens == sum(int((joined[row]["labels"] >= 0).sum()) for row in rows)
    learned = nll_of(store, model, lambda _, flags: flags, {int(row) for row in rows if row < ROWS})
    of_second = nll_of(second, model, lambda row, flags: flags & every_second_dropped(row, flags), range(10))
    assert summary.loss == pytest.approx((learned[0] + of_second[0]) / (learned[1] + of_second[1]), rel=1e-6)


def test_rows_of_one_seq_id_in_two_stores_are_two_rows(store: Store, second: Store) -> None:
    sources = choose_sources([store, second], None)
    parts = [load_training_data(source.store, source.mask) for source in sources]
    assert len(np.intersect1d(parts[0].train.keys, parts[1].train.keys)) == 10
    joined = join(parts, sources).train
    assert len(set(joined.keys.tolist())) == len(joined) == ROWS + 10
    for row in range(10):
        assert np.array_equal(joined[row]["input_ids"], joined[ROWS + row]["input_ids"])


def test_rows_held_out_are_those_of_each_store_alone(store: Store, second: Store, model: str, tmp_path: Path) -> None:
    options = replace(QUICK, max_steps=1, eval_share=0.25, shares=SHARES)
    both = train([store, second], model=model, mask="none", out=tmp_path / "both", options=options)
    alone = [
        train(one, model=model, mask="none", out=tmp_path / str(i), options=replace(options, shares=None))
        for i, one in enumerate((store, second))
    ]
    assert both.eval_rows == sum(one.eval_rows for one in alone)
    targets = [targets_held_out(one) for one in (store, second)]
    expected = sum(one.eval_loss_before * count for one, count in zip(alone, targets, strict=True)) / sum(targets)
    assert both.eval_loss_before == pytest.approx(expected, rel=1e-6)


def targets_held_out(store: Store) -> int:
    evaluation = load_training_data(store, choose_mask(store, None), eval_share=0.25).evaluation
    assert evaluation is not None
    return evaluation.learned_tokens


@pytest.mark.parametrize("sizes", [{}, {"batch_size": None, "batch_tokens": 300, "accumulation": 2}])
def test_a_mixture_is_resumed_to_the_last_bit(
    store: Store, second: Store, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: dict
) -> None:
    options = replace(QUICK, max_steps=22, save_steps=5, shares=SHARES, **sizes)

    def run(name: str, resume: bool = False) -> None:
        train([store, second], model=model, mask="some", out=tmp_path / name, options=options, resume=resume)

    def stop(self: Flow, args: object, state: object, control: object, **_: object) -> None:
        if state.global_step == 13:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    run("whole")
    with monkeypatch.context() as patch:
        patch.setattr(Flow, "on_step_begin", stop)
        with pytest.raises(KeyboardInterrupt):
            run("killed")
    run("killed", resume=True)
    assert largest_difference(tmp_path / "whole", tmp_path / "killed") == 0.0
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")
    with pytest.raises(InputError, match="holds another run: store: there"):
        train([second, store], model=model, mask="some", out=tmp_path / "killed", options=options, resume=True)


def test_the_record_and_the_run_file_name_every_store_and_mask_and_repeat_the_run(
    cli, store: Store, second: Store, model: str, tmp_path: Path
) -> None:
    options = replace(QUICK, shares=SHARES, device="cpu")
    train([store, second], model=model, mask=["some", None], out=tmp_path / "out", options=options)
    record = json.loads((tmp_path / "out" / "tokenstats.json").read_text())
    assert [one["store_fingerprint"] for one in record["mixture"]] == [store.fingerprint, second.fingerprint]
    assert [one["mask"] for one in record["mixture"]] == ["some", None]
    assert [one["rows_in_epoch"] for one in record["mixture"]] == [22, 10]  # one row keeps nothing
    assert record["training"]["shares"] == list(SHARES)
    status, out, err = cli("train", "--config", tmp_path / "out" / "run.toml", "--out", tmp_path / "again")
    assert status == 0, err
    assert f"  10 rows of {second.path}\n" in out
    one, two = (saved_parameters(tmp_path / name) for name in ("out", "again"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    words = ["train", store.path, second.path, "--mask", "some,none", "--model", model, "--out", tmp_path / "x"]
    printed = cli(*words, "--shares", "0.7,0.3", "--print-config")[1]
    assert f'store = ["{store.path}", "{second.path}"]\nmask = "some,none"\n' in printed
    assert "shares = [0.7, 0.3]\n" in printed


def test_a_term_over_a_clause_and_a_cached_reference_read_each_store_with_its_own_mask(
    store: Store, second: Store, model: str, tmp_path: Path
) -> None:
    options = replace(QUICK, max_steps=3, shares=SHARES, kl_penalty=0.1, kl_on="clause 1", reference=model, metrics="kept")
    beside = train([store, second], model=model, mask="some", out=tmp_path / "beside", options=options)
    options = replace(options, reference_cache=str(tmp_path / "cache"))
    cached = train([store, second], model=model, mask="some", out=tmp_path / "cached", options=options)
    assert cached.loss == pytest.approx(beside.loss, rel=1e-5)
    assert cached.metrics["kl_on/kl"] == pytest.approx(beside.metrics["kl_on/kl"], rel=1e-2, abs=1e-7)


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ((0.7, 0.2), "shares got 0.7, 0.2, which sum to 0.9; expected a sum of 1"),
        ((0.7, 0.4), "shares got 0.7, 0.4, which sum to 1.1; expected a sum of 1"),
        ((1.5, -0.5), "shares got (1.5, -0.5); expected numbers above 0, one for each store"),
        ((1.0, 0.0), "shares got (1.0, 0.0); expected numbers above 0"),
        ("0.7,0.3", "shares got '0.7,0.3'; expected numbers above 0"),
        ((0.5, "half"), "shares got (0.5, 'half'); expected numbers above 0"),
        ((math.nan, 0.5), "shares got (nan, 0.5); expected numbers above 0"),
    ],
)
def test_shares_that_are_none_are_refused(shares: tuple, message: str) -> None:
    with pytest.raises(InputError) as refused:
        TrainOptions(shares=shares)
    assert str(refused.value).startswith(message)


def test_mistakes_are_named_and_nothing_is_written(store: Store, second: Store, model: str, tmp_path: Path) -> None:
    (tmp_path / "stores").mkdir()
    strange = build_store(tmp_path / "stores" / "strange", rows=10, part_tokens=300, tokenizer=byte_tokenizer(extra=("xyz",)))
    shutil.copytree(second.path, tmp_path / "stores" / "copy")
    cases: list[tuple[list, dict, str]] = [
        ([], {}, "store got an empty list; expected a store, or several"),
        ([store], {"shares": (1.0,)}, "shares would do nothing: there is one store"),
        ([store, second], {"shares": (0.5, 0.25, 0.25)}, "shares got 3 shares for 2 stores; expected one for each"),
        (
            [store, second],
            {"shares": (0.999, 0.001)},
            "of 24 rows in an epoch a store would have none",
        ),
        ([store, strange], {}, "has another tokenizer than"),
        ([second, Store(tmp_path / "stores" / "copy")], {}, "holds the same rows as a store before it; give each once"),
    ]
    for stores, options, message in cases:
        with pytest.raises(InputError, match=message):
            train(stores, model=model, mask=None, out=tmp_path / "out", options=replace(QUICK, **options))
    with pytest.raises(InputError, match="mask got 3 masks for 2 stores; expected one, or one for each"):
        train([store, second], model=model, mask="some,none,all", out=tmp_path / "out", options=QUICK)
    assert [path.name for path in tmp_path.iterdir()] == ["stores"]
