"""One part: tokens in, a table of statistics out. The same function whoever calls it: one process, many, or a cluster."""

from typing import Any

import numpy as np
import pyarrow as pa
import torch

from tokenstats.errors import InputError, StoreError, argument
from tokenstats.modeling.batches import Advance, Budget, PartTokens, on_device, run_batches
from tokenstats.schema import STATISTIC_BY_NAME, TOPK_COLUMNS, stats_schema
from tokenstats.scoring.pair import ModelPair


def score_part(
    tokens: pa.Table,
    pair: ModelPair,
    topk: int,
    score_all: bool,
    budget: Budget,
    advance: Advance = lambda real, padded: None,
    reference_states: torch.Tensor | None = None,
) -> tuple[pa.Table, dict[str, Any]]:
    """Statistics of one part of tokens, in the same rows, and the sums that the manifest adds up.

    Args:
        tokens: The part, with ``seq_id``, ``input_ids`` and ``is_target``.
        pair: The models.
        topk: How many of the likeliest ids to tell.
        score_all: Score all tokens, not the targets alone.
        budget: Padded tokens of a batch; it is lowered where memory runs out.
        advance: Told of each batch.
        reference_states: [n, H] the reference's hidden states of the n scored tokens, where its pass came before.
    """
    rows, seq_ids = PartTokens.of(tokens, score_all), tokens["seq_id"]
    ids, chosen, offsets = rows.ids, rows.chosen, rows.offsets
    check_fits(rows, pair, seq_ids)
    schema = stats_schema(pair.reference is not None, topk)
    order = np.cumsum(chosen) - 1

    def score(batch: torch.Tensor, targets: torch.Tensor, places: np.ndarray) -> dict[str, torch.Tensor]:
        states = None if reference_states is None else on_device(reference_states[order[places]], pair.device)
        return pair.score(batch, targets, topk, states)

    where, pieces, padded = run_batches(rows, score, pair.device, budget, pair.classes, advance)
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


def _column(field: pa.Field, values: np.ndarray, valid: np.ndarray, offsets: np.ndarray) -> pa.ListArray:
    if field.name in TOPK_COLUMNS:
        kind = field.type.value_type
        inner_offsets = np.concatenate([[0], np.cumsum(valid * values.shape[1])]).astype(np.int32)
        flat = pa.array(values[valid].ravel(), kind.value_type)
        inner = pa.ListArray.from_arrays(pa.array(inner_offsets), flat, type=kind, mask=pa.array(~valid))
    else:
        inner = pa.array(values, field.type.value_type, mask=~valid)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), inner)


def check_fits(rows: PartTokens, pair: ModelPair, seq_ids: pa.ChunkedArray) -> None:
    """Raise InputError, naming the sequence, for one that the models cannot read: too long, or with ids that they lack."""
    most = pair.max_positions
    if most is not None and len(rows.lengths) and rows.lengths.max() > most:
        row = int(rows.lengths.argmax())
        raise InputError(
            f"sequence {seq_ids[row]} has {rows.lengths[row]} tokens, but the model reads at most {most}; "
            f"compute into a new store with {argument('max_length', most)} or less"
        )
    strange = (rows.ids >= pair.words) | (rows.ids >= pair.vocabulary) & rows.chosen
    if strange.any():
        place = int(strange.argmax())
        row = int(np.searchsorted(rows.offsets, place, side="right")) - 1
        raise InputError(
            f"sequence {seq_ids[row]} holds id {rows.ids[place]}, but the model knows {min(pair.words, pair.vocabulary):,} "
            "tokens: its tokenizer has more; give the model an embedding for it, or leave such rows out"
        )


def _check_finite(array: np.ndarray, column: str, where: np.ndarray, offsets: np.ndarray, seq_ids: pa.ChunkedArray) -> None:
    bad = ~np.isfinite(array).reshape(len(array), -1).all(-1)
    if bad.any():
        place = int(where[bad.argmax()])
        row = int(np.searchsorted(offsets, place, side="right")) - 1
        raise StoreError(
            f"{column} of sequence {seq_ids[row]}, token {place - offsets[row]} is {array[bad.argmax()]}, not a finite number: "
            f"the model's logits overflow or hold NaN; try {argument('dtype', 'float32')}, or another checkpoint"
        )
