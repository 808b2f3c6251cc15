"""Token ids become pieces of text that can be shown.

A character may be cut into several tokens: an emoji is up to four byte tokens, none of which means anything alone. So
runs of tokens are decoded together: a :class:`Span` is the shortest run whose text stands on its own. Every token is in
exactly one span, and the spans' texts joined are the decoding of the whole sequence.

Text from a dataset is not to be trusted with a terminal or a page: :func:`visible` puts a harmless sign in the place of
every character that would move the cursor, change the colour or turn the writing direction.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING

from tokenstats.store.vocabulary import UNKNOWN, bytes_of, load_tokenizer, texts_of

if TYPE_CHECKING:
    from tokenstats.store import Store

_CONTEXT = 4  # spans before a run that are decoded with it: some decoders treat the first word of a text differently
_AHEAD = 64  # most tokens that we look ahead for the end of an unfinished character
_SIGNS = {"\t": "⇥", "\r": "⟨CR⟩", "\x1b": "⟨ESC⟩", "\x7f": "⟨DEL⟩", "\N{NO-BREAK SPACE}": "⟨NBSP⟩"}
_JOINERS = "\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"  # inside emoji and in Persian or Hindi words


@dataclass(frozen=True)
class Span:
    """Tokens ``start`` to ``end - 1`` of a sequence and the text that they make together (it may be empty)."""

    start: int
    end: int
    text: str


class Decoder:
    """Makes text of ids, with a store's own tokenizer. Raises StoreError where its file is missing or damaged."""

    def __init__(self, store: "Store"):
        self.tokenizer = load_tokenizer(store)

    @cached_property
    def _labels(self) -> dict[int, str]:
        """What :meth:`visible` said: few tokens make up most of a text."""
        return {}

    def text(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens included."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False)

    def spans(self, ids: Sequence[int]) -> list[Span]:
        """Cut a sequence into spans: in order, without gaps, each as short as its text allows."""
        ids = [int(i) for i in ids]
        spans: list[Span] = []
        while (start := spans[-1].end if spans else 0) < len(ids):
            # the context begins where a span begins: half a character in front would spoil what follows
            first = spans[-_CONTEXT].start if len(spans) >= _CONTEXT else 0
            end = next(end for end in range(start + 1, len(ids) + 1) if self._stands_alone(ids, first, end))
            spans.append(Span(start, end, self.text(ids[first:end])[len(self.text(ids[first:start])) :]))
        return _made_to_fit(spans, self.text(ids))

    def token(self, token_id: int) -> str:
        """The text of one token as it stands inside a sentence; it may be half a character."""
        # decoded twice in a row, the second time counts: a decoder may strip the space that a text begins with
        return self.text([token_id, token_id])[len(self.text([token_id])) :]

    def tokens(self, size: int) -> tuple[str, ...]:
        """The text of each token of a vocabulary, as :meth:`token` gives it, in one go."""
        return texts_of(self.tokenizer, size)

    def visible(self, token_id: int) -> str:
        """One token as a label for lists: harmless, on one line, spaces as dots, half a character as ``⟨F0 9F⟩``."""
        if token_id not in self._labels:
            text = self.token(token_id)
            shown = self._bytes(token_id) if UNKNOWN in text else visible(text).replace(" ", "·")
            self._labels[token_id] = shown or "∅"
        return self._labels[token_id]

    def _stands_alone(self, ids: list[int], first: int, end: int) -> bool:
        """Does the text up to ``end`` stay as it is, whatever follows?"""
        if end == len(ids):
            return True
        run, longer = self.text(ids[first:end]), self.text(ids[first : end + 1])
        if run.endswith(UNKNOWN) and len(longer) == len(run):
            return False  # the next token is swallowed by the same unfinished character
        for later in range(end + 2, min(end + _AHEAD, len(ids)) + 1):
            if not longer.endswith(UNKNOWN):
                break  # settled: it does not itself end inside a character
            longer = self.text(ids[first:later])
        return longer.startswith(run)

    def _bytes(self, token_id: int) -> str:
        word = self.tokenizer.id_to_token(token_id) or ""
        found = bytes_of(word)
        return visible(word) if found is None else f"⟨{found.hex(' ').upper()}⟩"


def visible(text: str, newline: str = "↵") -> str:
    """Text with a sign in the place of every character that acts instead of being seen. Ordinary spaces stay."""
    if text and not text.strip(" "):
        return "·" * len(text)
    alone = all(c in _JOINERS or unicodedata.category(c).startswith("M") for c in text)
    return "".join(newline if c == "\n" else c if c in _JOINERS and not alone else _sign(c) for c in text)


@lru_cache(maxsize=1 << 16)
def _sign(character: str) -> str:
    if character in _SIGNS:
        return _SIGNS[character]
    category = unicodedata.category(character)
    # controls, formats, surrogates, private and unassigned code points, separators other than the space
    acts = category.startswith("C") or (category.startswith("Z") and character != " ")
    return f"⟨U+{ord(character):04X}⟩" if acts else character


def _made_to_fit(spans: list[Span], whole: str) -> list[Span]:
    """Make sure that the texts join to the whole: where they do not, the spans in between become one.

    This happens where a decoder looks farther than we do, as with a long run of byte tokens that ends in half a
    character: the decoder then gives up on the whole run.
    """
    if "".join(s.text for s in spans) == whole:
        return spans
    ends = [0, *accumulate(len(s.text) for s in spans)]
    total = ends[-1]
    head = 0
    while head < len(spans) and whole.startswith(spans[head].text, ends[head]):
        head += 1
    tail = len(spans)
    while tail > head and whole.endswith(spans[tail - 1].text, 0, len(whole) - (total - ends[tail])):
        tail -= 1
    while head and (head == tail or ends[head] > len(whole) - (total - ends[tail])):
        head -= 1  # the head may not reach into the tail, and some span must carry what lies between
    tail = max(tail, head + 1)
    middle = Span(spans[head].start, spans[tail - 1].end, whole[ends[head] : len(whole) - (total - ends[tail])])
    return [*spans[:head], middle, *spans[tail:]]
