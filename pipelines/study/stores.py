"""What the store of a cell's rows says before any training but the warm-up's, beside what came of EKSFT's mask there.

Exploratory: the statistic was thought of when four cells had been seen, and before the others.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from pipelines.study.comparisons import difference_between, paired
from pipelines.study.design import CELLS, EKSFT, EXPLORATORY_SEEDS, PLAIN, RANDOM, Run, arm_named
from pipelines.study.markdown import markdown, points
from pipelines.study.masks import WARM
from pipelines.study.results import Record, Results, of_cell
from pipelines.study.rows import prepare_rows
from pipelines.study.runner import Runner, base_policy

STATISTICS = ("ref_logprob", "logprob", "kl", "entropy")
"""Of the warm-up against the base, their means over all targets."""
HEADS = ("cell", "stores", "−log p, base", "−log p, warm-up", "learned in a pass %", "KL", "entropy")


def stores_plan(base: str) -> Iterable[Run]:
    """A run for each store, whatever its arm."""
    return (Run(base, cell, arm_named(EKSFT), seed) for cell in CELLS for seed in EXPLORATORY_SEEDS)


def do_stores(runs: Iterable[Run], runner: Runner, results: Results) -> None:
    """Note what the stores say; the runs that learn from them use the same ones."""
    for run in runs:
        key = f"{run.base} {run.cell.name} {run.seed}"
        if key not in results:
            rows = prepare_rows(run, base_policy(run.base).tokenizer, runner.work)
            means = {name: float(np.mean(rows.of_targets(f"stats/{WARM}", name))) for name in STATISTICS}
            results.add({"key": key, "base": run.base, "cell": run.cell.name, "seed": run.seed, **means})
            runner.say(f"store of {key}: −log p {-means['ref_logprob']:.3f} to {-means['logprob']:.3f}")


def stores_table(stores: Iterable[Record], runs: Sequence[Record]) -> str:
    """A row for each cell, those first whose rows the warm-up learned least of; EKSFT's lead where it has been run."""
    stores = list(stores)
    found = {cell: of for cell in CELLS if (of := of_cell(stores, cell))}
    order = sorted(found, key=lambda cell: _learned(found[cell]))
    rows = [[cell.name, *_said(found[cell]), *_leads(of_cell(runs, cell))] for cell in order]
    return markdown([*HEADS, f"{EKSFT} − {RANDOM}", f"{EKSFT} − {PLAIN}"], rows) if rows else ""


def _means(stores: Sequence[Record]) -> dict[str, float]:
    """Over the seeds of each base, and then over the bases."""
    of_bases = defaultdict(list)
    for store in stores:
        of_bases[store["base"]].append([store[name] for name in STATISTICS])
    return dict(zip(STATISTICS, np.mean([np.mean(of, 0) for of in of_bases.values()], 0).tolist(), strict=True))


def _learned(stores: Sequence[Record]) -> float:
    """The share of the base's −log p that one pass of plain SFT takes away."""
    means = _means(stores)
    return 1 - means["logprob"] / means["ref_logprob"]


def _said(stores: Sequence[Record]) -> list[str]:
    means = _means(stores)
    losses = [f"{-means[name]:.3f}" for name in ("ref_logprob", "logprob")]
    return [str(len(stores)), *losses, f"{100 * _learned(stores):.0f}", *(f"{means[name]:.3f}" for name in ("kl", "entropy"))]


def _leads(runs: Sequence[Record]) -> list[str]:
    others = (RANDOM, PLAIN)
    return [points(difference_between(runs, EKSFT, other).estimate) if paired(runs, EKSFT, other) else "" for other in others]
