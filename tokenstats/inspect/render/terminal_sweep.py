"""A sweep as a table of text."""

from tokenstats.errors import one_line
from tokenstats.masking.sweep import Line, Sweep

_LETTERS = "abcdefghijklmnop"  # a rule has at most 16 clauses


def sweep_table(sweep: Sweep) -> str:
    """One line for each rule, then what the columns mean."""
    first = sweep.lines[0]
    clauses = [f"by {letter}" for letter, _ in zip(_LETTERS, first.clauses, strict=False)]
    several = len(clauses) > 1
    head = [*first.values, "dropped", "share", *(clauses if several else []), *(["overlap", "by chance"] if several else [])]
    head += ["as first", "ends lost", "empty rows"]
    rows = [head, *(_cells(line, sweep, several) for line in sweep.lines)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([*table, "", *_legend(sweep, several)])


def _cells(line: Line, sweep: Sweep, several: bool) -> list[str]:
    cells = [*line.values.values(), f"{line.dropped:,}", f"{line.share_dropped:.2%}"]
    if several:
        cells += [_share(dropped, sweep.targets) for _, dropped in line.clauses]
        cells += [f"{line.overlap:.3f}", f"{line.by_chance:.3f}"]
    return [*cells, f"{line.jaccard:.3f}", _share(line.ends_dropped, sweep.ends), f"{line.rows_with_nothing_kept:,}"]


def _legend(sweep: Sweep, several: bool) -> list[str]:
    lines = [f"of {sweep.targets:,} targets in {sweep.rows:,} rows, {sweep.ends:,} of them end a turn"]
    if several:
        lines += [
            f"by {x}: {one_line(text, 200)}, and so on" for x, (text, _) in zip(_LETTERS, sweep.lines[0].clauses, strict=False)
        ]
        lines.append("overlap: dropped by several clauses, of all dropped; by chance: were the clauses independent")
    lines.append("as first: Jaccard of what this line drops and what the first drops; ends lost: end-of-turn tokens dropped")
    return lines


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.2%}" if whole else "-"
