"""Raises a graph to a newer opset of ONNX's standard operators: the same meaning in a newer form.

`HISTORY` holds all of the knowledge: each operator whose form or default changed, at which opset, and the function that
takes a node over that line. An operator without a row kept its form; what it gained since (types, optional parts) acts
as before when it is left away.

Source: ONNX Changelog.md; where that left a meaning open, what ONNX Runtime does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from jaxq.errors import ModelError
from jaxq.graph.ir import FrozenDict, Graph, Literal, Node, unused_name
from jaxq.graph.passes import Params, drop_unused
from jaxq.ops import ELEMENT_TYPES

FLOATS = ("float16", "bfloat16", "float32", "float64")


def raise_opset(graph: Graph, params: Params, version: int) -> tuple[Graph, Params]:
    """The graph with each standard operator, in subgraphs too, in its form of opset `version`; the params as they are.

    New constant operands become `graph.constants`. A graph that already is at `version` or above is returned as it is.

    Raises:
      ModelError: an operator has no equal in the newer opset, or a rank must be known to write it; the node is named.
    """
    if graph.opsets.get("", 1) >= version:
        return graph, params
    raising = Raising(graph, params, version)
    raised = raising.graph(graph)
    raised, _ = drop_unused(replace(raised, constants=raised.constants | raising.added), params)
    return raised, params


class Raising:
    """What the steps may ask about the graph that is being raised, and the names and constants that they add to it."""

    def __init__(self, graph: Graph, params: Params, version: int):
        nodes = [node for _, node in graph.walk()]
        graphs = [graph, *(sub for node in nodes for sub in node.subgraphs)]
        self.version, self.params = version, params
        self.added: dict[str, Literal] = {}
        self.constants = {name: value for each in graphs for name, value in each.constants.items()}
        self.types = {name: known for each in graphs for name, known in each.types.items()}
        self.producers = {name: node for node in nodes for name in node.outputs if name}
        self.read = {name for node in nodes for name in node.inputs}
        self.read |= {name for each in graphs for name in each.outputs}
        given = {name for each in graphs for name in each.inputs}
        self.tensor_names = {*given, *self.producers, *self.constants, *params}
        self.node_names = {node.name for node in nodes}

    def graph(self, graph: Graph) -> Graph:
        nodes = tuple(raised for node in graph.nodes for raised in self.node(node))
        return replace(graph, nodes=nodes, opsets=graph.opsets | {"": self.version})

    def node(self, node: Node) -> list[Node]:
        """The nodes that stand for `node` at the new opset."""
        if node.subgraphs:
            attributes = {key: self.graph(a) if isinstance(a, Graph) else a for key, a in node.attributes.items()}
            node = replace(node, attributes=FrozenDict(attributes))
        if node.domain:
            return [node]
        for version, step in STEPS.get(node.op, ()):
            if node.version < version <= self.version:
                try:
                    results = step(node, self)
                except ModelError as error:
                    raise ModelError(f"{node} cannot be raised to opset {version}: {error}") from None
                return [raised for each in results for raised in self.node(replace(each, version=version))]
        return [replace(node, version=self.version)]

    def constant(self, node: Node, what: str, value: Any, dtype: str) -> str:
        """The name of a new constant operand of `node`."""
        name = unused_name(f"{node.outputs[0]}.{what}", self.tensor_names)
        self.constants[name] = self.added[name] = Literal.of(np.asarray(value, np.dtype(dtype)))
        return name

    def new(self, node: Node, op: str, *inputs: str, **attributes: Any) -> Node:
        """A further node beside `node`, with one output of its own."""
        output = unused_name(f"{node.outputs[0]}.{op}", self.tensor_names)
        return Node(op, inputs, (output,), FrozenDict(attributes), unused_name(f"{node.name}.{op}", self.node_names))

    def value(self, name: str) -> np.ndarray | None:
        """The value of a constant or a param; None if it is computed."""
        if name in self.constants:
            return self.constants[name].array
        return np.asarray(self.params[name]) if name in self.params else None

    def rank(self, name: str) -> int | None:
        """The rank of a tensor as far as it is declared."""
        value, declared = self.value(name), self.types.get(name)
        if value is not None:
            return value.ndim
        return None if declared is None or declared.shape is None else len(declared.shape)

    def known_rank(self, name: str) -> int:
        rank = self.rank(name)
        if rank is None:
            raise ModelError(f"the rank of {name!r} must be known; onnx.shape_inference.infer_shapes declares it")
        return rank

    def dtype(self, name: str) -> str:
        """The type of a float tensor: the declared one, or that of the nearest float tensor which it is made from."""
        pending = [name]
        while pending:
            name = pending.pop()
            value, declared, maker = self.value(name), self.types.get(name), self.producers.get(name)
            found = value.dtype.name if value is not None else declared.dtype if declared is not None else None
            if found is None and maker is not None and maker.op == "Cast" and isinstance(maker.attributes["to"], int):
                found = ELEMENT_TYPES[maker.attributes["to"]]
            if found in FLOATS:
                return found
            if found is None and maker is not None:
                pending += [*(each for sub in maker.subgraphs for each in sub.outputs), *reversed(maker.inputs)]
        return "float32"


# ----------------------------------------------------------------------------------------------------- kinds of changes

Step = Callable[[Node, Raising], tuple[Node, ...]]


def changed(node: Node, *dropped: str, **attributes: Any) -> Node:
    """The node with some attributes dropped and others set."""
    kept = {key: value for key, value in node.attributes.items() if key not in dropped}
    return replace(node, attributes=FrozenDict({**kept, **attributes}))


def reading(node: Node, *inputs: str) -> Node:
    """The node on other inputs; absent ones at the end are left away."""
    present = max((index + 1 for index, name in enumerate(inputs) if name), default=0)
    return replace(node, inputs=inputs[:present])


def without(*names: str) -> Step:
    """Attributes went that mean nothing for inference."""
    return lambda node, _: (changed(node, *names),)


def explicit(**defaults: Any) -> Step:
    """Defaults changed, or must be written now: the old ones are written out."""
    return lambda node, _: (changed(node, **{**defaults, **node.attributes}),)


def as_inputs(position: int, **dtypes: str | None) -> Step:
    """Attributes became inputs, in this order, from `position` on; a dtype of None is the data's own."""

    def step(node: Node, raising: Raising) -> tuple[Node, ...]:
        inputs = [*node.inputs, *[""] * (position - len(node.inputs))]
        for attribute, dtype in dtypes.items():
            value = node.attributes.get(attribute)
            known = dtype or raising.dtype(node.inputs[0])
            inputs.append("" if value is None else raising.constant(node, attribute, value, known))
        return (reading(changed(node, *dtypes), *inputs),)

    return step


def renamed(op: str) -> Step:
    """The operator goes by another name."""
    return lambda node, _: (replace(node, op=op),)


def refused(reason: str) -> Step:
    """Nothing in the newer opset does the same."""

    def step(node: Node, raising: Raising) -> tuple[Node, ...]:
        raise ModelError(reason)

    return step


def both(first: Step, second: Step) -> Step:
    """Two changes at one opset, of which the first keeps one node."""

    def step(node: Node, raising: Raising) -> tuple[Node, ...]:
        (only,) = first(node, raising)
        return second(only, raising)

    return step


def first_output_only(node: Node, raising: Raising) -> tuple[Node, ...]:
    """The further outputs are of training, and changed: they go if nobody reads them."""
    read = [name for name in node.outputs[1:] if name in raising.read]
    if read:
        raise ModelError(f"its output {read[0]!r} has a meaning in training only; export the model in evaluation mode")
    return (replace(node, outputs=node.outputs[:1]),)


# ---------------------------------------------------------------------------------------------- changes of one operator


def cast_6(node: Node, raising: Raising) -> tuple[Node, ...]:
    """The type was given by its name in TensorProto.DataType."""
    name = node.attributes["to"].lower()
    known = {"float": "float32", "double": "float64", "string": "object"}.get(name, name)
    return (changed(node, to=next(number for number, dtype in ELEMENT_TYPES.items() if dtype == known)),)


def lp_pool_2(node: Node, raising: Raising) -> tuple[Node, ...]:
    """The exponent was a float."""
    p = node.attributes.get("p", 2.0)
    if p != int(p):
        raise ModelError(f"p = {p}; from there on it is an integer")
    return (changed(node, p=int(p)),)


def pad_2(node: Node, raising: Raising) -> tuple[Node, ...]:
    return (changed(node, "paddings", pads=node.attributes["paddings"]),)


def split_2(node: Node, raising: Raising) -> tuple[Node, ...]:
    """The lengths could be an input, as they can again from opset 13 on."""
    if len(node.inputs) < 2:
        return (node,)
    lengths = raising.value(node.inputs[1])
    if lengths is None:
        raise ModelError(f"the lengths {node.inputs[1]!r} are computed; from there on they are an attribute")
    return (reading(changed(node, split=tuple(map(int, lengths))), node.inputs[0]),)


def tile_6(node: Node, raising: Raising) -> tuple[Node, ...]:
    """One axis was repeated, now each has its count."""
    data, *counts = node.inputs
    tiles, axis = (raising.value(name) for name in counts)
    if tiles is None or axis is None:
        raise ModelError("its tiles and axis are computed; they must be constants")
    repeats = np.ones(raising.known_rank(data), np.int64)
    repeats[int(axis.item())] = tiles.item()
    return (reading(node, data, raising.constant(node, "repeats", repeats, "int64")),)


def broadcast_7(node: Node, raising: Raising) -> tuple[Node, ...]:
    """The shape of B could stand anywhere in that of A, from `axis` on; now the last axes match."""
    axis, plain = node.attributes.get("axis"), changed(node, "axis", "broadcast")
    if axis is None or not node.attributes.get("broadcast", 0):
        return (plain,)
    rank, own = (raising.known_rank(name) for name in node.inputs)
    behind = rank - own - (axis % rank)
    if behind <= 0:
        return (plain,)
    wide = raising.new(node, "Unsqueeze", node.inputs[1], axes=tuple(range(own, own + behind)))
    return wide, reading(plain, node.inputs[0], *wide.outputs)


def prelu_7(node: Node, raising: Raising) -> tuple[Node, ...]:
    """A slope for each channel matched axis 1; now the last axes match."""
    data, slope = node.inputs
    value = raising.value(slope)
    shared = value is not None and value.size == 1
    behind = 0 if shared else raising.known_rank(data) - 2
    if behind <= 0:
        return (node,)
    wide = raising.new(node, "Unsqueeze", slope, axes=tuple(range(1, 1 + behind)))
    return wide, reading(node, data, *wide.outputs)


def upsample_7(node: Node, raising: Raising) -> tuple[Node, ...]:
    """The factors of the last two of four axes became those of all axes."""
    scales = (1.0, 1.0, node.attributes["height_scale"], node.attributes["width_scale"])
    return (changed(node, "height_scale", "width_scale", scales=scales),)


def batch_normalization_9(node: Node, raising: Raising) -> tuple[Node, ...]:
    """`spatial=0` normalized each cell [C, D1, ...] by statistics of its own: arithmetic, from there on."""
    plain = changed(node, "spatial")
    if node.attributes.get("spatial", 1):
        return (plain,)
    (first,) = first_output_only(plain, raising)
    x, scale, bias, mean, variance = node.inputs
    epsilon = raising.constant(node, "epsilon", node.attributes.get("epsilon", 1e-5), raising.dtype(x))
    centered = raising.new(node, "Sub", x, mean)
    positive = raising.new(node, "Add", variance, epsilon)
    deviation = raising.new(node, "Sqrt", *positive.outputs)
    factor = raising.new(node, "Div", scale, *deviation.outputs)
    scaled = raising.new(node, "Mul", *centered.outputs, *factor.outputs)
    shifted = reading(replace(first, op="Add", attributes=FrozenDict()), *scaled.outputs, bias)
    return centered, positive, deviation, factor, scaled, shifted


def top_k_10(node: Node, raising: Raising) -> tuple[Node, ...]:
    k = raising.constant(node, "k", [node.attributes["k"]], "int64")
    return (reading(changed(node, "k"), *node.inputs, k),)


def upsample_10(node: Node, raising: Raising) -> tuple[Node, ...]:
    mode = node.attributes.get("mode", "nearest")
    return (replace(changed(node, mode={"bilinear": "linear"}.get(mode, mode)), op="Resize"),)


def resize_11(node: Node, raising: Raising) -> tuple[Node, ...]:
    """Coordinates were x / scale. The standard left open which cell is the nearest: in ONNX Runtime it is the one below
    where an axis grows and the one above where it shrinks. One mode serves all axes now: doing both takes two nodes.
    """
    data, scales = node.inputs
    roi = raising.constant(node, "roi", (), "float32")  # an input that must be there until opset 13
    plain = changed(node, coordinate_transformation_mode="asymmetric")
    if node.attributes.get("mode", "nearest") != "nearest":
        return (reading(plain, data, roi, scales),)
    factors = raising.value(scales)
    if factors is not None and (np.all(factors >= 1) or np.all(factors <= 1)):
        nearest = "floor" if np.all(factors >= 1) else "ceil"
        return (reading(changed(plain, nearest_mode=nearest), data, roi, scales),)
    one = raising.constant(node, "one", 1.0, "float32")
    growth, shrinkage = raising.new(node, "Max", scales, one), raising.new(node, "Min", scales, one)
    grown = raising.new(node, "Resize", data, roi, *growth.outputs, **{**plain.attributes, "nearest_mode": "floor"})
    shrunk = reading(changed(plain, nearest_mode="ceil"), *grown.outputs, roi, *shrinkage.outputs)
    return growth, shrinkage, grown, shrunk


def resize_13(node: Node, raising: Raising) -> tuple[Node, ...]:
    """Inputs that are not used are absent rather than empty, and a coordinate mode went which others can express.

    floor((x + 0.5) / scale) is the half-pixel coordinate plus 0.5, rounded down: the nearest one, upwards at ties.
    """
    empty = {name for name in node.inputs if (value := raising.value(name)) is not None and value.size == 0}
    node = reading(node, *("" if name in empty else name for name in node.inputs))
    if node.attributes.get("coordinate_transformation_mode") != "tf_half_pixel_for_nn":
        return (node,)
    before = node.attributes.get("nearest_mode", "round_prefer_floor")
    nearest = {"floor": "round_prefer_ceil", "round_prefer_floor": "ceil"}.get(before)
    if node.attributes.get("mode", "nearest") != "nearest" or nearest is None:
        raise ModelError("coordinate_transformation_mode = 'tf_half_pixel_for_nn' went, and nothing does the same here")
    return (changed(node, coordinate_transformation_mode="half_pixel", nearest_mode=nearest),)


def softmax_13(node: Node, raising: Raising) -> tuple[Node, ...]:
    """All axes from `axis` on were one; now `axis` is alone. They are made one, unless it is the last."""
    data, axis = node.inputs[0], node.attributes.get("axis", 1)
    rank = raising.rank(data) or raising.rank(node.outputs[0])
    if axis == -1 or axis + 1 == rank:
        return (changed(node, axis=-1),)
    shape = raising.new(node, "Shape", data)
    rows = raising.new(node, "Flatten", data, axis=axis)
    done = raising.new(node, node.op, *rows.outputs, axis=-1)
    back = replace(node, op="Reshape", attributes=FrozenDict())
    return shape, rows, done, reading(back, *done.outputs, *shape.outputs)


def split_18(node: Node, raising: Raising) -> tuple[Node, ...]:
    """Without lengths, the number of parts must be written."""
    return (node if len(node.inputs) > 1 else changed(node, num_outputs=len(node.outputs)),)


def grid_sample_20(node: Node, raising: Raising) -> tuple[Node, ...]:
    mode = node.attributes.get("mode", "bilinear")
    return (changed(node, mode={"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)),)


def group_normalization_21(node: Node, raising: Raising) -> tuple[Node, ...]:
    """Scale and bias were one for each group; each is repeated for every channel of its group."""
    data, *each_group = node.inputs
    groups = raising.constant(node, "groups", [node.attributes["num_groups"]], "int64")
    behind = raising.constant(node, "axis", [1], "int64")
    flat = raising.constant(node, "flat", [-1], "int64")
    channels = raising.new(node, "Shape", data, start=1, end=2)
    size = raising.new(node, "Div", *channels.outputs, groups)
    table = raising.new(node, "Concat", groups, *size.outputs, axis=0)
    nodes: list[Node] = [channels, size, table]
    each_channel: list[str] = []
    for name in each_group:
        column = raising.new(node, "Unsqueeze", name, behind)
        repeated = raising.new(node, "Expand", *column.outputs, *table.outputs)
        nodes += [column, repeated, raising.new(node, "Reshape", *repeated.outputs, flat)]
        each_channel += nodes[-1].outputs
    return *nodes, reading(node, data, *each_channel)


# ---------------------------------------------------------------------------------------------------------- all changes

ARITHMETIC = "Add Sub Mul Div"
IN_PLACE = (
    "Abs BatchNormalization Ceil Clip Dropout Elu Exp Floor HardSigmoid InstanceNormalization LeakyRelu Log Max Mean "
    "Min Neg PRelu Reciprocal Relu Sigmoid Sqrt Sum Tanh"
)
REDUCTIONS = "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSumSquare"

HISTORY: tuple[tuple[int, str, Step], ...] = (
    (2, "GlobalLpPool LpPool", lp_pool_2),
    (2, "Pad", pad_2),
    (2, "Split", split_2),
    (4, "Concat", explicit(axis=1)),
    (5, "Reshape", both(without("consumed_inputs"), as_inputs(1, shape="int64"))),
    (6, f"{ARITHMETIC} {IN_PLACE}", without("consumed_inputs")),
    (6, "Cast", cast_6),
    (6, "Selu", both(without("consumed_inputs"), explicit(alpha=1.673200011253357, gamma=1.0506999492645264))),
    (6, "Tile", tile_6),
    (7, f"{ARITHMETIC} And Equal Greater Less Or Pow Xor", broadcast_7),
    (7, "BatchNormalization Dropout", without("is_test")),
    (7, "GRU LSTM RNN", without("output_sequence")),
    (7, "Gemm", without("broadcast")),  # the last axes of C matched already
    (7, "PRelu", prelu_7),
    (7, "Upsample", upsample_7),
    (9, "BatchNormalization", batch_normalization_9),
    (9, "Scan", refused("the batch axis of Scan is gone; export the model with opset 9 or newer")),
    (9, "Upsample", as_inputs(1, scales="float32")),
    (10, "Dropout", first_output_only),
    (10, "Slice", as_inputs(1, starts="int64", ends="int64", axes="int64")),
    (10, "TopK", top_k_10),
    (10, "Upsample", upsample_10),
    (11, "Clip", as_inputs(1, min=None, max=None)),
    (11, "Pad", as_inputs(1, pads="int64", value=None)),
    (11, "Resize", resize_11),
    (11, "Scatter", renamed("ScatterElements")),
    (12, "Dropout", both(first_output_only, as_inputs(1, ratio="float32"))),
    (13, "Hardmax LogSoftmax Softmax", softmax_13),
    (13, "ReduceSum Squeeze Unsqueeze", as_inputs(1, axes="int64")),
    (13, "Resize", resize_13),
    (13, "Split", as_inputs(1, split="int64")),
    (14, "BatchNormalization", first_output_only),
    (16, "RoiAlign", explicit(coordinate_transformation_mode="output_half_pixel")),
    (18, REDUCTIONS, as_inputs(1, axes="int64")),
    (18, "Split", split_18),
    (20, "DFT", both(explicit(axis=1), as_inputs(2, axis="int64"))),
    (20, "GridSample", grid_sample_20),
    (21, "GroupNormalization", group_normalization_21),
)

# Operator -> its changes, oldest first.
STEPS: Mapping[str, tuple[tuple[int, Step], ...]] = {
    op: tuple((version, step) for version, ops, step in HISTORY if op in ops.split())
    for op in sorted({op for _, ops, _ in HISTORY for op in ops.split()})
}
