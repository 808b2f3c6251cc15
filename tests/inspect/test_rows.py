"""Rows in numbers, and where a token stands: held against a plain walk over every row."""

import numpy as np
import pytest
from synthetic import random_store

from tokenstats import Rule, Store
from tokenstats.errors import InputError
from tokenstats.inspect.preview import open_preview
from tokenstats.inspect.rows.decided import disagreement, read_decided
from tokenstats.inspect.rows.search import MOST_HITS, SearchBy, packed, search, sequences_for, token_index
from tokenstats.inspect.rows.table import Filter, column_of_rows, columns_of, decided_rows, find_rows, row_table
from tokenstats.inspect.tokens.detokenize import Decoder
from tokenstats.inspect.tokens.sequence import SequenceView, read_sequence
from tokenstats.masking.operands import open_operand

RULE = Rule(drop="top(entropy, 0.3) or top(kl, 0.2, per=sequence)", protect="")


def under(store: Store, rule: Rule = RULE):
    preview = open_preview(store, "warm", rule.columns)
    outcome = preview.decide(rule)
    return outcome.decisions, [preview.view(outcome, n) for n in range(store.manifest.sequences)]


def largest(view: SequenceView, column: str) -> float:
    return max((v for v, t in zip(view.statistics[column], view.is_target, strict=True) if t), default=np.nan)


@pytest.mark.parametrize("kind", ["conversations", "random"])
def test_a_line_of_the_table_is_what_the_row_says(seen, tmp_path, kind):
    store = seen if kind == "conversations" else random_store(tmp_path / "store", 200, seed=3)
    decisions, views = under(store)
    table, decided = row_table(store, "warm"), decided_rows(decisions)
    assert len(table) == len(views) == store.manifest.sequences
    for n, view in enumerate(views):
        assert (table.length[n], table.targets[n], decided.dropped[n]) == (len(view), view.targets, view.dropped)
        assert table.truncated[n] == view.truncated
        np.testing.assert_allclose(table.statistics["kl_largest"][n], largest(view, "kl"))
        own = [v for v, t in zip(view.statistics["entropy"], view.is_target, strict=True) if t]
        np.testing.assert_allclose(table.statistics["entropy_mean"][n], np.mean(own) if own else np.nan, rtol=1e-6)
        begins = view.is_target & ~np.concatenate([[False], view.is_target[:-1]])
        assert table.turns[n] == begins.sum()


@pytest.mark.parametrize("wanted", list(Filter))
def test_a_filter_passes_exactly_the_rows_that_it_names(tmp_path, wanted):
    store = random_store(tmp_path / "store", 120, seed=5)
    rule = Rule(drop="entropy > 0.4", protect="")
    decisions, views = under(store, rule)
    found = find_rows(row_table(store, "warm"), decided_rows(decisions), wanted)
    ends = store.manifest.tokenizer.end_of_turn_ids
    passes = {
        Filter.ALL: lambda v: True,
        Filter.NOTHING_KEPT: lambda v: v.kept == 0,
        Filter.NEARLY_ALL_DROPPED: lambda v: v.targets and v.dropped >= 0.9 * v.targets,
        Filter.NOTHING_DROPPED: lambda v: v.targets and v.dropped == 0,
        Filter.TRUNCATED: lambda v: v.truncated,
        Filter.END_DROPPED: lambda v: (np.isin(v.ids, ends) & v.is_target & ~v.keep).any(),
    }
    assert sorted(found.tolist()) == [v.number for v in views if passes[wanted](v)]


def test_rows_come_in_order_and_those_without_a_value_last(seen):
    decisions, _ = under(seen)
    table, decided = row_table(seen, "warm"), decided_rows(decisions)
    for name in columns_of(table):
        for rising in (True, False):
            values = column_of_rows(table, decided, name)[find_rows(table, decided, sort_by=name, rising=rising)]
            there = values[~np.isnan(values.astype(float))]
            assert (np.diff(there) * (1 if rising else -1) >= 0).all()
            assert np.isnan(values[len(there) :].astype(float)).all()
    with pytest.raises(InputError, match="did you mean 'length'"):
        find_rows(table, decided, sort_by="lenght")


def test_every_place_of_a_token_is_found_with_what_becomes_of_it(seen):
    decisions, views = under(seen)
    index, bits = token_index(seen), packed(decisions)
    assert index.targets == seen.manifest.targets
    for token in {int(i) for view in views for i in view.ids[view.is_target]}:
        expected = [
            (v.number, i, not v.keep[i]) for v in views for i in np.flatnonzero(v.is_target).tolist() if v.ids[i] == token
        ]
        found = search(index, [(token,)], bits)
        assert [(hit.row, hit.token, hit.dropped) for hit in found.hits] == expected[:MOST_HITS]
        assert (found.count, found.dropped) == (len(expected), sum(gone for *_, gone in expected))


def test_a_text_of_several_tokens_is_found_where_they_follow_each_other_in_one_reply(seen):
    decisions, views = under(seen)
    sought = sequences_for(Decoder(seen), seen.manifest.tokenizer.size, "so all", SearchBy.TEXT)
    assert all(len(ids) > 1 for ids in sought)
    found = search(token_index(seen), sought, packed(decisions))
    expected = []
    for view in views:
        for ids in sought:
            for i in range(len(view) - len(ids) + 1):
                own = slice(i, i + len(ids))
                if view.ids[own].tolist() == list(ids) and view.is_target[own].all():
                    expected.append((view.number, i, bool((~view.keep[own]).any())))
    assert len(expected) >= 20
    assert sorted((hit.row, hit.token, hit.dropped) for hit in found.hits) == sorted(expected)


def test_a_pattern_finds_every_token_whose_text_it_fits(seen):
    decoder, size = Decoder(seen), seen.manifest.tokenizer.size
    sought = sequences_for(decoder, size, "^ a", SearchBy.PATTERN)
    assert {ids for (ids,) in sought} == {i for i in range(size) if decoder.token(i).startswith(" a")}


@pytest.mark.parametrize(
    ("text", "by", "words"),
    [
        ("", SearchBy.TEXT, "empty"),
        ("no such token at all", SearchBy.TOKEN, "no token"),
        ("(", SearchBy.PATTERN, "no regular expression"),
    ],
)
def test_what_cannot_be_searched_for_is_a_friendly_error(seen, text, by, words):
    with pytest.raises(InputError, match=words):
        sequences_for(Decoder(seen), seen.manifest.tokenizer.size, text, by)


@pytest.mark.parametrize("what", ["eksft", "random", "kl-only", RULE, None])
def test_a_whole_store_is_decided_about_as_each_row_is(seen, what):
    decided, table = read_decided(seen, None if what is None else open_operand(seen, what, None)), row_table(seen, "warm")
    if what is None:
        expected = [0] * seen.manifest.sequences
    elif what in ("eksft", "random"):
        expected = [read_sequence(seen, n, mask=what).dropped for n in range(seen.manifest.sequences)]
    else:
        rule = what if isinstance(what, Rule) else Rule.from_preset(what)
        expected = [view.dropped for view in under(seen, rule)[1]]
    assert decided.rows.dropped.tolist() == expected
    assert sum(int(np.unpackbits(bits).sum()) for bits in decided.bits) == sum(expected)
    assert table.targets.sum() == seen.manifest.targets


def test_rows_where_two_sides_differ_are_counted_token_by_token(seen):
    table = row_table(seen, "warm")
    found = disagreement(seen, table, *(read_decided(seen, open_operand(seen, mask, None)) for mask in ("eksft", "random")))
    for n in range(seen.manifest.sequences):
        a, b = (read_sequence(seen, n, mask=mask) for mask in ("eksft", "random"))
        of_a, of_b = a.is_target & ~a.keep, b.is_target & ~b.keep
        expected = [(of_a & of_b).sum(), (of_a & ~of_b).sum(), (of_b & ~of_a).sum()]
        assert [found.both[n], found.only_a[n], found.only_b[n]] == expected
        assert found.differing[n] == (of_a ^ of_b).sum()
