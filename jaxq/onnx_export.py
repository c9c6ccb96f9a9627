"""Writes ONNX: a `Model` becomes a standard file, float or with QuantizeLinear and DequantizeLinear.

Where a tensor has an encoding, its readers read it through Q and DQ. Weights and biases become integer initializers behind a DQ.
Names of inputs, outputs and float tensors stay.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from jaxq.errors import ConfigError, ModelError
from jaxq.files import check_writable
from jaxq.graph import FrozenDict, Graph, Literal, Node, TensorType, map_nodes, tensor_names, unused_name
from jaxq.mapped import forget_pages, is_mapped
from jaxq.matmul_nbits import to_matmul_nbits
from jaxq.model import Model
from jaxq.opsets import raise_opset
from jaxq.quantizer import E4M3, E5M2, IntType, QuantParams, quantize_array
from jaxq.version import __version__

# The IR version that came with each opset of the standard domain; a newer one makes older runtimes refuse the file.
IR_VERSIONS = ((9, 4), (10, 5), (12, 6), (14, 7), (18, 8), (20, 9), (22, 10), (23, 11), (24, 12), (26, 13))
NEWEST_IR_VERSION = 13  # that onnxruntime 1.31 reads
INLINE_BYTES = 1 << 30  # a file larger than this keeps its weights in a second one: protobuf ends at 2 GiB
PER_CHANNEL_OPSET = 13  # the first with an axis in QuantizeLinear and DequantizeLinear
BLOCKED_OPSET = 21  # the first with blocks

# The types of quantized tensors, smallest first, with the opset since which QuantizeLinear and DequantizeLinear have them.
INTEGERS = tuple(
    (IntType(bits, signed), jnp.dtype(f"{'' if signed else 'u'}int{bits}"), since)
    for bits, signed, since in (
        (4, False, 21),
        (4, True, 21),
        (8, False, 10),
        (8, True, 10),
        (16, False, 21),
        (16, True, 21),
        (32, True, 10),
    )
)
FLOATS = {grid.mantissa: (jnp.dtype(grid.name), 19) for grid in (E4M3, E5M2)}


def save(
    model: Model, path: str | os.PathLike[str], *, external_data: bool | None = None, matmul_nbits: bool = False
) -> None:
    """Writes the model as ONNX; with encodings, as QDQ ONNX that runtimes execute in integers.

    The file appears complete or not at all: it is written beside the target and renamed.

    Args:
      model: float or quantized.
      path: the file to write; an existing one is replaced.
      external_data: keep weights in `<path>.data` beside the file; None does so above 1 GiB, and for a model that was read
        from a file which did.
      matmul_nbits: write products with weights in groups as com.microsoft's MatMulNBits (`jaxq.matmul_nbits`).

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
        tensors = [value.const_value for value in written.graph.initializers.values()]
        size = sum(tensor.nbytes for tensor in tensors if tensor is not None)
        external_data = size > INLINE_BYTES or any(map(is_mapped, model.params.values()))
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".jaxq-") as folder:
            draft = Path(folder) / target.name
            if external_data:
                save_external(written, draft, f"{target.name}.data")
            else:
                ir.save(written, draft)
            check_written(draft, ranks_known=all(output.shape is not None for output in written.graph.outputs))
            if external_data:
                Path(f"{draft}.data").replace(f"{target}.data")
            draft.replace(target)
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


def save_external(model: ir.Model, path: Path, data: str) -> None:
    """Writes the model with its tensors in a second file, one after the other: none stays in memory for it."""
    before: list[Any] = []

    def next_tensor(tensor: Any, _: Any) -> None:
        while before:
            forget_pages(before.pop())
        before.append(tensor.raw)

    ir.save(model, path, external_data=data, callback=next_tensor)


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
    graph = _Writer(model.params, {*tensor_names(model.graph), *model.params}).graph(model.graph, {}, top=True)
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


# ------------------------------------------------------------------------------------------------------- encodings to QDQ


def with_qdq(model: Model) -> Model:
    """The same model with its encodings written out as QuantizeLinear and DequantizeLinear nodes and integer params."""
    graph, params = model.graph, dict(model.params)
    encodings = {name: each for name, each in model.encodings.items() if bool(np.all(each.enabled))}
    shapes = {name: np.shape(value) for name, value in params.items()}
    needed = [lowest_opset(each, shapes.get(name)) for name, each in encodings.items()]
    graph, params = raise_opset(graph, params, max([PER_CHANNEL_OPSET, graph.opsets.get("", 1), *needed]))  # type: ignore[assignment]
    taken = {*tensor_names(graph), *params}
    writer = _Qdq(
        encodings, frozenset(encodings) - set(params), dict(params), graph.opsets.get("", PER_CHANNEL_OPSET), taken
    )
    weights = [node for name in sorted(encodings) if name in params for node in writer.integer_param(name)]
    graph = writer.rewrite(graph)
    graph = replace(graph, nodes=(*weights, *graph.nodes))
    return model.replace(graph=graph, params=writer.params, encodings={})


def storage(params: QuantParams) -> tuple[np.dtype, int]:
    """The smallest ONNX type that holds the grid, and the first opset that quantizes to it."""
    if params.mantissa is not None:
        return FLOATS[int(params.mantissa)]
    low, high = int(params.qmin), int(params.qmax)
    for grid, dtype, since in INTEGERS:
        if grid.qmin <= low and high <= grid.qmax:
            return dtype, since
    raise ModelError(f"no ONNX integer type holds the grid from {low} to {high}")


def lowest_opset(params: QuantParams, shape: tuple[int, ...] | None) -> int:
    """The lowest opset that can say what the encoding of a param of that shape, or of an activation (None), says."""
    return max(storage(params)[1], BLOCKED_OPSET if shape is not None and block_axis(params, shape) is not None else 1)


def block_axis(params: QuantParams, shape: tuple[int, ...]) -> int | None:
    """The axis along which there is a scale for each block, if any."""
    counts = zip(np.shape(params.scale), shape, strict=True)
    return next((axis for axis, (count, length) in enumerate(counts) if count not in (1, length)), None)


def fills_storage(params: QuantParams) -> bool:
    """Whether the grid is all that its type can hold, so that saturation does the clipping."""
    limits = [(grid.qmin, grid.qmax) for grid, _, _ in INTEGERS]
    return params.mantissa is not None or (int(params.qmin), int(params.qmax)) in limits


@dataclass
class _Qdq:
    """Writes Q and DQ nodes, and puts what they need into `params`."""

    encodings: Mapping[str, QuantParams]
    activations: frozenset[str]
    params: dict[str, Any]
    version: int
    taken: set[str]
    names: dict[str, str] = field(default_factory=dict)

    def name(self, tensor: str, role: str) -> str:
        """The name of what belongs to a tensor (its scale, its integers ...); one that the model uses itself gets a number."""
        wanted = f"{tensor}_{role}"
        if wanted not in self.names:
            self.names[wanted] = unused_name(wanted, self.taken)
        return self.names[wanted]

    def operands(
        self, name: str, dtype: np.dtype, shape: tuple[int, ...] | None = None
    ) -> tuple[tuple[str, str], FrozenDict[str, Any]]:
        """The scale and zero point operands of tensor `name`, and the attributes (axis, block_size) that go with them."""
        each = self.encodings[name]
        scale, zero_point = np.asarray(each.scale, np.float32), np.asarray(each.zero_point).astype(dtype)
        operands = (self.name(name, "scale"), self.name(name, "zero_point"))
        blocked = None if shape is None else block_axis(each, shape)
        attributes: FrozenDict[str, Any]
        if shape is not None and blocked is not None:
            attributes = FrozenDict({"axis": blocked, "block_size": shape[blocked] // scale.shape[blocked]})
            per_block = tuple(scale.shape[axis] if axis == blocked else length for axis, length in enumerate(shape))
            scale, zero_point = np.broadcast_to(scale, per_block), np.broadcast_to(zero_point, per_block)
        else:
            axes = [axis for axis, size in enumerate(scale.shape) if size > 1]
            attributes = FrozenDict({"axis": axes[0]} if axes else {})
            scale, zero_point = (value.reshape((-1,) if axes else ()) for value in (scale, zero_point))
        self.params[operands[0]], self.params[operands[1]] = scale, zero_point
        return operands, attributes

    def integer_param(self, name: str) -> Iterator[Node]:
        """Replaces a float param by its integers, and gives the DQ node that makes the float name from them."""
        each, value = self.encodings[name], self.params.pop(name)
        dtype, _ = storage(each)
        operands, attributes = self.operands(name, dtype, np.shape(value))
        integers = quantize_array(np.asarray(value), each).astype(dtype)
        forget_pages(value)
        self.params[self.name(name, "quantized")] = integers
        yield self.node("DequantizeLinear", (self.name(name, "quantized"), *operands), name, name, attributes)

    def node(
        self, op: str, inputs: tuple[str, ...], output: str, tensor: str, attributes: FrozenDict[str, Any]
    ) -> Node:
        return Node(op, inputs, (output,), attributes, name=f"{tensor}_{op}", version=self.version)

    def pair(self, source: str, name: str, output: str) -> tuple[Node, ...]:
        """Q and DQ from tensor `source` to `output`, with the encoding of `name`.

        A grid that is smaller than the type that stores it is clipped to beforehand: QuantizeLinear knows the type's limits only.
        """
        each = self.encodings[name]
        operands, attributes = self.operands(name, storage(each)[0])
        clip: tuple[Node, ...] = ()
        if not fills_storage(each):
            limits = (self.name(name, "low"), self.name(name, "high"))
            for limit, end in zip(limits, (each.qmin, each.qmax), strict=True):
                steps = np.float32(int(end)) - np.asarray(each.zero_point, np.float32)
                self.params[limit] = np.asarray(steps * np.asarray(each.scale, np.float32)).reshape(())
            clip = (self.node("Clip", (source, *limits), self.name(name, "clipped"), name, FrozenDict()),)
            source = self.name(name, "clipped")
        return (
            *clip,
            self.node("QuantizeLinear", (source, *operands), self.name(name, "quantized"), name, attributes),
            self.node("DequantizeLinear", (self.name(name, "quantized"), *operands), output, name, attributes),
        )

    def rewrite(self, graph: Graph) -> Graph:
        """The graph with a Q, DQ pair behind each activation that has an encoding; its readers read the DQ's output.

        An Identity that only gives quantized readers a name of their own becomes the pair itself. A graph output keeps its
        name: the tensor before the pair gets another one.
        """
        here = self.activations & {*graph.inputs, *(name for node in graph.nodes for name in node.outputs)}
        read = {name: self.name(name, "dequantized") for name in here if name not in graph.outputs}
        raw = {name: self.name(name, "float") for name in here if name in graph.outputs}
        nodes: list[Node] = []
        for name in graph.inputs:
            if name in here:
                nodes.extend(self.pair(name, name, read[name]))
        for node in graph.nodes:
            node = self.readers(node, read)
            if node.op == "Identity" and node.outputs[0] in here:
                name = node.outputs[0]
                nodes.extend(self.pair(node.inputs[0], name, read.get(name, name)))
                continue
            nodes.append(replace(node, outputs=tuple(raw.get(name, name) for name in node.outputs)) if raw else node)
            for name in node.outputs:
                if name in here:
                    nodes.extend(self.pair(raw.get(name, name), name, read.get(name, name)))
        return replace(graph, nodes=tuple(nodes))

    def readers(self, node: Node, read: Mapping[str, str]) -> Node:
        """The node with its inputs, and what its subgraphs capture, read through the pairs."""

        def rename(_: Graph, inner: Node) -> tuple[Node, ...]:
            inputs = tuple(read.get(name, name) for name in inner.inputs)
            return (inner if inputs == inner.inputs else replace(inner, inputs=inputs),)

        attributes = {
            key: self.rewrite(map_nodes(value, rename)) if isinstance(value, Graph) else value
            for key, value in node.attributes.items()
        }
        return rename(Graph((), (), ()), replace(node, attributes=FrozenDict(attributes)))[0]


# --------------------------------------------------------------------------------------------------------- graph to onnx_ir


class _Writer:
    """Turns our graphs into `onnx_ir` graphs; each param and constant is written once, where it is first needed: at the top."""

    def __init__(self, params: Mapping[str, Any], taken: set[str]):
        self.params, self.taken = params, taken

    def graph(self, graph: Graph, outer: Mapping[str, ir.Value], *, top: bool) -> ir.Graph:
        values = dict(outer)
        inputs = [self.value(name, graph.types) for name in graph.inputs]
        values.update(zip(graph.inputs, inputs, strict=True))
        initializers = []
        constants = {name: literal.array for name, literal in graph.constants.items()}
        for name, array in {**(self.params if top else {}), **constants}.items():
            initializer = ir.val(name, const_value=tensor(name, array))
            values[name] = initializer
            initializers.append(initializer)
        nodes = [self.node(node, values, graph.types) for node in graph.nodes]
        made = {*graph.inputs, *(name for node in graph.nodes for name in node.outputs)}
        outputs = []
        for name in graph.outputs:
            if not top and name not in made:  # a branch that gives a constant, or what it captures, has to copy it
                node = Node("Identity", (name,), (unused_name(name, self.taken),), version=graph.opsets.get("", 13))
                nodes.append(self.node(node, values, graph.types))
                name = node.outputs[0]
            outputs.append(values[name])
        for name, value in zip(graph.outputs, outputs, strict=True):
            self.declare(value, graph.types.get(name))
        return ir.Graph(
            inputs, outputs, nodes=nodes, initializers=initializers, opset_imports=dict(graph.opsets), name=graph.name
        )

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
