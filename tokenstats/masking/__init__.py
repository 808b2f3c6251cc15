"""Statistics become masks: rules, thresholds, and the comparison of what they drop. Loads neither torch nor transformers."""

from tokenstats.masking.build import build_mask
from tokenstats.masking.compare import Comparison, compare_masks
from tokenstats.masking.rule import Rule, preset_names

__all__ = ["Comparison", "Rule", "build_mask", "compare_masks", "preset_names"]
