"""One part: tokens in, a table of statistics out. The same function whoever calls it: one process, many, or a cluster."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from tokenstats.errors import InputError, StoreError
from tokenstats.schema import STATISTIC_BY_NAME, TOPK_COLUMNS, stats_schema
from tokenstats.scoring.batches import pad, plan_batches
from tokenstats.scoring.pair import ModelPair


@dataclass
class Budget:
    """Padded tokens in one forward pass. Halved where memory runs out, and never raised again."""

    tokens: int

    def halve(self, error: Exception, rows: int, longest: int) -> None:
        if rows == 1:
            raise InputError(
                f"memory ran out over a single sequence of {longest} tokens ({str(error).splitlines()[0][:120]}); cut it with "
                "--max-length, take --dtype bfloat16, or a device with more memory"
            ) from error
        self.tokens = max(1, min(self.tokens, rows * longest) // 2)


def score_part(
    tokens: pa.Table,
    pair: ModelPair,
    topk: int,
    score_all: bool,
    budget: Budget,
    advance: Callable[[int, int], None] = lambda real, padded: None,
    reference_states: torch.Tensor | None = None,
) -> tuple[pa.Table, dict[str, Any]]:
    """Statistics of one part of tokens, in the same rows, and the sums that the manifest adds up.

    advance:          called with the tokens of each batch, without and with padding
    reference_states: [n, H] the reference's hidden states of the n scored tokens, where its pass came before
    """
    ids, chosen, offsets = chosen_tokens(tokens, score_all)
    lengths = np.diff(offsets)
    seq_ids = tokens["seq_id"]
    _check_lengths(lengths, pair.max_positions, seq_ids)
    schema = stats_schema(pair.reference is not None, topk)
    where, pieces, padded = _score_batches(ids, chosen, offsets, pair, topk, budget, advance, reference_states)
    values: dict[str, np.ndarray] = {}
    for column in list(pieces[0]):
        # one copy from the device for a part, not one for a batch: nothing waits on the way
        array = torch.cat([piece.pop(column) for piece in pieces]).cpu().numpy()
        _check_finite(array, column, where, offsets, seq_ids)
        values[column] = np.zeros((len(ids), *array.shape[1:]), array.dtype)
        values[column][where] = array
    table = pa.table(
        [seq_ids.combine_chunks(), *(_column(field, values[field.name], chosen, offsets) for field in list(schema)[1:])],
        schema=schema,
    )
    floats = [c for c in values if c in STATISTIC_BY_NAME and STATISTIC_BY_NAME[c].is_float]
    sums = {c: float(values[c][chosen].sum(dtype=np.float64)) for c in floats}
    return table, {"scored": int(chosen.sum()), "padded": padded, "tokens": len(ids), "sums": sums}


def chosen_tokens(tokens: pa.Table, score_all: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of a part: all ids, which of them are scored, and where rows begin. The first of a row has no prediction."""
    offsets = tokens["input_ids"].combine_chunks().offsets.to_numpy()
    ids = tokens["input_ids"].combine_chunks().flatten().to_numpy()
    chosen = tokens["is_target"].combine_chunks().flatten().to_numpy(zero_copy_only=False).copy()
    if score_all:
        chosen[:] = True
    chosen[offsets[:-1]] = False
    return ids, chosen, offsets


def _score_batches(
    ids: np.ndarray,
    chosen: np.ndarray,
    offsets: np.ndarray,
    pair: ModelPair,
    topk: int,
    budget: Budget,
    advance: Callable[[int, int], None],
    reference_states: torch.Tensor | None,
) -> tuple[np.ndarray, list[dict[str, torch.Tensor]], int]:
    """Places of the scored tokens in the order they were scored, their columns batch by batch, and all tokens padded."""
    lengths = np.diff(offsets)
    where, pieces, padded = [], [], 0
    order = np.cumsum(chosen) - 1
    left = plan_batches(lengths, budget.tokens, pair.depends_on_width)[::-1]
    while left:
        rows = left.pop()
        spans = [slice(offsets[r], offsets[r + 1]) for r in rows]
        batch, targets = pad([ids[s] for s in spans], 0).long(), pad([chosen[s] for s in spans], False)
        places = np.concatenate([np.flatnonzero(chosen[s]) + s.start for s in spans])
        states = None if reference_states is None else on_device(reference_states[order[places]], pair.device)
        try:
            pieces.append(pair.score(on_device(batch, pair.device), on_device(targets, pair.device), topk, states))
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            budget.halve(error, len(rows), batch.shape[1])
            rest = np.concatenate([rows, *left[::-1]])
            again = plan_batches(lengths[rest], budget.tokens, pair.depends_on_width)
            left = [rest[batch] for batch in again][::-1]
            torch.cuda.empty_cache()
            continue
        where.append(places)
        padded += batch.numel()
        advance(int(lengths[rows].sum()), batch.numel())
    return np.concatenate(where), pieces, padded


def on_device(batch: torch.Tensor, device: torch.device) -> torch.Tensor:
    return batch.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else batch.to(device)


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)  # the CPU's allocator


def _column(field: pa.Field, values: np.ndarray, valid: np.ndarray, offsets: np.ndarray) -> pa.ListArray:
    if field.name in TOPK_COLUMNS:
        kind = field.type.value_type
        inner_offsets = np.concatenate([[0], np.cumsum(valid * values.shape[1])]).astype(np.int32)
        flat = pa.array(values[valid].ravel(), kind.value_type)
        inner = pa.ListArray.from_arrays(pa.array(inner_offsets), flat, type=kind, mask=pa.array(~valid))
    else:
        inner = pa.array(values, field.type.value_type, mask=~valid)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), inner)


def _check_lengths(lengths: np.ndarray, most: int | None, seq_ids: pa.ChunkedArray) -> None:
    if most is not None and len(lengths) and lengths.max() > most:
        row = int(lengths.argmax())
        raise InputError(
            f"sequence {seq_ids[row]} has {lengths[row]} tokens, but the model reads at most {most}; "
            f"compute into a new store with --max-length {most} or less"
        )


def _check_finite(array: np.ndarray, column: str, where: np.ndarray, offsets: np.ndarray, seq_ids: pa.ChunkedArray) -> None:
    bad = ~np.isfinite(array).reshape(len(array), -1).all(-1)
    if bad.any():
        place = int(where[bad.argmax()])
        row = int(np.searchsorted(offsets, place, side="right")) - 1
        raise StoreError(
            f"{column} of sequence {seq_ids[row]}, token {place - offsets[row]} is {array[bad.argmax()]}, not a finite number: "
            "the model's logits overflow or hold NaN; try --dtype float32, or another checkpoint"
        )
