"""The sums of :mod:`tokenstats.scoring.reductions.by_torch` in one pass over a block: compiled by numba, where there is one.

Plain torch goes over a block ten times. Here each logit is read twice, once for the maximum and once for all sums.
"""

import math
import pickle
from contextlib import suppress
from dataclasses import fields
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit, prange
from torch import Tensor

from tokenstats.scoring.reductions.by_torch import Sums

# may reorder sums and contract products, so that loops are vectorised; NaN and infinities keep their meaning
_FAST = {"nsz", "arcp", "contract", "afn", "reassoc"}
_LOG2_E, _LN2_HIGH, _LN2_LOW = np.float32(1.4426950408889634), np.float32(0.693359375), np.float32(-2.12194440e-4)
_C0, _C1, _C2, _C3, _C4 = (
    np.float32(c) for c in (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1)
)
_RUN = 64  # terms that are summed in float32, the runs in float64
_ZERO, _HALF, _ONE, _LOWEST = np.float32(0.0), np.float32(0.5), np.float32(1.0), np.float32(-87.0)
_T3, _T4, _T5, _T6, _T7, _T8 = (np.float32(1.0 / math.factorial(n)) for n in range(3, 9))
_BIAS, _MANTISSA = np.int32(127), np.int32(23)


def add_block(sums: Sums, block: Tensor, first_column: int, rows: slice) -> None:
    """As :func:`tokenstats.scoring.reductions.by_torch.add_block`, for tensors of a CPU; the block is left as it is."""
    _add(block.numpy(), first_column, tuple(getattr(sums, field.name).numpy()[:, rows] for field in fields(sums)))


@njit(fastmath={"nsz", "contract"}, forceinline=True)
def _exp(x: Any) -> Any:
    """e^x for x <= 0 within 2 units in the last place: e^x = 2^n · e^r, |r| <= ln 2 / 2 (Cephes' polynomial for e^r).

    Below -87 it is 0: no float32 sum beside a 1 can feel 1.6e-38, but times the -3.4e38 of a masked word it would be 5 nats.
    """
    n = np.floor(max(x, _LOWEST) * _LOG2_E + _HALF)
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    polynomial = ((((_C0 * r + _C1) * r + _C2) * r + _C3) * r + _C4) * r + _HALF
    power = np.int32((np.int32(n) + _BIAS) << _MANTISSA).view(np.float32)  # 2^n, by the bits of a float32
    return (polynomial * r * r + r + _ONE) * power if x >= _LOWEST else _ZERO


@njit(fastmath={"nsz", "contract"}, forceinline=True)
def _curved(delta: Any, e_p: Any, e_q: Any, scale: Any, inverse: Any) -> tuple[Any, Any]:
    """e_p·f(δ) and e_q·f(-δ), f(δ) = e^-δ - 1 + δ: by its series where that cancels, else by e_p·e^-δ = e_q·``scale``."""
    square = delta * delta
    even = ((_T8 * square + _T6) * square + _T4) * square + _HALF
    odd = ((_T7 * square + _T5) * square + _T3) * delta
    small = abs(delta) < _ONE
    of_p = e_p * (square * (even - odd)) if small else e_q * scale - e_p + e_p * delta
    of_q = e_q * (square * (even + odd)) if small else e_p * inverse - e_q - e_q * delta
    return of_p, of_q


@njit(fastmath=_FAST, inline="always")
def _top_and_above(z: Any, target: Any) -> tuple[Any, Any]:
    top, above = z[0], np.int32(0)
    for j in range(len(z)):
        top = max(top, z[j])
        above += np.int32(z[j] > target)
    return top, above


@njit(fastmath=_FAST, inline="always")
def _first_of(z: Any, value: Any) -> int:
    for j in range(len(z)):
        if z[j] == value:
            return j
    return 0


@njit(fastmath=_FAST, forceinline=True)
def _sums_of_two(a: Any, b: Any, top_a: Any, top_b: Any, at_target: Any) -> tuple:
    """Of a block of one row, the sums of both models; ``at_target``: d_y. Where e^d_y overflows, ``curved`` is no number."""
    total_a = weighted_a = squares_a = apart_a = curved_a = np.float64(0.0)
    total_b = weighted_b = squares_b = apart_b = curved_b = np.float64(0.0)
    scale, inverse = np.float32(math.exp(at_target)), np.float32(math.exp(-at_target))
    for start in range(0, len(a), _RUN):
        run_a, run_b = a[start : start + _RUN], b[start : start + _RUN]
        t_a = w_a = s_a = d_a = c_a = t_b = w_b = s_b = d_b = c_b = np.float32(0.0)
        for j in range(len(run_a)):
            x_a, x_b = run_a[j] - top_a, run_b[j] - top_b
            e_a, e_b, d = _exp(x_a), _exp(x_b), x_a - x_b
            f_a, f_b = _curved(d - at_target, e_a, e_b, scale, inverse)
            t_a += e_a
            t_b += e_b
            w_a += e_a * x_a
            w_b += e_b * x_b
            s_a += e_a * e_a
            s_b += e_b * e_b
            d_a += e_a * d
            d_b += e_b * d
            c_a += f_a
            c_b += f_b
        total_a, weighted_a, squares_a, apart_a, curved_a = (
            total_a + t_a, weighted_a + w_a, squares_a + s_a, apart_a + d_a, curved_a + c_a
        )  # fmt: skip
        total_b, weighted_b, squares_b, apart_b, curved_b = (
            total_b + t_b, weighted_b + w_b, squares_b + s_b, apart_b + d_b, curved_b + c_b
        )  # fmt: skip
    return (total_a, weighted_a, squares_a, apart_a, curved_a), (total_b, weighted_b, squares_b, apart_b, curved_b)


@njit(fastmath=_FAST, forceinline=True)
def _sums_of_one(a: Any, top: Any) -> tuple:
    total = weighted = squares = np.float64(0.0)
    for start in range(0, len(a), _RUN):
        run = a[start : start + _RUN]
        t = w = s = np.float32(0.0)
        for j in range(len(run)):
            x = run[j] - top
            e = _exp(x)
            t += e
            w += e * x
            s += e * e
        total, weighted, squares = total + t, weighted + w, squares + s
    return total, weighted, squares, 0.0, 0.0


@njit(fastmath={"nsz", "contract"}, forceinline=True)
def _apart_at_target(target: Any, maximum: Any, i: int) -> Any:
    """d_y of a row. In float64 until the end: whatever is lost of it is lost of all δ alike."""
    return np.float32((np.float64(target[0, i]) - maximum[0, i]) - (np.float64(target[1, i]) - maximum[1, i]))


@njit(fastmath=_FAST, boundscheck=False, forceinline=True)
def _add_row(block: Any, i: int, first_column: int, sums: Any) -> None:
    target, maximum, total, weighted, squares, apart, curved, above, best = sums
    models = len(target)
    last = models - 1
    old_p, old_q = np.float64(maximum[0, i]), np.float64(maximum[last, i])
    for m in range(models):
        top, count = _top_and_above(block[m, i], target[m, i])
        above[m, i] += count
        if top > maximum[m, i]:
            best[m, i] = first_column + _first_of(block[m, i], top)
            maximum[m, i] = top
    if models == 2:
        at_target = _apart_at_target(target, maximum, i)
        of_p, of_q = _sums_of_two(block[0, i], block[1, i], maximum[0, i], maximum[1, i], at_target)
    else:
        of_p = of_q = _sums_of_one(block[0, i], maximum[0, i])
    # what is there already is brought to the new maxima; before the first block it is 0
    shift_p = old_p - maximum[0, i] if old_p > -np.inf else 0.0
    shift_q = old_q - maximum[last, i] if old_q > -np.inf else 0.0
    for m in range(models):
        shift = shift_p if m == 0 else shift_q
        new = of_p if m == 0 else of_q
        scale, before = math.exp(shift), total[m, i]
        total[m, i] = before * scale + new[0]
        weighted[m, i] = (weighted[m, i] + shift * before) * scale + new[1]
        squares[m, i] = squares[m, i] * scale * scale + new[2]
        apart[m, i] = (apart[m, i] + (shift_p - shift_q) * before) * scale + new[3]
        curved[m, i] = curved[m, i] * scale + new[4]


_UNREADABLE = (OSError, EOFError, pickle.UnpicklingError, AttributeError, ImportError, IndexError)
"""What numba raises for a kept loop that was cut short, and for one that cannot be written."""


class _Loop:
    """The loop over the rows of a block. Compiling takes seconds, so numba keeps what it made for the next process.

    What it calls is forced into it: else the process that compiles may run other copies of that, compiled before, than those
    that are kept, and round otherwise. A kept loop is known by the size and time of this file alone, and some installers give
    every file the same time: hence the file's digest, which as a variable of the loop is part of what numba compares.
    """

    def __init__(self) -> None:
        digest = int.from_bytes(blake2b(Path(__file__).read_bytes(), digest_size=7).digest(), "big")

        def add(block: Any, first_column: int, sums: Any) -> None:
            _this_file = digest
            for i in prange(block.shape[1]):
                _add_row(block, i, first_column, sums)

        self._fresh = njit(parallel=True)(add)
        try:
            self.compiled = njit(parallel=True, cache=True)(add)
        except RuntimeError:  # there is no folder that this user may write to
            self.compiled = self._fresh

    def __call__(self, block: Any, first_column: int, sums: Any) -> None:
        try:
            self.compiled(block, first_column, sums)
        except _UNREADABLE:  # before anything ran
            with suppress(OSError):
                self.compiled._cache.flush()
            self.compiled = self._fresh
            self.compiled(block, first_column, sums)


_add = _Loop()
