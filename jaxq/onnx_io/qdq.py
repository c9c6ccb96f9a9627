"""Encodings as nodes: a model with QuantizeLinear and DequantizeLinear where it had encodings.

Where a tensor has an encoding, its readers read it through Q and DQ. Weights and biases become integer initializers behind a DQ.
Names of inputs, outputs and float tensors stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxq.engine.mapped import forget_pages
from jaxq.engine.model import Model
from jaxq.errors import ModelError
from jaxq.graph.ir import FrozenDict, Graph, Node, map_nodes, node_names, tensor_names, unused_name
from jaxq.graph.opset import raise_opset
from jaxq.numerics.quantizer import E4M3, E5M2, IntType, QuantParams, quantize_array
from jaxq.onnx_io.dequantizers import beside_readers
from jaxq.ops import ELEMENT_TYPES

PER_CHANNEL_OPSET = 13  # the first with an axis in QuantizeLinear and DequantizeLinear
BLOCKED_OPSET = 21  # the first with blocks

# The types of quantized tensors, smallest first, with the opset since which QuantizeLinear and DequantizeLinear have them.
INTEGERS = tuple(
    (IntType(bits, signed), jnp.dtype(f"{'' if signed else 'u'}int{bits}"), since)
    for bits, signed, since in (
        (4, False, 21),
        (4, True, 21),
        (8, False, 10),
        (8, True, 10),
        (16, False, 21),
        (16, True, 21),
        (32, True, 10),
    )
)
FLOATS = {grid.mantissa: (jnp.dtype(grid.name), 19) for grid in (E4M3, E5M2)}
# Such a tensor has no zero point, which would be 0: ONNX Runtime (1.23 to 1.32, from ORT_ENABLE_EXTENDED on) takes that for the
# lowest value of the type and drops a Relu before it. Without one, QuantizeLinear has to be told the type.
HALF_OPSET = 19  # the first with float16
TYPED_OPSET = 21  # the first with output_dtype in QuantizeLinear
ELEMENT_NUMBERS = {np.dtype(dtype): number for number, dtype in ELEMENT_TYPES.items()}


def with_qdq(model: Model) -> Model:
    """The same model with its encodings written out as QuantizeLinear and DequantizeLinear nodes and integer params."""
    graph, params = model.graph, dict(model.params)
    encodings = {name: each for name, each in model.encodings.items() if bool(np.all(each.enabled))}
    shapes = {name: np.shape(value) for name, value in params.items()}
    needed = [lowest_opset(each, shapes.get(name)) for name, each in encodings.items()]
    needed += [HALF_OPSET for name in encodings if name in params and params[name].dtype == np.float16]
    graph, params = raise_opset(graph, params, max([PER_CHANNEL_OPSET, graph.opsets.get("", 1), *needed]))  # type: ignore[assignment]
    writer = _Qdq(
        encodings=encodings,
        halves=frozenset(name for name, value in params.items() if value.dtype == np.float16),
        activations=frozenset(encodings) - set(params),
        params=dict(params),
        version=graph.opsets.get("", PER_CHANNEL_OPSET),
        taken={*tensor_names(graph), *params},
        node_names=node_names(graph),
    )
    weights = [node for name in sorted(encodings) if name in params for node in writer.integer_param(name)]
    graph = writer.rewrite(graph)
    graph = replace(graph, nodes=(*weights, *graph.nodes))
    graph, params = beside_readers(graph, writer.params, writer.taken | writer.node_names)
    return model.replace(graph=graph, params=params, encodings={})


def storage(params: QuantParams) -> tuple[np.dtype, int]:
    """The smallest ONNX type that holds the grid, and the first opset that quantizes to it."""
    if params.mantissa is not None:
        return FLOATS[int(params.mantissa)]
    low, high = int(params.qmin), int(params.qmax)
    for grid, dtype, since in INTEGERS:
        if grid.qmin <= low and high <= grid.qmax:
            return dtype, since
    raise ModelError(f"no ONNX integer type holds the grid from {low} to {high}")


def lowest_opset(params: QuantParams, shape: tuple[int, ...] | None) -> int:
    """The lowest opset that can say what the encoding of a param of that shape, or of an activation (None), says."""
    if shape is None:
        return storage(params)[1] if params.mantissa is None else TYPED_OPSET
    return max(storage(params)[1], BLOCKED_OPSET if block_axis(params, shape) is not None else 1)


def block_axis(params: QuantParams, shape: tuple[int, ...]) -> int | None:
    """The axis along which there is a scale for each block, if any; one block as long as the axis, if two others have scales."""
    counts = np.shape(params.scale)
    blocked = [axis for axis, (count, length) in enumerate(zip(counts, shape, strict=True)) if count not in (1, length)]
    if not blocked and sum(count > 1 for count in counts) > 1:
        blocked = [axis for axis, count in enumerate(counts) if count == 1]
    return blocked[0] if blocked else None


def fills_storage(params: QuantParams) -> bool:
    """Whether the grid is all that its type can hold, so that saturation does the clipping."""
    limits = [(grid.qmin, grid.qmax) for grid, _, _ in INTEGERS]
    return params.mantissa is not None or (int(params.qmin), int(params.qmax)) in limits


@dataclass
class _Qdq:
    """Writes Q and DQ nodes, and puts what they need into `params`."""

    encodings: Mapping[str, QuantParams]
    halves: frozenset[str]  # params of float16, which have scales of float16
    activations: frozenset[str]
    params: dict[str, Any]
    version: int
    taken: set[str]
    node_names: set[str]
    names: dict[tuple[str, str], str] = field(default_factory=dict)

    def name(self, tensor: str, role: str) -> str:
        """The name of what belongs to a tensor (its scale, its integers ...); one that the model uses itself gets a number."""
        if (tensor, role) not in self.names:
            self.names[tensor, role] = unused_name(f"{tensor}_{role}", self.taken)
        return self.names[tensor, role]

    def operands(
        self, name: str, dtype: np.dtype, shape: tuple[int, ...] | None = None
    ) -> tuple[tuple[str, ...], FrozenDict[str, Any]]:
        """The scale and zero point operands of tensor `name`, and the attributes (axis, block_size) that go with them."""
        each = self.encodings[name]
        kind = np.float16 if name in self.halves else np.float32
        scale, zero_point = np.asarray(each.scale, kind), np.asarray(each.zero_point).astype(dtype)
        blocked = None if shape is None else block_axis(each, shape)
        attributes: FrozenDict[str, Any]
        if shape is not None and blocked is not None:
            attributes = FrozenDict({"axis": blocked, "block_size": shape[blocked] // scale.shape[blocked]})
            per_block = tuple(scale.shape[axis] if axis == blocked else length for axis, length in enumerate(shape))
            scale, zero_point = np.broadcast_to(scale, per_block), np.broadcast_to(zero_point, per_block)
        else:
            axes = [axis for axis, size in enumerate(scale.shape) if size > 1]
            attributes = FrozenDict({"axis": axes[0]} if axes else {})
            scale, zero_point = (value.reshape((-1,) if axes else ()) for value in (scale, zero_point))
        operands = {self.name(name, "scale"): scale}
        if each.mantissa is None:
            operands[self.name(name, "zero_point")] = zero_point
        self.params.update(operands)
        return tuple(operands), attributes

    def integer_param(self, name: str) -> Iterator[Node]:
        """Replaces a float param by its integers, and gives the DQ node that makes the float name from them."""
        each, value = self.encodings[name], self.params.pop(name)
        dtype, _ = storage(each)
        operands, attributes = self.operands(name, dtype, np.shape(value))
        integers = quantize_array(np.asarray(value), each).astype(dtype)
        forget_pages(value)
        self.params[self.name(name, "quantized")] = integers
        yield self.node("DequantizeLinear", (self.name(name, "quantized"), *operands), name, name, attributes)

    def node(
        self, op: str, inputs: tuple[str, ...], output: str, tensor: str, attributes: FrozenDict[str, Any]
    ) -> Node:
        name = unused_name(f"{tensor}_{op}", self.node_names)
        return Node(op, inputs, (output,), attributes, name=name, version=self.version)

    def pair(self, source: str, name: str, output: str) -> tuple[Node, ...]:
        """Q and DQ from tensor `source` to `output`, with the encoding of `name`.

        A grid that is smaller than the type that stores it is clipped to beforehand: QuantizeLinear knows the type's limits only.
        """
        each = self.encodings[name]
        dtype, _ = storage(each)
        operands, attributes = self.operands(name, dtype)
        typed = attributes
        if each.mantissa is not None:
            typed = attributes | {"output_dtype": ELEMENT_NUMBERS[dtype]}
        clips: list[Node] = []
        if not fills_storage(each):
            clips = self.clips(source, name)
            source = clips[-1].outputs[0]
        return (
            *clips,
            self.node("QuantizeLinear", (source, *operands), self.name(name, "quantized"), name, typed),
            self.node("DequantizeLinear", (self.name(name, "quantized"), *operands), output, name, attributes),
        )

    def clips(self, source: str, name: str) -> list[Node]:
        """What holds tensor `source` to the grid of `name`: a Clip, or Max and Min where each channel has bounds of its own."""
        each, limits = self.encodings[name], (self.name(name, "low"), self.name(name, "high"))
        clipped = self.name(name, "clipped")
        for limit, end in zip(limits, (each.qmin, each.qmax), strict=True):
            steps = np.float32(int(end)) - np.asarray(each.zero_point, np.float32)
            self.params[limit] = np.asarray(steps * np.asarray(each.scale, np.float32))
        if np.size(each.scale) == 1:
            self.params.update((limit, self.params[limit].reshape(())) for limit in limits)
            return [self.node("Clip", (source, *limits), clipped, name, FrozenDict())]
        raised = self.name(name, "raised")
        return [
            self.node("Max", (source, limits[0]), raised, name, FrozenDict()),
            self.node("Min", (raised, limits[1]), clipped, name, FrozenDict()),
        ]

    def rewrite(self, graph: Graph) -> Graph:
        """The graph with a Q, DQ pair behind each activation that has an encoding; its readers read the DQ's output.

        An Identity that only gives quantized readers a name of their own becomes the pair itself. A graph output keeps its
        name: the tensor before the pair gets another one.
        """
        here = self.activations & {*graph.inputs, *(name for node in graph.nodes for name in node.outputs)}
        read = {name: self.name(name, "dequantized") for name in here if name not in graph.outputs}
        raw = {name: self.name(name, "float") for name in here if name in graph.outputs}
        nodes: list[Node] = []
        for name in graph.inputs:
            if name in here:
                nodes.extend(self.pair(name, name, read[name]))
        for node in graph.nodes:
            node = self.readers(node, read)
            if node.op == "Identity" and node.outputs[0] in here:
                name = node.outputs[0]
                nodes.extend(self.pair(node.inputs[0], name, read.get(name, name)))
                continue
            nodes.append(replace(node, outputs=tuple(raw.get(name, name) for name in node.outputs)) if raw else node)
            for name in node.outputs:
                if name in here:
                    nodes.extend(self.pair(raw.get(name, name), name, read.get(name, name)))
        return replace(graph, nodes=tuple(nodes))

    def readers(self, node: Node, read: Mapping[str, str]) -> Node:
        """The node with its inputs, and what its subgraphs capture, read through the pairs."""

        def rename(_: Graph, inner: Node) -> tuple[Node, ...]:
            inputs = tuple(read.get(name, name) for name in inner.inputs)
            return (inner if inputs == inner.inputs else replace(inner, inputs=inputs),)

        attributes = {
            key: self.rewrite(map_nodes(value, rename)) if isinstance(value, Graph) else value
            for key, value in node.attributes.items()
        }
        return rename(Graph((), (), ()), replace(node, attributes=FrozenDict(attributes)))[0]
