"""Flawed solutions: one slip or one wrong operation, and everything after it worked out consistently.

Pre-training on a share of them makes a base that is able to solve a problem and often does not: it has the capability,
not the habit. Nothing in the question or in the style says which solutions are flawed.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

from pipelines.problems import OPERATIONS, Operand, Problem, Step

SLIP_SHARE = 0.25
"""Of the flawed solutions, those with a wrong result of a right operation; the others have a wrong operation."""

SLIPS = (-10, -2, -1, 1, 2, 10)
LARGEST = 999


def flawed(problem: Problem, rng: random.Random) -> Problem:
    """The same problem with one step done wrong, and a wrong answer: every later step goes on from its result.

    All numbers stay whole and between 1 and :data:`LARGEST`; among the flaws of the drawn kind that allow this, each is
    as likely as any other. Where no wrong operation does, it is a slip.
    """
    slips = rng.random() < SLIP_SHARE
    candidates = list(_slips(problem) if slips else _wrong_operations(problem)) or list(_slips(problem))
    return rng.choice(candidates)


def _wrong_operations(problem: Problem) -> Iterator[Problem]:
    for number, step in enumerate(problem.steps):
        for op in OPERATIONS:
            if op != step.op and (result := _exact(step.left.value, op, step.right.value)) is not None:
                yield from _redone(problem, number, replace(step, op=op, result=result))


def _slips(problem: Problem) -> Iterator[Problem]:
    for number, step in enumerate(problem.steps):
        for slip in SLIPS:
            yield from _redone(problem, number, replace(step, result=step.result + slip))


def _redone(problem: Problem, number: int, wrong: Step) -> Iterator[Problem]:
    """The problem with step ``number`` replaced and the later ones worked out again, where that is possible and wrong."""
    if not 1 <= wrong.result <= LARGEST:
        return
    steps = [*problem.steps[:number], wrong]
    for step in problem.steps[number + 1 :]:
        left, right = _current(step.left, steps), _current(step.right, steps)
        result = _exact(left.value, step.op, right.value)
        if result is None:
            return
        steps.append(replace(step, left=left, right=right, result=result))
    if steps[-1].result != problem.answer:
        yield replace(problem, steps=steps, answer=steps[-1].result)


def _current(operand: Operand, steps: Sequence[Step]) -> Operand:
    return operand if operand.step is None else replace(operand, value=steps[operand.step].result)


def _exact(left: int, op: str, right: int) -> int | None:
    """The result, where it is whole and between 1 and :data:`LARGEST`."""
    if op == "/" and left % right:
        return None
    result = OPERATIONS[op](left, right)
    return result if 1 <= result <= LARGEST else None
