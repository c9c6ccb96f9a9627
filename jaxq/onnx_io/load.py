"""Reads ONNX: a file, a `ModelProto` or bytes becomes a `Model` (structure and numbers apart).

`onnx_ir` reads the file, maps external data into memory and inlines functions; everything after that is ours. Nothing below
this floor knows ONNX's file format.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx_ir.passes.common import InlinePass

from jaxq.engine.model import Model
from jaxq.errors import ModelError, UnsupportedOpError
from jaxq.graph.ir import FrozenDict, Graph, Literal, Node, TensorType, unused_name
from jaxq.graph.passes import clean, lift_constants
from jaxq.graph.select import stand_ins
from jaxq.onnx_io.check import check_nodes, check_proto, check_tensor, check_weights, sort, standard_domain

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
    opsets = {standard_domain(domain): version for domain, version in model.opset_imports.items()}
    reader = _Reader(opsets, {node.name for node in model.graph.all_nodes() if node.name})
    graph = reader.graph(model.graph, model.graph.name or "graph")
    for name in graph.inputs:
        if name not in graph.types:
            raise ModelError(
                f"input {name!r} is not declared as a tensor with an element type; jaxq takes arrays alone"
            )
    check_nodes(graph)
    graph, params = lift_constants(graph, reader.params, LARGEST_LITERAL)
    whole = graph
    graph, params = clean(graph, params)
    check_weights(graph, params)
    metadata = {str(key): str(value) for key, value in model.metadata_props.items()}
    return Model(graph, params, metadata=FrozenDict(metadata), folded=stand_ins(whole, graph))


def read(source: Source) -> ir.Model:
    """The file as `onnx_ir` sees it, functions inlined, every external tensor checked to lie beside the model."""
    where = f"{os.fspath(source)!r}" if isinstance(source, (str, os.PathLike)) else "the model"
    try:
        proto, folder = read_proto(source)
        if not proto.graph.output:
            raise ModelError(f"{where} holds no graph with outputs; it is not an ONNX model, or it is damaged")
        check_proto(proto)
        with without_log():
            model = ir.from_proto(proto)
        ir.external_data.set_base_dir(model.graph, folder)
        for graph in (model.graph, *model.graph.subgraphs()):
            for value in graph.initializers.values():
                check_tensor(value.const_value, where)
        if model.functions:
            InlinePass()(model)
        for graph in (model.graph, *model.graph.subgraphs()):
            sort(graph)
    except ModelError:
        raise
    except DecodeError:
        raise ModelError(f"{where} is not an ONNX file, or it is truncated (its protobuf cannot be parsed)") from None
    except Exception as error:  # onnx_ir raises many kinds; each means that the file is not a valid model
        raise ModelError(f"{where} is not a valid ONNX model: {innermost(error)}") from error
    return model


@contextlib.contextmanager
def without_log() -> Iterator[None]:
    """Keeps from the terminal what `onnx_ir` logs about a bad file: the error says it, once, in our words."""
    logger = logging.getLogger("onnx_ir")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)


def read_proto(source: Any) -> tuple[onnx.ModelProto, Path]:
    """The model as protobuf, without external data, and the folder which those are in."""
    if isinstance(source, onnx.ModelProto):
        return source, Path()
    if isinstance(source, bytes):
        return onnx.ModelProto.FromString(source), Path()
    if not isinstance(source, (str, os.PathLike)):
        raise ModelError(f"cannot load a {type(source).__name__}; give a path, an onnx.ModelProto, bytes or a Model")
    path = Path(source)
    if not path.exists():
        near = [other.name for other in path.parent.glob("*.onnx")] if path.parent.is_dir() else []
        there = f" (the folder holds {', '.join(sorted(near)[:5])})" if near else ""
        raise ModelError(f"no such file: {os.fspath(path)!r}{there}")
    if path.is_dir():
        raise ModelError(f"{os.fspath(path)!r} is a folder; give the .onnx file in it")
    if path.stat().st_size == 0:
        raise ModelError(f"{os.fspath(path)!r} is empty (0 bytes)")
    return onnx.load(path, load_external_data=False), path.parent


def innermost(error: BaseException) -> BaseException:
    """The error at the end of a chain of causes: `onnx_ir` wraps what is wrong into where its code was."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


class _Reader:
    """Turns `onnx_ir` graphs into ours; names stay, except where the file uses one twice. A node without a name gets one."""

    def __init__(self, opsets: Mapping[str, int], node_names: set[str]):
        self.opsets = FrozenDict(opsets)
        self.params: dict[str, Any] = {}
        self.names: dict[ir.Value, str] = {}
        self.taken: set[str] = set()
        self.given, self.node_names = set(node_names), node_names  # those that no node has yet; those that none may get

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
        outputs = tuple(self.name(value, f"an output of graph {name!r}") for value in source.outputs)
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

    def name(self, value: ir.Value | None, reader: str) -> str:
        if value is None:
            return ""
        if value not in self.names:
            raise ModelError(
                f"tensor {value.name!r} is read but nothing makes it: no input, initializer or node. It is {reader}"
            )
        return self.names[value]

    def node(self, source: ir.Node) -> Iterable[Node]:
        domain = standard_domain(source.domain)
        if source.op_type == "Constant" and domain == "":
            value = constant_value(source)
            if value is not None:
                self.params[self.names[source.outputs[0]]] = value
                return
        if source.name in self.given:
            self.given.remove(name := source.name)
        else:
            name = unused_name(source.name or source.op_type, self.node_names)
        inputs = tuple(self.name(value, f"an input of node {name!r} ({source.op_type})") for value in source.inputs)
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
    check_tensor(tensor, "the model")
    try:
        value = np.asarray(tensor.numpy())
        if tensor.dtype == ir.DataType.STRING:
            return np.array([_text(item) for item in value.reshape(-1)], object).reshape(value.shape)
        return value
    except Exception as error:
        raise ModelError(f"the data of tensor {tensor.name!r} are damaged: {error}") from error


def _text(item: bytes | str) -> str:
    return item.decode() if isinstance(item, bytes) else str(item)


def tensor_type(kind: Any, shape: ir.Shape | None) -> TensorType | None:
    """What the file declares of a value; None where it does not say enough."""
    within: list[str] = []
    while isinstance(kind, (ir.SequenceType, ir.OptionalType)):
        within.append("sequence" if isinstance(kind, ir.SequenceType) else "optional")
        kind = kind.elem_type
    if not isinstance(kind, ir.TensorType) or kind.dtype == ir.DataType.UNDEFINED:
        return None
    dims = None if shape is None else tuple(dim if isinstance(dim, int) else dim.value for dim in shape)
    dtype = "object" if kind.dtype == ir.DataType.STRING else kind.dtype.numpy().name
    return TensorType(dtype, dims, tuple(within))
