"""Why a token is dropped, in numbers: held against examples worked by hand, and against what the engine decides."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from inspect_fixtures import store_with_masks

from tokenstats import Rule
from tokenstats.inspect.preview import open_preview
from tokenstats.inspect.tokens.reasons import Condition, reasons_for
from tokenstats.masking.engine.part_reader import InMemory
from tokenstats.masking.engine.resolve import resolve_rules
from tokenstats.masking.engine.targets import Targets
from tokenstats.schema import ROLES
from tokenstats.store.vocabulary import Vocabulary

RULES = [
    "top(entropy, 0.2, per=sequence) or top(kl, 0.2, per=sequence)",
    "top(entropy, 0.3) or bottom(kl, 0.25, per=turn)",
    "entropy > 3.5 and not is_special or position < 2",
    "random(0.3, seed=5) or random(0.2, per=sequence)",
    "1 < nll < 4 and not (0.5 < prob <= 0.9)",
    "nll > quantile(nll, 0.9) or entropy >= quantile(entropy, 0.5, per=sequence)",
    "not top(rank, 0.4, per=role) and role == 'assistant'",
    "zscore(entropy) > 1 or percent_rank(kl) > 0.9 and following(entropy) > 2",
    "top(entropy, 0.4, per=sequence, among=kl > 0.1) or not bottom(kl, 0.3, among=position > 1) and part_of('a')",
    "bottom(entropy, 3, per=role, among=part_of('e')) or kl > quantile(kl, 0.5, per=turn, among=token_class == 'words')",
]


def targets_of(rows: list[list[float]], gaps: list[int] | None = None) -> Targets:
    """Rows of one prompt token and then targets with these entropies; ``gaps``: places (of all tokens) that are no target."""
    lengths = [1 + len(row) for row in rows]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    place = np.concatenate([np.arange(a + 1, b) for a, b in pairwise(offsets)])
    entropy = np.array([x for row in rows for x in row], np.float32)
    keep = ~np.isin(place, gaps or [])
    return Targets(
        part=0,
        seq_ids=pa.chunked_array([[str(i) for i in range(len(rows))]]),
        rows=np.arange(len(rows)),
        ids=np.zeros(offsets[-1], np.int32),
        roles=np.full(offsets[-1], ROLES.index("assistant"), np.int8),
        offsets=offsets,
        place=place[keep],
        statistics={(None, "entropy"): entropy[keep]},
        tokenizer=store_with_masks().manifest.tokenizer,
        vocabulary=Vocabulary(store_with_masks()),
    )


def only_condition(drop: str, targets: Targets, row: int) -> Condition:
    rule = Rule(drop=drop)
    ((condition,),) = [
        r.conditions for r in reasons_for(rule.clauses, targets, row, resolve_rules([rule], InMemory([targets])))
    ]
    return condition


# two rows of 5 and 10 tokens: 40 % of the first takes its 2 largest, 3.0 and 2.0
FIRST, SECOND = [1.0, 3.0, 0.5, 2.0, 0.25], [float(n) for n in range(10)]


def test_the_threshold_of_a_sequence_is_the_smallest_value_it_takes():
    found = only_condition("top(entropy, 0.4, per=sequence)", targets_of([FIRST, SECOND]), 0)
    assert (found.measure, found.symbol, found.scope) == ("entropy", ">=", "sequence")
    assert found.limits.tolist() == [2.0] * 5
    assert found.distance.tolist() == [-1.0, 1.0, -1.5, 0.0, -1.75]
    assert found.holds.tolist() == [False, True, False, True, False]
    # 40 % of ten takes 9, 8, 7 and 6
    assert only_condition("top(entropy, 0.4, per=sequence)", targets_of([FIRST, SECOND]), 1).limits.tolist() == [6.0] * 10


def test_the_threshold_of_a_turn_is_its_own():
    # the third token of the second row, 2.0, is no target: its turns hold 0, 1 and 3 to 9; half of them are 1 and 3
    found = only_condition("bottom(entropy, 0.5, per=turn)", targets_of([FIRST, SECOND], gaps=[6 + 3]), 1)
    assert found.values.tolist() == [0.0, 1.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]
    assert found.limits.tolist() == [0.0, 0.0] + [5.0] * 7
    assert found.holds.tolist() == [True, False, True, True, True, False, False, False, False]


def test_the_threshold_of_the_dataset_is_the_one_resolved_and_ties_go_to_the_earlier_token():
    # of 15 tokens a fifth is 3: 9, 8, 7
    assert only_condition("top(entropy, 0.2)", targets_of([FIRST, SECOND]), 0).limits.tolist() == [7.0] * 5
    ties = targets_of([[1.0, 1.0], [1.0, 1.0, 1.0]])
    found = only_condition("top(entropy, 3)", ties, 1)
    assert found.distance.tolist() == [0.0, 0.0, 0.0]
    assert found.holds.tolist() == [True, False, False]  # two of the three are in the row before


def test_a_group_that_takes_nothing_has_no_threshold():
    found = only_condition("top(entropy, 0.1, per=sequence)", targets_of([FIRST, SECOND]), 0)
    assert np.isnan(found.limits).all()
    assert not found.holds.any()


def test_a_constant_on_the_left_is_the_limit_and_a_negation_turns_the_symbol():
    found = only_condition("2 < entropy", targets_of([FIRST]), 0)
    assert (found.measure, found.symbol, found.limits[0], found.distance[1]) == ("entropy", ">", 2.0, 1.0)
    found = only_condition("not entropy > 2", targets_of([FIRST]), 0)
    assert (found.text, found.symbol) == ("not entropy > 2", "<=")
    assert found.holds.tolist() == [True, False, True, True, True]


@pytest.mark.parametrize("text", RULES)
def test_on_every_row_a_condition_holds_exactly_where_its_distance_says(text):
    rule = Rule(drop=text, protect="")
    preview = open_preview(store_with_masks(), "warm", rule.columns)
    outcome = preview.decide(rule)
    for decisions in outcome.decisions:
        targets = decisions.targets
        for row in range(len(targets.rows)):
            own = slice(*targets.sequence_starts[row : row + 2])
            for bit, reason in enumerate(reasons_for(rule.clauses, targets, row, outcome.aggregates)):
                clause = (decisions.reason[own] >> np.uint16(bit) & np.uint16(1)).astype(bool)
                assert (np.logical_and.reduce([c.holds for c in reason.conditions]) == clause).all()
                for condition in reason.conditions:
                    assert_the_distance_decides(condition)


def assert_the_distance_decides(condition: Condition) -> None:
    if not condition.symbol:
        return
    far = np.abs(condition.distance) > 0
    above = condition.distance[far] > 0
    assert (condition.holds[far] == (above if condition.symbol[0] == ">" else ~above)).all()


def test_what_is_not_known_of_a_stored_masks_thresholds_has_no_numbers():
    (reason,) = reasons_for(Rule(drop="percent_rank(entropy) > 0.9").clauses, targets_of([FIRST]), 0, {})
    (condition,) = reason.conditions
    assert np.isnan(condition.values).all()
    assert condition.limits.tolist() == [0.9] * 5
