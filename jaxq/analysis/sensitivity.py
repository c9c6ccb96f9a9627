"""How much each quantizer of a model moves its outputs, for all of them by one backward pass."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq.engine.batching import batches, fitting_batch
from jaxq.engine.model import Model
from jaxq.engine.runner import Batch, Network, Slopes, run
from jaxq.engine.traced import Signature
from jaxq.errors import ConfigError
from jaxq.numerics.distance import TINY
from jaxq.numerics.quantizer import QuantParams, fake_quantize
from jaxq.progress import track

# Bytes for what a backward pass keeps: all activations of a batch.
BACKWARD_BYTES = {"cpu": 256 << 20, "gpu": 8 << 30, "tpu": 4 << 30}
LARGEST_BATCH = 16

Batches = Sequence[tuple[Signature, Batch]]


def smaller_batches(
    exact: Model, feeds: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]], size: int | None = None
) -> Batches:
    """Samples in batches whose activations a backward pass can keep, with the float model's outputs beside them.

    Args:
      size: of a batch; None: estimated by the largest tensor.
    """
    if size is None:
        size = fitting_batch(exact.traced(feeds[0]).largest * 16, BACKWARD_BYTES, min(LARGEST_BATCH, len(feeds)))
    return list(batches(exact, feeds, size, outputs))


def slopes(exact: Model, model: Model, names: Collection[str], on: Collection[str], made: Batches) -> dict[str, float]:
    """d divergence / d alpha of every quantizer, where alpha blends the exact and the rounded value, x + alpha (x^ - x).

    Args:
      exact: the float model.
      model: the same graph, with rounded params and encodings.
      names: of quantizers: tensors and params; the program is the same for all models that are asked about these.
      on: those at alpha = 1; the others are at 0.
      made: see `smaller_batches`.
    """
    _, params, encodings = model.program
    rounded = {name: params[name] for name in names if name in params}
    alpha = {name: np.float32(name in on) for name in names}
    numbers = (alpha, exact.program.params, rounded, encodings)
    total: dict[str, float] = dict.fromkeys(names, 0.0)
    count = 0
    for signature, batch in track(made, "ranking"):
        head = model.laid_out(model.traced(signature).head)
        try:
            _, found = run(_blended, Slopes(), (head,), signature.static, batch, numbers)
        except ValueError as error:
            if "Reverse-mode" not in str(error):
                raise
            raise ConfigError(
                "ranking 'gradient' does not go through a loop of which only the data know how often it turns; take "
                "'alone' or 'exact'"
            ) from None
        for name, slope in jax.device_get(found).items():
            total[name] += float(slope)
        count += int(np.asarray(batch.real).sum())
    return {name: slope / count for name, slope in total.items()}


def _blended(networks: tuple[Network, ...], numbers: Any, sample: Batch) -> jax.Array:
    """The divergence of a sample from the outputs beside it, when tensors and params are rounded by parts alpha.

    The numbers: alpha, the exact params, the rounded ones, and encodings.
    """
    alpha, exact, rounded, encodings = numbers

    def blend(name: str, value: Any, other: Any) -> Any:
        return value + alpha[name].astype(value.dtype) * (other - value)

    params = {name: blend(name, value, rounded[name]) if name in rounded else value for name, value in exact.items()}

    def tap(name: str, value: Any, carry: Any) -> tuple[Any, Any]:
        return (blend(name, value, _always(value, encodings[name])) if name in encodings else value), carry

    outputs = networks[0](params, sample.inputs, tap=tap)[0]
    floats = {name: value for name, value in sample.beside.items() if jnp.issubdtype(value.dtype, jnp.floating)}
    return jnp.asarray(sum(_distance(value, outputs[name]) for name, value in floats.items()), jnp.float32)


def _distance(expected: Any, found: Any) -> Any:
    """`jaxq.numerics.distance`, with a gradient; NaN or infinity that is found where a number was expected makes it none."""
    known = jnp.isfinite(expected)
    expected, found = (jnp.where(known, each, 0) for each in (expected, found))
    return jnp.sum((found - expected) ** 2) / jnp.maximum(jnp.sum(expected**2), TINY)


def _always(value: Any, encoding: QuantParams) -> Any:
    """The rounded value, whether the quantizer is on or off."""
    return fake_quantize(value, replace(encoding, enabled=jnp.bool_(True)))
