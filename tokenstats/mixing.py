"""Numbers that look random and depend on nothing but what they are made from."""

import numpy as np


def mixed(x: np.ndarray) -> np.ndarray:
    """Each uint64 [n] as another one, all bits of which depend on all of its own: the finaliser of SplitMix64.

    Source: Steele, Lea and Flood, Fast splittable pseudorandom number generators, 2014.
    """
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
