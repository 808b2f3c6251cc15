"""What the page is sent is what the store holds: decoded again here and held against the sequence."""

import json
from base64 import b64decode

import numpy as np
import pytest
from inspect_fixtures import HOSTILE_ROWS, LONG_ROW, SMILE, copy_of_store, make_store, store_with_masks

from tokenstats import Rule
from tokenstats.inspect.preview import open_preview
from tokenstats.inspect.tokens.payload import bits, decisions_payload, floats, row_payload, runs
from tokenstats.inspect.tokens.reasons import reasons_for
from tokenstats.inspect.tokens.sequence import read_sequence


def as_floats(text: str) -> np.ndarray:
    return np.frombuffer(b64decode(text), "<f4")


def as_ints(text: str) -> np.ndarray:
    return np.frombuffer(b64decode(text), "<i4")


def as_bits(text: str, count: int) -> np.ndarray:
    return np.unpackbits(np.frombuffer(b64decode(text), np.uint8), bitorder="little")[:count].astype(bool)


def sent(value: dict) -> dict:
    """As it arrives: through JSON, which has no NaN."""
    return json.loads(json.dumps(value, allow_nan=False))


@pytest.mark.parametrize("number", range(35))
def test_a_row_arrives_whole(number):
    view = read_sequence(store_with_masks(), number)
    row = sent(row_payload(view))
    assert as_ints(row["ids"]).tolist() == view.ids.tolist()
    assert as_bits(row["targets"], len(view)).tolist() == view.is_target.tolist()
    for name, values in view.statistics.items():
        expected = np.array([np.nan if v is None else v for v in values], np.float32)
        np.testing.assert_array_equal(as_floats(row["statistics"][name]), expected)
    starts = as_ints(row["starts"])
    assert len(row["texts"]) == len(starts) - 1
    assert (np.diff(starts) > 0).all()
    assert starts[-1] == row["length"] == len(view)
    assert {str(i) for i in [*view.ids, *view.statistics["top1_id"]] if i is not None} == set(row["labels"])


def test_a_character_of_several_tokens_is_one_text():
    row = row_payload(read_sequence(store_with_masks(), HOSTILE_ROWS[next(t for t in HOSTILE_ROWS if SMILE in t)]))
    starts = as_ints(row["starts"])
    (first, *_) = [i for i, text in enumerate(row["texts"]) if text == SMILE or text == f" {SMILE}"]
    assert starts[first + 1] - starts[first] > 1


def test_the_alternatives_of_each_token_arrive_in_order():
    view = read_sequence(make_store("with-topk", topk=3), 1)
    topk = sent(row_payload(view))["topk"]
    ids, logprobs = as_ints(topk["ids"]).reshape(-1, topk["k"]), as_floats(topk["logprobs"]).reshape(-1, topk["k"])
    assert topk["k"] == 3
    for i, of_token in enumerate(view.statistics["topk_ids"]):
        assert ids[i].tolist() == (of_token or [-1] * 3)
        if of_token:
            assert logprobs[i].tolist() == view.statistics["topk_logprobs"][i]


def test_without_its_tokenizer_a_row_shows_ids_and_says_why(tmp_path):
    store = copy_of_store(tmp_path)
    (store.tokenizer_folder / "tokenizer.json").unlink()
    view = read_sequence(store, 1)
    row = row_payload(view)
    assert row["texts"] == [f"⟨{i}⟩" for i in view.ids]
    assert "tokenizer.json is missing" in row["caveat"]


@pytest.mark.parametrize("number", [0, LONG_ROW, LONG_ROW + 1])
def test_decisions_arrive_as_bits_with_the_distance_to_each_threshold(number):
    store = store_with_masks()
    rule = Rule(drop="top(entropy, 0.3, per=sequence) or nll > 3 and not is_special")
    preview = open_preview(store, "warm", rule.columns)
    outcome = preview.decide(rule)
    view = preview.view(outcome, number)
    part, row = store.locate(number)
    targets = preview.parts[part]
    reasons = reasons_for(rule.clauses, targets, row, outcome.aggregates)
    found = sent(decisions_payload(view, "rule", reasons=reasons, weight=np.arange(len(view), dtype=np.float32)))
    assert as_bits(found["kept"], len(view)).tolist() == view.keep.tolist()
    assert as_bits(found["protected"], len(view)).tolist() == view.protected.tolist()
    assert as_floats(found["weight"]).tolist() == list(range(len(view)))
    for bit, (clause, reason) in enumerate(zip(found["clauses"], reasons, strict=True)):
        assert as_bits(clause["dropped"], len(view)).tolist() == (view.reason >> bit & 1).astype(bool).tolist()
        for sent_condition, condition in zip(clause["conditions"], reason.conditions, strict=True):
            limits = as_floats(sent_condition["limits"]["values"])
            lengths = np.diff([*as_ints(sent_condition["limits"]["starts"]), view.targets])
            np.testing.assert_array_equal(np.repeat(limits, lengths), condition.limits.astype(np.float32))
            if sent_condition["values"] is not None:
                np.testing.assert_array_equal(as_floats(sent_condition["values"]), condition.values.astype(np.float32))


def test_a_moved_threshold_sends_kilobytes_however_long_the_row_is():
    flags = np.zeros(28_000, bool)
    assert len(bits(flags)) < 5_000
    limits = np.repeat([1.0, np.nan, 2.0], 10_000)
    assert len(json.dumps(runs(limits))) < 100
    assert len(floats(np.zeros(28_000))) > 100_000  # which is why values of a statistic are not sent again
