"""Training steps beside what people run today: one process, interleaved, medians of rounds, as ratios to the stored mask.

    make bench            or            python -m pipelines.bench_training --shape 0.5b --layers 4 --rows 64 --rounds 3

A round is an epoch of each rival over the same rows, from the first batch asked for to the last optimizer step, in the loop of
transformers' Trainer, which all of them use: forward and backward passes, clipping, AdamW. All with the same rows in a forward
pass and the same forward passes in a step, in float32 on a CPU, in bfloat16 autocast on a GPU.

    trl              TRL's SFTTrainer on our export of the masked rows: padded, its own chunked head
    eksft            EKSFT's step as released: a forward pass of the policy without gradient and one of the reference, their top
                     fifths of the micro-batch's targets; then the policy with gradient, both terms on whole logits
    eksft, batch 1   the same, one row a forward pass, as its script has it
    plain            ours on all targets
    stored           ours with the mask of EKSFT's rule
    stored, batch 1  the same, one row a forward pass
    terms            stored, and an entropy bonus on the first clause, a KL penalty on the second, the reference's states cached
    follow           the same, the rule decided in each step instead of before
    tokens           stored, forward passes of as many tokens as rows · mean length
    padding-free     the same, rows laid one after the other

Peak memory is of a process of its own for each: resident on a CPU (needs Linux), allocated on a GPU. Ids and statistics are
made up: no number here depends on them but how many tokens a mask keeps, which is printed.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from pipelines.lengths import lengths_of
from pipelines.made_up_store import ASSISTANT, USER, FlatPart, made_up_statistics, write_store
from pipelines.tinymath import DATA
from tokenstats import ExportOptions, Rule, Store, TrainOptions, build_mask, export
from tokenstats.alignment import outputs_that_predict
from tokenstats.following import follow_rule
from tokenstats.modeling.tokenizer import tokenizer_fingerprint
from tokenstats.training.arguments import trainer_arguments
from tokenstats.training.data import collate, load_training_data
from tokenstats.training.loop import MaskedTrainer
from tokenstats.training.mixture import choose_sources
from tokenstats.training.request import Request
from tokenstats.training.rows import IGNORED, choose_mask
from tokenstats.training.setup import plan_run
from tokenstats.training.trainer import prepare, trainer_for

TARGET_SHARE = 0.55
"""Of GSM8K's training rows, by characters."""
EKSFT_SHARE, ENTROPY_WEIGHT, KL_WEIGHT = 0.2, 0.05, 0.05
MASK = "eksft"
TERMS = {
    "entropy_bonus": ENTROPY_WEIGHT,
    "entropy_on": "clause 1",
    "kl_penalty": KL_WEIGHT,
    "kl_on": "clause 2",
    "reference": "beside",  # a folder, once there is one
}


@dataclass(frozen=True)
class Setting:
    """What all rivals have in common. ``layers``: of the 0.5B shape, which has 24."""

    shape: str
    layers: int
    rows: int
    lengths: str
    batch_size: int
    accumulation: int
    checkpointing: bool
    device: str
    folder: str

    @property
    def vocabulary(self) -> int:
        return 151_936 if self.shape == "0.5b" else 704

    def model(self, seed: int = 0) -> Any:
        """The policy is of seed 0. The bundled model has no other weights: its reference is itself, at the same cost."""
        torch.manual_seed(seed)
        if self.shape != "0.5b":
            return Qwen3ForCausalLM.from_pretrained(DATA / "models" / "base", dtype=torch.float32)
        config = Qwen2Config(
            vocab_size=self.vocabulary,
            hidden_size=896,
            num_hidden_layers=self.layers,
            intermediate_size=4864,
            num_attention_heads=14,
            num_key_value_heads=2,
            tie_word_embeddings=True,
        )
        return Qwen2ForCausalLM(config)

    @property
    def store(self) -> Store:
        return Store(Path(self.folder) / "store")

    def options(self, **changes: Any) -> TrainOptions:
        shared = {"batch_size": self.batch_size, "accumulation": self.accumulation, "epochs": 1.0, "learning_rate": 1e-6}
        return TrainOptions(**{**shared, "device": self.device, "logging_steps": 1000, **changes})


def make_rows(setting: Setting) -> int:
    """Write the store, its mask and the export; returns how many tokens the mask keeps."""
    lengths = np.minimum(lengths_of(setting.lengths, setting.rows, seed=1), 1024)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    rng, place = np.random.default_rng(0), np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    is_target = place >= np.repeat(np.maximum(1, (1 - TARGET_SHARE) * lengths), lengths)
    ids = rng.integers(3, setting.vocabulary, offsets[-1]).astype(np.int32)
    role = np.where(is_target, ASSISTANT, USER)
    part = FlatPart(offsets, ids, is_target, role, made_up_statistics(rng, len(ids)))
    store = write_store(Path(setting.folder) / "store", [part], vocabulary=setting.vocabulary)
    _give_tokenizer(store)
    kept = build_mask(store, Rule.load(MASK), MASK).manifest.kept
    export(store, mask=MASK, to=Path(setting.folder) / "export", options=ExportOptions(trainer="trl"))
    print(f"{setting.rows} rows, {setting.lengths} lengths: {offsets[-1]:,} tokens, {is_target.sum():,} targets, {kept:,} kept")
    return kept


def tokenizer() -> PreTrainedTokenizerFast:
    """Pads, and is saved with models; nothing is read with it."""
    return AutoTokenizer.from_pretrained(DATA / "models" / "base")


def _give_tokenizer(store: Store) -> None:
    tokenizer().save_pretrained(store.tokenizer_folder)
    described = store.manifest.tokenizer.model_copy(update={"fingerprint": tokenizer_fingerprint(tokenizer())})
    store.manifest.model_copy(update={"tokenizer": described}).write(store.path)


def ours(setting: Setting, mask: str | None, follow: bool = False, **changes: Any) -> Trainer:
    """Our own trainer, as the command makes it, but for what it writes."""
    folder, options, store = Path(setting.folder), setting.options(**changes).resolved, setting.store
    for name, seed in (("policy", 0), ("reference", 1)):
        if not (folder / name).exists():
            setting.model(seed).save_pretrained(folder / name)
            tokenizer().save_pretrained(folder / name)
    if options.reference is not None:
        options = replace(options, reference=str(folder / "reference"), reference_cache=str(folder / f"states-{follow}"))
    rule = follow_rule(store, MASK) if follow else None
    request = Request(choose_sources([store], mask), str(folder / "policy"), folder / "ours", options, rule)
    arguments = trainer_arguments(options, request.out, resumed=False)
    return trainer_for(request, prepare(request, plan_run(request), arguments), arguments)


def by_tokens(setting: Setting, **changes: Any) -> Trainer:
    lengths = np.diff(load_training_data(setting.store, choose_mask(setting.store, MASK)).train.offsets)
    budget = max(int(lengths.max()), round(setting.batch_size * lengths.mean()))
    return ours(setting, MASK, batch_size=TrainOptions.batch_size, batch_tokens=budget, **changes)


def others(setting: Setting) -> dict[str, Any]:
    """What rivals are told: what ours has by its own options."""
    return {
        "output_dir": str(Path(setting.folder) / "other"),
        "per_device_train_batch_size": setting.batch_size,
        "gradient_accumulation_steps": setting.accumulation,
        "num_train_epochs": 1,
        "learning_rate": 1e-6,
        "use_cpu": setting.device == "cpu",
        "bf16": setting.device != "cpu",
        "gradient_checkpointing": setting.checkpointing,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1000,
        "dataloader_pin_memory": setting.device != "cpu",
    }


def trl(setting: Setting) -> Trainer:
    import datasets
    from trl import SFTConfig, SFTTrainer

    files = [str(path) for path in (Path(setting.folder) / "export" / "data").glob("*.parquet")]
    rows = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=f"{setting.folder}/cache")
    return SFTTrainer(
        setting.model(), args=SFTConfig(max_length=None, **others(setting)), train_dataset=rows, processing_class=tokenizer()
    )


def eksft_loss(policy: Any, reference: Any, ids: Tensor, labels: Tensor) -> Tensor:
    """EKSFT's loss of one micro-batch, from its description: all logits whole, statistics a position early."""
    targets = labels != IGNORED
    with torch.no_grad():
        log_p, log_q = (_log_softmax(model, ids)[targets] for model in (policy, reference))
        p = log_p.exp()
        count = int(EKSFT_SHARE * len(p))
        uncertain = (-(p * log_p).sum(-1)).topk(count).indices
        moved = (p * (log_p - log_q)).sum(-1).topk(count).indices
        kept = targets.clone()
        kept[targets] = torch.ones(len(p), dtype=torch.bool, device=ids.device).index_fill(
            0, torch.cat([uncertain, moved]), False
        )
    del log_p, p
    outputs = _log_softmax(policy, ids)
    loss = cross_entropy(outputs_that_predict(outputs, kept), ids[kept])  # of a log-softmax it is the same
    log_p = outputs[targets]
    certain, p = log_p[uncertain], log_p[moved].exp()
    loss = loss + ENTROPY_WEIGHT * (certain.exp() * certain).sum(-1).mean() / math.log(log_p.shape[-1])
    return loss + KL_WEIGHT * (p * (p - log_q[moved])).sum(-1).mean()  # no KL, but what it computes


def _log_softmax(model: Any, ids: Tensor) -> Tensor:
    return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits.float().log_softmax(-1)


class Eksft(Trainer):
    """Its losses are means of a micro-batch, and their gradients are added up."""

    loss_is_scaled_for_ga = True

    def __init__(self, setting: Setting, batch_size: int):
        settings = {**others(setting), "remove_unused_columns": False, "per_device_train_batch_size": batch_size}
        settings["gradient_accumulation_steps"] = setting.batch_size * setting.accumulation // batch_size
        rows = load_training_data(setting.store, choose_mask(setting.store, None)).train
        super().__init__(setting.model(), TrainingArguments(**settings), collate, train_dataset=rows)
        self.reference = setting.model().eval().requires_grad_(False).to(self.args.device)

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        return eksft_loss(model, self.reference, inputs["input_ids"], inputs["labels"])


RIVALS: dict[str, Callable[[Setting], Trainer]] = {
    "trl": trl,
    "eksft": lambda setting: Eksft(setting, setting.batch_size),
    "eksft, batch 1": lambda setting: Eksft(setting, 1),
    "plain": lambda setting: ours(setting, None),
    "stored": lambda setting: ours(setting, MASK),
    "stored, batch 1": lambda setting: ours(
        setting, MASK, batch_size=1, accumulation=setting.batch_size * setting.accumulation
    ),
    "terms": lambda setting: ours(setting, MASK, **TERMS),
    "follow": lambda setting: ours(setting, MASK, follow=True, **TERMS),
    "tokens": by_tokens,
    "padding-free": lambda setting: by_tokens(setting, padding_free=True),
}


BOUNDS = (
    ("stored", "trl", 1.0),
    ("stored", "eksft", 0.62),
    ("stored, batch 1", "eksft, batch 1", 0.62),
    ("terms", "eksft", 1.0),
    ("follow", "eksft", 0.75),
)


class Stopwatch(TrainerCallback):
    """Seconds from the beginning of an epoch to its last optimizer step."""

    began = seconds = 0.0

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began = self._now(args)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.seconds = self._now(args) - self.began

    @staticmethod
    def _now(args: Any) -> float:
        if args.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def run_epoch(trainer: Trainer, watch: Stopwatch) -> float:
    trainer.optimizer = trainer.lr_scheduler = None  # of one rival at a time in memory; each begins with an empty one
    trainer.train()
    trainer.optimizer = trainer.lr_scheduler = None
    trainer.accelerator.free_memory()
    return watch.seconds


def prepared(name: str, setting: Setting) -> tuple[Trainer, Stopwatch]:
    trainer, watch = RIVALS[name](setting), Stopwatch()
    if setting.checkpointing and isinstance(trainer, MaskedTrainer):
        trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
    trainer.model.train()
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(watch)
    return trainer, watch


def peak_gib(name: str, setting: Setting) -> float:
    """Of a process that runs an epoch of one rival."""
    words = [sys.executable, "-m", "pipelines.bench_training", "--memory-of", name, "--setting", json.dumps(asdict(setting))]
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()[-1])


def measure_memory(name: str, setting: Setting) -> None:
    run_epoch(*prepared(name, setting))
    if setting.device == "cpu":  # getrusage would tell of the process that started this one, too
        status = Path("/proc/self/status").read_text()
        print(int(status.partition("VmHWM:")[2].split()[0]) / 2**20)
    else:
        print(torch.cuda.max_memory_allocated() / 2**30)


def compare(setting: Setting, names: list[str], rounds: int) -> None:
    rivals = {name: prepared(name, setting) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds + 1):  # the first round warms up
        for name, (trainer, watch) in rivals.items():
            times[name].append(run_epoch(trainer, watch))
    rivals.clear()
    medians = {name: statistics.median(found[1:]) for name, found in times.items()}
    for name in names:
        ratio = f"{medians[name] / medians['stored']:5.2f} x stored" if "stored" in medians else ""
        print(f"  {name:15} {medians[name]:8.2f} s  {ratio}  peak {peak_gib(name, setting):5.2f} GiB", flush=True)
    for own, name, bound in BOUNDS:
        if name in medians and own in medians:
            print(f"  {own} is {medians[own] / medians[name]:.2f} x {name}, at most {bound} is asked")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=["0.5b", "bundled"], default="bundled")
    parser.add_argument("--layers", type=int, default=24, help="of the 0.5B shape, where 24 do not fit")
    parser.add_argument("--rows", type=int, default=128, help="in an epoch")
    parser.add_argument("--lengths", choices=["gsm8k", "log-normal"], default="gsm8k")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--accumulation", type=int, default=2)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rivals", default="; ".join(RIVALS), help="separated by ;")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    parser.add_argument("--setting", help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    if args.memory_of:
        return measure_memory(args.memory_of, Setting(**json.loads(args.setting)))
    names = [name.strip() for name in args.rivals.split(";")]
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(
            args.shape,
            args.layers,
            args.rows,
            args.lengths,
            args.batch_size,
            args.accumulation,
            args.checkpointing,
            args.device,
            folder,
        )
        layers = f"{setting.layers} of 24 layers of the 0.5B shape" if args.shape == "0.5b" else "the bundled model"
        print(f"{layers}, {setting.batch_size} rows x {setting.accumulation} a step, {torch.get_num_threads()} threads")
        make_rows(setting)
        compare(setting, names, args.rounds)
    return None


if __name__ == "__main__":
    main()
