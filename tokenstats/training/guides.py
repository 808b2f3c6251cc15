"""For each trainer: which exported form it reads, how it is pointed at the files, and the trap on the way. No torch.

Read in the trainers' own code; TRL 1.16, transformers 5.23 and verl's interface are also run by the tests.
"""

import glob
import json
import re
import shlex
from dataclasses import dataclass

from tokenstats.errors import InputError, argument

LABELS, LOSS_MASK, WEIGHTS = "labels", "loss-mask", "weights"


@dataclass(frozen=True)
class Form:
    """The columns of an export, and who reads them.

    Attributes:
        columns: Their names, those of :data:`tokenstats.training.forms.COLUMNS`; the last says what is learned.
        read_by: Trainers of :data:`GUIDES`, the first being the one whose snippet is shown where none is named.
    """

    columns: tuple[str, ...]
    read_by: tuple[str, ...]

    @property
    def has_weights(self) -> bool:
        """Does it say what a token counts for, beyond whether it is learned?"""
        return "weights" in self.columns


FORMS = {
    LABELS: Form(
        ("input_ids", "attention_mask", "labels"), read_by=("trl", "transformers", "axolotl", "llama-factory", "unsloth")
    ),
    LOSS_MASK: Form(("input_ids", "loss_mask"), read_by=("skyrl", "verl")),
    WEIGHTS: Form(("input_ids", "attention_mask", "labels", "weights"), read_by=("verl", "tinker")),
}
"""Every form. Of several that a trainer reads, the first here is its usual one."""


@dataclass(frozen=True)
class Guide:
    """How one trainer reads an export.

    Attributes:
        title: The trainer's name.
        snippet: With {data} the folder of Parquet files, {override} the same and {listed} a list of it for a command line
            whose values are YAML, {files} a pattern of them, {disk} the folder for load_from_disk, {longest} the tokens of the
            longest row, {learned} the column that says what is learned.
        language: Of the snippet, for Markdown.
        on_disk: It reads the folder for load_from_disk.
    """

    title: str
    snippet: str
    language: str = "python"
    on_disk: bool = False


_TRL = """from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

rows = load_dataset("parquet", data_files={files!r}, split="train")
# max_length=None: the default of 1,024 would cut rows, and drop those left without a label. Packing needs a number:
# packing=True, max_length={longest} (the longest row; whatever is longer would be cut)
config = SFTConfig(output_dir="OUT", max_length=None)
SFTTrainer("MODEL", args=config, train_dataset=rows).train()
"""

_TRANSFORMERS = """from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

rows = load_dataset("parquet", data_files={files!r}, split="train")
# this collator keeps the stored labels; DataCollatorForLanguageModeling would write its own over them
collator = DataCollatorForSeq2Seq(AutoTokenizer.from_pretrained("MODEL"))
model = AutoModelForCausalLM.from_pretrained("MODEL")
Trainer(model, TrainingArguments("OUT"), data_collator=collator, train_dataset=rows).train()
"""

_AXOLOTL = """# tokenized rows: Axolotl wants no `type:` here, and exactly the columns input_ids, attention_mask, labels
datasets:
  - path: {data}
    ds_type: parquet
    split: train
# longer rows would be dropped or cut: this is the longest
sequence_len: {longest}
"""

_LLAMA_FACTORY = """# cutoff_len and val_size do nothing to rows that are tokenized. Where this folder is not found,
# LLaMA-Factory tokenizes `dataset` into it instead, and stops
tokenized_path: {disk}
"""

_UNSLOTH = """from datasets import load_dataset
from trl import SFTConfig, SFTTrainer
from unsloth import FastLanguageModel

rows = load_dataset("parquet", data_files={files!r}, split="train")
model, tokenizer = FastLanguageModel.from_pretrained("MODEL", max_seq_length={longest})
# no train_on_responses_only: the labels say already what is learned, and it may write its own over them
config = SFTConfig(output_dir="OUT", max_length={longest})
SFTTrainer(model=model, processing_class=tokenizer, args=config, train_dataset=rows).train()
"""

_SKYRL = """# the folder that holds the Parquet files alone: SkyRL refuses other formats beside them. With a smaller
# max_length rows are cut, and dropped where nothing learned is left
python -m skyrl.train.main_sft model.path=MODEL max_length={longest} pretokenized_dataset_paths={listed}
"""

_VERL = """# rows.py, for data.custom_cls.path=rows.py data.custom_cls.name=Rows data.train_files={override}
# data.pad_mode=no_padding data.max_token_len_per_gpu={longest} (or more: no row is cut here, and this is the longest).
# verl itself reads messages only, and would apply a chat template again
import pyarrow as pa
import pyarrow.parquet as pq
import torch


class Rows(torch.utils.data.Dataset):
    def __init__(self, parquet_files, tokenizer=None, config=None, **_):
        paths = [parquet_files] if isinstance(parquet_files, str) else list(parquet_files)
        self.table = pa.concat_tables([pq.read_table(path) for path in paths]).combine_chunks()

    def __len__(self):
        return len(self.table)

    def __getitem__(self, i):
        ids = torch.tensor(self.table["input_ids"][i].as_py())
        learned = torch.tensor(self.table["{learned}"][i].as_py())
        # verl shifts loss_mask itself, multiplies by it, and divides by its sum over the whole batch
        return {{"input_ids": ids, "position_ids": torch.arange(len(ids)), "loss_mask": learned}}
"""

_TINKER = """import pyarrow.parquet as pq
from tinker import types


def datum(row):
    # position i of the input predicts token i + 1: targets and weights begin one later
    return types.Datum(
        model_input=types.ModelInput.from_ints(row["input_ids"][:-1]),
        loss_fn_inputs={{"target_tokens": row["input_ids"][1:], "weights": row["weights"][1:]}},
    )


data = [datum(row) for row in pq.read_table({data!r}).to_pylist()]  # for forward_backward(…, loss_fn="cross_entropy")
"""

GUIDES = {
    "trl": Guide("TRL", _TRL),
    "transformers": Guide("transformers", _TRANSFORMERS),
    "axolotl": Guide("Axolotl", _AXOLOTL, language="yaml"),
    "llama-factory": Guide("LLaMA-Factory", _LLAMA_FACTORY, language="yaml", on_disk=True),
    "unsloth": Guide("Unsloth", _UNSLOTH),
    "skyrl": Guide("SkyRL", _SKYRL, language="bash"),
    "verl": Guide("verl", _VERL),
    "tinker": Guide("Tinker", _TINKER),
}


def choose(form: str | None, trainer: str | None) -> tuple[str, str]:
    """The form and the trainer to explain it for, either of them given or neither. Raises InputError where they do not fit."""
    if trainer is None:
        return form or LABELS, FORMS[form or LABELS].read_by[0]
    reads = [name for name, of in FORMS.items() if trainer in of.read_by]
    if form is not None and form not in reads:
        raise InputError(
            f"{argument('form')} got {form!r}, but {GUIDES[trainer].title} reads {' or '.join(reads)}; expected one of these"
        )
    return form or reads[0], trainer


def how_to_read(trainer: str, form: str, *, data: str, disk: str, longest: int) -> str:
    """The trainer's snippet for rows in ``data`` (and ``disk``)."""
    guide, learned = GUIDES[trainer], FORMS[form].columns[-1]
    files = f"{glob.escape(data)}/train-*.parquet"
    override, listed = shlex.quote(_in_yaml(data)), shlex.quote(json.dumps([data], ensure_ascii=False))
    if guide.language == "yaml":
        data, disk = _in_yaml(data), _in_yaml(disk)
    return guide.snippet.format(
        data=data, override=override, listed=listed, files=files, disk=disk, longest=longest, learned=learned
    )


def _in_yaml(path: str) -> str:
    """A path as YAML reads it back: in quotes where it has other signs, or could be a number or null (a JSON text is YAML)."""
    return path if re.fullmatch(r"[\w/.][\w/.-]*", path) and "/" in path else json.dumps(path, ensure_ascii=False)
