"""Which tokens a term of the loss is over: a clause of the mask, what a mask drops, or a word. Loads no torch.

The tokens of a row carry one number each, whose bits say what they belong to: that they are targets, kept, of E (the entropy
bonus) or of K (the KL penalty).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from tokenstats.errors import InputError, argument, nearest, one_line
from tokenstats.store import Store
from tokenstats.store.families import MASKS
from tokenstats.store.lists import flat
from tokenstats.training.rows import ChosenMask, LearnedPart

TARGET, KEPT, ENTROPY, KL = 1, 2, 4, 8
"""Bits of a token's number."""
COMBINATIONS = 16

WORDS = ("dropped", "kept", "targets")
_CLAUSE = re.compile(r"clause\s+(.+)", re.DOTALL)


class Kind(Enum):
    """How tokens are chosen."""

    WORD = "dropped, kept or targets"
    CLAUSE = "a clause of the mask"
    MASK = "what another mask drops"


@dataclass(frozen=True)
class TokenChoice:
    """A choice of tokens.

    Attributes:
        text: As it was given.
        what: The word, or the other mask's name; of a clause its text.
        clause: Its number, from 0: the bit of ``reason``.
    """

    text: str
    kind: Kind
    what: str
    clause: int = 0

    @property
    def is_of_rule(self) -> bool:
        """Does it depend on what the rule decides, and move with a rule that is followed?"""
        return self.kind is Kind.CLAUSE or self.what in ("dropped", "kept")

    def among(self, is_target: np.ndarray, keep: np.ndarray, reason: np.ndarray) -> np.ndarray:
        """Boolean [n]: the tokens of a choice that is a word or a clause, from the rule's decisions on them."""
        if self.kind is Kind.CLAUSE:
            return is_target & (reason & np.uint16(1 << self.clause) > 0)
        return {"kept": keep, "dropped": is_target & ~keep, "targets": is_target}[self.what]


def choose_tokens(option: str, text: str, clauses: Sequence[str], of: str, store: Store) -> TokenChoice:
    """What a text such as ``clause 1`` means.

    Args:
        option: Where it was given, for messages.
        text: ``clause NUMBER`` (from 1), ``clause TEXT``, the name of a mask, dropped, kept or targets.
        clauses: Texts of the clauses that there are.
        of: Whose they are, for messages.
        store: With the other masks.

    Raises:
        InputError: There is no such clause, word or mask.
    """
    text = text.strip()
    if found := _CLAUSE.fullmatch(text):
        return TokenChoice(text, Kind.CLAUSE, *_clause(option, found[1], clauses, of))
    is_mask = text in store.masks
    if text in WORDS:
        if is_mask:
            raise InputError(
                f"{argument(option)} got {text!r}, a word of its own and the name of a mask too; make that mask under "
                "another name"
            )
        return TokenChoice(text, Kind.WORD, text)
    if not is_mask:
        known = [*WORDS, *store.masks]
        raise InputError(
            f"{argument(option)} got {one_line(text, 60)!r}{nearest(text, known)}; expected 'clause NUMBER', 'clause TEXT', or "
            f"one of: {', '.join(known)}"
        )
    return TokenChoice(text, Kind.MASK, text)


def masks_of_terms(entropy_on: str | None, kl_on: str | None, store: Store) -> dict[str, str]:
    """Of choices that are other masks, by option, the fingerprint of the mask as it is now."""
    named = {"entropy_on": (entropy_on or "").strip(), "kl_on": (kl_on or "").strip()}
    return {option: store.masks[name].manifest.fingerprint for option, name in named.items() if name in store.masks}


def _clause(option: str, which: str, clauses: Sequence[str], of: str) -> tuple[str, int]:
    which = " ".join(which.split())
    listed = "; ".join(f"{i}: {one_line(text, 60)}" for i, text in enumerate(clauses, 1)) or "none"
    if which.isdecimal() and which.isascii() and 0 < int(which) <= len(clauses):
        return clauses[int(which) - 1], int(which) - 1
    if which in clauses:
        return which, list(clauses).index(which)
    raise InputError(
        f"{argument(option)} got clause {one_line(which, 60)!r}{nearest(which, list(clauses))}, which {of} does not have; its "
        f"clauses: {listed}"
    )


@dataclass(frozen=True)
class TokenSets:
    """E and K of a run.

    Attributes:
        entropy_on, kl_on: What they are; None where nothing is over them.
        learned: The bits of which a row must have a token, or there is nothing to learn from it.
        follows: The rule is evaluated in each step: of stored masks come only the choices that do not depend on it.
        clauses: How many clauses of the rule are told apart in what is measured.
    """

    entropy_on: TokenChoice | None
    kl_on: TokenChoice | None
    learned: int = KEPT
    follows: bool = False
    clauses: int = 0

    @property
    def other_masks(self) -> set[str]:
        """Masks besides the run's own that are read."""
        return {choice.what for choice in (self.entropy_on, self.kl_on) if choice is not None and choice.kind is Kind.MASK}

    def verify(self, store: Store) -> None:
        """Hold every byte of the other masks against its digest. Raises StoreError where one differs."""
        if self.other_masks:
            store.verify(*(f"{MASKS}/{name}" for name in sorted(self.other_masks)))

    def bits_of(self, store: Store, mask: ChosenMask, index: int, part: LearnedPart) -> np.ndarray:
        """[N] uint8, the number of each token of a part."""
        bits = part.is_target * np.uint8(TARGET)
        bits |= part.keep * np.uint8(KEPT)
        for bit, choice in ((ENTROPY, self.entropy_on), (KL, self.kl_on)):
            if choice is not None and not (self.follows and choice.is_of_rule):
                bits |= _chosen(choice, store, mask, index, part) * np.uint8(bit)
        return bits

    def rows_with_any(self, part: LearnedPart, bits: np.ndarray) -> np.ndarray:
        """[R] boolean: rows of a part with something to learn: a token of E or K, or one kept with a weight above 0."""
        of_terms = bits & (self.learned & ~KEPT) > 0
        return part.rows_with(of_terms | part.learned if self.learned & KEPT else of_terms)

    def reason_of(self, store: Store, mask: ChosenMask, index: int) -> np.ndarray | None:
        """[N] uint16, the clauses of the stored mask that drop each token of a part; None where they are not told apart."""
        if not self.clauses or self.follows:
            return None
        return flat(store.part(f"{MASKS}/{mask.name}", index, ["reason"])["reason"])


def _chosen(choice: TokenChoice, store: Store, mask: ChosenMask, index: int, part: LearnedPart) -> np.ndarray:
    """[N] the tokens of a choice, from what is stored."""
    if choice.kind is Kind.MASK:
        return part.is_target & ~flat(store.part(f"{MASKS}/{choice.what}", index, ["keep"])["keep"])
    reason = np.zeros(len(part.ids), np.uint16)
    if choice.kind is Kind.CLAUSE:
        reason = flat(store.part(f"{MASKS}/{mask.name}", index, ["reason"])["reason"])
    return choice.among(part.is_target, part.keep, reason)
