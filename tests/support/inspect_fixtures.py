"""A small store with everything that is hard to show: many scripts, HTML, terminal escapes, special tokens in the data.

Nothing comes from the network: the tokenizer is trained and two tiny
models are drawn at random here.
"""

import atexit
import json
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pyarrow as pa
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
    # whole tags as one token, as vocabularies trained on web pages have them: escaping is tested on these
    tokenizer.add_tokens([SCRIPT, IMAGE, "</span><b id=broken>", ' onmouseover="window.hacked=\'mouse\'" x="'])
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


def make_models(folder: Path) -> None:
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


@cache
def _workplace() -> Path:
    """A folder for this run of the tests, gone when it ends."""
    folder = Path(tempfile.mkdtemp(prefix="inspect-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def make_store(name: str, part_tokens: int = 700, reference: bool = True, topk: int = 0) -> Store:
    """The conversations, scored; ``part_tokens`` decides how many parts the store has."""
    from tokenstats.computing import compute
    from tokenstats.corpus.options import CorpusOptions
    from tokenstats.scoring.options import ScoringOptions

    rows = _workplace() / "chats.jsonl"
    if not rows.exists():
        rows.write_text("".join(json.dumps(row) + "\n" for row in conversations()), encoding="utf-8")
        make_models(_workplace())
    return compute(
        rows,
        model=str(_workplace() / "policy"),
        reference=str(_workplace() / "reference") if reference else None,
        store=_workplace() / name,
        name="warm",
        corpus=CorpusOptions(part_tokens=part_tokens, max_length=MAX_LENGTH),
        scoring=ScoringOptions(topk=topk),
    ).store


@cache
def store_with_masks() -> Store:
    """Several parts and three masks. Tests only read it."""
    store = make_store("shared")
    assert store.part_count > 2
    build_mask(store, Rule.from_preset("eksft"), "eksft")
    build_mask(store, Rule(drop="top(entropy, 0.3) or kl > 6.0 or position < 2"), "dataset-wide")
    build_mask(store, Rule.from_preset("random"), "random")
    return store


def copy_of_store(folder: Path) -> Store:
    """A copy that a test may write to."""
    shutil.copytree(store_with_masks().path, folder / "store")
    return Store(folder / "store")


def copy_with_second_scoring(folder: Path, name: str) -> Store:
    """A copy with a scoring by the other model alone: it has no KL."""
    from tokenstats.computing import compute
    from tokenstats.corpus.options import CorpusOptions

    store = copy_of_store(folder)
    corpus = CorpusOptions(part_tokens=700, max_length=MAX_LENGTH)
    model = str(_workplace() / "reference")
    return compute(_workplace() / "chats.jsonl", model=model, store=store.path, name=name, corpus=corpus).store


def edit_manifest(folder: Path, **changes: object) -> None:
    """Overwrite fields of a manifest, as an earlier version might have written them: without a checksum.

    ``tokenizer={...}`` changes only the named ones inside.
    """
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest.pop("checksum", None)
    for key, value in changes.items():
        manifest[key] = {**manifest[key], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(manifest))


def edit_rows(store: Store, part: int, edit: Callable[[list[dict]], None]) -> None:
    """Change the rows of a tokens part in place: its digest tells."""
    table = store.part("tokens", part)
    rows = table.to_pylist()
    edit(rows)
    write_part(store.path / "tokens", part, pa.Table.from_pylist(rows, schema=table.schema.remove_metadata()), {"edited": True})
    assert part_path(store.path / "tokens", part).exists()


def share_of(store: Store, rule: Rule, name: str) -> float:
    """The share that the mask on disk really drops, counted from its rows."""
    build_mask(store, rule, name, scoring="warm")
    kept = targets = 0
    for part in range(store.part_count):
        keep, flags = store.part(f"masks/{name}", part)["keep"].to_pylist(), store.part("tokens", part)["is_target"].to_pylist()
        kept += sum(map(sum, keep))
        targets += sum(map(sum, flags))
    return 1 - kept / targets
