"""Sweeps: every line is the mask of its numbers, in as many readings as one mask takes."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import END_OF_TURN, random_store

from tokenstats import Rule, build_mask
from tokenstats.errors import RuleError
from tokenstats.masking.rule import rule_fields
from tokenstats.masking.sweep import Sweep, sweep
from tokenstats.masking.variants import MOST_VARIANTS, parse_vary, variants
from tokenstats.store import Store

EKSFT = "top(entropy, 0.2, per=sequence) or top(kl, 0.2, per=sequence)"


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return random_store(tmp_path_factory.mktemp("sweep") / "store", sequences=150, seed=8, rows_per_part=40)


def sweep_of(store: Store, fields: dict, *vary: str, **options) -> Sweep:
    return sweep(store, fields, dict(parse_vary(text) for text in vary), **options)


def flat_mask(store: Store, rule: Rule) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What a stored mask says of each target: dropped, reason, whether it ends a turn; and its row's number."""
    build_mask(store, rule, "m", replace=True)
    dropped, reason, ends, row = [], [], [], []
    number = 0
    for tables in store.aligned({"tokens": ["input_ids", "is_target"], "masks/m": ["keep", "reason"]}):
        columns = (tables[family][name].to_pylist() for family, names in FAMILIES.items() for name in names)
        for ids, targets, keep, why in zip(*columns, strict=True):
            for t, target in enumerate(targets):
                if target and t > 0:
                    dropped.append(not keep[t])
                    reason.append(why[t])
                    ends.append(ids[t] == END_OF_TURN)
                    row.append(number)
            number += 1
    return np.array(dropped), np.array(reason), np.array(ends), np.array(row)


FAMILIES = {"tokens": ["input_ids", "is_target"], "masks/m": ["keep", "reason"]}
SWEEPS = [
    ({"drop": "kl > t", "protect": ""}, ["t=0.1:2.1:0.5"]),
    (rule_fields("eksft"), ["f=0.05:0.5:0.15"]),
    (rule_fields("eksft"), ["f=1:4:1"]),
    (rule_fields("rho-1"), ["f=0.2,0.9"]),
    ({"drop": "top(entropy, f) or bottom(kl, 0.1) or prob < t"}, ["f=0.1,0.3", "t=0.05:0.1:0.05"]),
    ({"drop": "top(entropy - quantile(entropy, q), 0.3) or random(0.2, seed=s)", "protect": ""}, ["q=0.2,0.8", "s=1,2"]),
    ({"keep": "not (top(entropy + a * kl, 0.2, per=turn) or is_special)", "min_kept": 3}, ["a=-1:1:0.5"]),
    ({"drop": "percent_rank(kl) > t", "weight": "prob", "protect": "entropy < u"}, ["t=0.5,0.9", "u=0.2,0.4"]),
]


@pytest.mark.parametrize(("fields", "vary"), SWEEPS)
def test_every_line_is_the_mask_of_its_numbers(store, fields, vary):
    found = sweep_of(store, fields, *vary)
    masks = [flat_mask(store, Rule(**line.rule)) for line in found.lines]
    assert len({tuple(line.values.items()) for line in found.lines}) == len(found.lines) > 1
    assert len({line.dropped for line in found.lines}) > 1  # the numbers make a difference
    rows = store.manifest.sequences
    for line, (dropped, reason, ends, row) in zip(found.lines, masks, strict=True):
        manifest = store.masks["m"].manifest if line is found.lines[-1] else None
        assert (found.targets, found.ends, found.rows) == (len(dropped), ends.sum(), rows)
        assert line.dropped == dropped.sum()
        assert line.share_dropped == dropped.mean()
        assert [count for _, count in line.clauses] == [(reason >> bit & 1).sum() for bit in range(len(line.clauses))]
        several = np.array([bin(bits).count("1") > 1 for bits in reason.tolist()])
        assert line.overlap == (several.sum() / dropped.sum() if dropped.any() else 0.0)
        assert line.jaccard == (dropped & masks[0][0]).sum() / max(1, (dropped | masks[0][0]).sum())
        assert line.ends_dropped == (dropped & ends).sum()
        assert line.rows_with_nothing_kept == rows - len(np.unique(row[~dropped]))
        if manifest is not None:  # the mask built last
            assert (line.protected, line.thresholds) == (manifest.protected, manifest.thresholds)
            assert line.rows_with_nothing_kept == manifest.rows_with_nothing_kept


def test_the_numbers_stand_in_the_rule_as_they_were_written():
    found = variants({"drop": "kl > t and warm.kl > 1"}, {"t": ["0.1", "3"]})
    assert [v.rule.drop for v in found] == ["kl > 0.1 and warm.kl > 1", "kl > 3 and warm.kl > 1"]
    found = variants(rule_fields("eksft"), {"f": ["0.2"]})
    assert found[0].rule.fingerprint == Rule.load("eksft").fingerprint
    assert (found[0].rule.preset, found[0].rule.source) == (None, "arXiv:2605.29303")
    # where f is written, only there; several lines and letters of several bytes in front of it change nothing
    found = variants({"drop": "role != 'user' or\n top(entropy, f) or top(kl, 0.5)"}, {"f": ["0.1"]})
    assert "top(entropy, 0.1) or top(kl, 0.5)" in found[0].rule.drop
    grid = variants({"drop": "kl > t or entropy > u"}, {"t": ["1", "2"], "u": ["3", "4"]})
    assert [tuple(v.values.values()) for v in grid] == [("1", "3"), ("1", "4"), ("2", "3"), ("2", "4")]
    warm = variants({"drop": "warm.kl > warm"}, {"warm": ["1"]})  # of warm.kl, warm is a scoring
    assert warm[0].rule.drop == "warm.kl > 1"


def test_shares_are_exact_decimals_and_whole_numbers_are_counts():
    assert parse_vary("f=0.05:0.5:0.05") == (
        "f", ["0.05", "0.1", "0.15", "0.2", "0.25", "0.3", "0.35", "0.4", "0.45", "0.5"],
    )  # fmt: skip
    assert parse_vary("t = 1:4:1") == ("t", ["1", "2", "3", "4"])
    assert parse_vary("t=1:2:0.5") == ("t", ["1.0", "1.5", "2.0"])  # 1.0 is no count
    assert parse_vary("t=-1,2.50,1e-3,7") == ("t", ["-1", "2.5", "0.001", "7"])
    assert parse_vary("t=0:1:0.4") == ("t", ["0.0", "0.4", "0.8"])


@given(st.integers(-999, 999), st.integers(1, 99), st.integers(0, 99))
def test_a_range_holds_the_decimals_that_it_says(low, step, more):
    _, numbers = parse_vary(f"t={low / 100}:{(low + step * more) / 100}:{step / 100}")
    assert numbers == [repr(float((low + i * step) / 100)) for i in range(more + 1)]


@pytest.mark.parametrize(
    ("fields", "vary", "message"),
    [
        ({"drop": "kl > 1"}, "t=1,2", "the rule has no 't' in the place of a number: 'drop kl > 1'; write it"),
        ({"drop": "kl > 1"}, "f=1,2", "no 'f' in the place of a number, and has no top, bottom, random or quantile"),
        (rule_fields("eksft"), "f=0.5:1.0:0.5", r"top got 1\.0; expected a share above 0 and below 1"),
        (rule_fields("eksft"), "f=0:5:1", "top got 0; expected a share"),
        ({"drop": "kl > t or entropy > u"}, "t=1", "unknown column 'u'"),
        ({"drop": "kl > t or"}, "t=1", "syntax error"),
        ({"drop": "kl > t"}, "kl=1", "vary got the name 'kl'; expected one such as t"),
        ({"drop": "kl > t"}, "top=1", "vary got the name 'top'"),
        ({"drop": "kl > t"}, "t", "expected NAME=LOW:HIGH:STEP or NAME=NUMBER,NUMBER"),
        ({"drop": "kl > t"}, "t=", "expected NAME="),
        ({"drop": "kl > t"}, "t=1:2", "expected NAME="),
        ({"drop": "kl > t"}, "t=1:2:3:4", "expected NAME="),
        ({"drop": "kl > t"}, "t=1,,2", "where '' is no number"),
        ({"drop": "kl > t"}, "t=1e999", "got '1e999'; expected 0, or a size from 1e-100 to 1e\\+100"),
        ({"drop": "kl > t"}, "t=0:1:1e-5000", "got '1e-5000'; expected 0, or a size from"),
        ({"drop": "kl > t"}, "t=1e-99999999999999999999", "expected 0, or a size from"),
        ({"drop": "kl > t"}, "t=0:1:1e-99", "which is 1e\\+99 numbers; expected at most 100"),
        ({"drop": "kl > t"}, "t=３", "is no number"),
        ({"drop": "kl > t"}, "t=nan", "where 'nan' is no number"),
        ({"drop": "kl > t"}, "t=0); import os", "is no number"),
        ({"drop": "kl > t"}, "t=2:1:1", "LOW no larger than HIGH"),
        ({"drop": "kl > t"}, "t=1:2:0", "a STEP above 0"),
        ({"drop": "kl > t"}, "t=0:1e30:1e-30", "numbers; expected at most 100"),
        ({"drop": "kl > t"}, f"t={','.join('1' * (MOST_VARIANTS + 1))}", "the sweep has 101 combinations of numbers"),
    ],
)  # fmt: skip
def test_each_mistake_is_one_helpful_line(fields, vary, message):
    with pytest.raises(RuleError, match=message) as error:
        variants(fields, dict([parse_vary(vary)]))
    assert "\n" not in str(error.value)


def reads(monkeypatch: pytest.MonkeyPatch, work) -> Counter:
    """Which parts of which families are read while it works, and how often."""
    counted: Counter = Counter()
    real = Store.part

    def part(self, family, index, columns=None):
        counted[family, index] += 1
        return real(self, family, index, columns)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "part", part)
        work()
    return counted


@pytest.mark.parametrize(
    ("rule", "readings"),
    [(EKSFT, 1), ("kl > 0.2", 1), ("top(entropy, 0.2) or top(kl, 0.2)", 2), ("top(nll - ref_nll, 0.2)", 2)],
)
def test_twenty_numbers_are_tried_in_as_many_readings_as_one_mask_takes(store, monkeypatch, rule, readings):
    one = reads(monkeypatch, lambda: build_mask(store, Rule(drop=rule), "one", replace=True))
    twenty = reads(monkeypatch, lambda: sweep_of(store, {"drop": rule.replace("0.2", "t")}, "t=0.02:0.4:0.02", workers=2))
    assert twenty == one
    assert set(one.values()) == {readings}
    assert {index for _, index in one} == set(range(store.part_count))


def test_parts_and_workers_change_nothing(tmp_path, store):
    fields = {"drop": "top(entropy, f) or zscore(kl) > 1 or top(nll, f, per=sequence)"}
    found = [sweep_of(store, fields, "f=0.1,0.4", workers=workers) for workers in (1, 2, 5)]
    for rows_per_part in (1, 1000):
        cut = random_store(tmp_path / str(rows_per_part), sequences=150, seed=8, rows_per_part=rows_per_part)
        found.append(sweep_of(cut, fields, "f=0.1,0.4"))
    assert all(other == found[0] for other in found)


def test_overlap_by_chance_is_that_of_independent_clauses(tmp_path):
    store = random_store(tmp_path / "s", sequences=4000, seed=3, rows_per_part=5000)
    fields = {"drop": "random(f, seed=1) or random(0.3, seed=2) or random(0.2, seed=3)", "protect": ""}
    for line in sweep_of(store, fields, "f=0.2,0.6").lines:
        assert line.overlap == pytest.approx(line.by_chance, abs=0.01)


def test_what_min_kept_drops_is_no_clause_that_could_overlap(tmp_path):
    store = random_store(tmp_path / "s", sequences=2000, seed=3, rows_per_part=5000)
    fields = {"drop": "random(f, seed=1) or random(0.3, seed=2)", "protect": ""}
    plain, few = (sweep_of(store, {**fields, **more}, "f=0.2").lines[0] for more in ({}, {"min_kept": 15}))
    assert few.dropped > 1.2 * plain.dropped, "many rows keep too few"
    assert (few.overlap, few.by_chance) == (plain.overlap, plain.by_chance)
    one = sweep_of(store, {"drop": "random(f)", "min_kept": 15}, "f=0.2").lines[0]
    assert (one.overlap, one.by_chance) == (0.0, 0.0)


def test_a_rule_that_weighs_tells_the_mean_weight_of_what_it_keeps(cli, store):
    fields = {"drop": "kl > 1", "weight": "clip(entropy, 0, w)"}
    found = sweep_of(store, fields, "w=1,2")
    for line in found.lines:
        manifest = build_mask(store, Rule(**line.rule), "weighing", scoring="warm", replace=True).manifest
        assert line.mean_weight == pytest.approx(manifest.weight_total / manifest.kept)
    assert found.lines[0].mean_weight < found.lines[1].mean_weight
    told = cli(
        "sweep", store.path, "--scoring", "warm", "--drop", "kl > 1", "--weight", "clip(entropy, 0, w)", "--vary", "w=1,2"
    )
    assert told[0] == 0
    assert "mean weight" in told[1]
    assert f"{found.lines[1].mean_weight:.4f}" in told[1]
    assert sweep_of(store, {"drop": "kl > t"}, "t=1,2").lines[0].mean_weight is None


def test_a_sweep_on_the_command_line(cli, store, tmp_path):
    picture = tmp_path / "sweep.png"
    status, out, err = cli(
        "sweep", store.path, "--rule", "eksft", "--vary", "f=0.1:0.3:0.1", "--protect", "", "--plot", picture
    )
    assert (status, err) == (0, "")
    assert picture.read_bytes().startswith(b"\x89PNG")
    head, *rows = (line.split() for line in out.split("\n\n")[0].splitlines())
    assert head[:2] == ["f", "dropped"]
    assert [row[0] for row in rows] == ["0.1", "0.2", "0.3"]
    found = json.loads(cli("sweep", store.path, "--drop", EKSFT, "--protect", "", "--vary", "f=0.1:0.3:0.1", "--json")[1])
    assert [f"{line['dropped']:,}" for line in found["lines"]] == [row[1] for row in rows]
    manifest = json.loads(cli("mask", store.path, "--drop", EKSFT, "--protect", "", "--name", "cli", "--json")[1])
    assert found["lines"][1]["dropped"] == manifest["targets"] - manifest["kept"]


def test_a_rule_file_may_name_its_numbers(cli, store, tmp_path):
    (tmp_path / "rule.toml").write_text('drop = "top(entropy, f, per=sequence) and kl > t"\n')
    grid = ["--vary", "f=0.1,0.2", "--vary", "t=0.5,1.0,1.5", "--plot", tmp_path / "grid.svg"]
    status, out, _ = cli("sweep", store.path, "--rule", tmp_path / "rule.toml", *grid)
    assert status == 0
    assert len(out.split("\n\n")[0].splitlines()) == 1 + 6
    assert (tmp_path / "grid.svg").read_text().count("<svg") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rule", "eksft"], "--vary"),
        (["--vary", "f=1"], "expected one of --rule, --drop and --keep"),
        (["--rule", "eksft", "--vary", "f=0.1", "--vary", "f=0.2"], "each name in one --vary only"),
        (["--rule", "eksft", "--vary", "f=0.1", "--plot", "plot.bmp"], "expected a file that ends in .png, .svg, .pdf"),
        (["--rule", "eksft", "--vary", "f=0.1", "--plot", "no/where/plot.png"], "make it first"),
        (["--rule", "eksft", "--vary", "f=0.1", "--scoring", "wram"], "did you mean 'warm'"),
    ],
)
def test_each_mistake_of_the_command_is_one_helpful_line(cli, store, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = cli("sweep", store.path, *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert list(Path().iterdir()) == []
