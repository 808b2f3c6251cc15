"""Weights, min_kept and budgets: what becomes of the tokens that the clauses have judged."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from naive_presets import learnable
from rule_texts import boolean_texts, value_texts
from synthetic import END_OF_TURN, add_words, random_store

from tokenstats import Rule, Store, build_mask
from tokenstats.errors import RuleError
from tokenstats.masking.build import mask_part
from tokenstats.masking.engine.decisions import Decisions, decide
from tokenstats.masking.engine.part_reader import InMemory
from tokenstats.masking.engine.resolve import resolve_rules
from tokenstats.masking.engine.targets import Targets, iter_targets
from tokenstats.schema import mask_schema

here = st.sampled_from(["entropy", "kl", "nll", "position", "length", "token_id"])  # columns that the store has


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    store = random_store(tmp_path_factory.mktemp("decisions") / "store", sequences=200, seed=21, rows_per_part=60)
    add_words(store)
    return store


@pytest.fixture(scope="module")
def populations(store) -> list[Targets]:
    names = {(None, name) for name in ("entropy", "kl", "logprob")}
    return list(iter_targets(store, names, {None: "warm"}))


def decisions_on(rule: Rule, populations: list[Targets]) -> list[Decisions]:
    resolved = resolve_rules([rule], InMemory(populations))
    return [decide(rule, population, resolved) for population in populations]


def dropped(rule: Rule, populations: list[Targets]) -> np.ndarray:
    """[n] boolean, over the whole dataset; an example of hypothesis that has no such mask is passed over."""
    try:
        return np.concatenate([d.dropped for d in decisions_on(rule, populations)])
    except RuleError as error:
        assume("keep it" not in str(error))
        raise


def sequences(store: Store, mask: str) -> list[dict]:
    rows: list[dict] = []
    for tables in store.aligned(
        {"tokens": ["input_ids", "is_target"], "stats/warm": ["logprob", "entropy"], f"masks/{mask}": ()}
    ):
        tables[f"masks/{mask}"] = store.part(f"masks/{mask}", len(rows) // 60)
        merged = {name: table[name].to_pylist() for table in tables.values() for name in table.column_names}
        rows += [dict(zip(merged, values, strict=True)) for values in zip(*merged.values(), strict=True)]
    return rows


@given(boolean_texts(here), boolean_texts(here))
@settings(max_examples=60, deadline=None)
def test_de_morgan(populations, a, b):
    one = dropped(Rule(drop=f"not (({a}) or ({b}))"), populations)
    two = dropped(Rule(drop=f"not ({a}) and not ({b})"), populations)
    np.testing.assert_array_equal(one, two)


@given(boolean_texts(here))
@settings(max_examples=60, deadline=None)
def test_drop_keep_and_protect_under_any_rule(populations, drop):
    plain = dropped(Rule(drop=drop, protect=""), populations)
    np.testing.assert_array_equal(plain, ~dropped(Rule(keep=drop, protect=""), populations))
    spared = np.concatenate([p.column((None, "is_end_of_turn")) for p in populations])
    np.testing.assert_array_equal(dropped(Rule(drop=drop), populations), plain & ~spared)


@given(boolean_texts(here), value_texts(here), st.sampled_from([None, 1, 5]), st.sampled_from(["drop", "keep"]))
@settings(max_examples=40, deadline=None)
def test_only_targets_are_kept_and_only_what_is_kept_weighs(store, populations, drop, weight, min_kept, too_few):
    rule = Rule(drop=drop, weight=f"abs({weight})", min_kept=min_kept, too_few=too_few if min_kept else None)
    try:
        parts = [mask_part(d) for d in decisions_on(rule, populations)]
    except RuleError:
        assume(False)
    for index, part in enumerate(parts):
        assert part.schema.equals(mask_schema(weighted=True))
        tokens = store.part("tokens", index)
        assert part["keep"].combine_chunks().offsets.equals(tokens["is_target"].combine_chunks().offsets)
        keep, reason, weight = (
            part[c].combine_chunks().flatten().to_numpy(zero_copy_only=False) for c in part.column_names[1:]
        )
        target = tokens["is_target"].combine_chunks().flatten().to_numpy(zero_copy_only=False).copy()
        target[tokens["is_target"].combine_chunks().offsets.to_numpy()[:-1]] = False
        assert not (keep & ~target).any()
        np.testing.assert_array_equal(reason > 0, target & ~keep)
        assert (weight[~keep] == 0).all()
        assert (np.isfinite(weight) & (weight >= 0)).all()


@given(
    st.one_of(st.floats(0.001, 0.999), st.integers(1, 50)),
    st.sampled_from(["dataset", "sequence", "turn", "role"]),
    st.sampled_from(["top", "bottom"]),
    st.sampled_from(["entropy", "kl - 2 * entropy"]),
    st.sampled_from([None, "kl > 0.8", "position > 2", "part_of('b')", "top(kl, 0.5, per=turn)", "kl > 1000"]),
)
@settings(max_examples=60, deadline=None)
def test_a_selection_takes_floor_of_its_share_and_of_equals_the_earlier(populations, f, scope, name, x, among):
    option = "" if among is None else f", among={among}"
    found = dropped(Rule(drop=f"{name}({x}, {f!r}, per={scope}{option})", protect=""), populations)
    member = np.ones(len(found), bool) if among is None else dropped(Rule(drop=among, protect=""), populations)
    assert not (found & ~member).any()
    entropy, kl = (np.concatenate([p.column((None, c)) for p in populations]).astype(np.float64) for c in ("entropy", "kl"))
    values = entropy if x == "entropy" else kl - 2 * entropy
    for everyone in group_of(populations, scope):
        group = [i for i in everyone if member[i]]
        k = int(f * len(group)) if isinstance(f, float) else min(f, len(group))
        order = sorted(group, key=lambda i: ((-values[i] if name == "top" else values[i]), i))
        assert sorted(order[:k]) == [i for i in group if found[i]]


def group_of(populations: list[Targets], scope: str) -> list[list[int]]:
    groups: dict[tuple, list[int]] = {}
    i = turn = 0
    for p in populations:
        last = (-1, -2)
        for row, place, role in zip(p.row.tolist(), p.place.tolist(), p.column((None, "role")).tolist(), strict=True):
            turn += (row, place) != (last[0], last[1] + 1)
            last = (row, place)
            key = {"dataset": (), "sequence": (p.part, row), "turn": (turn,), "role": (role,)}[scope]
            groups.setdefault(key, []).append(i)
            i += 1
    return list(groups.values())


@given(
    st.integers(-(2**20), 2**20),
    st.sampled_from(["entropy", "kl"]),
    st.sampled_from(["top({x}, {f}, per={s})", "bottom({x}, {f}, per={s})", "{x} <= quantile({x}, {f}, per={s})"]),
    st.sampled_from(["0.2", "0.5", "0.77"]),
    st.sampled_from(["dataset", "sequence", "turn", "role"]),
)
@settings(max_examples=60, deadline=None)
def test_adding_a_constant_changes_no_selection(populations, c, x, rule, f, scope):
    """Exactly, because the sums are exact: a float32 of at least 2**-4, or 0, has no bit below 2**-27, the constant none

    above 2**20, and float64 holds all 48. With constants that round (0.1, or 2**60) values that differ may become equal. What
    is interpolated between two values rounds too, but stays between them, which ``<=`` does not notice.
    """
    one = Rule(drop=rule.format(x=x, f=f, s=scope), protect="")
    two = Rule(drop=rule.format(x=f"({x} + {c})", f=f, s=scope), protect="")
    np.testing.assert_array_equal(dropped(one, populations), dropped(two, populations))


def test_a_rule_may_only_weigh(store):
    manifest = build_mask(store, Rule(weight="prob"), "dft").manifest
    assert (manifest.kept, manifest.clauses, manifest.weighted) == (manifest.targets, (), True)
    assert manifest.rule == {"weight": "prob", "protect": "is_end_of_turn"}
    rows = sequences(store, "dft")
    weights = [row["weight"][t] for row in rows for t in learnable(row)]
    np.testing.assert_allclose(weights, [math.exp(row["logprob"][t]) for row in rows for t in learnable(row)], rtol=1e-6)
    assert manifest.weight_total == math.fsum(weights)
    assert store.part("masks/dft", 0).schema.remove_metadata().equals(mask_schema(weighted=True))


def test_a_mask_without_weight_has_no_such_column(store):
    manifest = build_mask(store, Rule(drop="entropy > 1"), "hard").manifest
    assert (manifest.weighted, manifest.weight_total) == (False, None)
    assert store.part("masks/hard", 0).schema.remove_metadata().equals(mask_schema(weighted=False))


@pytest.mark.parametrize(
    ("weight", "said"), [("nll - 1", "is -"), ("exp(exp(4 + entropy))", "is inf"), ("log(clip(entropy - 1, 0, 9))", "is -inf")]
)
def test_a_weight_is_finite_and_not_negative_where_a_token_is_kept(store, weight, said):
    with pytest.raises(RuleError, match=rf"the weight .* {said}.* for token \d+ of sequence 0\d{{8}}-0+; expected a finite"):
        build_mask(store, Rule(weight=weight), "bad")
    assert "bad" not in store.masks


def test_a_weight_does_not_matter_where_a_token_is_dropped(store):
    build_mask(store, Rule(drop="nll < 1", protect="", weight="nll - 1"), "soft", replace=True)
    for row in sequences(store, "soft"):
        for t in learnable(row):
            assert row["weight"][t] == (np.float32(-row["logprob"][t] - 1) if row["keep"][t] else 0)


@pytest.mark.parametrize("n", [1, 3, 8])
def test_rows_that_keep_too_few_are_dropped_or_kept_whole(store, n):
    drop = "entropy > 0.7 or kl > 1.5"
    plain, least, whole = (
        build_mask(store, Rule(drop=drop, **more), name, replace=True).manifest
        for name, more in (
            ("plain", {}),
            ("least", {"min_kept": n}),
            ("whole", {"min_kept": n, "too_few": "keep"}),
        )
    )
    few = extra = back = 0
    for before, least_row, whole_row in zip(*(sequences(store, m) for m in ("plain", "least", "whole")), strict=True):
        kept = sum(before["keep"])
        if kept >= n:
            assert before == least_row == whole_row
            continue
        few += 1
        extra += kept
        back += len(learnable(before)) - kept
        assert not any(least_row["keep"])
        for t in learnable(before):
            assert least_row["reason"][t] == (before["reason"][t] or 4)  # its own bit, after those of the two clauses
            assert (whole_row["keep"][t], whole_row["reason"][t]) == (True, 0)
    assert least.rows_with_too_few == whole.rows_with_too_few == few
    assert few > 0 or n == 1
    assert [c.text for c in least.clauses] == ["entropy > 0.7", "kl > 1.5", f"min_kept = {n}"]
    assert least.clauses[2].dropped == extra == plain.kept - least.kept
    assert len(whole.clauses) == 2
    assert whole.kept == plain.kept + back


def test_a_budget_that_cannot_be_met_is_said(store, cli):
    build_mask(store, Rule(drop="entropy >= 0", protect=""), "everything")
    manifest = build_mask(store, Rule(drop="random(0.5)", budget="same as everything"), "control").manifest
    ends = sum(row["input_ids"][t] == END_OF_TURN for row in sequences(store, "control") for t in learnable(row))
    assert manifest.shortfall == ends == manifest.kept  # all else is dropped, and no end of turn
    status, out, _ = cli("mask", store.path, "--rule", "random", "--budget", "everything", "--name", "again")
    assert status == 0
    assert f"{ends:,} tokens fewer than the budget (same as everything)" in out
    exact = build_mask(store, Rule(drop="random(0.5)", budget="same as everything", protect=""), "exact").manifest
    assert (exact.shortfall, exact.kept) == (0, 0)


def test_the_command_line_says_what_the_manifest_says(store, cli):
    status, out, _ = cli(
        *("mask", store.path, "--drop", "zscore(entropy) > 1", "--weight", "minmax(kl)", "--min-kept", 4, "--too-few", "keep"),
        *("--name", "cli"),
    )
    manifest = store.masks["cli"].manifest
    assert status == 0
    assert f"weighs what is kept by minmax(kl): {manifest.weight_total / manifest.kept:.4f} on average" in out
    assert f"{manifest.rows_with_too_few:,} rows would keep fewer than 4 tokens: kept whole" in out
    assert f"scale {manifest.scales['minmax(kl)'][0]:.6g}, {manifest.scales['minmax(kl)'][1]:.6g}  minmax(kl)" in out
    status, _, err = cli("mask", store.path, "--drop", "entropy > 1", "--too-few", "keep", "--name", "none-such")
    assert (status, "expected min_kept beside it" in err) == (2, True)
    status, out, _ = cli("mask", store.path, "--weight", "prob", "--name", "only-weight")
    assert (status, "drops 0 of" in out) == (0, True)
