"""What is said about comparisons: what was read, the 2 × 2 table, the overlap, and where two masks differ."""

from collections.abc import Iterator, Mapping, Sequence

from tokenstats.inspect.render.blocks import NAMES, Block, Cell, Line, Look, Table, Words, share_of
from tokenstats.inspect.tokens.detokenize import Decoder
from tokenstats.masking.compare import Compared, Comparison
from tokenstats.masking.drift import Paired

_PAIRED = ("mean A", "mean B", "mean |B − A|", "correlation")


def comparison_blocks(found: Comparison) -> Iterator[Block]:
    """The whole comparison. Raises StoreError where the store's tokenizer is missing."""
    sides = (("A", "B", found.a), ("B", "A", found.b))
    for name, _, side in sides:
        read = f", statistics of {' and '.join(side.scorings)}" if side.scorings else ""
        yield Line(f"{name}  {side.name}", f"{side.kind}{read}: {side.rule}")
    counts = [
        ("A drops", f"{found.both_dropped:,}", f"{found.only_a_dropped:,}"),
        ("A keeps", f"{found.only_b_dropped:,}", f"{found.both_kept:,}"),
    ]
    yield Table(f"{found.targets:,} targets", ("", "B drops", "B keeps"), counts, numbers=(1, 2))
    yield Table("overlap", (), list(_overlap(found)), numbers=(1,))
    if found.rows:
        yield Table(f"Jaccard index of {found.rows:,} rows", (), list(_rows(found)), numbers=(1,))
    for name, other, side in sides:
        if side.clauses:
            yield _clauses(f"clauses of {name}", other, side)
    if found.weights:
        title = f"weights of the {found.both_kept:,} tokens that both keep"
        yield Table(title, ("", *_PAIRED), [["weight", *_paired(found.weights)]], numbers=(1, 2, 3, 4))
    if found.drift:
        yield _drift(found)
    decoder = Decoder(found.store)
    for name, tokens in (("A", found.only_a), ("B", found.only_b)):
        yield Words(f"most often dropped by {name} only", [(decoder.visible(token), f"{count:,}") for token, count in tokens])


def jaccard_table(masks: Sequence[str], found: Mapping[tuple[str, str], Comparison]) -> Table:
    """Jaccard index of what two masks drop; in brackets, what two random masks of these sizes would have."""
    rows = []
    for a in masks:
        pairs = [found.get((a, b)) or found.get((b, a)) for b in masks]
        cells = [Cell(f"{c.jaccard:.2f}", after=f"({c.by_chance:.2f})") if c else Cell("–", Look.QUIET) for c in pairs]
        rows.append([Cell(a, Look.HEAD), *cells])
    return Table("", ["", *masks], rows, numbers=range(1, len(masks) + 1))


def _overlap(found: Comparison) -> Iterator[list[str | Cell]]:
    yield ["Jaccard index of what is dropped", Cell(f"{found.jaccard:.3f}", Look.STRONG), ""]
    yield ["by chance", f"{found.by_chance:.3f}", Cell("two random masks of these sizes", Look.QUIET)]
    yield ["by chance, in rows", f"{found.by_chance_in_rows:.3f}", Cell("of these sizes in each row", Look.QUIET)]
    for one, two, side in (("A", "B", found.a), ("B", "A", found.b)):
        yield [f"of what {one} drops, {two} drops", f"{share_of(found.both_dropped, side.dropped):.1%}", ""]
    for name, side in (("A", found.a), ("B", found.b)):
        yield [f"end-of-turn tokens {name} drops", f"{side.end_of_turn_dropped:,}", f"of {found.end_of_turn:,}"]


def _rows(found: Comparison) -> Iterator[list[str | Cell]]:
    most = max(found.row_tenths)
    for tenth, count in enumerate(found.row_tenths):
        yield [f"{tenth / 10:.1f} to {(tenth + 1) / 10:.1f}", f"{count:,}", Cell("", bar=share_of(count, most))]
    low, middle, high = found.per_row
    yield ["", "", Cell(f"10th, 50th and 90th percentile: {low:.3f}, {middle:.3f}, {high:.3f}", Look.QUIET)]


def _clauses(title: str, other: str, side: Compared) -> Table:
    rows = [(f"{c.dropped:,}", f"{share_of(c.dropped_by_other, c.dropped):.1%}", Cell(c.text, Look.CODE)) for c in side.clauses]
    return Table(title, ("dropped", f"by {other} too", ""), rows, numbers=(0, 1))


def _drift(found: Comparison) -> Table:
    rows = [[NAMES[drift.statistic], *_paired(drift)] for drift in found.drift]
    title = f"statistics, {found.drift[0].scoring_a} to {found.drift[0].scoring_b}"
    return Table(title, ("nats", *_PAIRED), rows, numbers=(1, 2, 3, 4))


def _paired(found: Paired) -> list[str]:
    means = [f"{x:.4f}" for x in (found.mean_a, found.mean_b, found.mean_absolute_change)]
    return [*means, "–" if found.correlation is None else f"{found.correlation:.3f}"]
