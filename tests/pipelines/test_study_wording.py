"""The wording of the SFT rows is told from all others, and a base has none of it."""

import random

from pipelines.chats import Mix
from pipelines.problems import make_problem
from pipelines.solutions import solve
from pipelines.study.measures import Policy
from pipelines.study.wording import equations, is_new_wording, share_in_new_wording
from pipelines.wordings import NEW_STYLE, PRETRAINING_STYLES


def sentences(style: str) -> list[str]:
    rng = random.Random(style)
    problems = [make_problem(rng, Mix((style,)).numbers) for _ in range(60)]
    return [sentence for problem in problems for sentence in equations(solve(problem, style, rng).text)]


def test_every_sentence_of_the_new_style_is_in_it_and_none_of_another():
    assert len(sentences(NEW_STYLE)) > 100
    assert all(map(is_new_wording, sentences(NEW_STYLE)))
    for style in PRETRAINING_STYLES:
        assert not any(map(is_new_wording, sentences(style)))


def test_a_base_writes_in_other_wordings(base):
    assert share_in_new_wording(Policy.load(base)) < 0.2
