"""Exports in the trainers that read them: what carries loss there is what the mask keeps, token for token."""

import ast
import re
import shlex
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest
import torch
import yaml
from training_fixtures import add_mask, build_store, every_third_dropped, nll_of, sequences, uneven
from transformers import AutoTokenizer, DataCollatorForSeq2Seq, DataCollatorWithFlattening, PreTrainedTokenizerFast

from tokenstats.store import Store
from tokenstats.training import ExportOptions, ExportSummary, TrainOptions, export, train
from tokenstats.training.guides import how_to_read

datasets = pytest.importorskip("datasets")
trl = pytest.importorskip("trl")
datasets.disable_progress_bars()

pytestmark = pytest.mark.filterwarnings("ignore")  # of the trainers, about attention kernels and a machine without a GPU

Row = tuple[tuple[int, ...], tuple[bool, ...]]
"""The ids of one sequence, and which of them carry loss when they are predicted."""

READERS = {
    "padded": {"max_length": None},
    "padding-free": {"max_length": None, "padding_free": True},
    "packed": {"packing": True},
}


@pytest.fixture(scope="module")
def tokenizer(warmup: str) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(warmup)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Store:
    """24 chats in the words of the bundled models."""
    store = build_store(tmp_path_factory.mktemp("trainers"), part_tokens=300, tokenizer=tokenizer)
    add_mask(store, "some", every_third_dropped)
    add_mask(store, "uneven", every_third_dropped, weighs=uneven)
    return store


@pytest.fixture(scope="module")
def exported(store: Store, tmp_path_factory: pytest.TempPathFactory) -> ExportSummary:
    return export(
        store,
        mask="some",
        to=tmp_path_factory.mktemp("exported") / "rows",
        options=ExportOptions(save_to_disk=True, rows_per_file=10),
    )


def kept(row: int, is_target: np.ndarray) -> np.ndarray:
    return is_target & every_third_dropped(row, is_target)


def expected(store: Store) -> list[Row]:
    rows = [(ids, kept(row, flags)) for row, (ids, flags) in enumerate(sequences(store))]
    return sorted((tuple(ids.tolist()), tuple(keep.tolist())) for ids, keep in rows if keep.any())


def load(summary: ExportSummary, folder: Path) -> object:
    files = [f"{summary.to}/{name}" for name in summary.files]
    return datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(folder / "cache"))


def learned(batches: list[dict[str, torch.Tensor]]) -> list[Row]:
    """The sequences in batches of a trainer, however laid out, and the tokens that its model's loss is over.

    The loss is over labels[1:] against logits[:-1]: the first label of a line is not in it, and the first of a packed
    sequence must not be, since the sequence before would be asked to predict it.
    """
    found = []
    for batch in batches:
        for line in range(len(batch["input_ids"])):
            ids, labels = batch["input_ids"][line], batch["labels"][line]
            carries = labels != -100
            assert torch.equal(labels[carries], ids[carries])
            if "position_ids" in batch:
                starts = [*(batch["position_ids"][line] == 0).nonzero().flatten().tolist(), len(ids)]
            else:
                starts = [0, int(batch["attention_mask"][line].sum())]
                assert not carries[starts[-1] :].any(), "padding carries loss"
            for a, b in pairwise(starts):
                assert not carries[a]
                found.append((tuple(ids[a:b].tolist()), tuple(carries[a:b].tolist())))
    return sorted(found)


def sft_trainer(rows: object, model: str, out: Path, longest: int, **changes: object) -> "trl.SFTTrainer":
    settings = {
        "per_device_train_batch_size": 24,
        "max_steps": 1,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        **changes,
    }
    if settings.get("packing"):
        settings["max_length"] = longest
    return trl.SFTTrainer(model, args=trl.SFTConfig(output_dir=str(out), **settings), train_dataset=rows)


def on_command_line(snippet: str) -> dict:
    """The KEY=VALUE words of a snippet as a shell splits them; their values as OmegaConf reads them, which are YAML."""
    words = (word.partition("=") for word in shlex.split(snippet, comments=False) if re.match(r"[\w.]+=", word))
    return {key: yaml.safe_load(value) for key, _, value in words}


@pytest.mark.parametrize("name", ["plain-1.0", "a folder", "q #1", "k: v", "q[1]*", 'it\'s "so"', "- é"])
def test_a_snippet_finds_the_files_whatever_their_folder_is_called(tmp_path: Path, name: str) -> None:
    (data := tmp_path / name / "data").mkdir(parents=True)
    (file := data / "train-00000-of-00001.parquet").touch()
    facts = {"form": "labels", "data": str(data), "disk": str(tmp_path / name), "longest": 5}
    assert yaml.safe_load(how_to_read("axolotl", **facts))["datasets"][0]["path"] == str(data)
    assert yaml.safe_load(how_to_read("llama-factory", **facts))["tokenized_path"] == str(tmp_path / name)
    for place in ("null", "12", "2026-11-26", "yes"):
        assert yaml.safe_load(how_to_read("llama-factory", **{**facts, "disk": place}))["tokenized_path"] == place
    settings = on_command_line(how_to_read("skyrl", **facts | {"form": "loss-mask"}))
    assert settings["pretokenized_dataset_paths"] == [str(data)]
    beside_code = how_to_read("verl", **facts | {"form": "loss-mask"})
    ast.parse(beside_code)
    assert on_command_line(beside_code.partition("\n")[0])["data.train_files"] == str(data)
    said = ast.parse(how_to_read("trl", **facts))
    (pattern,) = [n.value for n in ast.walk(said) if isinstance(n, ast.Constant) and "train-*" in str(n.value)]
    assert fsspec.filesystem("file").glob(pattern) == [str(file)], "which is what datasets looks with"


@pytest.mark.parametrize("how", READERS)
@pytest.mark.parametrize("compat", [None, "trl-legacy"])
def test_trl_learns_exactly_the_kept_tokens(
    store: Store, exported: ExportSummary, warmup: str, tmp_path: Path, how: str, compat: str | None
) -> None:
    summary = (
        exported if compat is None else export(store, mask="some", to=tmp_path / "rows", options=ExportOptions(compat=compat))
    )
    trainer = sft_trainer(load(summary, tmp_path), warmup, tmp_path / "out", summary.longest, **READERS[how])
    batches = list(trainer.get_train_dataloader())
    assert learned(batches) == expected(store)
    if how == "packed":
        assert sum(len(batch["input_ids"][0]) for batch in batches) == summary.tokens, "packing cut something"


@pytest.mark.parametrize("how", READERS)
def test_the_first_loss_of_trl_is_ours(store: Store, exported: ExportSummary, warmup: str, tmp_path: Path, how: str) -> None:
    trainer = sft_trainer(load(exported, tmp_path), warmup, tmp_path / "trl", exported.longest, **READERS[how])
    trainer.train()
    theirs = trainer.state.log_history[0]["loss"]
    options = TrainOptions(max_steps=1, batch_size=24, accumulation=1, logging_steps=1, device="cpu")
    ours = train(store, model=warmup, mask="some", out=tmp_path / "ours", options=options).loss
    assert theirs == pytest.approx(ours, abs=1e-5)
    total, count = nll_of(store, warmup, kept)
    assert ours == pytest.approx(total / count, rel=1e-6)


@pytest.mark.parametrize("where", ["parquet", "disk"])
def test_transformers_collators_learn_exactly_the_kept_tokens(
    store: Store, exported: ExportSummary, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, where: str
) -> None:
    rows = load(exported, tmp_path) if where == "parquet" else datasets.load_from_disk(f"{exported.to}/disk")["train"]
    examples = [rows[i] for i in range(len(rows))]
    for collator in (DataCollatorForSeq2Seq(tokenizer), DataCollatorWithFlattening()):
        batch = collator([dict(example) for example in examples])
        assert learned([batch]) == expected(store)


def test_masks_for_older_trl_survive_its_packing(store: Store, tmp_path: Path) -> None:
    """TRL 0.24 to 1.6 packed input_ids and assistant_masks, with this function, and made labels of them afterwards."""
    summary = export(store, mask="some", to=tmp_path / "rows", options=ExportOptions(trainer="trl", compat="trl-legacy"))
    rows = load(summary, tmp_path).select_columns(["input_ids", "assistant_masks"])
    packed = trl.pack_dataset(rows, summary.longest)
    found = []
    for line in packed:
        for a, b in pairwise(np.cumsum([0, *line["seq_lengths"]])):
            found.append((tuple(line["input_ids"][a:b]), tuple(m == 1 for m in line["assistant_masks"][a:b])))
    assert sorted(found) == expected(store)


@pytest.mark.parametrize("trainer", ["trl", "transformers"])
def test_the_printed_snippet_runs(
    store: Store, warmup: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trainer: str
) -> None:
    """As it stands, with a folder, a model, and a stop after one step."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    code = export(store, mask="some", to=tmp_path / "rows", options=ExportOptions(trainer=trainer)).how_to_read
    quickly = 'max_steps=1, save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True, bf16=False'
    assert code.count('"OUT"') == 1
    exec(compile(code.replace('"OUT"', f'"{tmp_path / "out"}", {quickly}').replace("MODEL", warmup), trainer, "exec"), {})


def test_only_parquet_files_lie_in_the_folder_that_skyrl_is_given(
    exported: ExportSummary, store: Store, tmp_path: Path
) -> None:
    summary = export(store, mask="some", to=tmp_path / "rows", options=ExportOptions(trainer="skyrl", save_to_disk=True))
    (folder,) = on_command_line(summary.how_to_read)["pretokenized_dataset_paths"]
    assert {path.suffix for path in Path(folder).rglob("*")} == {".parquet"}
    rows = datasets.load_dataset(folder, split="train", cache_dir=str(tmp_path / "cache"))
    found = [(tuple(row["input_ids"]), tuple(m == 1 for m in row["loss_mask"])) for row in rows]
    assert sorted(found) == expected(store)


def verl_rows(summary: ExportSummary) -> torch.utils.data.Dataset:
    """The printed dataset class, as verl makes one."""
    names: dict = {}
    exec(compile(summary.how_to_read, "rows.py", "exec"), names)
    return names["Rows"](parquet_files=[f"{summary.to}/data"], tokenizer=None, config={}, processor=None, max_samples=-1)


def test_verls_class_gives_the_kept_tokens(store: Store, tmp_path: Path) -> None:
    rows = verl_rows(export(store, mask="some", to=tmp_path / "rows", options=ExportOptions(trainer="verl", rows_per_file=10)))
    examples = [rows[i] for i in range(len(rows))]
    assert all(set(e) == {"input_ids", "position_ids", "loss_mask"} for e in examples)
    assert all(e["position_ids"].tolist() == list(range(len(e["input_ids"]))) for e in examples)
    found = [(tuple(e["input_ids"].tolist()), tuple((e["loss_mask"] == 1).tolist())) for e in examples]
    assert sorted(found) == expected(store)


def test_verls_loss_of_exported_weights_is_ours(store: Store, warmup: str, tmp_path: Path) -> None:
    """verl's sft_loss on rows without padding: −Σ log p · roll(loss_mask, −1) / Σ loss_mask, over all rows at once."""
    rows = verl_rows(export(store, mask="uneven", to=tmp_path / "rows", options=ExportOptions(form="weights", trainer="verl")))
    batch = {key: torch.cat([rows[i][key] for i in range(len(rows))]) for key in ("input_ids", "loss_mask")}
    log_p = torch.cat(list(next_token_log_probs(warmup, (rows[i]["input_ids"] for i in range(len(rows))))))
    theirs = -(log_p * torch.roll(batch["loss_mask"], -1)).sum() / batch["loss_mask"].sum()
    options = TrainOptions(max_steps=1, batch_size=24, accumulation=1, logging_steps=1, device="cpu")
    ours = train(store, model=warmup, mask="uneven", out=tmp_path / "ours", options=options).loss
    assert theirs.item() == pytest.approx(ours, rel=1e-5)


def next_token_log_probs(model: str, sequences: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
    """[T] for each sequence: at index t, log p of token t + 1 (at the last index of the first token, which nobody uses)."""
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model).eval()
    for ids in sequences:
        with torch.no_grad():
            log_p = network(input_ids=ids[None]).logits[0].float().log_softmax(-1)
        yield log_p.gather(-1, torch.roll(ids, -1)[:, None]).squeeze(-1)


def test_axolotls_snippet_names_exactly_three_columns_and_no_type(store: Store, tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    summary = export(store, mask="some", to=tmp_path / "rows", options=ExportOptions(trainer="axolotl"))
    config = yaml.safe_load(summary.how_to_read)
    (dataset,) = config["datasets"]
    assert "type" not in dataset
    rows = datasets.load_dataset(dataset["path"], split=dataset["split"], cache_dir=str(tmp_path / "cache"))
    assert rows.column_names == ["input_ids", "attention_mask", "labels"]
    assert config["sequence_len"] == max(map(len, rows["input_ids"]))


def test_tinkers_snippet_shifts_targets_and_weights_together(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tinker is a service: its two constructors are stood in for."""
    types = SimpleNamespace(Datum=lambda **fields: fields, ModelInput=SimpleNamespace(from_ints=list))
    monkeypatch.setitem(sys.modules, "tinker", SimpleNamespace(types=types))
    names: dict = {}
    exec(
        compile(
            export(store, mask="uneven", to=tmp_path / "rows", options=ExportOptions(trainer="tinker")).how_to_read,
            "tinker",
            "exec",
        ),
        names,
    )
    rows = [(row, *pair) for row, pair in enumerate(sequences(store)) if row not in (3, 7)]
    for datum, (row, ids, flags) in zip(names["data"], rows, strict=True):
        weights = np.where(kept(row, flags), uneven(row, flags), 0)
        assert datum["model_input"] == ids[:-1].tolist()
        assert datum["loss_fn_inputs"]["target_tokens"] == ids[1:].tolist()
        assert datum["loss_fn_inputs"]["weights"] == weights[1:].tolist()
