"""Weights in the order in which they are read.

ONNX stores the kernel of a convolution as [O, I, ...], and that of many dense layers as [O, I]. XLA's CPU code wants the
output channels last, so it transposes each kernel on every call: at batch 1 that takes longer than all the rest
(MobileNetV2: 10 of 17 ms). `lay_out` finds the weights that can be transposed once, beforehand, and the graph that
reads them so. Names stay; the caller permutes the params, and the axes of their encodings, alike:

    graph, order = lay_out(graph, params)
    params = {name: np.transpose(value, order[name]) if name in order else value for name, value in params.items()}
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from jaxq.graph.ir import FrozenDict, Graph, Node
from jaxq.ops import LAID_OUT, platform

Axes = tuple[int, ...]


def lay_out(graph: Graph, params: Mapping[str, Any]) -> tuple[Graph, Mapping[str, Axes]]:
    """The graph with weights read in the platform's order, and for each param to transpose the order of its axes.

    A param is left alone when anything but the weight input of such operators reads it, and when it is no numpy array: JAX
    arrays may be traced, and whoever trains them wants them as they are. Nothing changes on GPU and TPU.
    """
    if platform() != "cpu":
        return graph, {}
    order: dict[str, Axes] = {}
    for name, places in graph.consumers.items():
        if isinstance(params.get(name), np.ndarray) and name not in graph.outputs:
            wanted = {weight_order(node, params[name].ndim) if index == 1 else None for node, index in places}
            if len(wanted) == 1 and (axes := wanted.pop()) is not None:
                order[name] = axes
    return arranged(graph, FrozenDict(order)), order


@functools.lru_cache(maxsize=64)
def arranged(graph: Graph, order: FrozenDict[str, Axes]) -> Graph:
    """A graph that reads the weights in `order` with their axes in that order."""
    nodes = tuple(with_weight_in_order(node) if order.keys() & node.inputs[1:2] else node for node in graph.nodes)
    return replace(graph, nodes=nodes) if order else graph


def weight_order(node: Node, rank: int) -> Axes | None:
    """The axes of a weight of that rank in the order in which the node reads them; None if it is right as it is."""
    if (node.domain, node.op) == ("", "Conv") and rank >= 2:
        return (*range(2, rank), 1, 0)
    if (node.domain, node.op) == ("", "Gemm") and rank == 2 and node.attributes.get("transB"):
        return (1, 0)
    return None


def with_weight_in_order(node: Node) -> Node:
    """The node that does the same with its weight transposed by `weight_order`."""
    if node.op == "Gemm":
        return replace(node, attributes=FrozenDict({**node.attributes, "transB": 0}))
    return replace(node, domain=LAID_OUT)
