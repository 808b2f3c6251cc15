"""Intervals and p values of paired differences, and Holm's procedure: as docs/STUDY.md fixed them before any result."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 10_000


@dataclass(frozen=True)
class Difference:
    """An estimated difference, its 95 % interval, and its two-sided p value."""

    estimate: float
    low: float
    high: float
    p: float


def paired_bootstrap(differences: Sequence[np.ndarray], draws: int = DRAWS, seed: int = 0) -> Difference:
    """Bootstrap a difference between two arms over runs within each base, and over problems.

    Every draw takes seeds with replacement within each base, apart for each base, and problems with replacement, the same ones
    for all runs. A draw's value is the mean over bases of the mean over seeds of the mean over problems.

    Args:
        differences: of each base, [seeds, problems]: one arm's share of right samples of a problem minus the other's.

    Returns:
        The mean as it is, the 2.5 % and 97.5 % quantiles of the draws, and p = 2 · min((1 + #{draw ≤ 0}) / (1 + draws),
        (1 + #{draw ≥ 0}) / (1 + draws)), at most 1 (Davison and Hinkley, 1997, section 4.4, for the added one).

    Raises:
        ValueError: no base, a base without a run, or bases with different numbers of problems.
    """
    problems = {d.shape[1] for d in differences}
    if not differences or len(problems) != 1 or any(len(d) == 0 for d in differences):
        raise ValueError(f"expected arrays [seeds, problems] of equally many problems, got {[d.shape for d in differences]}")
    random, count = np.random.default_rng(seed), problems.pop()
    chosen = random.multinomial(count, np.full(count, 1 / count), draws).T / count  # [problems, draws]
    of_bases = []
    for of_base in differences:
        seeds = len(of_base)
        runs = random.multinomial(seeds, np.full(seeds, 1 / seeds), draws).T / seeds  # [seeds, draws]
        of_bases.append((runs * (of_base @ chosen)).sum(0))
    values = np.mean(of_bases, 0)
    estimate = float(np.mean([d.mean() for d in differences]))
    # a mean that is 0 can come out as 1e-18: sums of floats in another order
    below, above = (int((sign * values <= 1e-12).sum()) for sign in (1, -1))
    p = min(1.0, 2 * (1 + min(below, above)) / (1 + draws))
    low, high = np.quantile(values, [0.025, 0.975])
    return Difference(estimate, float(low), float(high), p)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values adjusted by Holm's step-down procedure (1979): a hypothesis is rejected at level α where its own is at most α.

    The i-th smallest of m is multiplied by m − i + 1; none comes out below a smaller one's, nor above 1.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[i]))
        adjusted[i] = largest
    return adjusted
