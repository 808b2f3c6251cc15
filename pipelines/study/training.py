"""From a run to a trained policy: its mask, its steps, and the search for the steps that end at another arm's KL."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.labels import Label
from pipelines.study.design import EKSFT, FOLLOWED, IN_ROUNDS, Run, arm_named
from pipelines.study.masks import EKSFT_MASK, Rows
from pipelines.tinymath import MODELS
from tokenstats.following import follow_rule
from tokenstats.rounds.options import RoundOptions
from tokenstats.rounds.run import train_rounds
from tokenstats.training import TrainOptions, train


def prepare_mask(run: Run, rows: Rows) -> str | None:
    """The stored mask of a run's arm, made where it is not there yet. EKSFT's comes first: others have its budget."""
    if run.arm.mask is None:
        return None
    for arm in (arm_named(EKSFT), run.arm):
        name = mask_name(arm.name)
        if name not in rows.store.masks:
            assert arm.mask is not None
            arm.mask(rows, name)
    return mask_name(run.arm.name)


def mask_name(arm: str) -> str:
    return EKSFT_MASK if arm == EKSFT else arm.replace(" ", "-")


def fine_tune(run: Run, rows: Rows, mask: str | None, rate: float, out: Path, steps: int | None = None) -> None:
    """Train the run's base into ``out``, whatever was there. ``steps``: instead of the run's own."""
    options = run.options(rate)
    options = replace(options, max_steps=steps or options.max_steps)
    shutil.rmtree(out, ignore_errors=True)
    if run.arm.way == IN_ROUNDS:
        _fine_tune_in_rounds(run, rows, out, options)
    else:
        follow = follow_rule(rows.store, EKSFT_MASK) if run.arm.way == FOLLOWED else None
        train(rows.store, model=str(MODELS / run.base), mask=mask, out=out, options=options, follow=follow)


def _fine_tune_in_rounds(run: Run, rows: Rows, out: Path, options: TrainOptions) -> None:
    """A warm-up of one pass, then a new mask after each; in a copy of the store, since every round adds to it."""
    store = out.parent / f"{out.name}_store"
    shutil.rmtree(store, ignore_errors=True)
    shutil.copytree(rows.store.path, store)
    a_pass = run.cell.steps_a_pass
    rounds = RoundOptions(warmup_steps=a_pass)
    train_rounds(store, model=str(MODELS / run.base), rule=EKSFT_MASK, every=a_pass, out=out, rounds=rounds, options=options)
    shutil.rmtree(store)


def steps_that_match(target: float, most: int, kl_after: Callable[[int], float]) -> tuple[int, float]:
    """The number of steps, 1 to ``most``, whose KL is nearest to the target, and that KL, by bisection.

    KL is taken to grow with the steps; of those that were tried, the nearest is returned. Where even ``most`` steps stay
    below the target, it is ``most``.
    """
    tried = {most: kl_after(most)}
    low, high = 0, most  # KL is 0 without a step
    while tried[most] > target and high - low > 1:
        middle = (low + high) // 2
        tried[middle] = kl_after(middle)
        low, high = (middle, high) if tried[middle] < target else (low, middle)
    nearest = min(tried, key=lambda steps: (abs(tried[steps] - target), steps))
    return nearest, tried[nearest]


def about_mask(rows: Rows, mask: str) -> dict[str, Any]:
    """What is known of a mask before any training.

    Returns:
        ``targets`` and ``dropped``: counts by label; ``kept_nll`` and ``dropped_nll``: mean −log p under the warm-up, nats
        (None where there is no such token).
    """
    dropped = rows.dropped(mask)
    counts = {label.name.lower(): int((rows.label == label).sum()) for label in Label}
    left_out = {label.name.lower(): int((dropped & (rows.label == label)).sum()) for label in Label}
    return {
        "targets": counts,
        "dropped": left_out,
        "kept_nll": _mean(rows.nll[~dropped]),
        "dropped_nll": _mean(rows.nll[dropped]),
    }


def precision_and_recall(about: dict[str, Any]) -> tuple[float, float]:
    """Of what a mask leaves out, the share that is style or noise; and of these, the share that it leaves out."""
    hits = sum(about["dropped"][name] for name in ("style", "noise"))
    dropped, wanted = sum(about["dropped"].values()), sum(about["targets"][name] for name in ("style", "noise"))
    return (hits / dropped if dropped else float("nan")), hits / wanted


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None
