"""The words that go with exported rows: a dataset card, and how to read them. What comes from outside is escaped."""

from typing import Any

from tokenstats.errors import one_line
from tokenstats.store import Store
from tokenstats.training.provenance import without_folders
from tokenstats.training.rows import ChosenMask

_HEAD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: train-*.parquet
tags:
- tokenstats
---
"""

_COLUMNS = {
    "labels": {
        "input_ids": "int32 token ids",
        "attention_mask": "int8, 1 everywhere",
        "labels": "int32 token ids, -100 where a token is not learned",
    },
    "loss-mask": {
        "input_ids": "int32 token ids",
        "loss_mask": "int8, 1 where a token is learned, else 0; as long as input_ids",
    },
}

_TRL = """from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

rows = load_dataset("parquet", data_files={files}, split="train")
# max_length=None: the default of 1,024 would cut rows, and drop those left without a label
config = SFTConfig(output_dir="OUT", max_length=None)
SFTTrainer("MODEL", args=config, train_dataset=rows).train()
"""

_LOSS_MASK = """from datasets import load_dataset

rows = load_dataset("parquet", data_files={files}, split="train")
# SkyRL reads input_ids and loss_mask as they are. TRL and transformers do not know loss_mask and would learn every
# token: for them export the form "labels"
"""


def how_to_read(form: str, folder: str) -> str:
    """A snippet of Python that reads the exported files of ``folder``, with the traps of its trainers named."""
    return (_TRL if form == "labels" else _LOSS_MASK).format(files=repr(f"{folder.rstrip('/')}/train-*.parquet"))


def dataset_card(store: Store, mask: ChosenMask, record: dict[str, Any], form: str, longest: int) -> str:
    """README.md of an export: what the columns are, which rule chose the tokens, and what it was made from."""
    kept, rows = record["kept_tokens"], record["rows"]
    lines = [
        "# Token ids with a loss mask",
        "",
        f"{rows:,} rows, the longest of {longest:,} tokens; {kept:,} tokens to learn.",
        "The rows are tokenized: use them with a model of the same tokenizer, and do not apply a chat template again.",
        "",
        *(f"- `{name}`: {meaning}" for name, meaning in _COLUMNS[form].items()),
        "",
        f"{record['rows_with_nothing_kept']:,} rows of the source had no token to learn and are left out.",
        "",
        "## Which tokens",
        "",
        f"- mask: {_code(mask.title)}",
        *(f"- {_code(key)}: {_code(value)}" for key, value in record["rule"].items()),
        *(f"- threshold {_code(text)}: {value!r}" for text, value in record["thresholds"].items()),
        f"- kept: {kept:,} of {record['targets']:,} target tokens",
        "",
        "## Origin",
        "",
        f"- made with tokenstats {record['tokenstats_version']}",
        f"- dataset: {_code(record['dataset']['source'])}",
        f"- tokenizer: {_code(without_folders(store.manifest.tokenizer.source))}, {_code(record['tokenizer_fingerprint'])}",
        f"- store: {_code(record['store_fingerprint'])}, mask: {_code(record['mask_fingerprint'] or 'none')}",
        "",
        "## How to read it",
        "",
        "```python",
        how_to_read(form, "FOLDER").rstrip(),
        "```",
        "",
    ]
    return _HEAD + "\n".join(lines)


def _code(text: object) -> str:
    """Untrusted text as a code span: on one line and without backticks it can neither end the span nor become HTML."""
    return f"`{one_line(text, 1000).replace('`', 'ˋ').strip() or ' '}`"
