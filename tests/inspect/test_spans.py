"""Tokens as text: nothing lost, no character broken, nothing that acts on a terminal."""

import random
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inspect_fixtures import CHINESE, FAMILY, SMILE, byte_level_tokenizer, copy_of_store, store_with_masks
from tokenizers import Tokenizer, decoders, models

from tokenstats import Rule, TokenstatsError, build_mask
from tokenstats.inspect.tokens.detokenize import Decoder, Span, visible
from tokenstats.inspect.tokens.sequence import read_sequence

UNKNOWN = "\N{REPLACEMENT CHARACTER}"


def decoder_of(tokenizer: Tokenizer) -> Decoder:
    decoder = Decoder.__new__(Decoder)
    decoder.tokenizer = tokenizer
    return decoder


def sentencepiece_tokenizer() -> Tokenizer:
    """As Llama 2 decodes: words with ▁, bytes as <0x41>, the first space stripped."""
    words = ["<s>", "▁", "▁the", "the", "▁cat", "s", "▁a"]
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | {word: 256 + i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


BYTE_LEVEL, SENTENCEPIECE = decoder_of(byte_level_tokenizer()), decoder_of(sentencepiece_tokenizer())
DECODERS = {"byte level": BYTE_LEVEL, "sentencepiece": SENTENCEPIECE}
EVERY_TOKEN = pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS.keys())


def encode(text: str) -> list[int]:
    return BYTE_LEVEL.tokenizer.encode(text, add_special_tokens=False).ids


def check_complete(spans: list[Span], ids: list[int], decoder: Decoder) -> None:
    assert "".join(s.text for s in spans) == decoder.tokenizer.decode(ids, skip_special_tokens=False)
    assert [i for s in spans for i in range(s.start, s.end)] == list(range(len(ids)))


@given(st.text(max_size=60))
def test_any_text_comes_back_whole_and_unbroken(text):
    ids = encode(text)
    spans = BYTE_LEVEL.spans(ids)
    check_complete(spans, ids, BYTE_LEVEL)
    if UNKNOWN not in text:
        assert not any(UNKNOWN in s.text for s in spans)


@EVERY_TOKEN
def test_any_ids_come_back_whole_even_where_bytes_make_no_character(decoder):
    rng = random.Random(0)
    size = decoder.tokenizer.get_vocab_size()
    for _ in range(300):
        ids = [rng.randrange(size) for _ in range(rng.randint(1, 40))]
        check_complete(decoder.spans(ids), ids, decoder)


@pytest.mark.parametrize("character", [SMILE, CHINESE[0], "é", "\N{EURO SIGN}"])
@EVERY_TOKEN
def test_a_character_cut_into_tokens_is_one_span(decoder, character):
    ids = encode(character) if decoder is BYTE_LEVEL else list(character.encode())
    assert len(ids) == len(character.encode())
    around = decoder.tokenizer.token_to_id("a" if decoder is BYTE_LEVEL else "the")
    spans = decoder.spans([around, *ids, *ids, around])
    n = len(ids)
    assert spans[1:3] == [Span(1, 1 + n, character), Span(1 + n, 1 + 2 * n, character)]


def test_spans_are_no_longer_than_needed():
    ids = encode(f"two red{SMILE} pears{CHINESE}")
    spans = BYTE_LEVEL.spans(ids)
    for span in spans:
        assert span.end - span.start == (1 if span.text.isascii() else len(span.text.encode()))
    assert max(s.end - s.start for s in BYTE_LEVEL.spans(encode(FAMILY))) <= 4


def test_half_a_character_at_the_end_is_shown_as_what_it_decodes_to():
    ids = encode(f"so {SMILE}")[:-1]
    spans = BYTE_LEVEL.spans(ids)
    check_complete(spans, ids, BYTE_LEVEL)
    assert [s.text for s in spans] == ["so", " ", UNKNOWN]
    assert spans[-1].end - spans[-1].start == 3


def test_broken_bytes_do_not_swallow_what_follows():
    ids = [*encode(SMILE)[:2], *encode(" the two pears")]
    assert [s.text for s in BYTE_LEVEL.spans(ids)] == [UNKNOWN, *(BYTE_LEVEL.text([i]) for i in ids[2:])]


def test_a_long_run_of_bytes_that_ends_in_half_a_character_keeps_the_rest_apart():
    word = SENTENCEPIECE.tokenizer.token_to_id("▁cat")
    ids = [word, word, *("ก" * 60).encode()[:-1], word, word]
    spans = SENTENCEPIECE.spans(ids)
    check_complete(spans, ids, SENTENCEPIECE)
    assert [s.text for s in spans[:2]] == ["cat", " cat"]
    assert [s.text for s in spans[-2:]] == [" cat", " cat"]


def test_the_space_before_a_sentencepiece_word_belongs_to_it():
    ids = [SENTENCEPIECE.tokenizer.token_to_id(w) for w in ("▁the", "▁cat", "s", "▁a")]
    assert [s.text for s in SENTENCEPIECE.spans(ids)] == ["the", " cat", "s", " a"]
    assert SENTENCEPIECE.visible(ids[0]) == "·the"


def test_special_tokens_are_text_like_any_other():
    ids = encode("<|im_start|>the<|im_end|>")
    assert BYTE_LEVEL.spans(ids)[0].text == "<|im_start|>"


@given(st.text(alphabet=st.characters(), max_size=40))
def test_what_is_visible_cannot_act(text):
    shown = visible(text)
    assert bool(shown) == bool(text)
    joiners = "\N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}"
    acting = [c for c in shown if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") and c not in joiners]
    assert acting == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\n", "↵"),
        ("\t", "⇥"),
        ("\x1b[31m", "⟨ESC⟩[31m"),
        ("\x07\r\x00", "⟨U+0007⟩⟨CR⟩⟨U+0000⟩"),
        ("\x9b31m", "⟨U+009B⟩31m"),
        ("a\N{RIGHT-TO-LEFT OVERRIDE}b", "a⟨U+202E⟩b"),
        (" ", "·"),
        ("   ", "···"),
        (" the", " the"),
        ("\N{ZERO WIDTH JOINER}", "⟨U+200D⟩"),
        (FAMILY, FAMILY),
        (CHINESE, CHINESE),
        ("<b>&amp;", "<b>&amp;"),
    ],
)
def test_signs(text, shown):
    assert visible(text) == shown


def test_labels_of_single_tokens_are_one_harmless_line():
    labels = [BYTE_LEVEL.visible(i) for i in range(BYTE_LEVEL.tokenizer.get_vocab_size())]
    assert all(label and visible(label) == label and UNKNOWN not in label for label in labels)
    assert BYTE_LEVEL.visible(encode(SMILE)[0]) == "⟨F0⟩"
    assert SENTENCEPIECE.visible(0xF0) == "⟨F0⟩"
    assert BYTE_LEVEL.visible(encode(" ")[0]) == "·"


def test_pieces_of_a_stored_sequence_know_their_tokens():
    seen = store_with_masks()
    decoder = Decoder(seen)
    for number in range(seen.manifest.sequences):
        view = read_sequence(seen, number, mask="eksft")
        pieces = view.pieces()
        assert [t.index for p in pieces for t in p.tokens] == list(range(len(view)))
        assert [t.id for p in pieces for t in p.tokens] == view.ids.tolist()
        assert "".join(p.text for p in pieces) == decoder.text(view.ids.tolist())
        for token in (t for p in pieces for t in p.tokens):
            assert token.kept == bool(view.keep[token.index])
            assert token.dropped == (token.is_target and not token.kept) == bool(token.clauses)
            assert ("entropy" in token.statistics) == token.is_target
            assert token.role == "assistant" or not token.is_target
            assert token.protected == (token.is_target and token.id in seen.manifest.tokenizer.end_of_turn_ids)


def test_what_a_rule_protects_is_marked_whatever_its_protection_reads(tmp_path):
    own = copy_of_store(tmp_path)
    build_mask(own, Rule(drop="position < 5", protect="kl > quantile(kl, 0.8) or top(entropy, 0.00001)"), "careful")
    limit = own.masks["careful"].manifest.thresholds["quantile(kl, 0.8)"]
    marked = 0
    for number in range(own.manifest.sequences):
        view = read_sequence(own, number, mask="careful")
        expected = [kl is not None and kl > limit for kl in view.statistics["kl"]]
        assert view.protected.tolist() == expected
        marked += sum(expected)
    assert marked > 0


@pytest.mark.parametrize("damage", [None, "{not json"])
def test_a_missing_or_damaged_tokenizer_is_one_line_that_names_it(tmp_path, damage):
    own = copy_of_store(tmp_path)
    path = own.tokenizer_folder / "tokenizer.json"
    path.unlink()
    if damage is not None:
        path.write_text(damage)
    with pytest.raises(TokenstatsError, match=r"tokenizer\.json"):
        Decoder(own)
