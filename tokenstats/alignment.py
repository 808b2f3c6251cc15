"""The one place where positions shift.

A causal language model's output at position t-1 predicts token t. Everything stored is indexed by the *predicted*
token. Whoever needs the model output for a token asks here, and nobody else in the code base subtracts one. The first token
of a sequence has no prediction: it is never a target.
"""

from typing import TypeVar

import numpy as np

Array = TypeVar("Array")  # a torch tensor or a numpy array


def outputs_that_predict(outputs: Array, chosen: Array) -> Array:
    """Pick the model outputs that predict the chosen tokens.

    outputs: [B, T, ...] hidden states or logits, as the model emits them
    chosen:  [B, T] boolean, indexed by predicted token; ``chosen[:, 0]`` must be False: nothing predicts token 0

    Returns [N, ...]: one row per chosen token, in the order of ``values[chosen]``.
    """
    assert not bool(chosen[:, 0].any()), "token 0 has no prediction"  # type: ignore[index]
    return outputs[:, :-1][chosen[:, 1:]]  # type: ignore[index]


def predicted(is_target: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """A copy of the flags [N] of some rows' tokens, False for the first token of each row, which nothing predicts.

    Args:
        is_target: Boolean [N], one row after the other.
        offsets: Where each of the R rows begins, [R + 1].
    """
    flags = is_target.copy()
    flags[offsets[:-1][np.diff(offsets) > 0]] = False
    return flags
