"""What a training run and an export can be told: every default, help text and check in one place. No torch."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from tokenstats.errors import InputError, argument
from tokenstats.options import NOT_NEGATIVE, SEED, above, at_least, between, check, field, given, one_of, refuse_useless
from tokenstats.training.guides import FORMS, GUIDES, choose
from tokenstats.training.option_values import ARGUMENTS, BEST_BY, SCHEDULES, SHARES, parse_schedule_args, parse_shares

ALL_TARGETS = "targets"
METRICS = ("loss", "kept", ALL_TARGETS)
"""What a run tells of its tokens besides the loss: nothing more, of the kept tokens, or of all targets."""

EXACT, REVERSE, AS_RELEASED = "exact", "reverse", "as-released"
KL_TERMS = {EXACT: "KL(p‖q)", REVERSE: "KL(q‖p)", AS_RELEASED: "Σ p·(p − log q)"}
"""What the KL penalty is of. The last is what EKSFT's code computes: no KL, and least where p is sparser than q."""

NORMALISERS = {"weights": "Σ w·nll / Σ w", "targets": "Σ w·nll / kept tokens"}
"""What the loss of a mask that weighs is divided by, and the loss in words: over the whole optimizer batch."""

FULL_LEARNING_RATE, LORA_LEARNING_RATE = 2e-5, 2e-4
ALL_LINEAR = "all-linear"
TRL_LEGACY = "trl-legacy"


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How to fine-tune. The defaults suit small and medium models; raises InputError for a value that makes no sense.

    AdamW, β1 0.9; the schedules cosine and linear end at 0, after a linear warm-up. With ``normalise`` weights the scale of a
    mask's weights does not matter, with targets small weights make small steps. Rows are held out by ``eval_seed`` and their
    seq_id alone, and evaluated before the first step and after the last. Without ``save_steps`` a stopped run cannot be
    resumed. ``entropy_bonus`` and ``kl_penalty`` add their terms to the loss, each a mean over its own tokens; with ``metrics``
    other than loss, ``entropy_on`` and ``kl_on`` may stand alone: they then say what is told apart. With ``best_by`` each
    evaluation writes a checkpoint, and the weights of the best are the result. ``stop_at_kl`` ends a run at the first
    evaluation at which KL(p‖q), a mean over all targets of the rows held out, has reached it. bfloat16 computes in
    bfloat16 and keeps trained weights in float32; auto is float32 on a CPU, bfloat16 on a GPU that has it. How the rows of an
    optimizer step are cut into forward passes changes no update beyond rounding. Code that a model brings is never asked about
    on the terminal.
    """

    epochs: float | None = field(None, "passes over the rows, fractions allowed [3]", above(0))
    shares: Sequence[float] | None = field(
        None, "of several stores, of the rows of an epoch: 0.7,0.3 [all rows of all]", SHARES, parse=parse_shares
    )
    max_steps: int | None = field(None, "optimizer steps, instead of epochs", at_least(1))
    learning_rate: float | None = field(None, "the peak [2e-5, or 2e-4 with LoRA]", above(0))
    batch_size: int | None = field(None, "sequences in one forward pass of one device [8]", at_least(1))
    batch_tokens: int | None = field(None, "tokens in one instead, padding included and below 5 %", at_least(1))
    padding_free: bool = field(False, "lay the sequences of a forward pass in one row, where the model keeps them apart")
    accumulation: int = field(2, "forward passes in one optimizer step; by tokens: about", at_least(1))
    optimizer: str = field("adamw_torch_fused", "as transformers names it: adamw_torch, adafactor, sgd, …")
    schedule: str = field("cosine", f"of the learning rate: {', '.join(SCHEDULES)}", one_of(*SCHEDULES))
    schedule_args: Mapping[str, float | str] | None = field(
        None, "its own arguments: num_cycles=2,lr_end=1e-6", ARGUMENTS, parse=parse_schedule_args
    )
    warmup_ratio: float = field(0.03, "share of the steps that the rate rises over, from 0", between(0, 1))
    weight_decay: float = field(0.0, "decoupled, as in AdamW; biases and norms have none", NOT_NEGATIVE)
    beta2: float = field(0.999, "AdamW's average of squared gradients", between(0, 1))
    normalise: str = field(
        "weights", "divide a weighted mask's loss by: weights (their sum) or targets (the kept tokens)", one_of(*NORMALISERS)
    )
    entropy_bonus: float = field(0.0, "λ_H: raise the entropy of the tokens of entropy_on", NOT_NEGATIVE)
    entropy_on: str | None = field(None, "their choice: 'clause 1', 'clause TEXT', a mask, dropped, kept or targets")
    kl_penalty: float = field(0.0, "λ_KL: pull the tokens of kl_on towards the reference", NOT_NEGATIVE)
    kl_on: str | None = field(None, "their choice, as for entropy_on")
    kl_term: str = field(EXACT, "exact: KL(p‖q), reverse: KL(q‖p), as-released: Σ p·(p − log q)", one_of(*KL_TERMS))
    reference: str | None = field(None, "the model q: folder or Hub id [of an adapter: the base, adapter off]")
    reference_cache: str | None = field(None, "folder for q's hidden states, made once [a forward pass in each step]")
    metrics: str = field("loss", "entropy, accuracy and KL too: of kept or of all targets; loss: none", one_of(*METRICS))
    max_grad_norm: float = field(1.0, "gradients are scaled down to it; 0: never", NOT_NEGATIVE)
    lora_rank: int | None = field(None, "train an adapter of this rank instead", at_least(1))
    lora_alpha: float | None = field(None, "scale of the adapter [twice the rank]", above(0))
    lora_dropout: float = field(0.0, "share of the adapter's inputs dropped at random", between(0, 1))
    lora_targets: str = field(ALL_LINEAR, "modules, by name, separated by commas; all-linear: all but the output matrix")
    dora: bool = field(False, "split the adapted weights into magnitude and direction")
    continue_adapter: bool = field(False, "the model is an adapter: train it on, rather than merge it and train the whole")
    load_in_4bit: bool = field(False, "keep the base below an adapter in 4 bits (NF4), by bitsandbytes")
    eval_share: float = field(0.0, "share of the rows held out", between(0, 1))
    eval_seed: int = field(0, "which rows are held out", SEED)
    eval_steps: int | None = field(None, "evaluate every so many steps, not only at the ends", at_least(1))
    best_by: str | None = field(None, "end with the weights of the best eval_loss, eval_kl or eval_accuracy", one_of(*BEST_BY))
    patience: int | None = field(None, "stop after so many evaluations in a row that are not the best", at_least(1))
    stop_at_kl: float | None = field(None, "stop where the KL of the rows held out has reached this, in nats", above(0))
    save_steps: int | None = field(None, "write a checkpoint every so many steps", at_least(1))
    keep_checkpoints: int = field(2, "the last so many, and the best; older ones are deleted", at_least(1))
    logging_steps: int = field(10, "steps averaged in one entry of the history", at_least(1))
    plot: bool = field(True, "draw the course of the run beside the weights: training.png")
    report_to: str = field("none", "none, or tensorboard, wandb, … as installed")
    seed: int = field(0, "of the order of rows, dropout and a new adapter", SEED)
    dtype: str = field("auto", "auto, float32 or bfloat16", one_of("auto", "float32", "bfloat16"))
    device: str = field("auto", "auto, cpu or cuda")
    attention: str | None = field(None, "attention as transformers names it: sdpa, flash_attention_2, …", alias="attn")
    compiled: bool = field(False, "compile the decoder first: pays over hours", alias="compile")
    gradient_checkpointing: bool = field(False, "trade time for memory")
    trust_remote_code: bool = field(False, "run code that a model brings with it; read it first")

    def __post_init__(self) -> None:
        check(self)
        if self.shares is not None and not math.isclose(sum(self.shares), 1.0, abs_tol=1e-9):
            listed = ", ".join(f"{share:g}" for share in self.shares)
            raise InputError(f"{argument('shares')} got {listed}, which sum to {sum(self.shares):g}; expected a sum of 1")
        self._check_terms()
        refuse_useless(self)
        self._check_evaluation()
        if self.load_in_4bit and not self.trains_adapter:
            raise InputError(
                f"{argument('load_in_4bit', True)} got a whole model to train; expected an adapter: "
                f"{argument('lora_rank')} or {argument('continue_adapter', True)} with it"
            )

    def _check_terms(self) -> None:
        """Each term has its tokens, and the KL its reference."""
        for weight, tokens in (("entropy_bonus", "entropy_on"), ("kl_penalty", "kl_on")):
            if getattr(self, weight) and getattr(self, tokens) is None:
                raise InputError(
                    f"{argument(weight, getattr(self, weight))} got no tokens; expected {argument(tokens)} with it: "
                    "a clause of the mask such as 'clause 1', another mask, dropped, kept or targets"
                )
        wanting = next((name for name in ("kl_penalty", "stop_at_kl") if getattr(self, name)), None)
        if wanting is None and self.best_by == "eval_kl":
            wanting = "best_by"
        if wanting is not None and self.reference is None and not self.trains_adapter:
            raise InputError(
                f"{argument(wanting, getattr(self, wanting))} got no reference; expected {argument('reference')} with it, "
                f"such as the model that the training starts from (only an adapter, {argument('lora_rank')}, has its own)"
            )

    def _check_evaluation(self) -> None:
        """Whoever waits for an evaluation has them at a fixed cadence; the best weights are those of a checkpoint."""
        for name in ("best_by", "stop_at_kl"):
            if getattr(self, name) is not None and self.eval_steps is None:
                raise InputError(
                    f"{argument(name, getattr(self, name))} got no cadence; expected {argument('eval_steps')} with it, "
                    "the steps from one evaluation to the next"
                )
        if self.best_by is not None and self.save_steps not in (None, self.eval_steps):
            raise InputError(
                f"{argument('save_steps', self.save_steps)} was given with {argument('best_by', self.best_by)}, which writes a "
                f"checkpoint at each evaluation; leave it out, or give {argument('eval_steps', self.save_steps)}"
            )

    def useless(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """Names of options that do nothing beside the others, and why."""
        if self.max_steps is not None:
            yield ("epochs",), f"{argument('max_steps')} says when to stop; give one of the two"
        if self.batch_tokens is not None:
            yield ("batch_size",), f"{argument('batch_tokens')} says how large a forward pass is; give one of the two"
        elif self.batch_size == 1:
            yield ("padding_free",), f"a forward pass of {argument('batch_size', 1)} has no padding; leave it out"
        yield from self._useless_terms()
        yield from self._useless_adapter()
        if not self.eval_share:
            evaluated = ("eval_steps", "eval_seed", "best_by", "patience", "stop_at_kl")
            yield evaluated, f"no row is held out; give {argument('eval_share')} above 0 with it"
        if self.best_by is None:
            yield ("patience",), f"no evaluation is better than another; give {argument('best_by')} with it"
            if self.save_steps is None:
                yield ("keep_checkpoints",), f"there are none; give {argument('save_steps')} or {argument('best_by')} with it"

    def _useless_terms(self) -> Iterator[tuple[tuple[str, ...], str]]:
        for weight, tokens in (("entropy_bonus", "entropy_on"), ("kl_penalty", "kl_on")):
            if not getattr(self, weight) and not self.has_metrics:
                zero = f"{argument(weight)} is 0 and {argument('metrics')} only tells the loss; give one of the two with it"
                yield (tokens,), zero
        if not self.kl_penalty:
            yield ("kl_term",), f"{argument('kl_penalty')} is 0; give it with it"
        if self.reference is None and not (self.kl_penalty or self.evaluates_kl):
            yield ("reference_cache",), f"there is no reference; give {argument('reference')} with it"

    def _useless_adapter(self) -> Iterator[tuple[tuple[str, ...], str]]:
        shape = ("lora_alpha", "lora_dropout", "lora_targets", "dora")
        if self.continue_adapter:
            yield ("lora_rank", *shape), f"{argument('continue_adapter', True)} trains the adapter as it is; leave it out"
        elif self.lora_rank is None:
            yield shape, f"the whole model is trained; give {argument('lora_rank')} too, to train an adapter"

    @property
    def trains_adapter(self) -> bool:
        """Is an adapter trained, a new one or one that is there, and the model below it left as it is?"""
        return self.lora_rank is not None or self.continue_adapter

    @property
    def has_metrics(self) -> bool:
        """Is more than the loss to be told?"""
        return self.metrics != METRICS[0]

    @property
    def evaluates_kl(self) -> bool:
        """Does the run's course depend on the KL of the rows held out?"""
        return self.stop_at_kl is not None or self.best_by == "eval_kl"

    @property
    def resolved(self) -> "TrainOptions":
        """The same with what is taken where nothing was given, as far as neither device nor model decide it."""
        return replace(
            self,
            epochs=self.epochs or (3.0 if self.max_steps is None else None),
            batch_size=self.batch_size or (8 if self.batch_tokens is None else None),
            learning_rate=self.learning_rate or (LORA_LEARNING_RATE if self.trains_adapter else FULL_LEARNING_RATE),
            lora_alpha=self.lora_alpha or (2.0 * self.lora_rank if self.lora_rank is not None else None),
            save_steps=self.save_steps if self.best_by is None else self.eval_steps,
        )

    def loss_formula(self, weighted: bool) -> str:
        """The loss over the whole optimizer batch, in words; nll = −log p of a kept token, w its weight."""
        formula = NORMALISERS[self.normalise] if weighted else "Σ nll / kept tokens"
        if self.entropy_bonus:
            formula += f" − {self.entropy_bonus:g} · mean H(p) / ln V of {self.entropy_on}"
        if self.kl_penalty:
            formula += f" + {self.kl_penalty:g} · mean {KL_TERMS[self.kl_term]} of {self.kl_on}"
        return formula


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How rows are written for another trainer. Raises InputError for a value that makes no sense.

    ``trainer`` also decides the form, where none is given. ``ignore_weights`` exports a mask that weighs in a form that can
    only say which tokens are kept. LLaMA-Factory has what ``save_to_disk`` writes by itself.
    """

    form: str | None = field(None, f"{', '.join(FORMS)} [what the trainer reads, or labels]", one_of(*FORMS))
    trainer: str | None = field(
        None,
        "whose config to print: trl, transformers, axolotl, llama-factory, unsloth, skyrl, verl or tinker",
        one_of(*GUIDES),
        alias="for",
    )
    save_to_disk: bool = field(False, "also as datasets.load_from_disk reads it")
    compat: str | None = field(None, "trl-legacy: also what TRL 0.24 to 1.6 keeps when it packs", one_of(TRL_LEGACY))
    ignore_weights: bool = field(False, "of a mask that weighs, export only which tokens it keeps")
    rows_per_file: int = field(100_000, "rows in one file", at_least(1))

    def __post_init__(self) -> None:
        check(self)
        form, trainer = self.form_and_trainer
        if self.compat is not None and trainer != "trl":
            raise InputError(
                f"{argument('compat', self.compat)} adds a column for TRL; expected the form labels and the trainer trl with it"
            )
        if FORMS[form].has_weights and given(self, "ignore_weights"):
            raise InputError(f"{argument('ignore_weights', True)} was given with the form {form}; expected one of the two")

    @property
    def form_and_trainer(self) -> tuple[str, str]:
        """What is written, and the trainer that it is explained for."""
        return choose(self.form, self.trainer)
