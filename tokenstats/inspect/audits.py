"""What will be learned from a store, and what looks wrong with it.

    audit(store).to_dict()                # plain SFT
    audit(store, mask="eksft").to_dict()  # under a mask

Reads part by part: memory does not grow with the dataset.
"""

from dataclasses import asdict, dataclass
from typing import Any

from tokenstats.inspect.findings import Finding, judge_facts
from tokenstats.inspect.sequences import choose_scoring
from tokenstats.inspect.spans import Decoder
from tokenstats.inspect.tally import MEANS_OF, Tally, tally
from tokenstats.schema import ROLES
from tokenstats.store import Store

_MOST_DROPPED = 20


@dataclass(frozen=True)
class Share:
    """How many targets of a kind there are, and how many of them are dropped."""

    label: str
    targets: int
    dropped: int

    @property
    def share(self) -> float:
        return self.dropped / self.targets if self.targets else 0.0


@dataclass(frozen=True)
class DroppedToken:
    """A word of the vocabulary: how often it is a target, and how often dropped."""

    token_id: int
    text: str
    targets: int
    dropped: int


@dataclass(frozen=True)
class LeftOut:
    """Dataset rows that never became sequences, and why."""

    reason: str
    rows: int
    first_row: int


@dataclass(frozen=True)
class Means:
    """Mean of a statistic (nats) over the targets kept and over those dropped; None where there are none."""

    statistic: str
    kept: float | None
    dropped: float | None


@dataclass(frozen=True)
class Audit:
    """What :func:`audit` found.

    store, mask, rule, scoring: what was looked at; mask and rule are None for plain SFT
    sequences, tokens, targets, kept: counts; share_dropped = 1 - kept / targets
    dataset_rows, left_out: rows of the dataset, and those that never became sequences
    targets_found_by:  how targets were found in the text
    truncated:         sequences cut at the store's maximal length
    replies, unended:  stretches of targets, and those (not truncated) that do not end with an end-of-turn token
    end_of_turn:       end-of-turn tokens among the targets
    doubled_bos:       sequences that begin with two BOS tokens
    nothing_kept:      sequences without any token to learn
    by_role, by_clause, by_position: targets and dropped; a token that two clauses dropped counts in both; positions are
                       tenths of the reply
    means:             of entropy, KL and −log p over kept and dropped targets, where a scoring was read
    most_dropped:      the tokens dropped most often
    findings:          checks, each with a verdict: ok, warning or problem
    """

    store: str
    mask: str | None
    rule: dict[str, str | int] | None
    scoring: str | None
    sequences: int
    tokens: int
    targets: int
    kept: int
    dataset_rows: int
    left_out: tuple[LeftOut, ...]
    targets_found_by: str
    truncated: int
    replies: int
    unended: int
    end_of_turn: Share
    doubled_bos: int
    nothing_kept: int
    by_role: tuple[Share, ...]
    by_clause: tuple[Share, ...]
    by_position: tuple[Share, ...]
    means: tuple[Means, ...]
    most_dropped: tuple[DroppedToken, ...]
    findings: tuple[Finding, ...]

    @property
    def share_dropped(self) -> float:
        return 1.0 - self.kept / self.targets if self.targets else 0.0

    @property
    def verdict(self) -> str:
        """The gravest of the findings' verdicts."""
        found = {f.verdict for f in self.findings}
        return "problem" if "problem" in found else "warning" if "warning" in found else "ok"

    def to_dict(self) -> dict[str, Any]:
        """Plain values under the names of the fields, with ``share_dropped`` and ``verdict``; for JSON."""
        plain = asdict(self)
        for name in ("by_role", "by_clause", "by_position"):
            plain[name] = [_with_share(s) for s in getattr(self, name)]
        plain["end_of_turn"] = _with_share(self.end_of_turn)
        return {**plain, "share_dropped": self.share_dropped, "verdict": self.verdict}


def audit(store: Store, mask: str | None = None, scoring: str | None = None) -> Audit:
    """Count what a store teaches under a mask (None: plain SFT), and check it for what usually goes wrong.

    scoring: whose statistics to average; None: those that the mask read, or the store's only scoring, or none

    Raises StoreError where the mask or scoring is not there, or a part is damaged.
    """
    manifest = store.mask(mask)[1] if mask is not None else None
    scoring = choose_scoring(store, manifest, scoring)
    decoder = Decoder(store)
    found = tally(store, mask, scoring, decoder)
    data = store.manifest.dataset
    clauses = [c.text for c in manifest.clauses] if manifest else []
    return Audit(
        store=str(store.path),
        mask=mask,
        rule=manifest.rule if manifest else None,
        scoring=scoring,
        sequences=store.manifest.sequences,
        tokens=store.manifest.tokens,
        targets=found.targets,
        kept=found.targets - found.dropped,
        dataset_rows=data.rows,
        left_out=tuple(LeftOut(reason, rows, data.first_dropped[reason]) for reason, rows in data.dropped.items()),
        targets_found_by=store.manifest.template.targets,
        truncated=found.truncated,
        replies=found.replies,
        unended=found.unended,
        end_of_turn=Share("end of turn", *found.end_of_turn.tolist()),
        doubled_bos=found.doubled_bos,
        nothing_kept=found.nothing_kept,
        by_role=tuple(Share(ROLES[i], t, d) for i, (t, d) in enumerate(found.by_role.tolist()) if t),
        by_clause=tuple(Share(text, found.targets, int(found.by_clause[i])) for i, text in enumerate(clauses)),
        by_position=tuple(Share(f"{10 * i}-{10 * i + 10} %", t, d) for i, (t, d) in enumerate(found.by_tenth.tolist())),
        means=_means(found),
        most_dropped=_most_dropped(found, decoder),
        findings=tuple(judge_facts(store, manifest, found)),
    )


def _with_share(share: Share) -> dict[str, Any]:
    return {**asdict(share), "share": share.share}


def _means(found: Tally) -> tuple[Means, ...]:
    kept, dropped = found.targets - found.dropped, found.dropped
    return tuple(
        Means(name, sums[0] / kept if kept else None, sums[1] / dropped if dropped else None)
        for name in MEANS_OF
        if (sums := found.sums.get(name)) is not None
    )


def _most_dropped(found: Tally, decoder: Decoder) -> tuple[DroppedToken, ...]:
    targets, dropped = found.by_token.T
    # most often dropped first; among equals the lower id, so that the order is always the same
    order = (-dropped).argsort(kind="stable")[:_MOST_DROPPED]
    return tuple(DroppedToken(int(i), decoder.visible(int(i)), int(targets[i]), int(dropped[i])) for i in order if dropped[i])
