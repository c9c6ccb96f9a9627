"""Moves the biases so that rounding does not shift the mean of any channel."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq.collect import Batch, batches
from jaxq.execute import execute
from jaxq.graph import FrozenDict, Graph, Literal
from jaxq.model import Model
from jaxq.observers import Observer
from jaxq.quantizer import QuantParams, fake_quantize


@dataclass(frozen=True)
class Site:
    """A biased linear output: the mean over all but `axis` of tensor `output` is set by adding to the param `bias` [C]."""

    output: str
    bias: str
    axis: int


@dataclass(frozen=True, kw_only=True)
class BiasCorrection:
    """Corrects every bias in one pass over the data, each layer seeing the corrected errors of those before it.

    The float and the quantized network run side by side on a batch of samples. At each biased linear output the quantized
    side is shifted, per channel, by the difference of the two means over the batch, before it goes on:

        shift_c = mean over samples and positions of (float_c - quantized_c),    bias_c <- bias_c + shift_c

    and the shifts are averaged over the batches. So one pass does what sequential correction (Nagel et al., arXiv:1906.04721,
    section 4.2; NNCF's and POT's BiasCorrection) does layer by layer, and a bias that is zero or was absent is corrected too.

    Args:
      sites: where; see `bias_sites`.
      samples: at most so many are used.
      batch: samples whose mean makes one shift. Part of the method, not of its speed: it is the same on every device.
    """

    sites: tuple[Site, ...]
    samples: int = 32
    batch: int = 16

    def needs(self, model: Model) -> Mapping[str, Observer]:
        return {}

    def apply(self, model: Model, stats: Mapping[str, Any], samples: Iterable[Mapping[str, Any]]) -> Model:
        graph, params, encodings = model.program
        totals: dict[str, np.ndarray] = {}
        count = 0
        for static, batch in batches(model, itertools.islice(samples, self.samples), self.batch):
            shifts = _shifts(graph, static, self.sites, params, encodings, batch)
            real = int(batch.real.sum())
            for name, shift in jax.device_get(shifts).items():
                totals[name] = totals.get(name, 0.0) + shift.astype(np.float64) * real
            count += real
        changed = dict(model.params)
        for site in self.sites:
            if site.output in totals:
                moved = np.asarray(changed[site.bias], np.float64) + totals[site.output] / count
                changed[site.bias] = moved.astype(changed[site.bias].dtype)
        return model.replace(params=changed)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _shifts(
    graph: Graph,
    static: FrozenDict[str, Literal],
    sites: tuple[Site, ...],
    params: Mapping[str, jax.Array],
    encodings: Mapping[str, QuantParams],
    batch: Batch,
) -> dict[str, jax.Array]:
    """{output tensor: shift [C]} of one batch."""
    fixed = {name: literal.array for name, literal in static.items()}
    axes = {site.output: site.axis for site in sites}

    def one(inputs: Mapping[str, jax.Array], real: jax.Array) -> dict[str, jax.Array]:
        exact: dict[str, jax.Array] = {}
        shifts: dict[str, jax.Array] = {}
        share = real.astype(jnp.float32) / jax.lax.psum(real.astype(jnp.float32), "samples")

        def remember(name: str, value: jax.Array, carry: Any) -> tuple[jax.Array, Any]:
            if name in axes:
                exact[name] = value
            return value, carry

        def correct(name: str, value: jax.Array, carry: Any) -> tuple[jax.Array, Any]:
            if name in axes:
                axis = axes[name] % value.ndim
                others = tuple(each for each in range(value.ndim) if each != axis)
                shifts[name] = jax.lax.psum((exact[name] - value).mean(others) * share, "samples")
                value = value + jnp.expand_dims(shifts[name], others)
            return (fake_quantize(value, encodings[name]) if name in encodings else value), carry

        execute(graph, params, {**inputs, **fixed}, tap=remember)
        execute(graph, params, {**inputs, **fixed}, tap=correct)
        return shifts

    every = jax.vmap(one, axis_name="samples")(dict(batch.inputs), batch.real)
    return {name: shift[0] for name, shift in every.items()}


def bias_sites(graph: Graph, params: Mapping[str, Any], nodes: Iterable[str]) -> tuple[Site, ...]:
    """The biases of the named nodes that can be moved: those of Conv and Gemm, and the Add of a vector behind a MatMul.

    Left alone: a bias that several nodes share or that is multiplied by a beta, and one in a subgraph.
    """
    chosen, found = set(nodes), []
    for node in graph.nodes:
        if node.name not in chosen:
            continue
        if node.op == "Gemm" and node.attributes.get("beta", 1.0) != 1.0:
            continue
        if node.op in ("Conv", "ConvTranspose", "Gemm") and len(node.inputs) > 2:
            site = Site(node.outputs[0], node.inputs[2], 1)
        elif node.op == "MatMul" and len(readers := graph.consumers.get(node.outputs[0], ())) == 1:
            add, weight = readers[0][0], params.get(node.inputs[1])
            per_channel = None if weight is None else np.shape(weight)[-1:]
            vector = next(
                (name for name in add.inputs if name in params and np.shape(params[name]) == per_channel), None
            )
            if add.op != "Add" or vector is None:
                continue
            site = Site(add.outputs[0], vector, -1)
        else:
            continue
        if site.bias in params and len(graph.consumers[site.bias]) == 1 and params[site.bias].ndim == 1:
            found.append(site)
    return tuple(found)
