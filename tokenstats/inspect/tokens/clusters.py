"""Spans of tokens are joined until none of them cuts a character as readers see it.

A span's text stands on its own for a decoder, yet it may be a vowel sign that belongs onto the letter before, or a third of a
family emoji. Unicode calls what a reader takes for one character an extended grapheme cluster (UAX 29). Drawn apart, its
parts look broken, so a page draws a cluster as one piece and marks its tokens below.
"""

from collections.abc import Iterable, Sequence
from itertools import accumulate

import regex

from tokenstats.inspect.tokens.detokenize import Span

MOST_SPANS = 64
"""Spans that are joined at most: a text may pile thousands of marks onto one letter."""

_CLUSTER = regex.compile(r"\X")


def whole_clusters(spans: Sequence[Span], cuts: Iterable[int] = ()) -> list[Span]:
    """Join spans so that none ends inside a grapheme cluster.

    Args:
        spans: Of a sequence, in order and without gaps.
        cuts: Token indices that no joined span may reach across, such as the beginnings of messages.

    Returns:
        Spans in order and without gaps; their texts joined are what they were.
    """
    ends = list(accumulate(len(span.text) for span in spans))
    boundaries = {0, *(found.end() for found in _CLUSTER.finditer("".join(span.text for span in spans)))}
    apart = frozenset(cuts)
    joined: list[list[Span]] = []
    for i, span in enumerate(spans):
        begins_inside = i > 0 and ends[i - 1] not in boundaries and span.start not in apart
        if begins_inside and span.text and len(joined[-1]) < MOST_SPANS:
            joined[-1].append(span)
        else:
            joined.append([span])
    return [Span(run[0].start, run[-1].end, "".join(span.text for span in run)) for run in joined]
