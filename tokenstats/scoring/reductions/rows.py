"""From hidden states to statistics: the head's product and the sums over the vocabulary, without a [N, V] tensor.

    CPU             blocks of columns that stay in the cache; sums by numba where it is installed, else by torch
    CUDA            chunks of whole rows, read once by a Triton kernel; without Triton, blocks of columns by torch

Every way fills the same :class:`~tokenstats.scoring.reductions.by_torch.Sums`. ``reduction()`` says which one a device takes.
"""

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn.functional import pad

from tokenstats.modeling.head import SplitModel
from tokenstats.scoring.reductions import by_torch
from tokenstats.scoring.reductions.by_torch import BlockBuffer, Sums, finish
from tokenstats.scoring.reductions.whole_logits import token_statistics

_ROWS, _COLUMNS = {"cpu": 1024, "cuda": 4096}, {"cpu": 2048, "cuda": 8192}
_CHUNK = 1 << 27
"""Logits of a chunk of whole rows: 512 MiB in float32 for each model."""
_ROWS_DONE_AGAIN = 64

AddBlock = Callable[[Sums, Tensor, int, slice], None]


def reduction(device: torch.device) -> str:
    """How the sums over the vocabulary are taken on a device: ``triton``, ``numba`` or ``torch``."""
    if device.type == "cuda":
        return "triton" if find_spec("triton") is not None else "torch"
    return "numba" if device.type == "cpu" and find_spec("numba") is not None else "torch"


def row_statistics(
    halves: list[SplitModel], hidden: list[Tensor], targets: Tensor, vocabulary: int, topk: int = 0, way: str | None = None
) -> dict[str, Tensor]:
    """Columns of a scoring for N rows.

    The same as :func:`~tokenstats.scoring.reductions.whole_logits.token_statistics` of whole logits, which also does those rows
    again whose sums came out as no number: a logit of -inf is a probability of 0, and an infinite KL is one.

    Args:
        halves: The scored model, and perhaps its reference.
        hidden: Of each, the hidden states [N, H] that predict the targets (its logits [N, V] where it cannot be split).
        targets: [N] token ids.
        vocabulary: Columns of the logits that count; what lies beyond pads the embedding.
        topk: How many of the likeliest ids to tell.
        way: The :func:`reduction` to take, where not the device's own.
    """
    way = way or reduction(targets.device)
    step = max(1, _CHUNK // vocabulary) if way == "triton" or not all(h.in_columns for h in halves) else max(1, len(targets))
    pieces = []
    for start in range(0, max(1, len(targets)), step):
        rows = slice(start, start + step)
        pieces.append(_chunk_statistics(halves, [h[rows] for h in hidden], targets[rows], vocabulary, topk, way))
    return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}


def _chunk_statistics(
    halves: list[SplitModel], hidden: list[Tensor], targets: Tensor, vocabulary: int, topk: int, way: str
) -> dict[str, Tensor]:
    topk = min(topk, vocabulary)
    if way == "triton":
        columns, again = _by_triton(halves, hidden, targets, vocabulary, topk), torch.zeros_like(targets, dtype=torch.bool)
    else:
        columns, again = _by_blocks(halves, hidden, targets, vocabulary, topk, _adder(way))
    for column in columns.values():
        again |= ~column[:, None].isfinite().flatten(1).all(-1)
    failed = again.nonzero()[:, 0]
    for rows in failed.split(_ROWS_DONE_AGAIN) if len(failed) else ():  # of nothing, split makes one empty piece
        logits = [half.logits(h[rows])[:, :vocabulary] for half, h in zip(halves, hidden, strict=True)]
        truth = token_statistics(logits[0], targets[rows], logits[1] if len(logits) == 2 else None, topk)
        for name in columns:
            columns[name][rows] = truth[name]
    return columns


def _adder(way: str) -> AddBlock:
    if way == "torch":
        return by_torch.add_block
    from tokenstats.scoring.reductions import by_numba

    return by_numba.add_block


def _by_triton(
    halves: list[SplitModel], hidden: list[Tensor], targets: Tensor, vocabulary: int, topk: int
) -> dict[str, Tensor]:
    from tokenstats.scoring.reductions.by_triton import room, row_sums

    padded = room(len(halves), len(targets), vocabulary, targets.device)
    logits = padded[..., :vocabulary]
    for half, rows, out in zip(halves, hidden, logits, strict=True):
        if half.in_columns:
            half.columns(rows, slice(0, vocabulary), out)
        else:
            out.copy_(half.logits(rows)[:, :vocabulary])
    sums = row_sums(padded, targets)
    best = TopK(len(targets), topk, targets.device)
    best.add(logits[0], 0, slice(0, len(targets)))
    return finish(sums) | best.columns(sums)


def _by_blocks(
    halves: list[SplitModel], hidden: list[Tensor], targets: Tensor, vocabulary: int, topk: int, add: AddBlock
) -> tuple[dict[str, Tensor], Tensor]:
    """The columns, and [N] which rows must be done again: those whose target's logit came out otherwise in its block.

    A rank counts logits above the target's own, which is needed before its block comes by. A product for the targets alone
    gives it, to the last bit where it has the shape of all others: hence the targets are filled up to a block, and the last
    block begins early enough to be a whole one.
    """
    device = targets.device
    most = _ROWS.get(device.type, 1024)
    # blocks of about equal size: products of the few rows that would be left at the end are slower, and round otherwise
    step = max(1, -(-len(targets) // max(1, -(-len(targets) // most))))
    width = _COLUMNS.get(device.type, 2048)
    width = vocabulary if vocabulary <= 2 * width else width
    blocks = [slice(s, min(s + step, len(targets))) for s in range(0, len(targets), step)]
    # a head that gives only whole rows is run once; the others are asked block by block
    whole = [None if half.in_columns else half.logits(rows) for half, rows in zip(halves, hidden, strict=True)]
    room = BlockBuffer(len(halves), step * max(width, step), device)

    def fill(rows: slice, columns: slice | Tensor, count: int) -> Tensor:
        block = room(rows.stop - rows.start, count)
        for half, states, ready, out in zip(halves, hidden, whole, block, strict=True):
            if ready is None:
                half.columns(states[rows], columns, out)
            else:
                out.copy_(ready[rows, columns])
        return block

    sums = Sums.start(torch.empty(len(halves), len(targets), device=device))
    best = TopK(len(targets), topk, device)
    again = torch.zeros(len(targets), dtype=torch.bool, device=device)
    if width < vocabulary:
        for rows in blocks:
            ids = pad(targets[rows], (0, max(0, width - (rows.stop - rows.start))))
            sums.target[:, rows] = fill(rows, ids, len(ids)).diagonal(dim1=1, dim2=2)
    for first in range(0, vocabulary, width):
        start = min(first, vocabulary - width)
        for rows in blocks:
            logits = fill(rows, slice(start, start + width), width)[..., first - start :].contiguous()
            _meet_targets(sums, logits, targets[rows] - first, rows, again, everywhere=width == vocabulary)
            best.add(logits[0], first, rows)
            add(sums, logits, first, rows)
    return finish(sums) | best.columns(sums), again


def _meet_targets(sums: Sums, logits: Tensor, place: Tensor, rows: slice, again: Tensor, everywhere: bool) -> None:
    """Compare the targets' logits with those of the block they lie in, or take them from there where it is the only one."""
    if everywhere:
        sums.target[:, rows] = logits.gather(-1, place.expand(len(logits), -1)[..., None])[..., 0]
        return
    here = ((place >= 0) & (place < logits.shape[-1])).nonzero()[:, 0]
    if len(here):
        again[here + rows.start] = (logits[:, here, place[here]] != sums.target[:, here + rows.start]).any(0)


class TopK:
    """The K largest logits of each row and their ids, kept while blocks of columns go by."""

    def __init__(self, rows: int, k: int, device: torch.device):
        self.values = torch.full((rows, k), -torch.inf, device=device)
        self.ids = torch.zeros(rows, k, dtype=torch.int64, device=device)

    def add(self, logits: Tensor, first_column: int, rows: slice) -> None:
        """Look at a block of logits of the scored model."""
        k = self.values.shape[1]
        if k:
            values, places = logits.topk(min(k, logits.shape[1]))
            values, ids = torch.cat([self.values[rows], values], 1), torch.cat([self.ids[rows], places + first_column], 1)
            self.values[rows], order = values.topk(k)
            self.ids[rows] = ids.gather(1, order)

    def columns(self, sums: Sums) -> dict[str, Tensor]:
        """The two columns; none where K is 0."""
        if not self.values.shape[1]:
            return {}
        log_probs = self.values.double() - sums.maximum[0, :, None].double() - sums.total[0, :, None].log()
        return {"topk_logprobs": log_probs.float(), "topk_ids": self.ids.int()}
