"""A sweep as a picture."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tokenstats.errors import InputError, one_line
from tokenstats.inspect.render.blocks import share_of
from tokenstats.inspect.render.figures import INK, LINES, MARKERS, legend_below, new_figure, percent_axes, title
from tokenstats.masking.sweep import Line, Sweep

PICTURES = (".png", ".svg", ".pdf")


def check_picture(path: Path) -> Path:
    """A path that a figure can be written to. Raises InputError where its ending names no format, or its folder is missing."""
    if path.suffix.lower() not in PICTURES:
        raise InputError(f"the plot got {one_line(path, 100)}; expected a file that ends in {', '.join(PICTURES)}")
    if not path.parent.is_dir():
        raise InputError(
            f"the plot got {one_line(path, 100)}, but there is no folder {one_line(path.parent, 100)}; make it first"
        )
    return path


def plot_sweep(sweep: Sweep, path: Path) -> None:
    """Draw a sweep into a file. Raises InputError as :func:`check_picture` does."""
    sweep_figure(sweep).savefig(check_picture(path))


def sweep_figure(sweep: Sweep) -> Figure:
    """Against the numbers of the name that changes fastest: what is dropped, and what comes of it.

    Where several names are varied, each combination of the others is a line of its own.
    """
    *others, name = sweep.lines[0].values
    series: dict[str, list[Line]] = {}
    for line in sweep.lines:
        series.setdefault(", ".join(f"{other} = {line.values[other]}" for other in others), []).append(line)
    figure, (left, right) = new_figure(10.4, 3.9, 2)
    if others:
        for number, (label, lines) in enumerate(series.items()):
            _draw(left, lines, [line.share_dropped for line in lines], label, number)
            _draw(right, lines, [share_of(line.ends_dropped, sweep.ends) for line in lines], label, number)
    else:
        _draw_all(left, right, sweep)
    title(left, "Share of targets dropped", name, "share")
    title(right, "Share of end-of-turn tokens dropped" if others else "Overlap of the clauses, and what is lost", name)
    percent_axes((left, right))
    legend_below(figure, *((left,) if others else (left, right)))
    return figure


def _draw_all(left: Axes, right: Axes, sweep: Sweep) -> None:
    """The only name's lines: of each clause too, and everything else that a line says."""
    lines, clauses = sweep.lines, sweep.lines[0].clauses
    _draw(left, lines, [line.share_dropped for line in lines], "dropped")
    if len(clauses) > 1:
        for i, (text, _) in enumerate(clauses):
            _draw(left, lines, [share_of(line.clauses[i][1], sweep.targets) for line in lines], f"by {one_line(text, 40)} …", i)
        _draw(right, lines, [line.overlap for line in lines], "overlap of clauses", 3)
        _draw(right, lines, [line.by_chance for line in lines], "overlap by chance", 5)
    _draw(right, lines, [share_of(line.ends_dropped, sweep.ends) for line in lines], "end-of-turn tokens dropped", 4)
    _draw(right, lines, [share_of(line.rows_with_nothing_kept, sweep.rows) for line in lines], "rows that keep nothing", 7)


def _draw(ax: Axes, lines: Sequence[Line], values: Sequence[float], label: str, look: int = -1) -> None:
    x = [float(list(line.values.values())[-1]) for line in lines]
    colour, marker = (INK, "o") if look < 0 else (LINES[look % len(LINES)], MARKERS[look % len(MARKERS)])
    ax.plot(x, values, color=colour, marker=marker, markersize=4, linewidth=1.5, label=label)
