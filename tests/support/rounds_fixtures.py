"""A small store, a tiny model, and what a run in rounds leaves behind: what the tests of rounds share."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from training_fixtures import QUICK

from tokenstats.masking.rule import Rule
from tokenstats.store import Store

ALWAYS_THE_SAME = Rule(drop="entropy > -1 and position < 2")
"""Reads the policy, and drops the first two tokens of each reply whatever it says."""


def killing(name: str, call: int, die: Callable[[], None]) -> tuple[Any, str, Callable[..., Any]]:
    """Owner, attribute and replacement of a function, given by its full name, that dies when it is called so many times."""
    place, attribute = name.rsplit(".", 1)
    module, _, cls = place.rpartition(".")
    owner: Any = getattr(import_module(module), cls) if cls[0].isupper() else import_module(place)
    usual, calls = getattr(owner, attribute), count(1)

    def dying(*arguments: Any, **options: Any) -> Any:
        if next(calls) == call:
            die()
        return usual(*arguments, **options)

    return owner, attribute, dying


def copied(store: Path, folder: Path) -> Store:
    """A store of one's own to write rounds to."""
    return Store(shutil.copytree(store, folder / "store"))


def arguments_of(model: str, **changes: Any) -> dict[str, Any]:
    """The arguments of a run of 7 steps with the model as reference; ``changes``: of its options.

    The learning rate does not end at 0: one step too many would show.
    """
    options = replace(QUICK, max_steps=7, schedule="constant", reference=model)
    return {"model": model, "rule": "eksft", "every": 2, "options": replace(options, **changes)}


def rows_of(store: Store, family: str, column: str) -> list[np.ndarray]:
    """A column of a family, a list for each row of the store, read with nothing that rounds use."""
    tables = [store.part(family, index, [column]) for index in range(store.part_count)]
    return [np.array(row) for table in tables for row in table[column].to_pylist()]


def what_is_left(store: Store, out: Path) -> dict[str, Any]:
    """All that a run made but its weights, without times: what lies in the store, and the files beside the weights."""
    families = sorted(f"{kind}/{each.name}" for kind in ("stats", "masks") for each in (store.path / kind).iterdir())
    parts = {f: [store.part(f, i).to_pydict() for i in range(store.part_count)] for f in families}
    files = {name: json.loads((out / name).read_text()) for name in ("rounds.json", "tokenstats.json", "history.json")}
    for entry in files["history.json"]["training"]:
        assert entry.pop("tokens_per_second") > 0
    return {**parts, **files, "strangers": sorted(str(path) for path in [*store.path.rglob(".*"), *out.rglob(".*")])}
