"""tokenstats: score a fine-tuning dataset once, then decide which tokens to learn from.

    import tokenstats as ts

    ts.compute("data.jsonl", model="warm", reference="base", store="runs/store")
    store = ts.Store("runs/store")
    store.add_mask("mine", "eksft")
    ts.train(store, model="base", mask="mine", out="runs/model")

Importing this module loads no other library: each name loads what it needs when it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "CorpusOptions",
    "EngineOptions",
    "ExportOptions",
    "InputError",
    "NotThere",
    "RoundOptions",
    "Rule",
    "RuleError",
    "ScoringOptions",
    "Store",
    "StoreError",
    "TokenstatsError",
    "TokenstatsWarning",
    "TrainOptions",
    "audit",
    "build_mask",
    "compare",
    "compute",
    "export",
    "follow_rule",
    "report",
    "sweep",
    "train",
    "train_rounds",
]

if TYPE_CHECKING:
    from tokenstats.api import Store
    from tokenstats.computing import compute
    from tokenstats.corpus.options import CorpusOptions
    from tokenstats.errors import InputError, NotThere, RuleError, StoreError, TokenstatsError, TokenstatsWarning
    from tokenstats.following import follow_rule
    from tokenstats.inspect.audit.audit import audit
    from tokenstats.inspect.report import report
    from tokenstats.masking.build import build_mask
    from tokenstats.masking.compare import compare
    from tokenstats.masking.rule import Rule
    from tokenstats.masking.sweep import sweep
    from tokenstats.rounds.options import RoundOptions
    from tokenstats.rounds.run import train_rounds
    from tokenstats.scoring.options import EngineOptions, ScoringOptions
    from tokenstats.training.exports import export
    from tokenstats.training.options import ExportOptions, TrainOptions
    from tokenstats.training.trainer import train

_HOMES = {
    "Store": "api",
    "compute": "computing",
    "CorpusOptions": "corpus.options",
    "InputError": "errors",
    "NotThere": "errors",
    "RuleError": "errors",
    "StoreError": "errors",
    "TokenstatsError": "errors",
    "TokenstatsWarning": "errors",
    "follow_rule": "following",
    "audit": "inspect.audit.audit",
    "report": "inspect.report",
    "build_mask": "masking.build",
    "compare": "masking.compare",
    "Rule": "masking.rule",
    "sweep": "masking.sweep",
    "RoundOptions": "rounds.options",
    "train_rounds": "rounds.run",
    "EngineOptions": "scoring.options",
    "ScoringOptions": "scoring.options",
    "export": "training.exports",
    "ExportOptions": "training.options",
    "TrainOptions": "training.options",
    "train": "training.trainer",
}


def __getattr__(name: str) -> Any:
    # torch, pyarrow and polars take a moment to load: only those who use them wait
    if name in _HOMES:
        return getattr(import_module(f"tokenstats.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'tokenstats' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
