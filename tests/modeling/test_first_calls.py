"""Functions whose first call in a process may be inexact, where threads share it, are first called on one number."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tokenstats.modeling.first_calls import FUNCTIONS, make_first_calls
from tokenstats.modeling.load import load_model


class SizesOfCalls(TorchDispatchMode):
    """Of each of these functions: how many numbers each of its calls was given."""

    def __init__(self):
        super().__init__()
        self.sizes: dict[str, list[int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::").rstrip("_")
        if name in FUNCTIONS:
            self.sizes.setdefault(name, []).append(args[0].numel())
        return func(*args, **(kwargs or {}))


def test_no_model_runs_before_each_function_was_called_by_one_thread(base):
    make_first_calls.cache_clear()  # as in a new process
    with torch.inference_mode(), SizesOfCalls() as seen:
        loaded = load_model(base, "float32", torch.device("cpu"))
        loaded.model(torch.arange(90)[None])
    assert set(seen.sizes) == FUNCTIONS
    assert all(sizes[:2] == [1, 1] for sizes in seen.sizes.values()), "float32 and float64"
    assert max(seen.sizes["cos"]) > 1, "and the model uses some of them"


def test_they_are_made_once_in_a_process():
    make_first_calls()
    with SizesOfCalls() as seen:
        make_first_calls()
    assert not seen.sizes
