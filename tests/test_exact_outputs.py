"""Weights and biases that are outputs too, of the model or a branch, as they are or moved, come out as they stand in the file."""

import numpy as np
import onnx
import pytest
from models import smooth
from onnx import TensorProto, helper, numpy_helper

import jaxq
from jaxq.graph.passes import keep_outputs_exact
from jaxq.onnx_io.load import load

ort = pytest.importorskip("onnxruntime")
RANDOM = np.random.default_rng(0)
W, B = RANDOM.normal(size=(16, 8)).astype(np.float32), RANDOM.normal(size=8).astype(np.float32)
K = RANDOM.normal(size=(16, 16, 1, 1)).astype(np.float32)


def model(nodes, outputs, initializers, *, inputs=(), opset=17) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, ["N", 16]), *inputs],
        [helper.make_tensor_value_info(name, 1, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in initializers.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def branch(name: str, nodes, output: str, shape) -> onnx.GraphProto:
    return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(output, 1, shape)])


GEMM = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], "product")]
MATMUL = [helper.make_node("MatMul", ["x", "w"], ["y"], "product")]
Y = {"y": ["N", 8]}
CONDITION = [helper.make_tensor_value_info("c", TensorProto.BOOL, [])]
CHOICE = helper.make_node(
    "If", ["c"], ["z"],
    then_branch=branch("then", [helper.make_node("Identity", ["w"], ["i"])], "i", [16, 8]),
    else_branch=branch("else", [helper.make_node("Neg", ["w"], ["n"])], "n", [16, 8]),
)  # fmt: skip
MOVED_CHOICE = helper.make_node(
    "If", ["c"], ["z"],
    then_branch=branch("then", [helper.make_node("Transpose", ["w"], ["t"])], "t", [8, 16]),
    else_branch=branch("else", [helper.make_node("Reshape", ["w", "s"], ["r"])], "r", [8, 16]),
)  # fmt: skip
DYNAMIC = [helper.make_tensor_value_info("s", TensorProto.INT64, [2])]
SHARED = [*MATMUL, helper.make_node("MatMul", ["x", "w"], ["v"], "again")]

CASES = {  # name -> model, what its outputs beside y must be
    "a weight": (model(MATMUL, {**Y, "w": [16, 8]}, {"w": W}), {"w": W}),
    "a weight of two layers": (model(SHARED, {**Y, "v": ["N", 8], "w": [16, 8]}, {"w": W}), {"w": W}),
    "weight and bias": (model(GEMM, {**Y, "w": [16, 8], "b": [8]}, {"w": W, "b": B}), {"w": W, "b": B}),
    "a weight under another name": (
        model([*MATMUL, helper.make_node("Identity", ["w"], ["z"])], {**Y, "z": [16, 8]}, {"w": W}), {"z": W}),
    "a weight transposed": (
        model([*MATMUL, helper.make_node("Transpose", ["w"], ["z"])], {**Y, "z": [8, 16]}, {"w": W}), {"z": W.T}),
    "a weight in a shape that is an input": (
        model([*MATMUL, helper.make_node("Reshape", ["w", "s"], ["z"])], {**Y, "z": [None, None]}, {"w": W}, inputs=DYNAMIC),
        {"z": W.reshape(8, 16)}),
    "a weight that a branch gives": (model([*MATMUL, CHOICE], {**Y, "z": [16, 8]}, {"w": W}, inputs=CONDITION), {"z": W}),
    "a weight that a branch moves": (
        model([*MATMUL, MOVED_CHOICE], {**Y, "z": [8, 16]}, {"w": W, "s": np.array([8, 16])}, inputs=CONDITION), {"z": W.T}),
    "an input with a default": (
        model(MATMUL, {**Y, "w": [16, 8]}, {"w": W}, inputs=[helper.make_tensor_value_info("w", 1, [16, 8])]), {"w": W}),
    "a kernel before a BatchNormalization": (
        model(
            [helper.make_node("Unsqueeze", ["x", "axes"], ["u"]), helper.make_node("Conv", ["u", "k"], ["t"], "product"),
             helper.make_node("BatchNormalization", ["t", "g", "h", "m", "v"], ["n"]), helper.make_node("Relu", ["n"], ["y"])],
            {"y": ["N", 16, 1, 1], "k": list(K.shape)},
            {"k": K, "axes": np.array([2, 3]), **{name: np.full(16, 0.5 + n, np.float32) for n, name in enumerate("ghmv")}}),
        {"k": K}),
}  # fmt: skip


def feed(proto: onnx.ModelProto, seed: int = 0) -> dict[str, np.ndarray]:
    given = {"x": smooth(4, 16, seed=seed), "c": np.array(True), "s": np.array([8, 16])}
    return {each.name: given[each.name] for each in proto.graph.input if each.name in given}


@pytest.mark.parametrize("name", CASES)
def test_an_output_is_exact(tmp_path, name):
    proto, wanted = CASES[name]
    data = jaxq.Dataset([feed(proto, seed) for seed in range(10)], batch_axis=None)
    quantized = jaxq.quantize(proto, data)
    assert quantized.encodings.keys() - quantized.params.keys()
    assert any(each.name == "product" for each in load(proto).graph.nodes)
    made = [(quantized, "q.onnx")]
    if "Conv" not in {node.op_type for node in proto.graph.node}:
        made.append((jaxq.compress_weights(proto), "c.onnx"))
    for model, file in made:
        jaxq.save(model, tmp_path / file)
        assert model.encodings.keys() & model.params.keys()  # the layer is quantized all the same
        simulated = model(feed(proto))
        found = ort.InferenceSession(tmp_path / file).run(list(wanted), feed(proto))
        for output, value in zip(wanted, found, strict=True):
            np.testing.assert_array_equal(value, wanted[output])
            np.testing.assert_array_equal(simulated[output], wanted[output])


def test_the_copy_of_a_weight_takes_no_memory():
    proto, _ = CASES["a weight"]
    model = load(proto)
    graph, params = keep_outputs_exact(model.graph, model.params)
    assert params["w@read"] is model.params["w"]
    assert graph.nodes[0].inputs == ("x", "w@read")
    assert keep_outputs_exact(graph, params) == (graph, params)  # nothing is left to do
