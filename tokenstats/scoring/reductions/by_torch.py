"""Statistics from logits that come a block of vocabulary columns at a time: no [N, V] tensor ever exists.

M = models (1, or 2: the scored model and its reference), N = rows (one per predicted token), k = columns of a block.

Per row and model these sums are enough for every column of a scoring. z are logits, m their maximum so far, y the target,
x = z - m, e = exp(x), d = x_p - x_q, δ = d - d_y (for the reference: d_y - d), f(δ) = exp(-δ) - 1 + δ:

    total Σe    weighted Σe·x    squares Σe²    apart Σe·d    curved Σe·f(δ)    above #{z > z_y}    best argmax z

Terms are float32. Runs of a hundred or so are summed in float32, the runs in float64: a float32 sum of thousands of terms
is off by 5e-7 of itself, which a KL of 13 nats shows in its fifth decimal. When a later block raises the maximum, what is
there already is brought to the new one: e' = e·exp(m - m'), x' = x + (m - m').

``curved`` is what a small KL is taken from, where it is a number: all its terms are at least 0, where those of ``apart`` cancel
and leave 2e-7 of noise. Models that hardly differ anywhere differ at y by about as much as elsewhere. Where they do not, as
where training moved that word alone, δ is as large as at y and its terms cancel too: such rows are left as no number, to be
done again from whole logits. So a KL is within a twentieth of itself, or within 2e-9 nats, of float64's from the same logits.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_ROWS_IN_CACHE = 128  # rows of a block that go through all its steps together: still in the cache at the last one
_RUN = 128  # terms that are summed in float32
_FAR = 60.0  # nats; where models are farther apart anywhere, float32 has no exp of it, and ``curved`` is not used
_NEAR = 0.5  # nats: a KL below is taken from ``curved``, where the normalisers are no farther apart
_ROUNDED, _CANCELLED = 5e-8, 2e-7  # noise in ``curved``, as a share of u and of u² that cancels; in ``apart`` of about a nat
_LEAST, _SHARE = 1e-9, 0.05  # noise in a KL is let be below so many nats, or below that share of it


@dataclass
class Sums:
    """[M, N] each; ``target`` is the logit of the token itself, ``topk`` the K largest logits and their ids [M, N, K]."""

    target: Tensor
    maximum: Tensor
    total: Tensor
    weighted: Tensor
    squares: Tensor
    apart: Tensor
    curved: Tensor
    above: Tensor
    best: Tensor

    @classmethod
    def start(cls, target: Tensor) -> "Sums":
        """Nothing added yet; ``target`` [M, N] float32 logits of the targets."""
        highest = torch.full_like(target, -torch.inf)
        total, weighted, squares, apart, curved = torch.zeros(5, *target.shape, dtype=torch.float64, device=target.device)
        above, best = torch.zeros(2, *target.shape, dtype=torch.int64, device=target.device)
        return cls(target, highest, total, weighted, squares, apart, curved, above, best)


class BlockBuffer:
    """Where blocks of logits go, one after the other: contiguous, so that they take the same place in the cache."""

    def __init__(self, models: int, logits: int, device: torch.device):
        """logits: rows · columns of the largest block."""
        self.models = models
        self._space = torch.empty(models * logits, device=device)

    def __call__(self, rows: int, columns: int) -> Tensor:
        """Room for [models, rows, columns] logits, which the next call takes again."""
        return self._space[: self.models * rows * columns].view(self.models, rows, columns)


def add_block(sums: Sums, logits: Tensor, first_column: int, rows: slice) -> None:
    """Add a block of columns for some rows. ``logits`` [M, len(rows), k] float32 is used up: it holds other numbers after.

    Columns must come in ascending order: among equal logits the lowest id is the best.
    """
    e, products = torch.empty(2, len(logits), min(_ROWS_IN_CACHE, logits.shape[1]), logits.shape[2], device=logits.device)
    for start in range(0, logits.shape[1], _ROWS_IN_CACHE):
        x = logits[:, start : start + _ROWS_IN_CACHE]
        count = x.shape[1]
        _add_rows(
            sums, x, e[:, :count], products[:, :count], first_column, slice(rows.start + start, rows.start + start + count)
        )


def _add_rows(sums: Sums, x: Tensor, e: Tensor, products: Tensor, first_column: int, rows: slice) -> None:
    old, top = sums.maximum[:, rows], x.amax(-1)
    _update_best(sums, x, top, old, first_column, rows)
    torch.gt(x, sums.target[:, rows, None], out=e)  # as numbers: sums of booleans are slow
    sums.above[:, rows] += e.sum(-1).long()
    new = torch.maximum(old, top)
    _rescale(sums, old, new, rows)
    sums.maximum[:, rows] = new
    x.sub_(new[..., None])
    torch.exp(x, out=e)
    sums.total[:, rows] += _sum(e)
    sums.weighted[:, rows] += _sum(torch.mul(e, x, out=products))
    sums.squares[:, rows] += _sum(torch.mul(e, e, out=products))
    if len(x) == 2:
        d = torch.sub(x[0], x[1], out=x[0])
        sums.apart[:, rows] += _sum(torch.mul(e, d, out=products))
        delta = d.sub_(_apart_at_target(sums.target[:, rows], new).float()[:, None])
        far = torch.maximum(delta.amax(-1), -delta.amin(-1)) > _FAR
        sums.curved[:, rows] += torch.where(far, torch.inf, 0.0)  # not to be used
        delta.clamp_(-_FAR, _FAR)
        torch.expm1(torch.neg(delta, out=x[1]), out=products[0]).add_(delta)
        torch.expm1(delta, out=products[1]).sub_(delta)
        sums.curved[:, rows] += _sum(products.mul_(e))


def _apart_at_target(target: Tensor, maximum: Tensor) -> Tensor:
    """[N] d_y of two models' [2, N] logits, float64: whatever is lost of it is lost of all δ alike."""
    of_models = target.double() - maximum.double()
    return of_models[0] - of_models[1]


def _sum(terms: Tensor) -> Tensor:
    whole = terms.shape[-1] // _RUN * _RUN
    runs = terms[..., :whole].unflatten(-1, (-1, _RUN)).sum(-1)
    return runs.sum(-1, dtype=torch.float64) + terms[..., whole:].sum(-1).double()


def _update_best(sums: Sums, z: Tensor, top: Tensor, old: Tensor, first_column: int, rows: slice) -> None:
    for model, better in enumerate(top > old):
        where = better.nonzero()[:, 0]
        if len(where):
            sums.best[model, where + rows.start] = z[model, where].max(-1).indices + first_column


def _rescale(sums: Sums, old: Tensor, new: Tensor, rows: slice) -> None:
    """Bring the sums from the old maximum to the new one."""
    shift = (old - new).double()
    scale = shift.exp()
    shift = torch.where(torch.isinf(shift), 0.0, shift)  # the first block: all sums are 0
    total = sums.total[:, rows]
    shift_apart = shift[:1] - shift[1:] if len(shift) == 2 else shift
    sums.apart[:, rows] = (sums.apart[:, rows] + shift_apart * total) * scale
    sums.weighted[:, rows] = (sums.weighted[:, rows] + shift * total) * scale
    sums.curved[:, rows] *= scale
    sums.squares[:, rows] *= scale.square()
    sums.total[:, rows] = total * scale


def finish(sums: Sums) -> dict[str, Tensor]:
    """The columns of a scoring, [N] each, from the sums over all columns of the vocabulary.

    entropy = ln Σe - Σe·x / Σe         sum_p2 = Σe² / (Σe)²         logprob = (z_y - m) - ln Σe
    kl = Σ e_p·d / Σe_p - ln(Σe_p / Σe_q), and its mirror; where the models are near, with u = d_y - ln(Σe_p / Σe_q),
    it is Σ e_p·f(δ) / Σe_p - f(-u), in which nothing cancels
    """
    log_total = sums.total.log()
    entropy = (log_total - sums.weighted / sums.total).clamp_min(0.0)
    logprob = (sums.target.double() - sums.maximum.double()) - log_total
    columns = {
        "logprob": logprob[0],
        "rank": sums.above[0].int(),
        "entropy": entropy[0],
        "sum_p2": (sums.squares / sums.total.square())[0],
        "top1_id": sums.best[0].int(),
        "top1_logprob": -log_total[0],
    }
    if len(sums.target) == 2:
        kl, reverse_kl = _divergences(sums)
        columns |= {
            "ref_logprob": logprob[1],
            "ref_rank": sums.above[1].int(),
            "ref_entropy": entropy[1],
            "kl": kl.clamp_min(0.0),
            "reverse_kl": reverse_kl.clamp_min(0.0),
        }
    return {name: column.float() if column.is_floating_point() else column for name, column in columns.items()}


def _divergences(sums: Sums) -> tuple[Tensor, Tensor]:
    """[N] KL(p‖q) and KL(q‖p) in nats, float64; NaN where rounding has left too little of them."""
    apart, curved = sums.apart / sums.total, sums.curved / sums.total
    ratio = (sums.total[0] / sums.total[1]).log()
    u = _apart_at_target(sums.target, sums.maximum) - ratio
    kl, reverse_kl = apart[0] - ratio, ratio - apart[1]
    near = sums.curved.isfinite().all(0) & (u.abs() < _NEAR) & (kl < _NEAR) & (reverse_kl < _NEAR)
    kl = torch.where(near, curved[0] - (u.expm1() - u), kl)
    reverse_kl = torch.where(near, curved[1] - ((-u).expm1() + u), reverse_kl)
    noise = torch.where(near, _ROUNDED * u.abs() + _CANCELLED * u.square(), _CANCELLED)
    lost = (noise > _LEAST) & (noise > _SHARE * torch.minimum(kl, reverse_kl))
    return kl.masked_fill(lost, torch.nan), reverse_kl.masked_fill(lost, torch.nan)
