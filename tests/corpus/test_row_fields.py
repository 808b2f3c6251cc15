"""What other tools write into rows: none of it is read as something else, and what is not read is said."""

import json
from collections.abc import Iterable
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from disk import write_jsonl

from pipelines.template_table import byte_tokenizer
from tokenstats.corpus.build import build_tokens, plan_corpus
from tokenstats.corpus.sources import open_source
from tokenstats.errors import InputError
from tokenstats.store import Store
from tokenstats.training.models import load_store_tokenizer

TEXT_CALLS = (  # a call's arguments with tojson, as Qwen2.5 writes them; tools before the messages
    "{% if tools %}tools {{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }} {{ c.function.arguments | tojson }}</call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OPEN_AT_THE_END = (  # Qwen1.5's first: no reply that is the last is closed, and no prompt follows a reply
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% if add_generation_prompt or not loop.last %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt and messages[-1].role != 'assistant' %}<|im_start|>assistant\n{% endif %}"
)
MISTRAL_LIKE = (  # users and replies have to take turns, calls and their answers between them
    "{% set ns = namespace(n=0) %}{% for m in messages %}"
    "{% if m.role == 'user' or (m.role == 'assistant' and not m.tool_calls) %}"
    "{% if (m.role == 'user') != (ns.n % 2 == 0) %}{{ raise_exception('they take turns') }}{% endif %}"
    "{% set ns.n = ns.n + 1 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]"
    "{% elif m.tool_calls %}"
    "[CALLS] {{ m.tool_calls[0].function.name }} {{ m.tool_calls[0].function.arguments | tojson }}</s>"
    "{% elif m.role == 'tool' %}[RESULT] {{ m.content }}[/RESULT]{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
USER, REPLY = {"role": "user", "content": "q"}, {"role": "assistant", "content": "yes"}


def call(arguments: object, name: str = "f") -> dict:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def calling(arguments: object) -> list[dict]:
    return [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [call(arguments)]},
        {"role": "tool", "content": "4"},
        REPLY,
    ]


def store_of(rows: "Iterable[dict] | Path", folder: Path, template: str = TEXT_CALLS) -> Store:
    path = rows if isinstance(rows, Path) else write_jsonl(folder / "rows.jsonl", list(rows))
    tokenizer = byte_tokenizer(template)
    return build_tokens(plan_corpus(open_source(path), tokenizer, "here"), folder / "store")


def learned(store: Store, number: int = 0) -> list[str]:
    """The stretches of targets of a row, as text."""
    row = store.sequence(number, {"tokens": ["input_ids", "is_target"]})["tokens"]
    at = np.flatnonzero(row["is_target"])
    runs = np.split(at, np.flatnonzero(np.diff(at) > 1) + 1)
    return [load_store_tokenizer(store).decode(np.asarray(row["input_ids"])[run]) for run in runs]


def text_of(store: Store, number: int = 0) -> str:
    return load_store_tokenizer(store).decode(store.sequence(number, {"tokens": ["input_ids"]})["tokens"]["input_ids"])


def test_of_a_prompt_of_messages_no_reply_is_learned(tmp_path):
    """As TRL's trainer reads such rows: few-shot examples are a prompt."""
    example = {"role": "assistant", "content": "an example"}
    row = {"prompt": [USER, example, USER], "completion": [REPLY, USER, {"role": "assistant", "content": "again"}]}
    with_system = {"system": "be brief", **row}
    store = store_of([row, with_system], tmp_path)
    for number in range(2):
        assert learned(store, number) == ["yes<|im_end|>", "again<|im_end|>"]
    assert "an example" in text_of(store, 1)


def test_a_reply_that_the_prompt_begins_is_not_guessed_at(tmp_path):
    rows = [
        {"prompt": [USER, {"role": "assistant", "content": "The"}], "completion": [{"role": "assistant", "content": " end"}]}
    ]
    with pytest.raises(InputError, match="the completion goes on with a reply that the prompt begins: make one message"):
        store_of(rows, tmp_path)


def test_a_reply_of_weight_0_is_read_and_not_learned(tmp_path):
    """As OpenAI has it."""
    wrong = {"role": "assistant", "content": "no", "weight": 0}
    chats = [[USER, wrong, USER, {**REPLY, "weight": 1}], [USER, {**REPLY, "weight": 0.5}], [{**USER, "weight": 0.5}, REPLY]]
    store = store_of([{"messages": chat} for chat in chats], tmp_path)
    assert learned(store) == ["yes<|im_end|>"]
    assert "no<|im_end|>" in text_of(store)
    assert learned(store, 1) == ["yes<|im_end|>"]
    assert store.manifest.dataset.dropped == {"the weight of a reply is neither 0 (not to be learned) nor 1": 1}


def test_openais_former_calls_and_functions_are_calls_and_tools(tmp_path):
    former = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"x": 1}'}}
    rows = [
        {"messages": [USER, former, {"role": "function", "name": "f", "content": "4"}, REPLY], "functions": [{"name": "f"}]},
        {"messages": calling({"x": 1}), "tools": [{"type": "function", "function": {"name": "f"}}]},
        {"messages": [USER, {**former, "function_call": "f"}]},
        {"messages": [USER, {**former, "tool_calls": []}]},
        {"messages": [{**USER, "function_call": {}}, {**REPLY, "function_call": {}}]},
    ]
    store = store_of(rows, tmp_path)
    assert learned(store) == learned(store, 1) == ['<call>f {"x": 1}</call><|im_end|>', "yes<|im_end|>"]
    assert text_of(store).startswith('tools [{"type": "function", "function": {"name": "f"}}]')
    assert store.manifest.dataset.dropped == {"tool_calls are not a list of calls": 1}
    assert learned(store, 2) == ['<call>f {"x": 1}</call><|im_end|>'], "an empty list of calls hides none"
    assert learned(store, 3) == ["yes<|im_end|>"], "an object without a field is no call"


@pytest.mark.parametrize("arguments", ['{"city": "Paris"}', '{"x": null}', "[1]", "Paris", '{"x": '])
def test_arguments_of_json_text_are_what_a_model_is_asked_for_and_others_stay_texts(tmp_path, arguments):
    store = store_of([{"messages": calling(arguments)}], tmp_path)
    is_object = arguments.startswith("{") and arguments.endswith("}")
    assert learned(store)[0] == f"<call>f {arguments if is_object else json.dumps(arguments)}</call><|im_end|>"
    assert any("JSON text" in remark for remark in store.manifest.dataset.noted) == is_object


def test_arguments_of_json_text_stay_texts_where_a_template_writes_them_as_they_are(tmp_path):
    template = TEXT_CALLS.replace("c.function.arguments | tojson", "c.function.arguments")
    store = store_of([{"messages": calling('{"x": "é"}')}], tmp_path, template)
    assert learned(store)[0] == '<call>f {"x": "é"}</call><|im_end|>'
    assert not store.manifest.dataset.noted


def test_a_field_that_only_other_rows_of_a_parquet_file_have_is_not_taught_as_null(tmp_path):
    def tools(**properties: dict) -> list[dict]:
        return [{"type": "function", "function": {"name": "f", "parameters": {"properties": properties}}}]

    rows = [
        {"messages": calling({"city": "Paris"}), "tools": tools(city={"type": "string"})},
        {"messages": calling({"x": [{"deep": 1}, {"other": None}]}), "tools": tools(x={"enum": ["a", None]})},
    ]
    (tmp_path / "lines").mkdir()
    lines = store_of(rows, tmp_path / "lines")
    assert '"other": null' in learned(lines, 1)[0], "a line of JSON says what it says"
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    table = store_of(tmp_path / "rows.parquet", tmp_path)
    assert text_of(table) == text_of(lines)
    assert learned(table, 1)[0] == learned(lines, 1)[0].replace('"other": null', "")
    assert '"enum": ["a", null]' in text_of(table, 1), "a null in a list is one of its items"


_ROLES = {"role": datasets.Value("string"), "content": datasets.Value("string")}
_CALLS = {"type": datasets.Value("string"), "function": {"name": datasets.Value("string"), "arguments": datasets.Json()}}


@pytest.mark.parametrize(
    "messages",
    [
        datasets.Json(),
        datasets.List(datasets.Json()),
        datasets.List({**_ROLES, "tool_calls": datasets.List(datasets.Json())}),
        datasets.List({**_ROLES, "tool_calls": datasets.List(_CALLS)}),
    ],
    ids=["whole", "messages", "calls", "arguments"],
)
def test_columns_of_json_are_read_as_what_they_hold_and_their_nulls_are_meant(tmp_path, messages):
    rows = [{"messages": calling(arguments), "tools": [{"name": "f", "x": None}]} for arguments in ({"city": None}, {"x": 1})]
    given = [{**row, "messages": [{"tool_calls": None, **message} for message in row["messages"]]} for row in rows]
    features = datasets.Features({"messages": messages, "tools": datasets.List(datasets.Json())})
    datasets.Dataset.from_list(given, features=features).to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "lines").mkdir()
    table, lines = store_of(tmp_path / "rows.parquet", tmp_path), store_of(rows, tmp_path / "lines")
    for number in range(2):
        assert text_of(table, number) == text_of(lines, number)
        assert learned(table, number) == learned(lines, number)
    assert '{"city": null}' in learned(table)[0]


def test_a_dataset_of_the_hub_is_read_as_lines_of_json_are(tmp_path, monkeypatch):
    rows = [{"messages": calling({"city": "Paris"})}, {"messages": calling({"x": 1})}]
    of_hub = {
        ("me/data", "train"): datasets.Dataset.from_list(rows),
        ("me/data", "held-out"): datasets.Dataset.from_list(rows[1:]),
    }
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: of_hub[name, split])
    (tmp_path / "lines").mkdir()
    lines, tokenizer = store_of(rows, tmp_path / "lines"), byte_tokenizer(TEXT_CALLS)
    hub = build_tokens(plan_corpus(open_source("me/data"), tokenizer, "here"), tmp_path / "store")
    assert [text_of(hub, number) for number in range(2)] == [text_of(lines, number) for number in range(2)]
    assert hub.manifest.dataset.source == "me/data:train"
    assert [row["messages"][0] for row in open_source("me/data", "held-out").rows()] == [USER]
    with pytest.raises(InputError, match="as a Hub dataset it cannot be loaded"):
        open_source("me/nothing")


@pytest.mark.parametrize("text", ['{"a": ', "[" * 100_000 + "]" * 100_000], ids=["half", "deep"])
def test_a_column_of_json_that_is_none_is_named(tmp_path, text):
    column = pa.ExtensionArray.from_storage(pa.json_(), pa.array([text]))
    pq.write_table(pa.table({"messages": column}), tmp_path / "rows.parquet")
    with pytest.raises(InputError, match=r"column 'messages' \(extension<arrow.json>\) has a value that cannot be read"):
        store_of(tmp_path / "rows.parquet", tmp_path)


def test_what_is_not_read_is_said(tmp_path):
    row = {"messages": [{"role": "system", "content": "one"}, USER, REPLY]}
    rows = [
        {**row, "system": "two", "tools": [{"name": "f"}]},
        {**row, "chat_template_kwargs": {"enable_thinking": False}},
        {**row, "history": [["q", "a"]], "id": 7, "system": None},
        {**row, "history": [], "id": 8},
    ]
    template = TEXT_CALLS.replace("{% if tools %}tools {{ tools | tojson }}\n{% endif %}", "")
    noted = store_of(rows, tmp_path, template).manifest.dataset.first_noted
    assert noted == {
        "its column system is not read: the messages begin with a system message": 0,
        "the template leaves out the tools": 0,
        "its column chat_template_kwargs is not read": 1,
        "its column history is not read": 2,
    }


def test_replies_that_are_closed_but_for_the_last_are_learned_with_their_ends_and_without_headers(tmp_path):
    chats = [[USER, REPLY, USER, REPLY], [USER, REPLY, {"role": "assistant", "content": "and"}]]
    store = store_of([{"messages": chat} for chat in chats], tmp_path, OPEN_AT_THE_END)
    assert learned(store) == ["yes<|im_end|>", "yes"]
    assert learned(store, 1) == ["yes<|im_end|>", "and"]


def test_a_call_in_the_middle_of_turns_that_must_alternate_is_learned(tmp_path):
    store = store_of([{"messages": calling({"x": 1})}], tmp_path, MISTRAL_LIKE)
    assert learned(store) == ['[CALLS] f {"x": 1}</s>', "yes</s>"]


def test_a_folder_is_read_whole_or_not_at_all_and_hidden_copies_are_not(tmp_path):
    (folder := tmp_path / "data").mkdir()
    (hidden := folder / ".ipynb_checkpoints").mkdir()
    for place, said in ((folder / "a.jsonl", "a"), (folder / "b.JSONL", "b"), (hidden / "a-checkpoint.jsonl", "old")):
        write_jsonl(place, [{"messages": [USER, {"role": "assistant", "content": said}]}])
    (folder / "README.md").write_text("rows")
    store = store_of(folder, tmp_path)
    assert [learned(store, number) for number in range(2)] == [["a<|im_end|>"], ["b<|im_end|>"]]
    assert store.manifest.dataset.rows == 2
    (folder / "c.jsonl.gz").write_bytes(b"")
    with pytest.raises(InputError, match=r"holds c.jsonl.gz, which would not be read; .* unpack or convert it, or move"):
        open_source(folder)


def test_lines_of_json_in_a_file_of_another_name_are_recognised(tmp_path):
    path = write_jsonl(tmp_path / "rows.json", [{"text": "a"}, {"text": "b"}])
    with pytest.raises(InputError, match=r"line 2 is not JSON .*; mend the file, or name it .jsonl: its first line"):
        open_source(path)


def test_the_end_of_the_last_reply_is_not_taken_for_that_of_an_earlier_one(tmp_path):
    """Nothing closes the replies before the last, and what stands between has no words that mark it."""
    template = (
        "{% for m in messages %}### {{ m.role }}: {{ m.content }}{% if loop.last and m.role == 'assistant' %}</s>"
        "{% else %}\n{% endif %}{% endfor %}{% if add_generation_prompt %}### assistant:{% endif %}"
    )
    empty = [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}]
    rows = [{"messages": [USER, REPLY, *empty]}, {"messages": [USER, REPLY]}]
    store = store_of(rows, tmp_path, template)
    for number in range(store.manifest.sequences):
        assert all("###" not in stretch for stretch in learned(store, number))
    assert learned(store, store.manifest.sequences - 1) == [" yes</s>"]
