"""The words of the rule language: columns, functions, selections, and the kind of value each one gives."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tokenstats.schema import ROLES, STATISTICS, TOKEN_CLASSES

NUMBER, BOOLEAN, ROLE, CLASS = "number", "boolean", "role", "class"

DERIVED = {"nll": "logprob", "prob": "logprob", "ppl": "logprob", "ref_nll": "ref_logprob", "ref_prob": "ref_logprob"}
"""Columns that are computed from a stored one."""

TOKEN_COLUMNS = {
    "position": NUMBER,
    "length": NUMBER,
    "turn": NUMBER,
    "token_id": NUMBER,
    "role": ROLE,
    "token_class": CLASS,
    "is_end_of_turn": BOOLEAN,
    "is_special": BOOLEAN,
}
NAMES = {"role": ROLES, "token_class": TOKEN_CLASSES}
"""Columns that are compared with names, and the names; a name's place is the number that stands for it."""

STATISTIC_COLUMNS = (*(s.name for s in STATISTICS), *DERIVED)
COLUMNS = {**dict.fromkeys(STATISTIC_COLUMNS, NUMBER), **TOKEN_COLUMNS}

SCORINGS = "stats"
"""``stats["Qwen3-8B"].entropy`` reads a scoring whose name is no Python name."""


@dataclass(frozen=True)
class Function:
    """A function of one token's numbers.

    Attributes:
        takes: How many numbers it takes.
        of: Its values, float64 [n], from as many arrays [n]. A NaN that was in none of them is refused by the token's name.
    """

    takes: int
    of: Callable[..., Any]


FUNCTIONS = {
    "abs": Function(1, np.abs),
    "log": Function(1, np.log),
    "exp": Function(1, np.exp),
    "sqrt": Function(1, np.sqrt),
    "clip": Function(3, np.clip),
}
"""A new one is an entry here. docs/RULES.md has a line for each."""

FOLLOWING = "following"

TEXTS = {"between": 2, "part_of": 1}
"""Conditions on what the tokens say, and how many texts each takes."""

SELECTIONS = {
    "top": BOOLEAN,
    "bottom": BOOLEAN,
    "random": BOOLEAN,
    "quantile": NUMBER,
    "zscore": NUMBER,
    "minmax": NUMBER,
    "percent_rank": NUMBER,
}
"""What looks at a whole group of tokens, and the kind it gives each of them."""

SHARED = ("top", "bottom", "random", "quantile")
"""Selections whose last value is a share (or, but for quantile, a count)."""

USAGE = {
    **{name: f"{name}(entropy, 0.2, per=sequence)" for name in ("top", "bottom", "quantile")},
    "random": "random(0.2, seed=0)",
    **{name: f"{name}(entropy, per=sequence)" for name in ("zscore", "minmax", "percent_rank")},
    FOLLOWING: "following(entropy)",
    "between": "between('<think>', '</think>')",
    "part_of": "part_of('####')",
}
SCOPES = ("dataset", "sequence", "turn", "role")
OPTIONS = {name: ("per", "among", "seed") if name == "random" else ("per", "among") for name in SELECTIONS}
WORDS = (*FUNCTIONS, *SELECTIONS, FOLLOWING, *TEXTS)
