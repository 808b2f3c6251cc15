"""Numbers over a whole dataset that take several readings of it, worked out side by side: each reading serves all of them.

Such a number is written as a generator: it yields a :class:`Pass`, is sent what that reading came to, and returns its
result. What a part says may be measured in any thread; what the parts say is put together in one.
"""

from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

Key = TypeVar("Key")
Result = TypeVar("Result")
Measure = Callable[[int, np.ndarray], Any]
Read = Callable[[Mapping[Key, Measure]], Iterable[Mapping[Key, Any]]]
"""Reads the dataset once: for each part, what each of the measures says of its values."""


@dataclass(frozen=True)
class Pass:
    """One reading.

    measure: (part, values [n]) to what the part says; it changes nothing
    fold:    (state, what a part says) to the next state, for one part after the other; ``start`` is the first state
    """

    measure: Measure
    fold: Callable[[Any, Any], Any]
    start: Any


Steps = Generator[Pass, Any, Result]


def work_out(steps: Mapping[Key, Steps[Result]], read: Read[Key]) -> dict[Key, Result]:
    """Run every generator to its end, with as many readings as the longest of them asks for."""
    asked: dict[Key, Pass] = {}
    done: dict[Key, Result] = {}

    def advance(key: Key, answer: Any) -> None:
        try:
            asked[key] = steps[key].send(answer)
        except StopIteration as end:
            asked.pop(key, None)
            done[key] = end.value

    for key in steps:
        advance(key, None)
    while asked:
        states = {key: wanted.start for key, wanted in asked.items()}
        for said in read({key: wanted.measure for key, wanted in asked.items()}):
            for key, part in said.items():
                states[key] = asked[key].fold(states[key], part)
        for key, state in states.items():
            advance(key, state)
    return done
