"""A sequence in the terminal: in colour for eyes, as plain text for pipes.

Dropped tokens never differ by colour alone: each clause has its own decoration, and its number stands behind the token.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from tokenstats.inspect.render.terminal import plain_text
from tokenstats.inspect.tokens.detokenize import Decoder, visible
from tokenstats.inspect.tokens.sequence import SequenceView, Token

# decoration and colour of the first clauses; the colours differ in lightness and for colour-blind eyes
_DECORATIONS = ("underline", "strike", "reverse", "underline2")
_COLOURS = ("orange3", "deep_sky_blue3", "green4", "gold3")
_SEVERAL = "orchid"
_DIGITS = str.maketrans("0123456789+", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺")
_SHOWN = ("entropy", "kl", "logprob", "rank")
_OPEN, _CLOSE, _CONTEXT_OPEN, _CONTEXT_CLOSE = "\x01", "\x02", "\x03", "\x04"  # cannot stand in escaped text


def headline(view: SequenceView) -> str:
    """One line: which sequence, how many tokens, how many of them are learned."""
    row = f"row {view.number}" + (f" (dataset row {view.row})" if view.row != view.number else "")
    share = f" ({view.kept / view.targets:.1%} of targets)" if view.targets else ""
    cut = ", truncated" if view.truncated else ""
    counts = f"{len(view)} tokens{cut}, {view.targets} targets, {view.kept} kept{share}, {view.dropped} dropped"
    return f"{row}  {view.seq_id}  {counts}"


def origin(view: SequenceView) -> str:
    """One line: which mask and which scoring are shown."""
    mask = f"mask {view.mask}" if view.mask else "no mask: every target is learned"
    return mask + (f", statistics of {view.scoring}" if view.scoring else "") + (f"; {view.caveat}" if view.caveat else "")


def render_sequence(view: SequenceView, details: bool = False) -> RenderableType:
    """A sequence for ``rich``: prompt dim, kept targets plain, dropped ones coloured and underlined or struck.

    Where the console has no colours, or is no terminal, it is the text of :func:`plain_sequence`. With ``details`` a table
    with one line per token follows.
    """
    return _OnTerminal(view, details)


@dataclass(frozen=True)
class _OnTerminal:
    view: SequenceView
    details: bool

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        if console.color_system is None:
            yield Text(plain_sequence(self.view, self.details, ascii_only=False), overflow="fold")
            return
        yield Text(headline(self.view), style="bold")
        yield Text(origin(self.view), style="dim")
        yield from _legend(self.view)
        yield Text("")
        yield self._tokens()
        if self.details:
            yield _table(self.view)

    def _tokens(self) -> Text:
        text = Text(overflow="fold")
        numbered = len(self.view.clauses) > 1
        for piece in self.view.pieces():
            shown = visible(piece.text, newline="↵\n") or "∅"
            if piece.dropped:
                text.append(shown.rstrip("\n"), style_of(piece.clauses))
                text.append(_numbers(piece.clauses).translate(_DIGITS) if numbered else "", "dim")
                text.append("\n" if shown.endswith("\n") else "")
            else:
                quiet = not piece.is_target or not piece.text.strip(" ")
                text.append(shown, "dim" if quiet else "bold green" if piece.protected else "")
        return text


def style_of(clauses: Sequence[int]) -> Style:
    """How a token dropped by these clauses looks."""
    decorations = {_DECORATIONS[min(c, len(_DECORATIONS) - 1)]: True for c in clauses} or {"strike": True}
    colour = _SEVERAL if len(clauses) > 1 else _COLOURS[min(clauses[0], len(_COLOURS) - 1)] if clauses else "red"
    return Style(color=colour, **decorations)  # type: ignore[arg-type]


def _legend(view: SequenceView) -> Iterator[Text]:
    protected = ("   never dropped", "bold green") if view.protected.any() else ""
    yield Text.assemble(("context", "dim"), "   learned", protected)
    for number, (clause, count) in enumerate(view.dropped_by_clause):
        yield Text.assemble((f" {number + 1} ", style_of([number])), f" {clause}", (f"  {count} dropped", "dim"))
    if several := view.dropped_by_several:
        yield Text.assemble((" + ", style_of([0, 1])), " several clauses", (f"  {several} dropped", "dim"))


def _table(view: SequenceView, ascii_only: bool = False) -> Table:
    names = [s for s in _SHOWN if s in view.statistics]
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for name in ("index", "token", "role", *names, "decision"):
        table.add_column(name, justify="right" if name in ("index", *names) else "left", no_wrap=True)
    for index in range(len(view)):
        token = view.token(index)
        shown = _one_token(token.id, view.decoder) if ascii_only else view.decoder.visible(token.id)
        numbers = [_number(token.statistics.get(name)) for name in names]
        cells = [Text(cell) for cell in (str(token.index), shown, token.role, *numbers, decision(token))]
        cells[1].stylize(style_of(token.clauses) if token.dropped else "")
        table.add_row(*cells, style="dim" if not token.is_target else "")
    return table


def decision(token: Token) -> str:
    """In words: what becomes of a token."""
    if not token.is_target:
        return "context"
    if token.dropped:
        return f"dropped by {_numbers(token.clauses) or 'the rule'}"
    return "kept, protected" if token.protected else "kept"


def _numbers(clauses: Sequence[int]) -> str:
    return "+".join(str(c + 1) for c in clauses)


def _number(value: float | int | None) -> str:
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def plain_sequence(view: SequenceView, details: bool = False, ascii_only: bool = True) -> str:
    r"""A sequence as plain text, to search, compare and pipe. No terminal escapes.

    ``{{…}}`` is context (not learned), ``[[2:…]]`` was dropped by the rule's second clause, ``[[1+2:…]]`` by both; all
    else is learned. A line ends after a written ``\n``. Brackets of the text itself that could be mistaken for these
    get a backslash between them.

    Args:
        view: The sequence.
        details: Add a table with one line per token.
        ascii_only: Escape letters of other scripts too; False leaves them as they are.
    """
    lines = [headline(view), origin(view), "marks: {{context}} learned" + " [[clause:dropped]]" * bool(view.mask)]
    lines += [f"  {n + 1}: {clause}" for n, clause in enumerate(view.clauses)]
    body = ""
    inside = False
    for piece in view.pieces():
        if inside == piece.is_target:  # a stretch of context begins or ends here
            body += _CONTEXT_CLOSE if inside else _CONTEXT_OPEN
            inside = not inside
        shown = _escaped(piece.text, ascii_only) or "<>"
        body += f"{_OPEN}{_numbers(piece.clauses)}:{shown}{_CLOSE}" if piece.dropped else shown
    body += _CONTEXT_CLOSE if inside else ""
    lines += ["", _with_marks(body)]
    if details:
        lines += ["", plain_text(_table(view, ascii_only))]
    return "\n".join(line.rstrip() for line in "\n".join(lines).split("\n")) + "\n"


def _with_marks(body: str) -> str:
    """Put the marks in; brackets of the text that could be taken for one, or lengthen one, get a backslash behind them."""
    for mark in ("[[", "]]", "{{", "}}"):
        while mark in body:
            body = body.replace(mark, f"{mark[0]}\\{mark[1]}")
    for sentinel, mark in ((_OPEN, "[["), (_CLOSE, "]]"), (_CONTEXT_OPEN, "{{"), (_CONTEXT_CLOSE, "}}")):
        body = body.replace(f"{mark[0]}{sentinel}", f"{mark[0]}\\{sentinel}").replace(sentinel, mark)
    return body


def _escaped(text: str, ascii_only: bool) -> str:
    if not ascii_only:
        return "".join("\\n\n" if c == "\n" else visible(c) if c != " " else c for c in text)
    return "".join("\\n\n" if c == "\n" else c if " " <= c <= "~" else c.encode("unicode_escape").decode() for c in text)


def _one_token(token_id: int, decoder: Decoder) -> str:
    """A token in quotes, which show where its spaces are; half a character as its bytes."""
    shown = decoder.visible(token_id)
    is_bytes = shown.startswith("⟨") and shown[1:-1].isascii()
    return f"<{shown[1:-1]}>" if is_bytes else ascii(decoder.token(token_id))
