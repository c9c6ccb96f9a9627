"""A fingerprint of the samples that were used, for the record in the file that was made from them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np


class Hashed:
    """Passes samples through while it hashes their names, types, shapes and bytes.

    Attributes:
      count: the samples passed through so far.
      hexdigest: SHA-256 of them.
    """

    def __init__(self, samples: Iterable[Mapping[str, Any]]):
        self.samples, self.count, self._hash = samples, 0, hashlib.sha256()

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        for feed in self.samples:
            for name, value in feed.items():
                array = np.ascontiguousarray(value)
                self._hash.update(f"{name}:{array.dtype}:{array.shape}".encode())
                self._hash.update(array.tobytes())
            self.count += 1
            yield feed

    @property
    def hexdigest(self) -> str:
        return self._hash.hexdigest()
