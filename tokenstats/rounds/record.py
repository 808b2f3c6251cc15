"""What is written down of a training in rounds: what it was asked for, and each round once its mask is there.

OUT/rounds.json is written before anything else, and again after each mask. Who goes on after a kill reads where from it.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tokenstats.errors import InputError, one_line
from tokenstats.store.parts import write_json

RECORD = "rounds.json"
"""Name of the file, beside the weights."""


@dataclass(frozen=True)
class Moved:
    """A mean over all targets, in nats: in the scoring of the last round (None in round 0), and in this one's."""

    last: float | None
    now: float


@dataclass(frozen=True)
class RoundClause:
    """A clause of the rule: how many targets it drops, and how many of them the last mask drops too (None in round 0)."""

    text: str
    dropped: int
    dropped_before: int | None


@dataclass(frozen=True)
class Round:
    """A scoring of the policy, and the mask made of it.

    Attributes:
        name: Of both.
        step: Optimizer steps that the policy had done.
        policy, reference: Digests of the models; None: it was scored without a reference.
        scoring, mask: Digests of what was made.
        targets, kept: Tokens of the store.
        jaccard: |dropped by this mask and the last| / |dropped by either|; None in round 0.
        entropy, kl: Means of H(p) and KL(p‖q); kl None without a reference.
        clauses: Of the rule; one that only weighs has none.
        overlap: Tokens that several clauses drop / tokens that any drops; 0 where there are none. Of two clauses: their Jaccard
            index.
        settled: It is so much like the last one that no other is made.
        weight: Of a rule that weighs, the mean weight of what is kept; None of others.
        weight_change: Mean |weight now - weight in the last mask| of the tokens that both keep; None in round 0.
    """

    name: str
    step: int
    policy: str
    reference: str | None
    scoring: str
    mask: str
    targets: int
    kept: int
    jaccard: float | None
    entropy: Moved
    kl: Moved | None
    clauses: tuple[RoundClause, ...]
    overlap: float
    settled: bool
    weight: float | None = None
    weight_change: float | None = None

    def __str__(self) -> str:
        said = [f"{self.name}, after {self.step:,} steps: keeps {self.kept:,} of {self.targets:,} targets"]
        if self.weight is not None:
            moved = "" if self.weight_change is None else f", moved by {self.weight_change:.4f} since the last mask"
            said.append(f"mean weight {self.weight:.4f}{moved}")
        if self.jaccard is not None and self.clauses:
            said.append(f"Jaccard {self.jaccard:.4f} to the last mask")
        said += [f"{name} {_moved(each)} nats" for name, each in (("entropy", self.entropy), ("KL", self.kl)) if each]
        if len(self.clauses) > 1:
            said.append(f"overlap of the clauses {self.overlap:.4f}")
        return ", ".join(said) + ("; the mask stays from here on" if self.settled else "")

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Round":
        """The round that ``asdict`` made."""
        kl = None if fields["kl"] is None else Moved(**fields["kl"])
        clauses = tuple(RoundClause(**each) for each in fields["clauses"])
        return cls(**{**fields, "entropy": Moved(**fields["entropy"]), "kl": kl, "clauses": clauses})


def _moved(mean: Moved) -> str:
    return f"{mean.now:.4g}" if mean.last is None else f"{mean.last:.4g} → {mean.now:.4g}"


@dataclass(frozen=True)
class Record:
    """What is written down.

    Attributes:
        asked: What the run depends on, by name.
        rounds: Those whose masks are there.
    """

    asked: dict[str, Any]
    rounds: tuple[Round, ...] = ()

    def with_round(self, made: Round) -> "Record":
        """The record with one round more."""
        return replace(self, rounds=(*self.rounds, made))

    def write(self, out: Path) -> None:
        """Write it, in one step. Raises StoreError where the disk refuses."""
        fields = {"asked": self.asked, "rounds": [asdict(each) for each in self.rounds]}
        write_json(out / RECORD, json.dumps(fields, indent=1, ensure_ascii=False))

    @classmethod
    def read(cls, out: Path) -> "Record":
        """Raises InputError where it cannot be read."""
        try:
            fields = json.loads((out / RECORD).read_text(encoding="utf-8"))
            return cls(fields["asked"], tuple(Round.from_dict(each) for each in fields["rounds"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{out / RECORD} cannot be read ({one_line(error, 80)}): what the run is and where it was is not known; "
                "begin anew in another folder"
            ) from None
