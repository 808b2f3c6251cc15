"""Figures of a report and of the app: matplotlib objects, without pyplot, so that threads do not share a state.

Colours are told apart by colour-blind eyes (Okabe and Ito; cividis), and nothing differs by colour alone.
"""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, PercentFormatter

from tokenstats.inspect.audit.audit import DroppedToken
from tokenstats.inspect.histograms import FIRST_TOKENS, Distributions

INK, MUTED, GRID, PAPER = "#22252a", "#6b6f76", "#e9e7e1", "#ffffff"
KEPT, DROPPED, CUT = "#c3c8d0", "#d55e00", "#0072b2"
LINES = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#b08c00", "#56b4e9", "#22252a", "#8a5a44")
MARKERS = "osD^vPX*"
_NAMES = {
    "entropy": "entropy of the prediction (nats, square-root scale)",
    "kl": "KL from the reference (nats, logarithmic scale)",
}
_SHORT = {"entropy": "Entropy", "kl": "KL divergence"}
_FONTS = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "PingFang SC", "Hiragino Sans", "Microsoft YaHei", "Noto Sans")
_ENTROPY_TICKS = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0)
_DOTS_PER_INCH = 160
_FINE_FROM = 200_000  # targets that fill the finest bins


def new_figure(width: float, height: float, columns: int = 1, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """An empty figure (inches) with plain axes side by side, row by row."""
    figure = Figure(figsize=(width, height), dpi=_DOTS_PER_INCH, facecolor=PAPER)
    figure.set_layout_engine("constrained", wspace=0.06, w_pad=0.06, h_pad=0.06)
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes:
        ax.set_facecolor(PAPER)
        ax.grid(True, axis="y", color=GRID, linewidth=0.8)
        ax.set_axisbelow(True)
        ax.tick_params(colors=MUTED, labelsize=8.5, length=3, width=0.7, which="both")
        ax.tick_params(which="minor", length=1.5)
        for side, spine in ax.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color("#b9b7b0")
            spine.set_linewidth(0.8)
    return figure, axes


def data_uri(figure: Figure) -> str:
    """The figure as a PNG inside a URI, for pages that have no folder beside them."""
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return f"data:image/png;base64,{base64.b64encode(image.getvalue()).decode()}"


def title(ax: Axes, text: str, x: str = "", y: str = "") -> None:
    """What one sees, left above the axes; quantities and units beside them. No mathtext."""
    ax.set_title(text, loc="left", fontsize=10, color=INK, pad=8, parse_math=False)
    ax.set_xlabel(x, fontsize=9, color=MUTED, parse_math=False)
    ax.set_ylabel(y, fontsize=9, color=MUTED, parse_math=False)


def distribution_figure(found: Distributions, mask: str | None, cuts: Mapping[str, Sequence[float]] | None = None) -> Figure:
    """Histograms of entropy and of KL, counts on a logarithmic scale.

    Args:
        found: What was counted.
        mask: Whose dropped targets to draw too; None for none.
        cuts: Values (nats) to mark, by statistic.
    """
    figure, axes = new_figure(10.4, 3.1, max(1, len(found.columns)))
    for ax, column in zip(axes, found.columns, strict=False):
        _histogram(ax, found, column, mask)
        for value in (cuts or {}).get(column, ()):
            _mark_cut(ax, value)
        title(
            ax,
            f"{_SHORT[column]} of all targets" + ", and of those dropped" * (mask is not None),
            _NAMES[column],
            "tokens (logarithmic)",
        )
    if mask is not None:
        legend_below(figure, axes[0])
    return figure


def legend_below(figure: Figure, *axes: Axes) -> None:
    """One legend for what is drawn on the axes, below them: each label once. No mathtext."""
    drawn = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    handles, labels = list(drawn.values()), list(drawn)
    columns = max(1, min(4, 100 // (6 + max(map(len, labels), default=0))))
    legend = figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, fontsize=8.5, frameon=False, labelcolor=INK
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _histogram(ax: Axes, found: Distributions, column: str, mask: str | None) -> None:
    everything, edges = found.counts(column), found.edges(column)
    first, last = _occupied(everything)
    everything, edges = everything[first:last], edges[first : last + 1]
    ax.stairs(everything, edges, fill=True, color=KEPT, label="all targets", baseline=0.5)
    if mask is not None:
        dropped = found.counts(column, mask)[first:last]
        ax.stairs(dropped, edges, fill=True, color=DROPPED, alpha=0.75, label="dropped", baseline=0.5)
        ax.stairs(dropped, edges, color="#9a4400", linewidth=0.9, baseline=0.5)
    ax.set_yscale("log")
    ax.set_ylim(bottom=0.5)
    _scale_of(ax, "x", column, edges[0], edges[-1])


def _scale_of(ax: Axes, side: str, column: str, low: float, high: float) -> None:
    """Logarithmic for KL; square root for entropy, which may be 0. ``side`` is x or y."""
    set_scale, axis = (ax.set_xscale, ax.xaxis) if side == "x" else (ax.set_yscale, ax.yaxis)
    if column == "kl":
        set_scale("log")
    else:
        set_scale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0.0)), np.square))
        axis.set_major_locator(FixedLocator(_entropy_ticks(low, high)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    (ax.set_xlim if side == "x" else ax.set_ylim)(low, high)


def _entropy_ticks(low: float, high: float) -> list[float]:
    """Round values far enough apart on a square-root scale."""
    ticks: list[float] = []
    for tick in _ENTROPY_TICKS:
        if low <= tick <= high and (not ticks or tick**0.5 - ticks[-1] ** 0.5 > 0.08 * (high**0.5 - low**0.5)):
            ticks.append(tick)
    return ticks


def _mark_cut(ax: Axes, value: float) -> None:
    low, high = ax.get_xlim()
    if not low < value < high:
        return
    ax.axvline(value, color=CUT, linewidth=1.4, linestyle=(0, (4, 2)))
    at_right = ax.transAxes.inverted().transform(ax.transData.transform((value, 1.0)))[0] > 0.8
    ax.annotate(
        f"{value:.3g} nats",
        (value, 0.97),
        xycoords=("data", "axes fraction"),
        xytext=(-5 if at_right else 5, 0),
        textcoords="offset points",
        va="top",
        ha="right" if at_right else "left",
        fontsize=8,
        color=CUT,
        bbox={"facecolor": PAPER, "edgecolor": "none", "alpha": 0.85, "pad": 1.5},
    )


def joint_figure(found: Distributions, mask: str | None) -> Figure:
    """Entropy against KL: how many targets there are, and which share of them a mask drops."""
    figure, axes = new_figure(10.4, 3.9, 2 if mask is not None else 1)
    rows, columns = _occupied(found.joint.sum(axis=1)), _occupied(found.joint.sum(axis=0))
    step = 1 if found.targets >= _FINE_FROM else 2
    x, y = found.edges("entropy")[::step], found.edges("kl")[::step]
    counts = _coarser(found.joint, step).T.astype(float)
    _mesh(figure, axes[0], x, y, np.where(counts > 0, counts, np.nan), "cividis", norm=LogNorm(1, max(2.0, counts.max())))
    title(axes[0], "Target tokens in each cell", _NAMES["entropy"], _NAMES["kl"])
    if mask is not None:
        dropped = _coarser(found.masks[mask].dropped, step).T
        share = np.divide(dropped, counts, out=np.full(counts.shape, np.nan), where=counts > 0)
        _mesh(figure, axes[1], x, y, share, "YlOrBr", vmin=0.0, vmax=1.0, percent=True)
        title(axes[1], "Share of them that is dropped", _NAMES["entropy"])
    for ax in axes:
        _scale_of(ax, "x", "entropy", *found.edges("entropy")[list(rows)])
        _scale_of(ax, "y", "kl", *found.edges("kl")[list(columns)])
    return figure


def _coarser(counts: np.ndarray, step: int) -> np.ndarray:
    """Bins joined ``step`` by ``step``: few tokens in small cells are hard to read."""
    size = len(counts) // step
    return counts.reshape(size, step, size, step).sum(axis=(1, 3))


def _mesh(
    figure: Figure,
    ax: Axes,
    x: np.ndarray,
    y: np.ndarray,
    values: np.ndarray,
    colours: str,
    percent: bool = False,
    **scale: Any,
) -> None:
    mesh = ax.pcolormesh(x, y, values, cmap=colours, rasterized=True, **scale)
    ax.set_facecolor("#f6f5f2")
    ax.grid(False)
    bar = figure.colorbar(mesh, ax=ax, pad=0.015, aspect=28, format=PercentFormatter(1.0) if percent else None)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=MUTED, labelsize=8, length=2)


def position_figure(found: Distributions, masks: Sequence[str]) -> Figure:
    """Which share of the targets each mask drops: by tenth of the reply, and token by token at its beginning."""
    figure, axes = new_figure(10.4, 3.4, 2)
    for number, mask in enumerate(masks):
        counts = found.masks[mask]
        colour, marker = LINES[number % len(LINES)], MARKERS[number % len(MARKERS)]
        look: dict[str, Any] = {"color": colour, "marker": marker, "linewidth": 1.5, "label": mask}
        tenths, early = _shares(counts.by_tenth), _shares(counts.by_position)
        axes[0].plot(np.arange(10) * 10 + 5, tenths, markersize=4, **look)
        axes[1].plot(np.arange(FIRST_TOKENS) + 1, early, markersize=3, markevery=7, **look)
    title(axes[0], "Share dropped along the reply", "place in the reply (% of its length)", "share of targets")
    title(axes[1], f"Share dropped among the first {FIRST_TOKENS} tokens", "token of the reply")
    percent_axes(axes)
    legend_below(figure, axes[0])
    return figure


def profile_figure(found: Distributions) -> Figure:
    """Entropy and KL of the first tokens of replies: median, and the band from the 10th to the 90th percentile."""
    figure, axes = new_figure(10.4, 3.0, max(1, len(found.columns)))
    for ax, column in zip(axes, found.columns, strict=False):
        low, middle, high = found.quantiles(column, (0.1, 0.5, 0.9)).T
        where = np.arange(FIRST_TOKENS) + 1
        ax.fill_between(where, low, high, color=KEPT, alpha=0.6, linewidth=0, label="10th to 90th percentile")
        ax.plot(where, middle, color=CUT, linewidth=1.6, label="median")
        if column == "kl":
            ax.set_yscale("log")
        title(ax, f"{_SHORT[column]} at the beginning of replies", "token of the reply", "nats")
    legend_below(figure, axes[0])
    return figure


def dropped_tokens_figure(tokens: Sequence[DroppedToken]) -> Figure:
    """The tokens that are dropped most often, beside how often they are targets at all."""
    figure, (ax,) = new_figure(10.4, 0.8 + 0.25 * max(1, len(tokens)))
    places = np.arange(len(tokens))
    ax.barh(places, [t.targets for t in tokens], color="#e4e6ea", height=0.72, label="targets")
    ax.barh(places, [t.dropped for t in tokens], color=DROPPED, height=0.72, label="dropped")
    for place, token in zip(places, tokens, strict=True):
        ax.annotate(f"  {token.dropped / token.targets:.0%}", (token.targets, place), va="center", fontsize=8, color=MUTED)
    ax.set_yticks(places, [printable(t.text) for t in tokens], parse_math=False, fontfamily=list(_fonts()[0]), color=INK)
    ax.invert_yaxis()
    ax.margins(y=0.01)
    ax.grid(True, axis="x", color=GRID, linewidth=0.8)
    ax.grid(False, axis="y")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    title(ax, "Tokens dropped most often, and the share of their occurrences that is", "target tokens")
    if len(tokens):
        ax.legend(loc="lower right", fontsize=8.5, frameon=False, labelcolor=INK)
    return figure


def printable(text: str, longest: int = 24) -> str:
    """A label that the fonts can draw: characters without a glyph become their code point."""
    known = _fonts()[1]
    drawn = "".join(c if ord(c) in known else f"⟨U+{ord(c):04X}⟩" for c in text)
    return drawn if len(drawn) <= longest else drawn[: longest - 1] + "…"


@lru_cache(maxsize=1)
def _fonts() -> tuple[tuple[str, ...], frozenset[int]]:
    """The fonts that are installed, of those that we would use, and all characters that they have."""
    installed = set(font_manager.get_font_names())
    families = tuple(f for f in _FONTS if f in installed)
    characters: set[int] = set()
    for family in families:
        characters.update(font_manager.get_font(font_manager.findfont(family)).get_charmap())
    return families, frozenset(characters)


def percent_axes(axes: Iterable[Axes]) -> None:
    """Shares from 0 up, as percentages, to 5 % at least."""
    for ax in axes:
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        ax.set_ylim(0, max(0.05, ax.get_ylim()[1]))


def _shares(counts: np.ndarray) -> np.ndarray:
    targets, dropped = counts.T
    return np.divide(dropped, targets, out=np.full(len(targets), np.nan), where=targets > 0)


def _occupied(counts: Iterable[int] | np.ndarray) -> tuple[int, int]:
    """Edges around the bins that hold something, with one empty bin on either side."""
    filled = np.flatnonzero(np.asarray(counts))
    size = len(np.asarray(counts))
    return (max(0, int(filled[0]) - 1), min(size, int(filled[-1]) + 2)) if len(filled) else (0, size)
