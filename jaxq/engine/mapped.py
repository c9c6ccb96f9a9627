"""Arrays that lie in a file which is mapped into memory: the weights of large models, until something changes them.

Their pages are read from the disk when they are used, and stay in memory as long as nothing else needs the room. Whoever has
made use of such an array once and for all says so with `forget_pages`: a model on a device then takes its own size, not twice.
"""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np


def mapping(array: Any) -> mmap.mmap | None:
    """The mapped file that an array is a view of; None if it has memory of its own."""
    while isinstance(array, (np.ndarray, memoryview)):
        array = array.base if isinstance(array, np.ndarray) else array.obj
    return array if isinstance(array, mmap.mmap) else None


def is_mapped(array: Any) -> bool:
    """Whether an array lies in a file that is mapped into memory."""
    return mapping(array) is not None


def forget_pages(array: Any) -> None:
    """Gives the memory back that a mapped array takes; the values stay, and are read from the file when they are used again.

    Does nothing for other arrays, and where the system has no such call.
    """
    file = mapping(array)
    if file is None or not array.size or not array.flags.c_contiguous or not hasattr(mmap, "MADV_DONTNEED"):
        return
    first = array.ctypes.data - np.frombuffer(file, np.uint8).ctypes.data
    start = first - first % mmap.PAGESIZE  # neighbours in the same page lose nothing but time
    file.madvise(mmap.MADV_DONTNEED, start, first + array.nbytes - start)
