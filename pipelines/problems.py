"""Multi-step arithmetic word problems, and chats of them with a worked solution and a checkable answer.

    python -m pipelines.chats 5          # print five of them

A problem is a list of quantities (``3 boxes of 4 red pens``) and events (``gives away 5``). What it asks for is a small
graph of operations: wherever two operations are both ready, a solution may do either first, and every sentence has
several wordings (``solutions.py``). So a model trained on these meets real forks (which operation, which words) beside
forced tokens (the digits of a result), which is what per-token statistics are about. A share of the solutions may be
flawed: one slip or one wrong operation, and all that follows from it (``flaws.py``).
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import add, floordiv, mul, sub

# fmt: off
NAMES = {
    "he": [
        "Tom", "Ben", "Sam", "Max", "Leo", "Jack", "Omar", "Ravi", "Hugo", "Ivan", "Noah", "Luis", "Adam", "Finn",
        "Paul", "Yusuf",
    ],
    "she": [
        "Anna", "Mia", "Zoe", "Lily", "Emma", "Ruth", "Nina", "Sara", "Olga", "Jane", "Maya", "Ines", "Clara",
        "Leila", "Rosa", "Hana",
    ],
}
THINGS = [
    "apples", "pears", "pens", "books", "coins", "cards", "shells", "stamps", "eggs", "buttons", "marbles",
    "cookies", "stickers", "balloons", "candles", "flowers", "lemons", "muffins", "beads", "ribbons", "stones",
    "tickets", "toys", "cups",
]
# fmt: on
COLOURS = ["red", "blue", "green", "white", "yellow", "black"]
CONTAINERS = ["boxes", "bags", "jars", "baskets", "packs", "trays"]
REQUESTS = {
    "equations": "Use equations.",
    "prose": "Use prose.",
    "story": "Use a story.",
    "terse": "Use few words.",
    "mixed": "Use all words.",
}
"""What a question may end with: the style in which it asks to be answered. Only pre-training and evaluation ask so."""


@dataclass(frozen=True)
class Numbers:
    """How large numbers get: running totals, one quantity, a plain number, and the things in one container."""

    total: int
    quantity: int
    plain: int
    each: int


SMALL = Numbers(total=199, quantity=60, plain=40, each=12)
"""What the base model is pre-trained on."""

LARGER = Numbers(total=299, quantity=100, plain=70, each=15)
"""What it is fine-tuned and tested on: the same problems, a little beyond what it has seen."""


OPERATIONS: dict[str, Callable[[int, int], int]] = {"+": add, "-": sub, "*": mul, "/": floordiv}


@dataclass(frozen=True)
class Operand:
    """A number of the question, or the result of an earlier step."""

    value: int
    step: int | None = None


@dataclass(frozen=True)
class Step:
    """One operation of a problem. ``kind`` and ``words`` are what a style needs to put it in words."""

    left: Operand
    op: str
    right: Operand
    result: int
    kind: str
    words: dict[str, str]

    @property
    def inputs(self) -> list[int]:
        """The steps that must come first."""
        return [o.step for o in (self.left, self.right) if o.step is not None]


@dataclass
class Problem:
    """A question, its answer, and the operations that lead there; the last one gives the answer."""

    question: str
    answer: int
    name: str
    pronoun: str
    thing: str
    unit: str
    steps: list[Step] = field(default_factory=list)


def exceeds(problem: Problem, numbers: Numbers) -> bool:
    """Is a number of the problem, or of its right solution, larger than ``numbers`` would have made it?"""
    return any(_step_exceeds(step, numbers) for step in problem.steps)


def _step_exceeds(step: Step, numbers: Numbers) -> bool:
    left, right = step.left.value, step.right.value
    match step.kind:
        case "hold":
            return right > numbers.each or step.result > numbers.quantity
        case "price":
            return left > numbers.quantity
        case "share" | "multiply":
            return max(left, step.result) > numbers.total
    given = [operand.value for operand in (step.left, step.right) if operand.step is None]
    return max(given, default=0) > numbers.plain or right > numbers.quantity or max(left, step.result) > numbers.total


class _Builder:
    """Collects sentences and steps while a problem grows."""

    def __init__(self, rng: random.Random, numbers: Numbers):
        self.rng = rng
        self.numbers = numbers
        self.pronoun = rng.choice(list(NAMES))
        self.name = rng.choice(NAMES[self.pronoun])
        self.thing = rng.choice(THINGS)
        self.sentences: list[str] = []
        self.steps: list[Step] = []
        self.total = Operand(0)

    def he(self) -> str:
        return self.rng.choice([self.name, self.pronoun.capitalize()])

    def add_step(self, left: Operand, op: str, right: Operand, kind: str, **words: str) -> Operand:
        """Note an operation; returns its result as an operand of later ones."""
        result = OPERATIONS[op](left.value, right.value)
        words = {"name": self.name, "pronoun": self.pronoun, "thing": self.thing} | words
        self.steps.append(Step(left, op, right, result, kind, words))
        return Operand(result, len(self.steps) - 1)

    def quantity(self, what: str, room: int) -> tuple[str, Operand]:
        """A phrase and its value, which is plain or computed by a step."""
        rng = self.rng
        if room >= 8 and rng.random() < 0.55:
            count = rng.randint(2, min(9, room // 2))
            each = rng.randint(2, min(self.numbers.each, room // count))
            container = rng.choice(CONTAINERS)
            phrase = rng.choice([f"{count} {container} of {each} {what}", f"{count} {container} with {each} {what} each"])
            words = {"count": str(count), "container": container, "each": str(each), "thing": what}
            return phrase, self.add_step(Operand(count), "*", Operand(each), "hold", **words)
        value = rng.randint(2, max(2, min(self.numbers.plain, room)))
        return f"{value} {what}", Operand(value)

    def start(self, groups: int) -> None:
        rng = self.rng
        phrases = []
        for colour in rng.sample(COLOURS, groups):
            what = f"{colour} {self.thing}" if groups > 1 else self.thing
            phrase, amount = self.quantity(what, self.numbers.quantity)
            phrases.append(phrase)
            self.total = self.add_step(self.total, "+", amount, "together") if self.total.value else amount
        self.sentences.append(f"{self.name} {rng.choice(['has', 'owns', 'starts with'])} {' and '.join(phrases)}.")

    def gain(self) -> None:
        verb, doing = self.rng.choice([("buys", "buying"), ("finds", "finding"), ("gets", "getting"), ("wins", "winning")])
        room = min(self.numbers.quantity, self.numbers.total - self.total.value)
        phrase, amount = self.quantity(self.thing, room)
        self.sentences.append(f"{self.he()} {verb} {phrase if amount.step is not None else f'{amount.value} more'}.")
        self.total = self.add_step(self.total, "+", amount, "gain", verb=verb, doing=doing)

    def lose(self) -> None:
        verb, doing = self.rng.choice([("gives away", "giving"), ("loses", "losing"), ("sells", "selling"), ("uses", "using")])
        phrase, amount = self.quantity(self.thing, min(self.numbers.quantity, self.total.value - 1))
        self.sentences.append(f"{self.he()} {verb} {phrase if amount.step is not None else f'{amount.value} of them'}.")
        self.total = self.add_step(self.total, "-", amount, "lose", verb=verb, doing=doing)

    def multiply(self) -> None:
        factor, word = self.rng.choice([(2, "twice"), (3, "three times")])
        if self.total.value * factor > self.numbers.total:
            factor, word = 2, "twice"
        self.sentences.append(f"A week later {self.pronoun} has {word} as many.")
        self.total = self.add_step(self.total, "*", Operand(factor), "multiply", word=word)

    def finish(self) -> Problem:
        """The last sentence and the question: keep, sell at a price, or share equally."""
        rng, unit, total = self.rng, self.thing, self.total.value
        friends = [k for k in range(2, 9) if total % k == 0 and total // k > 1]
        ending = rng.random()
        if ending < 0.2 and friends and len(self.steps) < 5:
            k = rng.choice(friends)
            self.sentences.append(f"{self.he()} shares them equally among {k} friends.")
            question = f"How many {self.thing} does each friend get?"
            self.add_step(self.total, "/", Operand(k), "share")
        elif ending < 0.35 and total <= self.numbers.quantity and len(self.steps) < 5:
            price, unit = rng.randint(2, 5), "dollars"
            self.sentences.append(f"{self.he()} sells all of them for {price} dollars each.")
            question = f"How many dollars does {self.pronoun} get?"
            self.add_step(self.total, "*", Operand(price), "price")
        else:
            question = f"How many {self.thing} does {rng.choice([self.name, self.pronoun])} have now?"
        text = " ".join([*self.sentences, question])
        return Problem(text, self.steps[-1].result, self.name, self.pronoun, self.thing, unit, self.steps)


def make_problem(rng: random.Random, numbers: Numbers = SMALL) -> Problem:
    """Draw a problem with 2 to 5 operations."""
    while True:
        b = _Builder(rng, numbers)
        b.start(groups=rng.choice([1, 1, 2, 2, 3]))
        for _ in range(rng.randint(0, 3)):
            options = [b.gain] if b.total.value <= numbers.total - 20 else []
            options += [b.lose, b.lose] if b.total.value >= 6 else []
            options += [b.multiply] if 4 <= b.total.value <= numbers.total // 2 else []
            rng.choice(options)()
        if not b.steps:
            continue
        problem = b.finish()
        if 2 <= len(problem.steps) <= 5:
            return problem
