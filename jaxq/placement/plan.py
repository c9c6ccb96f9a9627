"""The result of placement: which tensors are quantized, how, and in which graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import numpy as np

from jaxq.graph.ir import FrozenDict, Graph, Node, constants, node_names, unused_name
from jaxq.graph.masks import LEAST, Axes
from jaxq.numerics.quantizer import Scheme


@dataclass(frozen=True)
class Weight:
    """A param that is quantized by itself, without data."""

    name: str
    scheme: Scheme


class BiasForm(StrEnum):
    """How a bias is kept.

    In every form it fits int32 in units of the products or is out of reach: ONNX Runtime (1.23 to 1.32, from ORT_ENABLE_BASIC on)
    makes int32 of a float vector that is added to products of dequantized tensors, in those units, and clips what is too large.
    """

    PRODUCTS = "products"  # int32 in units of the products, as kernels in integers add it
    OWN = "own"  # int32 in units of its own: no kernel adds integers, and the products of wide types have tiny units
    FLOAT = "float"  # as it is: the runtime wants it so


@dataclass(frozen=True)
class Bias:
    """A param that is added to products of two quantized tensors, `activation` and `weight`."""

    name: str
    node: str
    activation: str
    weight: str
    form: BiasForm = BiasForm.PRODUCTS


@dataclass(frozen=True)
class Plan:
    """Where quantizers go.

    Attributes:
      graph: the graph to run, in which every quantized tensor has a name of its own.
      activations: tensor -> the group whose quantizer it uses; tensors of one group share scale and zero point.
      schemes: group -> how its tensors are quantized.
      weights, biases: params, each once.
      nodes: names of the nodes that are quantized.
      moved: tensors that hold nothing but values of others of their group: their ranges need not be looked at.
      unclipped: groups whose range must hold every value that was seen: scores in front of a final Sigmoid or Softmax, and
        outputs of the model.
      floors: tensor -> the axes of the Softmax that alone reads it, where a mask may be in it (`jaxq.graph.masks`),
        quantized or not.
      masked: tensors and params of which only Softmaxes see anything: what lies too low to count must not set their ranges.
      copies: name of a new param -> the param or constant whose value it has.
      left: names of nodes that stay in float although the target has a kernel for them -> why.
    """

    graph: Graph
    activations: Mapping[str, str]
    schemes: Mapping[str, Scheme]
    weights: tuple[Weight, ...]
    biases: tuple[Bias, ...]
    nodes: tuple[str, ...]
    moved: frozenset[str] = frozenset()
    unclipped: frozenset[str] = frozenset()
    floors: Mapping[str, Axes] = field(default_factory=dict)
    masked: frozenset[str] = frozenset()
    copies: Mapping[str, str] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)

    def prepare(self, graph: Graph, params: Mapping[str, Any]) -> tuple[Graph, dict[str, Any]]:
        """The graph and params that the algorithms work on: a pass, from those of the float model to the plan's own."""
        values = {**params, **constants(graph)}
        params = {**params, **{new: values[old] for new, old in self.copies.items()}}
        for weight in self.weights:
            if weight.name in self.masked:
                params[weight.name] = np.maximum(params[weight.name], np.float32(LEAST))
        return self.graph, params

    def unseen(self, encodings: Mapping[str, object]) -> frozenset[str]:
        """Names of the nodes that stay in float, because no sample made a tensor that they were to read quantized."""
        missing = self.activations.keys() - encodings.keys()
        chosen = frozenset(self.nodes)
        return frozenset(
            node.name for _, node in self.graph.walk() if node.name in chosen and not missing.isdisjoint(node.inputs)
        )

    def read_in_float(self, encodings: Mapping[str, object]) -> frozenset[str]:
        """Names of the weights that only such nodes read."""
        unseen, weights = self.unseen(encodings), {weight.name for weight in self.weights}
        if not unseen:
            return frozenset()
        other = {name for _, node in self.graph.walk() if node.name not in unseen for name in node.inputs}
        return frozenset(weights - other)

    def owner(self, bias: str) -> str | None:
        """The quantized node that a bias belongs to: it reads the bias, or makes what an Add adds it to."""
        for node, _ in self.graph.consumers.get(bias, ()):
            if node.op == "Add":
                for name in node.inputs:
                    maker = self.graph.producers.get(name)
                    while maker is not None and maker.op == "Identity":
                        maker = self.graph.producers.get(maker.inputs[0])
                    if maker is not None and maker.name in self.nodes:
                        return maker.name
            if node.name in self.nodes:
                return node.name
        return None


def read_copies(graph: Graph, edges: Mapping[tuple[str, int], str], sources: Mapping[str, str]) -> Graph:
    """`y = Identity(x)` for each y -> x of `sources`, after x is made; input (node name, index) of `edges` then reads its y."""
    wanted: dict[str, list[str]] = {}
    for new, old in sources.items():
        wanted.setdefault(old, []).append(new)
    return _read_copies(graph, edges, wanted, node_names(graph))


def _read_copies(
    graph: Graph, edges: Mapping[tuple[str, int], str], wanted: Mapping[str, list[str]], taken: set[str]
) -> Graph:
    nodes: list[Node] = []

    def copy(name: str) -> None:
        for new in wanted.get(name, ()):
            version = graph.opsets.get("", 17)
            nodes.append(Node("Identity", (name,), (new,), name=unused_name(new, taken), version=version))

    for name in graph.inputs:
        copy(name)
    for node in graph.nodes:
        inputs = tuple(edges.get((node.name, index), name) for index, name in enumerate(node.inputs))
        attributes = {
            key: _read_copies(value, edges, wanted, taken) if isinstance(value, Graph) else value
            for key, value in node.attributes.items()
        }
        nodes.append(replace(node, inputs=inputs, attributes=FrozenDict(attributes)))
        for name in node.outputs:
            copy(name)
    return replace(graph, nodes=tuple(nodes))
