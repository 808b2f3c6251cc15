"""Comparisons against a recount token by token, and what is found under a name."""

import json
import shutil
import tracemalloc
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import END_OF_TURN, add_scoring, random_store

from tokenstats import Rule, Store, build_mask, compare
from tokenstats.errors import InputError, RuleError, StoreError
from tokenstats.masking.drift import Moments
from tokenstats.store.manifests import ScoringManifest

ONE = Rule(drop="top(entropy, 0.2) or kl > 1 or position < 2", protect="")
TWO = Rule(drop="top(kl, 0.3, per=sequence) or entropy > 2")


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    store = random_store(tmp_path_factory.mktemp("compare"), 300, seed=3)
    add_scoring(store, "later", lambda x: x * np.float32(0.5) + np.float32(0.25))
    build_mask(store, ONE, "one", scoring="warm")
    build_mask(store, TWO, "two", scoring="warm")
    return store


def rows_of(store: Store, *families: str) -> list[dict]:
    """Every row as plain Python values, those of each mask under its own name."""
    read = {f: pa.concat_tables([store.part(f, i) for i in range(store.part_count)]).to_pylist() for f in families}
    return [dict(zip(read, row, strict=True)) for row in zip(*read.values(), strict=True)]


def test_every_number_agrees_with_a_recount(store):
    found = compare(store, "one", "two", most=10**6)
    table, only, rows = Counter(), (Counter(), Counter()), []
    clauses, ends, in_rows = Counter(), Counter(), 0.0
    for row in rows_of(store, "tokens", "masks/one", "masks/two"):
        tokens, one, two = row.values()
        places = [i for i, target in enumerate(tokens["is_target"]) if target and i > 0]
        pairs = [(not one["keep"][i], not two["keep"][i]) for i in places]
        table.update(pairs)
        if any(a or b for a, b in pairs):
            rows.append(Fraction(sum(a and b for a, b in pairs), sum(a or b for a, b in pairs)))
            in_rows += sum(a for a, _ in pairs) * sum(b for _, b in pairs) / len(places)
        for i, (a, b) in zip(places, pairs, strict=True):
            token = tokens["input_ids"][i]
            ends.update({"all": 1, "a": a, "b": b} if token == END_OF_TURN else {})
            only[0].update([token] if a and not b else [])
            only[1].update([token] if b and not a else [])
            for side, reason, other in (("a", one["reason"][i], b), ("b", two["reason"][i], a)):
                for bit in range(3):
                    clauses[side, bit] += reason >> bit & 1
                    clauses[side, bit, "too"] += (reason >> bit & 1) and other
    both, only_a, only_b = table[True, True], table[True, False], table[False, True]
    assert (found.both_dropped, found.only_a_dropped, found.only_b_dropped) == (both, only_a, only_b)
    assert found.targets == sum(table.values())
    assert found.jaccard == pytest.approx(both / (both + only_a + only_b))
    a, b = both + only_a, both + only_b
    assert (found.a.dropped, found.b.dropped) == (a, b)
    chance = a * b / found.targets
    assert found.by_chance == pytest.approx(chance / (a + b - chance))
    assert found.by_chance_in_rows == pytest.approx(in_rows / (a + b - in_rows))
    assert (found.end_of_turn, found.a.end_of_turn_dropped, found.b.end_of_turn_dropped) == (ends["all"], ends["a"], ends["b"])
    assert ends["a"] > 0 == ends["b"]
    for name, side in (("a", found.a), ("b", found.b)):
        counts = [(clauses[name, bit], clauses[name, bit, "too"]) for bit in range(len(side.clauses))]
        assert [(c.dropped, c.dropped_by_other) for c in side.clauses] == counts
    assert dict(found.only_a) == only[0]
    assert dict(found.only_b) == only[1]
    assert [n for _, n in found.only_a] == sorted(only[0].values(), reverse=True)
    assert found.rows == len(rows) == sum(found.row_tenths)
    tenths = Counter(min(int(10 * row), 9) for row in rows)
    assert found.row_tenths == tuple(tenths[i] for i in range(10))
    lower = np.quantile(np.array(rows, float), [0.1, 0.5, 0.9], method="inverted_cdf")
    assert found.per_row == pytest.approx(lower, abs=1e-3)


@pytest.mark.parametrize(
    "rule",
    [
        ONE,
        TWO,
        Rule.from_preset("eksft-as-released"),
        Rule(drop="random(0.3, seed=4)"),
        Rule(drop="zscore(kl) > 1", min_kept=5),
    ],
    ids=lambda rule: rule.drop,
)
def test_a_rule_that_is_not_stored_drops_what_its_mask_drops(store, rule):
    build_mask(store, rule, "stored", scoring="warm" if rule.needs_scoring else None, replace=True)
    found = compare(store, rule, "stored", scoring=None if not rule.needs_scoring else "warm")
    stored = compare(store, "stored", "stored")
    assert (found.only_a_dropped, found.only_b_dropped, found.jaccard) == (0, 0, 1.0)
    assert (found.both_dropped, found.row_tenths) == (stored.both_dropped, stored.row_tenths)
    assert found.a.clauses == stored.a.clauses
    assert found.both_dropped > 0


def test_the_two_sides_are_mirror_images(store):
    there, back = compare(store, "one", "two"), compare(store, "two", "one")
    assert (there.a, there.b, there.only_a, there.only_b) == (back.b, back.a, back.only_b, back.only_a)
    assert (there.jaccard, there.by_chance, there.per_row) == (back.jaccard, back.by_chance, back.per_row)


def test_the_number_of_parts_changes_nothing(tmp_path):
    found = []
    for rows_per_part in (7, 1000):
        parts = random_store(tmp_path / str(rows_per_part), 120, seed=5, rows_per_part=rows_per_part)
        add_scoring(parts, "later", np.sqrt)
        found.append(compare(parts, ONE, ONE, scoring="warm", scoring_b="later").to_dict())
    assert found[0] == found[1]


def test_random_masks_overlap_as_chance_has_it(store):
    """Two independent draws of 30 % of each row: within four standard errors of the level for rows."""
    found = compare(store, Rule(drop="random(0.3, per=sequence, seed=1)"), Rule(drop="random(0.3, per=sequence, seed=2)"))
    error = (found.by_chance_in_rows / found.both_dropped) ** 0.5
    assert abs(found.jaccard - found.by_chance_in_rows) < 4 * error < 0.1


def test_a_mask_wins_over_a_preset_and_the_answer_says_which_was_read(store, tmp_path):
    build_mask(store, Rule(drop="entropy > 1"), "kl-only", scoring="warm")
    file = tmp_path / "mine.toml"
    file.write_text('drop = "entropy > 1"')
    found = compare(store, "kl-only", str(file), scoring_b="warm")
    assert (found.a.kind, found.a.rule, found.a.scorings) == ("mask", "drop entropy > 1", ("warm",))
    assert (found.b.kind, found.b.name, found.jaccard) == ("file", str(file), 1.0)
    shutil.rmtree(store.path / "masks" / "kl-only")
    found = compare(store, "kl-only", TWO, scoring="warm")
    assert (found.a.kind, found.b.kind) == ("preset", "rule")
    assert "top(kl" in found.a.rule


def test_with_a_scoring_the_rule_of_a_mask_is_judged_anew(store):
    again = compare(store, "one", "one", scoring="warm")
    assert (again.a.kind, again.jaccard, again.drift) == ("rule of the mask", 1.0, ())
    moved = compare(store, "two", "two", scoring="warm", scoring_b="later")
    build_mask(store, TWO, "two-later", scoring="later")
    stored = compare(store, "two", "two-later")
    assert moved.jaccard == stored.jaccard < 1
    assert moved.drift == stored.drift != ()


def test_names_that_are_nothing_are_met_with_the_nearest(store):
    with pytest.raises(InputError, match=r"no mask and no preset 'eksfd' \(did you mean 'eksft'\?\); expected a mask of the"):
        compare(store, "eksfd", "one")
    with pytest.raises(StoreError, match=r"no scoring 'latr' .*did you mean 'later'"):
        compare(store, "one", "two", scoring_b="latr")
    with pytest.raises(StoreError, match="several scorings"):
        compare(store, "eksft", "one")
    with pytest.raises(RuleError, match="wram"):
        compare(store, "one", Rule(drop="wram.entropy > 1"))
    with pytest.raises(InputError, match="no rule file"):
        compare(store, "one", "nowhere.toml")
    control = Rule(drop="random(0.2, per=sequence)", budget="same as one")
    with pytest.raises(InputError, match="follows mask 'one' with its budget"):
        compare(store, "one", control)
    build_mask(store, control, "control")
    assert compare(store, "one", "control", scoring="later").b.kind == "mask"  # it reads no statistics


def test_drift_is_that_of_the_stored_statistics(store):
    found = compare(store, ONE, ONE, scoring="warm", scoring_b="later").drift
    columns = {name: ([], []) for name in ("logprob", "entropy", "kl")}
    for row in rows_of(store, "stats/warm", "stats/later"):
        for name, values in columns.items():
            for side, scoring in zip(values, row.values(), strict=True):
                side += [x for x in scoring[name] if x is not None]
    assert [d.statistic for d in found] == list(columns)
    for drift in found:
        x, y = (np.array(side, np.float64) for side in columns[drift.statistic])
        assert (drift.scoring_a, drift.scoring_b) == ("warm", "later")
        assert (drift.mean_a, drift.mean_b) == pytest.approx((x.mean(), y.mean()))
        assert drift.mean_absolute_change == pytest.approx(np.abs(y - x).mean())
        assert drift.correlation == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-6)


def test_weights_are_compared_over_what_both_keep(store):
    build_mask(store, Rule(drop="kl > 1", weight="exp(logprob)"), "soft", scoring="warm")
    other = Rule(drop=TWO.drop, weight="clip(entropy, 0, 1)")
    build_mask(store, other, "softer", scoring="warm")
    pairs = []
    for row in rows_of(store, "masks/soft", "masks/softer"):
        soft, softer = row.values()
        both = [a and b for a, b in zip(soft["keep"], softer["keep"], strict=True)]
        pairs += [(soft["weight"][i], softer["weight"][i]) for i, kept in enumerate(both) if kept]
    x, y = np.array(pairs, np.float64).T
    for found in (compare(store, "soft", "softer"), compare(store, "soft", other, scoring="warm")):
        assert found.both_kept == len(pairs)
        assert (found.weights.mean_a, found.weights.mean_b) == pytest.approx((x.mean(), y.mean()))
        assert found.weights.mean_absolute_change == pytest.approx(np.abs(y - x).mean())
        assert found.weights.correlation == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-6)
    beside_hard = compare(store, "soft", "two").weights  # which keeps the same tokens as "softer"
    assert (beside_hard.mean_b, beside_hard.correlation) == (1.0, None)
    assert beside_hard.mean_a == pytest.approx(x.mean())
    assert beside_hard.mean_absolute_change == pytest.approx(np.abs(1 - x).mean())
    assert compare(store, "one", "two").weights is None


def test_no_drift_of_kl_where_a_scoring_has_no_reference(tmp_path):
    own = random_store(tmp_path, 30, seed=1)
    add_scoring(own, "later", np.sqrt)
    folder = own.path / "stats" / "later"
    ScoringManifest.read(folder).model_copy(update={"reference": None}).write(folder)
    rule = Rule(drop="entropy > 1")
    assert [d.statistic for d in compare(own, rule, rule, scoring="warm", scoring_b="later").drift] == [
        "logprob",
        "entropy",
    ]


float32s = st.floats(min_value=0, max_value=1e4, width=32)


@given(st.lists(st.tuples(float32s, float32s), min_size=2, max_size=60), st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_moments_do_not_depend_on_how_they_are_cut(pairs, cut):
    x, y = (np.array(side, np.float32) for side in zip(*pairs, strict=True))
    whole, pieces = Moments(), Moments()
    whole.add(x, y)
    for part in (slice(cut, None), slice(0, cut)):
        pieces.add(x[part], y[part])
    found = whole.drift("kl", "a", "b")
    assert found == pieces.drift("kl", "a", "b")
    assert found.mean_a == pytest.approx(float(x.astype(np.float64).mean()))
    varies = len(set(x.tolist())) > 1 and len(set(y.tolist())) > 1
    assert (found.correlation is not None) == varies
    if varies:
        assert -1 - 1e-12 <= found.correlation <= 1 + 1e-12
        same = Moments()
        same.add(x, x)
        assert same.drift("kl", "a", "b").correlation == pytest.approx(1.0, abs=1e-12)


def test_nothing_dropped_is_full_agreement(store):
    nothing = Rule(drop="entropy > 1000")
    found = compare(store, nothing, nothing, scoring="warm")
    assert (found.jaccard, found.by_chance, found.rows, found.per_row) == (1.0, 1.0, 0, (1.0, 1.0, 1.0))
    assert found.both_kept == found.targets


def test_on_the_command_line(cli, store):
    (store.path / "tokenizer").mkdir(exist_ok=True)
    from inspect_fixtures import byte_level_tokenizer

    byte_level_tokenizer().save(str(store.path / "tokenizer" / "tokenizer.json"))
    status, out, _ = cli("compare", store.path, "one", "eksft", "--scoring", "warm", "--scoring-b", "later", "--json")
    found = compare(store, "one", "eksft", scoring="warm", scoring_b="later")
    assert (status, json.loads(out)) == (0, json.loads(json.dumps(found.to_dict())))
    status, text, _ = cli("compare", store.path, "one", "eksft", "--scoring", "warm", "--scoring-b", "later")
    assert status == 0
    for said in ("one  rule of the mask, statistics of warm", "eksft  preset, statistics of later", f"{found.jaccard:.3f}"):
        assert said in text
    for count in (found.both_dropped, found.only_a_dropped, found.only_b_dropped, found.both_kept, found.a.clauses[0].dropped):
        assert f"{count:,}" in text
    assert "warm to later" in text
    status, _, err = cli("compare", store.path, "one", "eskft")
    assert (status, err.count("\n")) == (2, 1)
    assert "did you mean 'eksft'" in err


def test_memory_does_not_grow_with_the_number_of_parts(tmp_path: Path):
    peaks = []
    for sequences in (1000, 10_000):  # 5 parts and 50: both have one for every thread, and one ahead
        own = random_store(tmp_path / str(sequences), sequences, seed=1, rows_per_part=200)
        other = replace(ONE, drop="top(kl, 0.2)")
        compare(own, ONE, other)  # once before: imports and caches are not the comparison's
        tracemalloc.start()
        compare(own, ONE, other)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]
