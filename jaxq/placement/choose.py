"""Which nodes are quantized, and which tensors with them: the first three steps of `jaxq.placement.place`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxq.graph.clamps import clip_bounds
from jaxq.graph.ir import Graph, Node, constants, in_loops
from jaxq.graph.linear import is_depthwise, is_product
from jaxq.graph.patterns import Matcher, post_processing, tail_nodes
from jaxq.numerics.quantizer import Scheme
from jaxq.placement.schemes import Wishes, merges, rule_for
from jaxq.placement.targets import Rule, Target

ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Reciprocal"})

NEVER_NEGATIVE = frozenset({"Sigmoid", "HardSigmoid", "Softmax", "Abs", "Exp", "Softplus"})
POOLS = frozenset({"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax"})

IGNORED, SELECTION, BOXES = "ignored", "prepares a selection", "arithmetic behind the last layer"
IN_LOOP = "the target runs the bodies of loops in float"
TRANSFORMER, DOUBLES = "kept so in transformers", "it computes in float64"


def is_weight(value: Any) -> bool:
    """Whether a param can be quantized: float32, and not without any elements."""
    return value is not None and value.dtype == "float32" and value.size > 0


@dataclass
class Places:
    """The working state of `place_quantizers` over all graphs of the model at once (subgraphs included)."""

    graph: Graph
    params: Mapping[str, Any]
    dtypes: Mapping[str, str]
    target: Target
    transformer: bool
    ignored: frozenset[str]
    wishes: Wishes
    quantize_outputs: bool
    requantized: frozenset[str] = frozenset()  # copies that read their tensor quantized
    nodes: Sequence[Node] = field(init=False)
    producer: Mapping[str, Node] = field(init=False)
    readers: Mapping[str, Sequence[tuple[Node, int]]] = field(init=False)
    outputs: frozenset[str] = field(init=False)
    left: dict[str, str] = field(init=False)  # node name -> why it stays in float
    tail: frozenset[str] = field(init=False)  # nodes behind which no layer with weights comes
    chosen: dict[str, Rule] = field(init=False)  # node name -> rule
    summand: dict[str, int] = field(init=False)  # node name -> the input that stays as the kernel before it makes it
    wanted: set[str] = field(init=False)  # tensors with a quantizer

    def __post_init__(self) -> None:
        wiring = self.graph.wiring
        self.nodes, self.producer, self.readers, self.outputs = (
            wiring.nodes,
            wiring.producers,
            wiring.readers,
            wiring.outputs,
        )
        self.chosen, self.summand, self.wanted = {}, {}, set()
        self.constants = constants(self.graph)
        self.values = {**self.params, **self.constants}
        self.left = dict.fromkeys(self.ignored, IGNORED)
        self.tail = frozenset()
        for node in self.nodes:
            if "float64" in (self.dtypes.get(name) for name in (*node.inputs, *node.outputs)) and self.has_kernel(node):
                self.left.setdefault(node.name, DOUBLES)
        rules = {node.name: self.rule_of(node) for node in self.nodes if self.fits(node)}
        self.tail = tail_nodes(self.graph, {name for name, rule in rules.items() if rule is not None and rule.weights})
        self.leave_in_float()

    def has_kernel(self, node: Node) -> bool:
        """Whether the target has a kernel with weights for such a node."""
        rule = None if node.domain else self.target.rules.get(node.op)
        return rule is not None and bool(rule.weights)

    def fresh(self, graph: Graph) -> Places:
        """The state before anything is decided, for another graph."""
        given = (self.params, self.dtypes, self.target, self.transformer, self.ignored, self.wishes)
        return Places(graph, *given, self.quantize_outputs)

    def choose_places(self) -> None:
        """Steps 1 to 3: fills `chosen` and `wanted`."""
        self.choose()
        for node in self.nodes:
            if node.name in self.chosen:
                self.wanted.update(node.inputs[index] for index in self.places(node))
        for node in self.nodes:
            rule = self.chosen.get(node.name)
            if rule is not None and rule.output:
                name = self.fused_output(node)
                if self.leads_to_quantized(name):
                    self.wanted.add(name)
        if self.target.outputs or self.quantize_outputs:
            made = {name for name in self.graph.outputs if name in self.producer and self.dtypes.get(name) == "float32"}
            self.wanted |= made
            self.outputs -= made  # they need not be exact
        self.move_up()
        self.drop_unread()

    # ------------------------------------------------------------------------------------------------- 1: which nodes

    def rule_of(self, node: Node) -> Rule | None:
        """The target's rule for a node, if it may be quantized at all."""
        if node.domain or node.name in self.left:
            return None
        if self.transformer and node.op in self.target.transformer_float:
            return None
        if node.op == "Gather":
            table = node.inputs[0] in self.params
            return self.target.rules.get("Gather") if table else None  # others move values
        if self.moves_values(node):
            return None
        rule = rule_for(self.target, node, depthwise=is_depthwise(node, self.params))
        free = node.op not in ("Shape", "Size", "Cast", "Identity") and not self.is_merged(node)
        return rule or (self.target.other if free else None)

    def is_merged(self, node: Node) -> bool:
        """Whether the runtime merges the node into the kernel that makes its input, for it alone."""
        maker = self.producer.get(node.inputs[0]) if node.inputs else None
        if maker is None or maker.op not in self.target.fusing or not merges(node, self.target, self.values):
            return False
        return len(self.readers[node.inputs[0]]) == 1 and node.inputs[0] not in self.graph.outputs

    def leave_in_float(self) -> None:
        """Fills `left` with the nodes that the detectors find."""
        if not self.target.loops:
            self.left.update((node.name, IN_LOOP) for node in in_loops(self.graph) if node.name not in self.left)
        matcher = Matcher(self.graph, self.params)
        names = (*self.target.patterns, *(self.target.transformer_patterns if self.transformer else ()))
        for name in names:
            for each in matcher.find(name):
                self.left.setdefault(each, name)
        if not (self.target.outputs or self.target.other):
            for each in post_processing(self.graph, self.tail):
                self.left.setdefault(each, SELECTION)
        if self.transformer:
            kept = self.target.transformer_float
            self.left.update(
                {node.name: TRANSFORMER for node in self.nodes if node.op in kept and node.name not in self.left}
            )

    def choose(self) -> None:
        """Fills `chosen`: first what computes products and what works on their results, in the order of the graph; then, from
        the outputs backwards, what is only worth it inside of the network."""
        for node in self.nodes:
            rule = self.rule_of(node)
            if rule is None or rule.body_only or not self.fits(node):
                continue
            inner = not self.is_box_arithmetic(node) if self.target.anywhere else self.follows_kernel(node)
            if rule.weights or inner:
                self.chosen[node.name] = rule
        for node in reversed(self.nodes):
            rule = self.rule_of(node)
            if rule is None or not rule.body_only or not self.fits(node):
                continue
            if self.leads_to_quantized(node.outputs[0]) and (self.target.anywhere or self.follows_kernel(node)):
                self.choose_inner(node, rule)

    def choose_inner(self, node: Node, rule: Rule) -> None:
        """Chooses a node that works on the results of kernels; of an addition into a kernel, finds the summand that stays."""
        if rule.skip_only:
            last = max(
                (index for index in self.positions(node, rule) if self.made_for(node, node.inputs[index])),
                key=lambda index: self.nodes.index(self.producer[node.inputs[index]]),
                default=None,
            )
            if last is None:
                return  # no kernel takes it up
            self.summand[node.name] = last
        self.chosen[node.name] = rule

    def made_for(self, node: Node, name: str) -> bool:
        """Whether a kernel with weights makes the tensor, for this node alone."""
        producer = self.producer.get(name)
        alone = len(self.readers[name]) == 1 and name not in self.outputs
        return (
            alone and producer is not None and bool(producer.name in self.chosen and self.chosen[producer.name].weights)
        )

    def is_box_arithmetic(self, node: Node) -> bool:
        """Whether the node computes with predictions: arithmetic behind the last layer, as in the decoding of boxes."""
        boxes = node.name in self.tail and node.op in ARITHMETIC and not self.target.other
        if boxes:
            self.left.setdefault(node.name, BOXES)
        return boxes

    def fits(self, node: Node) -> bool:
        """Whether the integer kernel can take this node as it stands."""
        rule = self.rule_of(node)
        if rule is None:
            return False
        positions = self.positions(node, rule)
        if rule.weights:
            name = node.inputs[rule.weights[0]] if rule.weights[0] < len(node.inputs) else ""
            is_param = is_weight(self.params.get(name))
            if not is_param and rule.weights[0] not in (rule.activations or ()):
                return False
            if rule.activations == ():
                return is_param
        # A constant summand or factor (a scale, a shift) is not worth a quantizer; the runtime wants two real inputs.
        wanted = 1 if rule.weights or rule.activations is None else len(rule.activations)
        real = all(self.dtypes.get(node.inputs[index]) == "float32" for index in positions)
        made = rule.activations is not None or self.dtypes.get(node.outputs[0]) == "float32"
        return len(positions) >= wanted and bool(positions) and real and made

    def positions(self, node: Node, rule: Rule) -> list[int]:
        """The inputs that the rule quantizes and that are made when the graph runs."""
        wanted = range(len(node.inputs)) if rule.activations is None else rule.activations
        found = [index for index in wanted if index < len(node.inputs) and self.is_made(node.inputs[index])]
        if rule.activations is None:
            found = [index for index in found if self.dtypes[node.inputs[index]] == "float32"]
        return found

    def is_made(self, name: str) -> bool:
        return bool(name) and name in self.dtypes and name not in self.params and name not in self.constants

    def places(self, node: Node) -> list[int]:
        """The inputs of a chosen node that get a quantizer."""
        skipped = self.summand.get(node.name)
        return [index for index in self.positions(node, self.chosen[node.name]) if index != skipped]

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

    # ---------------------------------------------------------------------------------------------- 2: outputs of kernels

    def fused_output(self, node: Node) -> str:
        """The output of a node, or of the activation function that the runtime merges into it."""
        name = node.outputs[0]
        readers = self.readers.get(name, [])
        if node.op in self.target.fusing and len(readers) == 1 and name not in self.outputs:
            reader, index = readers[0]
            merged = merges(reader, self.target, self.values) and not self.is_joined_with_negative(reader.outputs[0])
            if index == 0 and reader.name not in self.ignored and merged:
                return reader.outputs[0]
        return name

    def is_joined_with_negative(self, name: str) -> bool:
        """Whether a Concat gives the tensor the quantizer of others that may be negative: its lowest integer is not zero then.

        Asked only where a target merges an activation function into a kernel by the quantizer behind it.
        """
        pending, seen = [name] if self.target.merges_at_zero else [], {name}
        while pending:
            for reader, _ in self.readers.get(pending.pop(), []):
                sources = self.moves(reader)
                joined = reader.op == "Concat" and not all(self.is_never_negative(each) for each in sources)
                if sources and joined and self.leads_to_quantized(reader.outputs[0]):
                    return True
                after = [each for each in reader.outputs if sources and each not in seen]
                pending.extend(after)
                seen.update(after)
        return False

    def is_never_negative(self, name: str) -> bool:
        """Whether the tensor is known to hold no negative value, by the operators that make it."""
        node = self.producer.get(name)
        if node is None or node.domain:
            return False
        bounds = clip_bounds(node, self.values)
        if node.op in NEVER_NEGATIVE or (bounds is not None and bounds[0] >= 0):
            return True
        sources = self.moves(node) or (list(node.inputs[:1]) if node.op in POOLS else [])
        return bool(sources) and all(map(self.is_never_negative, sources))

    def leads_to_quantized(self, name: str) -> bool:
        """Whether a quantized node reads the tensor, directly or through operators that move values or work pointwise."""
        anywhere = self.target.pointwise | {"Concat"}  # of whose inputs each is data
        pending, seen = [name], {name}
        while pending:
            current = pending.pop()
            for reader, index in self.readers.get(current, []):
                if reader.name in self.chosen and index in self.positions(reader, self.chosen[reader.name]):
                    return True
                if reader.op in anywhere or (reader.op in self.target.same_scale and index == 0):
                    pending.extend(each for each in reader.outputs if each not in seen)
                    seen.update(reader.outputs)
        return False

    # ------------------------------------------------------------------------------------------- 3: moving up and sharing

    def moves_values(self, node: Node) -> bool:
        """Whether input and output of the node share a quantizer.

        A Concat behind the last layer joins predictions, of boxes and of scores: they keep ranges of their own.
        """
        return node.op in self.target.same_scale and not (node.op == "Concat" and node.name in self.tail)

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
        kept = node.domain or node.name in self.left
        if kept or not self.moves_values(node) or self.pads_with_value(node):
            return []
        places = range(len(node.inputs)) if node.op == "Concat" else (0,)
        names = [node.inputs[index] for index in places]
        return names if all(self.dtypes.get(name) == "float32" for name in names) else []

    def move_up(self) -> None:
        """Quantizes the inputs of value-moving operators whose outputs are quantized, if nobody loses an exact value by it."""
        for node in reversed(self.nodes):
            outputs = self.used_outputs(node)
            if outputs and self.wanted.issuperset(outputs):
                self.wanted.update(name for name in self.moves(node) if self.may_be_quantized(name))

    def used_outputs(self, node: Node) -> list[str]:
        return [name for name in node.outputs if name in self.readers or name in self.outputs or name in self.wanted]

    def may_be_quantized(self, name: str) -> bool:
        """Whether all readers of the tensor take it quantized, and nothing but values that count stands in it."""
        producer = self.producer.get(name)
        if name in self.outputs or name in self.params or (producer is not None and self.pads_with_value(producer)):
            return False
        return all(self.takes_quantized(*reader) for reader in self.readers[name])

    def drop_unread(self) -> None:
        """Takes back the quantizers of outputs that only float operators read: those keep reading the exact value."""
        for name in self.wanted & self.outputs:
            if not any(self.takes_quantized(*reader) for reader in self.readers.get(name, [])):
                self.wanted.remove(name)

    def takes_quantized(self, node: Node, index: int) -> bool:
        """Whether this reader works on the quantized tensor."""
        if node.op in ("Shape", "Size") or (node.op == "Identity" and node.outputs[0] in self.requantized):
            return True
        if node.name in self.chosen:
            return index in self.places(node)
        return (
            index < len(node.inputs)
            and node.inputs[index] in self.moves(node)
            and self.wanted.issuperset(self.used_outputs(node))
        )

    def groups(self) -> dict[str, str]:
        """Tensor -> the first tensor of its group: both sides of a value-moving operator share a quantizer."""
        leader = {name: name for name in sorted(self.wanted)}

        def find(name: str) -> str:
            while leader[name] != name:
                name = leader[name]
            return name

        for node in self.nodes:
            tied = [name for name in self.moves(node) if name in self.wanted]
            if not tied:
                continue
            tied += [name for name in node.outputs if name in self.wanted]
            for name in tied[1:]:
                leader[find(name)] = find(tied[0])
        return {name: find(name) for name in sorted(self.wanted)}

    def integer_only(self, name: str) -> bool:
        """Whether the runtime has the tensor in integers only, because an integer kernel makes it."""
        node = self.producer.get(name)
        if node is None:
            return False
        if merges(node, self.target, self.values) and node.inputs[0] in self.producer:
            made_by = self.producer[node.inputs[0]]
            if made_by.name in self.chosen and self.fused_output(made_by) == name:
                node = made_by
        if node.name in self.chosen:
            return self.chosen[node.name].output
        return self.is_moved(name)

    def wish(self, node: Node, index: int = 0) -> Scheme:
        """How a chosen node wants the activation that is its input `index`."""
        rule = self.chosen[node.name]
        product = bool(rule.weights) and len(self.positions(node, rule)) == 2 and is_product(node)
        symmetric = self.target.integer_products_symmetric and product
        centered = index in rule.centered
        return self.wishes.activation(node.name, rule.activation_axis, symmetric=symmetric, centered=centered)

    def is_moved(self, name: str) -> bool:
        """Whether all values of a quantized tensor come from tensors with the same quantizer."""
        maker = self.producer.get(name)
        sources = self.moves(maker) if maker is not None else []
        return bool(sources) and self.wanted.issuperset(sources)
