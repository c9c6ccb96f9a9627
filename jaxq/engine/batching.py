"""Samples in batches of one shape each, of a size that suits the device, and single samples out of them again."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from jaxq.engine.devices import mesh
from jaxq.engine.model import Model, warn_of_many_shapes
from jaxq.engine.runner import Batch
from jaxq.engine.traced import Signature, signed
from jaxq.graph.ir import TensorType
from jaxq.ops import platform

# Bytes that the largest tensor of a batch may take. On CPU the fast batch is the one whose tensors stay in the cache.
LARGEST_TENSOR = {"cpu": 4 << 20, "gpu": 256 << 20, "tpu": 256 << 20}
LARGEST_BATCH = 64


class _Row(NamedTuple):
    """A sample that waits for others of its shape."""

    number: int
    inputs: dict[str, Any]
    beside: Any


def batches(
    model: Model, samples: Iterable[Mapping[str, Any]], batch_size: int | None, beside: Iterable[Any] | None = None
) -> Iterator[tuple[Signature, Batch]]:
    """The samples in batches, with the signature of each of their samples; a short last batch is padded, not recompiled.

    Args:
      model: what they are for.
      samples: feeds of one sample each.
      batch_size: samples in a batch; None chooses by the size of the largest tensor.
      beside: arrays that go with each sample, of shapes that follow from those of the sample.
    """
    pending: dict[Signature, list[_Row]] = {}
    sizes: dict[Signature, int] = {}
    others = itertools.repeat(None) if beside is None else iter(beside)
    for number, feed in enumerate(samples):
        signature, inputs = signed(model.graph, feed)
        arrays = {name: np.array(value) for name, value in inputs.items()}  # copies: a loader may refill its buffer
        if signature not in sizes:
            sizes[signature] = for_devices(batch_size or fitting_batch(model.traced(signature).largest))
            warn_of_many_shapes(len(sizes), "the calibration")
        pending.setdefault(signature, []).append(_Row(number, arrays, next(others)))
        most_held = 4 * max(LARGEST_BATCH, *sizes.values())  # many shapes: what is held back is bounded
        if len(pending[signature]) == sizes[signature]:
            yield signature, _stacked(pending.pop(signature), sizes[signature])
        elif sum(map(len, pending.values())) >= most_held:
            longest = max(pending, key=lambda each: len(pending[each]))
            yield longest, _stacked(pending.pop(longest), sizes[longest])
    for signature, rows in pending.items():
        yield signature, _stacked(rows, sizes[signature])


def _stacked(rows: list[_Row], size: int) -> Batch:
    padded = rows + [rows[0]] * (size - len(rows))
    inputs, beside = (
        jax.tree.map(lambda *arrays: np.stack(arrays), *column)
        for column in ([row.inputs for row in padded], [row.beside for row in padded])
    )
    return Batch(inputs, np.array([row.number for row in padded], np.int32), np.arange(size) < len(rows), beside)


def fitting_batch(largest: int, room: Mapping[str, int] = LARGEST_TENSOR, most: int = LARGEST_BATCH) -> int:
    """The number of samples to run at a time when the largest tensor of one sample has that many bytes: a power of two.

    `room` is what that tensor may take of a batch, on each platform.
    """
    fitting = room.get(platform(), room["gpu"]) // max(largest, 1)
    return min(most, 1 << max(fitting, 1).bit_length() - 1)


def for_devices(size: int) -> int:
    """A size of batches as it is, or the next that several devices can share."""
    count = 1 if (there := mesh()) is None else there.size
    return -(-size // count) * count


class HasInputs(Protocol):
    """What says which types its inputs have: a `Model`, or a file in a runtime."""

    @property
    def inputs(self) -> Mapping[str, TensorType]: ...


def single_feeds(model: HasInputs, signature: Signature, batch: Batch) -> list[dict[str, Any]]:
    """The samples of a batch as the model takes them: its 64-bit integers are held in 32 bits."""
    fixed = {name: literal.array for name, literal in signature.static.items()}
    wide = {name: value.astype(model.inputs[name].dtype, copy=False) for name, value in batch.inputs.items()}
    return [{name: value[row] for name, value in wide.items()} | fixed for row in np.flatnonzero(batch.real)]
