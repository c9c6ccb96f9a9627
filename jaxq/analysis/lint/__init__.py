"""What a runtime would refuse, compute wrongly, or leave slow in a quantized file, whoever wrote it.

Everything is read off the file and the target's table; nothing runs.
"""

from __future__ import annotations

from collections.abc import Iterator

from jaxq.analysis.lint.findings import Finding, Severity, describe, finding
from jaxq.analysis.lint.network import QuantizedNetwork
from jaxq.analysis.lint.operators import ends, operator
from jaxq.analysis.lint.quantizers import INTEGER_OPERATORS, quantizer
from jaxq.analysis.lint.unpacked import unpacked
from jaxq.engine.model import Model
from jaxq.placement.targets import Target

__all__ = ["Finding", "Severity", "describe", "lint"]


def lint(model: Model, target: Target) -> tuple[Finding, ...]:
    """All findings, in the order of the graph; those about a quantizer before those about its readers."""
    return tuple(_findings(QuantizedNetwork(model, target)))


def _findings(network: QuantizedNetwork) -> Iterator[Finding]:
    for node in network.nodes:
        if node.op in ("QuantizeLinear", "DequantizeLinear"):
            yield from quantizer(network, node)
            yield from unpacked(network, node)
        elif node.op.startswith(INTEGER_OPERATORS):
            if not network.target.integer_operators:
                advice = "write the model with QuantizeLinear and DequantizeLinear around float operators"
                yield finding(Severity.REFUSED, node, f"{node.op} is no operator of this runtime", advice)
        else:
            yield from operator(network, node)
    yield from ends(network)
