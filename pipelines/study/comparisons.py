"""Paired differences between arms, from the raw results: the primary ones, EKSFT beside each arm, and cell by cell."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from pipelines.study.design import ARMS, CELLS, COMPARISONS, EKSFT, PRIMARY, RANDOM
from pipelines.study.markdown import interval, markdown, points
from pipelines.study.results import Record, of_arm, of_cell
from pipelines.study.statistics import Difference, holm, paired_bootstrap
from pipelines.study.training import precision_and_recall

FEWEST = 2
"""Seeds of each base below which no interval is given: of one seed the bootstrap knows no spread."""


def difference_between(runs: Iterable[Record], one: str, other: str) -> Difference:
    """The paired difference of two arms' shares of right samples, over the runs that both have."""
    return paired_bootstrap(list(paired(runs, one, other).values()))


def paired(runs: Iterable[Record], one: str, other: str) -> dict[str, np.ndarray]:
    """[seeds, problems] of each base that has both arms: one arm's shares of right samples minus the other's.

    An arm without a single step is the same policy at every seed: its one run is beside every run of the other.
    """
    of: dict[tuple[str, str], dict[int | None, np.ndarray]] = defaultdict(dict)
    for record in runs:
        seed = record["seed"] if record["steps"] else None
        of[record["base"], record["arm"]][seed] = np.array(record["correct"]) / record["samples"]
    found = {}
    for base in sorted({base for base, arm in of if arm == one}):
        mine, theirs = of[base, one], of[base, other]
        both = [seed for seed in sorted(mine, key=str) if seed in theirs or None in theirs]
        if both:
            found[base] = np.array([mine[seed] - theirs.get(seed, theirs.get(None)) for seed in both])
    return found


def primary_comparisons(after_sft: Iterable[Record], after_rl: Iterable[Record]) -> str:
    """Those that have runs, judged together."""
    found = []
    for stage, records in (("SFT", after_sft), ("RL", after_rl)):
        runs = of_cell(records, PRIMARY)
        pairs = [pair for pair in COMPARISONS if paired(runs, *pair)]
        found += [(f"after {stage}: {a} − {b}", difference_between(runs, a, b)) for a, b in pairs]
    return comparison_table(found) if found else ""


def comparison_table(differences: Sequence[tuple[str, Difference]]) -> str:
    adjusted = holm([difference.p for _, difference in differences])
    rows = [
        [name, points(d.estimate), interval(d), f"{d.p:.4f}", f"{p:.4f}"]
        for (name, d), p in zip(differences, adjusted, strict=True)
    ]
    return markdown(["difference", "points", "95 % interval", "p", "p by Holm"], rows)


def beside_eksft(runs: Iterable[Record]) -> str:
    """EKSFT minus every other arm that has runs, on each base and on all: exploratory but for the primary ones."""
    runs = list(runs)
    bases = sorted({record["base"] for record in of_arm(runs, EKSFT)})
    rows = []
    for arm in ARMS:
        if arm.name == EKSFT or not (pairs := paired(runs, EKSFT, arm.name)):
            continue
        each = [points(float(pairs[base].mean())) if base in pairs else "" for base in bases]
        count = sum(map(len, pairs.values()))
        d = paired_bootstrap(list(pairs.values()))
        rows.append([f"EKSFT − {arm.name}", str(count), *each, points(d.estimate), _interval_of(pairs, d)])
    return markdown(["difference", "pairs", *bases, "mean of the bases", "95 % interval"], rows) if rows else ""


CELL_ARMS = [arm.name for arm in ARMS if arm.exploratory]
ABOUT_A_MASK = ("precision %", "recall %", "kept nll", "dropped nll")
"""Of what a mask leaves out, the share that is style or noise; of these, the share left out; mean −log p, nats."""


def cells_table(runs: Sequence[Record]) -> str:
    """A row for each cell that has EKSFT and random: means over the pairs of the two, their difference, and EKSFT's mask."""
    heads = ["cell", "pairs", *CELL_ARMS, "EKSFT − random", "95 % interval", *ABOUT_A_MASK]
    rows = [_cell_row(cell.name, of_cell(runs, cell)) for cell in CELLS]
    return markdown(heads, [row for row in rows if row]) if any(rows) else ""


def _cell_row(cell: str, runs: list[Record]) -> list[str]:
    pairs = paired(runs, EKSFT, RANDOM)
    if not pairs:
        return []
    random = {(record["base"], record["seed"]) for record in of_arm(runs, RANDOM)}
    eksft = [record for record in of_arm(runs, EKSFT) if (record["base"], record["seed"]) in random]
    d = paired_bootstrap(list(pairs.values()))
    means = [_mean_beside(eksft, of_arm(runs, arm)) for arm in CELL_ARMS]
    about = about_masks([record["mask"] for record in eksft])
    return [cell, str(len(eksft)), *means, points(d.estimate), _interval_of(pairs, d), *about]


def _mean_beside(these: Sequence[Record], others: Sequence[Record]) -> str:
    """pass@1 in %, over bases alike, of the runs beside these; nothing where one of them has none beside it."""
    of = {(record["base"], record["seed"] if record["steps"] else None): record["pass@1"] for record in others}
    found = defaultdict(list)
    for record in these:
        found[record["base"]].append(of.get((record["base"], record["seed"]), of.get((record["base"], None))))
    if any(None in values for values in found.values()):
        return ""
    return f"{100 * np.mean([np.mean(values) for values in found.values()]):.1f}"


def about_masks(masks: Sequence[Record]) -> list[str]:
    """What :data:`ABOUT_A_MASK` heads, over some masks; nothing where none leaves anything out."""
    shares = 100 * np.mean([precision_and_recall(mask) for mask in masks], 0)
    losses = [[mask[name] for mask in masks if mask[name] is not None] for name in ("kept_nll", "dropped_nll")]
    texts = ["" if np.isnan(share) else f"{share:.0f}" for share in shares]
    return [*texts, *(f"{np.mean(of):.3f}" if of else "" for of in losses)]


def _interval_of(pairs: dict[str, np.ndarray], difference: Difference) -> str:
    return interval(difference) if min(map(len, pairs.values())) >= FEWEST else ""
