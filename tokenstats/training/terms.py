"""What a run works out of its tokens: the terms of the loss, and how deep each token's prediction must be looked into.

    L = Σ_keep w·nll / Σ_keep w  −  λ_H · Σ_E H(p) / (|E| ln V)  +  λ_KL · Σ_K KL(p‖q) / |K|

p is the policy's next-token distribution and q the reference's, both over the V ids of the tokenizer: columns that only pad an
embedding have no part in H and KL (they do in nll, as in every trainer). Loads no torch.
"""

from dataclasses import dataclass
from enum import IntEnum

from tokenstats.training.options import ALL_TARGETS, EXACT, REVERSE, TrainOptions
from tokenstats.training.token_sets import COMBINATIONS, ENTROPY, KEPT, KL, TARGET

OF_REFERENCE = frozenset({"ref_logprob", "ref_rank", "ref_entropy", "kl", "reverse_kl"})
"""Statistics that a reference is needed for."""


class Depth(IntEnum):
    """How much of a token's prediction is worked out: each takes more passes over its logits than the one before."""

    NOTHING = 0
    NLL = 1
    POLICY = 2
    """The distribution p: entropy, and whether the token is its most likely one."""
    BOTH = 3
    """p and the reference's q: KL."""


@dataclass(frozen=True)
class Terms:
    """The terms of the loss besides the cross-entropy, and the depth that tokens are worked out to.

    Attributes:
        entropy_bonus: λ_H.
        kl_penalty: λ_KL.
        kl_column: What the penalty is a mean of, by its name among the columns of :mod:`~tokenstats.training.statistics`.
        training: By the number of a token (see :mod:`~tokenstats.training.token_sets`) its depth in training.
        evaluation: The same for rows that are held out: all their targets have the same.
        by_weights: The cross-entropies are divided by the sum of the weights, not by the number of kept tokens.
    """

    entropy_bonus: float
    kl_penalty: float
    kl_column: str
    training: tuple[Depth, ...]
    evaluation: tuple[Depth, ...]
    by_weights: bool

    @property
    def reads_reference(self) -> bool:
        """Is there any token that the reference's distribution is needed for?"""
        return Depth.BOTH in self.training + self.evaluation


def plan_terms(options: TrainOptions, *, has_reference: bool, by_weights: bool, reads: frozenset[str] | None) -> Terms:
    """What a run has to work out.

    Args:
        options: Of the run.
        has_reference: Is there a q?
        by_weights: See :class:`Terms`.
        reads: Statistics that a rule which is followed reads; None where none is followed.
    """
    told = (Depth.BOTH if has_reference else Depth.POLICY) if options.has_metrics else Depth.NOTHING
    of_rule = Depth.NOTHING
    if reads is not None:
        of_rule = Depth.BOTH if reads & OF_REFERENCE or options.kl_penalty else Depth.POLICY
    depths = {
        TARGET: max(told if options.metrics == ALL_TARGETS else Depth.NOTHING, of_rule, told if reads is not None else 0),
        KEPT: max(Depth.NLL, told),
        ENTROPY: max(Depth.POLICY if options.entropy_bonus else Depth.NOTHING, told),
        KL: max(Depth.BOTH if options.kl_penalty else Depth.NOTHING, told),
    }
    watched = {"eval_kl": Depth.BOTH, "eval_accuracy": Depth.POLICY}.get(options.best_by or "", Depth.NLL)
    held_out = max(watched, told, of_rule if told else Depth.NOTHING, Depth.BOTH if options.evaluates_kl else Depth.NLL)
    return Terms(
        entropy_bonus=options.entropy_bonus,
        kl_penalty=options.kl_penalty,
        kl_column={EXACT: "kl", REVERSE: "reverse_kl"}.get(options.kl_term, "kl_as_released"),
        training=_table(depths),
        evaluation=_table({TARGET: held_out}),
        by_weights=by_weights,
    )


def _table(depths: dict[int, int]) -> tuple[Depth, ...]:
    """For each number that a token can have, the greatest depth of its bits."""
    return tuple(
        Depth(max([depth for bit, depth in depths.items() if number & bit], default=0)) for number in range(COMBINATIONS)
    )
