"""What a file must fulfil before it becomes a graph: each check names the tensor, node or function that is wrong.

Files come from anywhere. Nothing here trusts a size, a name or a path in one, and nothing is allocated before it is checked.
"""

from __future__ import annotations

import functools
import graphlib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from jaxq.errors import ModelError, UnsupportedOpError
from jaxq.graph import Graph, Literal, Node
from jaxq.ops import find

NEWEST_OPSET = 28  # of the standard domain, as reviewed in jaxq.ops
MOST_NODES = 1 << 20  # of a model with its functions inlined: calls of calls can ask for any number in a few bytes

# ------------------------------------------------------------------------------------------------------------ the file


def check_proto(model: onnx.ModelProto) -> None:
    """Refuses names that are made twice in one scope, opsets that contradict each other, and functions without an end."""
    opsets: dict[str, int] = {}
    for entry in model.opset_import:
        domain = standard_domain(entry.domain)
        if opsets.setdefault(domain, entry.version) != entry.version:
            raise ModelError(
                f"the model imports two opsets of domain {domain or 'ai.onnx'!r}: {opsets[domain]} and {entry.version}"
            )
    check_opsets(opsets)
    check_names(model.graph)
    check_functions(model)


def standard_domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def check_opsets(opsets: Mapping[str, int]) -> None:
    """Refuses a standard opset that does not exist."""
    version = opsets.get("")
    if version is not None and not 1 <= version <= NEWEST_OPSET:
        raise ModelError(
            f"the model imports opset {version} of ONNX's standard operators; known are 1 to {NEWEST_OPSET}"
        )


def check_names(graph: onnx.GraphProto) -> None:
    """Refuses a tensor name that one graph makes twice: which of the two is meant is anybody's guess."""
    makers: dict[str, str] = {}

    def made(names: Iterable[str], maker: str) -> None:
        for name in names:
            if name and name in makers:
                raise ModelError(
                    f"graph {graph.name!r}: tensor {name!r} is made twice, by {makers[name]} and by {maker}"
                )
            makers[name] = maker

    made((each.name for each in graph.input), "an input of the graph")
    inputs = set(makers)
    made((each.name for each in graph.initializer if each.name not in inputs), "an initializer")
    for each in graph.initializer:
        if each.name in inputs:  # a default for the input, as in files of before IR version 4; one is enough
            inputs.remove(each.name)
        elif makers.get(each.name) != "an initializer":
            made([each.name], "a second initializer")
    for node in graph.node:
        made(node.output, f"node {node.name!r} ({node.op_type})")
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                check_names(inner)
    outputs = [each.name for each in graph.output]
    twice = sorted({name for name in outputs if outputs.count(name) > 1}) if len({*outputs}) < len(outputs) else []
    if twice:
        raise ModelError(f"graph {graph.name!r} has two outputs of the name {twice[0]!r}")


def check_functions(model: onnx.ModelProto) -> None:
    """Refuses functions that call themselves, and calls that would inline to more than `MOST_NODES` nodes."""
    bodies = {_function_key(each.domain, each.name, each.overload): each.node for each in model.functions}
    calls = {key: [each for each in _called(nodes) if each in bodies] for key, nodes in bodies.items()}
    try:
        order = list(graphlib.TopologicalSorter(calls).static_order())
    except graphlib.CycleError as error:
        circle = " -> ".join(f"{domain}.{name}" for domain, name, _ in reversed(error.args[1]))
        raise ModelError(f"the model's functions call each other in a circle: {circle}") from None
    size: dict[Any, int] = {}
    for key in order:
        size[key] = len(bodies[key]) + sum(size[each] for each in calls[key])
    total = len(model.graph.node) + sum(size[each] for each in _called(model.graph.node) if each in bodies)
    if bodies and total > MOST_NODES:
        raise ModelError(f"the model has {total} nodes when its functions are inlined; more than {MOST_NODES} are refused")


def _called(nodes: Iterable[onnx.NodeProto]) -> Iterable[tuple[str, str, str]]:
    """The functions that nodes may call, those of their subgraphs too."""
    for node in nodes:
        yield _function_key(node.domain, node.op_type, node.overload)
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _called(inner.node)


def _function_key(domain: str, name: str, overload: str) -> tuple[str, str, str]:
    return standard_domain(domain), name, overload


# ----------------------------------------------------------------------------------------------------------- the tensors


def check_tensor(tensor: Any, where: str) -> None:
    """Refuses a tensor whose data are not there or do not fill its dimensions."""
    if isinstance(tensor, ir.ExternalTensor):
        check_external(tensor, where)
        return
    dims = tuple(tensor.shape.numpy())
    what = f"{where}: tensor {tensor.name!r}, {tensor.dtype.name.lower()}{list(dims)}"
    if min(dims, default=0) < 0:
        raise ModelError(f"{what}, has a negative dimension")
    proto = getattr(tensor, "raw", None)
    if isinstance(proto, onnx.TensorProto) and tensor.dtype not in (ir.DataType.UNDEFINED, ir.DataType.STRING):
        needed = math.ceil(math.prod(dims) * tensor.dtype.bitwidth / 8)
        fields = ("int32_data", "int64_data", "uint64_data", "float_data", "double_data")
        if proto.HasField("raw_data") and len(proto.raw_data) != needed:
            raise ModelError(f"{what}, needs {needed} bytes of data, but has {len(proto.raw_data)}")
        if needed and not proto.HasField("raw_data") and not any(len(getattr(proto, field)) for field in fields):
            raise ModelError(f"{what}, has no data")


def check_external(tensor: Any, where: str) -> None:
    """Refuses external data that are missing, too short, or outside of the model's folder."""
    name = f"{where}: tensor {tensor.name!r} has its data in {str(tensor.location)[:200]!r}"
    folder = Path(tensor.base_dir or ".").resolve()
    try:
        file = (folder / tensor.location).resolve()
        if Path(tensor.location).is_absolute() or not file.is_relative_to(folder):
            raise ModelError(
                f"{name}, outside of the model's folder; this is refused. Move the data file beside the model"
            )
        if not file.is_file():
            raise ModelError(f"{name}, which is missing; copy it beside the model")
        size = file.stat().st_size
    except (OSError, ValueError) as error:  # a name too long, or with a zero in it
        raise ModelError(f"{name}, which cannot be read: {error}") from None
    dims = tuple(tensor.shape.numpy())
    needed = math.ceil(math.prod(dims) * tensor.dtype.bitwidth / 8)
    start, length = tensor.offset or 0, needed if tensor.length is None else tensor.length
    if min(dims, default=0) < 0 or start < 0:
        raise ModelError(f"{name}, with a negative dimension or offset: dimensions {list(dims)}, offset {start}")
    if length != needed:
        raise ModelError(f"{name}, of which it says that it takes {length} bytes, but {list(dims)} needs {needed}")
    if size < start + length:
        raise ModelError(f"{name}, which ends at byte {size} but byte {start + length} is needed; it is truncated")


# ------------------------------------------------------------------------------------------------------------- the nodes


def sort(graph: ir.Graph) -> None:
    """Brings the nodes into an order in which they can run.

    Raises:
      ModelError: there is none; the message names the nodes of one circle.
    """
    try:
        graph.sort()
    except ValueError:
        needs = {node: {*_sources(node, graph)} for node in graph}
        try:
            graphlib.TopologicalSorter(needs).prepare()
        except graphlib.CycleError as error:
            circle = [f"{node.name!r} ({node.op_type})" for node in reversed(error.args[1][:8])]
            raise ModelError(f"nodes wait for each other in a circle: {' -> '.join(circle)}") from None
        raise


def _sources(node: ir.Node, graph: ir.Graph) -> Iterable[ir.Node]:
    """The nodes of `graph` that make what `node`, or a subgraph of it, reads."""
    for value in node.inputs:
        maker = None if value is None else value.producer()
        if maker is not None and maker.graph is graph:
            yield maker
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            for inner in attribute.as_graph():
                yield from _sources(inner, graph)


def check_nodes(graph: Graph) -> None:
    """Refuses nodes that do not fit their operator, and lists every operator that has no implementation, with its nodes."""
    missing: dict[str, list[str]] = {}
    for _, node in graph.walk():
        if not node.domain and "" not in graph.opsets:
            raise ModelError(f"{node} is of ONNX's standard operators, but the model imports no opset of them")
        try:
            entry = find(node.op, node.domain, node.version)
        except UnsupportedOpError as error:
            missing.setdefault(str(error), []).append(node.name)
            continue
        unknown = set(node.attributes) - entry.attributes
        if unknown:
            raise ModelError(
                f"{node}: attribute {sorted(unknown)[0]!r} is not one of {node.op}'s: {sorted(entry.attributes)}"
            )
        check_form(node)
    if missing:
        lines = [f"  {message}: {len(names)} node(s), first {names[0]!r}" for message, names in missing.items()]
        raise UnsupportedOpError("the model uses operators that jaxq does not implement:\n" + "\n".join(lines))


@functools.cache
def _schema(op: str, domain: str, version: int) -> onnx.defs.OpSchema | None:
    """ONNX's description of the operator; None for operators that ONNX does not describe (com.microsoft's)."""
    return onnx.defs.get_schema(op, version, domain) if onnx.defs.has(op, version, domain) else None


def check_form(node: Node) -> None:
    """Refuses a node with too few or too many inputs or outputs, or with an attribute missing or of the wrong kind."""
    schema = _schema(node.op, node.domain, node.version)
    if schema is None:
        return
    for what, names, least, most, formal in (
        ("inputs", node.inputs, schema.min_input, schema.max_input, schema.inputs),
        ("outputs", node.outputs, schema.min_output, schema.max_output, schema.outputs),
    ):
        if not least <= len(names) <= most:
            expected = f"{least}" if least == most else f"{least} or more" if most > 1000 else f"{least} to {most}"
            raise ModelError(f"{node} has {len(names)} {what}, but takes {expected}: {[each.name for each in formal]}")
    for name, each in zip(node.inputs, schema.inputs, strict=False):
        if not name and each.option == onnx.defs.OpSchema.FormalParameterOption.Single:
            raise ModelError(f"{node}: its input {each.name!r} is missing")
    for key, attribute in schema.attributes.items():
        if key not in node.attributes:
            if attribute.required:
                raise ModelError(f"{node}: its attribute {key!r} is missing")
        elif not _is_kind(node.attributes[key], attribute.type.name):
            raise ModelError(f"{node}: attribute {key!r} is {node.attributes[key]!r}, not of kind {attribute.type.name}")


_KINDS: Mapping[str, type] = {"INT": int, "FLOAT": float, "STRING": str, "TENSOR": Literal, "GRAPH": Graph}


def _is_kind(value: Any, kind: str) -> bool:
    if kind in _KINDS:
        return isinstance(value, _KINDS[kind])
    single = _KINDS.get(kind.removesuffix("S"))
    return single is None or (isinstance(value, tuple) and all(isinstance(each, single) for each in value))
