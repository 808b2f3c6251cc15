"""A store that someone damaged: every command that reads it refuses, and names the part."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from disk import write_jsonl
from inspect_fixtures import edit_manifest, store_with_masks

from tokenstats import Rule, Store, build_mask, compare
from tokenstats.computing import compute
from tokenstats.errors import StoreError
from tokenstats.inspect.audit.audit import audit
from tokenstats.inspect.render.terminal_tokens import plain_sequence
from tokenstats.inspect.report import report
from tokenstats.inspect.tokens.sequence import read_sequence
from tokenstats.store.parts import part_path
from tokenstats.training import export, train
from tokenstats.training.options import TrainOptions

TOKENS, STATS, MASK = "tokens", "stats/warm", "masks/eksft"
PART = 1


def first_row(store: Store) -> int:
    return store.manifest.parts[0].rows


def model_of(store: Store) -> str:
    return store.scorings.choose().manifest.model.source


COMMANDS: dict[str, tuple[set[str], Callable[[Store, Path], object]]] = {
    "mask": ({TOKENS, STATS}, lambda store, _: build_mask(store, Rule(drop="kl > 6"), "new")),
    "audit": ({TOKENS, STATS, MASK}, lambda store, _: audit(store, "eksft")),
    "compare masks": ({TOKENS, MASK}, lambda store, _: compare(store, "eksft", "random")),
    "compare rules": ({TOKENS, STATS}, lambda store, _: compare(store, "kl-only", "random")),
    "show": ({TOKENS, STATS, MASK}, lambda store, _: plain_sequence(read_sequence(store, first_row(store), mask="eksft"))),
    "export": ({TOKENS, MASK}, lambda store, to: export(store, mask="eksft", to=to / "out")),
    "report": ({TOKENS, STATS, MASK}, lambda store, to: report(store, to / "out")),
    "train": (
        {TOKENS, MASK},
        lambda store, to: train(
            store, model=model_of(store), out=to / "out", mask="eksft", options=TrainOptions(max_steps=1, device="cpu")
        ),
    ),
}
"""What each command reads, and the command. ``show`` reads one part alone: it is asked for a row of the damaged one."""


def remove(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def swap(path: Path) -> None:
    other = part_path(path.parent, PART + 1)
    kept = path.read_bytes()
    shutil.move(other, path)
    other.write_bytes(kept)


def rewrite(edit: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    """A damage that leaves a valid Parquet file."""

    def damage(path: Path) -> None:
        pq.write_table(edit(pq.read_table(path)), path)

    return damage


def other_sequences(table: pa.Table) -> pa.Table:
    ids = [f"{seq_id[:-1]}{'0' if seq_id[-1] != '0' else '1'}" for seq_id in table["seq_id"].to_pylist()]
    return table.set_column(0, table.schema.field(0), [ids])


def other_types(table: pa.Table) -> pa.Table:
    """As polars writes lists."""
    fields = [pa.field(f.name, pa.large_list(f.type.value_type)) if pa.types.is_list(f.type) else f for f in table.schema]
    return table.cast(pa.schema(fields))


def shorter_lists(table: pa.Table) -> pa.Table:
    """The last token of the first row moves to the front of the second: as many tokens, other rows."""
    for place, field in enumerate(table.schema):
        if pa.types.is_list(field.type):
            lists = table[field.name].to_pylist()
            lists[1].insert(0, lists[0].pop())
            table = table.set_column(place, field, pa.array(lists, field.type))
    return table


DAMAGES: dict[str, Callable[[Path], None]] = {
    "missing": remove,
    "truncated": truncate,
    "empty": empty,
    "swapped": swap,
    "of other sequences": rewrite(other_sequences),
    "of other types": rewrite(other_types),
    "without its columns": rewrite(lambda table: table.select(["seq_id"])),
    "short of a row": rewrite(lambda table: table.slice(0, len(table) - 1)),
    "of other lengths": rewrite(shorter_lists),
}


@pytest.fixture(scope="module")
def whole() -> Store:
    return store_with_masks()


@pytest.fixture
def own(tmp_path, whole) -> Store:
    shutil.copytree(whole.path, tmp_path / "store")
    return Store(tmp_path / "store")


@pytest.fixture(params=["with digests", "without digests"])
def of_any_age(request, own) -> Store:
    """A store of today, and one as an earlier version may have left it: no digests, no checksums."""
    if request.param == "without digests":
        for path in own.path.rglob("manifest.json"):
            parts = json.loads(path.read_text())["parts"]
            edit_manifest(path.parent, parts=[{**part, "digest": ""} for part in parts])
    return Store(own.path)


READS = [(command, family) for command, (families, _) in COMMANDS.items() for family in sorted(families)]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(("command", "family"), READS)
def test_a_damaged_part_is_refused_by_name(of_any_age, tmp_path, command, family, damage):
    own = of_any_age
    path = part_path(own.path / family, PART)
    DAMAGES[damage](path)
    with pytest.raises(StoreError, match=r"part-0000\d\.parquet") as refused:
        COMMANDS[command][1](own, tmp_path)
    message = str(refused.value)
    if family == TOKENS and damage in ("of other sequences", "of other lengths"):
        assert str(path) in message or f"part {PART} of the tokens" in message  # of two that differ either may be wrong
    else:
        assert str(path) in message
    assert "\n" not in message
    assert not (tmp_path / "out").exists()
    assert not (own.path / "masks" / "new").exists()


@pytest.mark.parametrize("family", [".", STATS, MASK])
def test_another_schema_version_is_refused_whatever_else_it_holds(own, family):
    edit_manifest(own.path / family, schema_version=2, a_field_of_the_future=1)
    with pytest.raises(StoreError, match=r"manifest\.json has schema version 2, this tokenstats reads 1"):
        audit(Store(own.path), "eksft")


@pytest.mark.parametrize("family", [STATS, MASK])
def test_a_manifest_of_other_parts_is_refused(own, family):
    path = own.path / family / "manifest.json"
    edit_manifest(path.parent, parts=json.loads(path.read_text())["parts"][:-1])
    with pytest.raises(StoreError, match=rf"{family}/manifest\.json lists other parts than the store's tokens"):
        audit(own, "eksft")


def other_values(table: pa.Table) -> pa.Table:
    """One value differs: a valid part of the same rows, columns and lengths."""
    place = table.schema.get_field_index("keep" if "keep" in table.column_names else table.column_names[1])
    lists = table.column(place).to_pylist()
    row, at = next((r, i) for r, values in enumerate(lists) for i, value in enumerate(values) if value)
    lists[row][at] = False if lists[row][at] is True else lists[row][at] / 2 if isinstance(lists[row][at], float) else 5
    return table.set_column(place, table.schema.field(place), pa.array(lists, table.schema.field(place).type))


@pytest.mark.parametrize("family", [TOKENS, STATS, MASK])
def test_other_values_in_the_same_shape_are_a_problem_of_the_audit(own, family):
    def verdict() -> tuple[str, str]:
        (check,) = (f for f in audit(own, "eksft").findings if f.name == "intact_parts")
        return check.verdict, check.message

    assert verdict()[0] == "ok"
    rewrite(other_values)(part_path(own.path / family, PART))
    assert verdict() == ("problem", f"changed after they were made: {family}/part-0000{PART}.parquet; make them again")
    assert own.changed_parts(family) == [part_path(own.path / family, PART)]


def test_tokens_that_were_changed_are_not_scored(tmp_path, chats, base):
    data = write_jsonl(tmp_path / "d.jsonl", chats[:3])
    store = compute(data, model=base, store=tmp_path / "store", name="one").store
    rewrite(other_values)(part_path(store.path / TOKENS, 0))
    with pytest.raises(StoreError, match=r"tokens/part-00000\.parquet was changed after it was made"):
        compute(data, model=base, store=tmp_path / "store", name="two")
    assert list(Store(store.path).scorings) == ["one"]


@pytest.mark.parametrize("command", ["export", "train"])
@pytest.mark.parametrize("family", [TOKENS, MASK])
def test_nothing_leaves_a_store_whose_values_were_changed(own, tmp_path, command, family):
    path = part_path(own.path / family, PART)
    rewrite(other_values)(path)
    with pytest.raises(StoreError, match="was changed after it was made: its digest differs") as refused:
        COMMANDS[command][1](own, tmp_path)
    assert str(path) in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_part_is_proven_against_the_lengths_of_the_tokens_whoever_asks_first(of_any_age):
    """As a fresh store is asked for a mask alone: what is read of the tokens then must tell their lengths, too."""
    path = part_path(of_any_age.path / MASK, 0)
    rewrite(shorter_lists)(path)
    fresh = Store(of_any_age.path)
    with pytest.raises(StoreError, match=r"part-00000\.parquet"):
        fresh.part(MASK, 0)
    fresh.part(TOKENS, 0, ["seq_id"])  # the rows' names alone
    with pytest.raises(StoreError, match=r"part-00000\.parquet"):
        fresh.part(MASK, 0, ["keep"])


def test_no_control_follows_a_damaged_mask(of_any_age):
    for index in range(of_any_age.part_count):
        rewrite(shorter_lists)(part_path(of_any_age.path / MASK, index))
    control = Rule(drop="random(0.5, seed=1)", budget="same as eksft")
    with pytest.raises(StoreError, match=r"eksft/part-0000\d\.parquet"):
        build_mask(Store(of_any_age.path), control, "control")


def test_swapped_tokens_are_noticed_where_nothing_else_is_read(of_any_age):
    own = of_any_age
    swap(part_path(own.path / TOKENS, PART))
    shutil.rmtree(own.path / "stats")
    shutil.rmtree(own.path / "masks")
    with pytest.raises(StoreError, match=r"part-00001\.parquet (was changed|holds \d+ \w+, its manifest counts \d+)"):
        plain_sequence(read_sequence(own, first_row(own)))
