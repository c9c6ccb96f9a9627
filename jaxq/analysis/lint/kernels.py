"""Why a node runs in float all the same, though its inputs are quantized."""

from __future__ import annotations

import numpy as np

from jaxq.analysis.lint.network import Network
from jaxq.graph.ir import Node
from jaxq.placement.targets import Rule

Reason = tuple[str, str]  # what is the matter, and what to do
MATRIX = 2  # axes
BIAS = 2  # the input of Gemm and Conv


def why_float(network: Network, node: Node, rule: Rule) -> Reason | None:
    """Why a node whose inputs are quantized runs in float, or None: it does not.

    What is behind a target's table: a runtime that looks for quantizers around a node (ONNX Runtime, which also makes biases
    int32 by itself) takes only nodes whose result has one reader, and products whose bias is in units of the product.
    """
    if rule.stored:
        problem = "this runtime has no integer kernel for it, its weight is kept in integers for size alone"
        return problem, "leave it out of quantization if size does not matter"
    if reason := why_float_weights(network, node, rule):
        return reason
    quantized = has_quantized_output(network, node)
    if rule.output and not quantized:
        problem = f"its result {node.outputs[0]!r} is not quantized"
        return problem, "put a pair of quantizers behind it, or accept it where the result is an output of the model"
    if not network.target.rounds_biases or not rule.weights:
        return None
    alone = is_read_once(network, node)
    if (quantized if rule.output else is_read_by_quantizer(network, node.outputs[0])) and not alone:
        problem = f"its result {node.outputs[0]!r} is quantized for one of its readers, and read by others or an output"
        return problem, "let all of them read it through that pair of quantizers"
    if node.op == "Gemm":
        return why_float_gemm(network, node, quantized and alone)
    if node.op == "MatMul" and not (quantized and alone):
        return why_float_matmul(network, node)
    return None


def why_float_weights(network: Network, node: Node, rule: Rule) -> Reason | None:
    """The same of a node whose weights are of a type that the integer kernel does not have."""
    for index in rule.weights if network.target.float_weights else ():
        each = network.seen.get(node.inputs[index]) if index < len(node.inputs) else None
        if each is None or each.role != "weight":
            continue
        shifted = each.zero_point is not None and np.any(each.zero_point)
        if each.type in network.target.float_weights or shifted:
            problem = f"its weights are {each.type}{' with a zero point' if shifted else ''}"
            return problem, "quantize them to int8, symmetrically"
    return None


def why_float_gemm(network: Network, node: Node, quantized: bool) -> Reason | None:
    """The same of a Gemm: its bias is added in integers."""
    bias = node.inputs[BIAS] if len(node.inputs) > BIAS else ""
    if not bias:
        return None
    factors = {key: node.attributes.get(key, 1.0) for key in ("alpha", "beta")}
    for key, value in factors.items():
        if value != 1.0:
            return f"its {key} is {value:g} beside a bias", f"multiply its weight or bias by {key}"
    if not quantized and not network.is_quantized(bias):
        return "its bias is in float and its result is not quantized", "quantize the bias to int32, or the result"
    return None


def why_float_matmul(network: Network, node: Node) -> Reason | None:
    """The same of a MatMul: with an Add of a bias or a matrix behind it, it is made a Gemm, where the shapes are known."""
    added = network.wiring.added(node.outputs[0])
    if added is None:
        return None
    addition, other = added
    bias = network.values.get(other)
    problem = f"the runtime makes a Gemm of it and Add {addition.name!r}, with "
    if bias is None:
        if network.ranks.get(node.outputs[0]) != MATRIX or network.ranks.get(other) not in (1, MATRIX):
            return None
        if is_merged_first(network, other, node):
            return None
        return f"{problem}{other!r} in float as its bias", "quantize its result, in front of the addition"
    if np.ndim(bias) not in (1, MATRIX) or np.size(bias) == 1 or not becomes_gemm(network, node):
        return None
    if has_quantized_output(network, addition):
        return None
    return (
        f"{problem}a bias in float, and the sum is not quantized",
        "quantize the sum, or write a Gemm with a bias in int32",
    )


def is_merged_first(network: Network, other: str, node: Node) -> bool:
    """Whether the other summand is a product too, which the runtime meets first, and merges with the sum."""
    maker = network.producer.get(other)
    alone = network.wiring.only_reader(other) is not None
    first = next((each for each in network.nodes if each is maker or each is node), node)
    return maker is not None and maker.op == "MatMul" and alone and first is maker


def becomes_gemm(network: Network, node: Node) -> bool:
    """Whether the data of a product is known to be a matrix, or all shapes of the model are known."""
    declared = [network.model.graph.types.get(name) for name in network.model.graph.inputs]
    fixed = all(
        each is not None and each.shape is not None and all(isinstance(size, int) for size in each.shape)
        for each in declared
    )
    return fixed or network.ranks.get(node.inputs[0]) == MATRIX


def is_read_once(network: Network, node: Node) -> bool:
    """Whether one node alone reads the result, and what a merged activation function makes of it."""
    behind = activation_behind(network, node)
    names = [node.outputs[0], *([behind.outputs[0]] if behind is not None else [])]
    return all(network.wiring.only_reader(name) is not None for name in names)


def has_quantized_output(network: Network, node: Node) -> bool:
    """Whether a QuantizeLinear reads the output, behind an activation function that is merged or not."""
    merged = activation_behind(network, node)
    return is_read_by_quantizer(network, merged.outputs[0] if merged is not None else node.outputs[0])


def is_read_by_quantizer(network: Network, name: str) -> bool:
    return any(reader.op == "QuantizeLinear" for reader, _ in network.readers.get(name, ()))


def activation_behind(network: Network, node: Node) -> Node | None:
    """The activation function that alone reads the output, of a kernel that takes it up."""
    behind = network.wiring.only_reader(node.outputs[0]) if node.op in network.target.fusing else None
    return behind[0] if behind is not None and behind[0].op in network.target.fused else None
