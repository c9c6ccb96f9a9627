"""Which devices do the work, and where arrays lie: weights on the device once, however many programs read them, and batches
divided over several devices.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxq.engine.execute import traced_param
from jaxq.errors import ConfigError, DeviceError, did_you_mean
from jaxq.ops.evaluate import runs_in_32_bit

PLATFORMS = ("cpu", "gpu", "tpu")
EXTRAS = {
    "gpu": "`pip install 'jaxq[cuda]'` brings JAX for NVIDIA GPUs",
    "tpu": "`pip install 'jaxq[tpu]'` brings JAX for TPUs",
}
AXIS = "data"  # of a mesh of devices
# Of an array, the order of its axes, whether 64-bit numbers were narrowed, and the devices.
Key = tuple[int, tuple[int, ...], bool, Mesh | None]

_mesh: ContextVar[Mesh | None] = ContextVar("mesh", default=None)


def use_device(name: str | None) -> str:
    """Makes a platform the one that everything runs on from here on; None leaves JAX's own choice.

    Args:
      name: "cpu", "gpu" or "tpu"; on a platform with several devices, the first of them is used.

    Returns:
      The platform in use.

    Raises:
      ConfigError: the name is not one of the three.
      DeviceError: JAX has no such device; the message says what there is.
    """
    if name is None:
        return jax.default_backend()
    if name not in PLATFORMS:
        raise ConfigError(f"device {name!r} is not one of {', '.join(PLATFORMS)}{did_you_mean(name, PLATFORMS)}")
    try:
        device = jax.local_devices(backend=name)[0]
    except RuntimeError:
        advice = f"; {EXTRAS[name]}" if name in EXTRAS else ""
        raise DeviceError(f"there is no {name} here: JAX has {available()}{advice}") from None
    jax.config.update("jax_default_device", device)
    return name


def available() -> str:
    """The devices of this machine in words, e.g. `1 cpu (cpu), 8 gpu (NVIDIA H200)`."""
    found = []
    for platform in PLATFORMS:
        try:
            devices = jax.local_devices(backend=platform)
        except RuntimeError:
            continue
        found.append(f"{len(devices)} {platform} ({devices[0].device_kind})")
    return ", ".join(found)


# ------------------------------------------------------------------------------------------------- arrays


@contextlib.contextmanager
def over(devices: Sequence[jax.Device]) -> Iterator[None]:
    """In the block the samples of each batch are divided over these devices, and all else is on each of them."""
    before = _mesh.set(Mesh(np.array(devices), (AXIS,)))
    try:
        yield
    finally:
        _mesh.reset(before)


def mesh() -> Mesh | None:
    """The devices over which batches are divided; None if one does all."""
    return _mesh.get()


def divided(arrays: Any) -> Any:
    """Arrays [B, ...] with the same number of samples on each device; on one device, they go there when they are used."""
    there = mesh()
    return arrays if there is None else jax.device_put(arrays, NamedSharding(there, PartitionSpec(AXIS)))


def everywhere(arrays: Any) -> Any:
    """Arrays that each device has as a whole; those that are there already are not sent again."""
    there = mesh()
    return arrays if there is None else jax.device_put(arrays, NamedSharding(there, PartitionSpec()))


class Placed:
    """Remembers where arrays are as long as these live; nobody writes to the arrays of a model. A copy remembers nothing."""

    def __init__(self) -> None:
        self._there: dict[Key, tuple[weakref.ref[np.ndarray], jax.Array]] = {}

    def put(self, name: str, value: Any, axes: tuple[int, ...] | None = None) -> jax.Array:
        """The array with its axes in that order on the device, where it may be already; `name` is for messages."""
        if not isinstance(value, np.ndarray):  # a JAX array, or a number that cannot be watched
            return traced_param(name, value if axes is None else np.transpose(value, axes))
        key = (id(value), axes or (), runs_in_32_bit(), mesh())
        source, placed = self._there.get(key, (lambda: None, None))
        if source() is not value or placed is None:
            placed = everywhere(traced_param(name, value if axes is None else np.transpose(value, axes)))
            owner = weakref.ref(self)  # what is placed goes with this, and need not wait for the garbage collector
            self._there[key] = weakref.ref(value, lambda _: forget(owner(), key)), placed
        return placed

    def __reduce__(self) -> Any:
        return Placed, ()


def forget(placed: Placed | None, key: Key) -> None:
    """Lets go of an array whose source is gone."""
    if placed is not None:
        placed._there.pop(key, None)
