"""Problems with solutions as chats: the rows of every data set here.

python -m pipelines.chats 5          # print five of them
"""

import json
import random
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.flaws import flawed
from pipelines.problems import REQUESTS, SMALL, Numbers, Problem, make_problem
from pipelines.solutions import Solution, solve
from pipelines.wordings import FIRST_STYLES


@dataclass(frozen=True)
class Mix:
    """What chats are drawn from.

    Attributes:
        styles: each as likely.
        numbers: how large numbers get.
        flawed: share of solutions with one flaw and a wrong answer.
        requests: share of questions that ask for the style of their answer.
        noise: chance of a sentence nobody needs before each step.
    """

    styles: Sequence[str] = FIRST_STYLES
    numbers: Numbers = SMALL
    flawed: float = 0.0
    requests: float = 0.0
    noise: float = 0.0


def chats(count: int, seed: int | str, mix: Mix = Mix(), taken: Collection[str] = ()) -> Iterator[dict]:
    """Yield ``count`` chats, the right answer beside them. Questions in ``taken`` are not used."""
    return (chat for _, chat in problems_and_chats(count, seed, mix, taken))


def problems_and_chats(
    count: int, seed: int | str, mix: Mix = Mix(), taken: Collection[str] = ()
) -> Iterator[tuple[Problem, dict]]:
    """The same, each beside the problem that it is about."""
    rng = random.Random(seed)
    made = 0
    while made < count:
        problem = make_problem(rng, mix.numbers)
        style = rng.choice(mix.styles)
        if problem.question in taken:
            continue
        made += 1
        request = REQUESTS[style] if mix.requests and rng.random() < mix.requests else ""
        worked = flawed(problem, rng) if mix.flawed and rng.random() < mix.flawed else problem
        yield problem, as_chat(problem, solve(worked, style, rng, mix.noise), request) | {"style": style}


def load_chats(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def as_chat(problem: Problem, solution: Solution, request: str = "") -> dict:
    """A row: the question, with what it asks of the style, the solution, and the right answer."""
    question = f"{problem.question} {request}".rstrip()
    return {
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": solution.text}],
        "answer": problem.answer,
        "operations": len(problem.steps),
    }


def stated_answer(reply: str) -> int | None:
    """The number a reply ends on, or None where it states none."""
    numbers = re.findall(r"-?\d+", reply)
    return int(numbers[-1]) if numbers and len(numbers[-1]) < 10 else None


if __name__ == "__main__":
    for chat in chats(int(sys.argv[1]) if len(sys.argv) > 1 else 5, seed=0):
        question, reply = (m["content"] for m in chat["messages"])
        print(f"Q: {question}\nA ({chat['style']}): {reply}\n")
