"""The front door: what `import tokenstats as ts` gives, by name, and the store as a notebook uses it."""

import numpy as np
import pytest
from inspect_fixtures import copy_of_store

import tokenstats as ts
from tokenstats.training.rows import IGNORED


@pytest.fixture
def store(tmp_path) -> ts.Store:
    return ts.Store(copy_of_store(tmp_path).path)


def test_every_name_is_found_by_tab_and_leads_to_what_it_says():
    assert set(ts.__all__) == set(ts._HOMES) <= set(dir(ts))
    for name in ts.__all__:
        assert getattr(ts, name).__name__ == name
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = ts.nothing_of_the_kind


def test_rows_are_counted_from_either_end_and_iterated(store):
    assert len(store) == store.manifest.sequences
    numbers = [view.number for view in store]
    assert numbers == list(range(len(store)))
    assert store[-1].seq_id == store[len(store) - 1].seq_id
    for beyond in (len(store), -len(store) - 1):
        with pytest.raises(IndexError, match=f"it holds rows 0 to {len(store) - 1}"):
            _ = store[beyond]
    assert store[np.int64(2)].number == 2
    for wrong in (slice(2, 4), "3", 2.0):
        with pytest.raises(TypeError, match=r"a row is one whole number, got .*; several: "):
            _ = store[wrong]


def test_a_mask_is_made_from_a_preset_a_rule_or_its_parts(store, tmp_path):
    rule = ts.Rule(drop="entropy > 2", protect="")
    (tmp_path / "rule.toml").write_text(rule.to_toml())
    made = [
        store.add_mask("a", rule),
        store.add_mask("b", tmp_path / "rule.toml"),
        store.add_mask("c", drop="entropy > 2", protect=""),
        store.add_mask("fields", {"drop": "entropy > 2", "protect": ""}),
        store.add_mask("d", ts.Rule(drop="entropy > 2"), protect=""),
    ]
    assert len({mask.manifest.rule_fingerprint for mask in made}) == 1
    assert {mask.manifest.kept for mask in made} == {store.masks["a"].manifest.kept}
    assert store.add_mask("published", "eksft").manifest.rule["preset"] == "eksft"
    assert store.row(3, mask="a").dropped == sum(t.dropped for t in map(store.row(3, mask="a").token, range(len(store[3]))))


def test_a_word_that_no_rule_has_is_named_with_the_nearest(store):
    with pytest.raises(ts.InputError, match=r"a rule has no 'drp' \(did you mean 'drop'\?\)"):
        store.add_mask("m", drp="entropy > 2")


def test_functions_take_a_store_or_its_path(store):
    path = str(store.path)
    assert ts.audit(path, "eksft").to_dict() == {**ts.audit(store, "eksft").to_dict(), "store": path}
    assert ts.compare(path, "eksft", "random").jaccard == ts.compare(store, "eksft", "random").jaccard
    one, two = (ts.sweep(where, "eksft", {"f": [0.1, 0.2]}) for where in (path, store))
    assert one.lines == two.lines
    assert ts.sweep(store, {"drop": "kl > t"}, {"t": "1:2:1"}).lines[0].values == {"t": "1"}
    assert ts.build_mask(path, ts.Rule.load("eksft"), "eksft").name == "eksft"


def test_a_dataset_holds_the_rows_and_labels_what_the_mask_keeps(store):
    dataset = store.to_dataset("eksft")
    assert dataset.column_names == ["input_ids", "attention_mask", "labels"]
    learned = [view for view in (store.row(n, mask="eksft") for n in range(len(store))) if view.kept]
    assert len(dataset) == len(learned)
    for row, view in zip(dataset, learned, strict=True):
        assert row["input_ids"] == view.ids.tolist()
        assert row["labels"] == np.where(view.keep, view.ids, IGNORED).tolist()


def test_a_dataset_loses_no_weights_unasked(store):
    store.add_mask("soft", weight="prob")
    with pytest.raises(ts.InputError, match="would lose the weights"):
        store.to_dataset("soft")
    weights = store.to_dataset("soft", form="weights")["weights"]
    assert sum(sum(row) for row in weights) > 0


def test_errors_are_what_python_users_expect(store):
    with pytest.raises(KeyError, match="no mask 'ekstf'"):
        _ = store.masks["ekstf"]
    with pytest.raises(ValueError, match="no preset"):
        ts.Rule.load("ekstf")
    with pytest.raises(ValueError, match="syntax error"):
        ts.Rule(drop="entropy >")
