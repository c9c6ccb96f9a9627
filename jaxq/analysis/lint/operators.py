"""Whether operators run in integers where they could, and whether the model ends as the runtime wants it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from jaxq.analysis.lint.findings import Finding, Severity, finding
from jaxq.analysis.lint.kernels import why_float
from jaxq.analysis.lint.network import QuantizedNetwork, Quantizer, same_numbers
from jaxq.graph.clamps import clip_bounds
from jaxq.graph.ir import Node
from jaxq.graph.linear import BIASED
from jaxq.placement.targets import Rule
from jaxq.placement.targets.installed import installed_version, limits_of

BOUND_TOLERANCE = 1e-3  # steps
LIMITS = {"uint8": (0, 255), "int8": (-128, 127), "uint16": (0, 65535), "int16": (-32768, 32767)}


def operator(network: QuantizedNetwork, node: Node) -> Iterator[Finding]:
    """Everything about one node that is no quantizer."""
    if node.op in network.target.same_scale and not node.domain:
        yield from mover(network, node)
    rule = network.rule(node)
    if rule is not None:
        yield from kernel(network, node, rule)
    if node.op in network.target.fused:
        yield from activation_function(network, node)


def kernel(network: QuantizedNetwork, node: Node, rule: Rule) -> Iterator[Finding]:
    """Whether an operator that has a kernel in integers is quantized on all sides."""
    places = sorted({*(rule.activations or ()), *rule.weights[:1]})
    if rule.activations is None:
        places = [index for index, name in enumerate(node.inputs) if name and network.is_float(name)]
    present = [index for index in places if index < len(node.inputs) and node.inputs[index]]
    missing = [index for index in present if not network.is_quantized(node.inputs[index])]
    if rule.skip_only and len(missing) == 1:
        return  # the kernel before makes that one
    if not network.quantizes_activations:
        return  # weights only: they are turned into floats, as is meant
    yield from limits(network, node)
    yield from float_bias(network, node)
    if missing and len(missing) < len(present):
        words = ", ".join(f"{index} ({node.inputs[index]!r})" for index in missing)
        problem = f"input {words} is not quantized, others are: it runs in float"
        yield finding(Severity.SLOW, node, problem, "quantize all of its inputs, or none")
    elif missing and rule.weights and rule.activations and node.inputs[rule.weights[0]] in network.values:
        problem = "it runs in float: neither its input nor its weight is quantized"
        yield finding(Severity.SLOW, node, problem, "quantize it, if it was not left out on purpose")
    elif not missing and present and (reason := why_float(network.fates, node, rule)):
        yield finding(Severity.SLOW, node, f"{reason[0]}: it runs in float", reason[1])


def limits(network: QuantizedNetwork, node: Node) -> Iterator[Finding]:
    """Whether the version of the runtime that is installed takes these types as they are."""
    version = installed_version(network.target)
    seen = [network.seen[name] for name in node.inputs if network.is_quantized(name)]
    kinds, others = ([each.type or "" for each in seen if each.role == role] for role in ("activation", "weight"))
    for limit in limits_of(network.target, version):
        if limit.meets(node.op, kinds, others):
            yield finding(Severity.WRONG, node, f"its inputs are {kinds[0]}: {limit.effect}", limit.remedy)


def float_bias(network: QuantizedNetwork, node: Node) -> Iterator[Finding]:
    """Whether a bias that was left in float fits into the int32 that the runtime makes of it."""
    if not network.target.rounds_biases or node.op not in BIASED or len(node.inputs) < 3:
        return
    bias = network.values.get(node.inputs[2])
    data, weight = (network.seen.get(name) for name in node.inputs[:2])
    if bias is None or np.ndim(bias) != 1 or data is None or weight is None:
        return
    if (
        data.scale is None
        or weight.scale is None
        or np.size(data.scale) != 1
        or not network.fates.quantizers_behind(network.fates.merged_output(node))
    ):
        return
    units = np.float64(np.reshape(data.scale, ())) * np.asarray(weight.scale, np.float64).reshape(-1)
    if units.size in (1, np.size(bias)) and (np.abs(np.float64(bias)) > units * 2.0**31).any():
        problem = "the runtime keeps its bias in int32, in units of input scale * weight scale, which does not hold it"
        yield finding(Severity.WRONG, node, problem, "raise the scale of the weight until the bias fits")


def activation_function(network: QuantizedNetwork, node: Node) -> Iterator[Finding]:
    """Whether the function is merged into the kernel before it, if that is one in integers."""
    before = network.producer.get(node.inputs[0]) if node.inputs else None
    if before is not None and before.op == "DequantizeLinear":
        q = network.producer.get(before.inputs[0])
        kernel = network.producer.get(q.inputs[0]) if q is not None and q.op == "QuantizeLinear" else None
        alone = kernel is not None and len(network.readers[kernel.outputs[0]]) == 1
        if (
            kernel is not None
            and alone
            and kernel.op in network.target.fusing
            and len(network.readers[node.inputs[0]]) == 1
        ):
            problem = f"quantizers stand between it and {kernel.op} {kernel.name!r}: it is not merged into that kernel"
            yield finding(Severity.SLOW, node, problem, f"quantize behind the {node.op} only")
    elif before is not None and before.op in network.target.fusing and network.target.merges_at_zero:
        for reader, _ in network.readers.get(node.outputs[0], []):
            each = network.seen.get(reader.outputs[0]) if reader.op == "QuantizeLinear" else None
            if each is None or each.zero_point is None or each.type is None or not network.rule(before):
                continue
            if node.op == "Clip" and clips(network, node, each):
                problem = "it clips values that the quantizer behind it could hold"
                advice = f"end the quantizer where it clips: else {before.op} {before.name!r} before it runs in float"
                yield finding(Severity.SLOW, node, problem, advice)
            lowest = {"int8": -128, "int16": -32768}.get(each.type, 0)
            if node.op == "Relu" and each.type.startswith("float8"):
                problem = (
                    f"the runtime takes the zero point of {each.type} behind it for the lowest value, and drops it"
                )
                yield finding(Severity.WRONG, node, problem, "leave the zero point out (output_dtype, opset 21)")
                continue
            if node.op == "Relu" and np.any(np.asarray(each.zero_point, np.int64) != lowest):
                problem = f"the quantizer behind it has zero point {np.ravel(each.zero_point)[0]}, and not {lowest}"
                advice = (
                    f"with zero point {lowest} it is merged into {before.op} {before.name!r}, which else runs in float"
                )
                yield finding(Severity.SLOW, node, problem, advice)


def mover(network: QuantizedNetwork, node: Node) -> Iterator[Finding]:
    """Whether an operator that moves values has the same numbers on both sides."""
    sources = node.inputs if node.op == "Concat" else node.inputs[:1]
    after = [
        network.seen[reader.outputs[0]]
        for name in node.outputs
        for reader, _ in network.readers.get(name, ())
        if reader.op == "QuantizeLinear"
    ]
    for name in sources:
        before = network.seen.get(name)
        if before is None or before.node.op != "DequantizeLinear" or before.role != "activation":
            continue
        for each in after:
            if not same_numbers(before, each):
                problem = f"{name!r} comes in with another scale than it leaves with: the values are rounded again"
                yield finding(Severity.SLOW, node, problem, "give input and output one scale and zero point")
                return


def ends(network: QuantizedNetwork) -> Iterator[Finding]:
    """Inputs and outputs of the model, where the runtime wants them quantized."""
    if not network.target.outputs:
        return
    for name in network.model.graph.outputs:
        node = network.producer.get(name)
        declared = network.model.graph.types.get(name)
        if declared is None or not declared.dtype.startswith("float") or node is None:
            continue
        if node.op != "DequantizeLinear":
            problem, advice = "this output of the model is not quantized", "quantize with quantize_outputs=True"
            yield Finding(Severity.SLOW, name, node.op, problem, advice)


def clips(network: QuantizedNetwork, node: Node, each: Quantizer) -> bool:
    """Whether a Clip changes anything on the grid of the quantizer behind it, or may do so."""
    if each.scale is None or each.type not in LIMITS or np.size(each.scale) != 1:
        return False
    bounds = clip_bounds(node, network.values)
    if bounds is None:
        return True
    scale, zero_point = (float(np.ravel(value)[0]) for value in (each.scale, each.zero_point))
    lowest, highest = ((limit - zero_point) * scale for limit in LIMITS[each.type])
    tolerance = BOUND_TOLERANCE * scale
    return bounds[0] > lowest + tolerance or bounds[1] < highest - tolerance
