"""What a runtime would refuse, compute wrongly, or leave slow in a quantized file, whoever wrote it.

Everything is read off the file and the target's table; nothing runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any, Literal

import numpy as np

from jaxq.graph import Node
from jaxq.model import Model
from jaxq.patterns import is_depthwise
from jaxq.plan import constants
from jaxq.schemes import rule_for, type_name, weight_axis
from jaxq.targets import Rule, Target

SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)  # below it numbers are denormal, which runtimes flush to zero
LARGEST_SAFE_WEIGHT = 64  # 255 * 64 * 2 fits 16 bits
BIAS_TOLERANCE = 1e-3
SCALE_TOLERANCE = 1e-5
INTEGER_OPERATORS = ("QLinear", "MatMulInteger", "ConvInteger", "QGemm", "QAttention", "DynamicQuantize")


class Severity(StrEnum):
    """What a finding means for the file."""

    REFUSED = "refused"  # the runtime does not load or build it
    WRONG = "wrong"  # the runtime computes something else than the file says
    SLOW = "slow"  # the runtime computes in float, or rounds more often than needed


@dataclass(frozen=True)
class Finding:
    """One thing that is not as the runtime wants it.

    Attributes:
      severity: what it means.
      node: the name of the node, or of the tensor where the graph itself is concerned.
      op: the operator of the node.
      problem: what is wrong, with the value.
      advice: what to do.
    """

    severity: Severity
    node: str
    op: str
    problem: str
    advice: str


Role = Literal["activation", "weight", "bias"]
PLURAL = {"activation": "activations", "weight": "weights", "bias": "biases"}
NAMES_SHOWN = 4


@dataclass(frozen=True)
class Quantizer:
    """A QuantizeLinear or DequantizeLinear, with its numbers; None where they are computed."""

    node: Node
    role: Role
    type: str | None
    scale: Any
    zero_point: Any
    integers: Any  # of a constant

    @property
    def axis(self) -> int | None:
        """The axis with one scale each, as the file says it; None for one scale, or blocks of them."""
        if self.scale is None or self.scale.size < 2 or self.node.attributes.get("block_size", 0):
            return None
        return int(self.node.attributes.get("axis", 1))


def lint(model: Model, target: Target) -> tuple[Finding, ...]:
    """All findings, in the order of the graph; those about a quantizer before those about its readers."""
    return tuple(_Linter(model, target).findings())


def describe(findings: tuple[Finding, ...]) -> list[str]:
    """The findings as lines, the worst first; nodes of which the same is to be said together."""
    alike: dict[tuple[Severity, str, str, str], list[str]] = {}
    for severity in Severity:
        for each in findings:
            if each.severity is severity:
                alike.setdefault((severity, each.op, each.problem, each.advice), []).append(each.node)
    lines = []
    for (severity, op, problem, advice), nodes in alike.items():
        shown = ", ".join(nodes[:NAMES_SHOWN]) + (
            f" and {len(nodes) - NAMES_SHOWN} more" if len(nodes) > NAMES_SHOWN else ""
        )
        lines.append(f"{severity.value:8s} {op} {shown}: {problem}")
        lines.append(f"{'':8s} -> {advice}")
    return lines


class _Linter:
    """One walk over the graph with what is known of its quantizers."""

    def __init__(self, model: Model, target: Target):
        self.model, self.target = model, target
        self.nodes = [node for _, node in model.graph.walk()]
        self.producer = {name: node for node in self.nodes for name in node.outputs if name}
        self.values = {**constants(model.graph), **model.params}
        self.readers: dict[str, list[tuple[Node, int]]] = {}
        for node in self.nodes:
            for index, name in enumerate(node.inputs):
                if name:
                    self.readers.setdefault(name, []).append((node, index))
        self.outputs = set(model.graph.outputs)

    def findings(self) -> Iterator[Finding]:
        for node in self.nodes:
            if node.op in ("QuantizeLinear", "DequantizeLinear"):
                yield from self.quantizer(node)
            elif node.op.startswith(INTEGER_OPERATORS):
                if not self.target.integer_operators:
                    advice = "write the model with QuantizeLinear and DequantizeLinear around float operators"
                    yield self.finding(Severity.REFUSED, node, f"{node.op} is no operator of this runtime", advice)
            else:
                yield from self.operator(node)
        yield from self.ends()

    def finding(self, severity: Severity, node: Node, problem: str, advice: str) -> Finding:
        return Finding(severity, node.name or node.outputs[0], node.op, problem, advice)

    # ------------------------------------------------------------------------------------------------- quantizers

    @cached_property
    def seen(self) -> dict[str, Quantizer]:
        """Output name -> what is known of the Q or DQ that makes it."""
        return {
            node.outputs[0]: self.read(node)
            for node in self.nodes
            if node.op in ("QuantizeLinear", "DequantizeLinear") and node.outputs
        }

    def read(self, node: Node) -> Quantizer:
        """What the file says of one quantizer."""
        source = node.inputs[0]
        before = self.producer.get(source)
        behind_q = before is not None and before.op == "QuantizeLinear" and node.op == "DequantizeLinear"
        constant = source in self.values or (behind_q and before is not None and before.inputs[0] in self.values)
        scale = self.values.get(node.inputs[1])
        zero_point = self.values.get(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else None
        integers = self.values.get(source) if node.op == "DequantizeLinear" else None
        kind: str | None = None
        if zero_point is not None:
            kind = zero_point.dtype.name
        elif integers is not None:
            kind = integers.dtype.name
        elif behind_q and before is not None:
            kind = self.read(before).type
        elif node.op == "QuantizeLinear":
            kind = "uint8"  # as the standard has it
        role: Role = "activation"
        if constant:
            places = [index for _, index in self.readers.get(node.outputs[0], [])]
            role = "bias" if kind == "int32" or (places and min(places) >= 2 and self.rank(node) == 1) else "weight"
        return Quantizer(node, role, kind, scale, zero_point, integers)

    def rank(self, node: Node) -> int:
        value = self.values.get(node.inputs[0])
        return -1 if value is None else int(np.ndim(value))

    def quantizer(self, node: Node) -> Iterator[Finding]:
        each = self.seen[node.outputs[0]]
        first = self.seen.get(node.inputs[0])
        if first is None or first.node.op != "QuantizeLinear" or not same_numbers(first, each):
            yield from self.scale(each)  # of a pair once
            yield from self.type(each)
            yield from self.zero_point(each)
        if each.role == "bias":
            yield from self.bias(each)
        elif node.op == "DequantizeLinear":
            yield from self.axis(each)
        if each.role == "weight":
            yield from self.saturation(each)
        yield from self.pairing(each)

    def scale(self, each: Quantizer) -> Iterator[Finding]:
        if each.scale is None:
            return
        scale = np.asarray(each.scale, np.float64)
        bad = ~np.isfinite(scale) | (scale <= 0)
        if bad.any():
            value = scale[bad].reshape(-1)[0]
            advice = "a scale is a positive number; quantize the model again"
            yield self.finding(Severity.WRONG, each.node, f"its scale is {value:g} in {bad.sum()} place(s)", advice)
        elif (scale < SMALLEST_NORMAL).any():
            problem = f"its scale {scale.min():g} is denormal, and becomes zero where such numbers are flushed"
            yield self.finding(Severity.WRONG, each.node, problem, "raise it to 1e-30; the tensor is empty in any case")

    def type(self, each: Quantizer) -> Iterator[Finding]:
        node, kind = each.node, each.type
        if node.domain not in self.target.domains:
            advice = f"write it with the operators of the standard, opset {self.target.opset} or newer"
            yield self.finding(Severity.REFUSED, node, f"it is of domain {node.domain!r}", advice)
        if kind is None:
            return
        allowed = {
            "bias": self.target.bias_types,
            "weight": self.target.weight_types,
            "activation": self.target.activation_types,
        }[each.role]
        if kind not in allowed:
            known = ", ".join(sorted(allowed)) or "float only"
            usual = type_name(self.target.weight if each.role == "weight" else self.target.activation)
            problem = f"{PLURAL[each.role]} in {kind}; this runtime reads {known}"
            advice = f"quantize to {usual}" if allowed and each.role != "bias" else "leave biases in float"
            yield self.finding(Severity.REFUSED, node, problem, advice)
        elif kind in self.target.storage_types:
            problem = f"{kind} is read, but computed with in float"
            yield self.finding(Severity.SLOW, node, problem, "8 bits have integer kernels; keep this for accuracy only")
        needed, opset = self.target.opset_of.get(kind, 10), self.model.graph.opsets.get("", 1)
        needed = max(needed, 13) if each.axis is not None else needed
        if not node.domain and opset < needed:
            problem = (
                f"{kind}{' per channel' if each.axis is not None else ''} needs opset {needed}; the file has {opset}"
            )
            yield self.finding(Severity.REFUSED, node, problem, f"raise the model's opset to {needed}")

    def zero_point(self, each: Quantizer) -> Iterator[Finding]:
        if each.zero_point is None or each.type is None or each.role == "bias":
            return
        if each.type not in (self.target.weight_types if each.role == "weight" else self.target.activation_types):
            return  # which has been said
        modes = self.target.weight_modes if each.role == "weight" else self.target.activation_modes
        values = np.unique(np.asarray(each.zero_point, np.float64))
        middle = 128 if each.type == "uint8" else 32768 if each.type == "uint16" else 8 if each.type == "uint4" else 0
        if "asymmetric" not in modes and (values != middle).any():
            off = next(value for value in values if value != middle)
            problem = f"its zero point is {off:g}; this runtime takes symmetric {PLURAL[each.role]} only ({middle})"
            yield self.finding(
                Severity.REFUSED, each.node, problem, 'quantize with preset="performance" for this target'
            )
        if each.role == "weight" and len(values) > 1 and not self.takes_zero_points():
            problem = f"its channels have {len(values)} different zero points; this runtime wants one"
            yield self.finding(Severity.REFUSED, each.node, problem, "quantize the weights symmetrically")

    def takes_zero_points(self) -> bool:
        """Whether the channels of a weight may differ in zero point; where floats are made of it, any runtime takes that."""
        return self.target.asymmetric_per_channel or not self.quantizes_activations

    def bias(self, each: Quantizer) -> Iterator[Finding]:
        for reader, index in self.readers.get(each.node.outputs[0], []):
            rule = self.rule(reader)
            if rule is None or rule.bias is None or index != rule.bias or each.scale is None:
                continue
            data, weight = self.seen.get(reader.inputs[0]), self.seen.get(reader.inputs[1])
            if data is None or weight is None or data.scale is None or weight.scale is None:
                continue
            wanted = np.float64(np.reshape(data.scale, -1)[0]) * np.asarray(weight.scale, np.float64).reshape(-1)
            found = np.asarray(each.scale, np.float64).reshape(-1)
            if {found.size, wanted.size} - {1, max(found.size, wanted.size)}:
                continue
            if not np.allclose(found, wanted, rtol=BIAS_TOLERANCE, atol=0.0):
                worst = np.max(np.abs(found / np.maximum(wanted, SMALLEST_NORMAL) - 1))
                problem = f"the scale of the bias is not input scale * weight scale (off by up to {worst:.2g} of it)"
                advice = "the kernel adds the integers as they are: quantize the bias with the product of both scales"
                yield self.finding(Severity.WRONG, reader, problem, advice)
            if each.zero_point is not None and np.any(each.zero_point):
                yield self.finding(Severity.WRONG, reader, "the zero point of the bias is not 0", "make it 0")

    def axis(self, each: Quantizer) -> Iterator[Finding]:
        if each.axis is None:
            return
        for reader, index in self.readers.get(each.node.outputs[0], []):
            rule = self.rule(reader)
            if rule is None:
                continue
            if each.role == "activation":
                rank_free = rule.activation_axis
                if index in (rule.activations or ()) and rank_free != each.axis:
                    problem = f"input {index} has one scale for each index of axis {each.axis}"
                    yield self.finding(Severity.REFUSED, reader, problem, "give the activation one scale")
            elif index in rule.weights:
                rank = np.ndim(self.values.get(each.node.inputs[0], np.zeros((1,) * 9)))
                wanted = weight_axis(reader, rule, rank)
                if wanted is None or not self.target.per_channel:
                    problem = (
                        f"its weight has one scale for each index of axis {each.axis % rank}; this runtime takes one"
                    )
                    yield self.finding(Severity.REFUSED, reader, problem, "quantize the weight with one scale")
                elif wanted % rank != each.axis % rank:
                    problem = f"its weight has its scales along axis {each.axis % rank}, and not {wanted % rank}"
                    yield self.finding(Severity.REFUSED, reader, problem, "the scales belong to the output channels")

    def saturation(self, each: Quantizer) -> Iterator[Finding]:
        if self.target.overflow_fix != "enable" or each.integers is None or each.type != "int8":
            return
        largest = int(np.abs(np.asarray(each.integers, np.int32)).max(initial=0))
        products = [reader for reader, _ in self.readers.get(each.node.outputs[0], []) if self.rule(reader)]
        if largest > LARGEST_SAFE_WEIGHT and products:
            problem = f"its weights reach {largest}: two products of bytes can pass 16 bits on this processor"
            yield self.finding(
                Severity.WRONG, products[0], problem, "hold the weights to 7 bits (overflow_fix='enable')"
            )

    def pairing(self, each: Quantizer) -> Iterator[Finding]:
        node = each.node
        readers = [reader for reader, _ in self.readers.get(node.outputs[0], [])]
        if node.op == "QuantizeLinear":
            lone = [reader for reader in readers if not self.reads_integers(reader)]
            if lone:
                problem = f"{lone[0].op} {lone[0].name!r} reads its integers without a DequantizeLinear"
                yield self.finding(
                    Severity.REFUSED, node, problem, "put a DequantizeLinear with the same numbers between"
                )
            if not readers and node.outputs[0] not in self.outputs:
                yield self.finding(Severity.SLOW, node, "nobody reads it", "remove it")
            source = self.seen.get(node.inputs[0])
            if source is not None and source.node.op == "DequantizeLinear":
                same = same_numbers(source, each)
                problem = "a DequantizeLinear stands right before it" + (
                    "" if same else ": the values are rounded twice"
                )
                advice = "remove the pair" if same else "give both sides one scale, or take one of the pairs out"
                yield self.finding(Severity.SLOW, node, problem, advice)
        elif each.role == "activation":
            before = self.producer.get(node.inputs[0])
            if (
                before is not None
                and before.op == "QuantizeLinear"
                and not same_numbers(self.seen[before.outputs[0]], each)
            ):
                advice = "give QuantizeLinear and DequantizeLinear the same scale and zero point"
                yield self.finding(
                    Severity.WRONG, node, f"its numbers are not those of {before.name!r} before it", advice
                )

    def reads_integers(self, node: Node) -> bool:
        moves = node.op in self.target.same_scale or node.op in ("Identity", "Shape", "Cast")
        return node.op == "DequantizeLinear" or node.op.startswith(INTEGER_OPERATORS) or moves or bool(node.subgraphs)

    # -------------------------------------------------------------------------------------------------- operators

    def rule(self, node: Node) -> Rule | None:
        """The target's rule for a node; None where it has no kernel in integers."""
        if node.domain or node.op in self.target.same_scale:
            return None
        weight = node.inputs[1] if len(node.inputs) > 1 else ""
        shapes = {weight: self.values.get(self.producer[weight].inputs[0]) if weight in self.producer else None}
        known = {name: value for name, value in shapes.items() if value is not None}
        return rule_for(self.target, node.op, depthwise=is_depthwise(node, known))

    def operator(self, node: Node) -> Iterator[Finding]:
        if node.op in self.target.same_scale and not node.domain:
            yield from self.mover(node)
        rule = self.rule(node)
        if rule is not None:
            yield from self.kernel(node, rule)
        if node.op in self.target.fused:
            yield from self.activation_function(node)

    def is_quantized(self, name: str) -> bool:
        return name in self.seen and self.seen[name].node.op == "DequantizeLinear"

    def kernel(self, node: Node, rule: Rule) -> Iterator[Finding]:
        places = sorted({*(rule.activations or ()), *rule.weights[:1]})
        if rule.activations is None:
            places = [index for index, name in enumerate(node.inputs) if name and self.is_float(name)]
        present = [index for index in places if index < len(node.inputs) and node.inputs[index]]
        missing = [index for index in present if not self.is_quantized(node.inputs[index])]
        if rule.skip_only and len(missing) == 1:
            return  # the kernel before makes that one
        if not self.quantizes_activations:
            return  # weights only: they are turned into floats, as is meant
        types = {self.seen[node.inputs[index]].type for index in present if index not in missing}
        refused = types & self.target.unoptimized
        if not missing and refused and not types & (self.target.storage_types - self.target.unoptimized):
            problem = (
                f"with graph optimizations on, this runtime merges {min(map(str, refused))} into an integer kernel"
            )
            advice = "load it with optimizations off or basic (ONNX Runtime: ORT_ENABLE_BASIC), or quantize to integers"
            yield self.finding(Severity.REFUSED, node, problem, advice)
        elif missing and len(missing) < len(present):
            words = ", ".join(f"{index} ({node.inputs[index]!r})" for index in missing)
            problem = f"input {words} is not quantized, others are: it runs in float"
            yield self.finding(Severity.SLOW, node, problem, "quantize all of its inputs, or none")
        elif missing and rule.weights and rule.activations and node.inputs[rule.weights[0]] in self.values:
            problem = "it runs in float: neither its input nor its weight is quantized"
            yield self.finding(Severity.SLOW, node, problem, "quantize it, if it was not left out on purpose")
        elif not missing and present and rule.output and not self.has_quantized_output(node):
            problem = f"its result {node.outputs[0]!r} is not quantized: without that it runs in float"
            advice = "put a pair of quantizers behind it, or accept it where the result is an output of the model"
            yield self.finding(Severity.SLOW, node, problem, advice)

    @cached_property
    def quantizes_activations(self) -> bool:
        """Whether more than weights is quantized."""
        return any(each.role == "activation" for each in self.seen.values())

    def is_float(self, name: str) -> bool:
        value = self.values.get(name)
        return self.is_quantized(name) or (value is not None and value.dtype.kind == "f") or name in self.readers_of_q

    @cached_property
    def readers_of_q(self) -> set[str]:
        """Tensors that a QuantizeLinear reads: floats for certain."""
        return {node.inputs[0] for node in self.nodes if node.op == "QuantizeLinear"}

    def has_quantized_output(self, node: Node) -> bool:
        """Whether a QuantizeLinear reads the output, behind an activation function that is merged or not."""
        readers = [reader for reader, _ in self.readers.get(node.outputs[0], [])]
        if any(reader.op == "QuantizeLinear" for reader in readers):
            return True
        fused = len(readers) == 1 and readers[0].op in self.target.fused and node.op in self.target.fusing
        return fused and any(each.op == "QuantizeLinear" for each, _ in self.readers.get(readers[0].outputs[0], []))

    def activation_function(self, node: Node) -> Iterator[Finding]:
        """Whether the function is merged into the kernel before it, if that is one in integers."""
        before = self.producer.get(node.inputs[0]) if node.inputs else None
        if before is not None and before.op == "DequantizeLinear":
            q = self.producer.get(before.inputs[0])
            kernel = self.producer.get(q.inputs[0]) if q is not None and q.op == "QuantizeLinear" else None
            alone = kernel is not None and len(self.readers[kernel.outputs[0]]) == 1
            if (
                kernel is not None
                and alone
                and kernel.op in self.target.fusing
                and len(self.readers[node.inputs[0]]) == 1
            ):
                problem = (
                    f"quantizers stand between it and {kernel.op} {kernel.name!r}: it is not merged into that kernel"
                )
                yield self.finding(Severity.SLOW, node, problem, f"quantize behind the {node.op} only")
        elif before is not None and before.op in self.target.fusing and self.target.merges_at_zero:
            for reader, _ in self.readers.get(node.outputs[0], []):
                each = self.seen.get(reader.outputs[0]) if reader.op == "QuantizeLinear" else None
                if each is None or each.zero_point is None or each.type is None or not self.rule(before):
                    continue
                lowest = {"int8": -128, "int16": -32768}.get(each.type, 0)
                if node.op == "Relu" and np.any(np.asarray(each.zero_point, np.int64) != lowest):
                    problem = f"the quantizer behind it has zero point {np.ravel(each.zero_point)[0]}, and not {lowest}"
                    advice = f"with zero point {lowest} it is merged into {before.op} {before.name!r}, which else runs in float"
                    yield self.finding(Severity.SLOW, node, problem, advice)

    def mover(self, node: Node) -> Iterator[Finding]:
        """Whether an operator that moves values has the same numbers on both sides."""
        sources = node.inputs if node.op == "Concat" else node.inputs[:1]
        after = [
            self.seen[reader.outputs[0]]
            for name in node.outputs
            for reader, _ in self.readers.get(name, [])
            if reader.op == "QuantizeLinear"
        ]
        for name in sources:
            before = self.seen.get(name)
            if before is None or before.node.op != "DequantizeLinear" or before.role != "activation":
                continue
            for each in after:
                if not same_numbers(before, each):
                    problem = f"{name!r} comes in with another scale than it leaves with: the values are rounded again"
                    yield self.finding(Severity.SLOW, node, problem, "give input and output one scale and zero point")
                    return

    # ------------------------------------------------------------------------------------------------------- ends

    def ends(self) -> Iterator[Finding]:
        """Inputs and outputs of the model, where the runtime wants them quantized."""
        if not self.target.outputs:
            return
        for name in self.model.graph.outputs:
            node = self.producer.get(name)
            declared = self.model.graph.types.get(name)
            if declared is None or not declared.dtype.startswith("float") or node is None:
                continue
            if node.op != "DequantizeLinear":
                problem, advice = "this output of the model is not quantized", "quantize with quantize_outputs=True"
                yield Finding(Severity.SLOW, name, node.op, problem, advice)


def same_numbers(one: Quantizer, other: Quantizer) -> bool:
    """Whether two quantizers have the same scales and zero points, as far as that can be known."""
    if one.scale is None or other.scale is None:
        return True
    first, second = (np.ravel(np.asarray(each.scale, np.float64)) for each in (one, other))
    if first.size != second.size or not np.allclose(first, second, rtol=SCALE_TOLERANCE, atol=0.0):
        return False
    points = [
        np.zeros(1) if each.zero_point is None else np.ravel(np.asarray(each.zero_point)) for each in (one, other)
    ]
    return bool(np.all(points[0].astype(np.float64) == points[1].astype(np.float64)))
