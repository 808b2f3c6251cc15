"""What the means of docs/STUDY.md hide: each base and its learning rates, and problems that a base's numbers do not cover."""

from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np

from pipelines.chats import problems_and_chats
from pipelines.problems import SMALL, exceeds
from pipelines.study.design import ARMS, CELLS
from pipelines.study.markdown import markdown
from pipelines.study.results import Record, of_arm, of_cell
from pipelines.tinymath import HELD_OUT


def by_base(runs: Iterable[Record]) -> str:
    """Of every arm on each base: the learning rate that its search found, its steps, its KL from the base, pass@1."""
    runs = list(runs)
    bases = sorted({record["base"] for record in runs})
    heads = [f"{base}: {what}" for base in bases for what in ("rate", "steps", "KL(π‖base)", "pass@1 %")]
    rows = []
    for arm in ARMS:
        mine = [of_arm((r for r in runs if r["base"] == base), arm.name) for base in bases]
        if any(mine):
            rows.append([arm.name, *(text for of_base in mine for text in _of_base(of_base))])
    return markdown(["arm", *heads], rows) if rows else ""


def _of_base(runs: Sequence[Record]) -> list[str]:
    if not runs:
        return [""] * 4
    rate = f"{runs[0]['rate']:g}" if "rate" in runs[0] else ""
    kls = [record["kl"] for record in runs if "kl" in record]
    passes = [100 * record["pass@1"] for record in runs]
    spread = f" ± {np.std(passes, ddof=1):.1f}" if len(passes) > 1 else ""
    steps = f"{np.mean([record['steps'] for record in runs]):.0f}"
    return [rate, steps, f"{np.mean(kls):.3f}" if kls else "", f"{np.mean(passes):.1f}{spread}"]


def searches_table(searches: Iterable[Record]) -> str:
    """pass@1 on the validation problems at each rate that was tried."""
    searches = list(searches)
    of = {(r["base"], r["arm"], float(r["key"].rpartition(" ")[2])): r["pass@1"] for r in searches}
    bases, rates = sorted({base for base, _, _ in of}), sorted({rate for _, _, rate in of})
    rows = []
    for arm in ARMS:
        values = [of.get((base, arm.name, rate)) for base in bases for rate in rates]
        if any(value is not None for value in values):
            rows.append([arm.name, *("" if value is None else f"{100 * value:.1f}" for value in values)])
    return markdown(["arm", *(f"{base}: {rate:g}" for base in bases for rate in rates)], rows) if rows else ""


def larger_table(runs: Iterable[Record]) -> str:
    """pass@1 in the cells of regime B, on problems within the numbers that a base knows and on those beyond them."""
    runs, beyond = list(runs), is_beyond()
    heads = ["cell and arm", "runs", f"within ({(~beyond).sum()}) %", f"beyond ({beyond.sum()}) %"]
    rows = []
    for cell in CELLS:
        for arm in ARMS if cell.regime == "B" else ():
            mine = of_arm(of_cell(runs, cell), arm.name)
            if mine:
                shares = np.array([np.array(record["correct"]) / record["samples"] for record in mine])
                means = [f"{100 * shares[:, which].mean():.1f}" for which in (~beyond, beyond)]
                rows.append([f"{cell.name} {arm.name}", str(len(mine)), *means])
    return markdown(heads, rows) if rows else ""


@cache
def is_beyond() -> np.ndarray:
    """[problems] of the larger test problems: has one a number that the base's problems never have in that place?"""
    return np.array([exceeds(problem, SMALL) for problem, _ in problems_and_chats(*HELD_OUT["test-larger"])])
