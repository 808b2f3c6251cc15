"""The columns in which other trainers read what is learned: plain lists of int32, int8 and float32. Loads no torch.

Which columns a form has, and who reads it, stands in guides.py: a new form is an entry of ``FORMS`` there, a new column one of
``COLUMNS`` here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from tokenstats.errors import InputError, argument
from tokenstats.store import Store
from tokenstats.store.lists import as_lists
from tokenstats.training.guides import FORMS, WEIGHTS
from tokenstats.training.options import ExportOptions
from tokenstats.training.rows import IGNORED, ChosenMask, LearnedPart, choose_mask, read_parts

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Column:
    """A column of lists, as long as ``input_ids``.

    Attributes:
        type: Of a token's value.
        meaning: What the dataset card says of it.
        values: [N] of the tokens of a part.
    """

    type: pa.DataType
    meaning: str
    values: Callable[[LearnedPart], np.ndarray]


def _flags(part: LearnedPart) -> np.ndarray:
    return part.keep.astype(np.int8)


COLUMNS = {
    "input_ids": Column(pa.int32(), "int32 token ids", lambda part: part.ids),
    "attention_mask": Column(pa.int8(), "int8, 1 everywhere", lambda part: np.ones(len(part.ids), np.int8)),
    "labels": Column(
        pa.int32(),
        "int32 token ids, -100 where a token is not learned",
        lambda part: np.where(part.keep, part.ids, np.int32(IGNORED)),
    ),
    "loss_mask": Column(pa.int8(), "int8, 1 where a token is learned, else 0; as long as input_ids", _flags),
    "assistant_masks": Column(
        pa.int8(), "int8, the same as 0 and 1: TRL 0.24 to 1.6 keeps it when it packs, and drops labels", _flags
    ),
    "weights": Column(
        pa.float32(),
        "float32, what a token counts for in the loss, 0 where it is not learned; of the token, not of the one before",
        lambda part: part.keep.astype(np.float32) if part.weight is None else part.weight,
    ),
}


def form_table(part: LearnedPart, rows: np.ndarray, schema: pa.Schema) -> pa.Table:
    """The chosen rows of a part, boolean [R], as a table of one form."""
    tokens = np.repeat(rows, part.lengths)
    offsets = np.concatenate([[0], np.cumsum(part.lengths[rows])])
    values = [COLUMNS[f.name].values(part)[tokens].astype(f.type.value_type.to_pandas_dtype(), copy=False) for f in schema]
    return pa.table([as_lists(column, offsets) for column in values], schema=schema)


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
    return Dataset(pa.concat_tables(form_table(part, part.has_learned, schema_of(form)) for part in parts))


def schema_of(form: str, compat: str | None = None) -> pa.Schema:
    """The columns of a form; ``compat`` trl-legacy adds ``assistant_masks``."""
    names = FORMS[form].columns if compat is None else (*FORMS[form].columns, "assistant_masks")
    return pa.schema([(name, pa.list_(COLUMNS[name].type)) for name in names])


def check_weights(mask: ChosenMask, form: str, ignore_weights: bool) -> None:
    """Raise InputError where a form would lose a mask's weights unasked, or there are none to ignore."""
    if not mask.weighted and ignore_weights:
        why = f"the mask {mask.title!r} does not weigh its tokens; leave it out"
        raise InputError(f"{argument('ignore_weights')} would do nothing: {why}")
    if mask.weighted and not FORMS[form].has_weights and not ignore_weights:
        raise InputError(
            f"mask {mask.name!r} weighs its tokens, and the form {form} would lose the weights; choose "
            f"{argument('form', WEIGHTS)}, train with 'tokenstats train', or take which tokens are kept alone "
            f"({argument('ignore_weights', True)})"
        )
