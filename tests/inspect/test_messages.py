"""A sequence is shown as a chat: each token is in one message, and each message says what of it is learned."""

import numpy as np
from inspect_fixtures import store_with_masks

from tokenstats.inspect.tokens.messages import messages_of
from tokenstats.inspect.tokens.sequence import read_sequence
from tokenstats.masking.engine.targets import read_targets
from tokenstats.schema import ROLES

OTHER, SYSTEM, USER, ASSISTANT = (ROLES.index(r) for r in ("other", "system", "user", "assistant"))


def cut(roles: list[int], targets: list[int]) -> list[tuple]:
    return [
        (m.start, m.end, m.body, m.role, m.targets, m.replies)
        for m in messages_of(np.array(roles, np.int8), np.array(targets, bool))
    ]


def test_what_the_template_writes_goes_with_the_message_that_it_introduces():
    roles = [OTHER, USER, USER, OTHER, OTHER, ASSISTANT, ASSISTANT, OTHER]
    assert cut(roles, [0, 0, 0, 0, 0, 1, 1, 0]) == [(0, 3, 1, "user", 0, (0, 0)), (3, 8, 5, "assistant", 2, (0, 1))]


def test_two_messages_of_one_role_stay_apart_and_replies_are_counted_on():
    roles = [ASSISTANT, OTHER, ASSISTANT, USER, ASSISTANT]
    assert cut(roles, [1, 0, 1, 0, 1]) == [
        (0, 1, 0, "assistant", 1, (0, 1)),
        (1, 3, 2, "assistant", 1, (1, 2)),
        (3, 4, 3, "user", 0, (2, 2)),
        (4, 5, 4, "assistant", 1, (2, 3)),
    ]


def test_a_sequence_of_the_template_alone_is_one_message_and_an_empty_one_none():
    assert cut([OTHER, OTHER], [0, 1]) == [(0, 2, 0, "other", 1, (0, 1))]
    assert cut([], []) == []


def test_messages_cover_every_row_and_count_replies_as_the_rule_language_does():
    store = store_with_masks()
    for number in range(store.manifest.sequences):
        view = read_sequence(store, number)
        messages = messages_of(view.role, view.is_target)
        assert [m.start for m in messages] == [0, *[m.end for m in messages[:-1]]]
        assert messages[-1].end == len(view)
        assert sum(m.targets for m in messages) == view.targets
        part, row = store.locate(number)
        targets = read_targets(store, part, [(None, "turn")], {})
        turns = targets.column((None, "turn"))[targets.row == row]
        for message in messages:
            inside = (view.is_target.nonzero()[0] >= message.start) & (view.is_target.nonzero()[0] < message.end)
            assert set(turns[inside].tolist()) == set(range(*message.replies))
