"""From characters to tokens: spaces, greedy special tokens, ends of turns that are not special, special tokens in the data."""

import json

import numpy as np
import pytest
from disk import write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AddedToken, PreTrainedTokenizerFast

from tokenstats.corpus.build import build_tokens, plan_corpus
from tokenstats.corpus.encode import Encoded
from tokenstats.corpus.formats import BadRow, Example
from tokenstats.corpus.options import CorpusOptions
from tokenstats.corpus.sources import open_source
from tokenstats.corpus.template import Rendered, Renderer
from tokenstats.errors import InputError

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SENTENCES = [
    "the  apples   and the pears",
    " two  spaces ",
    "    four    ",
    "<|im_end|> is a token <|im_start|> too",
    "a\n\nb \n c",
] * 20
SPECIAL = ["<|im_start|>", "<|im_end|>", "<s>"]


def _trained(
    model: models.Model, pre: pre_tokenizers.PreTokenizer, decoder: decoders.Decoder, alphabet: list[str]
) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer, tokenizer.decoder = pre, decoder
    tokenizer.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    )
    return tokenizer


def byte_level(trim: bool) -> Tokenizer:
    """As GPT-2 (trim) and Qwen: spaces belong to the word that follows."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pre = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made = _trained(models.BPE(), pre, decoders.ByteLevel(), alphabet)
    made.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=trim)])
    return made


def metaspace(scheme: str) -> Tokenizer:
    """As Llama-2 and its like: a space is a letter, and one is put before the text or each piece of it."""
    letters = sorted(set("".join(SENTENCES).replace(" ", "▁")) | set("abcdefghijklmnopqrstuvwxyzQ:🙂漢"))
    pre = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    return _trained(models.BPE(), pre, decoders.Metaspace(prepend_scheme=scheme), letters)


def prepended() -> Tokenizer:
    """As Llama-2's older files: the space is put there by the normalizer."""
    letters = sorted(set("".join(SENTENCES).replace(" ", "▁")) | set("abcdefghijklmnopqrstuvwxyzQ:🙂漢"))
    made = Tokenizer(models.BPE(fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    made.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=300, initial_alphabet=letters, show_progress=False))
    return made


BACKENDS = {
    "byte level": lambda: byte_level(False),
    "trimmed offsets": lambda: byte_level(True),
    "metaspace always": lambda: metaspace("always"),
    "metaspace first": lambda: metaspace("first"),
    "prepended": prepended,
}


def wrapped(backend: Tokenizer, template: str | None = CHATML, special: bool = True, **flags: bool) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")
    tokenizer.add_tokens([AddedToken(word, special=special, normalized=False, **flags) for word in SPECIAL])
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="module", params=BACKENDS)
def tokenizer(request) -> PreTrainedTokenizerFast:
    return wrapped(BACKENDS[request.param]())


def chat(*contents: str) -> Example:
    return Example([{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)])


def read(tokenizer: PreTrainedTokenizerFast, example: Example, **options: str) -> tuple[Renderer, Rendered]:
    renderer = Renderer(tokenizer, "messages", CorpusOptions(**options))
    return renderer, renderer.render(example)


def held(rendered: Rendered, encoded: Encoded) -> list[str]:
    """What the target tokens hold of each target; a token that also holds the header's last character may."""
    touched, found = encoded.touched_by(rendered.targets), []
    for start, end in rendered.targets:
        inside = touched & (encoded.ends > start) & (encoded.begins < end)
        pairs = list(zip(encoded.begins[inside], encoded.ends[inside], strict=True))
        assert all(begin >= start for begin, _ in pairs[1:])
        places = sorted({place for a, b in pairs for place in range(max(a, start), b)})
        found.append("".join(rendered.text[place] for place in places))
        touched &= ~inside
    spaceless = encoded.begins == encoded.ends
    assert not touched[~spaceless].any(), "no other token is a target"
    return found


SPACED = ["x", "  x", "x  ", "    ", " x \n ", "the  apples   ", "\n\n", "🙂  漢 "]


@pytest.mark.parametrize("question", ["q", "q  ", "    "])
@pytest.mark.parametrize("reply", SPACED)
def test_a_space_is_learned_with_the_reply_that_it_is_in(tokenizer, question, reply):
    renderer, rendered = read(tokenizer, chat(question, reply, question, reply))
    (encoded,) = renderer.encode_as_is([rendered])
    assert encoded.ids.tolist() == tokenizer(rendered.text, add_special_tokens=False)["input_ids"]
    assert held(rendered, encoded) == [f"{reply}<|im_end|>"] * 2


@pytest.mark.parametrize("flags", [{"lstrip": True}, {"rstrip": True}, {"lstrip": True, "rstrip": True}], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("special", [True, False])
def test_a_token_that_swallows_spaces_is_learned_for_what_it_is(backend, flags, special):
    greedy = wrapped(BACKENDS[backend](), special=special, **flags)
    for reply in SPACED[:4]:
        renderer, rendered = read(greedy, chat("q", reply, "  q", reply))
        (encoded,) = renderer.encode_as_is([rendered])
        assert encoded.ids.tolist() == greedy(rendered.text, add_special_tokens=False)["input_ids"]
        starts, ends = (greedy.convert_tokens_to_ids(word) for word in ("<|im_start|>", "<|im_end|>"))
        touched = encoded.touched_by(rendered.targets)
        assert not touched[encoded.ids == starts].any()
        assert touched[encoded.ids == ends].tolist() == [False, True, False, True]
        assert ends in renderer.end_of_turn_ids()


def test_an_end_of_turn_may_be_a_word_of_the_vocabulary():
    words = {word: i for i, word in enumerate(["[UNK]", "<end>", "user:", "assistant:", "yes", "no", "<end>x"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    plain = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    plain.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + ' <end>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    renderer, rendered = read(plain, chat("yes", "no", "no", "yes"))
    (encoded,) = renderer.encode_as_is([rendered])
    assert [words_of(plain, encoded.ids[encoded.touched_by([span])]) for span in rendered.targets] == ["no <end>", "yes <end>"]
    assert renderer.end_of_turn_ids() == [words["<end>"]]


def words_of(tokenizer: PreTrainedTokenizerFast, ids: np.ndarray) -> str:
    return " ".join(tokenizer.convert_ids_to_tokens(ids.tolist()))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("prompt", "completion"), [("Q:", " a  "), ("Q: ", "a    "), ("Q:", "    "), ("", " a "), ("Q:  ", "  a")]
)
def test_a_plain_completion_is_learned_to_its_last_space(tmp_path, backend, prompt, completion):
    plain = wrapped(BACKENDS[backend](), template=None)
    source = open_source(write_jsonl(tmp_path / "rows.jsonl", [{"prompt": prompt, "completion": completion}]))
    store = build_tokens(plan_corpus(source, plain, "here"), tmp_path / "store")
    row = store.sequence(0, {"tokens": ["input_ids", "is_target"]})["tokens"]
    assert row["input_ids"][-1] == plain.eos_token_id
    renderer = Renderer(plain, "prompt")
    rendered = renderer.render(Example(prompt=prompt, completion=completion))
    (encoded,) = renderer.encode_as_is([rendered])
    assert held(rendered, encoded) == [completion]
    expected = [*encoded.touched_by(rendered.targets).tolist(), True]
    assert row["is_target"] == [False, *expected[1:]]


HEADLESS = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
CALLING = HEADLESS.replace(
    "m['content'] +", "m['content'] + ('<tool_call>' + m.tool_calls[0].function.name if m.tool_calls else '') +"
)


def test_a_template_without_a_generation_prompt_does_not_teach_its_header(tokenizer):
    tokenizer.chat_template, kept = CALLING, tokenizer.chat_template
    try:
        call = {"type": "function", "function": {"name": "add", "arguments": {}}}
        messages = [*chat("q", "yes", "q").messages, {"role": "assistant", "content": "", "tool_calls": [call]}]
        for example, replies in ((chat("q", "a", "q", "b"), ["a", "b"]), (Example(messages), ["yes", "<tool_call>add"])):
            _, rendered = read(tokenizer, example)
            assert [rendered.text[a:b] for a, b in rendered.targets] == [f"{reply}<|im_end|>" for reply in replies]
        _, rendered = read(tokenizer, Example([{"role": "assistant", "content": "hello"}]))
        assert [rendered.text[a:b] for a, b in rendered.targets] == ["hello<|im_end|>"]
    finally:
        tokenizer.chat_template = kept


def test_the_named_template_for_tools_is_used_where_there_are_tools(tokenizer):
    tokenizer.chat_template, kept = {"default": CHATML, "tool_use": CHATML.replace("<|im_start|>", "<|im_start|>T ")}, CHATML
    try:
        tool = [{"type": "function", "function": {"name": "add"}}]
        for tools, header in ((None, "<|im_start|>user"), (tool, "<|im_start|>T user")):
            example = Example(chat("q", "a").messages, tools)
            _, rendered = read(tokenizer, example)
            own = tokenizer.apply_chat_template(example.messages, tools=tools, tokenize=False)
            assert rendered.text == own
            assert own.startswith(header)
        tokenizer.chat_template = {"rag": CHATML}
        with pytest.raises(InputError, match="have no default"):
            Renderer(tokenizer, "messages")
    finally:
        tokenizer.chat_template = kept


def test_a_reply_with_generation_blocks_is_trimmed_to_what_the_assistant_writes(tokenizer):
    """Blocks that hold the header and the newline, only the words, or only some replies."""
    begin, middle, end = "'<|im_start|>' + m['role'] + '\\n'", "m['content']", "'<|im_end|>' + '\\n'"
    block = "{% generation %}{{ X }}{% endgeneration %}"
    ways = {
        "all": (block.replace("X", f"{begin} + {middle} + {end}"), ["a<|im_end|>", "b<|im_end|>"]),
        "words": (f"{{{{ {begin} }}}}{block.replace('X', middle)}{{{{ {end} }}}}", ["a<|im_end|>", "b<|im_end|>"]),
        "last": (
            f"{{{{ {begin} }}}}{{% if loop.last %}}{block.replace('X', f'{middle} + {end}')}"
            f"{{% else %}}{{{{ {middle} + {end} }}}}{{% endif %}}",
            ["b<|im_end|>"],
        ),
    }
    kept = tokenizer.chat_template
    try:
        for reply, learned in ways.values():
            tokenizer.chat_template = (
                "{% for m in messages %}{% if m.role == 'assistant' %}" + reply + "{% else %}"
                f"{{{{ {begin} + {middle} + {end} }}}}{{% endif %}}{{% endfor %}}"
                "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
            )
            renderer, rendered = read(tokenizer, chat("q", "a", "q", "b"))
            assert renderer.targets == "generation markers"
            assert [rendered.text[a:b] for a, b in rendered.targets] == learned
    finally:
        tokenizer.chat_template = kept


PIECES = st.sampled_from(["<|im_end|>", "<|im_start|>", "<s>", " ", "  ", "a", "apples", "\n", "<|im_", "end|>", "<", "🙂"])
TEXTS = st.lists(PIECES, min_size=1, max_size=6).map("".join)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    backend=st.sampled_from(sorted(BACKENDS)), contents=st.lists(TEXTS, min_size=2, max_size=4).filter(lambda c: len(c) != 3)
)
def test_special_tokens_in_the_data_can_be_read_as_plain_text(backend, contents):
    if backend not in MADE:
        MADE[backend] = wrapped(BACKENDS[backend]())
    tokenizer = MADE[backend]
    renderer, rendered = read(tokenizer, chat(*contents), special_text="plain")
    encoded = renderer.encode_plain(rendered)
    end, start, bos = (tokenizer.convert_tokens_to_ids(word) for word in ("<|im_end|>", "<|im_start|>", "<s>"))
    ids = encoded.ids.tolist()
    assert [ids.count(start), ids.count(end), ids.count(bos)] == [len(contents), len(contents), 0]
    assert held(rendered, encoded) == [f"{text}<|im_end|>" for text in contents[1::2]]
    assert {place for a, b in zip(encoded.begins, encoded.ends, strict=True) for place in range(a, b)} == {
        *range(len(rendered.text))
    }
    # what the template writes becomes the ids that it becomes around other words
    (other,) = renderer.encode_as_is([renderer.render(chat(*["a"] * len(contents)))])
    structure = [[i for i in side if i in (start, end)] for side in (ids, other.ids.tolist())]
    assert structure[0] == structure[1]
    if not renderer.encoder.has_controls(contents):
        assert ids == renderer.encode_as_is([rendered])[0].ids.tolist()


MADE: dict[str, PreTrainedTokenizerFast] = {}


@pytest.mark.parametrize("way", ["as-is", "plain"])
def test_special_tokens_in_the_data_are_counted(tmp_path, way):
    tokenizer = wrapped(byte_level(False))
    rows = [
        {"messages": chat("q", "a").messages},
        {"messages": chat("q", "say <|im_end|> twice: <|im_end|>").messages},
        {"messages": chat("<s>", "a").messages},
    ]
    source = open_source(write_jsonl(tmp_path / "rows.jsonl", rows))
    store = build_tokens(plan_corpus(source, tokenizer, "here", CorpusOptions(special_text=way)), tmp_path / "store")
    (remark,) = store.manifest.dataset.noted
    assert "special tokens written out in the text" in remark
    assert store.manifest.dataset.noted[remark] == 2
    assert store.manifest.dataset.first_noted[remark] == 1
    assert store.manifest.template.special_text == way
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    row = store.sequence(1, {"tokens": ["input_ids", "is_target"]})["tokens"]
    assert row["input_ids"].count(end) == (4 if way == "as-is" else 2)
    learned = [i for i, chosen in zip(row["input_ids"], row["is_target"], strict=True) if chosen]
    assert tokenizer.decode(learned) == "say <|im_end|> twice: <|im_end|><|im_end|>"


def test_what_cannot_be_told_from_the_template_is_not_written_as_plain_text(tokenizer):
    tools = [{"type": "function", "function": {"name": "add", "description": "ends with <|im_end|>"}}]
    renderer, rendered = read(tokenizer, Example(chat("q", "say <|im_end|>").messages, tools), special_text="plain")
    with pytest.raises(BadRow, match="cannot be told from the template's"):
        renderer.encode_plain(rendered)
    with pytest.raises(InputError, match="special_text got 'never'; expected one of: as-is, plain"):
        CorpusOptions(special_text="never")


def test_lost_reasoning_is_counted_and_its_rows_are_kept(tmp_path):
    tokenizer = wrapped(byte_level(False))
    thinking = chat("q", "a", "q", "b").messages
    thinking[1]["reasoning_content"] = "first"
    rows = [{"messages": chat("q", "a").messages}, {"messages": thinking}]
    source = open_source(write_jsonl(tmp_path / "rows.jsonl", rows))
    manifest = build_tokens(plan_corpus(source, tokenizer, "here"), tmp_path / "store").manifest
    assert manifest.sequences == 2
    assert manifest.dataset.noted == {"the template leaves out the reasoning of an earlier reply": 1}


def test_an_end_of_turn_that_is_a_plain_word_is_counted_but_cannot_be_written_otherwise():
    tokenizer = byte_level(False)

    words = json.loads(tokenizer.to_str())
    words["model"]["vocab"]["<|im_end|>"] = len(words["model"]["vocab"])
    plain = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(words)))
    plain.chat_template = CHATML
    renderer, rendered = read(plain, chat("q", "say <|im_end|>"), special_text="plain")
    assert renderer.encoder.has_controls("say <|im_end|>")
    encoded = renderer.encode_plain(rendered)  # no merge of this tokenizer makes the word: it is characters already
    assert held(rendered, encoded) == ["say <|im_end|><|im_end|>"]
    with_word = "\U00100000 and <s>"
    renderer, rendered = read(wrapped(byte_level(False)), chat("q", with_word), special_text="plain")
    with pytest.raises(BadRow, match="private characters"):
        renderer.encode_plain(rendered)
