"""The words of the rule language: columns, functions, selections, and the kind of value each one gives."""

from tokenstats.schema import STATISTICS

NUMBER, BOOLEAN, ROLE = "number", "boolean", "role"

DERIVED = {"nll": "logprob", "prob": "logprob", "ppl": "logprob", "ref_nll": "ref_logprob", "ref_prob": "ref_logprob"}
"""Columns that are computed from a stored one."""

TOKEN_COLUMNS = {
    "position": NUMBER,
    "length": NUMBER,
    "turn": NUMBER,
    "token_id": NUMBER,
    "role": ROLE,
    "is_end_of_turn": BOOLEAN,
    "is_special": BOOLEAN,
}
STATISTIC_COLUMNS = (*(s.name for s in STATISTICS), *DERIVED)
COLUMNS = {**dict.fromkeys(STATISTIC_COLUMNS, NUMBER), **TOKEN_COLUMNS}

SCORINGS = "stats"
"""``stats["Qwen3-8B"].entropy`` reads a scoring whose name is no Python name."""

FUNCTIONS = {"abs": 1, "log": 1, "exp": 1, "sqrt": 1, "clip": 3}
"""Functions of one token's numbers, and how many they take."""

FOLLOWING = "following"

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
}
SCOPES = ("dataset", "sequence", "turn", "role")
OPTIONS = {name: ("per", "seed") if name == "random" else ("per",) for name in SELECTIONS}
WORDS = (*FUNCTIONS, *SELECTIONS, FOLLOWING)
