"""What will be learned from a store, and what looks wrong with it.

    audit(store).to_dict()                # plain SFT
    audit(store, mask="eksft").to_dict()  # under a mask; docs/AUDIT.md says what every key means

Reads part by part: memory does not grow with the dataset.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tokenstats.inspect.audit.breakdown import Breakdown
from tokenstats.inspect.audit.checks import Case, Finding, worst
from tokenstats.inspect.audit.counts import END_OF_TURN, FIRST, LAST, MEANS_OF, AuditCounts, Weights, count_all
from tokenstats.inspect.audit.run_checks import run_checks
from tokenstats.inspect.tokens.detokenize import Decoder
from tokenstats.inspect.tokens.sequence import choose_scoring
from tokenstats.shown import Shown
from tokenstats.store import Store, open_store
from tokenstats.store.manifests import MaskManifest

AUDIT_SCHEMA = 1
"""Of the JSON. It rises where a key goes, or changes its meaning; new keys may come without."""

_MOST_DROPPED = 20


@dataclass(frozen=True)
class Share:
    """How many targets of a kind there are, how many of them are dropped, and up to ten rows where that happens."""

    label: str
    targets: int
    dropped: int
    rows: tuple[int, ...] = ()

    @property
    def share(self) -> float:
        """Dropped / targets; 0 of no targets."""
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
class Audit(Shown):
    """What :func:`audit` found.

    Attributes:
        store, mask, rule, scoring: What was looked at; mask and rule are None for plain SFT.
        sequences, tokens, targets, kept: Counts.
        dataset_rows, left_out: Rows of the dataset, and those that never became sequences.
        targets_found_by: How targets were found in the text.
        truncated: Sequences cut at the store's maximal length.
        cut_replies: Replies in them that have no end.
        replies, unended: Stretches of targets, and those (not truncated) that do not end with an end-of-turn token.
        end_of_turn: End-of-turn tokens among the targets.
        first_token, last_token: Those of every reply.
        doubled_bos: Sequences that begin with two BOS tokens.
        nothing_kept: Sequences without any token to learn.
        by_role, by_turn, by_position, by_class, by_clause: Targets and dropped; turns are counted from 0, positions are tenths
            of the reply; a token that two clauses dropped counts in both.
        weights: None where the mask does not weigh.
        means: Of entropy, KL and −log p over kept and dropped targets, where a scoring was read.
        most_dropped: The tokens dropped most often.
        findings: Checks, each with a verdict: ok, note, warning or problem.
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
    cut_replies: int
    replies: int
    unended: int
    end_of_turn: Share
    first_token: Share
    last_token: Share
    doubled_bos: int
    nothing_kept: int
    by_role: tuple[Share, ...] = field(repr=False)
    by_turn: tuple[Share, ...] = field(repr=False)
    by_position: tuple[Share, ...] = field(repr=False)
    by_class: tuple[Share, ...] = field(repr=False)
    by_clause: tuple[Share, ...] = field(repr=False)
    weights: Weights | None
    means: tuple[Means, ...] = field(repr=False)
    most_dropped: tuple[DroppedToken, ...] = field(repr=False)
    findings: tuple[Finding, ...]

    @property
    def share_dropped(self) -> float:
        """1 - kept / targets; 0 of no targets."""
        return 1.0 - self.kept / self.targets if self.targets else 0.0

    @property
    def verdict(self) -> str:
        """The gravest of the findings' verdicts."""
        return worst(f.verdict for f in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain values under the names of the fields, with ``schema``, ``share_dropped`` and ``verdict``; for JSON."""
        plain = asdict(self)
        for name in plain:
            found = getattr(self, name)
            if isinstance(found, Share):
                plain[name] = _with_share(found)
            elif name.startswith("by_"):
                plain[name] = [_with_share(share) for share in found]
        return {"schema": AUDIT_SCHEMA, **plain, "share_dropped": self.share_dropped, "verdict": self.verdict}


def audit(store: Store | str | Path, mask: str | None = None, scoring: str | None = None) -> Audit:
    """Count what a store teaches under a mask, and check it for what usually goes wrong.

    Every byte of the parts behind the answer is held against the digests of their manifests: ``intact_parts``.

    Args:
        store: A store, or its path.
        mask: A mask; None: plain SFT.
        scoring: Whose statistics to average; None: those that the mask read, or the store's only scoring, or none.

    Raises:
        StoreError: The mask or scoring is not there, or a part is damaged.
    """
    store = open_store(store)
    manifest = store.masks[mask].manifest if mask is not None else None
    scoring = choose_scoring(store, manifest, scoring)
    decoder = Decoder(store)
    found = count_all(store.unproven(), mask, scoring, decoder)  # all that was changed is told below, not the first of it alone
    changed = [path for family in _families(store, mask, manifest, scoring) for path in store.changed_parts(family)]
    return _audit_of(Case(store, found, changed, manifest), mask, scoring, decoder)


def _audit_of(case: Case, mask: str | None, scoring: str | None, decoder: Decoder) -> Audit:
    store, found, manifest = case.store.manifest, case.counts, case.of_mask
    return Audit(
        store=str(case.store.path),
        mask=mask,
        rule=manifest.rule if manifest else None,
        scoring=scoring,
        sequences=store.sequences,
        tokens=store.tokens,
        targets=found.all.targets,
        kept=found.all.kept,
        dataset_rows=store.dataset.rows,
        left_out=tuple(LeftOut(why, rows, store.dataset.first_dropped[why]) for why, rows in store.dataset.dropped.items()),
        targets_found_by=store.template.targets,
        truncated=found.truncated,
        cut_replies=found.cut_replies,
        replies=found.replies,
        unended=found.unended,
        end_of_turn=_share(found.by_place, END_OF_TURN),
        first_token=_share(found.by_place, FIRST),
        last_token=_share(found.by_place, LAST),
        doubled_bos=found.doubled_bos,
        nothing_kept=found.all.rows_with_nothing_kept,
        by_role=_shares(found.by_role),
        by_turn=_shares(found.by_turn),
        by_position=tuple(_share(found.by_tenth, i) for i in range(10)),
        by_class=_shares(found.by_class),
        by_clause=_by_clause(found, manifest),
        weights=found.weights if manifest and manifest.weighted else None,
        means=_means(found),
        most_dropped=_most_dropped(found, decoder),
        findings=tuple(run_checks(case)),
    )


def _families(store: Store, mask: str | None, manifest: MaskManifest | None, scoring: str | None) -> list[str]:
    """What an audit rests on: the tokens, the mask, what the mask read, and the statistics averaged."""
    read = [scoring] if scoring is not None else []
    read += [name for name in (manifest.scorings if manifest else {}) if name in store.scorings]
    return ["tokens", *(f"stats/{name}" for name in dict.fromkeys(read)), *([f"masks/{mask}"] if mask is not None else [])]


def _share(groups: Breakdown, group: int) -> Share:
    targets, dropped = groups.counts[group].tolist()
    return Share(groups.labels[group], targets, dropped, tuple(groups.rows[group]))


def _shares(groups: Breakdown) -> tuple[Share, ...]:
    """The groups that have any target."""
    return tuple(share for i in range(len(groups.labels)) if (share := _share(groups, i)).targets)


def _by_clause(found: AuditCounts, manifest: MaskManifest | None) -> tuple[Share, ...]:
    counts, rows = found.by_clause.counts[:, 1].tolist(), found.by_clause.rows
    clauses = manifest.clauses if manifest else ()
    return tuple(Share(clause.text, found.all.targets, counts[i], tuple(rows[i])) for i, clause in enumerate(clauses))


def _with_share(share: Share) -> dict[str, Any]:
    return {**asdict(share), "share": share.share}


def _means(found: AuditCounts) -> tuple[Means, ...]:
    kept, dropped = found.all.kept, found.all.dropped
    return tuple(
        Means(name, float(sums[0] / kept) if kept else None, float(sums[1] / dropped) if dropped else None)
        for name in MEANS_OF
        if (sums := found.sums.get(name)) is not None
    )


def _most_dropped(found: AuditCounts, decoder: Decoder) -> tuple[DroppedToken, ...]:
    targets, dropped = found.by_token.T
    # most often dropped first; among equals the lower id, so that the order is always the same
    order = (-dropped).argsort(kind="stable")[:_MOST_DROPPED]
    return tuple(DroppedToken(int(i), decoder.visible(int(i)), int(targets[i]), int(dropped[i])) for i in order if dropped[i])
