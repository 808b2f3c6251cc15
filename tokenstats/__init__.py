"""tokenstats: score a fine-tuning dataset once, then decide which tokens to learn from.

    from tokenstats import Store, Rule, build_mask, compare_masks

Importing this module loads neither torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Rule", "Store", "TokenstatsError", "build_mask", "compare_masks"]

if TYPE_CHECKING:
    from tokenstats.errors import TokenstatsError
    from tokenstats.masking.build import build_mask
    from tokenstats.masking.compare import compare_masks
    from tokenstats.masking.rule import Rule
    from tokenstats.store import Store

_HOMES = {
    "Store": "tokenstats.store",
    "TokenstatsError": "tokenstats.errors",
    "Rule": "tokenstats.masking.rule",
    "build_mask": "tokenstats.masking.build",
    "compare_masks": "tokenstats.masking.compare",
}


def __getattr__(name: str) -> Any:
    # pyarrow and polars take a moment to load: only those who use them wait
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'tokenstats' has no attribute {name!r}")
