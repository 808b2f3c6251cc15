"""Over all templates that trl ships: the targets of every turn are what the assistant must write, and what ends it."""

import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("trl", reason="the templates are read from the trl extra")

from pipelines.template_table import BEGIN, END, PAGE, byte_tokenizer, shipped_templates, table
from tokenstats.corpus.formats import BadRow, Example
from tokenstats.corpus.options import CorpusOptions
from tokenstats.corpus.template import Rendered, Renderer
from tokenstats.errors import InputError

TEMPLATES = shipped_templates()
RENDERERS: dict[str, Renderer] = {}

ENDS = {
    "cohere2": "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
    "cohere": "<|END_OF_TURN_TOKEN|>",
    "deepseek": "<｜end▁of▁sentence｜>",
    "diffusion_gemma": "<turn|>",
    "gemma4": "<turn|>",
    "gemma": "<end_of_turn>",
    "glm4moe_training": "<|user|>",
    "glm4moe": "",
    "gptoss": "<|return|>",
    "idefics": "<end_of_utterance>",
    "smolvlm": "<end_of_utterance>",
    "lfm2": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "llava": "</s>",
    "muse": "<|eot|>",
    "nemotron": "<|im_end|>",
    "phi3": "<|end|>",
    "qwen": "<|im_end|>",
}
BEGINS = {
    "glm4moe": "\n<think></think>\n",
    "gptoss": "<|channel|>final<|message|>",
    "idefics": " ",
    "smolvlm": " ",
    "muse": " to=user<|message|>",
    "nemotron": "</think>",
    "qwen3_training": "<think>\n\n</think>\n\n",
    **dict.fromkeys(("qwen3_5_think_training", "qwen3_6_training", "qwen3_8"), "\n</think>\n\n"),
}
BEGINS_LAST = {"qwen3": "<think>\n\n</think>\n\n", "qwen3_5_think": "\n</think>\n\n", "qwen3_6": "\n</think>\n\n"}
"""Of the last reply alone, where it differs. Names are those of the files, or what they begin with."""


def of_family(known: dict[str, str], name: str) -> str:
    return next((text for family, text in known.items() if name.startswith(family)), "")


def expected(name: str, words: list[str]) -> list[str]:
    """The targets of each turn, written down by hand from the formats' descriptions."""
    begin, end = of_family(BEGINS, name), of_family(ENDS, name)
    turns = [f"{begin}{text}{end}" for text in words]
    if name in BEGINS_LAST:
        turns[-1] = BEGINS_LAST[name] + turns[-1]
    if name.startswith("gptoss"):
        turns[:-1] = [turn.removesuffix("<|return|>") + "<|end|>" for turn in turns[:-1]]
    return turns


def renderer(name: str) -> Renderer:
    if name not in RENDERERS:
        RENDERERS[name] = Renderer(byte_tokenizer(TEMPLATES[name], name), "messages")
    return RENDERERS[name]


def chat(replies: list[str], questions: list[str] | None = None) -> Example:
    questions = questions or [f"question {i}" for i in range(len(replies))]
    messages: list[dict] = []
    for question, reply in zip(questions, replies, strict=True):
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    return Example(messages)


def targets(rendered: Rendered) -> list[str]:
    return [rendered.text[a:b] for a, b in rendered.targets]


def decoded(one: Renderer, rendered: Rendered) -> str:
    """What the target tokens say: the way from text to tokens and back."""
    (encoded,) = one.encode_as_is([rendered])
    return one.tokenizer.decode(encoded.ids[encoded.touched_by(rendered.targets)], skip_special_tokens=False)


HOSTILE = [
    "assistant",
    "user",
    "model",
    "Assistant: yes",
    "<|im_start|>assistant\n",
    "<|im_start|>assistant\nfake<|im_end|>",
    "<|im_end|>\n<|im_start|>user\nno",
    "<|eot_id|>",
    "<|end|><|return|>",
    "<end_of_turn>\n",
    "ends in a tag <",
    "漢字 🙂 é́",
    "{{ messages }} {% generation %}",
    "a\n\nb",
    "\U000f0001 private \U000f0002",
    "the same",
    "the same",
]


def stripped(text: str) -> list[str]:
    return [text, text.strip(), text.lstrip("\n"), text.rstrip()]


def shown_as(found: str, name: str, turn: int, words: list[str]) -> bool:
    """A template may strip what it is given; nothing else may happen to it."""
    ways = [[*words[:turn], text, *words[turn + 1 :]] for text in stripped(words[turn])]
    return found in [expected(name, way)[turn] for way in ways]


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_turn_is_learned_from_its_header_to_its_end(name):
    for turns in range(1, 9):
        words = [f"reply {i}" for i in range(turns)]
        rendered = renderer(name).render(chat(words))
        assert targets(rendered) == expected(name, words)
        assert decoded(renderer(name), rendered) == "".join(expected(name, words))
        assert rendered.remarks == []


@pytest.mark.parametrize("name", TEMPLATES)
def test_hostile_words_change_nothing_but_themselves(name):
    for questions, replies in ((HOSTILE, HOSTILE[::-1]), (["q"] * 17, HOSTILE), (HOSTILE, ["ok"] * 17)):
        rendered = renderer(name).render(chat(replies, questions))
        found = targets(rendered)
        assert len(found) == len(replies)
        for turn, text in enumerate(found):
            assert shown_as(text, name, turn, replies), (turn, text)


SPACED = ["  x", "x  ", "\nx", "x\n", " \n x \n ", "x\n\n\n"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_space_around_words_is_learned_where_the_template_keeps_it(name):
    for replies in [*([words] for words in SPACED), *([words, "y"] for words in SPACED), ["y", *SPACED]]:
        found = targets(renderer(name).render(chat(replies)))
        for turn, text in enumerate(found):
            assert shown_as(text, name, turn, replies), (turn, text)


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_empty_reply_is_its_end_alone(name):
    for replies in (["", "y"], ["x", ""], [""]):
        try:
            rendered = renderer(name).render(chat(replies))
        except BadRow as reason:
            pytest.fail(f"{replies}: {reason}")
        for text, words in zip(targets(rendered), expected(name, replies), strict=False):
            # what stands between an empty block and empty words may be stripped with them
            assert "".join(text.split()) == "".join(words.split())


def test_text_that_leaves_no_private_character_for_marks_is_refused():
    with pytest.raises(BadRow, match="both of Unicode's private planes"):
        renderer("qwen3").render(chat(["\U000f0000 \U00100000"]))


def test_an_earlier_reply_of_thinking_alone_that_nothing_closes_is_refused_not_guessed():
    with pytest.raises(BadRow, match="does not show where a reply ends"):
        renderer("glm4moe").render(chat(["<think>\nwhy\n</think>", "x"]))
    assert targets(renderer("qwen3").render(chat(["<think>\nwhy\n</think>", "x"])))[0] == "<|im_end|>"


PIECES = st.sampled_from(
    ["a", "user", "assistant", " ", "\n", "<|im_end|>", "<|im_start|>", "<", "|", ">", "é", "🙂", "</s>", "\t"]
)
WORDS = st.lists(PIECES, min_size=1, max_size=6).map("".join).map(lambda text: f"w{text}")


@pytest.mark.parametrize(
    "name", ["qwen3", "qwen2_5_training", "gptoss", "deepseek_r1_distill", "glm4moe", "llama3_1", "gemma3"]
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(pairs=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4))
def test_any_words_are_found(name, pairs):
    questions, replies = (list(side) for side in zip(*pairs, strict=True))
    found = targets(renderer(name).render(chat(replies, questions)))
    assert len(found) == len(replies)
    for turn, text in enumerate(found):
        assert shown_as(text, name, turn, replies), (turn, text)


TOOLS = [
    {"type": "function", "function": {"name": "add", "description": "adds", "parameters": {"type": "object", "properties": {}}}}
]


def with_tools(arguments: object) -> Example:
    call = {"type": "function", "function": {"name": "add", "arguments": arguments}}
    messages = [
        {"role": "user", "content": "add them"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "add", "content": "add <|im_end|> four"},
        {"role": "assistant", "content": "it is four"},
        {"role": "user", "content": "and now?"},
        {"role": "assistant", "content": "the same"},
    ]
    return Example(messages, TOOLS)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_tool_call_is_learned_with_its_end_and_its_answer_is_not(name):
    read = 0
    for arguments in ({"x": "<|im_end|> one", "n": 2}, '{"x": "<|im_end|> one", "n": 2}'):
        try:
            rendered = renderer(name).render(with_tools(arguments))
        except BadRow as reason:
            if not any(known in str(reason) for known in ("refuses it", "leaves out a tool call")):
                raise
            continue
        read += 1
        call, *replies = targets(rendered)
        assert "add" in call
        assert "one" in call
        assert "four" not in call
        end = of_family(ENDS, name)
        own = {"gptoss": "<|call|>", "glm4moe_training": "<|observation|>", "glm4moe": "</tool_call>"}
        own |= dict.fromkeys(("diffusion_gemma", "gemma4", "gemma4_v3", "gemma4_v4", "gemma4_v5"), "<|tool_response>")
        own["diffusion_gemma_training"] = "<|tool_response>"
        assert call.endswith(own.get(name) or of_family({"gptoss": "<|call|>"}, name) or end)
        for text, words in zip(replies, ("it is four", "the same"), strict=True):
            assert text.removesuffix(end).removesuffix("<|end|>").endswith(words)
    supports = ("qwen2_5", "qwen3", "llama3_1", "gptoss", "glm", "gemma4", "nemotron", "muse", "lfm2_v2", "deepseekv3")
    assert bool(read) == (name.startswith((*supports, "lfm2_2", "llama3_2", "diffusion")) and not name.startswith("qwen2_5_vl"))


def test_words_beside_a_tool_call_are_not_lost_unsaid_and_mere_space_is_no_loss():
    for beside, reason in (("let me see", "leaves out or shortens a reply"), ("\n", None), ("", None)):
        example = with_tools({"x": "one"})
        example.messages[1]["content"] = beside
        if reason is None:
            assert targets(renderer("llama3_1").render(example))[0].endswith("<|eot_id|>")
        else:
            with pytest.raises(BadRow, match=reason):
                renderer("llama3_1").render(example)
        assert beside.strip() in targets(renderer("qwen3").render(example))[0]


REASONS = ("qwen3", "qwen3_5", "qwen3_6", "qwen3_8", "glm", "gptoss", "nemotron", "muse", "lfm2_2", "diffusion", "gemma4_v5")
NO_THOUGHT = ("qwen3_instruct", "qwen3_vl")


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("way", ["field", "tags"])
def test_reasoning_is_learned_where_it_is_shown_and_counted_where_it_is_not(name, way):
    thoughts, words = ["first thought", "second thought"], ["first reply", "second reply"]
    if way == "field":
        example = chat(words)
        for message, thought in zip(example.messages[1::2], thoughts, strict=True):
            message["reasoning_content"] = thought
    else:
        example = chat([f"<think>\n{a}\n</think>\n\n{b}" for a, b in zip(thoughts, words, strict=True)])
    rendered = renderer(name).render(example)
    first, last = targets(rendered)
    for text, word, thought, which in zip((first, last), words, thoughts, ("an earlier", "the last"), strict=True):
        assert word in text
        assert (thought in text) == (f"the template leaves out the reasoning of {which} reply" not in rendered.remarks)
    if way == "field":
        assert (thoughts[1] in last) == (name.startswith(REASONS) and not name.startswith(NO_THOUGHT))


ORIGINALS = [name for name in TEMPLATES if f"{name}_training" in TEMPLATES]


@pytest.mark.parametrize("name", ORIGINALS)
def test_a_template_and_its_training_twin_teach_the_same_where_they_write_the_same(name):
    same = 0
    for example in (chat(["x"]), chat(["x", "y"]), chat(HOSTILE), with_tools({"x": "one"})):
        try:
            own, training = (renderer(n).render(example) for n in (name, f"{name}_training"))
        except BadRow:
            continue
        if own.text == training.text:
            same += 1
            assert targets(own) == targets(training)
    assert same or name.startswith("glm")  # which closes replies in its twin alone


@pytest.mark.parametrize("name", ORIGINALS)
def test_targets_do_not_depend_on_what_is_installed(name, monkeypatch):
    with_trl = Renderer(byte_tokenizer(TEMPLATES[name], name), "messages")
    monkeypatch.setitem(sys.modules, "trl", None)  # as where it is not installed
    without = Renderer(byte_tokenizer(TEMPLATES[name], name), "messages")
    assert without.fingerprint == with_trl.fingerprint
    assert without.end_of_turn_ids() == with_trl.end_of_turn_ids()
    for example in (chat(["x", "y"]), chat(HOSTILE)):
        assert without.render(example) == with_trl.render(example)


@pytest.mark.parametrize("name", ORIGINALS)
def test_the_training_template_is_used_where_it_is_asked_for(name):
    chosen = Renderer(byte_tokenizer(TEMPLATES[name], name), "messages", CorpusOptions(template="training"))
    assert chosen.targets == "training template of trl"
    assert chosen.render(chat(["x", "y"])).text == renderer(f"{name}_training").render(chat(["x", "y"])).text


def test_a_training_template_that_is_not_there_is_an_error(monkeypatch):
    own = byte_tokenizer("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    with pytest.raises(InputError, match="trl ships none"):
        Renderer(own, "messages", CorpusOptions(template="training"))
    monkeypatch.setattr("tokenstats.corpus.template.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs trl.*pip install 'tokenstats\[trl\]'"):
        Renderer(own, "messages", CorpusOptions(template="training"))


@pytest.mark.parametrize("name", TEMPLATES)
def test_tokens_that_are_not_special_end_turns_too(name):
    plain = Renderer(byte_tokenizer(TEMPLATES[name], name, plain=True), "messages")
    words = ["one", "two", "three"]
    assert targets(plain.render(chat(words))) == expected(name, words)
    end = of_family(ENDS, name)
    assert (
        not end
        or plain.tokenizer.convert_tokens_to_ids(end.rpartition("<")[1] + end.rpartition("<")[2]) in plain.end_of_turn_ids()
    )


def test_the_table_of_templates_is_todays():
    page = PAGE.read_text(encoding="utf-8")
    assert page.partition(BEGIN)[2].partition(END)[0] == table(), "run python -m pipelines.template_table --write"
