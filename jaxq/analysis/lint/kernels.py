"""Why a node runs in float though its inputs are quantized: what `jaxq.placement.fates` says, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping

from jaxq.graph.ir import Node
from jaxq.placement.fates import (
    AN_OUTPUT,
    COMPUTED_BIAS,
    FLOAT_BIAS,
    FLOAT_WEIGHTS,
    NOT_TAKEN,
    READ_TWICE,
    SCALED,
    STORED,
    SUMMED,
    Fates,
)
from jaxq.placement.targets import Rule

QUANTIZED_RESULT = "put a pair of quantizers behind it, or accept it where the result is an output of the model"
ADVICE: Mapping[str, str] = {  # for types that are only read, it stands with the quantizers themselves
    STORED: "leave it out of quantization if size does not matter",
    FLOAT_WEIGHTS: "quantize them to int8, symmetrically",
    COMPUTED_BIAS: "add what is computed behind it",
    AN_OUTPUT: QUANTIZED_RESULT,
    NOT_TAKEN: QUANTIZED_RESULT,
    READ_TWICE: "let all of them read it through one pair of quantizers",
    SCALED: "multiply its weight or bias by that number",
    FLOAT_BIAS: "quantize the bias to int32, or the result",
    SUMMED: "quantize its result in front of the addition; or, of a constant summand, quantize the sum or write a Gemm",
}


def why_float(fates: Fates, node: Node, rule: Rule) -> tuple[str, str] | None:
    """What keeps a node whose inputs are quantized in float, and what to do; None if nothing does."""
    reason = fates.reason(node, rule)
    if reason is None or reason.word not in ADVICE:
        return None
    return str(reason).removeprefix("float: "), ADVICE[reason.word]
