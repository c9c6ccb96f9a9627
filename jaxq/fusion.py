"""Passes that merge arithmetic with constants into the weights before it, so that fewer float operations stay.

Each leaves the function of the model unchanged up to float rounding; the merging itself is computed in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from jaxq.graph import Graph, Node, map_nodes, tensor_names, unused_name
from jaxq.passes import Params, clean, until_stable


def fold_batch_normalization(graph: Graph, params: Params) -> tuple[Graph, Params]:
    """Merges BatchNormalization into the Conv, ConvTranspose or Gemm before it.

        y = (conv(x, W) + b - mean) * f + beta,  f = gamma / sqrt(variance + epsilon)
          = conv(x, W * f) + (b - mean) * f + beta

    Left alone: a BatchNormalization in training form, one whose producer has other readers, and shared weights.
    """

    def merge(before: Node, node: Node, numbers: dict[str, Any]) -> Node | None:
        if len(node.inputs) != 5 or any(name not in numbers for name in node.inputs[1:]):
            return None
        if node.attributes.get("training_mode", 0) or len([name for name in node.outputs if name]) > 1:
            return None
        gamma, beta, mean, variance = (np.asarray(numbers[name], np.float64) for name in node.inputs[1:])
        factor = gamma / np.sqrt(variance + node.attributes.get("epsilon", 1e-5))
        return scale_and_shift(graph, before, node, factor, beta - mean * factor, numbers)

    return _merge_into_producer(graph, params, "BatchNormalization", merge)


def fold_bias_add(graph: Graph, params: Params) -> tuple[Graph, Params]:
    """Merges the Add of a per-channel constant into the bias of the Conv or ConvTranspose before it.

    The constant must have one value for each channel of the convolution's output, [C, 1, 1] or [1, C, 1, 1].
    """

    def merge(before: Node, node: Node, numbers: dict[str, Any]) -> Node | None:
        constant = next((name for name in node.inputs if name in numbers), None)
        if constant is None or before.op == "Gemm":
            return None
        shift, weight = np.asarray(numbers[constant], np.float64), numbers[before.inputs[1]]
        channels, rank = channel_count(before, weight.shape), weight.ndim
        per_channel = (channels, *([1] * (rank - 2)))
        if shift.shape not in (per_channel, (1, *per_channel)):
            return None
        return scale_and_shift(graph, before, node, np.ones(channels), shift.reshape(-1), numbers)

    return _merge_into_producer(graph, params, "Add", merge)


def merge_matrix_bias(graph: Graph, params: Params) -> tuple[Graph, Params]:
    """MatMul by a matrix, then Add of a vector, where the input is known to have rank 2: one Gemm.

    ONNX Runtime does the same before it looks for integer kernels, and then misses them: quantizers were put around a MatMul.
    """
    numbers, merged, dropped = dict(params), {}, set()
    for add in graph.nodes if graph.opsets.get("", 17) >= 7 else ():  # older ones do not broadcast by themselves
        product = next((graph.producers[name] for name in add.inputs if name in graph.producers), None)
        if add.op != "Add" or add.domain or product is None or product.op != "MatMul" or product.domain:
            continue
        matrix, made = product.inputs[1], product.outputs[0]
        vector = next((name for name in add.inputs if name != made), made)
        if not (
            owned(graph, params, matrix) and owned(graph, params, vector) and has_rank_two(graph, product.inputs[0])
        ):
            continue
        shape, width = np.shape(params[vector]), np.shape(params[matrix])[-1:]
        if len(graph.consumers[made]) > 1 or made in graph.outputs or np.ndim(params[matrix]) != 2:
            continue
        if shape not in (width, (1, *width)):
            continue
        numbers[vector] = np.asarray(params[vector]).reshape(width)
        operands = (product.inputs[0], matrix, vector)
        merged[add.name] = Node("Gemm", operands, add.outputs, name=product.name, version=product.version)
        dropped.add(product.name)
    if not merged:
        return graph, params
    nodes = tuple(merged.get(node.name, node) for node in graph.nodes if node.name not in dropped)
    return replace(graph, nodes=nodes), numbers


def has_rank_two(graph: Graph, name: str) -> bool:
    """Whether the tensor is known to be a matrix: declared, flattened or reshaped so, or made by a Gemm, or pointwise of one."""
    declared = graph.types.get(name)
    if declared is not None and declared.shape is not None:
        return len(declared.shape) == 2
    node = graph.producers.get(name)
    if node is None or node.domain:
        return False
    if node.op in ("Relu", "LeakyRelu", "Clip", "Sigmoid", "Tanh", "Dropout", "Identity"):
        return has_rank_two(graph, node.inputs[0])
    if node.op == "Reshape":
        sizes = graph.constants.get(node.inputs[1]) if len(node.inputs) > 1 else None
        return sizes is not None and sizes.array.size == 2
    return node.op in ("Flatten", "Gemm")


def scale_and_shift(
    graph: Graph, before: Node, node: Node, factor: np.ndarray, shift: np.ndarray, numbers: dict[str, Any]
) -> Node | None:
    """`before`, changed to give what `node` gives: its output times factor [C] plus shift [C]. Writes into `numbers`."""
    name = before.inputs[1]
    weight = np.asarray(numbers[name], np.float64)
    has_bias = len(before.inputs) > 2 and before.inputs[2]
    bias = np.asarray(numbers[before.inputs[2]], np.float64) if has_bias else np.zeros(len(factor))
    if bias.shape != factor.shape or channel_count(before, weight.shape) != len(factor):
        return None
    bias_name = before.inputs[2] if has_bias else new_bias_name(graph, node, numbers)
    numbers[name] = (weight * _along_output(before, weight, factor)).astype(numbers[name].dtype)
    numbers[bias_name] = (bias * factor + shift).astype(numbers[name].dtype)
    return replace(before, inputs=(*before.inputs[:2], bias_name), outputs=node.outputs)


def scale_output(node: Node, numbers: dict[str, Any], factor: np.ndarray) -> None:
    """Multiplies each output channel of a linear node by its factor [C], in its weight and bias. Writes into `numbers`."""
    for position, name in enumerate(node.inputs[1:3], start=1):
        if name:
            value = np.asarray(numbers[name], np.float64)
            spread = _along_output(node, value, factor) if position == 1 else factor
            numbers[name] = (value * spread).astype(numbers[name].dtype)


def channel_count(node: Node, weight_shape: tuple[int, ...]) -> int:
    """Output channels of a Conv, ConvTranspose or Gemm with that weight."""
    if node.op == "ConvTranspose":
        return weight_shape[1] * int(node.attributes.get("group", 1))
    return weight_shape[0] if node.op == "Conv" or node.attributes.get("transB", 0) else weight_shape[1]


def _along_output(node: Node, weight: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """factor [C] in a shape that multiplies each output channel of the weight."""
    if node.op == "Conv":
        return factor.reshape(-1, *([1] * (weight.ndim - 1)))
    if node.op == "Gemm":
        return factor[:, None] if node.attributes.get("transB", 0) else factor[None, :]
    groups = int(node.attributes.get("group", 1))  # ConvTranspose: [in, out / groups, ...]
    spread = np.repeat(factor.reshape(groups, 1, -1), weight.shape[0] // groups, axis=1).reshape(weight.shape[:2])
    return spread.reshape(*weight.shape[:2], *([1] * (weight.ndim - 2)))


def new_bias_name(graph: Graph, node: Node, numbers: Mapping[str, Any]) -> str:
    """`<output>.bias`, or that with a number where another tensor has the name."""
    return unused_name(f"{node.outputs[0]}.bias", {*numbers, *tensor_names(graph)})


def add_missing_biases(graph: Graph, params: Params) -> tuple[Graph, Params]:
    """Gives each Conv, ConvTranspose and Gemm with its weight in the params a bias of zeros where it has none."""
    numbers = dict(params)

    def change(_: Graph, node: Node) -> tuple[Node, ...]:
        absent = len(node.inputs) < 3 or not node.inputs[2]
        if (
            node.op not in ("Conv", "ConvTranspose", "Gemm")
            or node.domain
            or not absent
            or node.inputs[1] not in params
        ):
            return (node,)
        weight = params[node.inputs[1]]
        name = new_bias_name(graph, node, numbers)
        numbers[name] = np.zeros(channel_count(node, weight.shape), weight.dtype)
        return (replace(node, inputs=(*node.inputs[:2], name)),)

    changed = map_nodes(graph, change)
    return (graph, params) if changed is graph else (changed, numbers)


def _merge_into_producer(graph: Graph, params: Params, op: str, merge: Any) -> tuple[Graph, Params]:
    """Applies `merge(before, node, numbers) -> new node or None` wherever `op` follows a linear operator all by itself."""
    numbers = dict(params)
    replaced: dict[str, Node] = {}  # name of the node before -> its successor
    dropped: set[str] = set()
    for before, node in _pairs(graph, op, numbers):
        if before.name in replaced or before.name in dropped:
            continue
        merged = merge(before, node, numbers)
        if merged is not None:
            replaced[before.name] = merged
            dropped.add(node.name)
    if not dropped:
        return graph, params
    nodes = tuple(replaced.get(node.name, node) for node in graph.nodes if node.name not in dropped)
    return replace(graph, nodes=nodes), numbers


def _pairs(graph: Graph, op: str, numbers: Mapping[str, Any]) -> Iterator[tuple[Node, Node]]:
    """(linear node, the `op` node that alone reads its output), where the weights are params of this one linear node."""
    for node in graph.nodes:
        for name in node.inputs[: 2 if op == "Add" else 1]:
            before = graph.producers.get(name)
            if node.op != op or before is None or before.op not in ("Conv", "ConvTranspose", "Gemm") or before.domain:
                continue
            own = all(owned(graph, numbers, each) for each in before.inputs[1:] if each)
            plain = (
                before.op != "Gemm" or before.attributes.get("alpha", 1.0) == before.attributes.get("beta", 1.0) == 1.0
            )
            if own and plain and len(graph.consumers[name]) == 1 and name not in graph.outputs:
                yield before, node


def owned(graph: Graph, params: Mapping[str, Any], name: str) -> bool:
    """Whether the tensor is a param that one node alone reads, so that it may be changed with this node."""
    return name in params and len(graph.consumers[name]) == 1 and name not in graph.outputs


fuse = until_stable(fold_batch_normalization, fold_bias_add, merge_matrix_bias, clean)
