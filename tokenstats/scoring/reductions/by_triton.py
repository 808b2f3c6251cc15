"""The sums of :mod:`tokenstats.scoring.reductions.by_torch` for whole rows of logits, each logit read once, by a Triton kernel.

One program takes one row, of both models, a stretch of columns after the other. Each lane keeps sums of its own over the
few columns of a stretch that it meets: the loop needs no exchange between lanes, and no float32 sum has many terms. At the
end of a stretch the lanes are joined, in float64. The last steps are :func:`tokenstats.scoring.reductions.by_torch.finish`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenstats.scoring.reductions.by_torch import Sums

_LANES, _WARPS = 1024, 8  # 85 registers a thread: three programs share a multiprocessor of an H100
_STRETCH = 16  # columns of a lane that are summed in float32
_STEP, _PADDING = 16, -1e38


@triton.jit
def _curved(e, x, delta):  # type: ignore[no-untyped-def]
    """e·f(δ), f(δ) = e^-δ - 1 + δ: by its series where that cancels. What overflows is no number, and not used."""
    near = tl.minimum(tl.maximum(delta, -1.0), 1.0)
    square = near * near
    even = ((square / 40320 + 1 / 720) * square + 1 / 24) * square + 0.5
    odd = ((square / 5040 + 1 / 120) * square + 1 / 6) * near
    direct = tl.exp(x - delta) - e + e * delta
    return tl.where(tl.abs(delta) < 1.0, e * (square * (even - odd)), direct)


@triton.jit
def _row_sums(  # type: ignore[no-untyped-def]
    logits,
    targets,
    sums,
    counts,
    rows,
    columns,
    row_stride,
    model_stride,
    MODELS: tl.constexpr,  # noqa: N803 (what Triton compiles in is written in capitals)
    LANES: tl.constexpr,  # noqa: N803
    STRETCH: tl.constexpr,  # noqa: N803
):
    """logits [M, N, V] → sums [7, M, N] float64 and counts [2, M, N]: the fields of ``Sums``, in their order.

    Tensors of the inner loop are [M, LANES], of the outer one [M]. Letters as in tokenstats.scoring.reductions.by_torch.
    """
    row = tl.program_id(0).to(tl.int64)
    model = tl.arange(0, MODELS)
    lane = tl.arange(0, LANES)[None, :]
    sign = 1.0 - 2.0 * model  # d = x_p - x_q is a sum over models with this sign
    here = logits + row * row_stride + model[:, None] * model_stride
    target = tl.load(here + tl.load(targets + row))  # [M, 1]
    # what has met no column yet is as if it had met one at -1e30; padding, at -1e38, is far below even that
    row_top = tl.full([MODELS], -1e30, tl.float32)
    row_total = tl.zeros([MODELS], tl.float64)
    row_weighted = tl.zeros([MODELS], tl.float64)
    row_squares = tl.zeros([MODELS], tl.float64)
    row_apart = tl.zeros([MODELS], tl.float64)
    row_curved = tl.zeros([MODELS], tl.float64)
    row_above = tl.zeros([MODELS], tl.int32)
    row_best = tl.zeros([MODELS], tl.int32)
    for stretch in range(0, columns, LANES * STRETCH):
        top = tl.full([MODELS, LANES], -1e30, tl.float32)
        total = tl.zeros([MODELS, LANES], tl.float32)
        weighted = tl.zeros([MODELS, LANES], tl.float32)
        squares = tl.zeros([MODELS, LANES], tl.float32)
        apart = tl.zeros([MODELS, LANES], tl.float32)
        curved = tl.zeros([MODELS, LANES], tl.float32)
        above = tl.zeros([MODELS, LANES], tl.int32)
        best = tl.zeros([MODELS, LANES], tl.int32)
        for first in range(stretch, min(stretch + LANES * STRETCH, columns), LANES):
            column = first + lane
            z = tl.load(here + column, mask=column < columns, other=-1e38)
            above += (z > target).to(tl.int32)
            best = tl.where(z > top, column, best)
            new = tl.maximum(top, z)
            shift, x = top - new, z - new
            e, scale = tl.exp(x), tl.exp(shift)
            weighted = (weighted + shift * total) * scale + e * x
            shift_d = tl.sum(shift * sign[:, None], 0)[None, :]
            d = tl.sum(x * sign[:, None], 0)[None, :]
            apart = (apart + shift_d * total) * scale + e * d
            if MODELS == 2:
                # float64: whatever is lost of d_y is lost of all δ alike
                at_target = tl.sum((target.to(tl.float64) - new.to(tl.float64)) * sign[:, None], 0)[None, :].to(tl.float32)
                curved = curved * scale + _curved(e, x, sign[:, None] * (d - at_target))
            squares = squares * scale * scale + e * e
            total = total * scale + e
            top = new
        # the lanes and what came before meet at the maximum of all
        stretch_top = tl.max(top, 1)
        row_best = tl.where(stretch_top > row_top, tl.min(tl.where(top == stretch_top[:, None], best, columns), 1), row_best)
        row_above += tl.sum(above, 1)
        new_top = tl.maximum(row_top, stretch_top)
        shift = top - new_top[:, None]
        scale = tl.exp(shift).to(tl.float64)
        shift_d = tl.sum(shift * sign[:, None], 0)[None, :]
        row_shift = row_top - new_top
        row_scale = tl.exp(row_shift).to(tl.float64)
        row_weighted = (row_weighted + row_shift * row_total) * row_scale
        row_weighted += tl.sum((weighted + shift * total) * scale, 1)
        row_apart = (row_apart + tl.sum(row_shift * sign, 0) * row_total) * row_scale
        row_apart += tl.sum((apart + shift_d * total) * scale, 1)
        row_curved = row_curved * row_scale + tl.sum(curved * scale, 1)
        row_squares = row_squares * row_scale * row_scale + tl.sum(squares * scale * scale, 1)
        row_total = row_total * row_scale + tl.sum(total * scale, 1)
        row_top = new_top
    out = row + model * rows
    step = MODELS * rows
    tl.store(sums + out[:, None], target.to(tl.float64))
    tl.store(sums + out + step, row_top.to(tl.float64))
    tl.store(sums + out + 2 * step, row_total)
    tl.store(sums + out + 3 * step, row_weighted)
    tl.store(sums + out + 4 * step, row_squares)
    tl.store(sums + out + 5 * step, row_apart)
    tl.store(sums + out + 6 * step, row_curved)
    tl.store(counts + out, row_above)
    tl.store(counts + out + step, row_best)


def room(models: int, rows: int, columns: int, device: torch.device) -> Tensor:
    """Where logits go: [M, N, W], W >= V a multiple of 16, so that rows are read in wide steps. Padding is never felt."""
    space = torch.empty(models, rows, -(-columns // _STEP) * _STEP, device=device)
    space[..., columns:] = _PADDING
    return space


def row_sums(logits: Tensor, targets: Tensor) -> Sums:
    """Sums over whole rows: ``logits`` [M, N, W] float32 from :func:`room`, ``targets`` [N] ids."""
    models, rows, columns = logits.shape
    assert logits.dtype == torch.float32, "half-precision logits have lost what a KL needs"
    assert logits.is_contiguous()
    assert columns % _STEP == 0
    sums = torch.empty(7, models, rows, dtype=torch.float64, device=logits.device)
    counts = torch.empty(2, models, rows, dtype=torch.int32, device=logits.device)
    if rows:
        _row_sums[(rows,)](
            *(logits, targets, sums, counts, rows, columns, logits.stride(1), logits.stride(0)),
            MODELS=models,
            LANES=min(_LANES, triton.next_power_of_2(columns)),
            STRETCH=_STRETCH,
            num_warps=_WARPS,
            enable_fp_fusion=True,
        )
    target, maximum, total, weighted, squares, apart, curved = sums
    above, best = counts.long()
    return Sums(target.float(), maximum.float(), total, weighted, squares, apart, curved, above, best)
