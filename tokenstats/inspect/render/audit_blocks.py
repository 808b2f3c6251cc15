"""What is said about audits: their numbers, where tokens are dropped, every check with its verdict in words."""

from collections.abc import Iterator, Sequence

from tokenstats.inspect.audit.audit import Audit, Share
from tokenstats.inspect.audit.checks import OK, Finding
from tokenstats.inspect.preview import Outcome
from tokenstats.inspect.render.blocks import NAMES, Block, Cell, Line, Look, Numbers, Shares, Table, Words, share_of
from tokenstats.masking.rule import rule_text
from tokenstats.store.manifests import MaskManifest

_WORDS = 10


def audit_blocks(audit: Audit) -> Iterator[Block]:
    """The whole audit."""
    yield Line(audit.store, _subject(audit))
    yield Numbers(
        [
            *((name, f"{getattr(audit, name):,}") for name in ("sequences", "tokens", "targets")),
            ("learned", f"{audit.kept:,}"),
            ("dropped", f"{audit.targets - audit.kept:,} ({audit.share_dropped:.1%})"),
        ]
    )
    if audit.mask is not None:
        places = [s for s in (audit.first_token, audit.last_token, audit.end_of_turn) if s.targets]
        yield from (shares for shares in shares_of(audit, places) if shares.shares)
        most = [(token.text, f"{token.dropped:,}/{token.targets:,}") for token in audit.most_dropped[:_WORDS]]
        yield Words("most often dropped", most)
    if audit.means:
        yield means_table(audit, title="means, in nats")
    yield findings_table([(finding.name, finding) for finding in audit.findings], title="checks")


def shares_of(audit: Audit, places: Sequence[Share] = ()) -> list[Shares]:
    """Where tokens are dropped; roles and turns where there are several."""
    several = [shares if len(shares) > 1 else () for shares in (audit.by_role, audit.by_turn)]
    return [
        Shares("clause", audit.by_clause, numbered=True),
        Shares("role", several[0]),
        Shares("turn", several[1]),
        Shares("tenth of the reply", [*audit.by_position, *places]),
        Shares("class of token", audit.by_class),
    ]


def audit_numbers(audit: Audit) -> list[tuple[str, str]]:
    """The audit's main numbers, each with its name."""
    ends = audit.end_of_turn
    return [
        ("Dropped", f"{audit.share_dropped:.2%}"),
        ("Learned", f"{audit.kept:,}"),
        ("End of turn dropped", f"{ends.dropped:,} of {ends.targets:,}"),
        ("Rows with nothing", f"{audit.nothing_kept:,}"),
    ]


def outcome_numbers(outcome: Outcome) -> list[tuple[str, str]]:
    """The same of a rule that is tried, with each clause's share and what protection saved."""
    counts = outcome.counts
    weight = []
    if outcome.rule.weighting is not None:
        weight = [("Mean weight", f"{float(counts.weight.value) / max(1, counts.kept):.4f}")]
    return [
        ("Dropped", f"{counts.share_dropped:.2%}"),
        ("Learned", f"{counts.kept:,}"),
        *weight,
        *((f"Clause {n}", f"{share_of(count, counts.targets):.2%}") for n, (_, count) in enumerate(outcome.clauses, 1)),
        ("Saved by protection", f"{counts.rescued:,}"),
        ("End of turn dropped", f"{counts.ends_dropped:,} of {counts.ends:,}"),
        ("Rows with nothing", f"{counts.rows_with_nothing_kept:,}"),
    ]


def mask_numbers(mask: MaskManifest) -> list[tuple[str, str]]:
    """The same of a stored mask, from its manifest alone."""
    weight = [] if mask.weight_total is None else [("Mean weight", f"{mask.weight_total / max(1, mask.kept):.4f}")]
    return [
        ("Dropped", f"{share_of(mask.dropped, mask.targets):.2%}"),
        ("Learned", f"{mask.kept:,}"),
        *weight,
        *((f"Clause {n}", f"{share_of(c.dropped, mask.targets):.2%}") for n, c in enumerate(mask.clauses, 1)),
        ("Saved by protection", f"{mask.protected:,}"),
        ("Rows with nothing", f"{mask.rows_with_nothing_kept:,}"),
    ]


def summary_table(plain: Audit, audits: Sequence[Audit]) -> Table:
    """One line per mask: what it drops and what it costs."""
    head = ["mask", "rule", "learned", "dropped", "share", "end of turn dropped", "rows with nothing"]
    rows: list[list[str | Cell]] = [["plain SFT", "", f"{plain.kept:,}", "0", "", "0", f"{plain.nothing_kept:,}"]]
    rows += [
        [
            Cell(audit.mask or "", link=f"mask-{audit.mask}"),
            Cell(rule_text(audit.rule or {}), Look.CODE),
            f"{audit.kept:,}",
            f"{audit.targets - audit.kept:,}",
            Cell(f"{audit.share_dropped:.1%}", bar=audit.share_dropped),
            f"{audit.end_of_turn.dropped:,}",
            f"{audit.nothing_kept:,}",
        ]
        for audit in audits
    ]
    return Table("", head, rows, numbers=(2, 3, 5, 6))


def findings_table(findings: Sequence[tuple[str, Finding]], title: str = "") -> Table:
    """Findings, each with what it is about. The verdict is a word, not a colour alone. With a title there is no head."""
    rows = [
        [
            Cell(finding.verdict, Look(finding.verdict)),
            Cell(about, Look.QUIET if title else Look.PLAIN),
            Cell(finding.message, after=f"(rows {', '.join(map(str, finding.rows))})" if finding.rows else ""),
        ]
        for about, finding in findings
    ]
    return Table(title, () if title else ("verdict", "about", "finding"), rows)


def worth_saying(plain: Audit, audits: Sequence[Audit]) -> list[tuple[str, Finding]]:
    """All checks of the data, and of each mask what is not in order."""
    known = {f.message for f in plain.findings}
    of_masks = [(a.mask or "", f) for a in audits for f in a.findings if f.message not in known and f.verdict != OK]
    return [("data", f) for f in plain.findings] + of_masks


def means_table(audit: Audit, title: str = "") -> Table:
    """Mean statistics of what is learned and of what is dropped. Without a title the head says what they are."""
    rows = [
        [NAMES[mean.statistic], *("–" if x is None else f"{x:.4f}" for x in (mean.kept, mean.dropped))] for mean in audit.means
    ]
    return Table(title, ("" if title else "mean, in nats", "learned", "dropped"), rows, numbers=(1, 2))


def dropped_shares(audit: Audit) -> Shares:
    """The tokens dropped most often."""
    return Shares("most dropped tokens", [Share(token.text, token.targets, token.dropped) for token in audit.most_dropped])


def _subject(audit: Audit) -> str:
    subject = f"mask {audit.mask}: {rule_text(audit.rule or {})}" if audit.mask is not None else "no mask: plain SFT"
    return subject + (f", statistics of {audit.scoring}" if audit.scoring else "")
