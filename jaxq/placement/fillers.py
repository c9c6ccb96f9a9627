"""Huge constants that stand in places which do not count, in front of a maximum or a saturating function: they set no range.

`Where(mask, x, -1e4)` in front of a MaxPool says that a place is not to be chosen; a range that holds -1e4 has no steps left for
x. Masks in front of a Softmax, of which more is known, are `jaxq.graph.masks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxq.graph.ir import Graph, Node
from jaxq.graph.masks import CARRIERS, DEPTH, LEAST, looking_at
from jaxq.numerics.observers import Observer

HUGE = 1e4  # a constant that is smaller may be a number like others
NEAR = 0.9  # of the constant: a score was added to it
FAR = 20.0  # times as large as what else is in the sample, or it may be a number like others
MAXIMA = frozenset({"MaxPool", "GlobalMaxPool", "ReduceMax", "ArgMax", "Max", "TopK", "Relu"})
MINIMA = frozenset({"ReduceMin", "ArgMin", "Min", "TopK"})
SATURATING = frozenset({"Sigmoid", "HardSigmoid", "Tanh", "Exp", "Softmax", "Softplus", "Elu", "Selu", "Celu"})
PASSED_ON = CARRIERS | {"MaxPool", "GlobalMaxPool", "ReduceMax", "ReduceMin", "TopK", "Max", "Min", "LogSoftmax"}


class Filler(NamedTuple):
    """A huge constant in a tensor.

    Attributes:
      value: the constant; +-1e30 for infinities.
      node: what puts it there.
      counts: whether something reads the tensor for which the constant may count.
      saturates: whether a function does that is the same for -16 and all below.
    """

    value: float
    node: str
    counts: bool
    saturates: bool


def fillers(graph: Graph, values: Mapping[str, Any]) -> dict[str, Filler]:
    """Tensor -> the huge constant that an Add or a Where puts into it, or into what it is made of by moving and choosing."""
    found: dict[str, tuple[float, str]] = {}
    wiring, chosen = graph.wiring, {*values}  # chosen among constants: such a grid needs no steps between them
    for node in wiring.nodes:
        if each := _brought(node, found, values):
            found |= dict.fromkeys([name for name in node.outputs[:1] if name], each)
            chosen |= {*node.outputs} if chosen.issuperset(_operands(node)) else set()
    made: dict[str, Filler] = {}
    for name, (value, node_name) in reversed(found.items()):
        fates = [_fate(node, name, value, made) for node, _ in wiring.readers.get(name, ())]
        counts = name in wiring.outputs or None in fates
        made[name] = Filler(value, node_name, counts, True in fates)
    return {name: each for name, each in made.items() if name not in chosen}


def _operands(node: Node) -> tuple[str, ...]:
    """The inputs whose values a node passes on."""
    return node.inputs[1:] if node.op == "Where" else node.inputs[: 1 if node.op in CARRIERS - {"Concat"} else None]


def _brought(node: Node, found: Mapping[str, tuple[float, str]], values: Mapping[str, Any]) -> tuple[float, str] | None:
    """The huge constant in what a node makes, and the node that put it there."""
    if node.domain or node.op not in PASSED_ON | {"Where", "Add", "Sub", "Sum"}:
        return None
    names = _operands(node)
    for name in names[:1] if node.op == "Sub" else names:
        if name in found:
            return found[name]
    for index, name in enumerate(names):
        if node.op in ("Where", "Add", "Sub", "Sum") and name in values:
            value = np.asarray(values[name])
            if value.dtype.kind != "f" or not value.size:
                continue
            peak = float(value.flat[np.abs(value).argmax()])  # NaN if there is one
            if abs(peak) >= HUGE:
                return float(
                    np.clip(-peak if node.op == "Sub" and index else peak, LEAST, -LEAST)
                ), node.name or node.op
    return None


def _fate(node: Node, name: str, value: float, made: Mapping[str, Filler]) -> bool | None:
    """What a reader makes of the constant: True if the same as of -16, False if the same as of zero or less; None: unknown."""
    if node.op in ("Shape", "Size"):
        return False
    if node.domain:
        return None
    if node.op in (MAXIMA if value < 0 else MINIMA):
        return False if node.op != "TopK" or bool(node.attributes.get("largest", 1)) == (value < 0) else None
    if (node.op in SATURATING and value < 0) or node.op in ("Sigmoid", "HardSigmoid", "Tanh"):
        return True
    behind = made.get(node.outputs[0]) if node.outputs else None
    if behind is None or behind.counts or behind.value != value or node.op in ("Add", "Sum"):
        return None  # what is added could lift what stands for the constant above the others
    if node.op == "Sub" and (name != node.inputs[0] or node.inputs[1] not in made):  # but for the maximum
        return None
    return behind.saturates or node.op == "LogSoftmax"


def without(observer: Observer, filler: Filler) -> Observer:
    """The observer, given zero, or what saturates, in place of the constant."""

    def change(x: jax.Array) -> jax.Array:
        sign, axes = np.sign(filler.value), tuple(range(1, x.ndim))
        y = (x * -sign).astype(jnp.float32)  # the constant is negative now
        hit = y <= -NEAR * abs(filler.value)
        rest = jnp.where(hit, 0, jnp.abs(y)).max(axes, keepdims=True)
        top = jnp.minimum(jnp.where(hit, -jnp.inf, y).max(axes, keepdims=True), 0)
        given = jnp.where(jnp.isfinite(top), top, 0) - DEPTH if filler.saturates else jnp.zeros_like(top)
        y = jnp.where(hit & (rest * FAR < abs(filler.value)), given, y)
        return (y * -sign).astype(x.dtype)

    return looking_at(observer, change, ("without", filler))
