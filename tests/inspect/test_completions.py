"""What is offered while a rule is written is what the language takes on that store."""

import pytest
from inspect_fixtures import copy_with_second_scoring, make_store, store_with_masks

from tokenstats import Rule
from tokenstats.errors import TokenstatsError
from tokenstats.inspect.completions import completions
from tokenstats.inspect.preview import open_preview
from tokenstats.masking.language.builtins import BOOLEAN, CLASS, COLUMNS, NUMBER, ROLE


def reads(store, column: str) -> bool:
    """Does a rule with this column work on this store?"""
    conditions = {NUMBER: f"{column} > 0", BOOLEAN: column, ROLE: f"{column} == 'user'", CLASS: f"{column} != 'words'"}
    rule = Rule(drop=conditions[COLUMNS.get(column, NUMBER)])
    try:
        open_preview(store, "warm", rule.columns).decide(rule)
    except TokenstatsError:
        return False
    return True


@pytest.mark.parametrize("reference", [True, False])
def test_exactly_the_columns_that_a_rule_can_read_are_offered(reference):
    store = store_with_masks() if reference else make_store("no-reference", reference=False)
    offered = [word for word in completions(store, "warm") if word in COLUMNS]
    assert offered == [column for column in COLUMNS if reads(store, column)]


def test_columns_of_another_scoring_are_offered_by_its_name(tmp_path):
    store = copy_with_second_scoring(tmp_path, "alone")
    offered = completions(store, "warm")
    assert "alone.entropy" in offered
    assert reads(store, "alone.entropy")
    assert "alone.kl" not in offered
