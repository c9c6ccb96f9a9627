"""Reads ONNX: a file, a `ModelProto` or bytes becomes a `Model` (structure and numbers apart).

`onnx_ir` reads the file, maps external data into memory and inlines functions; everything after that is ours. Nothing below
this floor knows ONNX's file format.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx_ir.passes.common import InlinePass

from jaxq.errors import ModelError, UnsupportedOpError
from jaxq.graph import FrozenDict, Graph, Literal, Node, TensorType, unused_name
from jaxq.model import Model
from jaxq.ops import find
from jaxq.passes import clean, lift_constants
from jaxq.scope import stand_ins

NEWEST_OPSET = 28  # of the standard domain, as reviewed in jaxq.ops
LARGEST_LITERAL = 1 << 16  # elements; integer initializers up to this are structure, larger ones are params

Source = str | os.PathLike[str] | bytes | onnx.ModelProto | Model


def load(source: Source) -> Model:
    """The model of an ONNX file, a serialized or parsed `onnx.ModelProto`; a `Model` is returned as it is.

    Weights of a file with external data stay on disk, mapped into memory, until they are used.

    Raises:
      ModelError: the file is missing, is not ONNX, is damaged, or its graph is not valid; the message says where.
      UnsupportedOpError: operators that jaxq does not know; all of them are listed.
    """
    if isinstance(source, Model):
        return source
    model = read(source)
    opsets = {_domain(domain): version for domain, version in model.opset_imports.items()}
    check_opsets(opsets)
    reader = _Reader(opsets)
    graph = reader.graph(model.graph, model.graph.name or "graph")
    refuse_unsupported(graph)
    graph, params = lift_constants(graph, reader.params, LARGEST_LITERAL)
    whole = graph
    graph, params = clean(graph, params)
    metadata = {str(key): str(value) for key, value in model.metadata_props.items()}
    return Model(graph, params, metadata=FrozenDict(metadata), folded=stand_ins(whole, graph))


def read(source: Source) -> ir.Model:
    """The file as `onnx_ir` sees it, functions inlined, every external tensor checked to lie beside the model."""
    where = f"{os.fspath(source)!r}" if isinstance(source, (str, os.PathLike)) else "the model"
    try:
        if isinstance(source, (str, os.PathLike)):
            model = _read_file(Path(source))
        else:
            proto = onnx.ModelProto.FromString(source) if isinstance(source, bytes) else source
            if not isinstance(proto, onnx.ModelProto):
                raise ModelError(
                    f"cannot load a {type(source).__name__}; give a path, an onnx.ModelProto, bytes or a Model"
                )
            model = ir.from_proto(proto)
        if not model.graph.outputs:
            raise ModelError(f"{where} holds no graph with outputs; it is not an ONNX model, or it is damaged")
        for graph in (model.graph, *model.graph.subgraphs()):
            for value in graph.initializers.values():
                check_external(value.const_value, where)
        if model.functions:
            InlinePass()(model)
        for graph in (model.graph, *model.graph.subgraphs()):
            graph.sort()
    except ModelError:
        raise
    except DecodeError:
        raise ModelError(f"{where} is not an ONNX file, or it is truncated (its protobuf cannot be parsed)") from None
    except Exception as error:  # onnx_ir raises many kinds; each means that the file is not a valid model
        raise ModelError(f"{where} is not a valid ONNX model: {error}") from error
    return model


def _read_file(path: Path) -> ir.Model:
    if not path.exists():
        near = [other.name for other in path.parent.glob("*.onnx")] if path.parent.is_dir() else []
        there = f" (the folder holds {', '.join(sorted(near)[:5])})" if near else ""
        raise ModelError(f"no such file: {os.fspath(path)!r}{there}")
    if path.is_dir():
        raise ModelError(f"{os.fspath(path)!r} is a folder; give the .onnx file in it")
    if path.stat().st_size == 0:
        raise ModelError(f"{os.fspath(path)!r} is empty (0 bytes)")
    return ir.load(path)


def check_external(tensor: Any, where: str) -> None:
    """Refuses external data that is missing, too short, or outside of the model's folder."""
    if not isinstance(tensor, ir.ExternalTensor):
        return
    folder = Path(tensor.base_dir or ".").resolve()
    file = (folder / tensor.location).resolve()
    name = f"{where}: tensor {tensor.name!r} has its data in {os.fspath(tensor.location)!r}"
    if Path(tensor.location).is_absolute() or not file.is_relative_to(folder):
        raise ModelError(f"{name}, outside of the model's folder; this is refused. Move the data file beside the model")
    if not file.is_file():
        raise ModelError(f"{name}, which is missing; copy it beside the model")
    end = (tensor.offset or 0) + (tensor.length if tensor.length is not None else tensor.nbytes)
    if file.stat().st_size < end:
        raise ModelError(f"{name}, which ends at byte {file.stat().st_size} but byte {end} is needed; it is truncated")


def check_opsets(opsets: Mapping[str, int]) -> None:
    """Refuses a standard opset that does not exist."""
    version = opsets.get("")
    if version is not None and not 1 <= version <= NEWEST_OPSET:
        raise ModelError(
            f"the model imports opset {version} of ONNX's standard operators; known are 1 to {NEWEST_OPSET}"
        )


def refuse_unsupported(graph: Graph) -> None:
    """One error with every operator that has no implementation, and the nodes that use it."""
    missing: dict[str, list[str]] = {}
    for _, node in graph.walk():
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
    if missing:
        lines = [f"  {message}: {len(names)} node(s), first {names[0]!r}" for message, names in missing.items()]
        raise UnsupportedOpError("the model uses operators that jaxq does not implement:\n" + "\n".join(lines))


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


class _Reader:
    """Turns `onnx_ir` graphs into ours; names stay, except where the file uses one twice."""

    def __init__(self, opsets: Mapping[str, int]):
        self.opsets = FrozenDict(opsets)
        self.params: dict[str, Any] = {}
        self.names: dict[ir.Value, str] = {}
        self.taken: set[str] = set()
        self.node_names: set[str] = set()

    def graph(self, source: ir.Graph, name: str) -> Graph:
        initializers = [value for value in source.initializers.values() if value.const_value is not None]
        for value in initializers:
            self.params[self.new(value)] = tensor_array(value.const_value)
        given = set(initializers)
        inputs = [value for value in source.inputs if value not in given]
        for value in inputs:
            self.new(value)
        for each in source:  # before what is inside of them: the names of this graph come first
            for value in each.outputs:
                if value.name:
                    self.new(value)
        nodes = tuple(node for each in source for node in self.node(each))
        outputs = tuple(self.name(value) for value in source.outputs)
        values = [*source.inputs, *source.outputs, *(value for each in source for value in each.outputs)]
        types = {self.names[value]: tensor_type(value.type, value.shape) for value in values if value in self.names}
        return Graph(
            nodes=nodes,
            inputs=tuple(self.names[value] for value in inputs),
            outputs=outputs,
            types=FrozenDict({key: each for key, each in types.items() if each is not None}),
            opsets=self.opsets,
            name=name,
        )

    def new(self, value: ir.Value) -> str:
        """The name of a value that is made here: its own, or its own with a number if that is taken."""
        self.names[value] = unused_name(value.name or "tensor", self.taken)
        return self.names[value]

    def name(self, value: ir.Value | None) -> str:
        if value is None:
            return ""
        if value not in self.names:
            raise ModelError(f"tensor {value.name!r} is read but nothing makes it: no input, initializer or node")
        return self.names[value]

    def node(self, source: ir.Node) -> Iterable[Node]:
        domain = _domain(source.domain)
        if source.op_type == "Constant" and domain == "":
            value = constant_value(source)
            if value is not None:
                self.params[self.names[source.outputs[0]]] = value
                return
        name = unused_name(source.name or f"{source.op_type}", self.node_names)
        inputs = tuple(self.name(value) for value in source.inputs)
        attributes = {key: self.attribute(each, name) for key, each in source.attributes.items()}
        while inputs and not inputs[-1]:
            inputs = inputs[:-1]
        yield Node(
            op=source.op_type,
            inputs=inputs,
            outputs=tuple(self.names[value] if value.name else "" for value in source.outputs),
            attributes=FrozenDict(attributes),
            name=name,
            domain=domain,
            version=self.opsets.get(domain, 1),
        )

    def attribute(self, source: ir.Attr, node: str) -> Any:
        kind = source.type
        if kind == ir.AttributeType.GRAPH:
            return self.graph(source.value, f"{node}/{source.name}")
        if kind == ir.AttributeType.TENSOR:
            return Literal.of(tensor_array(source.value))
        if kind in (ir.AttributeType.FLOAT, ir.AttributeType.INT, ir.AttributeType.STRING):
            return source.value
        if kind in (ir.AttributeType.FLOATS, ir.AttributeType.INTS, ir.AttributeType.STRINGS):
            return tuple(source.value)
        if kind == ir.AttributeType.TYPE_PROTO:
            return tensor_type(source.value.type, source.value.shape)
        raise UnsupportedOpError(
            f"node {node!r}: attribute {source.name!r} is of kind {kind.name}, which is not implemented"
        )


def constant_value(node: ir.Node) -> np.ndarray | None:
    """The array of a Constant node; None for a kind (sparse) that only an operator function could give."""
    for key, attribute in node.attributes.items():
        if key == "value":
            return tensor_array(attribute.value)
        if key in ("value_float", "value_floats"):
            return np.asarray(attribute.value, np.float32)
        if key in ("value_int", "value_ints"):
            return np.asarray(attribute.value, np.int64)
        if key in ("value_string", "value_strings"):
            return np.asarray(attribute.value, object)
    return None


def tensor_array(tensor: Any) -> np.ndarray:
    """The numpy view of an `onnx_ir` tensor; external data is mapped, not read."""
    check_external(tensor, "the model")
    return np.asarray(tensor.numpy())


def tensor_type(kind: Any, shape: ir.Shape | None) -> TensorType | None:
    """What the file declares of a value; None where it does not say enough."""
    within: list[str] = []
    while isinstance(kind, (ir.SequenceType, ir.OptionalType)):
        within.append("sequence" if isinstance(kind, ir.SequenceType) else "optional")
        kind = kind.elem_type
    if not isinstance(kind, ir.TensorType):
        return None
    dims = None if shape is None else tuple(dim if isinstance(dim, int) else dim.value for dim in shape)
    dtype = "object" if kind.dtype == ir.DataType.STRING else kind.dtype.numpy().name
    return TensorType(dtype, dims, tuple(within))
