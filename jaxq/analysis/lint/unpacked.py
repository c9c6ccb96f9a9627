"""Compressed weights that the runtime does not merge into a kernel, but turns into floats at every run."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from jaxq.analysis.lint.findings import Finding, Severity, finding
from jaxq.analysis.lint.network import QuantizedNetwork
from jaxq.graph.ir import Node
from jaxq.graph.linear import Linear, is_product
from jaxq.onnx_io.matmul_nbits import SMALLEST_BLOCK, takes_block, takes_product

ADVICE = "save the model with jaxq, which gives each product one of its own"
CLAMPS = "save the model with jaxq, which writes Max and Min instead"


def unpacked(network: QuantizedNetwork, node: Node) -> Iterator[Finding]:
    """Whether a DequantizeLinear of a weight alone is merged with the product that reads it."""
    if node.op != "DequantizeLinear" or not network.target.merges_weights or network.quantizes_activations:
        return
    value = network.values.get(node.inputs[0])
    if value is None or value.size < 2 or value.dtype.itemsize > 1:
        return  # computed, or a bias
    problem, advice = why_unpacked(network, node) or ("", "")
    if problem:
        yield finding(Severity.SLOW, node, f"{problem}: {value.size:,} weights are unpacked at every run", advice)


def why_unpacked(network: QuantizedNetwork, node: Node) -> tuple[str, str] | None:
    """What keeps the runtime from merging it, and what to do; None if it does merge."""
    readers = network.readers.get(node.outputs[0], ())
    if not any(is_product(reader) or reader.op == "Gather" for reader, _ in readers):
        return None  # no weight of those that are compressed for the runtime
    reader, index = readers[0]
    if len(readers) > 1:
        return f"{len(readers)} nodes read it", ADVICE
    if any(len(network.readers.get(name, ())) > 1 for name in node.inputs[:2]):
        return "another DequantizeLinear reads the same constants", ADVICE
    if not is_product(reader):
        return f"{reader.op} {reader.name!r} reads it", "leave this weight in float, if the file may be larger"
    rank = np.ndim(network.values[node.inputs[0]])
    if index != 1 or rank != 2:
        where = f"its rank is {rank}" if rank != 2 else f"it is not the second factor of {reader.op} {reader.name!r}"
        return where, "leave this weight in float, if the file may be larger"
    linear = Linear(reader, np.shape(network.values[node.inputs[0]]))
    if linear.input_axis:
        return f"{reader.op} {reader.name!r} transposes it", ADVICE
    return why_no_kernel(network, node, linear)


def why_no_kernel(network: QuantizedNetwork, node: Node, linear: Linear) -> tuple[str, str] | None:
    """The same for the only product that reads the weight as its second factor."""
    reader = linear.node
    axis, size = node.attributes.get("axis", 1), int(node.attributes.get("block_size", 0))
    scales = network.values.get(node.inputs[1])
    if scales is None or (scales.size > 1 and (axis == linear.input_axis) != bool(size)):
        return f"its scales are along axis {axis}", "give each output channel its scales"
    if size and not takes_block(size):
        return f"its groups are of {size}", f"take groups of {SMALLEST_BLOCK}, 32, 64 or another power of two"
    bias = network.values.get(linear.bias)
    if not takes_product(linear, None if bias is None else np.shape(bias)):
        problem = f"Gemm {reader.name!r} is more than x @ w + b with b [N]"
        return problem, "fold alpha, beta and transA into its operands, and write out its bias"
    after = network.readers.get(reader.outputs[0], ())
    if len(after) == 1 and after[0][0].op in ("Relu", "Clip") and network.readers.get(after[0][0].outputs[0]):
        return f"{after[0][0].op} {after[0][0].name!r} is right behind {reader.op} {reader.name!r}", CLAMPS
    return None
