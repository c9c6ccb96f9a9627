"""Decides which tensors get quantizers, and which of them share one, for a target.

The target's table says what a runtime computes in integers; the algorithm here is the same for all targets:

1. the nodes with an integer kernel, not ignored, are chosen;
2. their activation inputs get quantizers, and their outputs where the kernel wants that and something quantized follows,
   behind an activation function that the runtime merges into the kernel;
3. quantizers move up through operators that only move values (both sides then share one quantizer);
4. a float reader of a tensor whose exact value still exists keeps reading that: the quantized readers get a name of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from jaxq.errors import ConfigError, did_you_mean
from jaxq.fusion import channel_count
from jaxq.graph import FrozenDict, Graph, Node, tensor_names, unused_name
from jaxq.quantizer import PerAxis, PerTensor, Scheme
from jaxq.targets import Rule, Target

QUANTIZED_OPS = frozenset({"QuantizeLinear", "DequantizeLinear", "MatMulInteger", "ConvInteger"})
QUANTIZED_SUFFIX = "@quantized"  # of the name that quantized readers get where float readers keep the tensor


@dataclass(frozen=True)
class Weight:
    """A param that is quantized by itself, without data."""

    name: str
    scheme: Scheme


@dataclass(frozen=True)
class Bias:
    """A param that is kept in int32, in units of the products it is added to."""

    name: str
    node: str
    activation: str
    weight: str


@dataclass(frozen=True)
class Plan:
    """Where quantizers go.

    Attributes:
      graph: the graph to run, in which every quantized tensor has a name of its own.
      activations: tensor -> the group whose quantizer it uses; tensors of one group share scale and zero point.
      schemes: group -> how its tensors are quantized.
      weights, biases: params, each once.
      nodes: names of the nodes that are quantized.
    """

    graph: Graph
    activations: Mapping[str, str]
    schemes: Mapping[str, Scheme]
    weights: tuple[Weight, ...]
    biases: tuple[Bias, ...]
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class IgnoredScope:
    """What stays in float, by node.

    Attributes:
      names: node names, exactly.
      patterns: regular expressions that a whole node name must match.
      types: operator names.
      validate: whether an entry that matches nothing is an error.
    """

    names: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    validate: bool = True

    def __post_init__(self) -> None:
        for key in ("names", "patterns", "types"):
            value = getattr(self, key)
            object.__setattr__(self, key, (value,) if isinstance(value, str) else tuple(value))
        for pattern in self.patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"ignored pattern {pattern!r} is not a regular expression: {error}") from None

    def select(self, graph: Graph) -> frozenset[str]:
        """The names of the ignored nodes.

        Raises:
          ConfigError: an entry matches nothing, and `validate` is on; the message gives the nearest name.
        """
        nodes = [node for _, node in graph.walk()]
        names, types = {node.name for node in nodes}, {node.op for node in nodes}
        hits: set[str] = set()
        for kind, entries, known in (("name", self.names, names), ("type", self.types, types)):
            for entry in entries:
                if entry not in known and self.validate:
                    raise ConfigError(f"ignored {kind} {entry!r} matches no node{did_you_mean(entry, known)}")
        hits.update(name for name in self.names if name in names)
        hits.update(node.name for node in nodes if node.op in self.types)
        for pattern in self.patterns:
            found = {name for name in names if re.fullmatch(pattern, name)}
            if not found and self.validate:
                raise ConfigError(
                    f"ignored pattern {pattern!r} matches no node (of {len(names)}); it must match a whole name, as in "
                    f"{f'.*{pattern}.*'!r}"
                )
            hits |= found
        return frozenset(hits)


def quantized_nodes(graph: Graph) -> list[Node]:
    """The nodes by which a model is quantized already: those that make, read or compute with quantized integers."""
    return [node for _, node in graph.walk() if node.op in QUANTIZED_OPS or node.op.startswith("QLinear")]


def is_transformer(graph: Graph) -> bool:
    """Whether the graph has attention: a MatMul of a Softmax's output, or an attention operator."""
    softmax = {name for _, node in graph.walk() if node.op == "Softmax" for name in node.outputs}
    return any(
        node.op in ("Attention", "MultiHeadAttention") or (node.op == "MatMul" and softmax & set(node.inputs))
        for _, node in graph.walk()
    )


def place_quantizers(
    graph: Graph,
    params: Mapping[str, Any],
    dtypes: Mapping[str, str],
    target: Target,
    *,
    symmetric: bool = False,
    ignored: Iterable[str] = (),
    transformer: bool | None = None,
) -> Plan:
    """Places quantizers for `target`.

    Args:
      graph: the float graph, after passes.
      params: its weights; only their names and shapes are looked at.
      dtypes: tensor name -> dtype name, for every tensor that is made when the graph runs.
      target: the runtime's table.
      symmetric: whether activations are quantized symmetrically.
      ignored: names of nodes that stay in float.
      transformer: whether to use the rules for transformers; None finds out.
    """
    transformer = is_transformer(graph) if transformer is None else transformer
    rules = {
        name: rule for name, rule in target.rules.items() if not (transformer and name in target.transformer_float)
    }
    activation = Scheme(target.activation, symmetric)
    return _Placement(graph, params, dtypes, target, rules, frozenset(ignored), activation).plan()


@dataclass
class _Placement:
    """The working state of `place_quantizers`, over all graphs of the model at once (subgraphs included)."""

    graph: Graph
    params: Mapping[str, Any]
    dtypes: Mapping[str, str]
    target: Target
    rules: Mapping[str, Rule]
    ignored: frozenset[str]
    activation: Scheme
    producer: dict[str, Node] = field(default_factory=dict)
    readers: dict[str, list[tuple[Node, int]]] = field(default_factory=dict)
    outputs: set[str] = field(default_factory=set)
    chosen: dict[str, Rule] = field(default_factory=dict)  # node name -> rule
    wanted: set[str] = field(default_factory=set)  # tensors with a quantizer

    def __post_init__(self) -> None:
        self.names = {*tensor_names(self.graph), *self.params}
        for _, node in self.graph.walk():
            self.producer.update((name, node) for name in node.outputs if name)
            for index, name in enumerate(node.inputs):
                if name:
                    self.readers.setdefault(name, []).append((node, index))
            for sub in node.subgraphs:
                self.outputs.update(sub.outputs)
        self.outputs.update(self.graph.outputs)

    def plan(self) -> Plan:
        nodes = [node for _, node in self.graph.walk()]
        self.choose(nodes)
        for node in nodes:
            if node.name in self.chosen:
                self.wanted.update(self.activation_inputs(node))
        for node in nodes:
            rule = self.chosen.get(node.name)
            if rule is not None and rule.output:
                name = self.fused_output(node)
                if self.leads_to_quantized(name):
                    self.wanted.add(name)
        self.move_up(nodes)
        self.drop_unread()
        groups = self.groups(nodes)
        graph, renamed = self.isolate()
        weights = merged(weight for node in nodes for weight in self.weights(node))
        quantized = {weight.name for weight in weights}
        biases = tuple(bias for node in nodes if (bias := self.bias(node, groups, quantized, renamed)))
        activations = {renamed.get(name, name): group for name, group in groups.items()}
        schemes = dict.fromkeys(sorted(set(groups.values())), self.activation)
        chosen = tuple(node.name for node in nodes if node.name in self.chosen)
        return Plan(graph, activations, schemes, weights, biases, chosen)

    # ------------------------------------------------------------------------------------------------- 1: which nodes

    def choose(self, nodes: list[Node]) -> None:
        """Fills `chosen`: first what computes products and what works on their results, in the order of the graph; then, from
        the outputs backwards, what is only worth it inside of the network."""
        for node in nodes:
            rule = self.rules.get(node.op)
            if rule is None or rule.body_only or not self.fits(node, rule):
                continue
            if rule.weight is not None or self.follows_kernel(node):
                self.chosen[node.name] = rule
        for node in reversed(nodes):
            rule = self.rules.get(node.op)
            if rule is None or not rule.body_only or not self.fits(node, rule):
                continue
            if self.leads_to_quantized(node.outputs[0]) and self.follows_kernel(node):
                self.chosen[node.name] = rule

    def fits(self, node: Node, rule: Rule) -> bool:
        """Whether the integer kernel can take this node as it stands."""
        if node.domain or node.name in self.ignored:
            return False
        if (
            rule.weight is not None
            and rule.weight not in rule.activations
            and node.inputs[rule.weight] not in self.params
        ):
            return False
        activations = self.activation_inputs(node, rule)
        # A constant summand or factor (a scale, a shift) is not worth a quantizer; the runtime wants two real inputs.
        constant = rule.weight is None and len(activations) < len(rule.activations)
        return bool(activations) and not constant and all(self.dtypes.get(name) == "float32" for name in activations)

    def follows_kernel(self, node: Node) -> bool:
        """Whether an integer kernel makes an input of the node, through operators that move values or work pointwise.

        Otherwise its inputs are float results (a squared spectrum, a state) that would be rounded for nothing.
        """
        through = self.target.same_scale | self.target.pointwise
        pending, seen = list(node.inputs), set(node.inputs)
        while pending:
            producer = self.producer.get(pending.pop())
            if producer is None:
                continue
            if producer.name in self.chosen:
                return True
            if producer.op in through:
                pending.extend(name for name in producer.inputs if name not in seen)
                seen.update(producer.inputs)
        return False

    def activation_inputs(self, node: Node, rule: Rule | None = None) -> list[str]:
        rule = rule or self.chosen[node.name]
        present = [node.inputs[index] for index in rule.activations if index < len(node.inputs)]
        return [name for name in present if name not in self.params and name in self.dtypes]

    # ---------------------------------------------------------------------------------------------- 2: outputs of kernels

    def fused_output(self, node: Node) -> str:
        """The output of a node, or of the activation function that the runtime merges into it."""
        name = node.outputs[0]
        readers = self.readers.get(name, [])
        if node.op in self.target.fusing and len(readers) == 1 and name not in self.outputs:
            reader, index = readers[0]
            if reader.op in self.target.fused and index == 0 and reader.name not in self.ignored:
                return reader.outputs[0]
        return name

    def leads_to_quantized(self, name: str) -> bool:
        """Whether a quantized node reads the tensor, directly or through operators that move values or work pointwise."""
        anywhere = self.target.pointwise | {"Concat"}  # of whose inputs each is data
        pending, seen = [name], {name}
        while pending:
            current = pending.pop()
            for reader, index in self.readers.get(current, []):
                if reader.name in self.chosen and index in self.chosen[reader.name].activations:
                    return True
                if reader.op in anywhere or (reader.op in self.target.same_scale and index == 0):
                    pending.extend(each for each in reader.outputs if each not in seen)
                    seen.update(reader.outputs)
        return False

    # ------------------------------------------------------------------------------------------- 3: moving up and sharing

    def pads_with_value(self, node: Node) -> bool:
        """Whether a Pad puts in anything but zeros (-inf before a MaxPool): that would widen the range for nothing."""
        if node.op != "Pad" or node.attributes.get("mode", "constant") != "constant":
            return False
        name = node.inputs[2] if len(node.inputs) > 2 else ""
        if name and name not in self.graph.constants:
            return True
        value = self.graph.constants[name].array if name else node.attributes.get("value", 0.0)
        return bool(np.any(value))

    def moves(self, node: Node) -> list[str]:
        """The data inputs of an operator that only moves values, as far as they are traced floats; else nothing."""
        if (
            node.op not in self.target.same_scale
            or node.domain
            or node.name in self.ignored
            or self.pads_with_value(node)
        ):
            return []
        places = range(len(node.inputs)) if node.op == "Concat" else (0,)
        names = [node.inputs[index] for index in places]
        return names if all(self.dtypes.get(name) == "float32" for name in names) else []

    def move_up(self, nodes: list[Node]) -> None:
        """Quantizes the inputs of value-moving operators whose outputs are quantized, if nobody loses an exact value by it."""
        for node in reversed(nodes):
            outputs = self.used_outputs(node)
            if outputs and self.wanted.issuperset(outputs):
                self.wanted.update(name for name in self.moves(node) if self.may_be_quantized(name))

    def used_outputs(self, node: Node) -> list[str]:
        return [name for name in node.outputs if name in self.readers or name in self.outputs]

    def may_be_quantized(self, name: str) -> bool:
        """Whether all readers of the tensor take it quantized, and nothing but values that count stands in it."""
        producer = self.producer.get(name)
        if name in self.outputs or (producer is not None and self.pads_with_value(producer)):
            return False
        return all(self.takes_quantized(*reader) for reader in self.readers[name])

    def drop_unread(self) -> None:
        """Takes back the quantizers of outputs that only float operators read: those keep reading the exact value."""
        for name in self.wanted & self.outputs:
            if not any(self.takes_quantized(*reader) for reader in self.readers.get(name, [])):
                self.wanted.remove(name)

    def takes_quantized(self, node: Node, index: int) -> bool:
        """Whether this reader works on the quantized tensor."""
        if node.op in ("Shape", "Size"):
            return True
        rule = self.chosen.get(node.name)
        if rule is not None:
            return index in rule.activations
        return (
            index < len(node.inputs)
            and node.inputs[index] in self.moves(node)
            and self.wanted.issuperset(self.used_outputs(node))
        )

    def groups(self, nodes: list[Node]) -> dict[str, str]:
        """Tensor -> the first tensor of its group: both sides of a value-moving operator share a quantizer."""
        leader = {name: name for name in sorted(self.wanted)}

        def find(name: str) -> str:
            while leader[name] != name:
                name = leader[name]
            return name

        for node in nodes:
            tied = [name for name in self.moves(node) if name in self.wanted]
            if not tied:
                continue
            tied += [name for name in node.outputs if name in self.wanted]
            for name in tied[1:]:
                leader[find(name)] = find(tied[0])
        return {name: find(name) for name in sorted(self.wanted)}

    # ---------------------------------------------------------------------------------------------- 4: names of their own

    def isolate(self) -> tuple[Graph, dict[str, str]]:
        """The graph with an Identity before the quantized readers of tensors that also have float readers."""
        renamed: dict[str, str] = {}
        for name in sorted(self.wanted):
            exact = name in self.outputs or not self.integer_only(name)
            others = [reader for reader in self.readers.get(name, []) if not self.takes_quantized(*reader)]
            if exact and (others or name in self.outputs):
                renamed[name] = unused_name(name + QUANTIZED_SUFFIX, self.names)
        return (_insert_copies(self.graph, renamed, self.takes_quantized) if renamed else self.graph), renamed

    def integer_only(self, name: str) -> bool:
        """Whether the runtime has the tensor in integers only, because an integer kernel makes it."""
        node = self.producer.get(name)
        if node is None:
            return False
        if node.op in self.target.fused and node.inputs[0] in self.producer:
            made_by = self.producer[node.inputs[0]]
            if made_by.name in self.chosen and self.fused_output(made_by) == name:
                node = made_by
        if node.name in self.chosen:
            return self.chosen[node.name].output
        moved = self.moves(node)
        return bool(moved) and all(source in self.wanted for source in moved)

    # ------------------------------------------------------------------------------------------------------ params

    def weights(self, node: Node) -> Iterator[Weight]:
        """The params that the node multiplies with: per channel where the kernel can, else with one scale."""
        rule = self.chosen.get(node.name)
        if rule is None or rule.weight is None:
            return
        for position in sorted({rule.weight, *rule.activations}):
            name = node.inputs[position] if position < len(node.inputs) else ""
            if name not in self.params or self.params[name].dtype != "float32":
                continue
            rank = self.params[name].ndim
            axis = 0 if node.op == "Gemm" and node.attributes.get("transB", 0) else rule.weight_axis
            per_channel = position == rule.weight and rank >= 2 and not (node.op == "MatMul" and rank > 2)
            granularity = PerAxis(axis % rank) if per_channel else PerTensor()
            yield Weight(name, Scheme(self.target.weight, granularity=granularity))

    def bias(self, node: Node, groups: Mapping[str, str], weights: set[str], renamed: Mapping[str, str]) -> Bias | None:
        rule = self.chosen.get(node.name)
        if rule is None or rule.bias is None or len(node.inputs) <= rule.bias or not node.inputs[rule.bias]:
            return None
        name, weight, data = node.inputs[rule.bias], node.inputs[rule.weight or 0], node.inputs[rule.activations[0]]
        alone = name in self.params and len(self.readers[name]) == 1 and name not in self.outputs
        plain = node.op != "Gemm" or node.attributes.get("alpha", 1.0) == node.attributes.get("beta", 1.0) == 1.0
        if not (alone and plain and weight in weights and data in groups):
            return None
        if np.shape(self.params[name]) != (channel_count(node, self.params[weight].shape),):
            return None  # a Gemm may have one number for all
        return Bias(name, node.name, renamed.get(data, data), weight)


def merged(weights: Iterable[Weight]) -> tuple[Weight, ...]:
    """Each param once; one that nodes want along different axes gets one scale."""
    found: dict[str, Weight] = {}
    for weight in weights:
        before = found.setdefault(weight.name, weight)
        if before.scheme != weight.scheme:
            found[weight.name] = Weight(weight.name, replace(before.scheme, granularity=PerTensor()))
    return tuple(found.values())


def _insert_copies(graph: Graph, renamed: Mapping[str, str], takes_quantized: Any) -> Graph:
    """`y = Identity(x)` for each x -> y of `renamed`, after x is made; the quantized readers of x read y."""
    made_here = {*graph.inputs, *(name for node in graph.nodes for name in node.outputs)}
    nodes: list[Node] = []

    def copy(name: str) -> None:
        if name in renamed and name in made_here:
            new = renamed[name]
            nodes.append(Node("Identity", (name,), (new,), name=new, version=graph.opsets.get("", 17)))

    for name in graph.inputs:
        copy(name)
    for node in graph.nodes:
        inputs = tuple(
            renamed[name]
            if name in renamed and takes_quantized(node, index) and node.op not in ("Shape", "Size")
            else name
            for index, name in enumerate(node.inputs)
        )
        attributes = {
            key: _insert_copies(value, renamed, takes_quantized) if isinstance(value, Graph) else value
            for key, value in node.attributes.items()
        }
        nodes.append(replace(node, inputs=inputs, attributes=FrozenDict(attributes)))
        for name in node.outputs:
            copy(name)
    return replace(graph, nodes=tuple(nodes))
