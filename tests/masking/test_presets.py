"""Each preset against a naive implementation of its published formula, token for token."""

import shutil
from collections.abc import Sequence

import numpy as np
import pytest
from naive_presets import NAIVE, UNPROTECTED, learnable
from synthetic import random_store

from tokenstats import Rule, Store, build_mask
from tokenstats.masking.rule import preset_names

COLUMNS = ["entropy", "kl", "logprob", "ref_logprob", "top1_logprob"]


def sequences(store: Store, scoring: str, masks: Sequence[str] = ()) -> list[dict]:
    """All sequences as plain lists; a mask's columns as (mask, column)."""
    rows: list[dict] = [
        dict(zip(table, values, strict=True))
        for tables in store.aligned({"tokens": ["input_ids", "is_target", "row"], f"stats/{scoring}": COLUMNS})
        for table in [{n: t[n].to_pylist() for t in tables.values() for n in t.column_names}]
        for values in zip(*table.values(), strict=True)
    ]
    for mask in masks:
        decisions = [r for i in range(store.part_count) for r in store.part(f"masks/{mask}", i).to_pylist()]
        for row, decision in zip(rows, decisions, strict=True):
            row |= {(mask, column): values for column, values in decision.items()}
    return rows


def check_preset(store: Store, scoring: str, name: str) -> None:
    manifest = build_mask(store, Rule.load(name), name).manifest
    rows = sequences(store, scoring, [name])
    ends = set() if name in UNPROTECTED else set(store.manifest.tokenizer.end_of_turn_ids)
    dropped, weights = NAIVE[name](rows)
    dropped = {(i, t) for i, t in dropped if rows[i]["input_ids"][t] not in ends}
    for i, row in enumerate(rows):
        kept = {t for t in learnable(row) if (i, t) not in dropped}
        assert [t for t, keep in enumerate(row[name, "keep"]) if keep] == sorted(kept)
        if weights is not None:
            expected = [weights[i, t] if t in kept else 0.0 for t in range(len(row["is_target"]))]
            np.testing.assert_allclose(row[name, "weight"], expected, rtol=1e-6, atol=0)
    assert manifest.targets - manifest.kept == len(dropped)
    assert manifest.weighted == (weights is not None)


@pytest.fixture(scope="module")
def made_up(tmp_path_factory) -> Store:
    store = random_store(tmp_path_factory.mktemp("made-up") / "store", sequences=500, seed=11, rows_per_part=120)
    rows = sequences(store, "warm")
    assert sum(len(learnable(r)) == 1 for r in rows) > 10  # replies of one token are among them
    return store


@pytest.fixture(scope="module")
def real(scored, tmp_path_factory) -> Store:
    folder = tmp_path_factory.mktemp("real") / "store"
    shutil.copytree(scored.path, folder)
    return Store(folder)


def test_every_preset_has_a_naive_twin():
    assert set(NAIVE) == set(preset_names()), "each needs its formula in tests/support/naive_presets.py, under its name"


@pytest.mark.parametrize("name", NAIVE)
def test_a_preset_is_its_formula_on_ties_short_replies_and_several_turns(made_up, name):
    check_preset(made_up, "warm", name)


@pytest.mark.parametrize("name", NAIVE)
def test_a_preset_is_its_formula_on_statistics_of_real_models(real, name):
    check_preset(real, "warmup", name)


def test_as_released_drops_the_token_before_the_uncertain_one(made_up):
    """The token that the aligned rule drops is the one after the token that the released rule drops."""
    aligned, shifted = (
        build_mask(made_up, Rule(drop=rule, protect=""), mask, replace=True).manifest
        for mask, rule in (
            ("aligned", "top(entropy, 1, per=turn) and position > 0"),
            ("shifted", "top(following(entropy), 1, per=turn)"),
        )
    )
    assert aligned.kept >= shifted.kept
    for row in sequences(made_up, "warm", ["aligned", "shifted"]):
        for t in learnable(row):
            if not row["aligned", "keep"][t]:
                assert not row["shifted", "keep"][t - 1]
