"""What a training run can be told: every default in one place, checked before anything is loaded or written. No torch."""

import math
from dataclasses import dataclass

from tokenstats.errors import InputError, nearest, one_line

SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
"""Learning-rate schedules, under transformers' names. Its own ``constant`` would ignore the warm-up silently."""

NORMALISERS = {"weights": "Σ w·nll / Σ w", "targets": "Σ w·nll / kept tokens"}
"""What the loss of a mask that weighs is divided by, and the loss in words: over the whole optimizer batch."""

DTYPES = ("auto", "float32", "bfloat16")
FULL_LEARNING_RATE, LORA_LEARNING_RATE = 2e-5, 2e-4
ALL_LINEAR = "all-linear"


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How to fine-tune. The defaults suit small and medium models; raises InputError for a value that makes no sense.

    epochs:         passes over the rows, fractions allowed; max_steps: optimizer steps instead
    learning_rate:  the peak; None is 2e-5, or 2e-4 with LoRA. AdamW, β1 0.9, ``beta2``, decoupled ``weight_decay``
    batch_size:     sequences in one forward pass of one device; the optimizer steps after ``accumulation`` of them
    schedule:       cosine or linear (both to 0) or constant, after a linear warm-up over ``warmup_ratio`` of the steps
    normalise:      what the loss of a mask that weighs is divided by, over the whole optimizer batch: weights, the sum
                    of the weights, so that their scale does not matter; or targets, the number of kept tokens, so that
                    small weights make small steps. A mask that does not weigh is divided by its kept tokens either way
    max_grad_norm:  gradients are scaled down to this norm; 0 leaves them as they are
    lora_rank:      train an adapter of this rank, not the whole model. lora_alpha: twice the rank if not given;
                    lora_targets: names of modules, separated by commas, or all-linear (all but the output matrix)
    eval_share:     share of the store's rows held out, chosen by ``eval_seed`` and their seq_id alone; eval_steps:
                    evaluate every so many steps as well as before the first and after the last
    save_steps:     write a checkpoint every so many steps and at the end; without it a stopped run cannot be resumed
    logging_steps:  average the loss over so many steps for one entry of the history
    report_to:      none, all, or integrations of transformers (tensorboard, wandb, …) separated by commas
    seed:           of the order of the rows, of dropout, and of a new adapter's weights
    dtype:          float32; bfloat16, which computes in bfloat16 but keeps trained weights in float32; or auto: float32
                    on a CPU, bfloat16 on a GPU that has it
    device:         auto, cpu or cuda
    gradient_checkpointing: compute activations twice rather than keep them
    trust_remote_code: run code that the model brings with it; it is never asked on the terminal
    """

    epochs: float = 3.0
    max_steps: int | None = None
    learning_rate: float | None = None
    batch_size: int = 8
    accumulation: int = 2
    schedule: str = "cosine"
    warmup_ratio: float = 0.03
    weight_decay: float = 0.0
    beta2: float = 0.999
    normalise: str = "weights"
    max_grad_norm: float = 1.0
    lora_rank: int | None = None
    lora_alpha: float | None = None
    lora_dropout: float = 0.0
    lora_targets: str = ALL_LINEAR
    eval_share: float = 0.0
    eval_seed: int = 0
    eval_steps: int | None = None
    save_steps: int | None = None
    logging_steps: int = 10
    report_to: str = "none"
    seed: int = 0
    dtype: str = "auto"
    device: str = "auto"
    gradient_checkpointing: bool = False
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "learning_rate", "lora_alpha"):
            value = getattr(self, name)
            _expect(value is None or 0 < value < math.inf, name, value, "a number above 0")
        for name in ("batch_size", "accumulation", "logging_steps", "max_steps", "lora_rank", "eval_steps", "save_steps"):
            value = getattr(self, name)
            _expect(value is None or (isinstance(value, int) and value >= 1), name, value, "a whole number, at least 1")
        for name in ("warmup_ratio", "beta2", "lora_dropout", "eval_share"):
            _expect(0 <= getattr(self, name) < 1, name, getattr(self, name), "at least 0 and below 1")
        for name in ("weight_decay", "max_grad_norm"):
            _expect(0 <= getattr(self, name) < math.inf, name, getattr(self, name), "at least 0")
        for name in ("seed", "eval_seed"):
            _expect(0 <= getattr(self, name) < 2**32, name, getattr(self, name), "a whole number from 0 to 2³² - 1")
        _expect_one_of("schedule", self.schedule, list(SCHEDULES))
        _expect_one_of("dtype", self.dtype, list(DTYPES))
        _expect_one_of("normalise", self.normalise, list(NORMALISERS))
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.eval_steps is not None and not self.eval_share:
            raise InputError("eval_steps was given, but no row is held out; expected an eval_share above 0 with it")
        given = [n for n in ("lora_alpha", "lora_dropout", "lora_targets") if getattr(self, n) != _default(n)]
        if self.lora_rank is None and given:
            raise InputError(
                f"{', '.join(given)} given, but the whole model is trained; give lora_rank too, to train an adapter"
            )

    @property
    def is_lora(self) -> bool:
        return self.lora_rank is not None

    def loss_formula(self, weighted: bool) -> str:
        """The loss over the whole optimizer batch, in words; nll = −log p of a kept token, w its weight."""
        return NORMALISERS[self.normalise] if weighted else "Σ nll / kept tokens"

    @property
    def peak_learning_rate(self) -> float:
        return self.learning_rate or (LORA_LEARNING_RATE if self.is_lora else FULL_LEARNING_RATE)


def _default(name: str) -> object:
    return TrainOptions.__dataclass_fields__[name].default


def _expect(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise InputError(f"{name} got {one_line(value, 60)}; expected {expected}")


def _expect_one_of(name: str, value: str, known: list[str]) -> None:
    if value not in known:
        raise InputError(f"{name} got {one_line(value, 60)!r}{nearest(str(value), known)}; expected one of: {', '.join(known)}")
