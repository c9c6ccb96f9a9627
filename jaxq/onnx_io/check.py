"""What a file must fulfil before it becomes a graph: each check names the tensor, node or function that is wrong.

Files come from anywhere. Nothing here trusts a size, a name or a path in one, and nothing is allocated before it is checked.
"""

from __future__ import annotations

import functools
import graphlib
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from jaxq.errors import ModelError, UnsupportedOpError
from jaxq.graph.ir import Graph, Literal, Node
from jaxq.graph.linear import Linear
from jaxq.ops import LAID_OUT, find

NEWEST_OPSET = 28  # of the standard domain, as reviewed in jaxq.ops
MOST_NODES = 1 << 20  # of a model with its functions inlined: calls of calls can ask for any number in a few bytes

ATTRIBUTE_KINDS: Mapping[int, str] = {number: name for name, number in onnx.AttributeProto.AttributeType.items()}

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
    check_scope(model.graph)
    check_outputs(model.graph)
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


def check_scope(graph: onnx.GraphProto) -> None:
    """Refuses a tensor name that one graph makes twice (which of the two is meant is anybody's guess), and unknown types."""
    makers: dict[str, str] = {}

    def made(names: Iterable[str], maker: str) -> None:
        for name in names:
            if name and name in makers:
                raise ModelError(
                    f"graph {graph.name!r}: tensor {name!r} is made twice, by {makers[name]} and by {maker}"
                )
            makers[name] = maker

    made((each.name for each in graph.input), "an input of the graph")
    defaults = {each.name for each in graph.input}  # an initializer may give one, as in files of before IR version 4
    for tensor in graph.initializer:
        if tensor.name in defaults:
            defaults.remove(tensor.name)
        else:
            made([tensor.name], "an initializer")
        check_element_type(tensor.data_type, f"initializer {tensor.name!r}")
    for value in (*graph.input, *graph.output):
        if value.type.HasField("tensor_type"):
            check_element_type(value.type.tensor_type.elem_type, f"tensor {value.name!r}")
        elif value.type.HasField("map_type") or value.type.HasField("sparse_tensor_type"):
            raise ModelError(f"tensor {value.name!r} is declared as a map or a sparse tensor; jaxq takes arrays alone")
    for node in graph.node:
        made(node.output, proto_name(node))
        check_attributes(node)


def check_outputs(graph: onnx.GraphProto) -> None:
    """Refuses a model with two outputs of one name: results go by name. (A body may give one tensor as two outputs.)"""
    outputs = [each.name for each in graph.output]
    twice = [name for index, name in enumerate(outputs) if name in outputs[:index]]
    if twice:
        raise ModelError(f"graph {graph.name!r} has two outputs of the name {twice[0]!r}")


def check_element_type(number: int, what: str) -> None:
    if number not in onnx.TensorProto.DataType.values():
        raise ModelError(f"{what} has element type {number}, which ONNX does not know")


def check_attributes(node: onnx.NodeProto) -> None:
    """Refuses attributes of kinds that cannot be read, and looks into subgraphs."""
    for attribute in node.attribute:
        name = ATTRIBUTE_KINDS.get(attribute.type, f"number {attribute.type}")
        if attribute.type not in ATTRIBUTE_KINDS or name in ("UNDEFINED", "SPARSE_TENSOR", "SPARSE_TENSORS"):
            raise ModelError(
                f"{proto_name(node)}: attribute {attribute.name!r} is of kind {name}, which jaxq does not read"
            )
        if name == "TENSOR":
            check_element_type(attribute.t.data_type, f"{proto_name(node)}: attribute {attribute.name!r}")
        for inner in _subgraphs(attribute):
            check_scope(inner)


def proto_name(node: onnx.NodeProto) -> str:
    """A node of a file, for messages; by its first output if it has no name."""
    return f"node {node.name or next(iter(node.output), '')!r} ({node.op_type})"


def _subgraphs(attribute: onnx.AttributeProto) -> Iterable[onnx.GraphProto]:
    return (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs)


def check_functions(model: onnx.ModelProto) -> None:
    """Refuses calls that do not fit their function, functions that call themselves, and more than `MOST_NODES` nodes in all."""
    functions = {_key(each.domain, each.name, each.overload): each for each in model.functions}
    if not functions:
        return
    calls = {key: list(_calls(each.node, functions)) for key, each in functions.items()}
    try:
        order = list(graphlib.TopologicalSorter(calls).static_order())
    except graphlib.CycleError as error:
        circle = " -> ".join(f"{domain}.{name}" for domain, name, _ in reversed(error.args[1]))
        raise ModelError(f"the model's functions call each other in a circle: {circle}") from None
    size: dict[Key, int] = {}
    for key in order:
        size[key] = len(functions[key].node) + sum(size[each] for each in calls[key])
    total = len(model.graph.node) + sum(size[each] for each in _calls(model.graph.node, functions))
    if total > MOST_NODES:
        raise ModelError(
            f"the model has {total} nodes when its functions are inlined; more than {MOST_NODES} are refused"
        )


Key = tuple[str, str, str]  # domain, name and overload of a function


def _key(domain: str, name: str, overload: str) -> Key:
    return standard_domain(domain), name, overload


def _calls(nodes: Iterable[onnx.NodeProto], functions: Mapping[Key, onnx.FunctionProto]) -> Iterable[Key]:
    """The function of each call among the nodes, and among those of their subgraphs."""
    for node in nodes:
        key = _key(node.domain, node.op_type, node.overload)
        if key in functions:
            takes, gives = len(functions[key].input), len(functions[key].output)
            if len(node.input) > takes or len(node.output) != gives:
                raise ModelError(
                    f"{proto_name(node)} calls a function of {takes} inputs and {gives} outputs with {len(node.input)} and "
                    f"{len(node.output)}"
                )
            yield key
        for attribute in node.attribute:
            for inner in _subgraphs(attribute):
                yield from _calls(inner.node, functions)


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
            circle = [f"{node.name or node.outputs[0].name!r} ({node.op_type})" for node in reversed(error.args[1][:8])]
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
            if node.domain == LAID_OUT:
                raise UnsupportedOpError(f"operator {node.domain}.{node.op} is not implemented")
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
        if any("com.microsoft.nchwc" in message for message in missing):
            lines.append(
                "  ONNX Runtime wrote this file for one kind of machine; let it write with ORT_ENABLE_EXTENDED"
            )
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
    attribute: Any
    for key, attribute in schema.attributes.items():
        if key not in node.attributes:
            if attribute.required:
                raise ModelError(f"{node}: its attribute {key!r} is missing")
        elif not _is_kind(node.attributes[key], attribute.type.name):
            raise ModelError(
                f"{node}: attribute {key!r} is {node.attributes[key]!r}, not of kind {attribute.type.name}"
            )


def check_weights(graph: Graph, params: Mapping[str, Any]) -> None:
    """Refuses constant operands of layers whose shapes do not fit their operator: what rewrites a graph relies on them."""
    for _, node in graph.walk():
        shapes = [np.shape(params[name]) if name in params else None for name in node.inputs]
        if not node.domain and node.op in _WEIGHTS and (wrong := _WEIGHTS[node.op](node, shapes)):
            given = [list(each) if each is not None else "?" for each in shapes]
            raise ModelError(f"{node}: {wrong}, but its inputs are of shapes {given}".replace("'?'", "?"))


def _wrong_kernel(node: Node, shapes: list[tuple[int, ...] | None]) -> str:
    """What is wrong with the kernel [O, I / group, ...] (transposed: [I, O / group, ...]) and the bias [O] of a convolution."""
    group, kernel = node.attributes.get("group", 1), shapes[1]
    if group < 1:
        return f"group = {group}; it must be positive"
    if kernel is None:
        return ""
    if len(kernel) < 3 or kernel[0] % group:
        return f"the kernel needs 3 or more axes, and a first one that {group} group(s) divide"
    channels = Linear(node, kernel).outputs
    bias = shapes[2] if len(shapes) > 2 else None
    return f"the bias must have shape [{channels}]" if bias not in (None, (channels,)) else ""


def _wrong_matrix(node: Node, shapes: list[tuple[int, ...] | None]) -> str:
    return "it multiplies matrices" if any(each is not None and len(each) != 2 for each in shapes[:2]) else ""


def _wrong_statistics(node: Node, shapes: list[tuple[int, ...] | None]) -> str:
    known = {each for each in shapes[1:] if each is not None}
    per_channel = not node.attributes.get("spatial", 1) or all(len(each) == 1 for each in known)
    return "" if len(known) <= 1 and per_channel else "scale, bias, mean and variance must be vectors of one length"


_WEIGHTS: Mapping[str, Callable[[Node, list[tuple[int, ...] | None]], str]] = {
    "Conv": _wrong_kernel,
    "ConvTranspose": _wrong_kernel,
    "Gemm": _wrong_matrix,
    "BatchNormalization": _wrong_statistics,
}

_KINDS: Mapping[str, type] = {"INT": int, "FLOAT": float, "STRING": str, "TENSOR": Literal, "GRAPH": Graph}


def _is_kind(value: Any, kind: str) -> bool:
    if kind in _KINDS:
        return isinstance(value, _KINDS[kind])
    single = _KINDS.get(kind.removesuffix("S"))
    return single is None or (isinstance(value, tuple) and all(isinstance(each, single) for each in value))
