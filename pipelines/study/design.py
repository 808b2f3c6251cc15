"""What the study consists of, as data: cells, arms, and the plan of runs.

A new arm is one entry of :data:`ARMS`. What it learns is a mask (``masks.py``), or another way to train (``training.py``).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from math import ceil

from pipelines.chats import Mix
from pipelines.problems import LARGER
from pipelines.study import masks
from pipelines.tinymath import MODELS
from pipelines.wordings import NEW_STYLE
from tokenstats.training import TrainOptions

BATCH, PASSES = 16, 8
RATES, GENTLE_RATES = (1e-4, 3e-4, 1e-3), (1e-5, 3e-5, 1e-4)
PILOT_RATE = 3e-4
SEARCH_SEED, PILOT_SEEDS, SEEDS, EXPLORATORY_SEEDS = 100, (200, 201), (0, 1, 2, 3, 4), (0, 1)
WARM_UP_RATE = 3e-4
MOST_SEARCHED = 200


@dataclass(frozen=True)
class Cell:
    """What is taught: regime A (activation) or B (new capability), how many rows, and how much noise is in them."""

    regime: str
    rows: int
    noise: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.regime}-{self.rows}-{self.noise:.0%}".removesuffix("%")

    @property
    def mix(self) -> Mix:
        return Mix((NEW_STYLE,), noise=self.noise) if self.regime == "A" else Mix(("prose",), LARGER)

    @property
    def steps_a_pass(self) -> int:
        return ceil(self.rows / BATCH)

    @property
    def searched(self) -> "Cell":
        """Where its learning rates are searched for: with at most 200 rows, since a search costs more than the runs."""
        return replace(self, rows=min(self.rows, MOST_SEARCHED))


STORED, FOLLOWED, IN_ROUNDS = "stored", "followed", "in rounds"
BOTH_TERMS = {"entropy_bonus": 0.05, "entropy_on": "clause 1", "kl_penalty": 0.05, "kl_on": "clause 2"}
"""EKSFT's two terms beside the loss, on the tokens that its two clauses leave out, with the weights of its published script."""

PRIMARY = Cell("A", 50, 0.5)
CELLS = (
    PRIMARY,
    *(Cell("A", 50), Cell("B", 50), Cell("A", 200), Cell("B", 200), Cell("A", 200, 0.5)),
    *(Cell("A", 800), Cell("B", 800), Cell("A", 800, 0.5)),
    *(Cell("A", rows, 0.3) for rows in (50, 200, 800)),
)
"""In the order in which they are done: how far apart they lie before what lies between; a search before who takes its rate."""


@dataclass(frozen=True)
class Arm:
    """What one of the compared runs does.

    Attributes:
        name: as the tables have it.
        mask: makes the stored mask that it learns from; None: every target token.
        charged: the warm-up's steps are taken off its own, since its mask, or the one it is a control of, needs them.
        passes: over the rows; None: as many as every arm; 0: it is the base as it is.
        matches: the number of steps is searched for which ends at the KL of this arm.
        options: what it trains with, beside what all have.
        way: how it trains: from its stored mask; with EKSFT's rule evaluated in each step (:data:`FOLLOWED`); or with the mask
            of that rule made anew after each pass (:data:`IN_ROUNDS`). The base is the reference of the latter two.
        rates: that its learning rate is searched among.
        exploratory: it is run in the cells outside of the primary one too.
        wide: its pass@64 is measured in the primary cell.
        starts_rl: RL starts from it.
    """

    name: str
    mask: Callable[[masks.Rows, str], str] | None = None
    charged: bool = False
    passes: int | None = None
    matches: str | None = None
    options: dict[str, object] = field(default_factory=dict)
    way: str = STORED
    rates: tuple[float, ...] = RATES
    exploratory: bool = False
    wide: bool = False
    starts_rl: bool = False


BASE, PLAIN, EKSFT, RANDOM = "base", "plain SFT", "EKSFT", "random"
HIGHEST_LOSS, EQUAL_KL = "highest loss", "equal-KL SFT"
ARMS = (
    Arm(BASE, passes=0, exploratory=True, wide=True, starts_rl=True),
    Arm(PLAIN, exploratory=True, wide=True, starts_rl=True),
    Arm(EKSFT, masks.preset("eksft"), charged=True, exploratory=True, wide=True, starts_rl=True),
    Arm("as released", masks.preset("eksft-as-released"), charged=True, starts_rl=True),
    Arm("entropy only", masks.preset("entropy-only"), charged=True),
    Arm("KL only", masks.preset("kl-only"), charged=True),
    Arm("lowest", masks.preset("eksft-lowest"), charged=True),
    Arm(RANDOM, masks.random_tokens, charged=True, exploratory=True, wide=True, starts_rl=True),
    Arm("random runs", masks.random_runs, charged=True),
    Arm(HIGHEST_LOSS, masks.highest_loss, charged=True, exploratory=True),
    Arm(EQUAL_KL, matches=EKSFT, wide=True, starts_rl=True),
    Arm("one epoch", passes=1),
    Arm("DFT", masks.preset("dft"), charged=True, options={"normalise": "targets"}),
    Arm("oracle", masks.oracle, charged=True, exploratory=True),
    Arm("both terms", masks.preset("eksft"), charged=True, options=BOTH_TERMS),
    Arm(FOLLOWED, masks.preset("eksft"), way=FOLLOWED),
    Arm(IN_ROUNDS, way=IN_ROUNDS),
    Arm("gentle plain SFT", rates=GENTLE_RATES),
    Arm("gentle EKSFT", masks.preset("eksft"), charged=True, rates=GENTLE_RATES),
    Arm("gentle random", masks.random_tokens, charged=True, rates=GENTLE_RATES),
)
PILOT_ARMS = (BASE, PLAIN, EKSFT, RANDOM, HIGHEST_LOSS, EQUAL_KL)
COMPARISONS = ((EKSFT, RANDOM), (EKSFT, EQUAL_KL))
"""The primary ones, each after SFT and after RL."""


def arm_named(name: str) -> Arm:
    return next(arm for arm in ARMS if arm.name == name)


@dataclass(frozen=True)
class Run:
    """One training: a base, a cell, an arm, a seed of rows and order, and a learning rate (None: the one that is found)."""

    base: str
    cell: Cell
    arm: Arm
    seed: int
    rate: float | None = None

    @property
    def key(self) -> str:
        """Names the run in the results."""
        searched = "" if self.rate is None else f" at {self.rate:g}"
        return f"{self.base} {self.cell.name} {self.arm.name} {self.seed}{searched}"

    @property
    def is_wide(self) -> bool:
        """Its pass@64 is measured."""
        return self.arm.wide and self.cell == PRIMARY

    def steps(self) -> int:
        passes = PASSES if self.arm.passes is None else self.arm.passes
        return self.cell.steps_a_pass * (passes - self.arm.charged)

    def options(self, rate: float) -> TrainOptions:
        common = {"batch_size": BATCH, "accumulation": 1, "beta2": 0.95, "weight_decay": 0.1, "warmup_ratio": 0.0}
        own = {"max_steps": self.steps(), "learning_rate": rate, "seed": self.seed, "plot": False}
        needs_reference = self.arm.way != STORED or "kl_penalty" in self.arm.options
        reference = {"reference": str(MODELS / self.base)} if needs_reference else {}
        return TrainOptions(**{**common, **own, **self.arm.options, **reference})


def plan(bases: tuple[str, ...], pilot: bool = False) -> Iterator[Run]:
    """All runs, searches before what needs their rate, in the order in which they are worth doing."""
    if pilot:
        yield from _runs(bases[0], PRIMARY, [arm_named(name) for name in PILOT_ARMS], PILOT_SEEDS, PILOT_RATE)
        return
    for cell in CELLS:
        arms = [arm for arm in ARMS if cell == PRIMARY or arm.exploratory]
        for base in bases:
            yield from _runs(base, cell, arms, SEEDS if cell == PRIMARY else EXPLORATORY_SEEDS)


def _runs(base: str, cell: Cell, arms: list[Arm], seeds: tuple[int, ...], fixed: float | None = None) -> Iterator[Run]:
    """With a search of each arm's rate, or one that is fixed."""
    searched = [arm for arm in arms if arm.matches is None and arm.passes != 0 and cell.searched == cell and fixed is None]
    yield from (Run(base, cell, arm, SEARCH_SEED, rate) for arm in searched for rate in arm.rates)
    # the base is the same for every seed
    yield from (Run(base, cell, arm, seed, fixed) for seed in seeds for arm in arms if arm.passes != 0 or seed == seeds[0])
