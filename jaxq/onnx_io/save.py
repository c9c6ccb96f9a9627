"""Writes ONNX: a `Model` becomes a standard file, float or with QuantizeLinear and DequantizeLinear (`jaxq.onnx_io.qdq`)."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from jaxq.engine.mapped import is_mapped
from jaxq.engine.model import Model
from jaxq.errors import ConfigError, JaxqWarning, ModelError
from jaxq.files import check_writable
from jaxq.graph.ir import Graph, Literal, Node, TensorType, node_names, tensor_names, unused_name
from jaxq.onnx_io.dequantizers import local_constants
from jaxq.onnx_io.external_data import initializers, put_in_place, write_external
from jaxq.onnx_io.matmul_nbits import to_matmul_nbits
from jaxq.onnx_io.qdq import with_qdq
from jaxq.version import __version__

# The IR version that came with each opset of the standard domain; a newer one makes older runtimes refuse the file.
IR_VERSIONS = ((9, 4), (10, 5), (12, 6), (14, 7), (18, 8), (20, 9), (22, 10), (23, 11), (24, 12), (26, 13))
NEWEST_IR_VERSION = 13  # that onnxruntime 1.31 reads
LARGEST_SHAPE = 1 << 10  # bytes of a constant that may be a shape
INLINE_BYTES = 1 << 30  # a file larger than this keeps its weights in a second one: protobuf ends at 2 GiB


def save(
    model: Model, path: str | os.PathLike[str], *, external_data: bool | None = None, matmul_nbits: bool = False
) -> tuple[Path, ...]:
    """Writes the model as ONNX; with encodings, as QDQ ONNX that runtimes execute in integers.

    The file appears complete or not at all: it is written beside the target and renamed. Whenever that is cut short, the old
    model or the new one is there as a whole, its data too (`jaxq.onnx_io.external_data`).

    Args:
      model: float or quantized.
      path: the file to write; an existing one is replaced.
      external_data: keep weights in a data file beside it, `<path>.<hash of the content>.data`; None does so above 1 GiB, and
        where weights are still those in such a file, unchanged. The data file of a model that is replaced is removed if it has
        such a name.
      matmul_nbits: write products with weights in groups as com.microsoft's MatMulNBits (`jaxq.onnx_io.matmul_nbits`).

    Returns:
      The files that were written: the model and, if it has one, its data file.

    Raises:
      ConfigError: the path cannot be written.
      ModelError: there is nothing to write as MatMulNBits; the result is not valid ONNX (a defect of jaxq; nothing is
        written).
    """
    target = Path(path)
    check_writable(target)
    written = to_ir(to_matmul_nbits(model) if matmul_nbits else model)
    if any(output.shape is None for output in written.graph.outputs):
        # The standard wants the rank of each output; some files that are read do not say it.
        ShapeInferencePass()(written)
    if external_data is None:
        size = sum(value.const_value.nbytes for value in initializers(written) if value.const_value is not None)
        external_data = size > INLINE_BYTES or any(map(is_mapped, model.params.values()))
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".jaxq-") as folder:
            draft, data = Path(folder) / target.name, None
            if external_data:
                data = write_external(written, draft)
            else:
                ir.save(written, draft)
            check_written(draft, ranks_known=all(output.shape is not None for output in written.graph.outputs))
            check_types(draft, model)
            return put_in_place(draft, data, target)
    except OSError as error:
        raise ConfigError(f"cannot write {os.fspath(path)!r}: {error.strerror or error}") from None
    except ir.serde.SerdeError as error:
        raise ModelError(f"the model cannot be written as ONNX: {error}") from error
    except onnx.checker.ValidationError as error:
        raise ModelError(
            f"the model written is not valid ONNX; this is a defect of jaxq, please report it: {error}"
        ) from error


def check_written(path: Path, *, ranks_known: bool) -> None:
    """Runs the standard's checker on a file.

    An output whose rank the values decide (a Reshape to a shape that is an input) is written as it was read, without a shape:
    runtimes take that. The checker does not; so it is shown a copy that claims scalars there, which it does not compare.

    Raises:
      onnx.checker.ValidationError: it is not valid ONNX.
    """
    if not ranks_known:
        proto = onnx.load(path, load_external_data=False)
        for output in proto.graph.output:
            if output.type.HasField("tensor_type"):
                output.type.tensor_type.shape.SetInParent()
        path = path.with_name(f"shown-{path.name}")
        onnx.save(proto, path)
    onnx.checker.check_model(os.fspath(path))


def check_types(path: Path, model: Model) -> None:
    """Compares the types of all tensors in a file with what their operators take.

    What was wrong in the float model is said, and written all the same: runtimes take more than the standard.

    Raises:
      onnx.checker.ValidationError: they do not fit, because of what was added to `model`.
    """
    error = type_error(onnx.load(path, load_external_data=False))
    if error and model.encodings and not type_error(ir.to_proto(to_ir(model.replace(encodings={})))):
        raise onnx.checker.ValidationError(error)
    if error:
        message = f"types in the model do not fit its operators, and runtimes may refuse the file: {error}"
        warnings.warn(message, JaxqWarning, stacklevel=3)


def type_error(proto: onnx.ModelProto) -> str:
    """What does not fit; "" where all does. Shapes are not compared, and weights, which no type depends on, are taken out."""
    for tensor in proto.graph.initializer:
        if len(tensor.raw_data) > LARGEST_SHAPE:
            tensor.ClearField("raw_data")
    try:
        onnx.shape_inference.infer_shapes(proto, check_type=True)
    except onnx.shape_inference.InferenceError as error:
        return str(error)
    return ""


def to_proto(model: Model) -> onnx.ModelProto:
    """The model as an `onnx.ModelProto`, for models below 2 GiB."""
    written = to_ir(model)
    try:
        return ir.to_proto(written)
    except ir.serde.SerdeError as error:
        raise ModelError(f"the model cannot be written as ONNX: {error}") from error


def to_ir(model: Model) -> ir.Model:
    """The model as `onnx_ir` writes it."""
    metadata = dict(model.metadata)
    if model.encodings:
        model = with_qdq(model)
        metadata["jaxq.version"] = __version__
    graph = _Writer(model).graph(model.graph, {}, top=True)
    return ir.Model(
        graph,
        ir_version=ir_version(model.graph.opsets),
        producer_name="jaxq",
        producer_version=__version__,
        metadata_props=metadata,
    )


def ir_version(opsets: Mapping[str, int]) -> int:
    """The lowest IR version for the standard opset: the one released with it, at least 4 and at most what runtimes read."""
    version = opsets.get("", 1)
    return next((each for opset, each in IR_VERSIONS if version <= opset), NEWEST_IR_VERSION)


# --------------------------------------------------------------------------------------------------------- graph to onnx_ir


class _Writer:
    """Turns our graphs into `onnx_ir` graphs; each param and constant is written once, where it is first needed: at the top.

    But for constants of a DequantizeLinear that the runtime looks for beside it (`jaxq.onnx_io.dequantizers`).
    """

    def __init__(self, model: Model):
        self.taken, self.node_names = {*tensor_names(model.graph), *model.params}, node_names(model.graph)
        constants = {name: literal.array for name, literal in model.graph.constants.items()}
        self.outermost = {**model.params, **constants}
        self.inside = local_constants(model.graph, self.outermost)

    def graph(self, graph: Graph, outer: Mapping[str, ir.Value], *, top: bool) -> ir.Graph:
        values = dict(outer)
        inputs = [self.value(name, graph.types) for name in graph.inputs]
        values.update(zip(graph.inputs, inputs, strict=True))
        initializers = []
        for name, array in self.constants(graph, top=top).items():
            initializer = ir.val(name, const_value=tensor(name, array))
            values[name] = initializer
            initializers.append(initializer)
        nodes = [self.node(node, values, graph.types) for node in graph.nodes]
        made = {*graph.inputs, *(name for node in graph.nodes for name in node.outputs)}
        outputs = []
        for name in graph.outputs:
            if not top and name not in made:  # a branch that gives a constant, or what it captures, has to copy it
                source, name = name, unused_name(name, self.taken)
                called, version = unused_name(name, self.node_names), graph.opsets.get("", 13)
                copy = Node("Identity", (source,), (name,), name=called, version=version)
                nodes.append(self.node(copy, values, graph.types))
            outputs.append(values[name])
        for name, value in zip(graph.outputs, outputs, strict=True):
            self.declare(value, graph.types.get(name))
        return ir.Graph(
            inputs, outputs, nodes=nodes, initializers=initializers, opset_imports=dict(graph.opsets), name=graph.name
        )

    def constants(self, graph: Graph, *, top: bool) -> dict[str, Any]:
        """What is written into a graph: name -> array."""
        if top:
            inside = {name for names in self.inside.values() for name in names}
            return {name: value for name, value in self.outermost.items() if name not in inside}
        own = {name: literal.array for name, literal in graph.constants.items()}
        return {name: self.outermost[name] for name in self.inside.get(id(graph), ())} | own

    def value(self, name: str, types: Mapping[str, TensorType]) -> ir.Value:
        value = ir.Value(name=name)
        self.declare(value, types.get(name))
        return value

    def declare(self, value: ir.Value, declared: TensorType | None) -> None:
        if declared is None or value.type is not None:
            return
        value.type = ir_type(declared)
        if declared.shape is not None:
            value.shape = ir.Shape(declared.shape)

    def node(self, node: Node, values: dict[str, ir.Value], types: Mapping[str, TensorType]) -> ir.Node:
        written = ir.Node(
            node.domain,
            node.op,
            [values[name] if name else None for name in node.inputs],
            [self.attribute(key, value, values) for key, value in node.attributes.items()],
            outputs=[self.value(name, types) for name in node.outputs],
            name=node.name,
        )
        values.update((name, value) for name, value in zip(node.outputs, written.outputs, strict=True) if name)
        return written

    def attribute(self, key: str, value: Any, values: Mapping[str, ir.Value]) -> ir.Attr:
        if isinstance(value, Graph):
            return ir.AttrGraph(key, self.graph(value, values, top=False))
        if isinstance(value, Literal):
            return ir.AttrTensor(key, tensor(key, value.array))
        if isinstance(value, TensorType):
            shape = None if value.shape is None else ir.Shape(value.shape)
            return ir.Attr(key, ir.AttributeType.TYPE_PROTO, ir.TypeAndShape(ir_type(value), shape))
        if isinstance(value, tuple) and not value:
            return ir.AttrInt64s(key, [])
        return ir.convenience.convert_attribute(key, value)


def ir_type(declared: TensorType) -> Any:
    """The type that a file declares, as `onnx_ir` has it."""
    string = declared.dtype == "object"
    kind: Any = ir.TensorType(ir.DataType.STRING if string else ir.DataType.from_numpy(np.dtype(declared.dtype)))
    for each in reversed(declared.within):
        kind = ir.SequenceType(kind) if each == "sequence" else ir.OptionalType(kind)
    return kind


def tensor(name: str, array: Any) -> Any:
    """An `onnx_ir` tensor over an array, without a copy; strings too."""
    value = np.asarray(array)
    if value.dtype == object:
        return ir.StringTensor(
            [str(item).encode() for item in value.reshape(-1)], shape=ir.Shape(value.shape), name=name
        )
    return ir.tensor(value, name=name)
