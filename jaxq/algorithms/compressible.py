"""Which weights can be compressed, along which axis, and why the others stay in float."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from jaxq.algorithms.weight_compression import CompressionSite
from jaxq.engine.model import Model
from jaxq.graph.ir import FrozenDict, Graph, Node, map_nodes, tensor_names, unused_name
from jaxq.graph.linear import Linear, transposes_data

# Where operators have weights: MatMul and Gemm may have a constant on either side.
OPERANDS: Mapping[str, tuple[int, ...]] = {
    "MatMul": (0, 1),
    "Gemm": (0, 1),
    "Gather": (0,),
    "Conv": (1,),
    "ConvTranspose": (1,),
    "DeformConv": (1,),
    "LSTM": (1, 2),
    "GRU": (1, 2),
    "RNN": (1, 2),
    "Einsum": (0, 1, 2),
    "GatherND": (0,),
    "GatherElements": (0,),
}
TYPES = ("float32", "float16")  # of weights that are compressed
COMPRESSED = ("MatMul", "Gemm", "Gather")
NO_BACKUP = "the mode is not for it, and there is no backup mode"


def weight_of(node: Node, params: Mapping[str, Any]) -> tuple[str, int] | None:
    """The weight of a MatMul, Gemm or Gather and the axis that is summed over (of an embedding: its width); None without one."""
    if node.domain or node.op not in COMPRESSED:
        return None
    name = node.inputs[0 if node.op == "Gather" else 1]
    value = params.get(name)
    if value is None or value.dtype.name not in TYPES or not value.size or value.ndim < 2:
        return None
    if node.op == "Gather":
        axis = int(node.attributes.get("axis", 0)) % value.ndim
        return (name, 1 - axis) if value.ndim == 2 else None
    return None if node.inputs[0] in params else (name, Linear(node, value.shape).input_axis)


def compression_sites(graph: Graph, params: Mapping[str, Any], ignored: Iterable[str]) -> tuple[CompressionSite, ...]:
    """The weights of MatMul, Gemm and Gather, each once, in the order of the graph; not those that an ignored node reads too."""
    kept = frozenset(ignored)
    spared = {name for _, node in graph.walk() if node.name in kept for name in node.inputs}
    found: dict[str, CompressionSite] = {}
    for _, node in graph.walk():
        weight, axis = weight_of(node, params) or ("", 0)
        if not weight or weight in spared:
            continue
        site = CompressionSite(weight, axis, "" if node.op == "Gather" else node.inputs[0])
        if found.setdefault(weight, site).axis != axis:
            del found[weight]  # summed over along both of its axes: no grouping serves both
            spared.add(weight)
    return tuple(found.values())


def plain_products(model: Model) -> Model:
    """The same model with products as they are compressed: no Gemm transposes its data, and each weight is summed over one way.

    A weight that some readers sum over along its first axis, and some along its second, becomes two (of the same array):
    the groups of one would cross those of the other.
    """
    axes: dict[str, dict[int, str]] = {}  # weight -> summed axis -> its name then
    params, taken = dict(model.params), {*tensor_names(model.graph), *model.params}
    taken.update(node.name for _, node in model.graph.walk())

    def change(_: Graph, node: Node) -> tuple[Node, ...]:
        weight, axis = weight_of(node, model.params) or ("", 0)
        if not weight:
            return (node,)
        names = axes.setdefault(weight, {axis: weight})
        if axis not in names:
            names[axis] = unused_name(weight, taken)
            params[names[axis]] = model.params[weight]
        if names[axis] != weight:
            node = replace(node, inputs=tuple(names[axis] if name == weight else name for name in node.inputs))
        return with_data_as_it_is(node, taken)

    graph = map_nodes(model.graph, change)
    return model if graph is model.graph else model.replace(graph=graph, params=params)


def with_data_as_it_is(node: Node, taken: set[str]) -> tuple[Node, ...]:
    """A Gemm whose data are transposed as a Transpose and a Gemm; any other node as it is."""
    if not transposes_data(node):
        return (node,)
    data = node.inputs[0]
    turned, name = unused_name(f"{data}_transposed", taken), unused_name(f"{node.name}_Transpose", taken)
    turn = Node("Transpose", (data,), (turned,), FrozenDict({"perm": (1, 0)}), name, version=node.version)
    attributes = FrozenDict({key: value for key, value in node.attributes.items() if key != "transA"})
    return turn, replace(node, inputs=(turned, *node.inputs[1:]), attributes=attributes)


def left_in_float(model: Model, compressed: Iterable[str], ignored: Iterable[str]) -> dict[str, str]:
    """Weight -> why it stays in float, of all that are not `compressed`."""
    done, found = frozenset(compressed), dict[str, str]()
    for node, index in places(model.graph):
        name = node.inputs[index]
        value = model.params.get(name)
        if value is not None and value.dtype.kind in "fV" and value.size and name not in done:
            found.setdefault(name, reason(node, index, value, model.params, frozenset(ignored)))
    return found


def places(graph: Graph) -> Iterator[tuple[Node, int]]:
    """Every input of a node that weights stand at."""
    for _, node in graph.walk():
        for index in OPERANDS.get(node.op, ()) if not node.domain else ():
            if index < len(node.inputs):
                yield node, index


def reason(node: Node, index: int, value: Any, params: Mapping[str, Any], ignored: frozenset[str]) -> str:
    """Why a weight is not compressed where this node reads it."""
    if node.name in ignored:
        return "ignored"
    if node.op not in COMPRESSED:
        return f"a weight of {node.op}; MatMul, Gemm and Gather have theirs compressed"
    if value.dtype.name not in TYPES:
        return f"its type is {value.dtype.name}, not float32 or float16"
    if node.op != "Gather" and index == 0:
        return f"it stands on the left in a {node.op}"
    if node.op != "Gather" and node.inputs[0] in params:
        return f"both factors of its {node.op} are constant"
    if value.ndim < 2 or (node.op == "Gather" and value.ndim > 2):
        return f"its rank is {value.ndim}" + (", an embedding has 2" if node.op == "Gather" else "")
    return NO_BACKUP
