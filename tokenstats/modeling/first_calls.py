"""The first call of a function must not be less exact than the others.

Intel's math library, in the version that CPU builds of torch bring (oneMKL 2024.2), chooses the code of cos, exp, sqrt and
the like when each is first called. Where that call comes from several threads at once, one of them may run code of half the
digits, once: the first batch of a process then has positions that are off by 1e-4, and logits by as much
(https://github.com/pytorch/pytorch/issues/188792). Once each was called by one thread, all calls are alike.
"""

from functools import cache

import torch

FUNCTIONS = {"acos", "asin", "atan", "cos", "erf", "erfc", "erfinv", "exp", "expm1", "lgamma"} | {
    "log", "log10", "log1p", "log2", "sin", "sqrt", "tan", "tanh", "trunc"
}  # fmt: skip


@cache
def make_first_calls() -> None:
    """Call each function on one number, once in a process: before a model does on many."""
    for dtype in (torch.float32, torch.float64):
        one = torch.full((1,), 0.5, dtype=dtype)
        for name in FUNCTIONS:
            getattr(torch, name)(one)
