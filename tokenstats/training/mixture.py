"""Several stores in one run: all their rows, or of each a share of the rows of an epoch.

A share is one of rows, not of tokens: of an epoch's N rows, share · N are a store's, to within one row. N is the most for which
share · N is no more than each store has: the one that is scarcest for its share gives all of its rows in each epoch, or all but
one, and the rows of the others take turns. Each store's rows come in an endless order of their own, one shuffle of all of them
after the other, and an epoch takes the next ones: over a run all rows of a store are learned from equally often, but for one
time.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tokenstats.errors import InputError, argument
from tokenstats.mixing import mixed
from tokenstats.store import Store
from tokenstats.training.data import TokenRows, TrainingData
from tokenstats.training.rows import PLAIN, ChosenMask, choose_mask, shuffled


@dataclass(frozen=True)
class Source:
    """A store that is trained on, and the tokens of it that are learned."""

    store: Store
    mask: ChosenMask


def choose_sources(stores: Sequence[Store], mask: str | Sequence[str | None] | None) -> tuple[Source, ...]:
    """Each store with its mask: one for all, or one for each, separated by commas.

    Raises:
        InputError: There are not as many masks as stores, a store comes twice, or stores differ in tokenizer or template.
        StoreError: A mask is not there.
    """
    if not stores:
        raise InputError(f"{argument('store')} got an empty list; expected a store, or several")
    names = mask.split(",") if isinstance(mask, str) else [mask] if mask is None else list(mask)
    if len(names) not in (1, len(stores)):
        raise InputError(f"{argument('mask')} got {len(names)} masks for {len(stores)} stores; expected one, or one for each")
    first = stores[0].manifest
    for i, store in enumerate(stores):
        if store.fingerprint in [other.fingerprint for other in stores[:i]]:
            raise InputError(f"{store.path} holds the same rows as a store before it; give each once")
        if store.manifest.tokenizer.fingerprint != first.tokenizer.fingerprint:
            raise InputError(f"{store.path} has another tokenizer than {stores[0].path}; stores of one run must have the same")
        if store.manifest.template.fingerprint != first.template.fingerprint:
            raise InputError(f"{store.path} has another chat template than {stores[0].path}: a model learns one")
    masks = names * len(stores) if len(names) == 1 else names
    return tuple(
        Source(store, choose_mask(store, None if name is None else name.strip()))
        for store, name in zip(stores, masks, strict=True)
    )


def masks_of(sources: Sequence[Source]) -> str:
    """The masks as :func:`choose_sources` takes them."""
    names = [source.mask.name or PLAIN for source in sources]
    return names[0] if len(set(names)) == 1 else ",".join(names)


class Mixture:
    """Which rows of several stores an epoch has.

    Attributes:
        shares: Of each store; None: every epoch has all rows of all.
        sizes: Rows of each store, in the order in which they are joined.
        counts: Rows of each store in an epoch.
    """

    def __init__(self, sizes: Sequence[int], shares: Sequence[float] | None):
        self.sizes, self.shares = tuple(sizes), shares
        self.counts = self.sizes if shares is None else _counts(sizes, shares)

    @property
    def rows(self) -> int:
        """Rows of an epoch."""
        return sum(self.counts)

    def rows_of(self, epoch: int, keys: np.ndarray, seed: int) -> np.ndarray:
        """[rows] row numbers of an epoch, those of one store after those of the other; from the rows' keys and the seed."""
        if self.shares is None:
            return np.arange(sum(self.sizes))
        found, first = [], 0
        for size, count in zip(self.sizes, self.counts, strict=True):
            own = keys[first : first + size]
            turns = range(epoch * count // size, ((epoch + 1) * count - 1) // size + 1)
            endless = np.concatenate([shuffled(own, "mixture", seed, turn) for turn in turns])
            begin = epoch * count - turns[0] * size
            found.append(first + endless[begin : begin + count])
            first += size
        return np.concatenate(found)


@dataclass(frozen=True)
class MixedRows:
    """The rows of a run.

    Attributes:
        data: Of all stores, joined.
        parts: Of each store.
        mixture: Which of them an epoch has.
    """

    data: TrainingData
    parts: tuple[TrainingData, ...]
    mixture: Mixture

    @classmethod
    def of(cls, parts: Sequence[TrainingData], sources: Sequence[Source], shares: Sequence[float] | None) -> "MixedRows":
        """Join the rows of stores. Raises InputError where a store's share would be no row."""
        return cls(join(parts, sources), tuple(parts), Mixture([len(part.train) for part in parts], shares))


def check_shares(shares: Sequence[float] | None, stores: int) -> None:
    """Raise InputError where shares are not those of the stores that there are."""
    if shares is None:
        return
    if stores == 1:
        raise InputError(f"{argument('shares')} would do nothing: there is one store; give several, or leave it out")
    if len(shares) != stores:
        raise InputError(f"{argument('shares')} got {len(shares)} shares for {stores} stores; expected one for each")


def _counts(sizes: Sequence[int], shares: Sequence[float]) -> tuple[int, ...]:
    """share · N of each store, rounded so that they sum to N: the largest remainders are rounded up, where there are rows."""
    total = math.floor(min(size / share for size, share in zip(sizes, shares, strict=True)) + 1e-9)
    exact = [share * total for share in shares]
    counts = [math.floor(each + 1e-9) for each in exact]
    for i in sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])[: total - sum(counts)]:
        counts[i] += 1
    if not all(counts):
        raise InputError(
            f"{argument('shares')} got {', '.join(f'{share:g}' for share in shares)}, but of {total} rows in an epoch a store "
            f"would have none; its stores have {', '.join(map(str, sizes))} rows"
        )
    return tuple(counts)


def join(parts: Sequence[TrainingData], sources: Sequence[Source]) -> TrainingData:
    """The rows of all stores, one after the other, each with a key that no other store's row has."""
    if len(parts) == 1:
        return parts[0]
    salts = [_salt(source.store) for source in sources]
    held_out = [(part.evaluation, salt) for part, salt in zip(parts, salts, strict=True) if part.evaluation is not None]
    return TrainingData(
        train=_joined([(part.train, salt) for part, salt in zip(parts, salts, strict=True)]),
        evaluation=_joined(held_out) if held_out else None,
        left_out=sum(part.left_out for part in parts),
    )


def _salt(store: Store) -> np.uint64:
    return np.frombuffer(hashlib.blake2b(store.fingerprint.encode(), digest_size=8).digest(), np.uint64)[0]


def _joined(parts: Sequence[tuple[TokenRows, np.uint64]]) -> TokenRows:
    rows = [part for part, _ in parts]
    before = np.cumsum([0, *(len(each.ids) for each in rows)])
    weighs = any(each.weights is not None for each in rows)
    return TokenRows(
        ids=np.concatenate([each.ids for each in rows]),
        learned=np.concatenate([each.learned for each in rows]),
        offsets=np.concatenate([[0], *(each.offsets[1:] + start for each, start in zip(rows, before, strict=False))]),
        keys=np.concatenate([mixed(each.keys ^ salt) for each, salt in parts]),
        weights=np.concatenate([_weights(each) for each in rows]) if weighs else None,
        sets=_concatenated([each.sets for each in rows]),
        reason=_concatenated([each.reason for each in rows]),
    )


def _concatenated(arrays: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """Of all stores or of none."""
    return None if arrays[0] is None else np.concatenate([each for each in arrays if each is not None])


def _weights(rows: TokenRows) -> np.ndarray:
    """What a row of a mask that does not weigh counts for beside one that does: 1 where a token is kept."""
    return rows.learned.astype(np.float32) if rows.weights is None else rows.weights
