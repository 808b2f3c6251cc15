"""Tokens and a mask become a model, or files for somebody else's trainer.

    from tokenstats.training import ExportOptions, TrainOptions, export, train

    train("runs/store", model="base", mask="eksft", out="runs/model", options=TrainOptions(epochs=2))
    export("runs/store", mask="eksft", to="runs/dataset", options=ExportOptions(trainer="axolotl"))

Importing this module loads neither torch nor transformers; ``export`` needs neither.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = ["ExportOptions", "ExportSummary", "TrainOptions", "TrainSummary", "export", "train"]

if TYPE_CHECKING:
    from tokenstats.training.exports import ExportSummary, export
    from tokenstats.training.options import ExportOptions, TrainOptions
    from tokenstats.training.summary import TrainSummary
    from tokenstats.training.trainer import train

_HOMES = {
    "export": "exports",
    "ExportOptions": "options",
    "ExportSummary": "exports",
    "TrainOptions": "options",
    "train": "trainer",
    "TrainSummary": "summary",
}


def __getattr__(name: str) -> Any:
    # an export needs no torch, and whoever reads the defaults of TrainOptions neither
    if name in _HOMES:
        return getattr(import_module(f"tokenstats.training.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'tokenstats.training' has no attribute {name!r}")
