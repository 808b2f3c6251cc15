"""Statistics of next-token distributions, with gradients: columns by name, for a block of n rows of logits.

p is the policy's distribution over the V ids of the tokenizer, q the reference's; y the token. From one log-softmax each:

    nll             −log p(y), p over all columns of the logits: what a trainer's loss is
    logprob         log p(y)
    entropy         −Σ p log p
    kl              Σ p (log p − log q)
    reverse_kl      Σ q (log q − log p)
    kl_as_released  Σ p (p − log q), in EKSFT's code (arXiv:2605.29303) the term that is called KL: it is Σp² + H(p) + KL(p‖q)
    correct         1 where y is the most likely id, else 0

and the other statistics of a scoring, by their names there. All in nats, float32.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property

import torch
from torch import Tensor


class Predictions:
    """n rows of logits of the policy, and perhaps of the reference, as log-probabilities."""

    def __init__(self, logits: Tensor, targets: Tensor, vocabulary: int, reference: Tensor | None = None):
        """logits, reference: [n, columns] float32, columns ≥ vocabulary each; targets: [n] ids below ``vocabulary``."""
        self.targets, self.logits = targets[:, None], logits.detach()[:, :vocabulary]
        self.every_column = logits.log_softmax(-1)
        if reference is not None:
            self.ref_logits = reference[:, :vocabulary]

    def detached(self) -> "Predictions":
        """The same numbers, from which no gradient flows."""
        twin = object.__new__(Predictions)
        twin.__dict__ = {name: value.detach() for name, value in self.__dict__.items()}
        return twin

    @cached_property
    def log_p(self) -> Tensor:
        """[n, V] of the policy, over the ids of the tokenizer."""
        return _within(self.every_column, self.logits.shape[-1])

    @cached_property
    def log_q(self) -> Tensor:
        """[n, V] of the reference."""
        return self.ref_logits.log_softmax(-1)

    @cached_property
    def p(self) -> Tensor:
        """[n, V] of the policy."""
        return self.log_p.exp()

    @cached_property
    def q(self) -> Tensor:
        """[n, V] of the reference."""
        return self.log_q.exp()


def _within(log_p: Tensor, vocabulary: int) -> Tensor:
    """log p over the first columns alone: what the others had is shared out among them."""
    if log_p.shape[-1] == vocabulary:
        return log_p
    others = log_p[:, vocabulary:].logsumexp(-1, keepdim=True).exp()
    return log_p[:, :vocabulary] - torch.log1p(-others)


def _of_token(log_probs: Tensor, targets: Tensor) -> Tensor:
    return log_probs.gather(-1, targets).squeeze(-1)


def _rank(logits: Tensor, targets: Tensor) -> Tensor:
    return (logits > logits.gather(-1, targets)).sum(-1)


def _entropy(log_p: Tensor, p: Tensor) -> Tensor:
    return -(p * log_p).sum(-1)


def _divergence(p: Tensor, log_p: Tensor, q: Tensor, log_q: Tensor) -> Tensor:
    """Σ p (log p − log q) − p + q: the added sums are both 1 and have no gradient, and a normaliser that is off cancels."""
    return (p * (log_p - log_q) - p + q).sum(-1)


COLUMNS: Mapping[str, Callable[[Predictions], Tensor]] = {
    "nll": lambda x: -_of_token(x.every_column, x.targets),
    "logprob": lambda x: _of_token(x.log_p, x.targets),
    "rank": lambda x: _rank(x.logits, x.targets),
    "entropy": lambda x: _entropy(x.log_p, x.p),
    "sum_p2": lambda x: x.p.square().sum(-1),
    "top1_id": lambda x: x.logits.argmax(-1),
    "top1_logprob": lambda x: x.log_p.amax(-1),
    "correct": lambda x: (x.logits.argmax(-1) == x.targets.squeeze(-1)).float(),
    "ref_logprob": lambda x: _of_token(x.log_q, x.targets),
    "ref_rank": lambda x: _rank(x.ref_logits, x.targets),
    "ref_entropy": lambda x: _entropy(x.log_q, x.q),
    "kl": lambda x: _divergence(x.p, x.log_p, x.q, x.log_q),
    "reverse_kl": lambda x: _divergence(x.q, x.log_q, x.p, x.log_p),
    "kl_as_released": lambda x: (x.p * (x.p - x.log_q)).sum(-1),
}


def columns_of(predictions: Predictions, names: Iterable[str], trained: frozenset[str]) -> tuple[Tensor, ...]:
    """The named columns, [n] each; gradients flow through those that are ``trained`` alone."""
    found = {name: COLUMNS[name](predictions) for name in names if name in trained}
    told = predictions.detached()  # with the probabilities that are there by now
    return tuple(found[name] if name in found else COLUMNS[name](told) for name in names)
