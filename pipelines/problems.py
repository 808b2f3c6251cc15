"""Multi-step arithmetic word problems with worked solutions, as chats with a checkable answer.

    python -m pipelines.problems 5          # print five of them

A problem is a list of quantities (``3 boxes of 4 red pens``) and events (``gives away 5``). Its solution is a small
graph of operations: wherever two operations are both ready, a solution may do either first, and every sentence has
several wordings. So a model trained on these meets real forks (which operation, which words) beside forced tokens
(the digits of a result), which is what per-token statistics are about.
"""

import random
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

NAMES = {
    "he": [
        "Tom",
        "Ben",
        "Sam",
        "Max",
        "Leo",
        "Jack",
        "Omar",
        "Ravi",
        "Hugo",
        "Ivan",
        "Noah",
        "Luis",
        "Adam",
        "Finn",
        "Paul",
        "Yusuf",
    ],
    "she": [
        "Anna",
        "Mia",
        "Zoe",
        "Lily",
        "Emma",
        "Ruth",
        "Nina",
        "Sara",
        "Olga",
        "Jane",
        "Maya",
        "Ines",
        "Clara",
        "Leila",
        "Rosa",
        "Hana",
    ],
}
THINGS = [
    "apples",
    "pears",
    "pens",
    "books",
    "coins",
    "cards",
    "shells",
    "stamps",
    "eggs",
    "buttons",
    "marbles",
    "cookies",
    "stickers",
    "balloons",
    "candles",
    "flowers",
    "lemons",
    "muffins",
    "beads",
    "ribbons",
    "stones",
    "tickets",
    "toys",
    "cups",
]
COLOURS = ["red", "blue", "green", "white", "yellow", "black"]
CONTAINERS = ["boxes", "bags", "jars", "baskets", "packs", "trays"]
STYLES = ("equations", "prose", "story", "terse")


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


@dataclass
class Step:
    """One operation: ``left op right = result``. ``inputs`` are the steps that must come first."""

    left: int
    op: str
    right: int
    result: int
    inputs: list[int]
    wordings: list[str]


@dataclass
class Problem:
    """A question, its answer, and the operations that lead there."""

    question: str
    answer: int
    name: str
    unit: str
    steps: list[Step] = field(default_factory=list)


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
        self.total = 0
        self.total_step: int | None = None

    def he(self) -> str:
        return self.rng.choice([self.name, self.pronoun.capitalize()])

    def add_step(self, left: int, op: str, right: int, inputs: list[int | None], wordings: list[str]) -> int:
        result = {"+": left + right, "-": left - right, "*": left * right, "/": left // right}[op]
        equation = f"{left}{op}{right}={result}"
        self.steps.append(
            Step(left, op, right, result, [i for i in inputs if i is not None], [w.format(eq=equation) for w in wordings])
        )
        return len(self.steps) - 1

    def quantity(self, what: str, room: int) -> tuple[str, int, int | None]:
        """A phrase, its value and the step that computes it (None for a plain number)."""
        rng = self.rng
        if room >= 8 and rng.random() < 0.55:
            count = rng.randint(2, min(9, room // 2))
            each = rng.randint(2, min(self.numbers.each, room // count))
            container = rng.choice(CONTAINERS)
            phrase = rng.choice([f"{count} {container} of {each} {what}", f"{count} {container} with {each} {what} each"])
            wordings = [
                f"The {container} hold {{eq}} {what}.",
                f"There are {{eq}} {what} in the {container}.",
                f"{count} {container} with {each} {what} make {{eq}}.",
            ]
            return phrase, count * each, self.add_step(count, "*", each, [], wordings)
        value = rng.randint(2, max(2, min(self.numbers.plain, room)))
        return f"{value} {what}", value, None

    def start(self, groups: int) -> None:
        rng = self.rng
        colours = rng.sample(COLOURS, groups)
        phrases = []
        for colour in colours:
            what = f"{colour} {self.thing}" if groups > 1 else self.thing
            phrase, value, step = self.quantity(what, self.numbers.quantity)
            phrases.append(phrase)
            if self.total:
                wordings = [
                    f"In all that is {{eq}} {self.thing}.",
                    f"Together {self.name} has {{eq}} {self.thing}.",
                    f"So {self.pronoun} starts with {{eq}} {self.thing}.",
                ]
                self.total_step = self.add_step(self.total, "+", value, [self.total_step, step], wordings)
                self.total += value
            else:
                self.total, self.total_step = value, step
        self.sentences.append(f"{self.name} {rng.choice(['has', 'owns', 'starts with'])} {' and '.join(phrases)}.")

    def gain(self) -> None:
        verb, past = self.rng.choice([("buys", "buying"), ("finds", "finding"), ("gets", "getting"), ("wins", "winning")])
        room = min(self.numbers.quantity, self.numbers.total - self.total)
        phrase, value, step = self.quantity(self.thing, room)
        more = phrase if step is not None else f"{value} more"
        self.sentences.append(f"{self.he()} {verb} {more}.")
        wordings = [
            f"After {past} them {self.pronoun} has {{eq}} {self.thing}.",
            f"Then {self.name} has {{eq}} {self.thing}.",
            f"That makes {{eq}} {self.thing}.",
        ]
        self.total_step = self.add_step(self.total, "+", value, [self.total_step, step], wordings)
        self.total += value

    def lose(self) -> None:
        verb, past = self.rng.choice([("gives away", "giving"), ("loses", "losing"), ("sells", "selling"), ("uses", "using")])
        phrase, value, step = self.quantity(self.thing, min(self.numbers.quantity, self.total - 1))
        self.sentences.append(f"{self.he()} {verb} {phrase if step is not None else f'{value} of them'}.")
        wordings = [
            f"After {past} them {self.pronoun} has {{eq}} {self.thing} left.",
            f"Then {self.name} has {{eq}} {self.thing}.",
            f"That leaves {{eq}} {self.thing}.",
        ]
        self.total_step = self.add_step(self.total, "-", value, [self.total_step, step], wordings)
        self.total -= value

    def double(self) -> None:
        factor, word = self.rng.choice([(2, "twice"), (3, "three times")])
        if self.total * factor > self.numbers.total:
            factor, word = 2, "twice"
        self.sentences.append(f"A week later {self.pronoun} has {word} as many.")
        wordings = [
            f"A week later {self.pronoun} has {{eq}} {self.thing}.",
            f"{word.capitalize()} as many is {{eq}} {self.thing}.",
        ]
        self.total_step = self.add_step(self.total, "*", factor, [self.total_step], wordings)
        self.total *= factor

    def finish(self) -> Problem:
        """The last sentence and the question: keep, sell at a price, or share equally."""
        rng, unit = self.rng, self.thing
        friends = [k for k in range(2, 9) if self.total % k == 0 and self.total // k > 1]
        ending = rng.random()
        if ending < 0.2 and friends and len(self.steps) < 5:
            k = rng.choice(friends)
            self.sentences.append(f"{self.he()} shares them equally among {k} friends.")
            question = f"How many {self.thing} does each friend get?"
            self.add_step(
                self.total,
                "/",
                k,
                [self.total_step],
                [f"Each friend gets {{eq}} {unit}.", f"Shared, that is {{eq}} {unit} each."],
            )
        elif ending < 0.35 and self.total <= self.numbers.quantity and len(self.steps) < 5:
            price, unit = rng.randint(2, 5), "dollars"
            self.sentences.append(f"{self.he()} sells all of them for {price} dollars each.")
            question = f"How many dollars does {self.pronoun} get?"
            self.add_step(self.total, "*", price, [self.total_step], ["The price is {eq} dollars.", "They bring {eq} dollars."])
        else:
            question = f"How many {self.thing} does {rng.choice([self.name, self.pronoun])} have now?"
        text = " ".join([*self.sentences, question])
        return Problem(text, self.steps[-1].result, self.name, unit, self.steps)


def make_problem(rng: random.Random, numbers: Numbers = SMALL) -> Problem:
    """Draw a problem with 2 to 5 operations."""
    while True:
        b = _Builder(rng, numbers)
        b.start(groups=rng.choice([1, 1, 2, 2, 3]))
        for _ in range(rng.randint(0, 3)):
            options = [b.gain] if b.total <= numbers.total - 20 else []
            options += [b.lose, b.lose] if b.total >= 6 else []
            options += [b.double] if 4 <= b.total <= numbers.total // 2 else []
            rng.choice(options)()
        if not b.steps:
            continue
        problem = b.finish()
        if 2 <= len(problem.steps) <= 5:
            return problem


def solve(problem: Problem, style: str, rng: random.Random) -> str:
    """Write a solution: any order that the operations allow, in one of :data:`STYLES`."""
    done: list[int] = []
    while len(done) < len(problem.steps):
        ready = [i for i, s in enumerate(problem.steps) if i not in done and all(j in done for j in s.inputs)]
        done.append(rng.choice(ready))
    steps = [problem.steps[i] for i in done]
    if problem.steps[-1] is not steps[-1]:  # the question's own operation comes last
        steps.remove(problem.steps[-1])
        steps.append(problem.steps[-1])
    answer, unit, name = problem.answer, problem.unit, problem.name
    equations = [f"{s.left}{s.op}{s.right}={s.result}" for s in steps]
    if style == "equations":
        return "\n".join([*equations, f"Answer: {answer}"])
    if style == "terse":
        return f"{', '.join(str(s.result) for s in steps)}. The answer is {answer}."
    if style == "story":
        links = ["First", *["Next"] * (len(steps) - 2), "Finally"]
        lines = [
            f"{link} {rng.choice(['compute', 'work out', 'we get'])} {e}." for link, e in zip(links, equations, strict=True)
        ]
        return " ".join([*lines, f"{name} ends with {answer} {unit}."])
    if style == "prose":
        opening = rng.choice(["", "", f"Let us count the {unit}. ", "Step by step. "])
        closing = rng.choice([f"The answer is {answer}.", f"So it is {answer} {unit}.", f"Answer: {answer}"])
        return opening + " ".join([*(rng.choice(s.wordings) for s in steps), closing])
    raise ValueError(f"style {style!r} is not one of {STYLES}")


def chats(
    count: int, seed: int, styles: Sequence[str] = STYLES, numbers: Numbers = SMALL, taken: Collection[str] = ()
) -> Iterator[dict]:
    """Yield ``count`` chats. Questions in ``taken`` are not used again."""
    rng = random.Random(seed)
    made = 0
    while made < count:
        problem = make_problem(rng, numbers)
        style = rng.choice(styles)
        if problem.question in taken:
            continue
        made += 1
        reply = solve(problem, style, rng)
        yield {
            "messages": [{"role": "user", "content": problem.question}, {"role": "assistant", "content": reply}],
            "answer": problem.answer,
            "operations": len(problem.steps),
            "style": style,
        }


def stated_answer(reply: str) -> int | None:
    """The number a reply ends on, or None where it states none."""
    numbers = re.findall(r"-?\d+", reply)
    return int(numbers[-1]) if numbers and len(numbers[-1]) < 10 else None


if __name__ == "__main__":
    for chat in chats(int(sys.argv[1]) if len(sys.argv) > 1 else 5, seed=0):
        question, reply = (m["content"] for m in chat["messages"])
        print(f"Q: {question}\nA ({chat['style']}): {reply}\n")
