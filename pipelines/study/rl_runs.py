"""RL from every start of the primary cell: one line a run, and none is done twice."""

import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pipelines.study.design import ARMS, PRIMARY, SEEDS, Run
from pipelines.study.measures import SAMPLES, Policy
from pipelines.study.results import Results
from pipelines.study.rl import Grpo, reinforce
from pipelines.study.runner import Runner, count_on_test

RL_SEEDS = SEEDS[:3]
HOW = Grpo()


def rl_plan(bases: Iterable[str]) -> Iterator[Run]:
    """The policies that RL starts from, seed by seed, so that every start of a seed is there before the next seed begins."""
    starts = [arm for arm in ARMS if arm.starts_rl]
    return (Run(base, PRIMARY, arm, seed) for seed in RL_SEEDS for base in bases for arm in starts)


def do_rl(runs: Iterable[Run], runner: Runner, results: Results, how: Grpo = HOW) -> None:
    """Go on with RL from the policies of ``runs``, which the runner trains again where they are gone."""
    for run in runs:
        if run.key not in results:
            started = time.monotonic()
            record = _do(run, runner, how)
            identity = {"key": run.key, "base": run.base, "cell": run.cell.name, "arm": run.arm.name, "seed": run.seed}
            results.add({**identity, **asdict(how), **record, "seconds": round(time.monotonic() - started, 1)})
            runner.say(f"RL {run.key}: pass@1 {record['pass@1']:.3f}  {time.monotonic() - started:.0f} s")


def _do(run: Run, runner: Runner, how: Grpo) -> dict[str, Any]:
    # every seed of the base starts from the same weights, which have a result under the first seed alone
    start = runner.policy_of(replace(run, seed=SEEDS[0]) if run.arm.passes == 0 else run)
    out: Path = runner.work / "rl" / run.key.replace(" ", "_")
    shutil.rmtree(out, ignore_errors=True)
    curves = reinforce(start, run.cell, run.seed, out, how)
    measured = count_on_test(Policy.load(out), run.cell, SAMPLES)
    shutil.rmtree(out)
    return {**measured, "curves": {name: [round(value, 4) for value in curve] for name, curve in curves.items()}}
