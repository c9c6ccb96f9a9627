"""Attention masks: what lies so far below a Softmax's largest input that it counts for nothing must not set a range.

A mask of -1e4, -1e9 or minus infinity says that a score does not count. A range that holds it has no steps left for the scores.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxq.graph.ir import Graph, Node, constants
from jaxq.numerics.observers import Observer
from jaxq.ops.carriers import CARRYING

DEPTH = 16.0  # below the largest of its row, a score counts for exp(-16) = 1e-7
FAR = 1000.0  # below the largest of its sample, a row is masked as a whole, and nobody reads what it gives
LEAST = -1e30  # what minus infinity counts as, with room for sums
MIXING = frozenset({"Add", "Sub", "Sum", "Where", "Max", "Min"})  # by which a mask meets the scores
CARRIERS = CARRYING | {"Concat", "Clip"}
Bounds = tuple[float, float]


class Axes(NamedTuple):
    """Along which axes a Softmax normalizes: one, or, up to opset 12, that and all behind it."""

    first: int
    alone: bool


def softmax_axes(node: Node) -> Axes:
    """The axes of a Softmax node."""
    alone = node.version >= 13
    return Axes(int(node.attributes.get("axis", -1 if alone else 1)), alone)


def floored(observer: Observer, axes: Axes) -> Observer:
    """The observer, given in place of what lies more than DEPTH below the largest of its row that very bound.

    Rows that are masked as a whole count as the largest row.
    """
    return looking_at(observer, functools.partial(_floored, axes=axes), ("floored", axes))


def bounded(observer: Observer) -> Observer:
    """The observer, given LEAST in place of minus infinity and of what lies below."""
    return looking_at(observer, _bounded, ("bounded",))


_CHANGED: dict[Any, Observer] = {}  # so that the same wish is the same object, and compiled once


def looking_at(observer: Observer, change: Callable[[jax.Array], jax.Array], key: Any) -> Observer:
    key = (observer, key)
    if key not in _CHANGED:

        def measure(tensors: Sequence[jax.Array], given: jax.Array) -> Any:
            return observer.measure([change(x) if x.size else x for x in tensors], given)

        _CHANGED[key] = observer._replace(measure=measure)
    return _CHANGED[key]


def _bounded(x: jax.Array) -> jax.Array:
    return jnp.where(x < LEAST, jnp.asarray(LEAST, x.dtype), x)


def _floored(x: jax.Array, axes: Axes) -> jax.Array:
    """x [B, ...], each sample with its own axes behind B."""
    x, rank = _bounded(x), x.ndim - 1
    first = axes.first % rank + 1
    rows = x.max(axis=first if axes.alone else tuple(range(first, x.ndim)), keepdims=True)
    top = x.max(axis=tuple(range(1, x.ndim)), keepdims=True)
    return jnp.maximum(x, jnp.where(rows < top - FAR, top, rows) - DEPTH)


def softmax_inputs(graph: Graph, values: Mapping[str, Any]) -> dict[str, Axes]:
    """The tensors that only a Softmax reads, and in which a mask may be: behind an addition or a selection."""
    reads, found = _reads(graph), {}
    for node in graph.wiring.nodes:
        name = node.inputs[0] if node.op == "Softmax" and not node.domain else ""
        alone = reads[name] == 1 and name not in graph.wiring.outputs
        if name and alone and _is_mixed(name, graph.wiring.producers, values):
            found[name] = softmax_axes(node)
    return found


def mask_inputs(graph: Graph, params: Mapping[str, Any]) -> frozenset[str]:
    """The inputs of a model of which only Softmaxes see anything: masks, in which minus infinity is no mistake."""
    values = {**params, **constants(graph)}
    lows = dict.fromkeys(softmax_inputs(graph, values), 0.0)
    return frozenset(what_counts(graph, values, lows, lambda _: (0.0, 0.0))).intersection(graph.inputs)


def _is_mixed(name: str, producer: Mapping[str, Node], values: Mapping[str, Any]) -> bool:
    while (node := producer.get(name)) is not None and not node.domain:
        if node.op in MIXING:
            return True
        varying = [each for each in node.inputs if each and each not in values]
        if node.op not in CARRIERS | {"Mul", "Div"} or not varying:
            return False
        name = varying[0]
    return False


def _reads(graph: Graph) -> Counter[str]:
    """How often each tensor is read, its shape aside."""
    places = graph.wiring.readers.items()
    return Counter({name: sum(node.op not in ("Shape", "Size") for node, _ in readers) for name, readers in places})


def what_counts(
    graph: Graph, values: Mapping[str, Any], lows: Mapping[str, float], bounds: Callable[[str], Bounds | None]
) -> dict[str, Bounds]:
    """Tensor -> the values below and above which nothing of it counts, for what leads to Softmaxes and nowhere else.

    Args:
      graph: in which quantizers are placed.
      values: params and constants by name.
      lows: input of a Softmax -> the lowest value that its quantizer shows.
      bounds: the lowest and the highest value of a tensor that were seen; None where they are not known.
    """
    reads, outputs = _reads(graph), graph.wiring.outputs
    needs: dict[str, list[Bounds]] = {}

    def limit(name: str) -> Bounds | None:
        if name in outputs or not 0 < reads[name] == len(needs.get(name, ())):
            return None
        return min(low for low, _ in needs[name]), max(high for _, high in needs[name])

    for node in reversed(graph.wiring.nodes):
        if node.op == "Softmax" and node.inputs[0] in lows:
            needs.setdefault(node.inputs[0], []).append((lows[node.inputs[0]], np.inf))
            continue
        limits = [limit(name) for name in node.outputs if name]
        known = [each for each in limits if each is not None]
        if known and len(known) == len(limits) and not node.domain:
            ends = min(low for low, _ in known), max(high for _, high in known)
            for name, needed in _passed_on(node, ends, values, bounds):
                needs.setdefault(name, []).append(needed)
    return {name: each for name in needs if (each := limit(name)) is not None}


def _passed_on(
    node: Node, ends: Bounds, values: Mapping[str, Any], bounds: Callable[[str], Bounds | None]
) -> Iterator[tuple[str, Bounds]]:
    """(input, the values beyond which nothing of it counts) if nothing beyond `ends` counts of what the node makes."""
    names, (low, high) = [name for name in node.inputs if name], ends
    if node.op in CARRIERS:
        yield from ((name, ends) for name in (names if node.op == "Concat" else names[:1]))
    elif node.op in ("Where", "Max"):
        yield from ((name, ends) for name in names[node.op == "Where" :])
    elif node.op == "Min":
        made = bounds(node.outputs[0])
        yield from ((name, (low, high if made is None else min(high, made[1]))) for name in names)
    elif node.op in ("Add", "Sum"):
        for index, name in enumerate(names):
            others = [bounds(other) for place, other in enumerate(names) if place != index]
            known = [each for each in others if each is not None]
            if len(known) == len(others):
                yield name, (low - sum(each[1] for each in known), high - sum(each[0] for each in known))
    elif node.op == "Sub" and (seen := bounds(names[1])) is not None:
        yield names[0], (low + seen[0], high + seen[1])
    elif node.op in ("Mul", "Div"):
        moving = [name for name in names if name not in values]
        factors = np.array([each for name in names if name in values for each in np.ravel(values[name])], np.float64)
        if len(moving) == 1 and (node.op == "Mul" or moving[0] == names[0]) and factors.size and factors.min() > 0:
            both = np.array([factors.min(), factors.max()])
            scaled = [each / both if node.op == "Mul" else each * both for each in ends]
            yield moving[0], (float(scaled[0].min()), float(scaled[1].max()))
