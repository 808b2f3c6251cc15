"""What is said about a result, as a list of blocks: facts, numbers, shares, tables.

How blocks look is said elsewhere: in ``terminal.py`` for terminals, in ``templates/blocks.html`` for pages and notebooks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from tokenstats.inspect.audit.audit import Share

NAMES = {"entropy": "entropy", "kl": "KL", "logprob": "log p", "nll": "−log p"}
"""How statistics are called where people read of them."""


class Look(StrEnum):
    """How a cell stands out. The last four are the verdicts of an audit: they are words as well as colours."""

    PLAIN = "plain"
    STRONG = "strong"
    QUIET = "quiet"
    CODE = "code"
    HEAD = "head"
    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: What it says.
        look: How it stands out.
        after: What is said behind it, quietly.
        bar: Length of a bar behind it, 0 to 1; None for none.
        link: The section of the page that it leads to; "" for none.
    """

    text: str
    look: Look = Look.PLAIN
    after: str = ""
    bar: float | None = None
    link: str = ""


@dataclass(frozen=True)
class Line:
    """A line of text; ``strong`` is its beginning."""

    strong: str
    text: str = ""


@dataclass(frozen=True)
class Note:
    """A remark, said quietly, or as ``code``."""

    text: str
    look: Look = Look.QUIET


@dataclass(frozen=True)
class Numbers:
    """Numbers beside each other, each with its name."""

    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Facts:
    """Facts below each other, each with its name."""

    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Words:
    """Tokens beside each other, each with how often it occurs."""

    title: str
    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Shares:
    """Targets of several kinds, and how many of each are dropped.

    Attributes:
        kind: What the kinds are.
        shares: One for each.
        numbered: The kinds are clauses of a rule, counted from 1.
    """

    kind: str
    shares: Sequence[Share]
    numbered: bool = False


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: What it is about; "" where its place says so.
        head: Names of the columns; none of an unnamed table.
        rows: Texts or cells, as many as there are columns.
        numbers: Columns that are set to the right.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    numbers: Sequence[int] = ()

    @property
    def cells(self) -> list[list[Cell]]:
        """The rows, with cells only."""
        return [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in self.rows]


Block = Line | Note | Numbers | Facts | Words | Shares | Table


def share_of(part: int, whole: int) -> float:
    """Part of a whole; 0 of nothing."""
    return part / whole if whole else 0.0
