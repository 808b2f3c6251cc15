"""Tables of docs/STUDY.md, in Markdown, from the raw results alone."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from pipelines.labels import Label
from pipelines.study.by_base import by_base, larger_table, searches_table
from pipelines.study.comparisons import ABOUT_A_MASK, about_masks, beside_eksft, cells_table, primary_comparisons
from pipelines.study.design import ARMS, CELLS, PRIMARY, STORED, arm_named
from pipelines.study.markdown import markdown
from pipelines.study.results import Record, of_arm, of_cell, without_searches
from pipelines.study.stores import stores_table


def study_tables(
    after_sft: Iterable[Record], wordings: Iterable[Record], after_rl: Iterable[Record], stores: Iterable[Record] = ()
) -> dict[str, str]:
    """All that the results say, by title; without what has no runs yet. A table of arms has means over runs."""
    everything, rl = list(after_sft), list(after_rl)
    runs = without_searches(everything)
    primary = of_cell(runs, PRIMARY)
    found = {"primary comparisons": primary_comparisons(runs, rl), "EKSFT and every arm": beside_eksft(primary)}
    for cell in CELLS:
        found[f"cell {cell.name}"] = _table(COLUMNS, of_cell(runs, cell), _row)
    found |= {
        "by base": by_base(primary),
        "searches": searches_table(record for record in of_cell(everything, PRIMARY) if record not in primary),
        "masks": _table(MASK_COLUMNS, primary, _mask_row),
        "all cells": cells_table(runs),
        "stores": stores_table(stores, runs),
        "larger numbers": larger_table(runs),
        "new wording": _table(WORDING_COLUMNS, wordings, _wording_row),
        "after RL": _table(RL_COLUMNS, _whole_seeds(rl), _rl_row),
        "EKSFT and every start of RL": beside_eksft(rl),
    }
    return {title: table for title, table in found.items() if table}


def _percent(name: str) -> Callable[[Record], float | None]:
    return lambda record: 100 * record[name] if name in record else None


def _styles(record: Record) -> float | None:
    return 100 * float(np.mean(list(record["styles"].values()))) if "styles" in record else None


MEASURES: dict[str, tuple[Callable[[Record], float | None], int]] = {
    "pass@1 %": (_percent("pass@1"), 1),
    "pass@16 %": (_percent("pass@16"), 1),
    "pass@64 %": (_percent("pass@64"), 1),
    "other styles %": (_styles, 1),
    "KL(π‖base)": (lambda record: record.get("kl"), 3),
    "entropy at forks": (lambda record: record.get("fork_entropy"), 3),
    "tokens": (lambda record: record.get("length"), 1),
}
"""Heading, how it is read from a record (None: it was not measured), and its decimals."""

COLUMNS = ["arm", "runs", "steps", *MEASURES]
RL_COLUMNS = ["start", "runs", "pass@1 %", "pass@16 %", "reward, mean of the curve", "groups with mixed rewards %", "tokens"]
WORDING_COLUMNS = ["arm", "runs", "in the new wording %"]
MASK_COLUMNS = ["arm", "runs", *(f"{label.name.lower()} left out %" for label in Label), *ABOUT_A_MASK]


def _table(heads: Sequence[str], runs: Iterable[Record], row: Callable[[str, list[Record]], list[str]]) -> str:
    """A row for each arm that has runs and something to say."""
    runs = list(runs)
    rows = [line for arm in ARMS if (mine := of_arm(runs, arm.name)) and (line := row(arm.name, mine))]
    return markdown(heads, rows) if rows else ""


def _whole_seeds(runs: Sequence[Record]) -> list[Record]:
    """The runs of those seeds of a base at which every arm has one."""
    arms = {record["arm"] for record in runs}
    there = {(r["base"], r["seed"], r["arm"]) for r in runs}
    return [r for r in runs if all((r["base"], r["seed"], arm) in there for arm in arms)]


def _mask_row(arm: str, runs: list[Record]) -> list[str]:
    """Of a stored mask, without any training; an arm without one has no row: *followed* selects anew at each step."""
    masks = [record["mask"] for record in runs if "mask" in record and arm_named(arm).way == STORED]
    return [arm, str(len(masks)), *_left_out(masks), *about_masks(masks)] if masks else []


def _left_out(masks: Sequence[Record]) -> list[str]:
    """The share of the tokens of each label that is left out."""
    names = [label.name.lower() for label in Label]
    counts = {name: (sum(m["dropped"][name] for m in masks), sum(m["targets"][name] for m in masks)) for name in names}
    return [f"{100 * dropped / targets:.0f}" if targets else "" for dropped, targets in counts.values()]


def _rl_row(arm: str, runs: list[Record]) -> list[str]:
    curves = {name: 100 * np.mean([np.mean(record["curves"][name]) for record in runs]) for name in ("reward", "mixed")}
    passes = [f"{100 * np.mean([record[name] for record in runs]):.1f}" for name in ("pass@1", "pass@16")]
    length = f"{np.mean([record['length'] for record in runs]):.1f}"
    return [arm, str(len(runs)), *passes, f"{curves['reward']:.1f}", f"{curves['mixed']:.1f}", length]


def _wording_row(arm: str, runs: list[Record]) -> list[str]:
    return [arm, str(len(runs)), f"{100 * np.mean([record['wording'] for record in runs]):.1f}"]


def _row(arm: str, runs: list[Record]) -> list[str]:
    cells = [arm, str(len(runs)), f"{np.mean([record['steps'] for record in runs]):.0f}"]
    for name, (read, decimals) in MEASURES.items():
        values = [value for record in runs if (value := read(record)) is not None and not np.isnan(value)]
        text = f"{np.mean(values):.{decimals}f}" if values else ""
        if name == "pass@1 %" and len(values) > 1:
            text += f" ± {np.std(values, ddof=1):.{decimals}f}"
        cells.append(text)
    return cells
