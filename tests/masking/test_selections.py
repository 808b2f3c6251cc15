"""zscore, minmax, percent_rank, following and per=role: what they are, computed by hand and by plain loops."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import END_OF_TURN, TOOL, make_store, random_store

from tokenstats import Rule, Store, build_mask
from tokenstats.errors import RuleError
from tokenstats.masking.engine.aggregates import Aggregates, Scale
from tokenstats.masking.engine.decisions import decide
from tokenstats.masking.engine.evaluate import evaluate
from tokenstats.masking.engine.exact_sum import ExactSum
from tokenstats.masking.engine.part_reader import InMemory
from tokenstats.masking.engine.resolve import resolve_rules
from tokenstats.masking.engine.targets import Targets, iter_targets

STATISTICS = {(None, name) for name in ("entropy", "kl", "logprob", "ref_logprob")}
floats = st.floats(-(2.0**500), 2.0**500)


def populations_of(store: Store) -> list[Targets]:
    return list(iter_targets(store, STATISTICS, {None: "warm"}))


def numbers(populations: list[Targets], text: str) -> np.ndarray:
    """An expression's value for every target of the dataset."""
    rule = Rule(weight=text)
    assert rule.weighting is not None
    resolved = resolve_rules([rule], InMemory(populations))
    return np.concatenate([evaluate(rule.weighting.tree, p, resolved) for p in populations])


@pytest.fixture(scope="module")
def populations(tmp_path_factory) -> list[Targets]:
    return populations_of(random_store(tmp_path_factory.mktemp("s") / "store", sequences=300, seed=3, rows_per_part=70))


def groups(populations: list[Targets], scope: str) -> list[list[int]]:
    """Places of the flat targets that belong together, found token by token."""
    found: dict[object, list[int]] = {}
    flat, turn, last = 0, 0, (-1, -1, -2)
    for p in populations:
        for row, place, role in zip(p.row.tolist(), p.place.tolist(), p.column((None, "role")).tolist(), strict=True):
            if (p.part, row) != last[:2] or place != last[2] + 1:
                turn += 1
            last = (p.part, row, place)
            key = {"dataset": 0, "sequence": (p.part, row), "turn": turn, "role": role}[scope]
            found.setdefault(key, []).append(flat)
            flat += 1
    return list(found.values())


def naive(name: str, values: list[float]) -> list[float]:
    n = len(values)
    if name == "percent_rank":
        return [sum(v < x for v in values) / (n - 1) if n > 1 else 0.0 for x in values]
    if max(values) == min(values):
        return [0.0] * n
    if name == "minmax":
        return [(x - min(values)) / (max(values) - min(values)) for x in values]
    mean = math.fsum(values) / n
    deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in values) / n)
    return [(x - mean) / deviation for x in values]


@pytest.mark.parametrize("scope", ["dataset", "sequence", "turn", "role"])
@pytest.mark.parametrize("name", ["zscore", "minmax", "percent_rank"])
@pytest.mark.parametrize(("x", "among"), [("entropy", None), ("nll - 3 * kl", None), ("nll", "kl > 0.75")])
def test_scales_are_their_definitions_in_every_scope(populations, name, scope, x, among):
    option = "" if among is None else f", among={among}"
    found, plain = numbers(populations, f"{name}({x}, per={scope}{option})"), numbers(populations, x).astype(np.float64)
    member = np.ones(len(plain), bool) if among is None else numbers(populations, "kl") > 0.75
    assert np.isnan(found[~member]).all()
    of_scope = groups(populations, scope)
    assert scope == "dataset" or len(of_scope) > 1
    assert scope in ("dataset", "role") or any(len(g) == 1 for g in of_scope)
    for group in ([i for i in everyone if member[i]] for everyone in of_scope):
        if group:
            np.testing.assert_allclose(found[group], naive(name, plain[group].tolist()), rtol=1e-9, atol=1e-12)


def test_groups_of_one_and_of_equal_values_are_zero():
    from tokenstats.masking.engine import group_ops

    values, starts = np.array([0.1, 0.1, 0.1, 7.3, np.nan, 0.3]), np.array([0, 3, 3, 4, 6])

    for scale in (group_ops.zscore_in_groups, group_ops.minmax_in_groups, group_ops.percent_rank_in_groups):
        np.testing.assert_array_equal(scale(values, starts), [0, 0, 0, 0, np.nan, 0])


@pytest.mark.parametrize("name", ["top", "bottom", "quantile"])
def test_roles_are_groups_over_the_whole_dataset(populations, name):
    x = numbers(populations, "entropy").astype(np.float64)
    role = np.concatenate([p.column((None, "role")) for p in populations])
    assert (role == TOOL).any()
    if name == "quantile":
        found = numbers(populations, "quantile(entropy, 0.3, per=role)")
        for code in np.unique(role):
            np.testing.assert_allclose(found[role == code], np.quantile(x[role == code], 0.3), rtol=1e-12)
        return
    rule = Rule(drop=f"{name}(entropy, 0.3, per=role)", protect="")
    resolved = resolve_rules([rule], InMemory(populations))
    dropped = np.concatenate([decide(rule, p, resolved).dropped for p in populations])
    for code in np.unique(role):
        own = x[role == code] if name == "bottom" else -x[role == code]
        chosen = np.zeros(len(own), bool)
        chosen[np.argsort(own, kind="stable")[: int(0.3 * len(own))]] = True
        np.testing.assert_array_equal(dropped[role == code], chosen)


@pytest.mark.parametrize("scope", ["dataset", "sequence", "turn", "role"])
def test_a_quantile_among_some_is_theirs_and_the_others_have_none(populations, scope):
    found = numbers(populations, f"quantile(entropy, 0.3, per={scope}, among=kl > 0.75)")
    x, member = numbers(populations, "entropy").astype(np.float64), numbers(populations, "kl") > 0.75
    assert np.isnan(found[~member]).all()
    for group in ([i for i in everyone if member[i]] for everyone in groups(populations, scope)):
        if group:
            np.testing.assert_allclose(found[group], np.quantile(x[group], 0.3), rtol=1e-12)


@pytest.mark.parametrize("scope", ["dataset", "sequence", "turn", "role"])
def test_among_none_nothing_is_taken_and_nothing_has_a_value(populations, scope):
    for name in ("zscore", "minmax", "percent_rank"):
        assert np.isnan(numbers(populations, f"{name}(nll, per={scope}, among=kl > 1000)")).all()
    assert np.isnan(numbers(populations, f"quantile(nll, 0.5, per={scope}, among=kl > 1000)")).all()
    rule = Rule(drop=f"top(nll, 5, per={scope}, among=kl > 1000) or random(0.9, per={scope}, among=kl > 1000)", protect="")
    resolved = resolve_rules([rule], InMemory(populations))
    assert not any(decide(rule, p, resolved).dropped.any() for p in populations)


RESOLVED = [
    "zscore(nll * 0.1)",
    "zscore(kl, per=role)",
    "minmax(exp(entropy))",
    "percent_rank(nll - ref_nll)",
    "percent_rank(entropy, per=role)",
    "quantile(zscore(kl) + percent_rank(entropy), 0.37)",
    "percent_rank(nll, per=role, among=entropy > 0.5)",
    "quantile(kl, 0.4, among=top(entropy, 0.3))",
]


@pytest.mark.parametrize("text", RESOLVED)
def test_parts_in_any_number_and_order_give_the_same_bits(tmp_path, text):
    values = []
    for rows_per_part in (3, 31, 1000):
        cut = populations_of(random_store(tmp_path / str(rows_per_part), 120, seed=5, rows_per_part=rows_per_part))
        for order in (cut, cut[::-1], [cut[i] for i in np.random.default_rng(0).permutation(len(cut))]):
            rule = Rule(weight=text)
            assert rule.weighting is not None
            resolved = resolve_rules([rule], InMemory(order))
            values.append(np.concatenate([evaluate(rule.weighting.tree, p, resolved) for p in cut]).tobytes())
    assert len(set(values)) == 1


@pytest.mark.parametrize("drop", ["top(entropy, 0.31)", "bottom(kl, 77, per=role)", "random(0.2)"])
def test_ties_go_to_the_earlier_part_in_whatever_order_the_parts_are_read(populations, drop):
    rule = Rule(drop=drop, protect="")
    resolved = [resolve_rules([rule], InMemory(order)) for order in (populations, populations[::-1])]
    assert resolved[0] == resolved[1]


@given(st.lists(floats, max_size=60), st.data())
@settings(max_examples=200, deadline=None)
def test_sums_are_exact_in_any_chunks(values, data):
    total = ExactSum()
    for chunk in np.split(np.array(values), sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=3)))):
        total.add(chunk)
    assert total.value == sum(map(Fraction, values))


def test_selections_of_the_same_values_do_not_disturb_each_other(tmp_path):
    """What is sorted once for several selections depends on the group and the end that they are of."""
    selections = [f"{name}(entropy, 0.3, per={scope})" for name in ("top", "bottom") for scope in ("sequence", "turn")]
    selections += [f"entropy > quantile(entropy, 0.6, per={scope})" for scope in ("turn", "sequence")]

    def read() -> Targets:
        return populations_of(random_store(tmp_path / "s", 60, seed=6, rows_per_part=100))[0]

    together = decide(Rule(drop=" or ".join(selections), protect=""), read(), {}).reason
    for bit, text in enumerate(selections):
        alone = decide(Rule(drop=text, protect=""), read(), {}).dropped
        np.testing.assert_array_equal(together >> bit & 1, alone, text)


def store_by_hand(path, entropy: list[float]) -> Store:
    """One sequence: prompt, a reply of four tokens, a prompt token, a reply of two tokens, a token of the template."""
    ids = np.array([5, 6, 10, 11, 12, END_OF_TURN, 7, 13, END_OF_TURN, 8])
    targets = np.array([False, False, True, True, True, True, False, True, True, False])
    return make_store(path, [ids], [targets], {"entropy": [np.array(entropy, np.float32)]}, 10)


def test_following_reads_what_is_stored_at_the_next_token(tmp_path):
    #                               prompt    2    3    4    end  prompt 7    end  template
    store = store_by_hand(tmp_path / "s", [0.0, 0.0, 0.5, 4.0, 1.0, 9.0, 0.0, 3.0, 2.0, 0.0])
    populations = populations_of(store)
    end = np.nan  # token 5: the next token is a prompt's; token 8: the next is the template's
    np.testing.assert_array_equal(numbers(populations, "following(entropy)"), [4.0, 1.0, 9.0, end, 2.0, end])
    np.testing.assert_array_equal(numbers(populations, "following(following(entropy))"), [1.0, 9.0, end, end, end, end])
    np.testing.assert_array_equal(numbers(populations, "following(position) + 1"), [2, 3, 4, end, 2, end])
    cases = {
        # 6 tokens: one may be taken, and entropy is largest at token 5, which token 4 is followed by
        "top(following(entropy), 0.2, per=sequence)": [4],
        "top(entropy, 0.2, per=sequence)": [5],
        "bottom(following(entropy), 0.2, per=sequence)": [3],
        # the share is of all tokens, yet what has no value is never taken
        "top(following(entropy), 0.9, per=sequence)": [2, 3, 4, 7],
        "top(following(entropy), 2)": [2, 4],
        "top(following(entropy), 0.9)": [2, 3, 4, 7],
        "top(following(entropy), 5)": [2, 3, 4, 7],
        "bottom(following(entropy), 5, per=role)": [2, 3, 4, 7],
        "top(following(following(following(following(entropy)))), 5)": [],
        "entropy > quantile(following(following(following(following(entropy)))), 0.5)": [],
        "following(entropy) > 3": [2, 4],
        "following(entropy) != 1": [2, 4, 7],
        "not following(entropy) > 3": [3, 5, 7, 8],
        "following(is_special)": [4, 7],
        "following(entropy) >= quantile(following(entropy), 0.5, per=sequence)": [2, 4],  # of 1, 2, 4, 9: 3
        "percent_rank(following(entropy)) == 1": [4],
        "percent_rank(following(entropy), per=sequence) == 0": [3],
        "minmax(following(entropy), per=turn) > 0.3": [2, 4],
        "zscore(following(entropy)) > 0": [4],
    }
    for drop, expected in cases.items():
        build_mask(store, Rule(drop=drop, protect=""), "m", replace=True)
        keep = store.sequence(0, {"masks/m": ["keep"]})["masks/m"]["keep"]
        assert [t for t in (2, 3, 4, 5, 7, 8) if not keep[t]] == expected, drop
    with pytest.raises(RuleError, match=r"the weight .following.entropy.. is nan for token 5 of sequence 000000000"):
        build_mask(store, Rule(weight="following(entropy)"), "m", replace=True)


def test_infinite_values_have_a_rank_but_no_scale(populations):
    x = "log(clip(entropy - 0.5, 0, 100))"
    assert np.isfinite(numbers(populations, f"percent_rank({x})")).all()
    for scope, message in (("dataset", "the scale of .* is inf"), ("sequence", r"is not a number for token \d+")):
        for scale in ("zscore", "minmax"):
            with pytest.raises(RuleError, match=message.replace("is inf", "is -?inf")):
                numbers(populations, f"{scale}({x}, per={scope})")


def test_a_deviation_that_overflows_is_no_score_of_0(populations):
    x = "exp(clip(entropy * 300, 0, 600))"
    for scope, message in (("dataset", "the scale of .* is inf"), ("sequence", r"is not a number for token \d+")):
        with pytest.raises(RuleError, match=message):
            numbers(populations, f"zscore({x}, per={scope})")


def test_scales_are_in_the_manifest(tmp_path):
    store = random_store(tmp_path / "s", 50, seed=2, rows_per_part=20)
    manifest = build_mask(store, Rule(drop="zscore(entropy) > 1 or minmax(kl, per=role) > 0.5"), "m").manifest
    entropy = numbers(populations_of(store), "entropy").astype(np.float64)
    assert manifest.scales["zscore(entropy)"] == pytest.approx((entropy.mean(), entropy.std()), rel=1e-12)
    assert set(manifest.scales) == {"zscore(entropy)"} | {f"minmax(kl, per=role) of {r}" for r in ("assistant", "tool")}
    resolved: Aggregates = {text: Scale(*scale) for text, scale in manifest.scales.items()}
    rule = Rule.from_dict(manifest.rule)  # the manifest is enough to decide again
    assert sum(int(decide(rule, p, resolved).dropped.sum()) for p in populations_of(store)) == manifest.targets - manifest.kept
