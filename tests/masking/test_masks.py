"""Masks against naive implementations, over thousands of random sequences with ties and replies of one token."""

import numpy as np
import pyarrow as pa
import pytest
from synthetic import END_OF_TURN, random_store

from tokenstats import Rule, build_mask, compare, sweep
from tokenstats.errors import InputError, NotThere, RuleError, StoreError, TokenstatsWarning
from tokenstats.masking.rule import rule_text
from tokenstats.store import Store

COLUMNS = {"tokens": ["input_ids", "is_target"], "stats/warm": ["entropy", "kl", "logprob"]}


def sequences(store: Store, mask: str | None = None) -> list[dict]:
    """All sequences as plain lists."""
    families = {**COLUMNS, **({f"masks/{mask}": ["keep", "reason"]} if mask else {})}
    out = []
    for tables in store.aligned(families):
        merged = {name: table[name].to_pylist() for table in tables.values() for name in table.column_names}
        out += [dict(zip(merged, values, strict=True)) for values in zip(*merged.values(), strict=True)]
    return out


def learnable(row: dict) -> list[int]:
    return [t for t, target in enumerate(row["is_target"]) if target and t > 0]


def naive_top(row: dict, column: str, f: float | int, places: list[int] | None = None) -> set[int]:
    """The k places with the largest values, one at a time; of equal values the earliest."""
    places = learnable(row) if places is None else list(places)
    k = int(f * len(places)) if isinstance(f, float) else min(f, len(places))
    chosen: set[int] = set()
    for _ in range(k):
        best = None
        for t in places:
            if t not in chosen and (best is None or row[column][t] > row[column][best]):
                best = t
        chosen.add(best)
    return chosen


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return random_store(tmp_path_factory.mktemp("random") / "store", sequences=600, seed=0, rows_per_part=150)


def test_eksft_equals_a_naive_implementation(tmp_path):
    store = random_store(tmp_path / "store", sequences=3000, seed=1, rows_per_part=700)
    manifest = build_mask(store, Rule.load("eksft"), "eksft").manifest
    rows = sequences(store, "eksft")
    assert len(rows) == 3000
    assert sum(len(learnable(r)) == 1 for r in rows) > 50  # replies of one token are among them
    kept = 0
    for row in rows:
        by_entropy, by_kl = naive_top(row, "entropy", 0.2), naive_top(row, "kl", 0.2)
        for t in range(len(row["input_ids"])):
            dropped = t in by_entropy | by_kl and row["input_ids"][t] != END_OF_TURN
            assert row["keep"][t] == (t in learnable(row) and not dropped)
            assert row["reason"][t] == ((t in by_entropy) + 2 * (t in by_kl) if dropped else 0)
        kept += sum(row["keep"])
    assert manifest.kept == kept
    assert manifest.targets == sum(len(learnable(r)) for r in rows)


@pytest.mark.parametrize("f", [0.05, 0.29, 0.5, 0.999, 1, 3, 10**6])
def test_a_selection_takes_floor_of_its_share_in_each_sequence(store, f):
    build_mask(store, Rule(drop=f"top(kl, {f}, per=sequence)", protect=""), "x", replace=True)
    for row in sequences(store, "x"):
        n = len(learnable(row))
        assert n - sum(row["keep"]) == (int(f * n) if isinstance(f, float) else min(f, n))


def test_bottom_takes_the_smallest_and_turns_are_groups_of_their_own(store):
    build_mask(store, Rule(drop="bottom(entropy, 0.4, per=turn)", protect=""), "x", replace=True)
    for row in sequences(store, "x")[:500]:
        negative = {**row, "entropy": [None if v is None else -v for v in row["entropy"]]}
        places, turns = learnable(row), []
        for t in places:
            turns = [*turns[:-1], [*turns[-1], t]] if turns and turns[-1][-1] == t - 1 else [*turns, [t]]
        expected = set().union(*(naive_top(negative, "entropy", 0.4, turn) for turn in turns))
        assert {t for t in places if not row["keep"][t]} == expected


def dataset_values(store: Store, column: str) -> np.ndarray:
    return np.array([row[column][t] for row in sequences(store) for t in learnable(row)], np.float32)


@pytest.mark.parametrize("f", [0.003, 0.2, 0.75, 17])
@pytest.mark.parametrize("rule", ["top({}, {})", "bottom({}, {})"])
@pytest.mark.parametrize("expression", ["entropy", "kl - 2 * entropy"])
def test_dataset_wide_selections_are_exact_and_ties_go_to_the_earlier(store, f, rule, expression):
    entropy, kl = (dataset_values(store, c).astype(np.float64) for c in ("entropy", "kl"))
    values = entropy if expression == "entropy" else kl - 2 * entropy
    k = int(f * len(values)) if isinstance(f, float) else f
    order = np.argsort(-values if rule.startswith("top") else values, kind="stable")
    expected = np.zeros(len(values), bool)
    expected[order[:k]] = True
    build_mask(store, Rule(drop=rule.format(expression, f), protect=""), "x", replace=True)
    dropped = np.array([not row["keep"][t] for row in sequences(store, "x") for t in learnable(row)])
    np.testing.assert_array_equal(dropped, expected)


@pytest.mark.parametrize("f", [0.01, 0.5, 0.9])
def test_quantiles_are_numpys(store, f):
    values = dataset_values(store, "entropy").astype(np.float64)
    manifest = build_mask(store, Rule(drop=f"entropy > quantile(entropy, {f})", protect=""), "x", replace=True).manifest
    threshold = np.quantile(values, f)
    assert manifest.thresholds[f"quantile(entropy, {f})"] == pytest.approx(threshold, rel=1e-12)
    assert manifest.targets - manifest.kept == int((values > threshold).sum())
    build_mask(store, Rule(drop=f"entropy > quantile(entropy, {f}, per=sequence)", protect=""), "x", replace=True)
    for row in sequences(store, "x")[:300]:
        mine = np.array([row["entropy"][t] for t in learnable(row)])
        assert [not row["keep"][t] for t in learnable(row)] == (mine > np.quantile(mine, f)).tolist()


RULES = [
    "top(entropy, 0.2, per=sequence) or top(kl, 0.2, per=sequence)",
    "top(entropy, 0.2) or bottom(kl, 0.1)",
    "entropy > quantile(kl, 0.7) and not top(nll, 0.5)",
    "random(0.3, seed=5)",
    "random(0.3, seed=5, per=sequence)",
    "top(entropy - quantile(entropy, 0.5), 0.3) or prob < 0.1",
    "percent_rank(kl, per=role) > 0.7 or top(following(entropy), 0.3) or zscore(nll) > 1",
]


@pytest.fixture(scope="module")
def cuts(tmp_path_factory) -> list[Store]:
    """The same 200 sequences in 200 parts, in 29 and in one."""
    folder = tmp_path_factory.mktemp("cuts")
    stores = [random_store(folder / str(rows), sequences=200, seed=4, rows_per_part=rows) for rows in (1, 7, 1000)]
    assert [store.part_count for store in stores] == [200, 29, 1]
    return stores


@pytest.mark.parametrize("rule", RULES)
def test_one_part_or_many_and_one_worker_or_several_give_the_same_mask(cuts, rule):
    masks = []
    for cut, workers in [(cuts[0], 1), (cuts[0], 2), (cuts[1], 5), (cuts[2], 1)]:
        manifest = build_mask(cut, Rule(drop=rule), "m", replace=True, workers=workers).manifest
        table = pa.concat_tables(cut.part("masks/m", i) for i in range(cut.part_count)).combine_chunks()
        counted = manifest.model_dump(include={"thresholds", "scales", "clauses", "kept", "protected", "targets"})
        masks.append((table, counted))
    assert all(other == masks[0] for other in masks)


def test_no_two_workers_read_through_one_store(cuts, monkeypatch):
    """A store remembers the rows of the part read last, to hold the next family against them."""
    import threading

    readers: dict[int, tuple[Store, set[int]]] = {}
    real = Store.part

    def part(self, *arguments):
        readers.setdefault(id(self), (self, set()))[1].add(threading.get_ident())
        return real(self, *arguments)

    monkeypatch.setattr(Store, "part", part)
    build_mask(cuts[1], Rule(drop=RULES[1]), "m", replace=True, workers=4)
    assert all(len(threads) == 1 for _, threads in readers.values())
    assert len(set().union(*(threads for _, threads in readers.values()))) > 1


def test_workers_are_at_least_one(store):
    with pytest.raises(InputError, match="workers got 0"):
        build_mask(store, Rule(drop="kl > 1"), "x", replace=True, workers=0)


def test_a_mistake_in_one_part_stops_all_workers_and_names_the_first_token(cuts):
    said = set()
    for workers in (1, 2, 5):
        with pytest.raises(RuleError, match=r"is not a number for token \d+ of sequence 0000000") as error:
            build_mask(cuts[0], Rule(drop="log(entropy - 0.5) > 0"), "broken", workers=workers)
        said.add(str(error.value))
    assert len(said) == 1
    assert list(cuts[0].masks) == ["m"]


def test_random_control_matches_its_model_row_by_row_among_droppable_tokens(store):
    build_mask(store, Rule.load("eksft"), "eksft")
    control = Rule(drop="random(0.5, seed=1)", budget="same as eksft")
    manifest = build_mask(store, control, "control").manifest
    for row, twin in zip(sequences(store, "eksft"), sequences(store, "control"), strict=True):
        assert sum(row["keep"]) == sum(twin["keep"])
        assert all(twin["keep"][t] for t in learnable(twin) if twin["input_ids"][t] == END_OF_TURN)
    found = compare(store, "eksft", "control")
    assert found.both_dropped + found.only_a_dropped == found.both_dropped + found.only_b_dropped
    assert 0 < found.jaccard < 0.7
    # the share that random(…) names is not used, and nothing says that it was
    assert manifest.thresholds == {}
    assert [clause.text for clause in manifest.clauses] == ["random, as many as eksft"]
    assert rule_text(manifest.rule) == "drop random(0.5, seed=1); budget same as eksft"
    # the mask named by the budget is part of what the control was made from
    assert manifest.scorings == {"masks/eksft": store.masks["eksft"].manifest.fingerprint}


def test_a_control_of_a_mask_that_weighs_or_drops_nothing_is_said_to_be_none(store):
    build_mask(store, Rule(weight="prob"), "soft")
    build_mask(store, Rule(drop="entropy > 1", weight="prob"), "softer")
    with pytest.warns(TokenstatsWarning, match="mask 'soft' drops nothing, so that a control with its budget is plain SFT"):
        build_mask(store, Rule(drop="random(0.5)", budget="same as soft"), "control-of-soft")
    with pytest.warns(TokenstatsWarning, match="mask 'softer' weighs what it keeps; a control with its budget does not"):
        build_mask(store, Rule(drop="random(0.5)", budget="same as softer"), "control-of-softer")
    build_mask(store, Rule(drop="random(0.5)", weight="prob", budget="same as softer"), "twin")  # says nothing: an error


def test_a_budget_of_a_mask_that_is_not_there_is_named(store):
    gone = {"drop": "random(f, seed=1)", "budget": "same as gone"}
    with pytest.raises(NotThere, match=r"no mask 'gone' in .*; it holds: "):
        build_mask(store, Rule.from_dict({**gone, "drop": "random(0.1)"}), "control")
    with pytest.raises(NotThere, match=r"no mask 'gone' in .*; it holds: "):
        sweep(store, gone, {"f": ["0.1"]})


def test_a_mask_cannot_have_the_budget_of_itself(store):
    """It would be out of date as soon as it is made."""
    build_mask(store, Rule.load("eksft"), "eksft")
    with pytest.raises(InputError, match="mask 'eksft' cannot have the budget of itself; choose another name"):
        build_mask(store, Rule(drop="random(0.5)", budget="same as eksft"), "eksft", replace=True)
    assert store.masks["eksft"].manifest.rule["drop"].startswith("top(entropy")


def test_random_is_uniform_over_positions_and_follows_its_seed(store):
    build_mask(store, Rule(drop="random(0.25, seed=1)", protect=""), "one", replace=True)
    build_mask(store, Rule(drop="random(0.25, seed=2)", protect=""), "two", replace=True)
    rows = sequences(store, "one")
    dropped = np.array([not row["keep"][t] for row in rows for t in learnable(row)])
    late = np.array([i > len(learnable(row)) / 2 for row in rows for i, _ in enumerate(learnable(row))])
    assert dropped.sum() == int(0.25 * len(dropped))
    assert dropped[late].mean() == pytest.approx(dropped[~late].mean(), abs=0.02)
    found = compare(store, "one", "two")
    assert found.jaccard == pytest.approx(found.by_chance, abs=0.01)


@pytest.mark.parametrize("a", RULES[:3])
def test_de_morgan(store, a):
    b = "kl > 1.5"
    one = build_mask(store, Rule(drop=f"not (({a}) or {b})"), "one", replace=True).manifest
    two = build_mask(store, Rule(drop=f"not ({a}) and not ({b})"), "two", replace=True).manifest
    assert one.kept == two.kept
    assert compare(store, "one", "two").jaccard == 1.0


def test_keep_is_the_opposite_of_drop(store):
    build_mask(store, Rule(drop="entropy > 1.3", protect=""), "one", replace=True)
    build_mask(store, Rule(keep="not entropy > 1.3", protect=""), "two", replace=True)
    assert compare(store, "one", "two").jaccard == 1.0


def test_derived_columns_mean_what_they_say(store):
    for rule, test in {
        "nll > 1.5": lambda r, t: -r["logprob"][t] > 1.5,
        "prob < 0.2": lambda r, t: np.exp(np.float64(r["logprob"][t])) < 0.2,
        "ppl > 4": lambda r, t: np.exp(-np.float64(r["logprob"][t])) > 4,
        "token_id == 7": lambda r, t: r["input_ids"][t] == 7,
        "is_special": lambda r, t: r["input_ids"][t] in (0, 1, 2),
        "0.5 <= entropy < 1.5": lambda r, t: 0.5 <= r["entropy"][t] < 1.5,
        "entropy > 1.1": lambda r, t: r["entropy"][t] > 1.1,  # float32(1.1) > 1.1: not rounded before comparing
    }.items():
        build_mask(store, Rule(drop=rule, protect=""), "x", replace=True)
        for row in sequences(store, "x")[:300]:
            assert [not row["keep"][t] for t in learnable(row)] == [bool(test(row, t)) for t in learnable(row)], rule


def test_position_length_and_turn_are_counted_within_replies(store):
    row = sequences(store)[1]
    replies: list[list[int]] = []
    for t in learnable(row):
        replies = [*replies[:-1], [*replies[-1], t]] if replies and replies[-1][-1] == t - 1 else [*replies, [t]]
    for rule, expected in {
        "position == 0": {r[0] for r in replies},
        "turn == 1": set(replies[1]) if len(replies) > 1 else set(),
        f"length == {len(replies[0])}": {t for r in replies if len(r) == len(replies[0]) for t in r},
    }.items():
        build_mask(store, Rule(drop=rule, protect=""), "x", replace=True)
        found = store.sequence(1, {"masks/x": ["keep"]})["masks/x"]["keep"]
        assert {t for t in learnable(row) if not found[t]} == expected, rule


def test_a_mask_of_another_rule_is_not_overwritten_unasked(store):
    build_mask(store, Rule(drop="entropy > 2"), "mine")
    build_mask(store, Rule(drop="(entropy>2)"), "mine")  # the same rule: nothing to do
    with pytest.raises(StoreError, match="of another rule"):
        build_mask(store, Rule(drop="entropy > 3"), "mine")
    assert build_mask(store, Rule(drop="entropy > 3"), "mine", replace=True).manifest.rule["drop"] == "entropy > 3"


def test_a_failed_mask_leaves_nothing(store):
    before = sorted(p.name for p in (store.path / "masks").iterdir())
    with pytest.raises(RuleError, match=r"'log\(entropy - 3\)' is not a number for token \d+ of sequence 0"):
        build_mask(store, Rule(drop="log(entropy - 3) > 0"), "broken")
    with pytest.raises(InputError, match=r"mask name '\.\./x'"):
        build_mask(store, Rule(drop="entropy > 2"), "../x")
    with pytest.raises(RuleError, match=r"scoring 'wram' \(did you mean 'warm'"):
        build_mask(store, Rule(drop="wram.entropy > 2"), "broken")
    assert sorted(p.name for p in (store.path / "masks").iterdir()) == before


def test_a_named_scoring_is_the_same_as_the_only_one(store):
    build_mask(store, Rule(drop="warm.entropy > 1"), "one", replace=True)
    build_mask(store, Rule(drop="entropy > 1"), "two", replace=True)
    assert compare(store, "one", "two").jaccard == 1.0


@pytest.mark.parametrize("drop", ["random(0.5, seed=1)", "is_end_of_turn or position > 3", "warm.entropy > 1"])
def test_a_scoring_chosen_for_a_rule_that_reads_none_is_a_mistake(store, drop):
    before = sorted(p.name for p in (store.path / "masks").iterdir())
    with pytest.raises(InputError, match="scoring='warm' would do nothing: the rule reads no statistics"):
        build_mask(store, Rule(drop=drop), "unread", scoring="warm")
    with pytest.raises(InputError, match="scoring='warm' would do nothing: the rule reads no statistics"):
        sweep(store, {"drop": f"{drop} or position > p"}, {"p": [1, 2]}, scoring="warm")
    assert sorted(p.name for p in (store.path / "masks").iterdir()) == before


def test_comparison_counts(store):
    build_mask(store, Rule(drop="entropy > 1"), "one", replace=True)
    build_mask(store, Rule(drop="kl > 1"), "two", replace=True)
    a, b = sequences(store, "one"), sequences(store, "two")
    pairs = [(not x["keep"][t], not y["keep"][t]) for x, y in zip(a, b, strict=True) for t in learnable(x)]
    found = compare(store, "one", "two")
    counts = {k: sum(p == k for p in pairs) for k in [(True, True), (True, False), (False, True), (False, False)]}
    assert (found.both_dropped, found.only_a_dropped, found.only_b_dropped, found.both_kept) == tuple(counts.values())
    assert found.jaccard == pytest.approx(counts[True, True] / (len(pairs) - counts[False, False]))
    assert sum(n for _, n in compare(store, "one", "two", most=10**6).only_a) == found.only_a_dropped


def test_a_share_too_small_for_one_token_takes_none_and_the_mask_can_be_read(store):
    rule = Rule(drop="top(entropy, 0.0000001) or entropy > 2")
    made = build_mask(store, rule, "tiny", replace=True).manifest
    assert made.clauses[0].dropped == 0
    assert build_mask(store, rule, "tiny").manifest == made  # read again from the disk


def test_infinite_values_are_ordered_and_never_become_thresholds(store):
    with pytest.raises(RuleError, match=r"the threshold of 'bottom\(log\(clip.* is -inf; keep it finite"):
        build_mask(store, Rule(drop="bottom(log(clip(entropy - 1, 0, 100)), 5)"), "x", replace=True)
    x = "log(clip(entropy - 0.5, 0, 100))"
    build_mask(store, Rule(drop=f"{x} <= quantile({x}, 0.3, per=sequence)", protect=""), "x", replace=True)
    for row in sequences(store, "x")[:200]:
        values = np.array([max(row["entropy"][t] - 0.5, 0.0) for t in learnable(row)])
        least = np.sort(values)[int(np.floor((len(values) - 1) * 0.3))]
        assert all(not row["keep"][t] for t, v in zip(learnable(row), values, strict=True) if v <= least)


def test_a_mask_cannot_be_called_none(store):
    with pytest.raises(InputError, match="that means plain SFT"):
        build_mask(store, Rule(drop="entropy > 2"), "none")
