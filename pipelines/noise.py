"""Sentences that a solution does not need: asides about others, remarks, and detours that compute what nobody asked for.

Their words are those of the pre-training texts, so that a small model can learn them.
"""

import random
from collections.abc import Sequence

from pipelines.problems import COLOURS, NAMES, THINGS, Problem


def noise_sentence(problem: Problem, done: Sequence[int], rng: random.Random) -> str:
    """An aside, a remark or a detour, each as likely; a detour starts from the last result."""
    return rng.choice([_aside, _remark, _detour])(problem, done, rng)


def _aside(problem: Problem, done: Sequence[int], rng: random.Random) -> str:
    other = rng.choice([name for names in NAMES.values() for name in names if name != problem.name])
    verb = rng.choice(["buys", "finds", "gets", "wins", "owns", "loses", "sells", "uses"])
    return f"{other} {verb} {rng.randint(2, 40)} {rng.choice(COLOURS)} {rng.choice(THINGS)}."


def _remark(problem: Problem, done: Sequence[int], rng: random.Random) -> str:
    return rng.choice(
        [
            "Let us work it out, step by step.",
            f"The {problem.thing} are {rng.choice(COLOURS)} and {rng.choice(COLOURS)}.",
            f"A week later {problem.name} has a story of {rng.choice(THINGS)}.",
        ]
    )


def _detour(problem: Problem, done: Sequence[int], rng: random.Random) -> str:
    value, more = problem.steps[done[-1]].result if done else rng.randint(2, 40), rng.randint(2, 20)
    return rng.choice(
        [
            f"Twice as many makes {value}*2={2 * value} in all.",
            f"There are {more} more of them, that is {value}+{more}={value + more}.",
        ]
    )
