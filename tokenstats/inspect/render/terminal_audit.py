"""An audit on the terminal."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenstats.errors import one_line
from tokenstats.inspect.audit.audit import Audit, Share
from tokenstats.masking.rule import rule_text

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table

_STYLES = {"ok": "green", "note": "deep_sky_blue3", "warning": "dark_orange", "problem": "bold red"}
_BAR = 24  # characters
_WORDS = 10


def render_audit(audit: Audit) -> "RenderableType":
    """The audit for ``rich``: numbers, where tokens are dropped, and every check with its verdict in words."""
    return _OnTerminal(audit)


@dataclass
class _OnTerminal:
    audit: Audit

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "Iterator[RenderableType]":
        from rich.text import Text

        audit, bar = self.audit, "#" if options.ascii_only else "█"
        yield Text.assemble((one_line(audit.store), "bold"), f"  {_subject(audit)}")
        yield _numbers(audit)
        if audit.mask is not None:
            places = [s for s in (audit.first_token, audit.last_token, audit.end_of_turn) if s.targets]
            yield from _shares("dropped, by clause", audit.by_clause, bar)
            yield from _shares("dropped, by role", _of_several(audit.by_role), bar)
            yield from _shares("dropped, by turn", _of_several(audit.by_turn), bar)
            yield from _shares("dropped, by tenth of the reply", [*audit.by_position, *places], bar)
            yield from _shares("dropped, by class of token", audit.by_class, bar)
            words = "   ".join(f"{t.text}\N{NO-BREAK SPACE}{t.dropped:,}/{t.targets:,}" for t in audit.most_dropped[:_WORDS])
            yield Text.assemble(("\nmost often dropped\n", "bold"), f"  {words or 'nothing'}")
        if audit.means:
            yield _means(audit)
        yield Text("\nchecks", style="bold")
        yield _checks(audit)


def _of_several(shares: Sequence[Share]) -> Sequence[Share]:
    return shares if len(shares) > 1 else ()


def _subject(audit: Audit) -> str:
    subject = f"mask {audit.mask}: {rule_text(audit.rule or {})}" if audit.mask is not None else "no mask: plain SFT"
    return subject + (f", statistics of {audit.scoring}" if audit.scoring else "")


def _numbers(audit: Audit) -> "RenderableType":
    from rich.text import Text

    dropped = audit.targets - audit.kept
    numbers = [
        ("sequences", f"{audit.sequences:,}"),
        ("tokens", f"{audit.tokens:,}"),
        ("targets", f"{audit.targets:,}"),
        ("learned", f"{audit.kept:,}"),
        ("dropped", f"{dropped:,} ({audit.share_dropped:.1%})"),
    ]
    return Text("   ").join(Text.assemble((f"{name} ", "dim"), (value, "bold")) for name, value in numbers)


def plain_table(*justify: str) -> "Table":
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    for side in justify:
        table.add_column(justify=side)  # type: ignore[arg-type]
    return table


def _shares(title: str, shares: Sequence[Share], bar: str) -> "Iterator[RenderableType]":
    from rich.text import Text

    if not shares:
        return
    yield Text(f"\n{title}", style="bold")
    table = plain_table("left", "right", "right", "left")
    for share in shares:
        length = round(_BAR * share.share)
        count = f"{share.dropped:,} of {share.targets:,}"
        table.add_row(Text(f"  {share.label}"), f"{share.share:.1%}", count, Text(bar * length, "dark_orange"))
    yield table


def _means(audit: Audit) -> "RenderableType":
    from rich.console import Group
    from rich.text import Text

    table = plain_table("left", "right", "right")
    table.add_row("", Text("learned", "dim"), Text("dropped", "dim"))
    for mean in audit.means:
        name = {"kl": "KL", "nll": "-log p"}.get(mean.statistic, mean.statistic)
        table.add_row(f"  {name}", *("-" if x is None else f"{x:.4f}" for x in (mean.kept, mean.dropped)))
    return Group(Text("\nmeans, in nats", style="bold"), table)


def _checks(audit: Audit) -> "RenderableType":
    from rich.text import Text

    table = plain_table("left", "left", "left")
    for finding in audit.findings:
        rows = f" (rows {', '.join(map(str, finding.rows))})" if finding.rows else ""
        verdict = Text(f"  {finding.verdict}", _STYLES[finding.verdict])
        table.add_row(verdict, Text(finding.name, "dim"), Text(one_line(finding.message, 2000) + rows))
    return table
