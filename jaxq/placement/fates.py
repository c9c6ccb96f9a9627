"""What becomes of each node in a runtime: an integer kernel, moved integers, merged into another node, or float, and why."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxq.graph.ir import Graph, Node, TensorType, constants, in_loops
from jaxq.graph.linear import is_depthwise
from jaxq.graph.ranks import ranks
from jaxq.placement.schemes import merges, rule_for
from jaxq.placement.targets import Rule, Target

INTEGER = "in integers"
FOLDED = "folded into other nodes"
MERGED = "merged into the integer kernel before it"
MOVES = "moves integers"
NO_FLOATS = "shapes, integers, or a branch not taken"
NO_KERNEL = "float: no integer kernel"
STORED = "float: no integer kernel; its weight is stored in integers"
FLOAT_AROUND = "float: what it moves stays float"
LEFT = "float: {}"  # and why, as the plan says it
NO_READER = "float: nothing in integers follows"
ON_HOST = "float: on the host, since shapes depend on values"
NO_FIT = "float: its data or weights are constant, computed, or not float32"
CONSTANT_SIDE = "float: it computes with a constant, which is not worth a quantizer"
NOT_QUANTIZED = "float: not quantized"
AN_OUTPUT = "float: its result is an output of the model"
NOT_TAKEN = "float: its result is not quantized, since {} takes it in float"
READ_TWICE = "float: its result is quantized for some of its readers, and read or given out in float too"
SUMMED = "float: the runtime makes a Gemm of it and of the Add behind it, whose other summand is in float"
COMPUTED_BIAS = "float: its bias is computed"
FLOAT_BIAS = "float: its bias is in float, and its result is not quantized"
SCALED = "float: its {} is not 1, beside a bias"
FLOAT_WEIGHTS = "float: its weights are {}"
READ_ONLY = "float: {} is read, but computed with in float"
NOT_SEEN = "float: in the body of a loop, where nothing was seen of it"

MATRIX = 2  # axes


class Reason(NamedTuple):
    """Why a node whose inputs are quantized runs in float: one of the words above, and what stands in its gap."""

    word: str
    detail: str = ""

    def __str__(self) -> str:
        return self.word.format(self.detail)


class Fates:
    """What becomes of the nodes of a graph whose quantizers are known: `fates.of(node)`, one of the words above.

    Args:
      graph: in which every quantized tensor has a name of its own, as in a `Plan`.
      params: its weights; only their names and shapes are looked at.
      encoded: name of each quantized tensor, weight and bias -> the type that its integers are kept in.
      target: the runtime's table.
      dtypes: of the tensors that are made when the graph runs, as far as they are known.
      left: node name -> why it stays in float, where that is known.
      shapes: of the tensors that are made when the graph runs, as far as they are known.
      shifted: the weights that are known to have zero points other than 0.
    """

    def __init__(
        self,
        graph: Graph,
        params: Mapping[str, Any],
        encoded: Mapping[str, str],
        target: Target,
        dtypes: Mapping[str, str],
        left: Mapping[str, str],
        shapes: Mapping[str, tuple[int, ...]],
        shifted: Collection[str] = (),
    ):
        self.params, self.encoded, self.target, self.dtypes, self.left = params, encoded, target, dtypes, left
        self.shapes, self.shifted = shapes, shifted
        self.ranks = {**ranks(graph, params), **{name: len(shape) for name, shape in shapes.items()}}
        self.has_fixed_shapes = all(is_fixed(graph.types.get(name)) for name in graph.inputs)
        self.values = {**params, **constants(graph)}
        self.looped = frozenset(node.name for node in in_loops(graph))
        self.wiring = graph.wiring

    def of(self, node: Node) -> str:
        """What becomes of a node of the graph."""
        rule = self.rule(node)
        if rule is not None and self.is_quantized(node, rule):
            return self.kernel(node, rule)
        before = self.wiring.producers.get(node.inputs[0]) if node.inputs else None
        if node.name in self.looped and rule is not None and rule.weights and not self.makes_floats(node):
            return NOT_SEEN
        if not self.makes_floats(node):
            return NO_FLOATS
        between = before is not None and node.inputs[0] in self.encoded
        if before is not None and not between and self.is_merged(before, node) and self.of(before) == INTEGER:
            return MERGED
        if node.op in self.target.same_scale and not node.domain:
            return MOVES if all(name in self.encoded for name in node.outputs if name) else FLOAT_AROUND
        if node.name in self.left:
            return LEFT.format(self.left[node.name])
        if rule is None:
            return NO_KERNEL
        return self.why_not(node, rule)

    def rule(self, node: Node) -> Rule | None:
        """The target's rule for a node; None where it has no kernel for it, or moves values."""
        if node.domain or (
            node.op in self.target.same_scale and not (node.op == "Gather" and node.inputs[0] in self.params)
        ):
            return None
        return rule_for(self.target, node, depthwise=is_depthwise(node, self.params)) or self.target.other

    def makes_floats(self, node: Node) -> bool:
        return any(self.dtypes.get(name, "").startswith(("float", "bfloat")) for name in node.outputs)

    def is_quantized(self, node: Node, rule: Rule | None) -> bool:
        """Whether all that the rule wants quantized is: the data, but for a summand that a kernel makes, and the first weight."""
        if rule is None:
            return False
        if rule.activations is None:
            wanted = [name for name in node.inputs if name not in self.values and self.dtypes.get(name) == "float32"]
        else:
            wanted = [
                node.inputs[index] for index in (*rule.activations, *rule.weights[:1]) if index < len(node.inputs)
            ]
        missing = [name for name in set(filter(None, wanted)) if name not in self.encoded]
        return bool(wanted) and len(missing) <= (1 if rule.skip_only and len(wanted) > 1 else 0)

    def kernel(self, node: Node, rule: Rule) -> str:
        """Whether a quantized node gets an integer kernel, and why not."""
        reason = self.reason(node, rule)
        return INTEGER if reason is None else str(reason)

    def reason(self, node: Node, rule: Rule) -> Reason | None:
        """Why a node whose inputs are quantized gets no integer kernel; None if it does."""
        if rule.stored:
            return Reason(STORED)
        kinds = {self.encoded[name] for name in node.inputs if name in self.encoded}
        if slow := kinds & self.target.storage_types:
            return Reason(READ_ONLY, min(slow))
        if weights := self.float_weights(node, rule):
            return Reason(FLOAT_WEIGHTS, weights)
        bias = node.inputs[rule.bias] if rule.bias is not None and len(node.inputs) > rule.bias else ""
        if bias and bias not in self.values:
            return Reason(COMPUTED_BIAS)
        if rule.output and (reason := self.why_not_taken(node)):
            return reason
        return self.why_not_alone(node, bias) if self.target.rounds_biases and rule.weights else None

    def float_weights(self, node: Node, rule: Rule) -> str:
        """The type of its weights, if it is one that the target's kernels compute with in float; else ""."""
        slow = self.target.float_weights
        for index in rule.weights if rule.activations and slow else ():
            name = node.inputs[index] if index < len(node.inputs) else ""
            if name in self.encoded and name in self.params:
                if self.encoded[name] in slow:
                    return self.encoded[name]
                if name in self.shifted:
                    return f"{self.encoded[name]} with a zero point"
        return ""

    def why_not_alone(self, node: Node, bias: str) -> Reason | None:
        """Why a kernel that makes floats too is not used all the same: a runtime that looks for quantizers around a node, and
        makes biases int32 by itself, wants either none behind it or one alone, and it merges sums of matrices before."""
        name = node.outputs[0]
        if self.quantizers_behind(name) and not self.is_quantized_alone(name):
            return Reason(READ_TWICE)
        taken = self.is_quantized_alone(self.merged_output(node))
        if node.op == "Gemm" and bias:
            factor = next((key for key in ("alpha", "beta") if node.attributes.get(key, 1.0) != 1.0), "")
            if factor:
                return Reason(SCALED, factor)
            return None if taken or bias in self.encoded else Reason(FLOAT_BIAS)
        return Reason(SUMMED) if node.op == "MatMul" and not taken and self.is_summed(node) else None

    def is_summed(self, node: Node) -> bool:
        """Whether the runtime makes a Gemm of a product and of the Add behind it, which then has a bias in float."""
        added = self.wiring.added(node.outputs[0])
        if added is None:
            return False
        addition, other = added
        if other in self.values:
            shape = np.shape(self.values[other])
            bias = len(shape) in (1, MATRIX) and math.prod(shape) > 1
            matrix = self.ranks.get(node.inputs[0]) == MATRIX
            end = (
                self.merged_output(addition) if matrix else addition.outputs[0]
            )  # else the Gemm gets a Reshape behind it
            return bias and (matrix or self.has_fixed_shapes) and not self.is_quantized_alone(end)
        if self.ranks.get(node.outputs[0]) != MATRIX or self.ranks.get(other) not in (1, MATRIX):
            return False
        shape, product = self.shapes.get(other), self.shapes.get(node.outputs[0])
        fits = shape is None or product is None or is_summand(shape, product)
        return fits and not self.is_merged_first(other, node)

    def is_merged_first(self, other: str, node: Node) -> bool:
        """Whether the other summand is a product too, which the runtime meets first, and merges with the sum."""
        maker = self.wiring.producers.get(other)
        alone = self.wiring.only_reader(other) is not None and other not in self.encoded
        first = next((each for each in self.wiring.nodes if each is maker or each is node), node)
        return maker is not None and maker.op == "MatMul" and alone and first is maker

    def quantizers_behind(self, name: str) -> int:
        """How many quantizers read the tensor: its own, or those of the copies that quantized readers have."""
        copies = [node for node, _ in self.wiring.readers.get(name, ()) if node.op == "Identity"]
        return 1 if name in self.encoded else sum(node.outputs[0] in self.encoded for node in copies)

    def is_quantized_alone(self, name: str) -> bool:
        """Whether one quantizer reads the tensor, and nothing else."""
        if name in self.encoded:
            return True
        return self.wiring.only_reader(name) is not None and self.quantizers_behind(name) == 1

    def why_not_taken(self, node: Node) -> Reason | None:
        """Why a kernel that makes integers is not used, since its result, or what is merged into it, is not quantized."""
        name = self.merged_output(node)
        if self.is_quantized_alone(name):
            return None
        if self.quantizers_behind(name):
            return Reason(READ_TWICE)
        if name in self.wiring.outputs:
            return Reason(AN_OUTPUT)
        readers = sorted({reader.op for reader, _ in self.wiring.readers.get(name, ())})
        return Reason(NOT_TAKEN, " and ".join(readers) or "nothing")

    def merged_output(self, node: Node) -> str:
        """The result of a node, or of the activation function behind it that the runtime merges into it."""
        behind = self.wiring.only_reader(node.outputs[0])
        return behind[0].outputs[0] if behind is not None and self.merges(node, behind[0]) else node.outputs[0]

    def merges(self, before: Node, node: Node) -> bool:
        """Whether the runtime merges the node into the kernel before it."""
        alone = self.wiring.only_reader(before.outputs[0]) is not None
        return alone and before.op in self.target.fusing and merges(node, self.target, self.values)

    def is_merged(self, before: Node, node: Node) -> bool:
        """The same where a kernel before it may run in integers without it: then only a quantizer behind it stands in for it."""
        by_quantizer = not self.target.merges_at_zero or self.is_quantized_alone(node.outputs[0])
        return by_quantizer and self.merges(before, node)

    def why_not(self, node: Node, rule: Rule) -> str:
        """Why a node that has a rule is not quantized."""
        varying = [name for name in node.inputs if name and name not in self.values]
        needed = 1 if rule.weights or rule.activations is None else len(rule.activations)
        if (
            not rule.weights
            and 0 < len(varying) < needed
            and all(self.dtypes.get(each) == "float32" for each in varying)
        ):
            return CONSTANT_SIDE
        if len(varying) < needed or (rule.weights and not rule.body_only):
            return NO_FIT
        return NO_READER if rule.body_only else NOT_QUANTIZED


def is_fixed(declared: TensorType | None) -> bool:
    """Whether all sizes of an input are declared."""
    return declared is not None and declared.shape is not None and all(isinstance(size, int) for size in declared.shape)


def is_summand(shape: tuple[int, ...], product: tuple[int, ...]) -> bool:
    """Whether a Gemm that makes such a product may add a tensor of that shape to it."""
    rows, columns = product
    return shape in ((columns,), (1, columns), (rows, columns), (rows, 1))
