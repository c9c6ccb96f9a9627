"""A quantized file as a runtime reads it: which tensors have quantizers, with which numbers, and who reads them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from jaxq.engine.model import Model
from jaxq.graph.ir import FrozenDict, Graph, Node, constants, map_nodes
from jaxq.graph.linear import is_depthwise
from jaxq.graph.ranks import ranks
from jaxq.ops.carriers import QUANTIZERS
from jaxq.ops.cast import element_dtype
from jaxq.placement.fates import Fates
from jaxq.placement.schemes import rule_for
from jaxq.placement.targets import Rule, Target

SCALE_TOLERANCE = 1e-5

Role = Literal["activation", "weight", "bias"]


@dataclass(frozen=True)
class Quantizer:
    """A QuantizeLinear or DequantizeLinear, with its numbers; None where they are computed."""

    node: Node
    role: Role
    type: str | None
    scale: Any
    zero_point: Any
    integers: Any  # of a constant

    @property
    def axis(self) -> int | None:
        """The axis with one scale each, as the file says it; None for one scale, or blocks of them."""
        if self.scale is None or self.scale.size < 2 or self.node.attributes.get("block_size", 0):
            return None
        return int(self.node.attributes.get("axis", 1))


class QuantizedNetwork:
    """The graph with what is known of its quantizers, for a target."""

    def __init__(self, model: Model, target: Target):
        self.model, self.target = model, target
        self.wiring = model.graph.wiring
        self.nodes, self.producer, self.readers = self.wiring.nodes, self.wiring.producers, self.wiring.readers
        self.outputs = self.wiring.outputs
        self.values = {**constants(model.graph), **model.params}
        for node in self.nodes:
            if node.op == "Transpose" and node.inputs[0] in self.values:  # in a branch, where loading does not fold it
                self.values[node.outputs[0]] = np.transpose(self.values[node.inputs[0]], node.attributes.get("perm"))

    @cached_property
    def seen(self) -> dict[str, Quantizer]:
        """Output name -> what is known of the Q or DQ that makes it."""
        return {
            node.outputs[0]: self.read(node)
            for node in self.nodes
            if node.op in ("QuantizeLinear", "DequantizeLinear") and node.outputs
        }

    def read(self, node: Node) -> Quantizer:
        """What the file says of one quantizer."""
        source = node.inputs[0]
        before = self.producer.get(source)
        behind_q = before is not None and before.op == "QuantizeLinear" and node.op == "DequantizeLinear"
        constant = source in self.values or (behind_q and before is not None and before.inputs[0] in self.values)
        scale = self.values.get(node.inputs[1])
        zero_point = self.values.get(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else None
        integers = self.values.get(source) if node.op == "DequantizeLinear" else None
        kind: str | None = None
        if zero_point is not None:
            kind = zero_point.dtype.name
        elif integers is not None:
            kind = integers.dtype.name
        elif behind_q and before is not None:
            kind = self.read(before).type
        elif node.op == "QuantizeLinear":
            declared = int(node.attributes.get("output_dtype", 0))
            kind = element_dtype(declared).name if declared else "uint8"  # as the standard has it
        role: Role = "activation"
        if constant:
            places = [index for _, index in self.readers.get(node.outputs[0], [])]
            role = "bias" if kind == "int32" or (places and min(places) >= 2 and self.rank(node) == 1) else "weight"
        return Quantizer(node, role, kind, scale, zero_point, integers)

    def rank(self, node: Node) -> int:
        value = self.values.get(node.inputs[0])
        return -1 if value is None else int(np.ndim(value))

    @cached_property
    def ranks(self) -> dict[str, int]:
        """Tensor name -> rank, where it is known."""
        return ranks(self.model.graph, self.model.params)

    def rule(self, node: Node) -> Rule | None:
        """The target's rule for a node; None where it has no kernel in integers."""
        if node.domain or node.op in self.target.same_scale:
            return None
        weight = node.inputs[1] if len(node.inputs) > 1 else ""
        shapes = {weight: self.values.get(self.producer[weight].inputs[0]) if weight in self.producer else None}
        known = {name: value for name, value in shapes.items() if value is not None}
        return rule_for(self.target, node, depthwise=is_depthwise(node, known))

    @cached_property
    def fates(self) -> Fates:
        """What becomes of the nodes; in place of the quantizers, quantized readers have names of their own, as in a `Plan`."""
        values = dict(self.values)
        for name, each in self.seen.items():
            if each.role != "activation":  # integers, or, behind a QuantizeLinear, what they stand for
                values[name] = values[each.node.inputs[0]]

        def change(_: Graph, node: Node) -> tuple[Node, ...]:
            if node.op not in QUANTIZERS:
                return (node,)
            return (replace(node, op="Identity", inputs=node.inputs[:1], attributes=FrozenDict()),)

        graph = map_nodes(self.model.graph, change)
        encoded = {name: each.type or "" for name, each in self.seen.items()}
        shifted = {name for name, each in self.seen.items() if each.zero_point is not None and np.any(each.zero_point)}
        return Fates(graph, values, encoded, self.target, {}, {}, {}, shifted)

    def is_quantized(self, name: str) -> bool:
        return name in self.seen and self.seen[name].node.op == "DequantizeLinear"

    @cached_property
    def quantizes_activations(self) -> bool:
        """Whether more than weights is quantized."""
        return any(each.role == "activation" for each in self.seen.values())

    def type_of(self, name: str) -> str | None:
        """The type in which a tensor is quantized; None if it is not."""
        return self.seen[name].type if self.is_quantized(name) else None

    def is_float(self, name: str) -> bool:
        value = self.values.get(name)
        return self.is_quantized(name) or (value is not None and value.dtype.kind == "f") or name in self.readers_of_q

    @cached_property
    def readers_of_q(self) -> set[str]:
        """Tensors that a QuantizeLinear reads: floats for certain."""
        return {node.inputs[0] for node in self.nodes if node.op == "QuantizeLinear"}


def same_numbers(one: Quantizer, other: Quantizer) -> bool:
    """Whether two quantizers have the same scales and zero points, as far as that can be known."""
    if one.scale is None or other.scale is None:
        return True
    first, second = (np.ravel(np.asarray(each.scale, np.float64)) for each in (one, other))
    if first.size != second.size or not np.allclose(first, second, rtol=SCALE_TOLERANCE, atol=0.0):
        return False
    points = [
        np.zeros(1) if each.zero_point is None else np.ravel(np.asarray(each.zero_point)) for each in (one, other)
    ]
    return bool(np.all(points[0].astype(np.float64) == points[1].astype(np.float64)))
