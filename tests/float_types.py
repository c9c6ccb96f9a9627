"""Models in other float types than float32, made from those of float32."""

import copy

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

NUMPY = {TensorProto.FLOAT16: np.float16, TensorProto.BFLOAT16: ml_dtypes.bfloat16, TensorProto.DOUBLE: np.float64}


def in_type(proto: onnx.ModelProto, kind: int) -> onnx.ModelProto:
    """The same network in another float type, its inputs, outputs and weights too."""
    proto = copy.deepcopy(proto)
    convert_graph(proto.graph, kind)
    return proto


def convert_graph(graph: onnx.GraphProto, kind: int) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = kind
    for tensor in graph.initializer:
        convert_tensor(tensor, kind)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                convert_tensor(attribute.t, kind)
            if attribute.HasField("g"):
                convert_graph(attribute.g, kind)
            if attribute.name in ("to", "dtype") and attribute.i == TensorProto.FLOAT:
                attribute.i = kind


def convert_tensor(tensor: onnx.TensorProto, kind: int) -> None:
    if tensor.data_type == TensorProto.FLOAT:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(NUMPY[kind]), tensor.name))


def feed_in(feed: dict[str, np.ndarray], kind: int) -> dict[str, np.ndarray]:
    return {name: value.astype(NUMPY[kind]) if value.dtype == np.float32 else value for name, value in feed.items()}


def between_casts(proto: onnx.ModelProto, kind: int, ops: tuple[str, ...]) -> onnx.ModelProto:
    """A network of another float type in which nodes of these kinds compute in float32, between Casts, as converters leave it."""
    proto, nodes = in_type(proto, kind), []
    made: set[str] = set()
    for node in proto.graph.node:
        if node.op_type not in ops:
            nodes.append(node)
            continue
        for index, name in enumerate(node.input):
            if f"{name}.wide" not in made:
                nodes.append(helper.make_node("Cast", [name], [f"{name}.wide"], to=TensorProto.FLOAT))
                made.add(f"{name}.wide")
            node.input[index] = f"{name}.wide"
        (output,) = node.output
        node.output[0] = f"{output}.narrow"
        nodes += [node, helper.make_node("Cast", [f"{output}.narrow"], [output], to=kind)]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return proto
