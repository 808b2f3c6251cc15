"""What a training run and an export can be told: every default, help text and check in one place. No torch."""

from dataclasses import dataclass

from tokenstats.errors import InputError, argument
from tokenstats.options import NOT_NEGATIVE, SEED, above, at_least, between, check, field, given, one_of, refuse
from tokenstats.training.guides import FORMS, GUIDES, choose

SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
"""Learning-rate schedules, under transformers' names. Its own ``constant`` would ignore the warm-up silently."""

METRICS = ("loss", "kept", "targets")
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
    other than loss, ``entropy_on`` and ``kl_on`` may stand alone: they then say what is told apart. bfloat16 computes in
    bfloat16 and keeps trained weights in float32; auto is float32 on a CPU, bfloat16 on a GPU that has it. How the rows of an
    optimizer step are cut into forward passes changes no update beyond rounding. Code that a model brings is never asked about
    on the terminal.
    """

    epochs: float = field(3.0, "passes over the rows, fractions allowed", above(0))
    max_steps: int | None = field(None, "optimizer steps, instead of epochs", at_least(1))
    learning_rate: float | None = field(None, "the peak [2e-5, or 2e-4 with LoRA]", above(0))
    batch_size: int = field(8, "sequences in one forward pass of one device", at_least(1))
    batch_tokens: int | None = field(None, "tokens in one instead, padding included and below 5 %", at_least(1))
    padding_free: bool = field(False, "lay the sequences of a forward pass in one row, where the model keeps them apart")
    accumulation: int = field(2, "forward passes in one optimizer step; by tokens: about", at_least(1))
    schedule: str = field("cosine", "cosine, linear or constant", one_of(*SCHEDULES))
    warmup_ratio: float = field(0.03, "share of the steps that the rate rises over", between(0, 1))
    weight_decay: float = field(0.0, "decoupled, as in AdamW", NOT_NEGATIVE)
    beta2: float = field(0.999, "AdamW's average of squared gradients", between(0, 1))
    normalise: str = field(
        "weights", "divide a weighted mask's loss by: weights (their sum) or targets (the kept tokens)", one_of(*NORMALISERS)
    )
    entropy_bonus: float = field(0.0, "λ_H: raise the entropy of the tokens of entropy_on", NOT_NEGATIVE)
    entropy_on: str | None = field(None, "their choice: 'clause 1', 'clause TEXT', a mask, dropped, kept or targets")
    kl_penalty: float = field(0.0, "λ_KL: pull the tokens of kl_on towards the reference", NOT_NEGATIVE)
    kl_on: str | None = field(None, "their choice, as for entropy_on")
    kl_term: str = field(EXACT, "exact: KL(p‖q), reverse: KL(q‖p), as-released: Σ p·(p − log q)", one_of(*KL_TERMS))
    reference: str | None = field(None, "the model q: folder or Hub id [with LoRA: the base, adapter off]")
    reference_cache: str | None = field(None, "folder for q's hidden states, made once [a forward pass in each step]")
    metrics: str = field("loss", "entropy, accuracy and KL too: of kept or of all targets; loss: none", one_of(*METRICS))
    max_grad_norm: float = field(1.0, "gradients are scaled down to it; 0: never", NOT_NEGATIVE)
    lora_rank: int | None = field(None, "train an adapter of this rank instead", at_least(1))
    lora_alpha: float | None = field(None, "scale of the adapter [twice the rank]", above(0))
    lora_dropout: float = field(0.0, "share of the adapter's inputs dropped at random", between(0, 1))
    lora_targets: str = field(ALL_LINEAR, "modules, by name, separated by commas; all-linear: all but the output matrix")
    eval_share: float = field(0.0, "share of the rows held out", between(0, 1))
    eval_seed: int = field(0, "which rows are held out", SEED)
    eval_steps: int | None = field(None, "evaluate every so many steps, not only at the ends", at_least(1))
    save_steps: int | None = field(None, "write a checkpoint every so many steps", at_least(1))
    logging_steps: int = field(10, "steps averaged in one entry of the history", at_least(1))
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
        if self.max_steps is not None:
            refuse(self, "epochs", because=f"{argument('max_steps')} says when to stop; give one of the two")
        if self.batch_tokens is not None:
            refuse(
                self, "batch_size", because=f"{argument('batch_tokens')} says how large a forward pass is; give one of the two"
            )
        elif self.batch_size == 1:
            refuse(self, "padding_free", because=f"a forward pass of {argument('batch_size', 1)} has no padding; leave it out")
        if not self.eval_share:
            held_out = f"no row is held out; give {argument('eval_share')} above 0 with it"
            refuse(self, "eval_steps", "eval_seed", because=held_out)
        if self.lora_rank is None:
            adapter = f"the whole model is trained; give {argument('lora_rank')} too, to train an adapter"
            refuse(self, "lora_alpha", "lora_dropout", "lora_targets", because=adapter)
        self._check_terms()

    def _check_terms(self) -> None:
        """Each term has its tokens, and the KL its reference; what would do nothing is refused."""
        for weight, tokens in (("entropy_bonus", "entropy_on"), ("kl_penalty", "kl_on")):
            if getattr(self, weight) and getattr(self, tokens) is None:
                raise InputError(
                    f"{argument(weight, getattr(self, weight))} got no tokens; expected {argument(tokens)} with it: "
                    "a clause of the mask such as 'clause 1', another mask, dropped, kept or targets"
                )
            if not getattr(self, weight) and not self.has_metrics:
                zero = f"{argument(weight)} is 0 and {argument('metrics')} only tells the loss; give one of the two with it"
                refuse(self, tokens, because=zero)
        if not self.kl_penalty:
            refuse(self, "kl_term", because=f"{argument('kl_penalty')} is 0; give it with it")
        elif self.reference is None and not self.is_lora:
            raise InputError(
                f"{argument('kl_penalty', self.kl_penalty)} got no reference; expected {argument('reference')} with it, "
                f"such as the model that the training starts from (only an adapter, {argument('lora_rank')}, has its own)"
            )
        if self.reference is None and not self.kl_penalty:
            refuse(self, "reference_cache", because=f"there is no reference; give {argument('reference')} with it")

    @property
    def is_lora(self) -> bool:
        return self.lora_rank is not None

    @property
    def has_metrics(self) -> bool:
        """Is more than the loss to be told?"""
        return self.metrics != METRICS[0]

    def loss_formula(self, weighted: bool) -> str:
        """The loss over the whole optimizer batch, in words; nll = −log p of a kept token, w its weight."""
        formula = NORMALISERS[self.normalise] if weighted else "Σ nll / kept tokens"
        if self.entropy_bonus:
            formula += f" − {self.entropy_bonus:g} · mean H(p) / ln V of {self.entropy_on}"
        if self.kl_penalty:
            formula += f" + {self.kl_penalty:g} · mean {KL_TERMS[self.kl_term]} of {self.kl_on}"
        return formula

    @property
    def peak_learning_rate(self) -> float:
        return self.learning_rate or (LORA_LEARNING_RATE if self.is_lora else FULL_LEARNING_RATE)


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
