"""Tokens are drawn by whole characters: what a reader takes for one is never cut, whatever it is made of."""

import pytest
from inspect_fixtures import store_with_masks

from tokenstats.inspect.tokens.clusters import MOST_SPANS, whole_clusters
from tokenstats.inspect.tokens.detokenize import Span
from tokenstats.inspect.tokens.sequence import read_sequence

FAMILY = ["\N{MAN}", "\N{ZERO WIDTH JOINER}", "\N{WOMAN}", "\N{ZERO WIDTH JOINER}", "\N{GIRL}"]


def one_token_each(texts: list[str]) -> list[Span]:
    return [Span(i, i + 1, text) for i, text in enumerate(texts)]


def shape(spans: list[Span]) -> list[tuple[int, int, str]]:
    return [(s.start, s.end, s.text) for s in spans]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["a", "b"], ["a", "b"]),
        (["e", "\N{COMBINING ACUTE ACCENT}", "x"], ["e\N{COMBINING ACUTE ACCENT}", "x"]),
        ([*FAMILY, " two"], ["".join(FAMILY), " two"]),
        (["न", "म", "स", "्", "त", "े"], ["न", "म", "स्ते"]),  # the virama joins consonants
        (["ni", "\N{COMBINING TILDE}o"], ["ni\N{COMBINING TILDE}o"]),  # the mark begins a longer token
        (["a", "", "b"], ["a", "", "b"]),  # a token without text joins nothing
    ],
)
def test_a_character_of_several_tokens_is_one_piece(texts, expected):
    assert [s.text for s in whole_clusters(one_token_each(texts))] == expected


def test_a_message_begins_with_a_piece_of_its_own_even_where_its_text_is_a_mark():
    spans = one_token_each(["e", "\N{COMBINING ACUTE ACCENT}"])
    assert shape(whole_clusters(spans, cuts=[1])) == shape(spans)


def test_marks_without_end_make_pieces_of_bounded_size():
    joined = whole_clusters(one_token_each(["a", *["\N{COMBINING TILDE}"] * 1000]))
    assert max(s.end - s.start for s in joined) == MOST_SPANS
    assert sum(s.end - s.start for s in joined) == 1001


def test_nothing_is_lost_on_any_row():
    store = store_with_masks()
    for number in range(store.manifest.sequences):
        view = read_sequence(store, number)
        spans = view.decoder.spans(view.ids.tolist())
        joined = whole_clusters(spans)
        assert "".join(s.text for s in joined) == "".join(s.text for s in spans)
        assert [s.start for s in joined] == [0, *[s.end for s in joined[:-1]]]
        assert joined[-1].end == len(view)
