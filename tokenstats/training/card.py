"""The words that go with exported rows: a dataset card. What comes from outside is escaped."""

from typing import Any

from tokenstats.errors import one_line
from tokenstats.store import Store
from tokenstats.training.forms import COLUMNS
from tokenstats.training.guides import GUIDES, how_to_read
from tokenstats.training.provenance import without_folders
from tokenstats.training.rows import ChosenMask

_HEAD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*.parquet
tags:
- tokenstats
---
"""

_READS_WEIGHTS = """Only a trainer that reads `weights` learns with them: TRL, transformers and the others that read `labels`
leave them out without a word. What the weighted sum is divided by is the trainer's choice; where it is the sum of the
weights, their scale does not matter.
"""


def dataset_card(store: Store, mask: ChosenMask, record: dict[str, Any], trainer: str, longest: int) -> str:
    """README.md of an export: what the columns are, which rule chose the tokens, what it was made from, how to read it."""
    kept, rows, guide = record["kept_tokens"], record["rows"], GUIDES[trainer]
    lines = [
        "# Token ids with a loss mask",
        "",
        f"{rows:,} rows, the longest of {longest:,} tokens; {kept:,} tokens to learn.",
        "The rows are tokenized: use them with a model of the same tokenizer, and do not apply a chat template again.",
        "",
        *(f"- `{name}`: {COLUMNS[name].meaning}" for name in record["columns"]),
        "",
        *([_READS_WEIGHTS] if "weights" in record["columns"] else []),
        f"{record['rows_with_nothing_kept']:,} rows of the source had no token to learn and are left out.",
        "",
        "## Which tokens",
        "",
        f"- mask: {_code(mask.title)}",
        *(f"- {_code(key)}: {_code(value)}" for key, value in record["rule"].items()),
        *(f"- threshold {_code(text)}: {value!r}" for text, value in record["thresholds"].items()),
        f"- kept: {kept:,} of {record['targets']:,} target tokens",
        *(["- the mask also weighs these tokens; its weights were left out of this export"] * record["weights_ignored"]),
        "",
        "## Origin",
        "",
        f"- made with tokenstats {record['tokenstats_version']}",
        f"- dataset: {_code(record['dataset']['source'])}",
        f"- tokenizer: {_code(without_folders(store.manifest.tokenizer.source))}, {_code(record['tokenizer_fingerprint'])}",
        f"- store: {_code(record['store_fingerprint'])}, mask: {_code(record['mask_fingerprint'] or 'none')}",
        "",
        f"## How to read it with {guide.title}",
        "",
        f"```{guide.language}",
        how_to_read(trainer, record["form"], data="FOLDER/data", disk="FOLDER/disk", longest=longest).rstrip(),
        "```",
        "",
    ]
    return _HEAD + "\n".join(lines)


def _code(text: object) -> str:
    """Untrusted text as a code span: on one line and without backticks it can neither end the span nor become HTML."""
    return f"`{one_line(text, 1000).replace('`', 'ˋ').strip() or ' '}`"
