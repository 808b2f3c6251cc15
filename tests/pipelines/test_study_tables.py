"""Tables of made-up results whose numbers can be worked out by hand."""

import numpy as np
import pytest

from pipelines.study.__main__ import committed_tables
from pipelines.study.by_base import is_beyond
from pipelines.study.comparisons import comparison_table, difference_between
from pipelines.study.design import EKSFT, EQUAL_KL, PRIMARY, RANDOM, SEARCH_SEED
from pipelines.study.document import STUDY, with_tables
from pipelines.study.markdown import points
from pipelines.study.plots import arms_figure, cells_figure
from pipelines.study.tables import study_tables


def record(arm: str, seed: int, correct: list[int], base: str = "base", **more: object) -> dict:
    if arm == EKSFT:
        more["mask"] = MASK
    shares = np.array(correct) / 4
    return {
        "key": f"{base} {arm} {seed}",
        "base": base,
        "cell": PRIMARY.name,
        "arm": arm,
        "seed": seed,
        "steps": 28,
        "samples": 4,
        "correct": correct,
        "pass@1": float(shares.mean()),
        "length": 40.0,
        **more,
    }


CURVES = {"reward": [0.25, 0.75], "mixed": [1.0, 0.5], "length": [40.0, 42.0]}
# of the 20 tokens left out 15 are style or noise, of 25 that there are
MASK = {
    "targets": {"forced": 40, "fork": 5, "style": 10, "noise": 15},
    "dropped": {"forced": 3, "fork": 2, "style": 9, "noise": 6},
    "kept_nll": 0.2,
    "dropped_nll": 2.0,
}
RUNS = [
    record(EKSFT, 0, [4, 2], kl=0.1),
    record(EKSFT, 1, [4, 4], kl=0.3),
    record(RANDOM, 0, [2, 2]),
    record(RANDOM, 1, [2, 0]),
    record(EKSFT, 7, [0, 0]),  # the other arm has no such seed
    record(EKSFT, 0, [4, 4], base="base-1"),
    record(RANDOM, 0, [0, 4], base="base-1"),
    record(EKSFT, SEARCH_SEED, [0, 0]),
]


def test_a_difference_is_over_the_runs_that_both_arms_have_and_over_bases_alike():
    # base: seed 0 (0.5, 0), seed 1 (0.5, 1), mean 0.5; base-1: (1, 0), mean 0.5
    assert difference_between(RUNS, EKSFT, RANDOM).estimate == pytest.approx(0.5)
    assert difference_between(RUNS, RANDOM, EKSFT).estimate == pytest.approx(-0.5)


def lines_of(title: str, *results: list[dict]) -> list[str]:
    return study_tables(*results)[title].splitlines()


def test_a_table_has_a_row_for_each_arm_and_leaves_out_the_search():
    lines = lines_of(f"cell {PRIMARY.name}", RUNS, [], [])
    row = next(line for line in lines if line.startswith(f"| {EKSFT} |"))
    # (0.75 + 1 + 0 + 1) / 4, standard deviation between the four; KL of the two that have one
    assert row.split(" | ")[1:4] == ["4", "28", "68.8 ± 47.3"]
    assert "0.200" in row
    assert not any(line.startswith("| base |") for line in lines)


def test_comparisons_of_both_stages_are_judged_together():
    runs = [*RUNS, *(record(EQUAL_KL, seed, [1, 1]) for seed in (0, 1))]
    rl = [{**r, "pass@16": 1.0, "curves": CURVES} for r in runs if r["seed"] != SEARCH_SEED]
    lines = lines_of("primary comparisons", runs, [], rl)
    assert len([line for line in lines if line.startswith("| after ")]) == 4
    assert study_tables([], [], []) == {}
    apart = [record(EKSFT, 0, [4, 2]), record(RANDOM, 1, [2, 0])]  # as a run that is stopped may leave them
    assert "primary comparisons" not in study_tables(apart, [], [])


def test_points_are_percent_and_p_values_are_adjusted():
    table = comparison_table([("a − b", difference_between(RUNS, EKSFT, RANDOM))] * 2)
    row = table.splitlines()[2].split(" | ")
    assert row[1] == "+50.0"
    assert float(row[4].strip(" |")) == pytest.approx(min(1, 2 * float(row[3])), abs=1e-4)


def test_a_difference_halfway_between_two_tenths_is_told_alike_whatever_its_last_bit():
    nearby = [-0.0525, np.nextafter(-0.0525, 0), np.nextafter(-0.0525, -1), -0.0525 + 1e-15, -0.0525 - 1e-15]
    assert len({f"{100 * share:+.1f}" for share in nearby}) == 2
    assert {points(share) for share in nearby} == {"-5.2"}


def test_every_run_is_a_point_of_its_arm_and_the_bar_is_their_mean():
    runs = [{**r, "pass@16": 1.0} for r in RUNS if r["seed"] != SEARCH_SEED]
    figure = arms_figure(runs, [])
    points = [sorted(x for x, _ in collection.get_offsets().data) for collection in figure.axes[0].collections]
    assert points[:4] == [[0, 75, 100], [100], [25, 50], [50]]  # EKSFT comes before random, and base before base-1
    assert [line.get_xdata()[0] for line in figure.axes[0].lines] == pytest.approx([68.75, 125 / 3])


def test_cells_show_the_difference_that_the_table_has():
    figure = cells_figure([r for r in RUNS if r["seed"] != SEARCH_SEED], [])
    assert figure.axes[0].lines[0].get_xdata()[0] == pytest.approx(50)


def test_a_row_of_the_cells_has_their_difference_and_what_was_known_of_the_mask():
    lines = lines_of("all cells", RUNS, [], [])
    row = dict(zip(lines[0].split(" | "), lines[2].split(" | "), strict=True))
    # three pairs: base (0.75, 1) and base-1 (1); without the run of seed 7, to which random has none beside it
    assert (row["pairs"], row[EKSFT], row[RANDOM], row["EKSFT − random"]) == ("3", "93.8", "43.8", "+50.0")
    assert row["95 % interval"] == "", "one seed of base-1 says nothing of how seeds differ"
    assert lines[2].split(" | ")[-4:] == ["75", "60", "0.200", "2.000 |"]


def test_an_arm_that_lacks_a_run_beside_a_pair_has_no_mean_and_a_base_is_beside_every_seed():
    base = {**record("base", 0, [1, 1]), "steps": 0}
    lines = lines_of("all cells", [*RUNS, base, {**base, "base": "base-1"}, record("plain SFT", 0, [4, 4])], [], [])
    row = dict(zip(lines[0].split(" | "), lines[2].split(" | "), strict=True))
    assert (row["base"], row["plain SFT"]) == ("25.0", "")
    lines = lines_of("EKSFT and every arm", [*RUNS, base, record("plain SFT", 0, [4, 4])], [], [])
    found = {line.split(" | ")[0].strip("| "): line.split(" | ")[1:] for line in lines[2:]}
    # EKSFT of base at seeds 0, 1, 7: 0.75, 1, 0, less 0.25 each
    assert found["EKSFT − base"][:4] == ["3", "+33.3", "", "+33.3"]
    assert found["EKSFT − plain SFT"][:2] == ["1", "-25.0"]
    assert found["EKSFT − random"][:4] == ["3", "+50.0", "+50.0", "+50.0"]


def test_each_base_has_its_own_columns_and_every_rate_that_was_tried_is_told():
    searches = [record(EKSFT, SEARCH_SEED, [4, 0], key=f"base {EKSFT} {SEARCH_SEED} at {rate}") for rate in ("0.0001", "1e-05")]
    runs = [*(run for run in RUNS if run["seed"] != SEARCH_SEED), *searches]
    assert lines_of("searches", runs, [], [])[2:] == [f"| {EKSFT} | 50.0 | 50.0 |"]
    assert lines_of("searches", runs, [], [])[0] == "| arm | base: 1e-05 | base: 0.0001 |"
    row = lines_of("by base", [{**run, "rate": 3e-4} for run in runs], [], [])[2].split(" | ")
    assert row[1:] == ["0.0003", "28", "0.200", "58.3 ± 52.0", "0.0003", "28", "", "100.0 |"]


def test_problems_beyond_the_numbers_of_the_base_are_told_apart():
    beyond = is_beyond()
    run = {**record(EKSFT, 0, (4 * ~beyond).tolist()), "cell": "B-50-0"}
    row = lines_of("larger numbers", [run], [], [])[2].split(" | ")
    assert row == [f"| B-50-0 {EKSFT}", "1", "100.0", "0.0 |"]


def test_cells_are_in_the_order_of_what_a_pass_has_learned_of_their_rows():
    def store(cell: str, base: str, ref_logprob: float, logprob: float) -> dict:
        return {"cell": cell, "base": base, "ref_logprob": ref_logprob, "logprob": logprob, "kl": 0.1, "entropy": 0.5}

    # of the primary cell: base (−2, −1) twice, base-1 (−4, −2): means over bases 3 and 1.5, half of it learned
    stores = [store(PRIMARY.name, "base", -2.0, -1.0)] * 2 + [store(PRIMARY.name, "base-1", -4.0, -2.0)]
    lines = lines_of("stores", RUNS, [], [], [*stores, store("B-50-0", "base", -0.4, -0.3)])
    assert lines[2] == "| B-50-0 | 1 | 0.400 | 0.300 | 25 | 0.100 | 0.500 |  |  |"
    assert lines[3] == f"| {PRIMARY.name} | 3 | 3.000 | 1.500 | 50 | 0.100 | 0.500 | +50.0 |  |"


def test_masks_are_told_by_the_labels_of_what_they_leave_out():
    lines = lines_of("masks", RUNS, [], [])
    assert lines[2].split(" | ")[2:] == ["8", "40", "90", "40", "75", "60", "0.200", "2.000 |"]
    assert len(lines) == 3  # the other arms have no mask here


def test_rl_tables_average_the_curves():
    runs = [{**record(EKSFT, seed, [4, 2]), "pass@16": 1.0, "curves": CURVES} for seed in (0, 1)]
    lacking = {**record(RANDOM, 0, [0, 0]), "pass@16": 1.0, "curves": CURVES}  # so seed 1 of EKSFT has nothing beside it
    row = next(line for line in lines_of("after RL", [], [], [*runs, lacking]) if EKSFT in line)
    assert row == f"| {EKSFT} | 1 | 75.0 | 100.0 | 50.0 | 75.0 | 40.0 |"


def test_a_table_of_the_document_is_replaced_and_one_without_runs_is_emptied():
    place = "before\n\n<!-- table: {} -->\n\n{}\n\n<!-- end -->\n\nafter\n"
    written = place.format("a", "| old |") + place.format("b", "| gone |")
    assert with_tables(written, {"a": "| new |"}) == place.format("a", "| new |") + place.format("b", "No runs yet.")


def test_the_document_has_what_the_committed_results_say():
    text = STUDY.read_text(encoding="utf-8")
    assert with_tables(text, committed_tables()) == text
