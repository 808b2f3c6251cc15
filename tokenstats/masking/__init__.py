"""Statistics become masks: rules, thresholds, and the comparison of what they drop. Loads neither torch nor transformers."""
