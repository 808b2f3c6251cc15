"""Do the runs of a plan, one after the other; whatever has a result is not done again."""

import math
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from pipelines.study.design import ARMS, EQUAL_KL, PLAIN, SEARCH_SEED, Cell, Run, arm_named
from pipelines.study.masks import Rows
from pipelines.study.measures import (
    SAMPLES,
    WIDE_SAMPLES,
    Policy,
    entropy_at_forks,
    in_other_styles,
    kl_on_own_samples,
    mean_pass_at,
    problems_for,
)
from pipelines.study.results import Results
from pipelines.study.rows import prepare_rows
from pipelines.study.training import about_mask, fine_tune, prepare_mask, steps_that_match
from pipelines.tinymath import MODELS
from tokenstats.errors import InputError

TEST_SEED, VALIDATION_SEED = 1, 2
_DIVERGED = "the training diverged"


@cache
def base_policy(name: str) -> Policy:
    return Policy.load(MODELS / name)


@dataclass(frozen=True)
class Size:
    """How many test problems, and how many samples of each for the arms whose pass@64 is measured."""

    problems: int | None = None
    wide_samples: int = WIDE_SAMPLES


PILOT_SIZE = Size(problems=150, wide_samples=SAMPLES)


class Runner:
    """Runs in a scratch folder ``work``, with results beside each other in ``results``."""

    def __init__(self, results: Results, work: Path, say: Callable[[str], None], size: Size | None = None):
        self.results, self.work, self.say, self.size = results, work, say, size or Size()

    def do_all(self, runs: Iterable[Run]) -> None:
        for run in runs:
            if run.key not in self.results:
                started = time.monotonic()
                record = self._do(run)
                seconds = round(time.monotonic() - started, 1)
                self.results.add({"key": run.key, **_identity(run), **record, "seconds": seconds})
                self.say(f"{run.key}: pass@1 {record['pass@1']:.3f}  {seconds:.0f} s")

    def policy_of(self, run: Run) -> Path:
        """The folder of a run's trained model, trained anew where it is gone."""
        if run.arm.passes == 0:
            return MODELS / run.base
        out = self.work / "models" / run.key.replace(" ", "_")
        if not (out / "tokenstats.json").exists():
            steps = self.results[run.key]["steps"] if run.key in self.results else None
            rows = prepare_rows(run, base_policy(run.base).tokenizer, self.work)
            fine_tune(run, rows, prepare_mask(run, rows), self.rate_of(run), out, steps)
        return out

    def rate_of(self, run: Run) -> float:
        """The learning rate given, or else the best of the arm's search in its cell; equal-KL SFT has that of plain SFT."""
        if run.rate is not None:
            return run.rate
        arm = arm_named(PLAIN) if run.arm.name == EQUAL_KL else run.arm
        tried = {rate: Run(run.base, run.cell.searched, arm, SEARCH_SEED, rate).key for rate in arm.rates}
        return max(tried, key=lambda rate: (self.results[tried[rate]]["pass@1"], -rate))

    def _do(self, run: Run) -> dict[str, Any]:
        if run.arm.passes == 0:
            return {"steps": 0, **examine(run, MODELS / run.base, self.size)}
        rows = prepare_rows(run, base_policy(run.base).tokenizer, self.work)
        mask, rate = prepare_mask(run, rows), self.rate_of(run)
        out = self.work / "models" / run.key.replace(" ", "_")
        record: dict[str, Any] = {"rate": rate, "steps": run.steps()}
        try:
            if run.arm.matches is not None:
                record |= self._match(run, rows, rate, out)
            else:
                fine_tune(run, rows, mask, rate, out)
        except InputError as error:
            if _DIVERGED not in str(error):
                raise
            return record | _nothing_right(run)
        if mask is not None:
            record["mask"] = about_mask(rows, mask)
        record |= validate(run, out) if run.seed == SEARCH_SEED else examine(run, out, self.size)
        if not run.arm.starts_rl or run.seed == SEARCH_SEED:
            shutil.rmtree(out)
        return record

    def _match(self, run: Run, rows: Rows, rate: float, out: Path) -> dict[str, Any]:
        """Plain SFT, as many steps as bring it to the KL of the arm that it has to match, both on validation prompts."""
        assert run.arm.matches is not None
        base = base_policy(run.base)
        target = self.results[replace(run, arm=arm_named(run.arm.matches)).key].get("validation_kl", math.inf)

        def kl_after(steps: int) -> float:
            fine_tune(run, rows, None, rate, out, steps)
            return kl_on_own_samples(Policy.load(out), base, run.cell, "validation")

        steps, reached = steps_that_match(target, run.steps(), kl_after)
        fine_tune(run, rows, None, rate, out, steps)
        return {"steps": steps, "target_kl": target, "reached_kl": reached}


def validate(run: Run, folder: Path) -> dict[str, Any]:
    """What the search of the learning rate goes by."""
    correct, _ = Policy.load(folder).count_correct(problems_for(run.cell, "validation"), SAMPLES, VALIDATION_SEED)
    return {"samples": SAMPLES, "correct": correct, "pass@1": mean_pass_at(1, correct, SAMPLES)}


def examine(run: Run, folder: Path, size: Size) -> dict[str, Any]:
    """Every measure of a policy on the test problems."""
    policy, base = Policy.load(folder), base_policy(run.base)
    is_matched = any(arm.matches == run.arm.name for arm in ARMS)
    return {
        **count_on_test(policy, run.cell, size.wide_samples if run.is_wide else SAMPLES, size.problems),
        "styles": in_other_styles(policy),
        "kl": kl_on_own_samples(policy, base, run.cell),
        "fork_entropy": entropy_at_forks(policy, run.cell),
        **({"validation_kl": kl_on_own_samples(policy, base, run.cell, "validation")} if is_matched else {}),
    }


def count_on_test(policy: Policy, cell: Cell, samples: int, problems: int | None = None) -> dict[str, Any]:
    """Right samples of each test problem, or of the first few, and what follows from them."""
    correct, length = policy.count_correct(problems_for(cell, "test")[:problems], samples, TEST_SEED)
    shares = {f"pass@{k}": mean_pass_at(k, correct, samples) for k in (1, 16, 64) if k <= samples}
    return {"samples": samples, "correct": correct, "length": round(length, 2), **shares}


def _nothing_right(run: Run) -> dict[str, Any]:
    """What a run that diverged counts as."""
    kind = "validation" if run.seed == SEARCH_SEED else "test"
    return {
        "diverged": True,
        "samples": SAMPLES,
        "correct": [0] * len(problems_for(run.cell, kind)),
        "pass@1": 0.0,
        "pass@16": 0.0,
    }


def _identity(run: Run) -> dict[str, Any]:
    return {"base": run.base, "cell": run.cell.name, "arm": run.arm.name, "seed": run.seed}
