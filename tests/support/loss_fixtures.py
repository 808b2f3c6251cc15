"""A batch of random tokens, and gradients to compare."""

import numpy as np
import torch
from torch import nn

from tokenstats.modeling.head import SplitModel
from tokenstats.training.rows import IGNORED

VOCABULARY = 264


def batch(seed: int = 0, rows: int = 3, length: int = 17, kept: float = 0.5) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    ids = torch.from_numpy(rng.integers(3, VOCABULARY, (rows, length)))
    keep = torch.from_numpy(rng.random((rows, length)) < kept)
    keep[:, 0] = False
    return ids, torch.where(keep, ids, IGNORED)


def split_of(model: nn.Module) -> SplitModel:
    split = SplitModel(model.eval(), float32_head=False)
    split.check(batch()[0])
    assert split.is_split
    return split


def gradients(model: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    model.zero_grad()
    return found


def assert_same_gradients(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    largest = max(g.abs().max() for g in two.values())
    for name in one:
        assert (one[name] - two[name]).abs().max() < 1e-5 * largest, name
