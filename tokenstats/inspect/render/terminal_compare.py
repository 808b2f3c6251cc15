"""A comparison on the terminal."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenstats.errors import one_line
from tokenstats.inspect.render.terminal_audit import plain_table
from tokenstats.inspect.tokens.detokenize import Decoder
from tokenstats.masking.compare import Compared, Comparison
from tokenstats.store import Store

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.text import Text


def render_comparison(found: Comparison, store: Store) -> "RenderableType":
    """The comparison for ``rich``: what was read, the 2 × 2 table, the overlap, and where the two differ."""
    return _OnTerminal(found, Decoder(store))


@dataclass
class _OnTerminal:
    found: Comparison
    decoder: Decoder

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "Iterator[RenderableType]":
        from rich.text import Text

        found, bar = self.found, "#" if options.ascii_only else "█"
        yield _side("A", found.a)
        yield _side("B", found.b)
        yield Text(f"\n{found.targets:,} targets", style="bold")
        yield _counts(found)
        yield from _overlap(found)
        if found.rows:
            yield Text(f"\nJaccard index of {found.rows:,} rows", style="bold")
            yield _rows(found, bar)
        for name, other, side in (("A", "B", found.a), ("B", "A", found.b)):
            if side.clauses:
                yield Text(f"\nclauses of {name}", style="bold")
                yield _clauses(side, other)
        if found.drift:
            yield Text(f"\nstatistics, {found.drift[0].scoring_a} to {found.drift[0].scoring_b}", style="bold")
            yield _drift(found)
        for name, tokens in (("A", found.only_a), ("B", found.only_b)):
            words = "   ".join(f"{self.decoder.visible(token)}\N{NO-BREAK SPACE}{count:,}" for token, count in tokens)
            yield Text.assemble((f"\nmost often dropped by {name} only\n", "bold"), f"  {words or 'nothing'}")


def _side(letter: str, side: Compared) -> "Text":
    from rich.text import Text

    read = f", statistics of {' and '.join(side.scorings)}" if side.scorings else ""
    return Text.assemble((f"{letter}  {one_line(side.name)}", "bold"), f"  {side.kind}{read}: {side.rule}")


def _counts(found: Comparison) -> "RenderableType":
    from rich.text import Text

    table = plain_table("left", "right", "right")
    table.add_row("", Text("B drops", "dim"), Text("B keeps", "dim"))
    table.add_row("  A drops", f"{found.both_dropped:,}", f"{found.only_a_dropped:,}")
    table.add_row("  A keeps", f"{found.only_b_dropped:,}", f"{found.both_kept:,}")
    return table


def _overlap(found: Comparison) -> "Iterator[RenderableType]":
    from rich.text import Text

    table = plain_table("left", "right", "left")
    table.add_row("  Jaccard index of what is dropped", Text(f"{found.jaccard:.3f}", "bold"), "")
    table.add_row("  by chance", f"{found.by_chance:.3f}", Text("two random masks of these sizes", "dim"))
    table.add_row("  by chance, in rows", f"{found.by_chance_in_rows:.3f}", Text("of these sizes in each row", "dim"))
    for one, two, side in (("A", "B", found.a), ("B", "A", found.b)):
        share = found.both_dropped / side.dropped if side.dropped else 0.0
        table.add_row(f"  of what {one} drops, {two} drops", f"{share:.1%}", "")
    for name, side in (("A", found.a), ("B", found.b)):
        table.add_row(f"  end-of-turn tokens {name} drops", f"{side.end_of_turn_dropped:,}", f"of {found.end_of_turn:,}")
    yield Text("")
    yield table


def _rows(found: Comparison, bar: str) -> "RenderableType":
    from rich.text import Text

    table = plain_table("left", "right", "left")
    most = max(found.row_tenths)
    for tenth, count in enumerate(found.row_tenths):
        table.add_row(
            f"  {tenth / 10:.1f} to {(tenth + 1) / 10:.1f}", f"{count:,}", Text(bar * round(24 * count / most), "cyan")
        )
    low, middle, high = found.per_row
    table.add_row("", "", Text(f"10th, 50th and 90th percentile: {low:.3f}, {middle:.3f}, {high:.3f}", "dim"))
    return table


def _clauses(side: Compared, other: str) -> "RenderableType":
    from rich.text import Text

    table = plain_table("right", "right", "left")
    table.add_row(Text("dropped", "dim"), Text(f"by {other} too", "dim"), "")
    for clause in side.clauses:
        share = clause.dropped_by_other / clause.dropped if clause.dropped else 0.0
        table.add_row(f"  {clause.dropped:,}", f"{share:.1%}", one_line(clause.text))
    return table


def _drift(found: Comparison) -> "RenderableType":
    from rich.text import Text

    table = plain_table("left", "right", "right", "right", "right")
    heads = ("mean A", "mean B", "mean |change|", "correlation")
    table.add_row("  nats", *(Text(head, "dim") for head in heads))
    for drift in found.drift:
        correlation = "-" if drift.correlation is None else f"{drift.correlation:.3f}"
        means = (f"{x:.4f}" for x in (drift.mean_a, drift.mean_b, drift.mean_absolute_change))
        table.add_row(f"  {drift.statistic}", *means, correlation)
    return table
