"""List columns of a part as flat arrays: the one way from Arrow to numpy."""

import numpy as np
import pyarrow as pa


def flat(column: pa.ChunkedArray) -> np.ndarray:
    """All values of a column of lists [N], one row after the other; a null number reads as NaN."""
    return column.combine_chunks().flatten().to_numpy(zero_copy_only=False)


def offsets_of(column: pa.ChunkedArray) -> np.ndarray:
    """Where each of the R rows begins among the values that :func:`flat` gives, int64 [R + 1]."""
    return column.combine_chunks().offsets.to_numpy().astype(np.int64)


def as_lists(values: np.ndarray, offsets: np.ndarray) -> pa.ListArray:
    """The reverse: a column of lists."""
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values))
