"""The plots of docs/STUDY.md, from the committed results.

    python -m pipelines.study.plots          # docs/study-arms.png, study-kl.png, study-cells.png, study-rl.png

A plot whose runs are not there yet is not made, and said so. Every point is a run; a bar across points is their mean.
"""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipelines.study.comparisons import FEWEST, difference_between, paired
from pipelines.study.design import ARMS, CELLS, EKSFT, PRIMARY, RANDOM
from pipelines.study.results import Record, committed, of_arm, without_searches
from pipelines.tinymath import ROOT
from tokenstats.inspect.render.figures import INK, LINES, MARKERS, MUTED, new_figure, title

DOCS = ROOT / "docs"


def arms_figure(after_sft: Sequence[Record], after_rl: Sequence[Record]) -> Figure | None:
    """pass@1 and pass@16 of every arm in the primary cell."""
    runs = [record for record in after_sft if record["cell"] == PRIMARY.name]
    names = [arm.name for arm in ARMS if any(record["arm"] == arm.name for record in runs)]
    if not names:
        return None
    figure, axes = new_figure(10.4, 0.9 + 0.27 * len(names), 2)
    bases = sorted({record["base"] for record in runs})
    for ax, measure in zip(axes, ("pass@1", "pass@16"), strict=True):
        for place, name in enumerate(names):
            mine = of_arm(runs, name)
            _points(ax, [[100 * r[measure] for r in mine if r["base"] == base] for base in bases], len(names) - 1 - place)
        ax.set_yticks(range(len(names)), reversed(names))
        ax.tick_params(axis="y", labelcolor=INK)
        ax.grid(True, axis="x", color="#e9e7e1", linewidth=0.8)
        title(ax, f"{measure} after SFT, {PRIMARY.rows} rows, {PRIMARY.noise:.0%} noise", "% of test problems")
    for base, colour in zip(bases, LINES[1:], strict=False):
        axes[0].scatter([], [], s=14, color=colour, label=base)
    axes[0].legend(fontsize=8, frameon=False, loc="lower left", labelcolor=INK)
    return figure


def kl_figure(after_sft: Sequence[Record], after_rl: Sequence[Record]) -> Figure | None:
    """How far a policy went from the base, and how often it is right there."""
    runs = [record for record in after_sft if record["cell"] == PRIMARY.name and "kl" in record]
    if not runs:
        return None
    figure, (ax,) = new_figure(7.2, 4.2)
    named = [arm.name for arm in ARMS if (arm.starts_rl or arm.exploratory) and of_arm(runs, arm.name)]
    others = [record for record in runs if record["arm"] not in named]
    looks = [*zip(MARKERS, LINES, strict=False)]
    for label, mine, (marker, colour) in (
        *((name, of_arm(runs, name), look) for name, look in zip(named, looks, strict=False)),
        *([("other arms", others, (".", MUTED))] if others else []),
    ):
        x, y = [record["kl"] for record in mine], [100 * record["pass@1"] for record in mine]
        ax.scatter(x, y, s=26, marker=marker, color=colour, label=label, linewidths=0, alpha=0.85)
    ax.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), labelcolor=INK)
    title(ax, "Distance from the base and accuracy", "KL(π‖base) on own samples, nats a token", "pass@1, %")
    return figure


def cells_figure(after_sft: Sequence[Record], after_rl: Sequence[Record]) -> Figure | None:
    """EKSFT minus random in every cell, with its interval: exploratory outside of the primary one."""
    found = []
    for cell in sorted(CELLS, key=lambda cell: (cell.regime, cell.noise, cell.rows)):
        runs = [record for record in after_sft if record["cell"] == cell.name]
        if pairs := paired(runs, EKSFT, RANDOM):
            found.append((cell, difference_between(runs, EKSFT, RANDOM), min(map(len, pairs.values())) >= FEWEST))
    if not found:
        return None
    figure, (ax,) = new_figure(7.2, 1.0 + 0.3 * len(found))
    for place, (_, d, has_interval) in enumerate(reversed(found)):
        bar = [[100 * (d.estimate - d.low)], [100 * (d.high - d.estimate)]] if has_interval else None
        ax.errorbar(100 * d.estimate, place, xerr=bar, fmt="o", color=LINES[1], markersize=5, linewidth=1.2)
    ax.axvline(0, color=MUTED, linewidth=0.8)
    ax.set_yticks(range(len(found)), [f"{c.regime}, {c.rows} rows, {c.noise:.0%} noise" for c, *_ in reversed(found)])
    title(ax, "EKSFT − random, pass@1 after SFT", "percentage points, 95 % interval")
    return figure


def rl_figure(after_sft: Sequence[Record], after_rl: Sequence[Record]) -> Figure | None:
    """Reward during RL, by start: means over runs, over windows of ten steps."""
    names = [arm.name for arm in ARMS if any(record["arm"] == arm.name for record in after_rl)]
    if not names:
        return None
    figure, (ax,) = new_figure(7.2, 4.0)
    for name, colour, marker in zip(names, LINES, MARKERS, strict=False):
        curves = np.array([record["curves"]["reward"] for record in after_rl if record["arm"] == name])
        width = min(10, curves.shape[1])
        smooth = np.convolve(100 * curves.mean(0), np.full(width, 1 / width), "valid")
        steps = np.arange(len(smooth)) + (width + 1) / 2
        ax.plot(steps, smooth, color=colour, marker=marker, markevery=max(1, len(smooth) // 8), markersize=5, label=name)
    ax.legend(fontsize=8, frameon=False, labelcolor=INK)
    title(ax, "Share of right samples during RL", "GRPO step", "reward, %")
    return figure


FIGURES: dict[str, Callable[[Sequence[Record], Sequence[Record]], Figure | None]] = {
    "study-arms": arms_figure,
    "study-kl": kl_figure,
    "study-cells": cells_figure,
    "study-rl": rl_figure,
}


def _points(ax: Axes, values: Sequence[Sequence[float]], height: float) -> None:
    """Those of each base in a colour of its own, a little apart in height, and a bar at the mean of all."""
    for of_base, colour, middle in zip(values, LINES[1:], (0.09, -0.09), strict=False):
        spread = np.linspace(-0.08, 0.08, len(of_base)) if len(of_base) > 1 else np.zeros(len(of_base))
        ax.scatter(of_base, height + middle + spread, s=14, color=colour, alpha=0.7, linewidths=0)
    ax.plot([np.mean(np.concatenate(values))] * 2, [height - 0.32, height + 0.32], color=LINES[0], linewidth=2)


def main() -> None:
    after_sft, after_rl = without_searches(committed("sft")), committed("rl")
    for name, draw in FIGURES.items():
        figure = draw(after_sft, after_rl)
        if figure is None:
            print(f"{name}: no runs yet")
        else:
            figure.savefig(DOCS / f"{name}.png")
            print(f"wrote docs/{name}.png")


if __name__ == "__main__":
    main()
