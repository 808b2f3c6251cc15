"""Rules that read what tokens say: where a text stands, what lies between two, and what kind of word a token is."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inspect_fixtures import byte_level_tokenizer, store_with_masks
from synthetic import END_OF_TURN, LETTERS, VOCABULARY, WORDS, add_words, make_store, random_store
from tokenizers import Tokenizer, decoders, models

from tokenstats import Rule, Store, build_mask
from tokenstats.errors import RuleError, StoreError
from tokenstats.masking.engine.decisions import decide
from tokenstats.masking.engine.targets import Targets, iter_targets
from tokenstats.store.vocabulary import class_of


def said_by(tmp_path: Path, rows: Sequence[Sequence[str]], tokenizer: Tokenizer | None = None) -> Store:
    """A store whose tokens say these words; a word in brackets is of the prompt. END_OF_TURN says ``.``."""
    flags = [np.array([not word.startswith("[") for word in row]) for row in rows]
    plain = [[word.strip("[]") for word in row] for row in rows]
    if tokenizer is None:
        words = sorted({word for row in plain for word in row} - {"."})
        assert len(words) < VOCABULARY - END_OF_TURN
        numbered = {".": END_OF_TURN} | {word: END_OF_TURN + 1 + i for i, word in enumerate(words)}
        numbered |= {f"unused {i}": i for i in range(END_OF_TURN)}
        tokenizer = Tokenizer(models.WordLevel(numbered, unk_token="."))
        tokenizer.decoder = decoders.Fuse()
    ids = [np.array([tokenizer.token_to_id(word) for word in row]) for row in plain]
    zeros = [np.zeros(len(row), np.float32) for row in rows]
    store = make_store(tmp_path / "store", ids, flags, {"entropy": zeros, "kl": zeros, "logprob": zeros}, rows_per_part=2)
    store.tokenizer_folder.mkdir()
    tokenizer.save(str(store.tokenizer_folder / "tokenizer.json"))
    return store


def dropped(store: Store, drop: str) -> list[list[int]]:
    """Places in each row of the tokens that a rule drops."""
    mask = build_mask(store, Rule(drop=drop, protect=""), "tried", replace=True)
    kept, flags = [], []
    for index in range(store.part_count):
        kept += store.part(mask.folder, index, ["keep"])["keep"].to_pylist()
        flags += store.part("tokens", index, ["is_target"])["is_target"].to_pylist()
    return [[i for i, (k, f) in enumerate(zip(*pair, strict=True)) if f and not k] for pair in zip(kept, flags, strict=True)]


#       0      1        2       3     4       5     6     7        8     9
ROW = ["[Q:]", "<th", "ink>", "so", " 4", "\n</", "thi", "nk>\n", "####", " 4", "."]


def test_a_worked_example(tmp_path):
    """Markers that no token has alone: those that they begin or end in are outside, and the reasoning between them inside."""
    store = said_by(tmp_path, [ROW])
    assert dropped(store, "between('<think>', '</think>')") == [[3, 4]]
    assert dropped(store, "part_of('</think>')") == [[5, 6, 7]]
    assert dropped(store, "part_of('####')") == [[8]]
    assert dropped(store, "part_of('#')") == [[8]]
    assert dropped(store, "part_of('# 4')") == [[8, 9]]
    assert dropped(store, "part_of(' 4')") == [[4, 9]]
    assert dropped(store, "part_of('five')") == [[]]
    assert dropped(store, "between('four', '</think>')") == [[]]
    assert dropped(store, "between('<think>', '</think>') and not part_of('4')") == [[3]]
    assert dropped(store, "following(part_of('####'))") == [[7]]
    assert dropped(store, r"part_of('\n')") == [[5, 7]]


def test_what_is_not_closed_ends_with_the_reply(tmp_path):
    """A row that was cut in its reasoning, the next reply, and an opening text that the template writes into the prompt."""
    rows = [
        ["[Q]", "a", "<think>", "b", "c", "[Q]", "d", "</think>", "e"],
        ["[Q]", "[<think>]", "b", "c", "</think>", "d", "[Q]", "e"],
        ["[<think>]", "[Q]", "b", "[</think>]", "c"],
    ]
    store = said_by(tmp_path, rows)
    assert dropped(store, "between('<think>', '</think>')") == [[3, 4], [2, 3], [2]]
    assert dropped(store, "part_of('<think>')") == [[2], [], []]


def test_one_text_may_open_and_close(tmp_path):
    store = said_by(tmp_path, [["[Q]", "a", "$", "b", "$", "c", "$", "d", "$$", "e"]])
    assert dropped(store, "between('$', '$')") == [[3, 7, 9]]


def test_occurrences_do_not_overlap(tmp_path):
    store = said_by(tmp_path, [["[Q]", "a", "a", "a", "b", "a", "a"]])
    assert dropped(store, "part_of('aa')") == [[1, 2, 5, 6]]


def test_tokens_that_say_nothing_belong_to_what_they_stand_in(tmp_path):
    """An id may add nothing to a text: inside a text or a stretch it is of it, beside it not."""
    store = said_by(tmp_path, [["[Q]", "", "<", "", "a", "", ">", "", "b", "<", "", ">", "<", ">", "", "."]])
    assert dropped(store, "between('<', '>')") == [[3, 4, 5, 10]]
    assert dropped(store, "part_of('<a>')") == [[2, 3, 4, 5, 6]]
    assert dropped(store, "part_of('a')") == [[4]]
    assert dropped(store, "part_of('<>')") == [[9, 10, 11, 12, 13]]


def test_letters_that_are_cut_into_tokens_are_found(tmp_path):
    """A byte-level vocabulary has no token for these characters: each is three or four tokens, none of which is text."""
    tokenizer = byte_level_tokenizer()
    words = tokenizer.encode("思<思考>考", add_special_tokens=False).tokens
    assert len(words) == 14, "four characters of three bytes and two of one"
    padded = [f"[{word}]" if i < 3 else word for i, word in enumerate(words)]
    store = said_by(tmp_path, [padded], tokenizer)
    store.manifest = store.manifest.model_copy(
        update={"tokenizer": store.manifest.tokenizer.model_copy(update={"size": tokenizer.get_vocab_size()})}
    )
    store.manifest.write(store.path)
    assert dropped(store, "part_of('考')") == [[7, 8, 9, 11, 12, 13]]
    assert dropped(store, "between('<', '>')") == [[4, 5, 6, 7, 8, 9]]
    assert dropped(store, "part_of('思考')") == [[4, 5, 6, 7, 8, 9]]


def test_a_sentencepiece_vocabulary_says_its_spaces_and_bytes(tmp_path):
    """As Llama 2's: a blank is a sign in the word, what is in no word is bytes, and a text's first blank is taken away."""
    words = [".", "▁so", "▁<", "t", ">", *(f"<0x{byte:02X}>" for byte in (*"思".encode(), 10))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["x", "y", *words])}, unk_token="."))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    assert tokenizer.token_to_id(".") == END_OF_TURN
    thought = [f"<0x{byte:02X}>" for byte in "思".encode()]
    store = said_by(tmp_path, [["[▁so]", "▁<", "t", ">", "▁so", *thought, "<0x0A>", "▁so", "."]], tokenizer)
    assert dropped(store, "part_of(' <t>')") == [[1, 2, 3]]
    assert dropped(store, "part_of('思')") == [[5, 6, 7]]
    assert dropped(store, "between('<t>', '思')") == [[4]]
    assert dropped(store, "part_of('\\n so')") == [[8, 9]]
    assert dropped(store, "part_of('so')") == [[4, 9]]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    store = random_store(tmp_path_factory.mktemp("texts") / "store", sequences=60, seed=4, rows_per_part=25)
    add_words(store)
    return store


@pytest.fixture(scope="module")
def populations(store) -> list[Targets]:
    return list(iter_targets(store, [], {}))


def letters_in(said: str, first: str, last: str | None) -> set[int]:
    """Places of the letters between two texts, or, with one, of its own."""
    if last is None:
        return {i for found in re.finditer(re.escape(first), said) for i in range(*found.span())}
    pattern = f"{re.escape(first)}(.*?)({re.escape(last)}|$)"
    return {i for found in re.finditer(pattern, said, re.DOTALL) for i in range(*found.span(1))}


def by_letters(targets: Targets, first: str, last: str | None) -> list[bool]:
    """Of each target, letter by letter: part of the text, or with all of its letters between the two."""
    is_target = np.isin(np.arange(targets.offsets[-1]), targets.place)
    answers = []
    for begin, end in zip(targets.offsets, targets.offsets[1:], strict=False):
        segment: list[int] = []
        for token in range(begin, end):
            segment.append(token)
            if is_target[token] and (token + 1 == end or not is_target[token + 1]):
                words = [WORDS[targets.ids[i]] for i in segment]
                owner = [i for i, word in enumerate(words) for _ in word]
                inside = letters_in("".join(words), first, last)
                for i in range(len(segment)):
                    own = {place for place, of in enumerate(owner) if of == i}
                    answer = bool(own & inside) if last is None else own <= inside
                    answers += [answer] if is_target[segment[i]] else []
                segment = []
    return answers


texts = st.text(LETTERS, min_size=1, max_size=4)


@given(texts, st.none() | texts)
@settings(max_examples=80, deadline=None)
def test_tokens_are_found_as_letter_by_letter(populations, first, last):
    rule = Rule(drop=f"part_of({first!r})" if last is None else f"between({first!r}, {last!r})", protect="")
    for targets in populations:
        assert decide(rule, targets, {}).dropped.tolist() == by_letters(targets, first, last)


def test_the_kind_of_a_token_is_the_audits(store, populations):
    for kind in ("words", "digits", "operators", "punctuation"):
        for targets in populations:
            special = set(targets.tokenizer.special_ids)
            expected = [class_of(WORDS[i]) == kind and i not in special for i in targets.column((None, "token_id"))]
            found = decide(Rule(drop=f"token_class == '{kind}'", protect=""), targets, {}).dropped
            assert found.tolist() == expected
            assert decide(Rule(drop=f"token_class != '{kind}'", protect=""), targets, {}).dropped.tolist() == (~found).tolist()


def test_texts_are_of_the_tokenizer_that_made_the_store(tmp_path):
    own = random_store(tmp_path / "store", sequences=5, seed=1)
    with pytest.raises(StoreError, match=r"tokenizer.json is missing: tokens cannot be decoded"):
        build_mask(own, Rule(drop="part_of('a')"), "a")
    assert not own.has("masks/a")
    made = store_with_masks()
    file = made.tokenizer_folder / "tokenizer.json"
    as_it_was = file.read_bytes()
    try:
        file.write_bytes(as_it_was + b" ")
        with pytest.raises(StoreError, match="was changed after the store was made"):
            build_mask(made, Rule(drop="part_of('a')"), "changed")
    finally:
        file.write_bytes(as_it_was)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ('between("<think>" , "</think>")', "between('<think>', '</think>')"),
        ("part_of('####')", "part_of('####')"),
        ("part_of('a' 'b')", "part_of('ab')"),
        ("part_of('it\\'s')", 'part_of("it\'s")'),
        ("part_of('\\u601d')", "part_of('思')"),
        ("part_of('''a''')", "part_of('a')"),
        ("token_class=='digits'", "token_class == 'digits'"),
    ],
)
def test_one_spelling_for_a_meaning(text: str, canonical: str):
    assert Rule(drop=text).clauses[0].text == canonical
    assert Rule(drop=text).fingerprint == Rule(drop=canonical).fingerprint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("between('<think>')", r"between takes 2 texts in quotes, as in between\('<think>', '</think>'\); got between"),
        ("part_of(think)", "part_of takes a text in quotes"),
        ("part_of(4)", "part_of takes a text in quotes"),
        ("part_of(b'a')", "part_of takes a text in quotes"),
        ("part_of(f'a')", "part_of takes a text in quotes"),
        ("part_of('a', text='b')", "part_of takes a text in quotes"),
        ("part_of(*'a')", r"\* and \*\* have no place"),
        ("part_of('')", "part_of got an empty text, which stands everywhere"),
        ("part_of('a\nb')", r"a text has a line break or a tab in it; write \\n or \\t"),
        ("part_of('a\tb')", r"a text has a line break or a tab in it"),
        ("part_of('\\ud83d')", "has half a character in it"),
        ("part_of('a') > 1", "a comparison needs a number, but .* is a boolean"),
        ("kl > 1 or part_of('#') # high", "a '#' has no place here.*at column 24"),
        ("parts_of('a')", "did you mean 'part_of'"),
        ("token_class == 'digit'", r"token_class is compared with one of words, .*did you mean 'digits'"),
        ("token_class > 'digits'", "token_class is compared with == or !="),
        ("token_class == role", "token_class is compared with == or !="),
        ("following(token_class) == 'digits'", "not a class; compare the class inside it"),
        ("top(token_class, 0.2)", "top needs a number"),
        ("'a' > 1", "has no place here"),
    ],
)
def test_what_is_no_text_is_refused_with_what_to_write(text: str, message: str):
    with pytest.raises(RuleError, match=message) as caught:
        Rule(drop=text)
    assert "\n" not in str(caught.value)
