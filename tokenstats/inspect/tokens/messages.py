"""A sequence as a chat: which tokens belong to which message, and which of them are a reply that is learned."""

from dataclasses import dataclass

import numpy as np

from tokenstats.schema import ROLES

_TEMPLATE = ROLES.index("other")


@dataclass(frozen=True)
class Message:
    """Tokens ``start`` to ``end - 1`` of a sequence.

    Attributes:
        body: Where what the template wrote before it ends.
        role: Who wrote it, one of ``ROLES``; ``other`` where the whole sequence is the template's.
        targets: How many of its tokens are targets.
        replies: The numbers (from 0, as the rule language's ``turn`` counts) of the first reply in it and of the one after
            its last: equal where it has none.
    """

    start: int
    end: int
    body: int
    role: str
    targets: int
    replies: tuple[int, int]


def messages_of(role: np.ndarray, is_target: np.ndarray) -> list[Message]:
    """Cut a sequence into messages: in order, without gaps.

    What the template writes (role ``other``) belongs to the message that it introduces, and at the end of the sequence to the
    last one. Two messages of one role are apart where the template writes between them.

    Args:
        role: Codes [T], places in ``ROLES``.
        is_target: Boolean [T].
    """
    own = np.flatnonzero(role != _TEMPLATE)
    if not len(own):
        return [_message(0, len(role), 0, "other", is_target)] if len(role) else []
    fresh = np.ones(len(own), bool)
    fresh[1:] = (np.diff(role[own]) != 0) | (np.diff(own) > 1)
    firsts = own[fresh]  # the first token of each message that is not the template's
    before = own[np.flatnonzero(fresh)[1:] - 1] + 1  # where the message before has ended
    starts = [0, *before.tolist(), len(role)]
    return [
        _message(start, end, first, ROLES[role[first]], is_target)
        for start, end, first in zip(starts[:-1], starts[1:], firsts.tolist(), strict=True)
    ]


def _message(start: int, end: int, body: int, role: str, is_target: np.ndarray) -> Message:
    begins = is_target & ~np.concatenate([[False], is_target[:-1]])
    replies = int(begins[:start].sum()), int(begins[:end].sum())
    return Message(start, end, body, role, int(is_target[start:end].sum()), replies)
