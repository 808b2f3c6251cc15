"""Blocks on a terminal: for ``rich`` with colours, and as text that no terminal has touched."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import singledispatch

from rich.console import Console, ConsoleOptions, RenderableType
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from tokenstats.errors import one_line
from tokenstats.inspect.render.blocks import Block, Cell, Facts, Line, Look, Note, Numbers, Shares, Table, Words

_STYLES = {
    Look.STRONG: "bold",
    Look.QUIET: "dim",
    Look.OK: "green",
    Look.NOTE: "deep_sky_blue3",
    Look.WARNING: "dark_orange",
    Look.PROBLEM: "bold red",
}
_BAR = 24  # characters for a share of 1
_LONGEST = 10_000  # characters of a text
_WIDE = 1 << 16  # characters: no line of a result is longer


@dataclass(frozen=True)
class OnTerminal:
    """Blocks for ``rich``, one below the other."""

    blocks: Sequence[Block]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """What ``rich`` asks for."""
        for block in self.blocks:
            yield from _drawn(block, "#" if options.ascii_only else "█")


def plain_text(shown: RenderableType) -> str:
    """What ``rich`` would print, without colours, on a terminal as wide as the text."""
    screen = Console(file=io.StringIO(), width=_WIDE, color_system=None, force_terminal=False, legacy_windows=False)
    screen.print(shown)
    assert isinstance(screen.file, io.StringIO)
    return "\n".join(line.rstrip() for line in screen.file.getvalue().rstrip().split("\n"))


@singledispatch
def _drawn(block: Block, bar: str) -> Iterator[RenderableType]:
    raise TypeError(f"no way to draw a {type(block).__name__}")


@_drawn.register
def _line(block: Line, bar: str) -> Iterator[RenderableType]:
    yield Text.assemble((_harmless(block.strong), "bold"), f"  {_harmless(block.text)}" if block.text else "")


@_drawn.register
def _note(block: Note, bar: str) -> Iterator[RenderableType]:
    lines = map(_harmless, block.text.split("\n"))
    yield Text("\n".join(["", *lines]), _STYLES.get(block.look, ""))


@_drawn.register
def _numbers(block: Numbers, bar: str) -> Iterator[RenderableType]:
    pairs = [((_harmless(name), "dim"), " ", (_harmless(value), "bold")) for name, value in block.pairs]
    yield Text("   ").join(Text.assemble(*pair) for pair in pairs)


@_drawn.register
def _facts(block: Facts, bar: str) -> Iterator[RenderableType]:
    yield _grid([[Cell(name, Look.QUIET), Cell(value)] for name, value in block.pairs])


@_drawn.register
def _words(block: Words, bar: str) -> Iterator[RenderableType]:
    words = "   ".join(f"{_harmless(word)}\N{NO-BREAK SPACE}{_harmless(count)}" for word, count in block.pairs)
    yield _title(block.title)
    yield Text(f"  {words or 'nothing'}")


@_drawn.register
def _shares(block: Shares, bar: str) -> Iterator[RenderableType]:
    yield _title(f"dropped, by {block.kind}")
    rows = [
        [Cell(s.label), Cell(f"{s.share:.1%}"), Cell(f"{s.dropped:,} of {s.targets:,}"), Cell("", bar=s.share)]
        for s in block.shares
    ]
    yield Padding(_grid(rows, (1, 2), bar), (0, 0, 0, 2))


@_drawn.register
def _table(block: Table, bar: str) -> Iterator[RenderableType]:
    head = [[Cell(name, Look.QUIET) for name in block.head]] if any(block.head) else []
    grid = _grid([*head, *block.cells], block.numbers, bar)
    if block.title:
        yield _title(block.title)
    yield Padding(grid, (0, 0, 0, 2)) if block.title else grid


def _title(text: str) -> Text:
    return Text(f"\n{_harmless(text)}", style="bold")


def _grid(rows: Sequence[Sequence[Cell]], numbers: Sequence[int] = (), bar: str = "█") -> Grid:
    grid = Grid(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    for column in range(max(map(len, rows), default=0)):
        grid.add_column(justify="right" if column in numbers else "left")
    for row in rows:
        grid.add_row(*(_text(cell, bar) for cell in row))
    return grid


def _text(cell: Cell, bar: str) -> Text:
    parts = [
        (_harmless(cell.text), _STYLES.get(cell.look, "")),
        (_harmless(cell.after), ""),
        (bar * round(_BAR * (cell.bar or 0.0)), "dark_orange"),
    ]
    return Text(" ").join(Text(text, style) for text, style in parts if text)


def _harmless(text: str) -> str:
    return one_line(text, _LONGEST)
