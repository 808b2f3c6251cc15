"""Memory that a tensor of the CPU gave back stays with the process, for the next tensor.

glibc returns large blocks to the system as soon as they are free and asks for them again a layer later; each page is then
filled with zeros and mapped anew. A forward pass spends a tenth to a quarter of its time on that. What is kept is in pieces of
other sizes, so the peak grows by a fifth. Scoring can afford it; training, which memory limits, is left as it is.
"""

import ctypes
import sys
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt, as glibc's malloc.h has them
_KEPT, _LARGE = 2**31 - 1, 2**30
"""Bytes that stay at the end of the heap; bytes from which a block is mapped on its own, as all above 128 KiB are at first."""


@cache
def keep_freed_memory() -> None:
    """Tell glibc's allocator, once in a process; any other goes on as it does, which costs no more than time."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGE)
        mallopt(_TRIM_THRESHOLD, _KEPT)
