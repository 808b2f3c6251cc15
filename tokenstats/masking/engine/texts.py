"""Conditions on what the tokens say: where a text stands, and what lies between two.

Texts are looked for in the bytes that the tokens make together, a reply and the prompt before it at a time: tokens may cut a
text anywhere.
"""

from collections.abc import Callable, Iterator

import numpy as np

from tokenstats.masking.engine.targets import Targets

_Span = tuple[int, int]  # bytes: first and end


def between(targets: Targets, opening: str, closing: str) -> np.ndarray:
    """[n] boolean: does the token lie between an opening text and the closing one that follows, or the end of the reply?

    A token with any part of either text in it lies outside.
    """
    first, last = opening.encode(), closing.encode()

    def regions(said: bytes) -> Iterator[_Span]:
        end = 0
        while (begin := said.find(first, end)) >= 0:
            begin += len(first)
            found = said.find(last, begin)
            yield begin, found if found >= 0 else len(said)
            if found < 0:
                return
            end = found + len(last)

    def whole_tokens(starts: np.ndarray, ends: np.ndarray, spans: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.searchsorted(starts, spans[:, 0], "left"), np.searchsorted(ends, spans[:, 1], "right")

    return _marked(targets, regions, whole_tokens)


def part_of(targets: Targets, text: str) -> np.ndarray:
    """[n] boolean: is any part of the token in the text, wherever that stands? Found from left to right, without overlap."""
    wanted = text.encode()

    def places(said: bytes) -> Iterator[_Span]:
        end = 0
        while (begin := said.find(wanted, end)) >= 0:
            end = begin + len(wanted)
            yield begin, end

    def touched_tokens(starts: np.ndarray, ends: np.ndarray, spans: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.searchsorted(ends, spans[:, 0], "right"), np.searchsorted(starts, spans[:, 1], "left")

    return _marked(targets, places, touched_tokens)


CONDITIONS: dict[str, Callable[..., np.ndarray]] = {"between": between, "part_of": part_of}
"""By the name that the rule language has for it: takes the targets and its texts."""


def _marked(
    targets: Targets,
    find: Callable[[bytes], Iterator[_Span]],
    tokens_of: Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
) -> np.ndarray:
    """Which targets belong to what ``find`` finds.

    Args:
        targets: The tokens, their ids read.
        find: Spans of a text, in order.
        tokens_of: From where tokens begin and end, and spans [s, 2], the first token of each span and the one behind its last.
    """
    pieces, marked = targets.vocabulary.pieces, np.zeros(int(targets.offsets[-1]), bool)
    for begin, end in _replies(targets):
        words = [pieces[i] for i in targets.ids[begin:end].tolist()]
        spans = np.array(list(find(b"".join(words))), np.int64).reshape(-1, 2)
        if not len(spans):
            continue
        ends = np.cumsum([len(word) for word in words])
        starts = np.concatenate([[0], ends[:-1]])
        first, behind = tokens_of(starts, ends, spans)
        depth = np.zeros(len(words) + 1, np.int64)
        np.add.at(depth, first, 1)
        np.add.at(depth, np.maximum(first, behind), -1)
        marked[begin:end] = np.cumsum(depth[:-1]) > 0
    return marked[targets.place]


def _replies(targets: Targets) -> Iterator[_Span]:
    """Where each reply, with the prompt before it, begins and ends among all tokens of the part."""
    ends = targets.place[targets.turn_starts[1:] - 1] + 1
    row = targets.row[targets.turn_starts[:-1]]
    begins = np.maximum(targets.offsets[row], np.concatenate([[0], ends])[:-1])
    return zip(begins.tolist(), ends.tolist(), strict=True)
