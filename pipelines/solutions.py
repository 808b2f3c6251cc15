"""Worked solutions in several styles, each with everything that could have been written in its place.

A solution is a row of pieces: perhaps an opening, a sentence for every operation in any order that the operations allow, a
closing. A piece remembers its alternatives, so that every token can be labelled as forced or as a choice of order or of
words (``labels.py``). Between the sentences there may be noise, which no operation needs.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pipelines.noise import noise_sentence
from pipelines.problems import Problem, Step
from pipelines.wordings import STYLES, Style

T = TypeVar("T")


@dataclass(frozen=True)
class Alternative:
    """A text that may stand in a place, and the operation that it works out, where it does."""

    text: str
    step: int | None = None


@dataclass(frozen=True)
class Piece:
    """A part of a solution. ``alternatives`` are all texts that may stand there, its own included; noise has none."""

    text: str
    alternatives: tuple[Alternative, ...] = ()


@dataclass(frozen=True)
class Solution:
    pieces: tuple[Piece, ...]

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)


def solve(problem: Problem, style: str, rng: random.Random, noise: float = 0.0) -> Solution:
    """Write a solution in one of ``STYLES``; before each step, with the chance ``noise``, a sentence nobody needs.

    Raises:
        ValueError: the style is unknown.
    """
    if style not in STYLES:
        raise ValueError(f"style {style!r} is not one of {tuple(STYLES)}")
    way, pieces = STYLES[style], list[Piece]()
    order = _order(problem, rng)
    openings = [_fill(template, problem) for template in way.openings]
    closings = tuple(Alternative(_fill(template, problem)) for template in way.closings)
    opening, closing = _pick(openings, rng), _pick(closings, rng)
    if opening:
        first = [Alternative(text) for text in dict.fromkeys(openings) if text]
        pieces.append(Piece(opening, (*first, *_sentences(problem, way, [], joint=""))))
    for place, number in enumerate(order):
        joint = way.joint if pieces else ""
        if noise and rng.random() < noise:
            pieces.append(Piece(joint + noise_sentence(problem, order[:place], rng)))
            joint = way.joint
        text = joint + _fill(_pick(way.sentences[problem.steps[number].kind], rng), problem, number, place)
        alternatives = _sentences(problem, way, order[:place], joint)
        if not pieces:
            alternatives = (*(Alternative(text) for text in dict.fromkeys(openings) if text), *alternatives)
        pieces.append(Piece(text, alternatives))
    pieces.append(Piece(closing.text, closings))
    return Solution(tuple(pieces))


def _pick(options: Sequence[T], rng: random.Random) -> T:
    return options[0] if len(options) == 1 else rng.choice(options)


def ready(problem: Problem, done: Sequence[int]) -> list[int]:
    """Steps that may come next: those not done whose inputs are."""
    return [i for i, step in enumerate(problem.steps) if i not in done and all(j in done for j in step.inputs)]


def _order(problem: Problem, rng: random.Random) -> list[int]:
    done: list[int] = []
    while len(done) < len(problem.steps):
        done.append(rng.choice(ready(problem, done)))
    return done


def _sentences(problem: Problem, way: Style, done: Sequence[int], joint: str) -> tuple[Alternative, ...]:
    """Everything that may be written of an operation next."""

    def each() -> Iterator[Alternative]:
        for number in ready(problem, done):
            for template in way.sentences[problem.steps[number].kind]:
                yield Alternative(joint + _fill(template, problem, number, len(done)), number)

    return tuple(each())


def _fill(template: str, problem: Problem, number: int | None = None, place: int = 0) -> str:
    words = {"name": problem.name, "unit": problem.unit, "answer": str(problem.answer)}
    if number is not None:
        step = problem.steps[number]
        links = {0: "First", len(problem.steps) - 1: "Finally"}
        words |= step.words | {"eq": equation(step), "result": str(step.result), "link": links.get(place, "Next")}
        words["Word"] = words.get("word", "").capitalize()
    return template.format(**words)


def equation(step: Step) -> str:
    return f"{step.left.value}{step.op}{step.right.value}={step.result}"
