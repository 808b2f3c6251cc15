"""Audits and comparisons as HTML tables, for the report and the app. Everything is escaped."""

from collections.abc import Sequence
from html import escape

from tokenstats.inspect.audit.audit import Audit, Share
from tokenstats.inspect.audit.checks import OK, Finding
from tokenstats.inspect.preview import Outcome
from tokenstats.masking.compare import Comparison
from tokenstats.masking.rule import rule_text

_BAR = 90  # pixels for a share of 1
_NAMES = {"kl": "KL", "nll": "−log p"}


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
    shares = [count / max(1, counts.targets) for _, count in outcome.clauses]
    return [
        ("Dropped", f"{counts.share_dropped:.2%}"),
        ("Learned", f"{counts.kept:,}"),
        *((f"Clause {number}", f"{share:.2%}") for number, share in enumerate(shares, 1)),
        ("Saved by protection", f"{counts.rescued:,}"),
        ("End of turn dropped", f"{counts.ends_dropped:,} of {counts.ends:,}"),
        ("Rows with nothing", f"{counts.rows_with_nothing_kept:,}"),
    ]


def summary_table(plain: Audit, audits: Sequence[Audit]) -> str:
    """One line per mask: what it drops and what it costs."""
    head = ["mask", "rule", "learned", "dropped", "share", "end of turn dropped", "rows with nothing"]
    lines = [_cells("plain SFT", "") + _numbers(plain.kept, 0) + _cells("") + _numbers(0, plain.nothing_kept)]
    for audit in audits:
        name = escape(audit.mask or "")
        lines.append(
            f'<td class="w"><a href="#mask-{name}">{name}</a></td>'
            + f"<td><code>{escape(rule_text(audit.rule or {}))}</code></td>"
            + _numbers(audit.kept, audit.targets - audit.kept)
            + f'<td class="w">{_share(audit.share_dropped)}</td>'
            + _numbers(audit.end_of_turn.dropped, audit.nothing_kept)
        )
    return _table(head, lines, numbers=(2, 3, 5, 6))


def findings_table(findings: Sequence[tuple[str, Finding]]) -> str:
    """(about what, finding): the verdict is a word, not a colour alone."""
    lines = []
    for about, finding in findings:
        rows = f' <span class="ts-quiet">(rows {", ".join(map(str, finding.rows))})</span>' if finding.rows else ""
        verdict = f'<td class="ts-verdict {finding.verdict}">{finding.verdict}</td>'
        lines.append(f"{verdict}{_cells(about)}<td>{escape(finding.message)}{rows}</td>")
    return _table(["verdict", "about", "finding"], lines)


def worth_saying(plain: Audit, audits: Sequence[Audit]) -> list[tuple[str, Finding]]:
    """All checks of the data, and of each mask what is not in order."""
    known = {f.message for f in plain.findings}
    of_masks = [(a.mask or "", f) for a in audits for f in a.findings if f.message not in known and f.verdict != OK]
    return [("data", f) for f in plain.findings] + of_masks


def shares_table(title: str, shares: Sequence[Share], numbered: bool = False) -> str:
    """Targets of several kinds, and how many of each are dropped."""
    lines = []
    for number, share in enumerate(shares, 1):
        label = f"<td><code>{escape(share.label)}</code></td>" if numbered else _cells(share.label)
        cells = _numbers(number) * numbered + label + _numbers(share.dropped, share.targets)
        lines.append(f'{cells}<td class="w">{_share(share.share)}</td>')
    head = [""] * numbered + [title, "dropped", "of targets", "share"]
    return _table(head, lines, numbers=(0, 2, 3) if numbered else (1, 2))


def means_table(audit: Audit) -> str:
    """Mean statistics of what is learned and of what is dropped."""
    lines = []
    for mean in audit.means:
        values = "".join(f'<td class="n">{"–" if x is None else f"{x:.4f}"}</td>' for x in (mean.kept, mean.dropped))
        lines.append(_cells(_NAMES.get(mean.statistic, mean.statistic)) + values)
    return _table(["mean, in nats", "learned", "dropped"], lines, numbers=(1, 2))


def dropped_table(audit: Audit) -> str:
    """The tokens dropped most often."""
    shares = [Share(token.text, token.targets, token.dropped) for token in audit.most_dropped]
    return shares_table("most dropped tokens", shares)


def comparison_table(masks: Sequence[str], found: dict[tuple[str, str], Comparison]) -> str:
    """Jaccard index of what two masks drop; in brackets, what two random masks of these sizes would have."""
    lines = []
    for a in masks:
        line = f"<th>{escape(a)}</th>"
        for b in masks:
            c = found.get((a, b)) or found.get((b, a))
            chance = f' <span class="ts-quiet">({c.by_chance:.2f})</span>' if c else ""
            line += f'<td class="n">{c.jaccard:.2f}{chance}</td>' if c else '<td class="n same">–</td>'
        lines.append(line)
    return _table(["", *masks], lines, numbers=range(1, len(masks) + 1))


def _table(head: Sequence[str], lines: Sequence[str], numbers: Sequence[int] = ()) -> str:
    cells = "".join(f"<th{' class=n' if i in numbers else ''}>{escape(h)}</th>" for i, h in enumerate(head))
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="ts-table"><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>'


def _cells(*texts: str) -> str:
    return "".join(f"<td>{escape(text)}</td>" for text in texts)


def _numbers(*numbers: int) -> str:
    return "".join(f'<td class="n">{number:,}</td>' for number in numbers)


def _share(share: float) -> str:
    return f'{share:.1%}<span class="ts-bar" style="width:{_BAR * share:.0f}px"></span>'
