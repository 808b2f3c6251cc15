"""What a training in rounds will do, and every reason not to begin it that can be known before anything is written."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenstats.errors import InputError, argument, one_line
from tokenstats.masking.engine.targets import physical_columns
from tokenstats.masking.rule import Rule, rule_text
from tokenstats.modeling.folders import local_folder
from tokenstats.options import effective, given, refuse, to_dict
from tokenstats.rounds.options import OF_ONE_LEG, RoundOptions
from tokenstats.run_file import to_toml
from tokenstats.schema import STATISTIC_BY_NAME
from tokenstats.store import Store, check_name
from tokenstats.store.families import MASKS, STATS
from tokenstats.training.arguments import rising_steps
from tokenstats.training.options import EXACT, TrainOptions
from tokenstats.training.provenance import without_folders
from tokenstats.training.token_sets import choose_tokens, masks_of_terms

_MOVED = (
    f"give {argument('warmup_steps')}, steps of plain SFT before the first mask, or train a {argument('model')} that has moved"
)


@dataclass(frozen=True)
class Plan:
    """A training in rounds.

    Attributes:
        model: What is trained.
        out: Folder of the result, the checkpoints and the record.
        every: Optimizer steps from one mask to the next.
        options: Of the whole training.
        rule_source: The preset or file that the rule came from; None: it was made in Python.
    """

    store: Store
    model: str
    rule: Rule
    out: Path
    every: int
    rounds: RoundOptions
    options: TrainOptions
    rule_source: str | None = None

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run, the warm-up's too."""
        assert self.options.max_steps is not None
        return self.options.max_steps

    @property
    def starts(self) -> range:
        """The steps after which masks are made: round i begins after ``starts[i]`` of them."""
        return range(self.rounds.warmup_steps, self.steps, self.every)

    def name(self, number: int) -> str:
        """Of a round's scoring and mask."""
        return f"{self.rounds.prefix}-{number}"

    @cached_property
    def reads_reference(self) -> bool:
        """Does the rule read what a scoring has of a reference only?"""
        columns = physical_columns(self.rule.columns)
        return any(scoring is None and STATISTIC_BY_NAME[name].of_reference for scoring, name in columns)

    @property
    def _rule_text(self) -> str:
        return one_line(rule_text(self.rule.to_dict()), 80)

    @property
    def reference(self) -> str | None:
        """The model q of every scoring: as it was given; below an adapter that is trained it is the start."""
        if self.options.reference is None and self.options.lora_rank is not None and self.reads_reference:
            return self.model
        return self.options.reference

    @property
    def of_rounds(self) -> TrainOptions:
        """The options of what is trained with masks. The scorings' reference is the loss's only where its terms read one."""
        reads = self.options.kl_penalty > 0 or self.options.has_metrics
        return self.options if reads else replace(self.options, reference=None)

    @property
    def of_warmup(self) -> TrainOptions:
        """The options of the warm-up: plain SFT, so without terms and weights."""
        return replace(
            self.of_rounds,
            entropy_bonus=0.0,
            entropy_on=None,
            kl_penalty=0.0,
            kl_on=None,
            kl_term=EXACT,
            normalise="weights",
            reference=self.options.reference if self.options.has_metrics else None,
        )

    @property
    def asked(self) -> dict[str, Any]:
        """What the run depends on; what is given away tells no folder."""
        others = masks_of_terms(self.options.entropy_on, self.options.kl_on, self.store)
        options = {**to_dict(self.options), "reference": None if self.reference is None else without_folders(self.reference)}
        return {
            "store": self.store.fingerprint,
            "model": without_folders(self.model),
            "rule": rule_text(self.rule.to_dict()),
            "rule_fingerprint": self.rule.fingerprint,
            "every": self.every,
            **{f"mask that {option} names": fingerprint for option, fingerprint in others.items()},
            **to_dict(self.rounds),
            **options,
        }

    @property
    def run_file(self) -> str:
        """The run as a TOML file, as the command takes it."""
        own = {"store": self.store.path, "model": self.model, "rule": self.rule_source, "every": self.every, "out": self.out}
        head = "# every option as it took effect; paths as they were given\n"
        if self.rule_source is None:
            head += "# the rule was made in Python: rounds.json has it\n"
        return head + to_toml({**own, **effective(self.rounds), **effective(self.options)})

    def check(self) -> None:
        """Raise InputError for what cannot be done, or would do nothing."""
        check_name(self.name(0), "scoring")
        self._check_steps()
        self._check_rule()
        self._check_reference()
        self._check_training()

    def check_names_free(self) -> None:
        """Raise InputError where the store has a round of this prefix already, or a piece of one: runs are never mixed."""
        start = f"{self.rounds.prefix}-"
        there = (path for kind in (STATS, MASKS) for path in sorted((self.store.path / kind).glob(f"{start}*")))
        if (found := next((path for path in there if path.name.removeprefix(start).isdecimal()), None)) is not None:
            taken = found.relative_to(self.store.path)
            raise InputError(
                f"{self.store.path} holds {taken} already, of another run; choose other names with {argument('prefix')}, or go "
                f"on with that run: its own {argument('out')}, and {argument('resume', True)}"
            )

    def _check_steps(self) -> None:
        if self.options.max_steps is None:
            raise InputError(f"{argument('max_steps')} is missing; expected the optimizer steps of the whole run")
        if self.rounds.warmup_steps >= self.steps:
            raise InputError(
                f"{argument('warmup_steps')} got {self.rounds.warmup_steps}; expected fewer than {argument('max_steps')}, "
                f"{self.steps}: the warm-up is part of the run"
            )
        if self.rounds.warmup_steps == 1 and rising_steps(self.options, self.steps):
            raise InputError(
                f"{argument('warmup_steps')} got 1, and the first step of a rise has learning rate 0: the model would "
                f"not have moved; expected 2 or more, or {argument('warmup_ratio', 0)}"
            )

    def _check_rule(self) -> None:
        if not self.rule.needs_scoring:
            raise InputError(
                f"the rule ({self._rule_text}) reads no statistic of the policy: its mask would be the same in "
                "every round; make it once and train on it"
            )
        if self.rule.weighting is not None and self.rounds.until_jaccard is not None:
            raise InputError(
                f"{argument('until_jaccard', self.rounds.until_jaccard)} looks at what masks drop, and the rule "
                f"({self._rule_text}) weighs: masks that drop the same may weigh differently; leave it out"
            )
        for scoring, _ in self.rule.columns:
            if scoring is not None:
                self.store.scorings[scoring]  # raises where it is not there

    def _check_reference(self) -> None:
        """KL is from another model than the one that is scored. Raises InputError where round 0 would have the same."""
        if self.reads_reference and self.reference is None:
            raise InputError(
                f"the rule ({self._rule_text}) reads a reference; expected {argument('reference')}, such "
                f"as what {argument('model')} names, with {argument('warmup_steps')}"
            )
        if self.reference is None:
            refuse(self.rounds, "reference_pass", because=f"there is no {argument('reference')}")
        elif not self.rounds.warmup_steps and _same_place(self.model, self.reference):
            without = "" if self.reads_reference else f"; the rule reads no KL: {argument('reference')} can be left out"
            raise InputError(
                f"the first mask would be made of {self.model} against itself, and every KL would be 0; {_MOVED}{without}"
            )

    def _check_training(self) -> None:
        options = self.options
        if self.rule.weighting is None:
            refuse(options, "normalise", because="the rule does not weigh its tokens; leave it out")
        if given(options, "reference_cache"):
            raise InputError(
                f"{argument('reference_cache')} is made of the tokens of one mask, and rounds make several; leave it out: the "
                "reference runs beside the policy"
            )
        refuse(options, *OF_ONE_LEG, because="rounds train a model, or a new adapter, on one store to the last step")
        if options.load_in_4bit:
            raise InputError(
                f"{argument('load_in_4bit', True)} would train a policy on rounded weights, and rounds score it on its base "
                "as it is: another policy; leave it out"
            )
        for name in ("entropy_on", "kl_on"):
            if (text := getattr(options, name)) is not None:
                choose_tokens(name, text, self.rule.reasons, "the rule", self.store)


def _same_place(one: str, other: str) -> bool:
    here, there = local_folder(one), local_folder(other)
    return one == other if here is None or there is None else here.resolve() == there.resolve()
