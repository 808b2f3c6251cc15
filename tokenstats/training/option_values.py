"""Values that options of a training can have, and how those that are lists and tables are written on the command line."""

import math

from tokenstats.errors import InputError, argument, one_line
from tokenstats.options import Check

SCHEDULES = {
    "constant": "constant_with_warmup",
    **{
        name: name
        for name in (
            "cosine",
            "linear",
            "cosine_with_restarts",
            "polynomial",
            "inverse_sqrt",
            "cosine_with_min_lr",
            "cosine_warmup_with_min_lr",
            "warmup_stable_decay",
        )
    },
}
"""Learning-rate schedules, and transformers' names of them. Its own ``constant``, ``reduce_lr_on_plateau`` and ``greedy``
would ignore the warm-up silently."""

BEST_BY = {"eval_loss": "eval_loss", "eval_kl": "eval_targets/kl", "eval_accuracy": "eval_targets/accuracy"}
"""What the best checkpoint can be chosen by, and what transformers' log calls it. Of accuracy more is better, else less."""


def parse_schedule_args(text: str) -> dict[str, float | str]:
    """``num_cycles=2,decay_type=linear`` as {'num_cycles': 2, 'decay_type': 'linear'}."""
    found: dict[str, float | str] = {}
    for item in filter(None, text.split(",")):
        name, separator, value = (part.strip() for part in item.partition("="))
        if not (name and separator and value):
            raise InputError(
                f"{argument('schedule_args')} got {one_line(item, 60)!r}; expected NAME=VALUE, such as num_cycles=2,lr_end=1e-6"
            )
        found[name] = _as_number(value)
    return found


def _as_number(text: str) -> float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def parse_shares(text: str) -> list[float | str]:
    """``0.7,0.3`` as [0.7, 0.3]."""
    return [_as_number(item.strip()) for item in text.split(",")]


SHARES = Check(
    "numbers above 0, one for each store",
    lambda shares: not isinstance(shares, str) and all(isinstance(share, int | float) and 0 < share <= 1 for share in shares),
)


def _is_argument(value: object) -> bool:
    if isinstance(value, str):
        return isinstance(_as_number(value), str)  # what looks like a number is one
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


ARGUMENTS = Check("a table of finite numbers and words", lambda table: all(map(_is_argument, table.values())))
