"""Matrix products with weights in groups of few bits, as ONNX Runtime's own operator MatMulNBits.

The standard form, a blocked DequantizeLinear before a MatMul, says the same; ONNX Runtime merges it when it loads the file, and
rounds the inputs of the product to 8 bits. This form is for runtimes and versions that do not, and computes in float32. Weights
of 8 bits stay in the standard form: for them the operator has no kernel in float32 (1.32), and takes a hundred times as long.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxq.engine.model import Model
from jaxq.errors import ModelError
from jaxq.graph.ir import FrozenDict, Graph, Node, map_nodes, tensor_names, unused_name
from jaxq.graph.linear import Linear, is_product
from jaxq.numerics.quantizer import QuantParams, quantize

MICROSOFT = "com.microsoft"
BITS = 4
SMALLEST_BLOCK = 16  # that the operator takes; blocks are powers of two


def to_matmul_nbits(model: Model) -> Model:
    """The model with every MatMul and Gemm that has a weight of 4 bits in blocks turned into com.microsoft's MatMulNBits.

    Source: ONNX Runtime, ContribOperators.md, com.microsoft.MatMulNBits.

    Raises:
      ModelError: no weight has blocks that the operator takes (16 or a larger power of two, of 4 bits).
    """
    params, encodings = dict(model.params), dict(model.encodings)
    taken = {*tensor_names(model.graph), *params}
    packed: dict[str, tuple[str, ...]] = {}

    def change(_: Graph, node: Node) -> tuple[Node, ...]:
        linear = Linear.of(node, model.params) if is_product(node) else None
        if linear is None or linear.weight not in encodings:
            return (node,)
        weight, bias = linear.weight, np.shape(model.params.get(linear.bias, 0)) if linear.bias else None
        if not packs(linear, bias, encodings[weight]):
            return (node,)
        if weight not in packed:
            operands = pack(rows_of(linear, model.params[weight], encodings[weight]))
            packed[weight] = tuple(unused_name(f"{weight}_{role}", taken) for role in operands)
            params.update(zip(packed[weight], operands.values(), strict=True))
        return (nbits_node(linear, encodings[weight], packed[weight]),)

    graph = map_nodes(model.graph, change)
    if not packed:
        raise ModelError(
            "no weight can be written as MatMulNBits, which takes 4 bits in blocks of 16, 32, 64 ... along the summed axis; "
            "compress the model first, e.g. compress_weights(model, mode='int4_sym', group_size=32)"
        )
    left = {name for _, node in graph.walk() for name in node.inputs}
    for name in packed.keys() - left:
        del params[name], encodings[name]
    graph = replace(graph, opsets=FrozenDict({**graph.opsets, MICROSOFT: 1}))
    return model.replace(graph=graph, params=params, encodings=encodings)


def takes_block(size: int) -> bool:
    """Whether the operator takes groups of so many weights."""
    return size >= SMALLEST_BLOCK and size & (size - 1) == 0


def takes_product(linear: Linear, bias: tuple[int, ...] | None) -> bool:
    """Whether the operator can stand for a MatMul or Gemm, whose bias has that shape (None: it has none, or nobody knows).

    It computes x @ w + b, w being a matrix and b [N].
    """
    return len(linear.shape) == 2 and linear.is_plain and bias in (None, (linear.outputs,))


def packs(linear: Linear, bias: tuple[int, ...] | None, each: QuantParams) -> bool:
    """Whether the operator can stand for this layer: blocks along the summed axis, in a size that it takes."""
    if bits_of(each) != BITS or not takes_product(linear, bias):
        return False
    scales = np.shape(each.scale)
    blocks = max(scales[linear.input_axis], 1)
    return takes_block(linear.inputs // blocks) and scales[linear.output_axis] == linear.outputs


def bits_of(each: QuantParams) -> int:
    """The bits of the grid."""
    return (int(each.qmax) - int(each.qmin)).bit_length()


def rows_of(linear: Linear, weight: Any, each: QuantParams) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Integers [N, K], scales [N, blocks] and zero points [N, blocks], all unsigned."""
    shift = 1 << (BITS - 1) if int(each.qmin) < 0 else 0
    q = np.asarray(quantize(jnp.asarray(weight, jnp.float32), each)).astype(np.int32) + shift
    kind = np.float16 if weight.dtype == np.float16 else np.float32  # that of the data, too
    scale, zero = (
        np.asarray(each.scale, kind),
        np.broadcast_to(np.asarray(each.zero_point) + shift, np.shape(each.scale)),
    )
    order = linear.output_axis, linear.input_axis
    return q.transpose(order), scale.transpose(order), zero.transpose(order)


def pack(rows: tuple[np.ndarray, np.ndarray, np.ndarray]) -> dict[str, np.ndarray]:
    """The operands: bytes [N, blocks, block / 2], scales [N * blocks], zero points in bytes; lowest bits first."""
    q, scale, zero = rows
    blocks = q.reshape(len(q), scale.shape[1], -1)
    return {
        "packed": packed_bytes(blocks),
        "scales": np.ascontiguousarray(scale).reshape(-1),
        "zero_points": packed_bytes(zero).reshape(-1),
    }


def packed_bytes(values: np.ndarray) -> np.ndarray:
    """Numbers of 4 bits along the last axis as bytes; an odd number of halves is filled up with zero."""
    if values.shape[-1] % 2:
        values = np.concatenate([values, np.zeros((*values.shape[:-1], 1), values.dtype)], -1)
    return (values[..., 0::2] | values[..., 1::2] << 4).astype(np.uint8)


def nbits_node(linear: Linear, each: QuantParams, operands: tuple[str, ...]) -> Node:
    """The MatMulNBits in place of a MatMul or Gemm."""
    attributes: Mapping[str, Any] = {
        "K": linear.inputs,
        "N": linear.outputs,
        "bits": BITS,
        "block_size": linear.inputs // np.shape(each.scale)[linear.input_axis],
    }
    bias = ("", linear.bias) if linear.bias else ()
    return replace(
        linear.node,
        op="MatMulNBits",
        domain=MICROSOFT,
        version=1,
        inputs=(linear.node.inputs[0], *operands, *bias),
        attributes=FrozenDict(attributes),
    )
