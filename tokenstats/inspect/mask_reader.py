"""The targets of a store part by part, with what a mask decided about them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tokenstats.masking.engine.targets import Targets, iter_targets
from tokenstats.masking.operands import stored_decisions
from tokenstats.store import Store


@dataclass(frozen=True)
class StoredDecisions:
    """One part's n targets. ``dropped`` is boolean [n], ``reason`` uint16 [n]: all False and 0 without a mask.

    weight: float32 [n], 0 where dropped; None: the mask does not weigh
    """

    population: Targets
    dropped: np.ndarray
    reason: np.ndarray
    weight: np.ndarray | None = None


def read_decisions(
    store: Store, mask: str | None, columns: Iterable[str] = (), scoring: str | None = None
) -> Iterator[StoredDecisions]:
    """Yield each part's targets with their decisions and the named statistics of a scoring."""
    weighted = mask is not None and store.masks[mask].manifest.weighted
    for population, (found,) in read_several(store, [mask], columns, scoring):
        yield StoredDecisions(population, *found, _weight(store, mask, population) if weighted else None)


def read_several(
    store: Store, masks: Sequence[str | None], columns: Iterable[str] = (), scoring: str | None = None
) -> Iterator[tuple[Targets, list[tuple[np.ndarray, np.ndarray]]]]:
    """Yield each part's targets with (dropped, reason) of every mask; one part at a time is in memory."""
    scorings: dict[str | None, str] = {None: scoring} if scoring is not None else {}
    for population in iter_targets(store, [(None, c) for c in columns], scorings):
        yield population, [_decisions(store, mask, population) for mask in masks]


def _decisions(store: Store, mask: str | None, population: Targets) -> tuple[np.ndarray, np.ndarray]:
    if mask is None:
        return np.zeros(len(population), bool), np.zeros(len(population), np.uint16)
    return stored_decisions(store, mask, population)


def _weight(store: Store, mask: str | None, population: Targets) -> np.ndarray:
    table = store.part(f"masks/{mask}", population.part, ["weight"])
    return table["weight"].combine_chunks().flatten().to_numpy()[population.place]


def count_by(groups: np.ndarray, dropped: np.ndarray, size: int) -> np.ndarray:
    """int64 [size, 2]: how many tokens each group has, and how many of them are dropped."""
    return np.stack([np.bincount(groups, minlength=size), np.bincount(groups[dropped], minlength=size)], axis=1)


def tenth_of_reply(population: Targets) -> np.ndarray:
    """[n] in which tenth of its reply a token stands, 0 to 9."""
    position, length = population.column((None, "position")), population.column((None, "length"))
    return position * 10 // length
