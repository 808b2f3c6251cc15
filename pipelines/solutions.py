"""Worked solutions in several styles, each with everything that could have been written in its place.

A solution is a row of pieces: perhaps an opening, a sentence for every operation in any order that the operations allow, a
closing. A piece remembers its alternatives, so that every token can be labelled as forced or as a choice of order or of
words (``labels.py``). Between the sentences there may be noise, which no operation needs.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pipelines.noise import noise_sentence
from pipelines.problems import Problem, Step

T = TypeVar("T")
KINDS = ("hold", "together", "gain", "lose", "multiply", "share", "price")


@dataclass(frozen=True)
class Style:
    """Templates of a way to write. ``closings`` hold what separates them from the sentence before."""

    sentences: Mapping[str, Sequence[str]]
    closings: Sequence[str]
    openings: Sequence[str] = ("",)
    joint: str = " "


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


def _for_all_kinds(*templates: str) -> dict[str, Sequence[str]]:
    return dict.fromkeys(KINDS, templates)


STYLES = {
    "equations": Style(_for_all_kinds("{eq}"), ["\nAnswer: {answer}"], joint="\n"),
    "prose": Style(
        {
            "hold": [
                "The {container} hold {eq} {thing}.",
                "There are {eq} {thing} in the {container}.",
                "{count} {container} with {each} {thing} make {eq}.",
            ],
            "together": [
                "In all that is {eq} {thing}.",
                "Together {name} has {eq} {thing}.",
                "So {pronoun} starts with {eq} {thing}.",
            ],
            "gain": [
                "After {doing} them {pronoun} has {eq} {thing}.",
                "Then {name} has {eq} {thing}.",
                "That makes {eq} {thing}.",
            ],
            "lose": [
                "After {doing} them {pronoun} has {eq} {thing} left.",
                "Then {name} has {eq} {thing}.",
                "That leaves {eq} {thing}.",
            ],
            "multiply": ["A week later {pronoun} has {eq} {thing}.", "{Word} as many is {eq} {thing}."],
            "share": ["Each friend gets {eq} {thing}.", "Shared, that is {eq} {thing} each."],
            "price": ["The price is {eq} dollars.", "They bring {eq} dollars."],
        },
        [" The answer is {answer}.", " So it is {answer} {unit}.", " Answer: {answer}"],
        openings=["", "", "Let us count the {unit}.", "Step by step."],
    ),
    "story": Style(
        _for_all_kinds("{link} compute {eq}.", "{link} work out {eq}.", "{link} we get {eq}."),
        [" {name} ends with {answer} {unit}."],
    ),
    "terse": Style(_for_all_kinds("{result}"), [". The answer is {answer}."], joint=", "),
    "tally": Style(
        {
            "hold": [
                "Let us work out the {container}: {eq}.",
                "So we count {eq} {thing} in the {container}.",
                "Each of the {container} has {each}, that makes {eq} {thing}.",
            ],
            "together": [
                "Then we get {eq} {thing} in all.",
                "So in all {name} owns {eq}.",
                "Together, that makes {eq} {thing} now.",
            ],
            "gain": [
                "Then {pronoun} {verb} more and has {eq}.",
                "So with more {thing} that makes {eq}.",
                "There are more {thing} now: {eq}.",
            ],
            "lose": [
                "So {name} {verb} {thing} and has {eq} left.",
                "That leaves {name} with {eq} {thing}.",
                "There are few {thing} left now: {eq}.",
            ],
            "multiply": ["So {word} as many makes {eq}.", "Then {pronoun} has {word} as many, {eq} {thing}."],
            "share": ["So each of the friends gets {eq}.", "Shared equally, that leaves {eq} {thing} each."],
            "price": ["So all of them bring {eq} dollars.", "Then the price of all is {eq} dollars."],
        },
        [" So we get the answer: {answer}.", " That is the answer: {answer} {unit}.", " Finally it is {answer} {unit}."],
    ),
}
PRETRAINING_STYLES = ("equations", "prose", "story", "terse")
NEW_STYLE = "tally"
"""Recombined from words that pre-training texts have, into sentences that they never have."""


def solve(problem: Problem, style: str, rng: random.Random, noise: float = 0.0) -> Solution:
    """Write a solution in one of :data:`STYLES`; before each step, with the chance ``noise``, a sentence nobody needs.

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
