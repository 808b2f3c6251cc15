"""Exported rows: token for token what the mask says, in the types that other trainers read, whole or not at all."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from training_fixtures import add_mask, build_store, every_third_dropped, exported_table, remake_part, sequences, uneven

from tokenstats.errors import InputError, StoreError
from tokenstats.store import Store
from tokenstats.training import ExportOptions, export
from tokenstats.training.provenance import write_record

INJECTION = "nll > 2` <script>alert(1)</script>\n# [click](http://evil)\n---\n\x1b[31m"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = build_store(tmp_path_factory.mktemp("exports"))
    add_mask(store, "some", every_third_dropped)
    add_mask(store, "nothing", lambda row, is_target: np.zeros(len(is_target), bool))
    add_mask(store, "injected", every_third_dropped, rule=INJECTION)
    add_mask(store, "uneven", every_third_dropped, weighs=uneven)
    add_mask(store, "weightless", every_third_dropped, weighs=lambda row, is_target: np.zeros(len(is_target)))
    return store


def expected_rows(store: Store, masked: bool) -> list[tuple[list[int], list[bool]]]:
    """(ids, kept) of the rows with something kept."""
    rows = []
    for row, (ids, is_target) in enumerate(sequences(store)):
        keep = is_target & every_third_dropped(row, is_target) if masked else is_target
        if keep.any():
            rows.append((ids.tolist(), keep.tolist()))
    return rows


@pytest.mark.parametrize("mask", ["some", "none", None])
def test_labels_are_the_kept_tokens_and_nothing_else(store: Store, tmp_path: Path, mask: str | None) -> None:
    summary = export(store, mask=mask, to=tmp_path / "out")
    expected = expected_rows(store, masked=mask == "some")
    found = exported_table(tmp_path / "out").to_pylist()
    assert [list(row) for row in found] == [["input_ids", "attention_mask", "labels"]] * len(expected)
    for row, (ids, keep) in zip(found, expected, strict=True):
        assert row["input_ids"] == ids
        assert row["attention_mask"] == [1] * len(ids)
        assert row["labels"] == [i if k else -100 for i, k in zip(ids, keep, strict=True)]
        assert row["labels"][0] == -100
    assert summary.rows == len(expected)
    assert summary.rows_left_out == len(sequences(store)) - len(expected) == (1 if mask == "some" else 0)
    assert summary.tokens == sum(len(ids) for ids, _ in expected)
    assert summary.kept_tokens == sum(sum(keep) for _, keep in expected)
    assert summary.longest == max(len(ids) for ids, _ in expected)


def test_token_0_is_never_learned_even_where_a_store_calls_it_a_target(tmp_path: Path) -> None:
    store = build_store(tmp_path / "made", rows=8, part_tokens=200)
    table = store.part("tokens", 0)
    flags = pa.chunked_array([pa.array([[True] * len(row) for row in table["is_target"].to_pylist()])])
    position = table.schema.get_field_index("is_target")
    store = remake_part(store, "tokens", 0, table.set_column(position, table.schema.field("is_target"), flags))
    export(store, mask="none", to=tmp_path / "out")
    first = exported_table(tmp_path / "out").slice(0, 1).to_pylist()[0]
    assert first["labels"] == [-100, *first["input_ids"][1:]]


def test_a_loss_mask_is_1_where_a_token_is_kept(store: Store, tmp_path: Path) -> None:
    export(store, mask="some", to=tmp_path / "out", options=ExportOptions(form="loss-mask"))
    found = exported_table(tmp_path / "out").to_pylist()
    for row, (ids, keep) in zip(found, expected_rows(store, masked=True), strict=True):
        assert row == {"input_ids": ids, "loss_mask": [int(k) for k in keep]}


@pytest.mark.parametrize("rows_per_file", [1, 7, 23, 1000])
def test_files_hold_so_many_rows_and_are_numbered(store: Store, tmp_path: Path, rows_per_file: int) -> None:
    summary = export(store, mask="some", to=tmp_path / "out", options=ExportOptions(rows_per_file=rows_per_file))
    counts = [pq.read_metadata(tmp_path / "out" / name).num_rows for name in summary.files]
    assert sum(counts) == 23
    assert all(c == rows_per_file for c in counts[:-1])
    assert summary.files == tuple(f"data/train-{i:05d}-of-{len(counts):05d}.parquet" for i in range(len(counts)))
    assert [r["input_ids"] for r in exported_table(tmp_path / "out").to_pylist()] == [
        ids for ids, _ in expected_rows(store, masked=True)
    ]


def test_a_killed_export_leaves_nothing_that_looks_finished(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to = tmp_path / "out"

    def killed(*_: object) -> None:
        assert not to.exists(), "the folder stood in its place before it was whole"
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tokenstats.training.exports.write_record", killed)
        with pytest.raises(KeyboardInterrupt):
            export(store, mask="some", to=to)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".writing-out-0123abcd").mkdir()  # what is left after a kill -9
    (tmp_path / ".writing-out-0123abcd" / "00007.parquet").write_bytes(b"half")
    export(store, mask="some", to=to)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert sorted(p.name for p in to.iterdir()) == ["README.md", "data", "tokenstats.json"]


def test_an_empty_folder_may_be_filled_and_any_other_is_left_alone(store: Store, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    export(store, mask="some", to=tmp_path / "empty")
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        export(store, mask="some", to=taken)
    assert [p.name for p in taken.iterdir()] == ["thesis.txt"]


def test_of_two_exports_into_one_folder_the_second_says_so(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to = tmp_path / "out"

    def meanwhile(*written: object) -> None:
        monkeypatch.undo()
        export(store, mask=None, to=to)
        write_record(*written)

    monkeypatch.setattr("tokenstats.training.exports.write_record", meanwhile)
    with pytest.raises(InputError, match="filled by another run meanwhile"):
        export(store, mask="some", to=to)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert json.loads((to / "tokenstats.json").read_text())["mask"] is None


@pytest.mark.parametrize(
    ("mask", "options", "kind", "message"),
    [
        ("nothing", {}, InputError, "nothing to learn"),
        ("sme", {}, StoreError, "did you mean 'some'"),
        ("some", {"form": "label"}, InputError, "did you mean 'labels'"),
        ("some", {"rows_per_file": 0}, InputError, "at least 1"),
        ("some", {"trainer": "axolotle"}, InputError, "did you mean 'axolotl'"),
        ("some", {"trainer": "skyrl", "form": "labels"}, InputError, "SkyRL reads loss-mask"),
        ("some", {"trainer": "trl", "form": "weights"}, InputError, "TRL reads labels"),
        ("some", {"compat": "trl"}, InputError, "expected one of: trl-legacy"),
        ("some", {"compat": "trl-legacy", "trainer": "axolotl"}, InputError, "adds a column for TRL"),
        ("some", {"compat": "trl-legacy", "form": "loss-mask"}, InputError, "adds a column for TRL"),
        ("uneven", {"form": "weights", "ignore_weights": True}, InputError, "one of the two"),
        (
            "some",
            {"ignore_weights": True},
            InputError,
            "ignore_weights would do nothing: the mask 'some' does not weigh",
        ),
        ("weightless", {"form": "weights"}, InputError, "nothing to learn"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(
    store: Store, tmp_path: Path, mask: str, options: dict, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        export(store, mask=mask, to=tmp_path / "out", options=ExportOptions(**options))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_among_the_parts_of_a_store(store: Store) -> None:
    for place in ("masks/mine", "stats/mine/rows", "tokens/mine"):
        with pytest.raises(InputError, match=r"lies inside the store .*, among its own parts; choose another folder"):
            export(store, mask="some", to=store.path / place)


def test_a_place_that_cannot_be_written_to_is_a_users_mistake(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made"):
        export(store, mask="some", to=tmp_path / "file" / "out")


def test_the_record_names_store_mask_and_rule(store: Store, tmp_path: Path) -> None:
    export(store, mask="some", to=tmp_path / "out", options=ExportOptions(form="loss-mask"))
    record = json.loads((tmp_path / "out" / "tokenstats.json").read_text())
    assert record["store_fingerprint"] == store.fingerprint
    assert (record["mask"], record["rule"], record["mask_fingerprint"]) == ("some", {"drop": "nll > 2"}, "mask-some")
    assert (record["form"], record["rows"], record["rows_with_nothing_kept"]) == ("loss-mask", 23, 1)
    assert str(tmp_path.parent) not in json.dumps(record), "a published record tells where on a disk the data lay"


def test_a_rule_cannot_write_the_card(store: Store, tmp_path: Path) -> None:
    export(store, mask="injected", to=tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    (line,) = [x for x in card.splitlines() if "script" in x]
    assert line.startswith("- `drop`: `")
    assert line.count("`") == 4
    assert line.endswith("`")
    assert "\x1b" not in card
    assert card.count("\n---\n") == 1


def test_exporting_needs_no_torch(store: Store, tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from tokenstats.training import ExportOptions, export; "
        f"export({str(store.path)!r}, mask='some', to={str(tmp_path / 'out')!r}); "
        "sys.exit('torch' in sys.modules or 'polars' in sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=Path(__file__).parents[2])
