"""The forms of an export: their types and columns, what each trainer gets by itself, and that no weight is lost unsaid."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from training_fixtures import every_third_dropped, exported_table, sequences, uneven

from tokenstats.errors import InputError
from tokenstats.store import Store
from tokenstats.training import ExportOptions, export
from tokenstats.training.guides import FORMS


def expected_rows(store: Store) -> list[tuple[list[int], list[bool]]]:
    """(ids, kept) of the rows in which the mask "some" keeps something."""
    rows = [(ids, flags & every_third_dropped(row, flags)) for row, (ids, flags) in enumerate(sequences(store))]
    return [(ids.tolist(), keep.tolist()) for ids, keep in rows if keep.any()]


@pytest.mark.parametrize(
    ("form", "others"),
    [
        ("labels", {"attention_mask": pa.int8()}),
        ("loss-mask", {"loss_mask": pa.int8()}),
        ("weights", {"attention_mask": pa.int8(), "weights": pa.float32()}),
    ],
)
def test_types_are_plain_lists_and_the_files_carry_no_metadata(
    store: Store, tmp_path: Path, form: str, others: dict[str, pa.DataType]
) -> None:
    (name,) = export(store, mask="some", to=tmp_path / "out", options=ExportOptions(form=form)).files
    schema = pq.read_schema(tmp_path / "out" / name)
    assert pq.read_metadata(tmp_path / "out" / name).metadata is None
    types = {f.name: f.type for f in schema}
    assert all(pa.types.is_list(kind) for kind in types.values())
    assert {name: types[name].value_type for name in others} == others
    assert {kind.value_type for column, kind in types.items() if column not in others} == {pa.int32()}


def test_datasets_reads_the_folder_and_the_files_with_the_right_types(store: Store, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    summary = export(store, mask="some", to=tmp_path / "out", options=ExportOptions(rows_per_file=10))
    files = [str(tmp_path / "out" / name) for name in summary.files]
    by_files = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    by_folder = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    for rows in (by_files, by_folder):
        assert len(rows) == summary.rows
        assert {name: kind.feature.dtype for name, kind in rows.features.items()} == {
            "input_ids": "int32",
            "attention_mask": "int8",
            "labels": "int32",
        }
        assert {type(kind).__name__ for kind in rows.features.values()} <= {"List", "Sequence"}


@pytest.mark.parametrize("form", FORMS)
def test_load_from_disk_gives_the_same_rows(store: Store, tmp_path: Path, form: str) -> None:
    datasets = pytest.importorskip("datasets")
    summary = export(
        store, mask="some", to=tmp_path / "out", options=ExportOptions(form=form, save_to_disk=True, rows_per_file=10)
    )
    found = datasets.load_from_disk(str(tmp_path / "out" / "disk"))
    assert list(found) == ["train"]
    assert found["train"].to_list() == exported_table(tmp_path / "out").to_pylist()
    assert len(found["train"].cache_files) == len(summary.files) == 3
    again = found["train"].map(lambda row: {"length": len(row["input_ids"])})  # it can be worked with
    assert again["length"] == [len(ids) for ids, _ in expected_rows(store)]


def test_what_lies_on_disk_can_be_read_by_datasets_before_version_4(store: Store, tmp_path: Path) -> None:
    """They know ``Sequence``, not ``List``, in the JSON or in the metadata of the Arrow files, where they look first."""
    export(store, mask="some", to=tmp_path / "out", options=ExportOptions(trainer="llama-factory"))
    folder = tmp_path / "out" / "disk" / "train"
    features = json.loads((folder / "dataset_info.json").read_text())["features"]
    assert {name: (f["_type"], f["feature"]["dtype"], f["feature"]["_type"]) for name, f in features.items()} == {
        "input_ids": ("Sequence", "int32", "Value"),
        "attention_mask": ("Sequence", "int8", "Value"),
        "labels": ("Sequence", "int32", "Value"),
    }
    (arrow,) = folder.glob("*.arrow")
    with pa.ipc.open_stream(arrow) as stream:
        assert stream.schema.metadata is None
        assert all(pa.types.is_list(kind) for kind in stream.schema.types)


def test_caches_of_datasets_tell_exports_apart(store: Store, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    prints = set()
    for i, (mask, form) in enumerate([("some", "labels"), ("some", "loss-mask"), ("all", "labels"), ("some", "labels")]):
        export(store, mask=mask, to=tmp_path / str(i), options=ExportOptions(form=form, save_to_disk=True))
        prints.add(datasets.load_from_disk(str(tmp_path / str(i) / "disk"))["train"]._fingerprint)
    assert len(prints) == 3, "equal rows should have equal fingerprints, and others not"


@pytest.mark.parametrize("mask", ["uneven", "some"])
def test_weights_are_the_masks_or_1_where_it_keeps(store: Store, tmp_path: Path, mask: str) -> None:
    summary = export(store, mask=mask, to=tmp_path / "out", options=ExportOptions(form="weights"))
    left_out = {3, 7} if mask == "uneven" else {3}  # all of row 7 weighs 0
    expected = [(row, *pair) for row, pair in enumerate(sequences(store)) if row not in left_out]
    assert (summary.rows, summary.rows_left_out) == (len(expected), len(left_out))
    for found, (row, ids, is_target) in zip(exported_table(tmp_path / "out").to_pylist(), expected, strict=True):
        keep = is_target & every_third_dropped(row, is_target)
        weights = uneven(row, is_target) if mask == "uneven" else np.ones(len(ids))
        assert list(found) == ["input_ids", "attention_mask", "labels", "weights"]
        assert found["labels"] == np.where(keep, ids, -100).tolist()
        assert found["weights"] == np.where(keep, weights, 0).tolist()
    assert "leave them out without a word" in (tmp_path / "out" / "README.md").read_text().replace("\n", " ")


@pytest.mark.parametrize("form", [name for name, form in FORMS.items() if not form.has_weights])
def test_weights_are_not_lost_unless_it_is_asked_for(store: Store, tmp_path: Path, form: str) -> None:
    with pytest.raises(InputError, match=rf"form {form} would lose the weights; .*form='weights'.*\(ignore_weights=True\)"):
        export(store, mask="uneven", to=tmp_path / "out", options=ExportOptions(form=form))
    assert list(tmp_path.iterdir()) == []
    export(store, mask="uneven", to=tmp_path / "out", options=ExportOptions(form=form, ignore_weights=True))
    export(store, mask="some", to=tmp_path / "plain", options=ExportOptions(form=form))
    assert exported_table(tmp_path / "out").equals(exported_table(tmp_path / "plain"))
    assert json.loads((tmp_path / "out" / "tokenstats.json").read_text())["weights_ignored"]
    assert "its weights were left out" in (tmp_path / "out" / "README.md").read_text()


def test_compat_adds_the_mask_that_older_trl_keeps(store: Store, tmp_path: Path) -> None:
    export(store, mask="some", to=tmp_path / "out", options=ExportOptions(compat="trl-legacy"))
    for row, (_, keep) in zip(exported_table(tmp_path / "out").to_pylist(), expected_rows(store), strict=True):
        assert list(row) == ["input_ids", "attention_mask", "labels", "assistant_masks"]
        assert row["assistant_masks"] == [int(k) for k in keep]


@pytest.mark.parametrize(
    ("trainer", "form", "on_disk"),
    [
        ("trl", "labels", False),
        ("transformers", "labels", False),
        ("axolotl", "labels", False),
        ("llama-factory", "labels", True),
        ("unsloth", "labels", False),
        ("skyrl", "loss-mask", False),
        ("verl", "loss-mask", False),
        ("tinker", "weights", False),
    ],
)
def test_a_trainer_decides_the_form_and_gets_its_own_snippet(
    store: Store, tmp_path: Path, trainer: str, form: str, on_disk: bool
) -> None:
    summary = export(store, mask="some", to=tmp_path / "out", options=ExportOptions(trainer=trainer))
    assert (summary.form, summary.trainer) == (form, trainer)
    assert (tmp_path / "out" / "disk").exists() == on_disk
    place = str(tmp_path / "out" / ("disk" if on_disk else "data"))
    assert place in summary.how_to_read, "the snippet should read these files"
    assert place not in (tmp_path / "out" / "README.md").read_text(), "a card should not tell where the files lay"
    assert not re.search(r"\{(data|files|disk|longest|learned)", summary.how_to_read)


def test_the_command_line_prints_the_snippet_of_the_chosen_trainer(cli, store: Store, tmp_path: Path) -> None:
    status, out, _ = cli("export", store.path, "--mask", "some", "--to", tmp_path / "a", "--for", "llama-factory")
    assert status == 0
    assert f"tokenized_path: {tmp_path / 'a' / 'disk'}" in out
    assert "left out 1 row with nothing to learn" in out
    status, out, _ = cli("export", store.path, "--mask", "uneven", "--to", tmp_path / "b", "--form", "weights", "--json")
    assert (status, json.loads(out)["trainer"]) == (0, "verl")
    status, out, err = cli("export", store.path, "--mask", "uneven", "--to", tmp_path / "c")
    assert (status, out) == (2, "")
    assert "--ignore-weights" in err
