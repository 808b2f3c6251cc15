"""What the token view draws a sequence from: plain values and arrays, ready for JSON.

Two parts, as they change at different times. :func:`row_payload` is the sequence itself: sent once. :func:`decisions_payload`
is what a rule or mask says about it: bit masks, so that a moved threshold sends kilobytes however long the sequence is.

Arrays are little-endian bytes in base64: float32 for numbers (NaN: not scored), int32 for ids and places, one bit a token for
flags (:func:`bits`). The page reads them with typed arrays.
"""

from base64 import b64encode
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tokenstats.errors import StoreError
from tokenstats.inspect.tokens.clusters import whole_clusters
from tokenstats.inspect.tokens.detokenize import Decoder, Span, visible
from tokenstats.inspect.tokens.messages import Message, messages_of
from tokenstats.inspect.tokens.reasons import Condition, Reason
from tokenstats.inspect.tokens.sequence import SequenceView
from tokenstats.schema import STATISTIC_BY_NAME, TOPK_COLUMNS

NO_TOKEN = -1
"""Stands in arrays of ids where there is none."""


def row_payload(view: SequenceView) -> dict[str, Any]:
    """A sequence of T tokens, its text in C pieces, and its statistics.

    A store whose tokenizer is missing is shown with ids in the place of text, and ``caveat`` says so.

    Returns:
        ``starts``: int32 [C + 1], where each piece begins among the tokens; ``texts``: C strings, harmless and to be set as
        text; ``messages``: each with ``start`` and ``end`` in tokens; ``ids``: int32 [T]; ``targets``: bits [T];
        ``statistics``: float32 [T] each; ``topk``: int32 and float32 [T · k]; ``labels``: what each id that occurs looks like.
    """
    messages = messages_of(view.role, view.is_target)
    topk = _topk(view)
    occurring = [view.ids, *_ids_of(view.statistics.get("top1_id")), *([topk[0]] if topk else [])]
    spans, labels, caveat = _texts(view, messages, np.unique(np.concatenate(occurring)))
    return {
        "number": view.number,
        "datasetRow": view.row,
        "seqId": view.seq_id,
        "truncated": view.truncated,
        "length": len(view),
        "scoring": view.scoring,
        "caveat": caveat,
        "starts": ints([span.start for span in spans] + [len(view)]),
        "texts": [span.text for span in spans],
        "messages": [_message(message) for message in messages],
        "ids": ints(view.ids),
        "targets": bits(view.is_target),
        "statistics": {name: floats(values) for name, values in view.statistics.items() if name in STATISTIC_BY_NAME},
        "topk": {"k": len(topk[0]) // max(1, len(view)), "ids": ints(topk[0]), "logprobs": floats(topk[1])} if topk else None,
        "labels": labels,
    }


def decisions_payload(
    view: SequenceView,
    name: str,
    *,
    reasons: Sequence[Reason] = (),
    weight: np.ndarray | None = None,
    other: SequenceView | None = None,
    other_name: str = "",
) -> dict[str, Any]:
    """What a rule or mask decided about the same sequence.

    Args:
        view: The sequence under the decisions.
        name: Of the rule or mask.
        reasons: For each clause, as :func:`~tokenstats.inspect.tokens.reasons.reasons_for` gives them for its n targets.
        weight: float32 [T] of a soft mask.
        other: The same sequence under the decisions that it is compared with.
        other_name: Of those.
    """
    texts = view.clauses or tuple(reason.text for reason in reasons)
    conditions = {reason.text: reason.conditions for reason in reasons}
    of_bit = [(view.reason >> np.uint16(bit) & np.uint16(1)).astype(bool) for bit in range(len(texts))]
    return {
        "number": view.number,
        "name": name,
        "kept": bits(view.keep),
        "protected": bits(view.protected),
        "clauses": [
            {"text": text, "dropped": bits(flags), "conditions": [_condition(c) for c in conditions.get(text, ())]}
            for text, flags in zip(texts, of_bit, strict=True)
        ],
        "weight": floats(weight) if weight is not None else None,
        "other": {"name": other_name, "kept": bits(other.keep)} if other is not None else None,
        "caveat": view.caveat,
    }


def floats(values: Iterable[float | None]) -> str:
    """float32 in base64; None as NaN."""
    return _encoded(np.array(values, np.float32))


def ints(values: Iterable[int]) -> str:
    """int32 in base64."""
    return _encoded(np.asarray(values, np.int32))


def bits(flags: np.ndarray) -> str:
    """Booleans [n] in base64: flag i is bit ``i % 8`` of byte ``i // 8``."""
    return _encoded(np.packbits(flags, bitorder="little"))


def runs(values: np.ndarray) -> dict[str, str]:
    """Numbers [n] of which neighbours are mostly equal: where each run begins, and its value."""
    fresh = np.ones(len(values), bool)
    fresh[1:] = ~((values[1:] == values[:-1]) | (np.isnan(values[1:]) & np.isnan(values[:-1])))
    return {"starts": ints(np.flatnonzero(fresh)), "values": floats(values[fresh])}


def _encoded(values: np.ndarray) -> str:
    return b64encode(values.astype(values.dtype.newbyteorder("<")).tobytes()).decode("ascii")


def _message(message: Message) -> dict[str, Any]:
    first, end = message.replies
    return {
        "start": message.start,
        "body": message.body,
        "end": message.end,
        "role": message.role,
        "targets": message.targets,
        "reply": first if end > first else None,
    }


def _condition(condition: Condition) -> dict[str, Any]:
    return {
        "text": condition.text,
        "measure": condition.measure,
        "symbol": condition.symbol,
        "scope": condition.scope,
        # a column's values are there already; whatever else is measured comes along
        "values": None if condition.measure in STATISTIC_BY_NAME else floats(condition.values),
        "limits": runs(condition.limits),
        "holds": bits(condition.holds),
    }


def _texts(view: SequenceView, messages: list[Message], ids: np.ndarray) -> tuple[list[Span], dict[int, str], str | None]:
    """Pieces of harmless text, a label for each id, and why they are no text where they are not."""
    try:
        decoder: Decoder = view.decoder
    except StoreError as why:
        spans = [Span(i, i + 1, f"⟨{token}⟩") for i, token in enumerate(view.ids.tolist())]
        return spans, {int(i): f"⟨{i}⟩" for i in ids if i != NO_TOKEN}, f"tokens are shown as ids: {why}"
    clusters = whole_clusters(decoder.spans(view.ids.tolist()), [message.start for message in messages])
    spans = [Span(c.start, c.end, visible(c.text, newline="\n") if c.text.strip(" ") else c.text or "∅") for c in clusters]
    return spans, {int(i): decoder.visible(int(i)) for i in ids if i != NO_TOKEN}, None


def _topk(view: SequenceView) -> tuple[np.ndarray, np.ndarray] | None:
    """Ids and log-probabilities [T · k] of the most likely tokens; None where they were not stored."""
    ids, logprobs = (view.statistics.get(column) for column in TOPK_COLUMNS)
    if ids is None or logprobs is None:
        return None
    k = max((len(of_token) for of_token in ids if of_token is not None), default=0)
    nothing_ids, nothing = [NO_TOKEN] * k, [np.nan] * k
    return (
        np.array([of_token or nothing_ids for of_token in ids], np.int32).reshape(-1),
        np.array([of_token or nothing for of_token in logprobs], np.float32).reshape(-1),
    )


def _ids_of(column: Sequence[int | None] | None) -> list[np.ndarray]:
    return [] if column is None else [np.array([NO_TOKEN if i is None else i for i in column], np.int32)]
