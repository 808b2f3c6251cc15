"""Rows become ids and targets: every shape, every way of finding targets, and an account of what is left out."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from disk import write_jsonl
from transformers import PreTrainedTokenizerFast

from tokenstats.corpus.build import build_tokens, plan_corpus
from tokenstats.corpus.formats import parse_columns
from tokenstats.corpus.options import CorpusOptions
from tokenstats.corpus.sources import open_source
from tokenstats.errors import InputError, StoreError
from tokenstats.modeling.tokenizer import load_tokenizer
from tokenstats.schema import ROLES
from tokenstats.store import Store
from tokenstats.training.models import load_store_tokenizer

CHAT = [{"role": "user", "content": "What is 2+2?"}, {"role": "assistant", "content": "2+2=4"}]
RENDERED = "<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n2+2=4<|im_end|>\n"
NO_MARKERS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
FORGETFUL = (  # as stock Qwen3: what an earlier reply said is shortened once another turn follows
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{{ m['content'] if loop.last or m['role'] == 'user' else m['content'][:1] }}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(base: str) -> PreTrainedTokenizerFast:
    return load_tokenizer(base)


def build(tokenizer: PreTrainedTokenizerFast, folder: Path, rows: list, **options) -> Store:
    source = open_source(write_jsonl(folder / "rows.jsonl", rows))
    return build_tokens(plan_corpus(source, tokenizer, "here", CorpusOptions(**options)), folder / "store")


def only_row(store: Store) -> dict:
    return store.sequence(0, {"tokens": ["input_ids", "is_target", "role"]})["tokens"]


def learned(tokenizer: PreTrainedTokenizerFast, row: dict) -> str:
    """The text of the targets, gaps shown as |."""
    pieces, previous = [], None
    for t in np.flatnonzero(row["is_target"]):
        pieces += ["|"] if previous is not None and t != previous + 1 else []
        pieces.append(tokenizer.decode([row["input_ids"][t]]))
        previous = t
    return "".join(pieces)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": CHAT},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is 2+2?"}]}, CHAT[1]]},
        {"conversations": [{"from": "human", "value": "What is 2+2?"}, {"from": "gpt", "value": "2+2=4"}]},
        {"prompt": "What is 2+2?", "completion": "2+2=4"},
        {"prompt": CHAT[:1], "completion": CHAT[1:]},
        {"instruction": "What is 2+2?", "input": "", "output": "2+2=4"},
        {"question": "What is 2+2?", "answer": "2+2=4"},
    ],
    ids=["messages", "parts", "sharegpt", "prompt", "prompt-lists", "alpaca", "mapped"],
)
def test_every_shape_gives_the_same_tokens(tokenizer, tmp_path, row):
    columns = {"prompt": "question", "completion": "answer"} if "question" in row else None
    found = only_row(build(tokenizer, tmp_path, [row], columns=columns))
    assert tokenizer.decode(found["input_ids"]) == RENDERED
    assert learned(tokenizer, found) == "2+2=4<|im_end|>"


def test_alpaca_input_follows_the_instruction(tokenizer, tmp_path):
    found = only_row(
        build(tokenizer, tmp_path, [{"instruction": "Add", "input": "2 and 2", "output": "4", "system": "Be brief"}])
    )
    text = tokenizer.decode(found["input_ids"])
    assert "system\nBe brief<|im_end|>\n<|im_start|>user\nAdd\n2 and 2<|im_end|>" in text


def test_a_function_call_is_learned_and_its_result_is_not(tokenizer, tmp_path):
    row = {
        "conversations": [
            {"from": "human", "value": "add 2 and 2"},
            {"from": "function_call", "value": json.dumps({"name": "add", "arguments": {"a": 2, "b": 2}})},
            {"from": "observation", "value": "four"},
            {"from": "gpt", "value": "4"},
        ],
        "tools": json.dumps([{"type": "function", "function": {"name": "add"}}]),
    }
    found = only_row(build(tokenizer, tmp_path, [row]))
    first, second = learned(tokenizer, found).split("|im_end|>|")[0], learned(tokenizer, found)[-11:]
    assert '"name": "add"' in first
    assert second == "4<|im_end|>"
    text = tokenizer.decode(found["input_ids"])
    assert text.startswith("<|im_start|>tools\n")
    assert "<|im_start|>tool\nfour" in text


def test_several_turns_are_all_targets_and_roles_are_told_apart(tokenizer, tmp_path):
    chat = [
        {"role": "system", "content": "Be kind"},
        *CHAT,
        {"role": "user", "content": "and 3+3?"},
        {"role": "assistant", "content": "6"},
    ]
    found = only_row(build(tokenizer, tmp_path, [{"messages": chat}]))
    assert learned(tokenizer, found) == "2+2=4<|im_end|>|6<|im_end|>"
    by_role = {
        name: tokenizer.decode([i for i, r in zip(found["input_ids"], found["role"], strict=True) if ROLES[r] == name])
        for name in ROLES
    }
    assert "Be kind" in by_role["system"]
    assert "What is 2+2?" in by_role["user"]
    assert "and 3+3?" in by_role["user"]
    assert "2+2=4<|im_end|>" in by_role["assistant"]


def test_without_markers_targets_come_from_comparison(tokenizer, tmp_path, base):
    bare = load_tokenizer(base)
    bare.chat_template = NO_MARKERS
    store = build(
        bare, tmp_path, [{"messages": [*CHAT, {"role": "user", "content": "so?"}, {"role": "assistant", "content": "yes"}]}]
    )
    assert store.manifest.template.targets == "with and without the reply"
    assert store.manifest.template.found_by == "rendering each chat with and without the reply"
    assert learned(bare, only_row(store)) == "2+2=4<|im_end|>|yes<|im_end|>"
    assert store.manifest.tokenizer.end_of_turn_ids == (bare.convert_tokens_to_ids("<|im_end|>"),)


def test_a_template_that_rewrites_earlier_turns_is_not_guessed_at(tokenizer, tmp_path, base):
    forgetful = load_tokenizer(base)
    forgetful.chat_template = FORGETFUL
    long = [*CHAT, {"role": "user", "content": "so?"}, {"role": "assistant", "content": "yes"}]
    store = build(forgetful, tmp_path, [{"messages": CHAT}, {"messages": long}])
    assert store.manifest.sequences == 1
    assert "targets cannot be told" in next(iter(store.manifest.dataset.dropped))


def test_a_stock_template_is_read_as_it_is_and_its_training_twin_by_name(tmp_path, base):
    chat_templates = pytest.importorskip("trl.chat_template_utils", reason="needs the trl extra")
    stock = load_tokenizer(base)
    stock.chat_template = chat_templates.qwen3_chat_template
    long = [*CHAT, {"role": "user", "content": "so?"}, {"role": "assistant", "content": "yes"}]
    (tmp_path / "training").mkdir()
    own = build(stock, tmp_path, [{"messages": long}])
    training = build(stock, tmp_path / "training", [{"messages": long}], template="training")
    empty = "<think>\n\n</think>\n\n"
    assert learned(stock, only_row(own)) == f"2+2=4<|im_end|>|{empty}yes<|im_end|>"
    assert learned(stock, only_row(training)) == f"{empty}2+2=4<|im_end|>|{empty}yes<|im_end|>"
    assert [s.manifest.template.source for s in (own, training)] == ["own", "training"]
    assert training.manifest.template.targets == "training template of trl"
    with pytest.raises(StoreError, match="template_source: there own, asked for training"):
        build(stock, tmp_path, [{"messages": long}], template="training")


def test_a_template_can_be_a_file(tokenizer, tmp_path):
    (tmp_path / "own.jinja").write_text(NO_MARKERS.replace("<|im_start|>", "## "))
    store = build(tokenizer, tmp_path, [{"messages": CHAT}], template=str(tmp_path / "own.jinja"))
    found = only_row(store)
    assert tokenizer.decode(found["input_ids"]).startswith("## user\nWhat")
    assert learned(tokenizer, found) == "2+2=4<|im_end|>"
    assert store.manifest.template.source == str(tmp_path / "own.jinja")
    saved = load_store_tokenizer(store)
    assert saved.chat_template == (tmp_path / "own.jinja").read_text() != tokenizer.chat_template


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read"), ("", "is empty"), ("{% for %}", "not valid Jinja"), (b"\xff\xfe", "cannot be read")],
)
def test_a_template_file_that_is_none_is_an_error(tokenizer, tmp_path, content, message):
    if content is not None:
        (tmp_path / "own.jinja").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        build(tokenizer, tmp_path, [{"messages": CHAT}], template=str(tmp_path / "own.jinja"))


def test_a_file_mended_after_its_last_usable_row_is_finished(tokenizer, tmp_path, chats, monkeypatch):
    monkeypatch.setattr("tokenstats.corpus.tokenize._ROWS_AT_ONCE", 4)
    path = write_jsonl(tmp_path / "rows.jsonl", chats[:4])
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, "{broken\n"]))
    corpus = plan_corpus(open_source(path), tokenizer, "here", CorpusOptions(part_tokens=1))
    with pytest.raises(InputError, match="line 5 is not JSON"):
        build_tokens(corpus, tmp_path / "stopped")
    assert len(list((tmp_path / "stopped" / "tokens").iterdir())) == 3
    for name, more in {"nothing": [], "unusable": ['{"messages": []}\n', '{"messages": [3]}\n']}.items():
        path.write_text("".join([*lines[:3], *more]))
        shutil.copytree(tmp_path / "stopped", tmp_path / name)
        mended, fresh = build_tokens(corpus, tmp_path / name), build_tokens(corpus, tmp_path / f"{name}-fresh")
        assert mended.fingerprint == fresh.fingerprint
        assert mended.manifest.dataset == fresh.manifest.dataset
        assert build_tokens(corpus, tmp_path / name).manifest == mended.manifest


def test_a_parquet_column_that_python_cannot_hold_is_named(tmp_path):
    times = pa.array([0, 2**62], pa.timestamp("us"))
    pq.write_table(pa.table({"text": ["a", "b"], "made": times}), tmp_path / "rows.parquet")
    with pytest.raises(InputError, match=r"column 'made' .*has a value that cannot be read") as refused:
        list(open_source(tmp_path / "rows.parquet").rows())
    assert "\n" not in str(refused.value)


def test_plain_prompts_without_a_template_end_with_the_end_token(tokenizer, tmp_path):
    found = only_row(build(tokenizer, tmp_path, [{"prompt": "2+2=", "completion": "4"}], chat=False))
    assert tokenizer.decode(found["input_ids"]) == "2+2=4<|im_end|>"
    assert learned(tokenizer, found) == "4<|im_end|>"


def test_all_of_a_text_is_learned_but_its_first_token(tokenizer, tmp_path):
    store = build(tokenizer, tmp_path, [{"text": "Tom has 12 apples."}])
    found = only_row(store)
    assert found["is_target"] == [False] + [True] * (len(found["input_ids"]) - 1)
    assert found["input_ids"][-1] == tokenizer.eos_token_id
    assert store.manifest.template.targets == "text"


def test_characters_split_over_tokens_are_wholly_target(tokenizer, tmp_path):
    chat = [{"role": "user", "content": "π?"}, {"role": "assistant", "content": "🙂漢字"}]
    found = only_row(build(tokenizer, tmp_path, [{"messages": chat}]))
    target_ids = [i for i, t in zip(found["input_ids"], found["is_target"], strict=True) if t]
    assert tokenizer.decode(target_ids) == "🙂漢字<|im_end|>"
    assert len(target_ids) > 4


def test_what_is_left_out_is_counted_with_its_first_row(tokenizer, tmp_path):
    rows = [
        {"messages": CHAT},
        {"messages": CHAT[:1]},
        {"messages": []},
        {"messages": [{"role": "user", "content": 3}]},
        {"messages": CHAT[:1]},
        {"other": 1},
        {"messages": CHAT},
    ]
    manifest = build(tokenizer, tmp_path, rows).manifest
    assert manifest.sequences == 2
    assert manifest.dataset.rows == 7
    assert manifest.dataset.dropped == {"no assistant turn": 2, "no messages": 2, "a message's content is not text": 1}
    assert manifest.dataset.first_dropped == {"no assistant turn": 1, "no messages": 2, "a message's content is not text": 3}


def test_cutting_is_counted_and_rows_left_without_targets_go(tokenizer, tmp_path):
    long = [{"role": "user", "content": "word " * 50}, CHAT[1]]
    whole = len(only_row(build(tokenizer, tmp_path, [{"messages": CHAT}]))["input_ids"])
    (tmp_path / "cut").mkdir()
    store = build(tokenizer, tmp_path / "cut", [{"messages": CHAT}, {"messages": long}], max_length=whole - 3)
    assert store.manifest.dataset.truncated == 1
    assert store.manifest.dataset.dropped == {"no target left after truncation": 1}
    row = store.sequence(0, {"tokens": ["input_ids", "truncated"]})["tokens"]
    assert (len(row["input_ids"]), row["truncated"]) == (whole - 3, True)


def test_part_size_changes_nothing_but_the_parts(tokenizer, tmp_path, chats):
    rows = [*chats[:30], {"messages": []}, {"messages": CHAT[:1]}]
    stores = []
    for size in (1, 700, 10**6):
        folder = tmp_path / str(size)
        folder.mkdir()
        stores.append(build(tokenizer, folder, rows, part_tokens=size))
    assert [s.part_count for s in stores] == [30, stores[1].part_count, 1]
    assert stores[1].part_count > 3
    assert len({s.fingerprint for s in stores}) == 1
    assert all(
        s.manifest.dataset == stores[0].manifest.dataset.model_copy(update={"source": s.manifest.dataset.source})
        for s in stores
    )
    columns = [pa.concat_tables(s.part("tokens", i) for i in range(s.part_count)) for s in stores]
    assert columns[0].equals(columns[1])
    assert columns[0].equals(columns[2])


def test_a_stopped_build_goes_on_and_ends_the_same(tokenizer, tmp_path, chats, monkeypatch):
    rows = [{"messages": []}, *chats[:20], {"messages": []}]
    (tmp_path / "whole").mkdir()
    whole = build(tokenizer, tmp_path / "whole", rows, part_tokens=500)
    source = open_source(write_jsonl(tmp_path / "rows.jsonl", rows))
    corpus = plan_corpus(source, tokenizer, "here", CorpusOptions(part_tokens=500))

    import tokenstats.corpus.build as module

    class Killed(BaseException):
        pass

    for lives in (1, 2):  # dies after so many parts, twice
        real, written = module.write_part, []

        def dying(*arguments, real=real, written=written, lives=lives):
            if len(written) == lives:
                raise Killed
            written.append(1)
            real(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(module, "write_part", dying)
            with pytest.raises(Killed):
                build_tokens(corpus, tmp_path / "again")
    (tmp_path / "again" / "tokens" / "part-00001.parquet").unlink()  # and someone deletes a part
    again = build_tokens(corpus, tmp_path / "again")
    for index in range(whole.part_count):
        name = f"tokens/part-{index:05d}.parquet"
        assert (again.path / name).read_bytes() == (whole.path / name).read_bytes()
    assert again.manifest.dataset.dropped == whole.manifest.dataset.dropped == {"no messages": 2}
    assert again.fingerprint == whole.fingerprint


def test_json_and_parquet_and_folders_are_read_alike(tokenizer, tmp_path):
    rows = [{"prompt": f"{i}+1=", "completion": str(i + 1)} for i in range(4)]
    (tmp_path / "a.json").write_text(json.dumps(rows[:2]))
    pq.write_table(pa.Table.from_pylist(rows[2:]), tmp_path / "b.parquet")
    assert list(open_source(tmp_path).rows()) == rows
    assert list(open_source(tmp_path / "a.json").rows(start=1)) == rows[1:2]


def test_files_have_no_split(tmp_path):
    with pytest.raises(InputError, match="have no split 'test'"):
        open_source(write_jsonl(tmp_path / "rows.jsonl", [{"text": "a"}]), split="test")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no rows"),
        ("\n\n", "holds no rows"),
        ('{"text": "a"}\n{"text": \n', "line 2 is not JSON"),
        ('{"text": "a"}\n[1, 2]\n', "line 2 is a list"),
        (b'{"text": "a"}\n{"text": "\xff"}\n', "line 2 is not UTF-8"),
        ('{"foo": 1, "bar": 2}\n', "columns seen: foo, bar"),
        ('{"messages": [{"role": "user", "content": "hi"}]}\n', "no assistant turn"),
    ],
)
def test_data_that_cannot_be_read_is_an_error_and_leaves_nothing(tokenizer, tmp_path, content, message):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        build_tokens(plan_corpus(open_source(path), tokenizer, "here"), tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_store_of_other_data_or_settings_is_refused(tokenizer, tmp_path):
    build(tokenizer, tmp_path, [{"messages": CHAT}])
    with pytest.raises(StoreError, match="max_length: there None, asked for 20"):
        build(tokenizer, tmp_path, [{"messages": CHAT}], max_length=20)
    with pytest.raises(StoreError, match="made of other rows"):
        build(tokenizer, tmp_path, [{"messages": CHAT}, {"messages": CHAT}])


@pytest.mark.parametrize("text", ["prompt", "prompt=", "=x", "promt=question"])
def test_column_maps_that_make_no_sense(text):
    with pytest.raises(InputError, match=r"columns (got|maps)"):
        CorpusOptions(columns=parse_columns(text))


def test_mapping_a_column_that_is_not_there_lists_those_that_are(tokenizer, tmp_path):
    with pytest.raises(InputError, match="columns seen: question, answer"):
        build(tokenizer, tmp_path, [{"question": "a", "answer": "b"}], columns={"prompt": "q", "completion": "answer"})


def test_nothing_that_is_no_store_is_touched(tokenizer, tmp_path):
    source = open_source(write_jsonl(tmp_path / "rows.jsonl", [{"messages": CHAT[:1]}]))
    corpus = plan_corpus(source, tokenizer, "here")
    for content in ("tokens/mine.txt", "notes.txt", "tokens/part-00000 copy.parquet"):
        folder = tmp_path / content.replace("/", "-").replace(" ", "-")
        (folder / content).parent.mkdir(parents=True)
        (folder / content).write_text("my work")
        with pytest.raises(InputError, match=r"holds other files|no part of a store"):
            build_tokens(corpus, folder)
        assert (folder / content).read_text() == "my work"
    with pytest.raises(InputError, match="is a file"):
        build_tokens(corpus, tmp_path / "rows.jsonl")


def test_a_full_disk_keeps_what_was_written(tokenizer, tmp_path, chats, monkeypatch):
    import tokenstats.corpus.build as module

    corpus = plan_corpus(
        open_source(write_jsonl(tmp_path / "rows.jsonl", chats[:20])), tokenizer, "here", CorpusOptions(part_tokens=500)
    )
    real, written = module.write_part, []

    def full(*arguments):
        if len(written) == 2:
            raise StoreError("no space left on device")
        written.append(1)
        real(*arguments)

    monkeypatch.setattr(module, "write_part", full)
    with pytest.raises(StoreError):
        build_tokens(corpus, tmp_path / "store")
    assert len(list((tmp_path / "store" / "tokens").iterdir())) == 2


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": "a", "tool_calls": ["x"]},
        {"role": "assistant", "content": "a", "tool_calls": 5},
        {"role": "assistant", "content": "a", "tool_calls": [{"function": [1]}]},
        {"role": "assistant", "content": "\ud83d"},
        {"role": 3, "content": "a"},
        {"role": "assistant", "content": None},
        "not a message",
        None,
    ],
)
def test_odd_rows_are_left_out_and_do_not_end_the_run(tokenizer, tmp_path, message):
    manifest = build(tokenizer, tmp_path, [{"messages": CHAT}, {"messages": [CHAT[0], message]}]).manifest
    assert manifest.sequences == 1
    assert sum(manifest.dataset.dropped.values()) == 1


def test_a_template_that_forgets_tool_calls_is_noticed(tmp_path, base):
    forgetful = load_tokenizer(base)
    forgetful.chat_template = NO_MARKERS
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {}}}],
    }
    rows = [{"messages": CHAT}, {"messages": [{"role": "user", "content": "add"}, call]}]
    assert build(forgetful, tmp_path, rows).manifest.dataset.dropped == {"the template leaves out a tool call": 1}


def test_columns_that_are_named_come_before_those_that_are_not(tokenizer, tmp_path):
    other = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    row = {"messages": other, "question": "What is 2+2?", "answer": "2+2=4", "rules": "Be brief"}
    columns = {"prompt": "question", "completion": "answer", "system": "rules"}
    found = only_row(build(tokenizer, tmp_path, [row], columns=columns))
    assert tokenizer.decode(found["input_ids"]) == "<|im_start|>system\nBe brief<|im_end|>\n" + RENDERED


def test_no_chat_is_refused_where_there_are_only_chats(tokenizer, tmp_path):
    with pytest.raises(InputError, match="chat=False is for plain prompts"):
        build(tokenizer, tmp_path, [{"messages": CHAT}], chat=False)


def test_another_way_of_splitting_text_is_another_tokenizer(tokenizer, tmp_path, base):
    build(tokenizer, tmp_path, [{"messages": CHAT}])
    other = load_tokenizer(base)
    from tokenizers import pre_tokenizers

    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert other.get_vocab() == tokenizer.get_vocab()
    with pytest.raises(StoreError, match="tokenizer: there"):
        build(other, tmp_path, [{"messages": CHAT}])
