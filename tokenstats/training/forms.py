"""The forms in which other trainers read what is learned. Loads no torch.

    labels      input_ids, attention_mask, labels (-100: not learned)           TRL, transformers, Axolotl, Unsloth, …
    loss-mask   input_ids, loss_mask (1: learned)                               SkyRL, and verl through a dataset class
    weights     input_ids, attention_mask, labels, weights (0: not learned)     verl through a dataset class, Tinker

Plain lists of int32, int8 and float32. A new form is an entry of ``FORMS``, and its columns one of :func:`form_table`.
"""

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from tokenstats.errors import InputError, argument
from tokenstats.store import Store
from tokenstats.store.lists import as_lists
from tokenstats.training import guides
from tokenstats.training.options import ExportOptions
from tokenstats.training.rows import IGNORED, ChosenMask, LearnedPart, choose_mask, read_parts

if TYPE_CHECKING:
    from datasets import Dataset

_IDS, _FLAGS, _FLOATS = pa.list_(pa.int32()), pa.list_(pa.int8()), pa.list_(pa.float32())
_LABELS = pa.schema([("input_ids", _IDS), ("attention_mask", _FLAGS), ("labels", _IDS)])
FORMS = {
    guides.LABELS: _LABELS,
    guides.LOSS_MASK: pa.schema([("input_ids", _IDS), ("loss_mask", _FLAGS)]),
    guides.WEIGHTS: _LABELS.append(pa.field("weights", _FLOATS)),
}


def form_table(part: LearnedPart, rows: np.ndarray, schema: pa.Schema) -> pa.Table:
    """The chosen rows of a part, boolean [R], as a table of one form."""
    tokens, lengths = np.repeat(rows, part.lengths), part.lengths[rows]
    ids, keep = part.ids[tokens], part.keep[tokens]
    flags = keep.astype(np.int8)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    values = {
        "input_ids": ids,
        "attention_mask": np.ones(len(ids), np.int8),
        "labels": np.where(keep, ids, np.int32(IGNORED)),
        "loss_mask": flags,
        "assistant_masks": flags,
        "weights": flags if part.weight is None else part.weight[tokens],
    }
    columns = [as_lists(values[f.name].astype(f.type.value_type.to_pandas_dtype(), copy=False), offsets) for f in schema]
    return pa.table(columns, schema=schema)


def to_dataset(store: Store, mask: str | None = None, *, form: str | None = None, ignore_weights: bool = False) -> "Dataset":
    """A store's rows as a ``datasets.Dataset`` in memory; a large store is better exported to files.

    Args:
        store: The store.
        mask: Whose tokens are learned; None or "none" is plain fine-tuning on all targets.
        form: ``labels`` (the default), ``loss-mask`` or ``weights``.
        ignore_weights: Take a mask that weighs in a form that can only say which tokens are kept.

    Returns:
        Rows with something to learn, in the order of the store, in the columns of the form.

    Raises:
        InputError: ``datasets`` is not installed, or the form would lose the mask's weights.
        StoreError: The mask is not there, or a part is damaged.
    """
    try:
        from datasets import Dataset
    except ImportError:
        raise InputError("to_dataset needs the library datasets; install it with: pip install 'tokenstats[hub]'") from None
    form, _ = ExportOptions(form=form, ignore_weights=ignore_weights).form_and_trainer
    chosen = choose_mask(store, mask)
    check_weights(chosen, form, ignore_weights)
    parts = read_parts(store, chosen, with_weights=not ignore_weights)
    return Dataset(pa.concat_tables(form_table(part, part.has_learned, FORMS[form]) for part in parts))


def schema_of(form: str, compat: str | None = None) -> pa.Schema:
    """The columns of a form; ``compat`` trl-legacy adds ``assistant_masks``."""
    return FORMS[form] if compat is None else FORMS[form].append(pa.field("assistant_masks", _FLAGS))


def check_weights(mask: ChosenMask, form: str, ignore_weights: bool) -> None:
    """Raise InputError where a form would lose a mask's weights unasked, or there are none to ignore."""
    if not mask.weighted and ignore_weights:
        why = f"the mask {mask.title!r} does not weigh its tokens; leave it out"
        raise InputError(f"{argument('ignore_weights')} would do nothing: {why}")
    if mask.weighted and form != guides.WEIGHTS and not ignore_weights:
        raise InputError(
            f"mask {mask.name!r} weighs its tokens, and the form {form} would lose the weights; choose "
            f"{argument('form', guides.WEIGHTS)}, train with 'tokenstats train', or take which tokens are kept alone "
            f"({argument('ignore_weights', True)})"
        )
