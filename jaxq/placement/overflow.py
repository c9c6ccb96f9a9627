"""Holds weights to 7 bits where the processor adds two products of bytes in 16 bits, which may saturate.

    255 * 127 * 2 = 64770 > 32767        255 * 64 * 2 = 32640

A weight of 7 bits is kept in int8; its scale is twice that of 8 bits. Source: NNCF `overflow_fix`, POT `saturation_fix`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jaxq.graph.ir import Graph
from jaxq.graph.linear import LINEAR, is_depthwise
from jaxq.numerics.quantizer import Grid, IntType
from jaxq.placement.plan import Plan, Weight
from jaxq.placement.schemes import OverflowFix

SATURATION_FIX: Mapping[str, OverflowFix] = {  # POT's word -> NNCF's
    "no": OverflowFix.DISABLE,
    "first_layer": OverflowFix.FIRST_LAYER,
    "all": OverflowFix.ENABLE,
}


def hold_to_seven_bits(plan: Plan, params: Mapping[str, Any], fix: OverflowFix) -> tuple[Weight, ...]:
    """The plan's weights, those that `fix` is about on a grid of 7 bits.

    It is about symmetric weights of 8 bits that are multiplied with activations of 8 bits.
    """
    if fix is OverflowFix.DISABLE:
        return plan.weights
    first = first_convolutions(plan.graph, params)
    held: set[str] = set()
    for _, node in plan.graph.walk():
        schemes = [plan.schemes[plan.activations[name]] for name in node.inputs if name in plan.activations]
        applies = node.op in LINEAR if fix is OverflowFix.ENABLE else node.name in first
        if node.name in plan.nodes and applies and schemes and all(is_byte(scheme.grid) for scheme in schemes):
            held.update(node.inputs[1:])  # a constant on the left stands in the place of activations
    return tuple(
        replace(weight, scheme=replace(weight.scheme, grid=IntType(7)))
        if weight.name in held and is_byte(weight.scheme.grid) and weight.scheme.symmetric
        else weight
        for weight in plan.weights
    )


def is_byte(grid: Grid) -> bool:
    """Whether the numbers are integers of 8 bits, all of them or, on a narrow grid, all but one."""
    return isinstance(grid, IntType) and grid.bits == 8 and grid.qmax - grid.qmin >= 254


def first_convolutions(graph: Graph, params: Mapping[str, Any]) -> frozenset[str]:
    """The names of the convolutions that a path from an input of the model reaches without crossing another one.

    Those with one filter for each channel do not count: they are passed.
    """
    reached, found = set(graph.inputs), set()
    for _, node in graph.walk():
        if reached.isdisjoint(node.inputs) and not node.subgraphs:
            continue
        if node.op == "Conv" and node.inputs[1] in params and not is_depthwise(node, params):
            found.add(node.name)
        else:
            reached.update(node.outputs)
    return frozenset(found)
