"""The numbers themselves: from logits to the columns of a scoring.

N = rows (one per predicted token), V = vocabulary. p is the scored model's distribution, q the reference's; natural
logarithms; terms in float32 whatever the logits' own type, their sums over the vocabulary in float64: float32 sums of
150,000 terms are off by 3e-5, three times what the contract allows.
"""

import torch
from torch import Tensor


def token_statistics(logits: Tensor, targets: Tensor, ref_logits: Tensor | None = None, topk: int = 0) -> dict[str, Tensor]:
    """Statistics of the predictions of ``targets``.

    logits:     [N, V] of the scored model, at the positions that predict the targets
    targets:    [N] token ids, each below V
    ref_logits: [N, V] of the reference, or None
    topk:       keep the K most likely alternatives as well

    Returns a tensor [N] per column (``topk_*``: [N, K]); columns of the reference only where there is one:

        logprob     log p(y)
        rank        #{v : z_v > z_y}
        entropy     -Σ p log p
        sum_p2      Σ p²
        top1_id     the lowest id among the largest logits; top1_logprob is its log-probability
        kl          Σ p (log p - log q)
        reverse_kl  Σ q (log q - log p)

    A logit of -inf is a probability of 0 and adds nothing; where q is 0 and p is not, kl is inf, and the caller refuses it.
    """
    own = _distribution(logits, targets)
    log_p, p = own.pop("log_probs"), own.pop("probs")
    columns = {**own, "sum_p2": _sum(p.square()), "top1_id": logits.argmax(-1).int()}
    columns["top1_logprob"] = log_p.gather(-1, columns["top1_id"][:, None].long()).squeeze(-1)
    if topk:
        columns["topk_logprobs"], ids = log_p.topk(min(topk, log_p.shape[-1]), dim=-1)
        columns["topk_ids"] = ids.int()
    if ref_logits is not None:
        reference = _distribution(ref_logits, targets)
        log_q, q = reference.pop("log_probs"), reference.pop("probs")
        columns |= {f"ref_{name}": column for name, column in reference.items()}
        columns["kl"] = _divergence(p, log_p, q, log_q)
        columns["reverse_kl"] = _divergence(q, log_q, p, log_p)
    return columns


def _distribution(logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    logits = logits.float()
    below_top = logits - logits.amax(-1, keepdim=True)
    log_probs = below_top - _sum(below_top.exp()).log()[:, None]
    probs = log_probs.exp()
    chosen = targets[:, None].long()
    return {
        "log_probs": log_probs,
        "probs": probs,
        "logprob": log_probs.gather(-1, chosen).squeeze(-1),
        "rank": (logits > logits.gather(-1, chosen)).sum(-1, dtype=torch.int32),
        # 0 · log 0 is 0; the sum of non-negative terms cannot be negative, and neither may its float32
        "entropy": _sum((probs * -log_probs).masked_fill(probs == 0, 0.0)).clamp_min(0.0),
    }


def _divergence(p: Tensor, log_p: Tensor, q: Tensor, log_q: Tensor) -> Tensor:
    """KL(p‖q) as Σ p (log p - log q) - p + q.

    The two added sums cancel exactly in theory (both are 1). In float32 they make every term non-negative and take
    away the rounding of the normalisers, so that a KL of 1e-6 is still a number and not noise.
    """
    terms = (p * (log_p - log_q)).masked_fill(p == 0, 0.0) - p + q
    return _sum(terms).clamp_min(0.0)


def _sum(terms: Tensor) -> Tensor:
    return terms.sum(-1, dtype=torch.float64).float()
