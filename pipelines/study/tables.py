"""Tables of docs/STUDY.md, in Markdown, from the raw results alone."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from pipelines.study.design import ARMS, COMPARISONS, PRIMARY, SEARCH_SEED
from pipelines.study.statistics import Difference, holm, paired_bootstrap
from pipelines.study.training import precision_and_recall

Record = dict[str, Any]


def print_tables(results: Iterable[Record]) -> None:
    """One table for each cell that has runs, then the comparisons of the primary one."""
    runs = [record for record in results if record["seed"] != SEARCH_SEED]
    for cell in dict.fromkeys(record["cell"] for record in runs):
        of_cell = [record for record in runs if record["cell"] == cell]
        print(f"\n{cell}: means over runs; ± the standard deviation between them\n")
        print(markdown(COLUMNS, [_row(arm.name, of_cell) for arm in ARMS if _of_arm(of_cell, arm.name)]))


def print_wording_table(results: Iterable[Record]) -> None:
    """How far every arm took on the wording of its rows."""
    runs = list(results)
    shares = {arm.name: [100 * record["wording"] for record in _of_arm(runs, arm.name)] for arm in ARMS}
    rows = [[name, str(len(found)), f"{np.mean(found):.1f}"] for name, found in shares.items() if found]
    if rows:
        print(f"\n{PRIMARY.name}, sentences with an equation that are in the wording of the SFT rows\n")
        print(markdown(["arm", "runs", "in the new wording %"], rows))


def print_rl_tables(results: Iterable[Record]) -> None:
    """What RL made of every start."""
    runs = list(results)
    if runs:
        print(f"\n{PRIMARY.name}, after RL: means over runs\n")
        print(markdown(RL_COLUMNS, [_rl_row(arm.name, runs) for arm in ARMS if _of_arm(runs, arm.name)]))


def print_comparisons(after_sft: Iterable[Record], after_rl: Iterable[Record]) -> None:
    """The primary comparisons that have runs, judged together."""
    found = []
    for stage, records in (("SFT", after_sft), ("RL", after_rl)):
        runs = [r for r in records if r["cell"] == PRIMARY.name and r["seed"] != SEARCH_SEED]
        pairs = [pair for pair in COMPARISONS if all(_of_arm(runs, arm) for arm in pair)]
        found += [(f"after {stage}: {a} − {b}", difference_between(runs, a, b)) for a, b in pairs]
    if found:
        print(f"\n{PRIMARY.name}, primary comparisons, pass@1\n")
        print(comparison_table(found))


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


def _precision(record: Record) -> float | None:
    return 100 * precision_and_recall(record["mask"])[0] if "mask" in record else None


def _recall(record: Record) -> float | None:
    return 100 * precision_and_recall(record["mask"])[1] if "mask" in record else None


MEASURES: dict[str, tuple[Callable[[Record], float | None], int]] = {
    "pass@1 %": (_percent("pass@1"), 1),
    "pass@16 %": (_percent("pass@16"), 1),
    "pass@64 %": (_percent("pass@64"), 1),
    "other styles %": (_styles, 1),
    "KL(π‖base)": (lambda record: record.get("kl"), 3),
    "entropy at forks": (lambda record: record.get("fork_entropy"), 3),
    "tokens": (lambda record: record.get("length"), 1),
    "mask: precision %": (_precision, 0),
    "recall %": (_recall, 0),
    "kept nll": (lambda record: record.get("mask", {}).get("kept_nll"), 3),
}
"""Heading, how it is read from a record (None: it was not measured), and its decimals."""

COLUMNS = ["arm", "runs", "steps", *MEASURES]


RL_COLUMNS = ["start", "runs", "pass@1 %", "pass@16 %", "reward, mean of the curve", "groups with mixed rewards %", "tokens"]


def _rl_row(arm: str, runs: Iterable[Record]) -> list[str]:
    mine = _of_arm(runs, arm)
    curves = {name: 100 * np.mean([np.mean(record["curves"][name]) for record in mine]) for name in ("reward", "mixed")}
    passes = [f"{100 * np.mean([record[name] for record in mine]):.1f}" for name in ("pass@1", "pass@16")]
    length = f"{np.mean([record['length'] for record in mine]):.1f}"
    return [arm, str(len(mine)), *passes, f"{curves['reward']:.1f}", f"{curves['mixed']:.1f}", length]


def _of_arm(runs: Iterable[Record], arm: str) -> list[Record]:
    return [record for record in runs if record["arm"] == arm]


def _row(arm: str, runs: Iterable[Record]) -> list[str]:
    mine = _of_arm(runs, arm)
    cells = [arm, str(len(mine)), f"{np.mean([record['steps'] for record in mine]):.0f}"]
    for name, (read, decimals) in MEASURES.items():
        values = [value for record in mine if (value := read(record)) is not None and not np.isnan(value)]
        text = f"{np.mean(values):.{decimals}f}" if values else ""
        if name == "pass@1 %" and len(values) > 1:
            text += f" ± {np.std(values, ddof=1):.{decimals}f}"
        cells.append(text)
    return cells
