"""Whether a runtime takes the quantizers themselves: their types, numbers and places."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from jaxq.analysis.lint.findings import Finding, Severity, finding
from jaxq.analysis.lint.network import QuantizedNetwork, Quantizer, same_numbers
from jaxq.graph.ir import Node
from jaxq.placement.schemes import type_name, weight_axis
from jaxq.placement.targets import Rule

SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)  # below it numbers are denormal, which runtimes flush to zero
LARGEST_SAFE_WEIGHT = 64  # 255 * 64 * 2 fits 16 bits
BIAS_TOLERANCE = 1e-3
INTEGER_OPERATORS = ("QLinear", "MatMulInteger", "ConvInteger", "QGemm", "QAttention", "DynamicQuantize")
PLURAL = {"activation": "activations", "weight": "weights", "bias": "biases"}


def quantizer(network: QuantizedNetwork, node: Node) -> Iterator[Finding]:
    """Everything about one QuantizeLinear or DequantizeLinear."""
    each = network.seen[node.outputs[0]]
    first = network.seen.get(node.inputs[0])
    if first is None or first.node.op != "QuantizeLinear" or not same_numbers(first, each):
        yield from scales(network, each)  # of a pair once
        yield from number_type(network, each)
        yield from zero_points(network, each)
    if each.role == "bias":
        yield from biases(network, each)
    elif node.op == "DequantizeLinear":
        yield from axes(network, each)
    if each.role == "weight":
        yield from saturation(network, each)
    yield from pairing(network, each)


def scales(network: QuantizedNetwork, each: Quantizer) -> Iterator[Finding]:
    """Whether the scales are positive numbers."""
    if each.scale is None:
        return
    scale = np.asarray(each.scale, np.float64)
    bad = ~np.isfinite(scale) | (scale <= 0)
    if bad.any():
        value = scale[bad].reshape(-1)[0]
        advice = "a scale is a positive number; quantize the model again"
        yield finding(Severity.WRONG, each.node, f"its scale is {value:g} in {bad.sum()} place(s)", advice)
    elif (scale < SMALLEST_NORMAL).any():
        problem = f"its scale {scale.min():g} is denormal, and becomes zero where such numbers are flushed"
        yield finding(Severity.WRONG, each.node, problem, "raise it to 1e-30; the tensor is empty in any case")


def number_type(network: QuantizedNetwork, each: Quantizer) -> Iterator[Finding]:
    """Whether the runtime reads the type, and the file's opset has it."""
    node, kind = each.node, each.type
    if node.domain not in network.target.domains:
        advice = f"write it with the operators of the standard, opset {network.target.opset} or newer"
        yield finding(Severity.REFUSED, node, f"it is of domain {node.domain!r}", advice)
    if kind is None:
        return
    allowed = {
        "bias": network.target.bias_types,
        "weight": network.target.weight_types,
        "activation": network.target.activation_types,
    }[each.role]
    if kind not in allowed:
        known = ", ".join(sorted(allowed)) or "float only"
        usual = type_name(network.target.weight if each.role == "weight" else network.target.activation)
        problem = f"{PLURAL[each.role]} in {kind}; this runtime reads {known}"
        advice = f"quantize to {usual}" if allowed and each.role != "bias" else "leave biases in float"
        yield finding(Severity.REFUSED, node, problem, advice)
    elif kind in network.target.storage_types:
        problem = f"{kind} is read, but computed with in float"
        yield finding(Severity.SLOW, node, problem, "8 bits have integer kernels; keep this for accuracy only")
    needed, opset = network.target.opset_of.get(kind, 10), network.model.graph.opsets.get("", 1)
    needed = max(needed, 13) if each.axis is not None else needed
    if not node.domain and opset < needed:
        problem = f"{kind}{' per channel' if each.axis is not None else ''} needs opset {needed}; the file has {opset}"
        yield finding(Severity.REFUSED, node, problem, f"raise the model's opset to {needed}")


def zero_points(network: QuantizedNetwork, each: Quantizer) -> Iterator[Finding]:
    """Whether the zero points are where the runtime wants them."""
    if each.zero_point is None or each.type is None or each.role == "bias":
        return
    if each.type not in (network.target.weight_types if each.role == "weight" else network.target.activation_types):
        return  # which has been said
    modes = network.target.weight_modes if each.role == "weight" else network.target.activation_modes
    values = np.unique(np.asarray(each.zero_point, np.float64))
    middle = 128 if each.type == "uint8" else 32768 if each.type == "uint16" else 8 if each.type == "uint4" else 0
    if "asymmetric" not in modes and (values != middle).any():
        off = next(value for value in values if value != middle)
        problem = f"its zero point is {off:g}; this runtime takes symmetric {PLURAL[each.role]} only ({middle})"
        yield finding(Severity.REFUSED, each.node, problem, 'quantize with preset="performance" for this target')
    if each.role == "weight" and len(values) > 1 and not takes_zero_points(network):
        problem = f"its channels have {len(values)} different zero points; this runtime wants one"
        yield finding(Severity.REFUSED, each.node, problem, "quantize the weights symmetrically")


def takes_zero_points(network: QuantizedNetwork) -> bool:
    """Whether the channels of a weight may differ in zero point; where floats are made of it, any runtime takes that."""
    return network.target.asymmetric_per_channel or not network.quantizes_activations


def biases(network: QuantizedNetwork, each: Quantizer) -> Iterator[Finding]:
    """Whether a bias is in units of the products that it is added to."""
    for reader, index in network.readers.get(each.node.outputs[0], []):
        rule = network.rule(reader)
        if rule is None or rule.bias is None or index != rule.bias or each.scale is None:
            continue
        data, weight = network.seen.get(reader.inputs[0]), network.seen.get(reader.inputs[1])
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
            yield finding(Severity.WRONG, reader, problem, advice)
        if each.zero_point is not None and np.any(each.zero_point):
            yield finding(Severity.WRONG, reader, "the zero point of the bias is not 0", "make it 0")


def axes(network: QuantizedNetwork, each: Quantizer) -> Iterator[Finding]:
    """Whether there is one scale for each channel along the axis that the kernel takes."""
    if each.axis is None:
        return
    for reader, index in network.readers.get(each.node.outputs[0], []):
        rule = network.rule(reader)
        if rule is None:
            continue
        if each.role == "activation":
            rank_free = rule.activation_axis
            if index in (rule.activations or ()) and rank_free != each.axis:
                problem = f"input {index} has one scale for each index of axis {each.axis}"
                yield finding(Severity.REFUSED, reader, problem, "give the activation one scale")
        elif index in rule.weights and any(network.seen.get(reader.inputs[data]) for data in data_inputs(reader, rule)):
            rank = np.ndim(network.values.get(each.node.inputs[0], np.zeros((1,) * 9)))
            wanted = weight_axis(reader, rule, rank)
            if wanted is None or not network.target.per_channel:
                problem = f"its weight has one scale for each index of axis {each.axis % rank}; this runtime takes one"
                yield finding(Severity.REFUSED, reader, problem, "quantize the weight with one scale")
            elif wanted % rank != each.axis % rank:
                problem = f"its weight has its scales along axis {each.axis % rank}, and not {wanted % rank}"
                yield finding(Severity.REFUSED, reader, problem, "the scales belong to the output channels")


def data_inputs(node: Node, rule: Rule) -> Iterator[int]:
    """The inputs whose data must be quantized, too, for an integer kernel: of weights alone none is asked for."""
    data = range(len(node.inputs)) if rule.activations is None else rule.activations
    return (index for index in data if index < len(node.inputs) and index not in rule.weights)


def saturation(network: QuantizedNetwork, each: Quantizer) -> Iterator[Finding]:
    """Whether sums of two products of bytes fit into 16 bits, where the processor adds them there."""
    if network.target.overflow_fix != "enable" or each.integers is None or each.type != "int8":
        return
    largest = int(np.abs(np.asarray(each.integers, np.int32)).max(initial=0))
    readers = [reader for reader, _ in network.readers.get(each.node.outputs[0], []) if network.rule(reader)]
    products = [reader for reader in readers if network.type_of(reader.inputs[0]) in ("int8", "uint8")]
    if largest > LARGEST_SAFE_WEIGHT and products:
        problem = f"its weights reach {largest}: two products of bytes can pass 16 bits on this processor"
        yield finding(Severity.WRONG, products[0], problem, "hold the weights to 7 bits (overflow_fix='enable')")


def pairing(network: QuantizedNetwork, each: Quantizer) -> Iterator[Finding]:
    """Whether quantizers stand in pairs of the same numbers, and no pair for nothing."""
    node = each.node
    readers = [reader for reader, _ in network.readers.get(node.outputs[0], [])]
    if node.op == "QuantizeLinear":
        lone = [reader for reader in readers if not reads_integers(network, reader)]
        if lone:
            problem = f"{lone[0].op} {lone[0].name!r} reads its integers without a DequantizeLinear"
            yield finding(Severity.REFUSED, node, problem, "put a DequantizeLinear with the same numbers between")
        if not readers and node.outputs[0] not in network.outputs:
            yield finding(Severity.SLOW, node, "nobody reads it", "remove it")
        source = network.seen.get(node.inputs[0])
        if source is not None and source.node.op == "DequantizeLinear":
            same = same_numbers(source, each)
            problem = "a DequantizeLinear stands right before it" + ("" if same else ": the values are rounded twice")
            advice = "remove the pair" if same else "give both sides one scale, or take one of the pairs out"
            yield finding(Severity.SLOW, node, problem, advice)
    elif each.role == "activation":
        before = network.producer.get(node.inputs[0])
        if (
            before is not None
            and before.op == "QuantizeLinear"
            and not same_numbers(network.seen[before.outputs[0]], each)
        ):
            advice = "give QuantizeLinear and DequantizeLinear the same scale and zero point"
            yield finding(Severity.WRONG, node, f"its numbers are not those of {before.name!r} before it", advice)


def reads_integers(network: QuantizedNetwork, node: Node) -> bool:
    """Whether a node may read integers as they are."""
    moves = node.op in network.target.same_scale or node.op in ("Identity", "Shape", "Cast")
    return node.op == "DequantizeLinear" or node.op.startswith(INTEGER_OPERATORS) or moves or bool(node.subgraphs)
