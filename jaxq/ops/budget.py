"""How much memory a graph may ask for: a few bytes of a file can name a tensor of any size.

All values that are computed while a model is read or compiled may have `MOST_BYTES` together. A result is measured before it
is made: by abstract evaluation, or, where an operator's function makes arrays from numbers alone, by `jaxq.ops.refuse_huge`
in that function. A tensor of the compiled program must fit into the memory of the device twice.
"""

from __future__ import annotations

import functools
import math
import os
from typing import Any

import jax
import numpy as np

from jaxq.errors import ModelError
from jaxq.ops import MOST_BYTES, Op, TooLarge, as_size

# Operators whose result can be large though all that they read is small: numbers, or attributes, say how large.
GROWING = frozenset(
    ["Expand", "Tile", "Pad", "Resize", "Upsample", "OneHot", "AffineGrid", "CenterCropPad", "Col2Im", "MaxUnpool", "RoiAlign",
     "MaxRoiPool", "DFT", "STFT", "ConvTranspose", "Conv", "AveragePool", "MaxPool", "LpPool"]
)  # fmt: skip
MOST_VISITS = 1 << 18  # of nodes while compiling; loops within loops could ask for any number
SMALL = 1 << 24  # bytes; whatever cannot become larger than this is not measured


class Budget:
    """What may still be done while a model is read or compiled: bytes that are computed, and nodes that are visited."""

    def __init__(self, left: int = MOST_BYTES, visits: int = MOST_VISITS):
        self.left, self.visits = left, visits

    def visit(self) -> None:
        """Counts a node of the walk, once for each turn of an unrolled loop.

        Raises:
          ModelError: there have been too many.
        """
        self.visits -= 1
        if self.visits < 0:
            raise ModelError(
                f"more than {MOST_VISITS} nodes had to be visited to compile the model; its loops have too many turns that "
                "cannot be compiled as one"
            )

    def check(self, entry: Op, arguments: list[Any], attributes: dict[str, Any]) -> None:
        """Refuses a result that would be too large, before it is made.

        Raises:
          TooLarge: the message has the size.
        """
        present = [value for value in arguments if isinstance(value, np.ndarray)]
        if entry.name not in GROWING and 16 * math.prod(max(value.size, 1) for value in present) <= SMALL:
            return  # no broadcast, product or gather of these is larger
        size = predicted_bytes(entry, arguments, attributes)
        if size > self.left:
            raise TooLarge(
                f"its result would have {as_size(size)}; values that are computed before the data are there may take "
                f"{as_size(MOST_BYTES)} in all, of which {as_size(self.left)} are left. Is the size right?"
            )

    def spend(self, arguments: list[Any], results: Any) -> None:
        """Counts what has been made; a view of an argument (a transposed weight) takes nothing."""
        arrays = [value for value in arguments if isinstance(value, np.ndarray)]
        for result in jax.tree.leaves(results):
            if not any(np.may_share_memory(result, value) for value in arrays):
                self.left -= _bytes([result])


def predicted_bytes(entry: Op, arguments: list[Any], attributes: dict[str, Any]) -> int:
    """The size of what an operator would give for these arrays; 0 where only running it tells."""
    abstract = {
        index: value
        for index, value in enumerate(arguments)
        if isinstance(value, np.ndarray) and value.dtype != object and not entry.needs_static(index)
    }

    def call(values: dict[int, Any]) -> Any:
        return entry.function(*[values.get(index, value) for index, value in enumerate(arguments)], **attributes)

    try:
        return _bytes(jax.tree.leaves(jax.eval_shape(call, abstract)))
    except TooLarge:
        raise
    except Exception:  # whatever is wrong is reported when the operator runs
        return 0


def check_traced(results: Any) -> None:
    """Refuses a tensor of the compiled program that would not fit into the device's memory twice.

    Raises:
      TooLarge: the message has the size.
    """
    for value in jax.tree.leaves(results):
        if 2 * _bytes([value]) > device_memory():
            raise TooLarge(
                f"its result, {value.dtype}{list(value.shape)}, would have {as_size(_bytes([value]))}; the device has "
                f"{as_size(device_memory())} of memory. Give smaller inputs, or check the sizes in the model"
            )


@functools.cache
def device_memory() -> int:
    """Bytes of memory of the device, as it reports them; of the machine where it does not."""
    reported = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return reported or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _bytes(values: Any) -> int:
    return sum(math.prod(value.shape) * value.dtype.itemsize for value in values if hasattr(value, "shape"))
