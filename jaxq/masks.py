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

from jaxq.graph import Graph, Node
from jaxq.observers import Observer

DEPTH = 16.0  # below the largest of its row, a score counts for exp(-16) = 1e-7
FAR = 1000.0  # below the largest of its sample, a row is masked as a whole, and nobody reads what it gives
LEAST = -1e30  # what minus infinity counts as, with room for sums
MIXING = frozenset({"Add", "Sub", "Sum", "Where", "Max", "Min"})  # by which a mask meets the scores
CARRIERS = frozenset(  # of values, as they are
    ["Identity", "Cast", "Dropout", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Expand", "Tile"]
) | {"Slice", "Split", "Gather", "Concat"}
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
    return _looking_at(observer, functools.partial(_floored, axes=axes), ("floored", axes))


def bounded(observer: Observer) -> Observer:
    """The observer, given LEAST in place of minus infinity and of what lies below."""
    return _looking_at(observer, _bounded, ("bounded",))


_CHANGED: dict[Any, Observer] = {}  # so that the same wish is the same object, and compiled once


def _looking_at(observer: Observer, change: Callable[[jax.Array], jax.Array], key: Any) -> Observer:
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
    producer = {name: node for _, node in graph.walk() for name in node.outputs if name}
    reads, outputs = _reads(graph)
    found = {}
    for _, node in graph.walk():
        name = node.inputs[0] if node.op == "Softmax" and not node.domain else ""
        if name and reads[name] == 1 and name not in outputs and _is_mixed(name, producer, values):
            found[name] = softmax_axes(node)
    return found


def _is_mixed(name: str, producer: Mapping[str, Node], values: Mapping[str, Any]) -> bool:
    while (node := producer.get(name)) is not None and not node.domain:
        if node.op in MIXING:
            return True
        varying = [each for each in node.inputs if each and each not in values]
        if node.op not in CARRIERS | {"Mul", "Div"} or not varying:
            return False
        name = varying[0]
    return False


def _reads(graph: Graph) -> tuple[Counter[str], set[str]]:
    """How often each tensor is read, its shape aside; and the outputs of the graph and its branches."""
    reads = Counter(
        name for _, node in graph.walk() if node.op not in ("Shape", "Size") for name in node.inputs if name
    )
    outputs = {*graph.outputs, *(name for _, node in graph.walk() for sub in node.subgraphs for name in sub.outputs)}
    return reads, outputs


def lowest_that_count(
    graph: Graph, values: Mapping[str, Any], lows: Mapping[str, float], bounds: Callable[[str], Bounds | None]
) -> dict[str, float]:
    """Tensor -> the value below which nothing of it counts, for what leads to Softmaxes and nowhere else.

    Args:
      graph: in which quantizers are placed.
      values: params and constants by name.
      lows: input of a Softmax -> the lowest value that its quantizer shows.
      bounds: the lowest and the highest value of a tensor that were seen; None where they are not known.
    """
    reads, outputs = _reads(graph)
    needs: dict[str, list[float]] = {}

    def limit(name: str) -> float | None:
        covered = name not in outputs and 0 < reads[name] == len(needs.get(name, ()))
        return min(needs[name]) if covered else None

    for node in reversed([node for _, node in graph.walk()]):
        if node.op == "Softmax" and node.inputs[0] in lows:
            needs.setdefault(node.inputs[0], []).append(lows[node.inputs[0]])
            continue
        limits = [limit(name) for name in node.outputs if name]
        if limits and None not in limits and not node.domain:
            low = min(each for each in limits if each is not None)
            for name, needed in _passed_on(node, low, values, bounds):
                needs.setdefault(name, []).append(needed)
    return {name: each for name in needs if (each := limit(name)) is not None}


def _passed_on(
    node: Node, low: float, values: Mapping[str, Any], bounds: Callable[[str], Bounds | None]
) -> Iterator[tuple[str, float]]:
    """(input, the value below which nothing of it counts) if nothing below `low` counts of what the node makes."""
    names = [name for name in node.inputs if name]
    if node.op in CARRIERS:
        yield from ((name, low) for name in (names if node.op == "Concat" else names[:1]))
    elif node.op == "Where":
        yield from ((name, low) for name in names[1:])
    elif node.op in ("Max", "Min"):
        yield from ((name, low) for name in names)
    elif node.op in ("Add", "Sum"):
        for index, name in enumerate(names):
            others = [bounds(other) for place, other in enumerate(names) if place != index]
            if None not in others:
                yield name, low - sum(each[1] for each in others if each is not None)
    elif node.op == "Sub" and (seen := bounds(names[1])) is not None:
        yield names[0], low + seen[0]
    elif node.op in ("Mul", "Div"):
        moving = [name for name in names if name not in values]
        factors = np.array([each for name in names if name in values for each in np.ravel(values[name])], np.float64)
        if len(moving) == 1 and (node.op == "Mul" or moving[0] == names[0]) and factors.size and factors.min() > 0:
            ends = np.array([factors.min(), factors.max()])
            yield moving[0], float((low / ends if node.op == "Mul" else low * ends).min())
