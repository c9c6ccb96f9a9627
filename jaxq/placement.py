"""Decides which tensors get quantizers, and which of them share one, for a target.

The target's table says what a runtime computes in integers; the algorithm here is the same for all targets:

1. the nodes with an integer kernel are chosen, but for those that are ignored, prepare a selection, or belong to a pattern that
   the table leaves in float;
2. their activation inputs get quantizers, and their outputs where the kernel wants that and something quantized follows,
   behind an activation function that the runtime merges into the kernel;
3. quantizers move up through operators that only move values (both sides then share one quantizer);
4. a float reader of a tensor whose exact value still exists keeps reading that: the quantized readers get a name of their own;
5. what the readers of a group of tensors ask for is made one scheme; weights and biases follow.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from jaxq.fusion import channel_count
from jaxq.graph import Graph, Node, tensor_names, unused_name
from jaxq.patterns import Matcher, graphs, is_depthwise, is_transformer, post_processing, tail_nodes
from jaxq.plan import Bias, Plan, Weight, read_copies
from jaxq.quantizer import PerAxis, PerTensor, Scheme
from jaxq.saturation import hold_to_seven_bits
from jaxq.schemes import (
    OverflowFix,
    Override,
    Parameters,
    QuantizerPropagationRule,
    Wishes,
    common_scheme,
    rule_for,
    weight_axis,
)
from jaxq.scope import IgnoredScope
from jaxq.targets import Rule, Target

QUANTIZED_OPS = frozenset({"QuantizeLinear", "DequantizeLinear", "MatMulInteger", "ConvInteger"})
QUANTIZED_SUFFIX = "@quantized"  # of the name that quantized readers get where float readers keep the tensor
FLOAT_SUFFIX = "@float"  # of the copy of a weight that ignored nodes keep
KEEPS_CHANNELS = frozenset({"MaxPool", "Pad", "Resize", "Upsample"})  # axis 1 of what they move stays axis 1
ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Reciprocal"})
SCORES = frozenset({"Sigmoid", "HardSigmoid", "Softmax", "LogSoftmax"})

IGNORED, SELECTION, BOXES = "ignored", "prepares a selection", "arithmetic behind the last layer"
TRANSFORMER = "kept so in transformers"


def quantized_nodes(graph: Graph) -> list[Node]:
    """The nodes by which a model is quantized already: those that make, read or compute with quantized integers."""
    return [node for _, node in graph.walk() if node.op in QUANTIZED_OPS or node.op.startswith("QLinear")]


def place_quantizers(
    graph: Graph,
    params: Mapping[str, Any],
    dtypes: Mapping[str, str],
    target: Target,
    *,
    symmetric: bool = False,
    ignored: Iterable[str] = (),
    transformer: bool | None = None,
    activations: Parameters | None = None,
    weights: Parameters | None = None,
    overrides: Sequence[Override] = (),
    overflow_fix: OverflowFix | str | None = None,
    quantize_outputs: bool = False,
    propagation: QuantizerPropagationRule | str = QuantizerPropagationRule.MERGE_ALL_IN_ONE,
) -> Plan:
    """Places quantizers for `target`.

    Args:
      graph: the float graph, after passes.
      params: its weights; only their names and shapes are looked at.
      dtypes: tensor name -> dtype name, for every tensor that is made when the graph runs.
      target: the runtime's table.
      symmetric: whether activations are quantized symmetrically, where `activations` has no mode.
      ignored: names of nodes that stay in float.
      transformer: whether to use the rules for transformers; None finds out.
      activations, weights: how they are quantized, where that differs from the target's defaults.
      overrides: the same for some of the nodes; later ones win.
      overflow_fix: which weights are held to 7 bits; None asks the table.
      quantize_outputs: whether the outputs of the model are quantized, whatever the table says.
      propagation: what becomes of the quantizers of one tensor whose readers want different ones.

    Raises:
      ConfigError: the target does not take what is asked for, or an override selects nothing.
    """
    transformer = is_transformer(graph) if transformer is None else transformer
    wishes = Wishes.of(graph, target, symmetric, activations, weights, overrides)
    work = _Placement(graph, params, dtypes, target, transformer, frozenset(ignored), wishes, quantize_outputs)
    rule = QuantizerPropagationRule(propagation)
    work.choose_places()
    if rule is not QuantizerPropagationRule.MERGE_ALL_IN_ONE and (edges := work.branches(rule)):
        copies = {new: old for _, new, old in edges}
        split = read_copies(graph, {edge: new for edge, new, _ in edges}, copies)
        again = rule is QuantizerPropagationRule.MERGE_WITH_POTENTIAL_REQUANTIZATION
        work = replace(
            work.fresh(split),
            dtypes={**dtypes, **dict.fromkeys(copies, "float32")},
            requantized=frozenset(copies) if again else frozenset(),
        )
        work.choose_places()
    plan = work.plan()
    fix = OverflowFix(target.overflow_fix if overflow_fix is None else overflow_fix)
    return replace(plan, weights=hold_to_seven_bits(plan, params, fix))


@dataclass
class _Placement:
    """The working state of `place_quantizers`, over all graphs of the model at once (subgraphs included)."""

    graph: Graph
    params: Mapping[str, Any]
    dtypes: Mapping[str, str]
    target: Target
    transformer: bool
    ignored: frozenset[str]
    wishes: Wishes
    quantize_outputs: bool
    requantized: frozenset[str] = frozenset()  # copies that read their tensor quantized
    nodes: list[Node] = field(init=False)
    producer: dict[str, Node] = field(init=False)
    readers: dict[str, list[tuple[Node, int]]] = field(init=False)
    outputs: set[str] = field(init=False)
    left: dict[str, str] = field(init=False)  # node name -> why it stays in float
    tail: frozenset[str] = field(init=False)  # nodes behind which no layer with weights comes
    chosen: dict[str, Rule] = field(init=False)  # node name -> rule
    summand: dict[str, int] = field(init=False)  # node name -> the input that stays as the kernel before it makes it
    wanted: set[str] = field(init=False)  # tensors with a quantizer

    def __post_init__(self) -> None:
        self.nodes = [node for _, node in self.graph.walk()]
        self.producer, self.readers, self.outputs = {}, {}, set(self.graph.outputs)
        self.chosen, self.summand, self.wanted = {}, {}, set()
        for node in self.nodes:
            self.producer.update((name, node) for name in node.outputs if name)
            for index, name in enumerate(node.inputs):
                if name:
                    self.readers.setdefault(name, []).append((node, index))
            for sub in node.subgraphs:
                self.outputs.update(sub.outputs)
        self.constants = {name for inner in graphs(self.graph) for name in inner.constants}
        self.left = dict.fromkeys(self.ignored, IGNORED)
        self.tail = frozenset()
        rules = {node.name: self.rule_of(node) for node in self.nodes if self.fits(node)}
        self.tail = tail_nodes(self.graph, {name for name, rule in rules.items() if rule is not None and rule.weights})
        self.leave_in_float()

    def fresh(self, graph: Graph) -> _Placement:
        """The state before anything is decided, for another graph."""
        given = (self.params, self.dtypes, self.target, self.transformer, self.ignored, self.wishes)
        return _Placement(graph, *given, self.quantize_outputs)

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

    def plan(self) -> Plan:
        """Steps 4 and 5."""
        groups = self.groups()
        graph, renamed = self.isolate()
        weights = merged(weight for node in self.nodes for weight in self.weights(node))
        schemes = self.schemes(groups)
        biases = tuple(bias for node in self.nodes if (bias := self.bias(node, groups, schemes, weights, renamed)))
        graph, copies = self.copy_params(graph, {weight.name for weight in weights})
        return Plan(
            graph=graph,
            activations={renamed.get(name, name): group for name, group in groups.items()},
            schemes=schemes,
            weights=weights,
            biases=biases,
            nodes=tuple(node.name for node in self.nodes if node.name in self.chosen),
            moved=frozenset(renamed.get(name, name) for name in groups if self.is_moved(name)),
            unclipped=frozenset(group for name, group in groups.items() if self.must_not_clip(name)),
            copies=copies,
            left={name: why for name, why in self.left.items() if name not in self.chosen},
        )

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
        rule = rule_for(self.target, node.op, depthwise=is_depthwise(node, self.params))
        free = node.op not in ("Shape", "Size", "Cast", "Identity") and not self.is_merged(node)
        return rule or (self.target.other if free else None)

    def is_merged(self, node: Node) -> bool:
        """Whether the runtime merges the node into the kernel that makes its input, for it alone."""
        maker = self.producer.get(node.inputs[0]) if node.inputs else None
        if node.op not in self.target.fused or maker is None or maker.op not in self.target.fusing:
            return False
        return len(self.readers[node.inputs[0]]) == 1 and node.inputs[0] not in self.graph.outputs

    def leave_in_float(self) -> None:
        """Fills `left` with the nodes that the detectors find."""
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
            is_param = name in self.params and self.params[name].dtype == "float32"
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
        if node.op in ("Shape", "Size") or (node.op == "Identity" and node.name in self.requantized):
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

    # ---------------------------------------------------------------------------------------------- 4: names of their own

    def isolate(self) -> tuple[Graph, dict[str, str]]:
        """The graph with an Identity before the quantized readers of tensors that also have float readers."""
        names = {*tensor_names(self.graph), *self.params}
        renamed: dict[str, str] = {}
        for name in sorted(self.wanted):
            exact = name in self.outputs or not self.integer_only(name)
            others = [reader for reader in self.readers.get(name, []) if not self.takes_quantized(*reader)]
            if exact and (others or name in self.outputs):
                renamed[name] = unused_name(name + QUANTIZED_SUFFIX, names)
        edges = {
            (node.name, index): new
            for name, new in renamed.items()
            for node, index in self.readers.get(name, [])
            if node.op not in ("Shape", "Size") and self.takes_quantized(node, index)
        }
        sources = {new: name for name, new in renamed.items()}
        return (read_copies(self.graph, edges, sources) if renamed else self.graph), renamed

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
        return self.is_moved(name)

    def branches(self, rule: QuantizerPropagationRule) -> list[tuple[tuple[str, int], str, str]]:
        """Readers that get a quantizer of their own: (node name, input), the name of their copy, the tensor."""
        names = {*tensor_names(self.graph), *self.params}
        found: list[tuple[tuple[str, int], str, str]] = []
        for name in sorted(self.wanted):
            wishes: dict[Any, str] = {}
            for node, index in self.readers.get(name, []):
                if node.name not in self.chosen or index not in self.places(node):
                    continue
                apart = rule is QuantizerPropagationRule.DO_NOT_MERGE_BRANCHES
                wish: Any = (node.name, index) if apart else self.wish(node)
                if wish not in wishes:
                    wishes[wish] = unused_name(f"{name}@{node.name}", names) if wishes else name
                if wishes[wish] != name:
                    found.append(((node.name, index), wishes[wish], name))
        return found

    # ---------------------------------------------------------------------------------------------------- 5: schemes

    def wish(self, node: Node) -> Scheme:
        """How a chosen node wants its activations."""
        products = node.op == "MatMul" and len(self.positions(node, self.chosen[node.name])) == 2
        force = self.transformer and self.target.integer_products_symmetric and products
        return self.wishes.activation(node.name, self.chosen[node.name].activation_axis, symmetric=force)

    def schemes(self, groups: Mapping[str, str]) -> dict[str, Scheme]:
        """Group -> the scheme that suits all of its readers; where none says anything, that of what makes it."""
        wanted: dict[str, list[Scheme]] = {group: [] for group in groups.values()}
        makers: dict[str, list[Scheme]] = {group: [] for group in groups.values()}
        mixed: set[str] = set()  # groups whose tensors do not have the channels on the same axis
        for name, group in groups.items():
            for node, index in self.readers.get(name, []):
                if node.name in self.chosen and index in self.places(node):
                    wanted[group].append(self.wish(node))
            maker = self.producer.get(name)
            if maker is not None and maker.name in self.chosen:
                makers[group].append(self.wish(maker))
            if maker is not None and self.moves(maker) and maker.op not in KEEPS_CHANNELS:
                mixed.add(group)
        return {
            group: common_scheme(wanted[group] or makers[group] or [self.wishes.default()], channels=group not in mixed)
            for group in sorted(wanted)
        }

    def is_moved(self, name: str) -> bool:
        """Whether all values of a quantized tensor come from tensors with the same quantizer."""
        maker = self.producer.get(name)
        sources = self.moves(maker) if maker is not None else []
        return bool(sources) and self.wanted.issuperset(sources)

    def must_not_clip(self, name: str) -> bool:
        """Whether a clipped value would change what the model says: a score before its final Sigmoid, or an output."""
        pending, seen = [name], {name}
        while pending:
            current = pending.pop()
            if current in self.graph.outputs:
                return True
            for reader, _ in self.readers.get(current, []):
                if reader.name in self.tail and reader.op in SCORES:
                    return True
                if reader.name in self.tail and current in self.moves(reader):
                    pending.extend(each for each in reader.outputs if each not in seen)
                    seen.update(reader.outputs)
        return False

    # ------------------------------------------------------------------------------------------------------ params

    def weights(self, node: Node) -> Iterator[Weight]:
        """The params that the node multiplies with: per channel where the kernel can, else with one scale."""
        rule = self.chosen.get(node.name)
        if rule is None:
            return
        positions = range(len(node.inputs)) if rule.activations is None else sorted({*rule.weights, *rule.activations})
        for position in positions:
            name = node.inputs[position] if position < len(node.inputs) else ""
            if name not in self.params or self.params[name].dtype != "float32":
                continue
            if position not in rule.weights:
                constant = replace(self.wish(node), granularity=PerTensor())
                yield Weight(name, self.wishes.weight(node.name, None) if rule.weights else constant)
                continue
            axis = weight_axis(node, rule, self.params[name].ndim)
            yield Weight(name, self.wishes.weight(node.name, axis))

    def bias(
        self,
        node: Node,
        groups: Mapping[str, str],
        schemes: Mapping[str, Scheme],
        weights: Iterable[Weight],
        renamed: Mapping[str, str],
    ) -> Bias | None:
        rule = self.chosen.get(node.name)
        if rule is None or rule.bias is None or len(node.inputs) <= rule.bias or not node.inputs[rule.bias]:
            return None
        name, weight, data = (
            node.inputs[rule.bias],
            node.inputs[rule.weights[0]],
            node.inputs[(rule.activations or (0,))[0]],
        )
        alone = name in self.params and len(self.readers[name]) == 1 and name not in self.outputs
        plain = node.op != "Gemm" or node.attributes.get("alpha", 1.0) == node.attributes.get("beta", 1.0) == 1.0
        found = next((each.scheme for each in weights if each.name == weight), None)
        if not (alone and plain and found is not None and found.symmetric and data in groups):
            return None
        if isinstance(schemes[groups[data]].granularity, PerAxis):
            return None  # no one scale for the sums
        if np.shape(self.params[name]) != (channel_count(node, self.params[weight].shape),):
            return None  # a Gemm may have one number for all
        return Bias(name, node.name, renamed.get(data, data), weight)

    def copy_params(self, graph: Graph, quantized: set[str]) -> tuple[Graph, dict[str, str]]:
        """The graph in which ignored nodes read copies of quantized weights; new name -> old name."""
        names = {*tensor_names(graph), *self.params}
        edges: dict[tuple[str, int], str] = {}
        copies: dict[str, str] = {}
        for name in sorted(quantized):
            exact = [(node, index) for node, index in self.readers.get(name, []) if node.name in self.left]
            if exact:
                new = unused_name(name + FLOAT_SUFFIX, names)
                copies[new] = name
                edges.update({(node.name, index): new for node, index in exact})
        return (read_copies(graph, edges, {}) if edges else graph), copies


def merged(weights: Iterable[Weight]) -> tuple[Weight, ...]:
    """Each param once; one that nodes want along different axes gets one scale, one that they want in two widths the wider."""
    found: dict[str, list[Scheme]] = {}
    for weight in weights:
        found.setdefault(weight.name, []).append(weight.scheme)
    return tuple(Weight(name, common_scheme(schemes)) for name, schemes in found.items())


__all__ = [
    "QUANTIZED_SUFFIX",
    "Bias",
    "IgnoredScope",
    "Plan",
    "Weight",
    "is_transformer",
    "place_quantizers",
    "quantized_nodes",
]
