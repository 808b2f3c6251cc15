"""What is said about sweeps: one line for each rule, then what the columns mean."""

from collections.abc import Iterator

from tokenstats.errors import one_line
from tokenstats.inspect.render.blocks import Block, Note, Table
from tokenstats.masking.sweep import Line, Sweep

_LETTERS = "abcdefghijklmnop"  # a rule has at most 16 clauses


def sweep_blocks(sweep: Sweep) -> Iterator[Block]:
    """The whole sweep."""
    first = sweep.lines[0]
    clauses = [f"by {letter}" for letter, _ in zip(_LETTERS, first.clauses, strict=False)]
    several, weighs = len(clauses) > 1, first.mean_weight is not None
    head = [*first.values, "dropped", "share", *([*clauses, "overlap", "by chance"] if several else [])]
    head += ["as first", "ends lost", "empty rows", *(["mean weight"] if weighs else [])]
    yield Table("", head, [_cells(line, sweep, several) for line in sweep.lines], numbers=range(len(head)))
    yield Note("\n".join(_legend(sweep, several)))


def _cells(line: Line, sweep: Sweep, several: bool) -> list[str]:
    cells = [*line.values.values(), f"{line.dropped:,}", f"{line.share_dropped:.2%}"]
    if several:
        cells += [_share(dropped, sweep.targets) for _, dropped in line.clauses]
        cells += [f"{line.overlap:.3f}", f"{line.by_chance:.3f}"]
    cells += [f"{line.jaccard:.3f}", _share(line.ends_dropped, sweep.ends), f"{line.rows_with_nothing_kept:,}"]
    return cells if line.mean_weight is None else [*cells, f"{line.mean_weight:.4f}"]


def _legend(sweep: Sweep, several: bool) -> Iterator[str]:
    yield f"of {sweep.targets:,} targets in {sweep.rows:,} rows; {sweep.ends:,} targets end a turn"
    if several:
        for letter, (text, _) in zip(_LETTERS, sweep.lines[0].clauses, strict=False):
            yield f"by {letter}: {one_line(text, 200)}, and so on"
        yield "overlap: dropped by several clauses, of what any clause drops; by chance: were the clauses independent"
    if sweep.lines[0].mean_weight is not None:
        yield "mean weight: of what is kept; what else is told is of what is dropped alone"
    yield "as first: Jaccard of what this line drops and what the first drops; ends lost: end-of-turn tokens dropped"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.2%}" if whole else "–"
