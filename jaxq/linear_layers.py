"""Layers that multiply with weights and add a bias: which axis holds the output channels, and how they are changed along it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxq.graph import Graph, Node, constants, graphs, tensor_names, unused_name

BIASED = frozenset({"Conv", "ConvTranspose", "Gemm"})  # whose third input is a bias
LINEAR = BIASED | {"MatMul"}


class Numbers:
    """The params of a model while a pass changes them: what one reader asks for changes nothing for another.

    Attributes:
      params: the params as they are now.
    """

    def __init__(self, graph: Graph, params: Mapping[str, Any]):
        self._graph, self._before = graph, params
        self.params = dict(params)
        self._constants = constants(graph)
        self._taken = {*tensor_names(graph), *params}
        self._uses = Counter(name for _, node in graph.walk() for name in node.inputs if name)
        self._uses.update(name for inner in graphs(graph) for name in inner.outputs)
        self._made: dict[Any, str] = {}

    def get(self, name: str) -> np.ndarray | None:
        """The value of a param or a constant in float64; None of anything else."""
        value = self.params.get(name, self._constants.get(name))
        return None if value is None or value.dtype == object else np.asarray(value, np.float64)

    def put(self, name: str, value: np.ndarray, new: str, dtype: Any) -> str:
        """The name of a param with that value, to be read in place of `name`: the same if nobody else reads that, else `new`.

        Several readers of one param that ask for the same value get one param, so that a shared weight stays shared.
        """
        value = value.astype(dtype)
        if name in self.params and self._uses[name] == 1:
            self.params[name] = value
            return name
        key = (name, value.shape, value.tobytes())
        if not name or key not in self._made:
            self._made[key] = unused_name(new, self._taken)
            self.params[self._made[key]] = value
        return self._made[key]

    def own(self, name: str, value: np.ndarray, new: str, dtype: Any) -> str:
        """The same for what must have one reader: a bias, which is in units of one layer's products."""
        return self.put(name if self._uses[name] == 1 else "", value, new, dtype)

    def result(self, graph: Graph) -> tuple[Graph, Mapping[str, Any]]:
        """What a pass returns: the graph and these params, or the same objects as before if nothing changed."""
        same = all(self.params[name] is value for name, value in self._before.items())
        same = same and len(self.params) == len(self._before) and graph is self._graph
        return (graph, self._before) if same else (graph, self.params)

    def is_own(self, name: str) -> bool:
        """Whether the tensor is a param that nothing else reads, and no graph gives out."""
        return name in self.params and self._uses[name] == 1


def owned(graph: Graph, params: Mapping[str, Any], name: str) -> bool:
    """Whether the tensor is a param that one node alone reads, so that it may be changed with this node."""
    return name in params and len(graph.consumers[name]) == 1 and name not in graph.outputs


def channel_count(node: Node, weight_shape: tuple[int, ...]) -> int:
    """Output channels of a linear layer with that weight."""
    if node.op == "ConvTranspose":
        return weight_shape[1] * int(node.attributes.get("group", 1))
    return weight_shape[0] if node.op == "Conv" or node.attributes.get("transB", 0) else weight_shape[-1]


def along_output(node: Node, weight: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """factor [C] in a shape that multiplies each output channel of the weight."""
    if node.op == "Conv":
        return factor.reshape(-1, *([1] * (weight.ndim - 1)))
    if node.op in ("Gemm", "MatMul"):
        return factor[:, None] if node.attributes.get("transB", 0) else factor
    groups = int(node.attributes.get("group", 1))  # ConvTranspose: [in, out / groups, ...]
    spread = np.repeat(factor.reshape(groups, 1, -1), weight.shape[0] // groups, axis=1).reshape(weight.shape[:2])
    return spread.reshape(*weight.shape[:2], *([1] * (weight.ndim - 2)))


def scale_output(node: Node, numbers: dict[str, Any], factor: np.ndarray) -> None:
    """Multiplies each output channel of a linear node by its factor [C], in its weight and bias. Writes into `numbers`."""
    for position, name in enumerate(node.inputs[1:3], start=1):
        if name:
            value = np.asarray(numbers[name], np.float64)
            spread = along_output(node, value, factor) if position == 1 else factor
            numbers[name] = (value * spread).astype(numbers[name].dtype)
