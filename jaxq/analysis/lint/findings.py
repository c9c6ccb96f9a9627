"""What is said about a quantized file: findings, and how they are shown."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from jaxq.graph.ir import Node

NAMES_SHOWN = 4


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


def finding(severity: Severity, node: Node, problem: str, advice: str) -> Finding:
    """What is wrong with a node."""
    return Finding(severity, node.name or node.outputs[0], node.op, problem, advice)


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
