"""Lengths of sequences to measure with, in tokens: those of a known data set, and some with a long tail."""

import numpy as np

# question and answer of GSM8K's 7,473 training rows, every twentieth quantile
_GSM8K_CHARACTERS = (
    *(124, 256, 293, 320, 344, 367, 391, 412, 436, 460, 484),
    *(510, 537, 568, 601, 638, 680, 733, 807, 912, 1689),
)


def lengths_of(kind: str, rows: int, seed: int = 0) -> np.ndarray:
    """[rows] lengths: ``gsm8k`` (characters / 3.6, about a token), or ``log-normal`` (median 148, σ 0.9)."""
    rng = np.random.default_rng(seed)
    if kind == "gsm8k":
        characters = np.interp(rng.random(rows), np.linspace(0, 1, len(_GSM8K_CHARACTERS)), _GSM8K_CHARACTERS)
        return np.maximum(8, characters / 3.6).astype(int)
    return np.clip(rng.lognormal(5.0, 0.9, rows), 8, 4096).astype(int)
