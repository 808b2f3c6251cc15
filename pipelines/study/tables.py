"""Tables of docs/STUDY.md, in Markdown, from the raw results alone."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from pipelines.labels import Label
from pipelines.study.design import ARMS, CELLS, COMPARISONS, EKSFT, PRIMARY, RANDOM, SEARCH_SEED
from pipelines.study.statistics import Difference, holm, paired_bootstrap
from pipelines.study.training import precision_and_recall

Record = dict[str, Any]


def study_tables(after_sft: Iterable[Record], wordings: Iterable[Record], after_rl: Iterable[Record]) -> dict[str, str]:
    """All that the results say, by title; without what has no runs yet. A table of arms has means over runs."""
    runs, rl = [record for record in after_sft if record["seed"] != SEARCH_SEED], list(after_rl)
    found = {"primary comparisons": primary_comparisons(runs, rl)}
    for cell in CELLS:
        found[f"cell {cell.name}"] = _table(COLUMNS, [record for record in runs if record["cell"] == cell.name], _row)
    found |= {
        "masks": _table(MASK_COLUMNS, [record for record in runs if record["cell"] == PRIMARY.name], _mask_row),
        "all cells": _cells_table(runs),
        "new wording": _table(WORDING_COLUMNS, wordings, _wording_row),
        "after RL": _table(RL_COLUMNS, rl, _rl_row),
    }
    return {title: table for title, table in found.items() if table}


def primary_comparisons(after_sft: Iterable[Record], after_rl: Iterable[Record]) -> str:
    """Those that have runs, judged together."""
    found = []
    for stage, records in (("SFT", after_sft), ("RL", after_rl)):
        runs = [record for record in records if record["cell"] == PRIMARY.name]
        pairs = [pair for pair in COMPARISONS if all(_of_arm(runs, arm) for arm in pair)]
        found += [(f"after {stage}: {a} − {b}", difference_between(runs, a, b)) for a, b in pairs]
    return comparison_table(found) if found else ""


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def difference_between(runs: Iterable[Record], one: str, other: str) -> Difference:
    """The paired difference of two arms' shares of right samples, over the runs that both have."""
    shares = {(r["base"], r["seed"], r["arm"]): np.array(r["correct"]) / r["samples"] for r in runs}
    paired = [(base, seed) for base, seed, arm in shares if arm == one and (base, seed, other) in shares]
    bases = sorted({base for base, _ in paired})
    seeds = {base: sorted(seed for of, seed in paired if of == base) for base in bases}
    return paired_bootstrap(
        [np.array([shares[base, seed, one] - shares[base, seed, other] for seed in seeds[base]]) for base in bases]
    )


def comparison_table(differences: Sequence[tuple[str, Difference]]) -> str:
    adjusted = holm([difference.p for _, difference in differences])
    rows = [
        [name, f"{100 * d.estimate:+.1f}", f"{100 * d.low:+.1f} to {100 * d.high:+.1f}", f"{d.p:.4f}", f"{p:.4f}"]
        for (name, d), p in zip(differences, adjusted, strict=True)
    ]
    return markdown(["difference", "points", "95 % interval", "p", "p by Holm"], rows)


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
_ABOUT = ("precision %", "recall %", "kept nll", "dropped nll")
"""Of a mask: of what it leaves out, the share that is style or noise; of these, the share left out; mean −log p, nats."""
CELL_COLUMNS = [
    "cell",
    *(arm.name for arm in ARMS if arm.exploratory),
    "EKSFT − random",
    "95 % interval",
    *_ABOUT,
]
MASK_COLUMNS = ["arm", "runs", *(f"{label.name.lower()} left out %" for label in Label), *_ABOUT]


def _table(heads: Sequence[str], runs: Iterable[Record], row: Callable[[str, list[Record]], list[str]]) -> str:
    """A row for each arm that has runs and something to say."""
    runs = list(runs)
    rows = [line for arm in ARMS if (mine := _of_arm(runs, arm.name)) and (line := row(arm.name, mine))]
    return markdown(heads, rows) if rows else ""


def _cells_table(runs: Sequence[Record]) -> str:
    of_cells = {cell.name: [record for record in runs if record["cell"] == cell.name] for cell in CELLS}
    rows = [_cell_row(name, mine) for name, mine in of_cells.items() if _of_arm(mine, EKSFT) and _of_arm(mine, RANDOM)]
    return markdown(CELL_COLUMNS, rows) if rows else ""


def _mask_row(arm: str, runs: list[Record]) -> list[str]:
    """Of a mask, without any training; an arm without a mask has no row."""
    masks = [record["mask"] for record in runs if "mask" in record]
    return [arm, str(len(masks)), *_left_out(masks), *_about(masks)] if masks else []


def _left_out(masks: Sequence[Record]) -> list[str]:
    """The share of the tokens of each label that is left out."""
    names = [label.name.lower() for label in Label]
    counts = {name: (sum(m["dropped"][name] for m in masks), sum(m["targets"][name] for m in masks)) for name in names}
    return [f"{100 * dropped / targets:.0f}" if targets else "" for dropped, targets in counts.values()]


def _about(masks: Sequence[Record]) -> list[str]:
    shares = 100 * np.mean([precision_and_recall(mask) for mask in masks], 0)
    losses = [[mask[name] for mask in masks if mask[name] is not None] for name in ("kept_nll", "dropped_nll")]
    return [*(f"{share:.0f}" for share in shares), *(f"{np.mean(of):.3f}" if of else "" for of in losses)]


def _cell_row(cell: str, runs: Sequence[Record]) -> list[str]:
    of_arms = [[100 * record["pass@1"] for record in _of_arm(runs, arm.name)] for arm in ARMS if arm.exploratory]
    passes = [f"{np.mean(values):.1f}" if values else "" for values in of_arms]
    d = difference_between(runs, EKSFT, RANDOM)
    about = _about([record["mask"] for record in _of_arm(runs, EKSFT) if "mask" in record])
    return [cell, *passes, f"{100 * d.estimate:+.1f}", f"{100 * d.low:+.1f} to {100 * d.high:+.1f}", *about]


def _rl_row(arm: str, runs: list[Record]) -> list[str]:
    curves = {name: 100 * np.mean([np.mean(record["curves"][name]) for record in runs]) for name in ("reward", "mixed")}
    passes = [f"{100 * np.mean([record[name] for record in runs]):.1f}" for name in ("pass@1", "pass@16")]
    length = f"{np.mean([record['length'] for record in runs]):.1f}"
    return [arm, str(len(runs)), *passes, f"{curves['reward']:.1f}", f"{curves['mixed']:.1f}", length]


def _wording_row(arm: str, runs: list[Record]) -> list[str]:
    return [arm, str(len(runs)), f"{100 * np.mean([record['wording'] for record in runs]):.1f}"]


def _of_arm(runs: Iterable[Record], arm: str) -> list[Record]:
    return [record for record in runs if record["arm"] == arm]


def _row(arm: str, runs: list[Record]) -> list[str]:
    cells = [arm, str(len(runs)), f"{np.mean([record['steps'] for record in runs]):.0f}"]
    for name, (read, decimals) in MEASURES.items():
        values = [value for record in runs if (value := read(record)) is not None and not np.isnan(value)]
        text = f"{np.mean(values):.{decimals}f}" if values else ""
        if name == "pass@1 %" and len(values) > 1:
            text += f" ± {np.std(values, ddof=1):.{decimals}f}"
        cells.append(text)
    return cells
