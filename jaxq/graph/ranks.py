"""How many axes each tensor of a graph has, as far as the graph says it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxq.graph.ir import Graph, Node, constants, graphs
from jaxq.graph.linear import CONVOLUTIONS

# Operators whose result has the rank of their first input.
SAME = frozenset(
    {"BatchNormalization", "Cast", "Dropout", "Identity", "LayerNormalization", "PRelu", "Softmax", "Transpose"}
)
SAME |= {
    "Clip",
    "Elu",
    "Erf",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "LeakyRelu",
    "Relu",
    "Sigmoid",
    "Sqrt",
    "Swish",
    "Tanh",
}
SAME |= {"QuantizeLinear", "DequantizeLinear"}
# Operators that broadcast: the result has the largest rank of their inputs.
BROADCAST = frozenset({"Add", "Div", "Max", "Mean", "Min", "Mul", "Pow", "Sub", "Sum", "Where"})


def ranks(graph: Graph, params: Mapping[str, Any]) -> dict[str, int]:
    """Tensor name -> rank, of the graph, its branches and bodies: what the operators make of known ranks, else what is declared.

    A tensor of which nobody says it is absent.
    """
    values = {**constants(graph), **params}
    known = {name: np.ndim(value) for name, value in values.items()}
    for inner in graphs(graph):
        for name, declared in inner.types.items():
            if declared.shape is not None and not declared.within:
                known.setdefault(name, len(declared.shape))
    for _, node in graph.walk():
        found = None if node.domain else _result(node, known, values)
        if found is not None:
            known[node.outputs[0]] = found
    return known


def _result(node: Node, known: Mapping[str, int], values: Mapping[str, Any]) -> int | None:
    """The rank of the first output of a node; None if the operator and its inputs do not say it."""
    each = [known.get(name) for name in node.inputs if name]
    sure = [rank for rank in each if rank is not None]
    if node.op in ("Flatten", "Gemm"):
        return 2
    if node.op == "Reshape" and len(node.inputs) > 1:
        return int(np.size(values[node.inputs[1]])) if node.inputs[1] in values else None
    if node.op in SAME | CONVOLUTIONS:  # whose data, weight and result have one rank
        return next((rank for rank in each[: 2 if node.op in CONVOLUTIONS else 1] if rank is not None), None)
    if not sure or len(sure) < len(each):
        return None
    if node.op == "MatMul":
        return _product(*sure)
    return max(sure) if node.op in BROADCAST else None


def _product(left: int, right: int) -> int:
    """The rank of a matrix product: a vector is a row or a column, whose axis is gone from the result."""
    return max(left, right, 2) - (left == 1) - (right == 1)
