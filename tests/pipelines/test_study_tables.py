"""Tables of made-up results whose numbers can be worked out by hand."""

import numpy as np
import pytest

from pipelines.study.design import EKSFT, EQUAL_KL, PRIMARY, RANDOM, SEARCH_SEED
from pipelines.study.plots import arms_figure, cells_figure
from pipelines.study.tables import comparison_table, difference_between, print_comparisons, print_rl_tables, print_tables


def record(arm: str, seed: int, correct: list[int], base: str = "base", **more: object) -> dict:
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


def test_a_table_has_a_row_for_each_arm_and_leaves_out_the_search(capsys):
    print_tables(RUNS)
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if line.startswith(f"| {EKSFT} |"))
    # (0.75 + 1 + 0 + 1) / 4, standard deviation between the four; KL of the two that have one
    assert row.split(" | ")[1:4] == ["4", "28", "68.8 ± 47.3"]
    assert "0.200" in row
    assert not any(line.startswith("| base |") for line in lines)


def test_comparisons_of_both_stages_are_judged_together(capsys):
    runs = [*RUNS, *(record(EQUAL_KL, seed, [1, 1]) for seed in (0, 1))]
    print_comparisons(runs, runs)
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith("| after ")]) == 4
    print_comparisons([], [])
    assert capsys.readouterr().out == ""


def test_points_are_percent_and_p_values_are_adjusted():
    table = comparison_table([("a − b", difference_between(RUNS, EKSFT, RANDOM))] * 2)
    row = table.splitlines()[2].split(" | ")
    assert row[1] == "+50.0"
    assert float(row[4].strip(" |")) == pytest.approx(min(1, 2 * float(row[3])), abs=1e-4)


def test_every_run_is_a_point_of_its_arm_and_the_bar_is_their_mean():
    runs = [{**r, "pass@16": 1.0} for r in RUNS if r["seed"] != SEARCH_SEED]
    figure = arms_figure(runs, [])
    points = [collection.get_offsets().data for collection in figure.axes[0].collections]
    assert sorted(x for x, _ in points[0]) == [0, 75, 100, 100]  # EKSFT comes before random
    assert sorted(x for x, _ in points[1]) == [25, 50, 50]
    assert [line.get_xdata()[0] for line in figure.axes[0].lines] == pytest.approx([68.75, 125 / 3])


def test_cells_show_the_difference_that_the_table_has():
    figure = cells_figure([r for r in RUNS if r["seed"] != SEARCH_SEED], [])
    assert figure.axes[0].lines[0].get_xdata()[0] == pytest.approx(50)


def test_rl_tables_average_the_curves(capsys):
    curves = {"reward": [0.25, 0.75], "mixed": [1.0, 0.5], "length": [40.0, 42.0]}
    print_rl_tables([{**record(EKSFT, 0, [4, 2]), "pass@16": 1.0, "curves": curves}])
    row = capsys.readouterr().out.splitlines()[-1]
    assert row == f"| {EKSFT} | 1 | 75.0 | 100.0 | 50.0 | 75.0 | 40.0 |"
