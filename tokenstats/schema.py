"""The contract: what each column means, its unit and its type on disk.

A tokenized sequence is y_0 … y_{T-1}. Every per-token value at index t describes the prediction of y_t from y_{<t}:
index 0 has no prediction, so every statistic there is null. ``p`` is the scored model's next-token distribution,
``q`` the reference's; logarithms are natural.

A column holds one list per sequence, as long as the sequence. Null means "not scored", never zero.
"""

from dataclasses import dataclass

import pyarrow as pa

SCHEMA_VERSION = 1

ROLES = ("other", "system", "user", "assistant", "tool", "text")
"""Who wrote a token; its place here is the code stored in ``tokens.role``. ``other``: the template, or not known."""

TOKEN_CLASSES = ("words", "digits", "operators", "punctuation", "whitespace", "special", "other")
"""What kind of word a token is. ``other``: part of a character, a control character, or no text at all."""

BY_MARKERS = "generation markers"
BY_TRAINING_TEMPLATE = "training template of trl"
BY_COMPARISON = "with and without the reply"
BY_COMPLETION = "completion"
BY_TEXT = "text"
"""How targets were found in the text, best first where a chat template was used; the store's manifest says which."""

MAX_CLAUSES = 16
"""``reason`` is a uint16: a rule has at most so many clauses."""


@dataclass(frozen=True)
class Statistic:
    """One column of a scoring."""

    name: str
    type: pa.DataType
    unit: str
    meaning: str
    of_reference: bool = False

    @property
    def is_float(self) -> bool:
        """Is it a real number, rather than a count or an id?"""
        return pa.types.is_floating(self.type)


STATISTICS = (
    Statistic("logprob", pa.float32(), "nats", "log p(y_t), at most 0"),
    Statistic("rank", pa.int32(), "tokens", "how many vocabulary entries have a strictly larger logit than y_t"),
    Statistic("entropy", pa.float32(), "nats", "H(p) = -Σ p log p over the whole vocabulary"),
    Statistic("sum_p2", pa.float32(), "1", "Σ p², the collision probability"),
    Statistic("top1_id", pa.int32(), "token id", "the model's own choice (the lowest id among equals)"),
    Statistic("top1_logprob", pa.float32(), "nats", "log p of that choice"),
    Statistic("ref_logprob", pa.float32(), "nats", "log q(y_t), at most 0", of_reference=True),
    Statistic("ref_rank", pa.int32(), "tokens", "rank of y_t under the reference", of_reference=True),
    Statistic("ref_entropy", pa.float32(), "nats", "H(q)", of_reference=True),
    Statistic("kl", pa.float32(), "nats", "KL(p‖q) = Σ p (log p - log q): scored ‖ reference", of_reference=True),
    Statistic("reverse_kl", pa.float32(), "nats", "KL(q‖p)", of_reference=True),
)
STATISTIC_BY_NAME = {s.name: s for s in STATISTICS}
TOPK_COLUMNS = ("topk_ids", "topk_logprobs")

TOKENS_SCHEMA = pa.schema(
    [
        pa.field("seq_id", pa.string(), nullable=False),
        pa.field("input_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("is_target", pa.list_(pa.bool_()), nullable=False),
        pa.field("role", pa.list_(pa.int8()), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("truncated", pa.bool_(), nullable=False),
    ]
)

MASK_SCHEMA = pa.schema(
    [
        pa.field("seq_id", pa.string(), nullable=False),
        pa.field("keep", pa.list_(pa.bool_()), nullable=False),
        pa.field("reason", pa.list_(pa.uint16()), nullable=False),
    ]
)


def mask_schema(weighted: bool) -> pa.Schema:
    """Schema of a mask's parts. ``weight``: what a token counts for in the loss, finite and at least 0; 0 where not kept."""
    weight = pa.field("weight", pa.list_(pa.float32()), nullable=False)
    return MASK_SCHEMA.append(weight) if weighted else MASK_SCHEMA


def stats_schema(with_reference: bool, topk: int = 0) -> pa.Schema:
    """Schema of a scoring's parts: ``seq_id`` and the columns that its models can give."""
    fields = [pa.field("seq_id", pa.string(), nullable=False)]
    fields += [pa.field(s.name, pa.list_(s.type)) for s in STATISTICS if with_reference or not s.of_reference]
    if topk:
        fields += [
            pa.field("topk_ids", pa.list_(pa.list_(pa.int32()))),
            pa.field("topk_logprobs", pa.list_(pa.list_(pa.float32()))),
        ]
    return pa.schema(fields)
