"""The targets of a store part by part, with what masks decided about them."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from tokenstats.masking.engine.decisions import Decisions, stored_decisions
from tokenstats.masking.engine.targets import Targets, iter_targets
from tokenstats.store import Store


def read_decisions(
    store: Store, masks: Sequence[str | None], columns: Iterable[str] = (), scoring: str | None = None
) -> Iterator[list[Decisions]]:
    """Yield, part by part, what each mask decided; None is plain SFT. One part at a time is in memory.

    Args:
        store: The store.
        masks: Names of masks.
        columns: Statistics of ``scoring`` that the targets shall hold.
        scoring: Whose statistics.
    """
    scorings: dict[str | None, str] = {None: scoring} if scoring is not None else {}
    for targets in iter_targets(store, [(None, c) for c in columns], scorings):
        yield [stored_decisions(store, mask, targets, weights=True) for mask in masks]


def count_by(groups: np.ndarray, dropped: np.ndarray, size: int) -> np.ndarray:
    """int64 [size, 2]: how many tokens each group has, and how many of them are dropped."""
    return np.stack([np.bincount(groups, minlength=size), np.bincount(groups[dropped], minlength=size)], axis=1)


def tenth_of_reply(targets: Targets) -> np.ndarray:
    """[n] in which tenth of its reply a token stands, 0 to 9."""
    position, length = targets.column((None, "position")), targets.column((None, "length"))
    return position * 10 // length
