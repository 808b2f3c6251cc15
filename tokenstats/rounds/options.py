"""What a training in rounds can be told besides what a training can. No torch."""

from dataclasses import dataclass

from tokenstats.options import Check, at_least, check, field, one_of
from tokenstats.scoring.options import SEPARATE, TOGETHER, ScoringOptions
from tokenstats.training.options import TrainOptions

OF_ONE_LEG = ("best_by", "patience", "stop_at_kl", "shares", "continue_adapter")
"""Options of training that a run in legs does not have: what ends it early, several stores, an adapter that goes on."""
NOT_IN_ROUNDS = (*OF_ONE_LEG, "epochs", "reference_cache", "load_in_4bit")
"""Options of training that rounds refuse, whatever their value: their help need not offer them."""


@dataclass(frozen=True, kw_only=True)
class RoundOptions:
    """How rounds are made. Raises InputError for a value that makes no sense.

    The warm-up belongs to the run: its steps count in ``max_steps``, its rows are the first of the order. Without one, the
    first mask is made of the model as it is. Scorings have the device and the attention of the training.
    """

    warmup_steps: int = field(0, "steps of plain SFT before the first mask is made", at_least(0))
    until_jaccard: float | None = field(
        None,
        "go on with a mask that is so much like the last one, and make no other",
        Check("a number above 0, at most 1", lambda value: 0 < value <= 1),
    )
    prefix: str = field("round", "scorings and masks are called PREFIX-0, PREFIX-1, …")
    scoring_dtype: str = field(
        "auto", "of the models while they score, as in compute", one_of("auto", "float32", "bfloat16", "float16")
    )
    scoring_tokens: int = field(8192, "tokens in one forward pass of a scoring", at_least(1))
    reference_pass: str = field(
        TOGETHER, "together, or separate: the reference first, where two models do not fit", one_of(TOGETHER, SEPARATE)
    )

    def __post_init__(self) -> None:
        check(self)

    def scoring(self, options: TrainOptions) -> ScoringOptions:
        """How the policies of a training are scored."""
        return ScoringOptions(
            batch_tokens=self.scoring_tokens,
            dtype=self.scoring_dtype,
            device=options.device,
            attention=options.attention,
            reference_pass=self.reference_pass,
            trust_remote_code=options.trust_remote_code,
        )
