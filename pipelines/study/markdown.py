"""Numbers and tables as docs/STUDY.md has them."""

from collections.abc import Iterable, Sequence

from pipelines.study.statistics import Difference


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def points(share: float) -> str:
    """A difference of shares, in percentage points.

    Many lie halfway between two tenths, and sums in another order would send them now up, now down: so they are rounded twice.
    """
    return f"{round(100 * share, 6):+.1f}"


def interval(difference: Difference) -> str:
    return f"{points(difference.low)} to {points(difference.high)}"
