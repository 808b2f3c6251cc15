"""Problems to learn from and to be measured on, and the scored store of a run's SFT rows."""

import json
import random
import shutil
from functools import cache
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from pipelines.chats import as_chat
from pipelines.labels import token_labels
from pipelines.problems import Problem, make_problem
from pipelines.solutions import Solution, solve
from pipelines.study.design import WARM_UP_RATE, Arm, Cell, Run
from pipelines.study.masks import WARM, Rows
from pipelines.tinymath import MODELS, held_out_questions
from tokenstats import Store
from tokenstats.computing import compute
from tokenstats.training import train

WARM_UP = Arm("warm-up", passes=1)


@cache
def _held_out() -> frozenset[str]:
    return frozenset(held_out_questions())


def worked_problems(cell: Cell, seed: int) -> list[tuple[Problem, Solution]]:
    """The SFT rows of a cell and seed. Smaller cells have the first rows of larger ones."""
    rng, rows, mix = random.Random(f"rows {cell.regime} {cell.noise} {seed}"), [], cell.mix
    while len(rows) < cell.rows:
        problem = make_problem(rng, mix.numbers)
        if problem.question not in _held_out():
            rows.append((problem, solve(problem, mix.styles[0], rng, mix.noise)))
    return rows


def labelled_solutions(count: int, cell: Cell) -> list[tuple[Problem, Solution]]:
    """Right solutions without noise, in a cell's wording and numbers, to look at forks: drawn apart from every other set."""
    rng, mix = random.Random(f"forks {cell.regime}"), cell.mix
    problems = (make_problem(rng, mix.numbers) for _ in range(count))
    return [(problem, solve(problem, mix.styles[0], rng)) for problem in problems]


def prepare_rows(run: Run, tokenizer: PreTrainedTokenizerFast, work: Path) -> Rows:
    """The rows of a run, with the statistics of a warm-up against the base; made once for all arms.

    The warm-up is one pass of plain SFT over these rows. A folder that a killed run left unfinished is made anew.
    """
    worked = worked_problems(run.cell, run.seed)
    folder = work / "rows" / f"{run.base} {run.cell.name} {run.seed}".replace(" ", "_")
    base, data = str(MODELS / run.base), folder / "rows.jsonl"
    if not (folder / "ready").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        chats = (as_chat(problem, solution) for problem, solution in worked)
        data.write_text("".join(json.dumps(chat) + "\n" for chat in chats))
        compute(data, model=base, store=folder / "store", name="base")
        warm_up = Run(run.base, run.cell, WARM_UP, run.seed)
        train(folder / "store", model=base, mask=None, out=folder / "warm-up", options=warm_up.options(WARM_UP_RATE))
        compute(data, model=str(folder / "warm-up"), reference=base, store=folder / "store", name=WARM)
        shutil.rmtree(folder / "warm-up")
        (folder / "ready").touch()
    return Rows(Store(folder / "store"), [token_labels(solution, tokenizer) for _, solution in worked], run.seed)
