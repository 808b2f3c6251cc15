"""A small store with everything that is hard to show: many scripts, HTML, terminal escapes, special tokens in the data.

Use with ``pytest_plugins = ["inspect_fixtures"]``. Nothing comes from the network: the tokenizer is trained and two tiny
models are drawn at random here.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tokenstats import Rule, Store, build_mask
from tokenstats.store.parts import part_path, write_part

SCRIPT = "<script>window.hacked = 'script'</script>"
IMAGE = "<img src=x onerror=\"window.hacked = 'image'\">"
BREAKOUT = "\"'></span><b id=broken>&amp; ' onmouseover=\"window.hacked='mouse'\" x=\""
ESCAPE = "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x9b1m"
BIDI = "ab\N{RIGHT-TO-LEFT OVERRIDE}cd\N{POP DIRECTIONAL FORMATTING}ef"
MARKS = "a [[1:fake]] and {{fake}} mark"
IMITATION = "text <|im_start|>user\nnot a turn"
SMILE, CHINESE = "\N{GRINNING FACE}", "你好世界"
FAMILY = "\N{MAN}\N{ZERO WIDTH JOINER}\N{WOMAN}\N{ZERO WIDTH JOINER}\N{GIRL}"

_WORDS = "the boxes hold three red apples and two green pears so that is all of them"
REPLIES = [
    "The boxes hold three apples.",
    f"A smile {SMILE} and more {SMILE}{SMILE}.",
    f"{CHINESE}, said the box.",
    f"{FAMILY} owns two pears.",
    SCRIPT,
    IMAGE,
    BREAKOUT,
    ESCAPE,
    BIDI,
    MARKS,
    IMITATION,
    "lines\n\tand tabs\r\n  and spaces   \n",
    "price $x_1$ and $\\frac{1}{2}$",
]
HOSTILE_ROWS = {text: row for row, text in enumerate(REPLIES)}
LONG_ROW = len(REPLIES)
MAX_LENGTH = 120

TEMPLATE = (
    "{%- for message in messages -%}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- if message['role'] == 'assistant' -%}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{%- else -%}{{ message['content'] + '<|im_end|>' }}{%- endif -%}{{ '\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}"
)


def byte_level_tokenizer() -> Tokenizer:
    """Byte-level BPE of a few English words: all else falls into single bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_WORDS, _WORDS + " user assistant The"], trainer)
    return tokenizer


def conversations() -> list[dict]:
    """One chat per reply, a long one, one of several turns, some plain ones, and one without any reply."""
    chats = [[("user", f"Say this {i}: {text[:20]}"), ("assistant", text)] for i, text in enumerate(REPLIES)]
    chats.append([("user", "count"), ("assistant", " ".join(str(n) for n in range(200)))])
    chats.append(
        [
            ("user", "red?"),
            ("assistant", "Red."),
            ("user", "green?"),
            ("assistant", "Green pears."),
            ("user", "So?"),
            ("assistant", "So."),
        ]
    )
    chats += [[("user", f"How many are {n} and {n}?"), ("assistant", f"That is {2 * n} of them, so all.")] for n in range(20)]
    chats.append([("user", "nobody answers")])
    return [{"messages": [{"role": role, "content": text} for role, text in chat]} for chat in chats]


def make_models(folder: Path) -> tuple[str, str]:
    """Two tiny random models with the tokenizer: a policy and a reference."""
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level_tokenizer(), chat_template=TEMPLATE, pad_token="<|endoftext|>", eos_token="<|im_end|>"
    )
    config = Qwen3Config(
        vocab_size=384,
        hidden_size=32,
        num_hidden_layers=2,
        intermediate_size=48,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=512,
        initializer_range=0.4,
    )
    for seed, name in enumerate(("policy", "reference")):
        torch.manual_seed(seed)
        Qwen3ForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return str(folder / "policy"), str(folder / "reference")


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return make_models(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def make_inspect_store(tmp_path_factory: pytest.TempPathFactory, tiny_models: tuple[str, str]) -> Callable[..., Store]:
    """Score the conversations into a new store; ``part_tokens`` decides how many parts it has."""
    from tokenstats.scoring import compute

    def make(part_tokens: int = 700, reference: bool = True, **options) -> Store:
        folder = tmp_path_factory.mktemp("inspect")
        rows = folder / "chats.jsonl"
        rows.write_text("".join(json.dumps(row) + "\n" for row in conversations()), encoding="utf-8")
        policy, other = tiny_models
        settings = {"max_length": MAX_LENGTH, "name": "warm", "reference": other if reference else None} | options
        store, _ = compute(rows, model=policy, store=folder / "store", part_tokens=part_tokens, **settings)
        return store

    return make


@pytest.fixture(scope="session")
def inspect_store(make_inspect_store: Callable[..., Store]) -> Store:
    """The store with three masks. Tests that write copy it first."""
    store = make_inspect_store()
    assert store.part_count > 2
    build_mask(store, Rule.from_preset("eksft"), "eksft")
    build_mask(store, Rule(drop="top(entropy, 0.3) or kl > 6.0 or position < 2"), "dataset-wide")
    build_mask(store, Rule.from_preset("random"), "random")
    return store


@pytest.fixture
def own_store(inspect_store: Store, tmp_path: Path) -> Store:
    """A copy that a test may write to."""
    shutil.copytree(inspect_store.path, tmp_path / "store")
    return Store(tmp_path / "store")


def edit_manifest(folder: Path, **changes: object) -> None:
    """Overwrite fields of a manifest; ``tokenizer={...}`` changes only the named ones inside."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for key, value in changes.items():
        manifest[key] = {**manifest[key], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(manifest))


def edit_rows(store: Store, part: int, edit: Callable[[list[dict]], None]) -> None:
    """Change the rows of a tokens part in place."""
    table = store.part("tokens", part)
    rows = table.to_pylist()
    edit(rows)
    write_part(store.path / "tokens", part, pa.Table.from_pylist(rows, schema=table.schema.remove_metadata()), {"edited": True})
    assert part_path(store.path / "tokens", part).exists()
