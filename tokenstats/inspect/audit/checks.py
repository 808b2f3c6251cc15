"""What an audit asks. A check is one function: its name, when it is made, and in its docstring what docs/AUDIT.md says of it.

    @check(Made.ALWAYS)
    def doubled_bos(case: Case) -> Answer:
        \"\"\"sequences that begin with two BOS tokens\"\"\"
        …

That is all: run_checks.py finds it in store_checks.py or mask_checks.py, in the order of the functions.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path

from tokenstats.inspect.audit.counts import AuditCounts
from tokenstats.store import Store
from tokenstats.store.manifests import MaskManifest, ScoringManifest

OK, NOTE, WARNING, PROBLEM = VERDICTS = ("ok", "note", "warning", "problem")
"""From nothing to say to stop and mend it. A note is worth knowing, and may be meant."""

_MUCH = 0.1  # of rows: beyond this a loss of data is a problem, not a remark


class Made(StrEnum):
    """When a check is made."""

    ALWAYS = "always"
    OF_SCORING = "for each scoring"
    OF_KL = "for each scoring with a reference"
    OF_MASK = "for a mask"
    OF_SCORED_MASK = "for a mask, where there is a scoring"
    OF_COMPARED_MASK = "for a mask, where there is a scoring with a reference"
    OF_MIN_KEPT = "for a mask with min_kept"
    OF_BUDGET = "for a mask with a budget"
    OF_WEIGHTS = "for a mask that weighs"


@dataclass(frozen=True)
class Case:
    """What is looked at.

    Attributes:
        store: The store.
        counts: What was counted in it.
        changed: Parts whose digests are not those of their manifests.
        of_mask: The mask's manifest; None for plain SFT.
        of_scoring: The manifest of the scoring that a check is made for; else None.
        about: Name of the scoring, for the checks that come once for each; else None.
    """

    store: Store
    counts: AuditCounts
    changed: list[Path]
    of_mask: MaskManifest | None
    about: str | None = None
    of_scoring: ScoringManifest | None = None

    @property
    def mask(self) -> MaskManifest:
        """Of a check that is made for a mask."""
        assert self.of_mask is not None
        return self.of_mask

    @property
    def scoring(self) -> ScoringManifest:
        """Of a check that is made for a scoring."""
        assert self.of_scoring is not None
        return self.of_scoring

    def applies(self, made: Made) -> bool:
        """Is a check that is made then made here?"""
        mask, scoring = self.of_mask, self.of_scoring
        match made:
            case Made.ALWAYS:
                return True
            case Made.OF_SCORING | Made.OF_KL:
                return scoring is not None and ("logprob" if made is Made.OF_SCORING else "kl") in scoring.means
            case Made.OF_MIN_KEPT | Made.OF_BUDGET:
                return mask is not None and ("min_kept" if made is Made.OF_MIN_KEPT else "budget") in mask.rule
            case Made.OF_SCORED_MASK | Made.OF_COMPARED_MASK:
                needed = {"nll"} if made is Made.OF_SCORED_MASK else {"nll", "ref_nll"}
                return mask is not None and needed <= self.counts.sums.keys()
            case _:
                return mask is not None and (made is Made.OF_MASK or mask.weighted)


@dataclass(frozen=True)
class Answer:
    """A verdict.

    Attributes:
        verdict: One of ``VERDICTS``.
        message: Why, in words.
        count, of: What was counted, and of how many; None where the check counts nothing.
        rows: Up to ten sequences to look at, counted from 0 over the store, as ``show`` takes them.
    """

    verdict: str
    message: str
    count: int | None = None
    of: int | None = None
    rows: tuple[int, ...] = ()


@dataclass(frozen=True)
class Finding:
    """One check and its :class:`Answer`. ``about``: the scoring, for the checks that come once for each; else None."""

    name: str
    verdict: str
    message: str
    count: int | None = None
    of: int | None = None
    rows: tuple[int, ...] = ()
    about: str | None = None


@dataclass(frozen=True)
class Check:
    """A question, and when it is asked."""

    made: Made
    ask: Callable[[Case], Answer]

    @property
    def name(self) -> str:
        """How findings, gates and the page call it."""
        return self.ask.__name__

    @property
    def looks_for(self) -> str:
        """What the page says of it."""
        return " ".join((self.ask.__doc__ or "").split())


def check(made: Made) -> Callable[[Callable[[Case], Answer]], Check]:
    """Make a function a check."""
    return partial(Check, made)


def worst(verdicts: Iterable[str]) -> str:
    """The gravest of some verdicts."""
    return max(verdicts, key=VERDICTS.index, default=OK)


def grade(count: int, whole: int) -> str:
    """Some are a warning, more than a tenth of them a problem."""
    return OK if not count else PROBLEM if count > _MUCH * whole else WARNING


def counted(count: int, whole: int, bad: str, good: str, rows: Iterable[int] = (), verdict: str = "") -> Answer:
    """The answer of a check that counts: graded by its share of ``whole``, where no verdict is given."""
    return Answer((verdict or grade(count, whole)) if count else OK, bad if count else good, count, whole, tuple(rows))
