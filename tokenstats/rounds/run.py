"""Train in rounds: some steps, then the policy is scored and the rule makes a new mask of it, then on with that.

    train_rounds("runs/store", model="models/base", rule="eksft", every=50, out="runs/model",
                 rounds=RoundOptions(warmup_steps=20), options=TrainOptions(max_steps=400, reference="models/base"))

    steps   0 … 20          20 … 70     70 … 120    …
    mask    none: warm-up   round-0     round-1     …
    made of                 step 20     step 70     …

One run: one optimizer, one schedule over all its steps, one order of rows. Between two masks the run lies on the disk as a
checkpoint, which is also the policy that is scored: so a killed run goes on from what is there, in the same round.
"""

import gc
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenstats.errors import InputError, argument
from tokenstats.masking.rule import Rule
from tokenstats.options import at_least, expect
from tokenstats.rounds.crew import Crew
from tokenstats.rounds.options import RoundOptions
from tokenstats.rounds.plan import Plan
from tokenstats.rounds.record import RECORD, Record, Round
from tokenstats.rounds.refresh import check_round, make_round, score_policy
from tokenstats.store import Store, open_store
from tokenstats.store.drafts import whole_file
from tokenstats.store.parts import clear_leftovers, describe_difference
from tokenstats.training.legs import Leg
from tokenstats.training.models import check_tokenizer
from tokenstats.training.options import TrainOptions
from tokenstats.training.request import RUN_FILE
from tokenstats.training.resume import MAY_CHANGE, last_checkpoint, step_of
from tokenstats.training.rows import check_writable
from tokenstats.training.summary import TrainSummary
from tokenstats.training.trainer import train_leg

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RoundsSummary:
    """What a training in rounds did.

    Attributes:
        training: The whole run; its counts of tokens are those of the last mask.
        rounds: Each mask, beside the one before.
    """

    training: TrainSummary
    rounds: tuple[Round, ...]


def train_rounds(
    store: Store | str | Path,
    *,
    model: str | Path,
    rule: str | Path | Rule,
    every: int,
    out: str | Path,
    rounds: RoundOptions = RoundOptions(),
    options: TrainOptions = TrainOptions(),
    resume: bool = False,
) -> RoundsSummary:
    """Fine-tune ``model``, and make the mask anew every so many steps from the policy as it is then.

    Round i scores the checkpoint of its first step as ``PREFIX-i``, makes the mask ``PREFIX-i`` of that, and trains ``every``
    steps. Rows of which a mask keeps nothing stay in their batches, so that each mask meets the same rows in the same order; a
    step of which nothing is kept has a gradient of 0.

    ``out`` gets what :func:`tokenstats.train` writes, checkpoints, and ``rounds.json`` with every round. A run that was killed
    goes on in the same round with the same mask when it is called again with ``resume``. Under torchrun all processes train,
    and share the parts of each scoring.

    Args:
        store: A store, or its folder. Its scorings and masks so far are not touched.
        model: What is trained: a model folder, a Hub id, or an adapter folder.
        rule: A preset, a ``.toml`` file or a rule, of statistics of the policy.
        every: Optimizer steps from one mask to the next.
        out: A folder that is not there yet, or empty.
        rounds: How rounds are made.
        options: How to train. ``max_steps`` is needed: the steps of the whole run, warm-up too. ``reference`` is the model q of
            the scorings, and of the terms of the loss that read one.
        resume: Go on where a run in ``out`` was stopped; everything else must be as it was.

    Raises:
        InputError: What the caller can mend; what can be known beforehand is said before anything is written.
        RuleError: The rule is none.
        StoreError: The store is not there or damaged, or the disk refuses.
    """
    expect("every", every, at_least(1), int)
    found, source = (rule, None) if isinstance(rule, Rule) else (Rule.load(rule), str(rule))
    plan = Plan(open_store(store), str(model), found, Path(out).expanduser(), every, rounds, options, source)
    plan.check()
    check_tokenizer(plan.store, plan.model, options.trust_remote_code)
    crew = Crew.of(options.device)
    record = _begin(plan, resume, crew)
    masks: tuple[dict[str, Any], ...] = ()
    if rounds.warmup_steps:
        masks = _with_mask(masks, None, rounds.warmup_steps)
        _train_until(plan, plan.of_warmup, None, Leg(rounds.warmup_steps, masks), crew)
    for number in range(len(plan.starts)):
        record = _with_round(plan, record, number, crew)
        made = record.rounds[number]
        end = plan.steps if made.settled else min(made.step + every, plan.steps)
        masks = _with_mask(masks, made, end)
        trained = _train_until(plan, plan.of_rounds, made.name, Leg(end, masks), crew)
        if trained is not None and end == plan.steps:
            return RoundsSummary(trained, record.rounds)
    raise AssertionError("the last round ends with the run")


def _begin(plan: Plan, resume: bool, crew: Crew) -> Record:
    """What is recorded of the run so far. Raises InputError where ``out`` is taken, or holds another run."""
    if crew.leads:
        _take_folder(plan, resume)
        with whole_file(plan.out / RUN_FILE) as file:
            file.write(plan.run_file.encode())
    crew.meet()
    return Record.read(plan.out)


def _take_folder(plan: Plan, resume: bool) -> None:
    """Make sure that ``out`` is the run's, with its record in it."""
    out = plan.out
    if resume and out.is_dir():
        clear_leftovers(out)
    if resume and (out / RECORD).exists():
        _check_same_run(plan)
        return
    if out.exists() and not (out.is_dir() and _is_untouched(out)):
        go_on = f", or go on with the run that made it ({argument('resume', True)})"
        raise InputError(
            f"{out} exists and is not empty{' and holds no rounds' * resume}; choose another folder{go_on * (not resume)}"
        )
    check_writable(out)
    plan.check_names_free()
    if resume:
        _log.info(f"{out} holds nothing to go on from yet: the run begins at its first step")
    Record(plan.asked).write(out)


def _is_untouched(out: Path) -> bool:
    """Is a folder empty, or does it hold no more than the record of a run that made nothing?"""
    names = {path.name for path in out.iterdir()}
    return not names or (RECORD in names and names <= {RECORD, RUN_FILE} and not Record.read(out).rounds)


def _check_same_run(plan: Plan) -> None:
    record = Record.read(plan.out)
    there, asked = (
        {name: value for name, value in each.items() if name not in MAY_CHANGE} for each in (record.asked, plan.asked)
    )
    if there != asked:
        raise InputError(
            f"{plan.out} holds another run: {describe_difference(there, asked)}; resume with what it had, or choose another "
            "folder"
        )
    for made in record.rounds:
        check_round(plan, made)


def _with_round(plan: Plan, record: Record, number: int, crew: Crew) -> Record:
    """The record with a round; one that is not in it yet is made, said and written down."""
    if number < len(record.rounds):
        return record
    step = plan.starts[number]
    policy = plan.out / f"checkpoint-{step}" if step else plan.model
    score_policy(plan, number, policy, crew.worker)
    crew.meet()
    if crew.leads:
        made = make_round(plan, number, record.rounds[-1] if record.rounds else None)
        record.with_round(made).write(plan.out)
        _log.info(str(made))
    crew.meet()
    return Record.read(plan.out)


def _train_until(plan: Plan, options: TrainOptions, mask: str | None, leg: Leg, crew: Crew) -> TrainSummary | None:
    """Train a leg, or what is left of it; None where it is done and the run goes on."""
    if leg.last_step < plan.steps and step_of(last_checkpoint(plan.out)) >= leg.last_step:
        return None
    trained = train_leg(plan.store, model=plan.model, out=plan.out, mask=mask, options=options, leg=leg)
    gc.collect()  # the trainer refers to itself: without this the scoring would find the training's memory taken
    crew.meet()  # the checkpoint is the first process's to write, and is what all of them score
    return trained


def _with_mask(masks: tuple[dict[str, Any], ...], made: Round | None, end: int) -> tuple[dict[str, Any], ...]:
    """What the weights record of the masks that they learned from, with one that serves up to step ``end``."""
    name, digest = (made.name, made.mask) if made is not None else (None, None)
    return (*masks, {"mask": name, "mask_fingerprint": digest, "until_step": end})
