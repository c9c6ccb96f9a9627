"""Passes that merge arithmetic with constants into the layers before it, so that these are what integer kernels take.

Each leaves the function of the model unchanged up to float rounding; the merging itself is computed in float64. Weights that
others read, too, are copied first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from jaxq.graph.clamps import write_clips
from jaxq.graph.ir import FrozenDict, Graph, Node, map_graphs, map_nodes, node_names, tensor_names, unused_name
from jaxq.graph.linear import BIASED, Linear, is_linear
from jaxq.graph.passes import Numbers, Params, clean, until_stable
from jaxq.graph.ranks import ranks

ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div"})
UNEVEN = 4.0  # how many times the smallest row of a constant the largest must be to get a scale of its own
Affine = tuple[np.ndarray, np.ndarray]  # factor [C], shift [C] of each channel


def simplify_gemm(graph: Graph, params: Params) -> tuple[Graph, Params]:
    """Gives each Gemm alpha = beta = 1 and a bias [N] of its own, or none.

        alpha * A @ B + beta * C = A @ (alpha * B) + (beta * C broadcast to [N])

    A C that differs from row to row, or is computed, becomes an Add behind the product.
    """
    numbers, names = Numbers(graph, params), node_names(graph)
    taken = {*tensor_names(graph), *params}

    def change(_: Graph, node: Node) -> tuple[Node, ...]:
        if node.op != "Gemm" or node.domain:
            return (node,)
        node = _without_alpha(node, numbers)
        if len(node.inputs) < 3 or not node.inputs[2]:
            return (_with(node, beta=1.0),)
        return _with_plain_bias(node, numbers, names, taken)

    changed = map_nodes(graph, change)
    return numbers.result(changed)


def _without_alpha(node: Node, numbers: Numbers) -> Node:
    """The Gemm with alpha in one of its factors, if one is constant."""
    alpha = node.attributes.get("alpha", 1.0)
    for index in (1, 0) if alpha != 1.0 else ():
        name = node.inputs[index]
        if name in numbers.params:
            factor = np.asarray(numbers.params[name], np.float64) * alpha
            new = numbers.put(name, factor, f"{node.outputs[0]}.weight", numbers.params[name].dtype)
            return _with(node, index, new, alpha=1.0)
    return node


def _with_plain_bias(node: Node, numbers: Numbers, names: set[str], taken: set[str]) -> tuple[Node, ...]:
    """The Gemm with a bias [N] that it alone reads; or the product, and an Add of what is no such bias."""
    beta, name = node.attributes.get("beta", 1.0), node.inputs[2]
    bias, linear = numbers.get(name), Linear.of(node, numbers.params)
    if bias is not None and linear is not None:
        count, dtype = linear.outputs, numbers.params[linear.weight].dtype
        if bias.size == (bias.shape or (1,))[-1] and bias.size in (1, count):
            if beta == 1.0 and bias.shape == (count,) and name in numbers.params:
                return (node,)
            own = numbers.own(name, np.full(count, beta) * bias.reshape(-1), f"{node.outputs[0]}.bias", dtype)
            return (_with(node, 2, own, beta=1.0),)
    if bias is None and beta != 1.0:
        return (node,)  # a computed bias and a factor: rare enough to stay
    made = unused_name(f"{node.outputs[0]}.product", taken)
    if bias is not None and beta != 1.0:
        dtype = numbers.params[name].dtype if name in numbers.params else np.float32
        name = numbers.put(name, bias * beta, f"{node.outputs[0]}.bias", dtype)
    product = replace(_with(node, beta=1.0), inputs=node.inputs[:2], outputs=(made,))
    added = unused_name(f"{node.name}.bias", names)
    return product, Node("Add", (made, name), node.outputs, name=added, version=node.version)


def _with(node: Node, index: int | None = None, name: str = "", **attributes: Any) -> Node:
    """The node with another tensor at one input and with these attributes, the same object if that is what it has."""
    inputs = tuple(name if place == index else each for place, each in enumerate(node.inputs))
    merged = node.attributes | attributes if attributes.keys() & node.attributes.keys() else node.attributes
    same = inputs == node.inputs and merged == node.attributes
    return node if same else replace(node, inputs=inputs, attributes=FrozenDict(merged))


def fold_affine(graph: Graph, params: Params) -> tuple[Graph, Params]:
    """Merges a BatchNormalization, and arithmetic with one constant a channel, into the linear layer before it.

        y = (conv(x, W) + b) * factor + shift = conv(x, W * factor) + b * factor + shift

    For BatchNormalization, factor = gamma / sqrt(variance + epsilon) and shift = beta - mean * factor. A MatMul between
    matrices that gets a bias becomes a Gemm, as in ONNX Runtime, which would miss its integer kernel otherwise. Left alone: a
    BatchNormalization in training form or along another axis than the layer's channels, and a layer whose result is read
    elsewhere, too.
    """
    numbers, known = Numbers(graph, params), ranks(graph, params)
    changed = map_graphs(graph, lambda inner: _fold_affine_once(inner, numbers, known))
    return numbers.result(changed)


def _fold_affine_once(graph: Graph, numbers: Numbers, known: Mapping[str, int]) -> Graph:
    """One step of arithmetic behind each linear layer of a graph."""
    merged: dict[str, Node] = {}  # name of the linear layer -> what it becomes
    dropped: set[str] = set()
    for node in graph.nodes:
        if node.domain or node.op not in ARITHMETIC | {"BatchNormalization"}:
            continue
        for index, name in enumerate(node.inputs[: 1 if node.op == "BatchNormalization" else 2]):
            before = graph.producers.get(name)
            if before is None or not is_linear(before) or before.name in merged:
                continue
            if before.name in dropped or len(graph.consumers[name]) != 1 or name in graph.outputs:
                continue
            found = _merged(before, node, index, known.get(name), numbers)
            if found is not None:
                merged[before.name] = found
                dropped.add(node.name)
    if not merged:
        return graph
    nodes = tuple(merged.get(node.name, node) for node in graph.nodes if node.name not in dropped)
    return replace(graph, nodes=nodes)


def _merged(before: Node, node: Node, index: int, rank: int | None, numbers: Numbers) -> Node | None:
    """The linear layer that gives what `node` gives, whose input `index` is its result, of that rank; None if there is none."""
    linear = Linear.of(before, numbers.params)
    if linear is None or not linear.is_unscaled or numbers.params[linear.weight].dtype.kind in "iub":
        return None
    with np.errstate(all="ignore"):
        affine = (
            _normalization(before, node, rank, numbers)
            if node.op == "BatchNormalization"
            else _arithmetic(node, index, linear, rank, numbers)
        )
        if affine is None or any(each.shape != (linear.outputs,) for each in affine):
            return None
        return _scaled(linear, node, affine, rank, numbers)


def _normalization(before: Node, node: Node, rank: int | None, numbers: Numbers) -> Affine | None:
    """Factor and shift of a BatchNormalization, whose channels are on axis 1: the last one of a product if it is a matrix."""
    operands = [numbers.get(name) for name in node.inputs[1:]]
    if before.op == "MatMul" and rank != 2:
        return None
    if len(operands) != 4 or any(each is None or each.ndim != 1 for each in operands):
        return None
    if node.attributes.get("training_mode", 0) or len([name for name in node.outputs if name]) > 1:
        return None
    gamma, beta, mean, variance = operands
    factor = gamma / np.sqrt(variance + node.attributes.get("epsilon", 1e-5))
    return factor, beta - mean * factor


def _arithmetic(node: Node, index: int, before: Linear, rank: int | None, numbers: Numbers) -> Affine | None:
    """Factor and shift of an Add, Sub, Mul or Div whose other operand is constant, with one value a channel or for all."""
    value = numbers.get(node.inputs[1 - index])
    if value is None or node.version < 7:  # older ones do not broadcast by themselves
        return None
    if rank is None and value.ndim > 1:
        return None  # it might add an axis
    axis, count = before.channel_axis, before.outputs
    shape = (1,) * ((rank or 1) - value.ndim) + value.shape
    if len(shape) != (rank or 1) or shape[axis] not in (1, count) or value.size != shape[axis]:
        return None
    vector = np.broadcast_to(value.reshape(-1), (count,))
    ones, zeros = np.ones(count), np.zeros(count)
    forms: Mapping[tuple[str, int], Callable[[], Affine | None]] = {
        ("Add", 0): lambda: (ones, vector),
        ("Add", 1): lambda: (ones, vector),
        ("Sub", 0): lambda: (ones, -vector),
        ("Sub", 1): lambda: (-ones, vector),
        ("Mul", 0): lambda: (vector, zeros),
        ("Mul", 1): lambda: (vector, zeros),
        ("Div", 0): lambda: (1 / vector, zeros),
        ("Div", 1): lambda: None,  # one over the result
    }
    return forms[node.op, index]()


def _scaled(linear: Linear, node: Node, affine: Affine, rank: int | None, numbers: Numbers) -> Node | None:
    """The layer with its output times factor plus shift; None where its numbers do not fit their type, or it takes no bias."""
    (factor, shift), before = affine, linear.node
    name, weight = linear.weight, numbers.params[linear.weight]
    if before.op == "MatMul" and shift.any() and (rank != 2 or weight.ndim != 2):
        return None
    bias = numbers.get(linear.bias) if linear.bias else np.zeros(len(factor))
    if bias is None or bias.shape != factor.shape:
        return None
    value = np.asarray(weight, np.float64)
    scaled, moved = value * linear.along_output(factor), bias * factor + shift
    largest = np.finfo(weight.dtype).max if weight.dtype.kind == "f" else np.inf
    if max(np.abs(scaled).max(initial=0.0), np.abs(moved).max(initial=0.0)) <= largest:  # NaN is not
        if (factor != 1).any():
            name = numbers.put(name, scaled, f"{node.outputs[0]}.weight", weight.dtype)
        operands = [before.inputs[0], name]
        if linear.bias or (before.op in BIASED and node.op in ("Add", "Sub", "BatchNormalization")) or shift.any():
            operands.append(_bias(linear, node, moved, numbers, weight.dtype))
        op = "Gemm" if before.op == "MatMul" and len(operands) > 2 else before.op
        return replace(before, op=op, inputs=tuple(operands), outputs=node.outputs)
    return None


def _bias(before: Linear, node: Node, value: np.ndarray, numbers: Numbers, dtype: Any) -> str:
    """The name of the merged bias: of that of the layer, or of the constant that was added to a MatMul."""
    name = before.bias
    if not name and before.node.op == "MatMul":
        name = next((each for each in node.inputs if numbers.is_own(each)), "")
    return numbers.own(name, value, f"{node.outputs[0]}.bias", dtype)


def even_rows(graph: Graph, params: Params) -> tuple[Graph, Params]:
    """MatMul of a constant and data, rows of very different size: the constant's rows become alike, and a Mul behind scales them.

        W @ x = r * ((W / r) @ x),   r [M, 1]: the largest absolute value of each row; [M] if x is a vector, as is the result

    The kernels take one scale for what stands on the left, and one scale would make zeros of the small rows. Left alone: a
    product with data of unknown rank.
    """
    numbers, taken = Numbers(graph, params), {*tensor_names(graph), *params}
    names, known = node_names(graph), ranks(graph, params)

    def change(_: Graph, node: Node) -> tuple[Node, ...]:
        weight = numbers.params.get(node.inputs[0]) if node.op == "MatMul" and not node.domain else None
        if weight is None or weight.ndim < 2 or weight.dtype.kind != "f" or numbers.get(node.inputs[1]) is not None:
            return (node,)
        rank = known.get(node.inputs[1])
        if rank is None:
            return (node,)
        value = np.asarray(weight, np.float64)
        sizes = np.abs(value).max(axis=-1, keepdims=True, initial=0.0)
        if not np.isfinite(sizes).all() or not (sizes[sizes > 0] * UNEVEN < sizes.max(initial=0.0)).any():
            return (node,)
        sizes = np.where(sizes > 0, sizes, 1.0)
        left = numbers.put(node.inputs[0], value / sizes, f"{node.outputs[0]}.weight", weight.dtype)
        rows = numbers.put("", sizes[..., 0] if rank == 1 else sizes, f"{node.outputs[0]}.rows", weight.dtype)
        made = unused_name(f"{node.outputs[0]}.even", taken)
        scaled = unused_name(f"{node.name}.rows", names)
        product = replace(node, inputs=(left, node.inputs[1]), outputs=(made,))
        return product, Node("Mul", (made, rows), node.outputs, name=scaled, version=node.version)

    changed = map_nodes(graph, change)
    return numbers.result(changed)


def add_missing_biases(graph: Graph, params: Params) -> tuple[Graph, Params]:
    """Gives each Conv, ConvTranspose and Gemm with its weight in the params a bias of zeros where it has none."""
    numbers = Numbers(graph, params)

    def change(_: Graph, node: Node) -> tuple[Node, ...]:
        linear = Linear.of(node, params)
        if linear is None or node.op not in BIASED or linear.bias:
            return (node,)
        dtype = params[linear.weight].dtype
        name = numbers.own("", np.zeros(linear.outputs), f"{node.outputs[0]}.bias", dtype)
        return (replace(node, inputs=(*node.inputs[:2], name)),)

    changed = map_nodes(graph, change)
    return numbers.result(changed)


fuse = until_stable(simplify_gemm, fold_affine, even_rows, write_clips, clean)
