"""The numbers themselves: from logits to the columns of a scoring.

N = rows (one per predicted token), V = vocabulary. p is the scored model's distribution, q the reference's; natural
logarithms. All in float64: few rows come here, those that sums over blocks cannot do, and the tests that hold the sums to it.
"""

import torch
from torch import Tensor


def token_statistics(logits: Tensor, targets: Tensor, ref_logits: Tensor | None = None, topk: int = 0) -> dict[str, Tensor]:
    """Statistics of the predictions of ``targets``.

    Returns a tensor [N] per column (``topk_*``: [N, K]); columns of the reference only where there is one:

        logprob     log p(y)
        rank        #{v : z_v > z_y}
        entropy     -Σ p log p
        sum_p2      Σ p²
        top1_id     the lowest id among the largest logits; top1_logprob is its log-probability
        kl          Σ p (log p - log q)
        reverse_kl  Σ q (log q - log p)

    A logit of -inf is a probability of 0 and adds nothing; where q is 0 and p is not, kl is inf, and the caller refuses it.

    Args:
        logits: [N, V] of the scored model, at the positions that predict the targets.
        targets: [N] token ids, each below V.
        ref_logits: [N, V] of the reference, or None.
        topk: Keep the K most likely alternatives as well.
    """
    own = _distribution(logits, targets)
    log_p, p = own.pop("log_probs"), own.pop("probs")
    columns = {**own, "sum_p2": p.square().sum(-1), "top1_id": logits.argmax(-1).int()}
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
    return {name: column.float() if column.is_floating_point() else column for name, column in columns.items()}


def _distribution(logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    logits = logits.double()
    log_probs = logits.log_softmax(-1)
    probs = log_probs.exp()
    chosen = targets[:, None].long()
    return {
        "log_probs": log_probs,
        "probs": probs,
        "logprob": log_probs.gather(-1, chosen).squeeze(-1),
        "rank": (logits > logits.gather(-1, chosen)).sum(-1, dtype=torch.int32),
        "entropy": (probs * -log_probs).masked_fill(probs == 0, 0.0).sum(-1),  # 0 · log 0 is 0
    }


def _divergence(p: Tensor, log_p: Tensor, q: Tensor, log_q: Tensor) -> Tensor:
    """KL(p‖q) as Σ p (log p - log q) - p + q: both added sums are 1, and with them no term is negative."""
    terms = (p * (log_p - log_q)).masked_fill(p == 0, 0.0) - p + q
    return terms.sum(-1).clamp_min(0.0)
