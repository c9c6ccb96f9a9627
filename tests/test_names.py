"""Whatever a model calls its nodes and tensors: names that are added are new in the whole model, and those of the file stay."""

from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import smooth
from onnx import TensorProto, helper, numpy_helper

import jaxq
from jaxq.engine.model import Model
from jaxq.numerics.quantizer import IntType, QuantParams
from jaxq.onnx_io.load import load
from jaxq.onnx_io.save import to_proto
from jaxq.options import AdvancedQuantizationParameters

ort = pytest.importorskip("onnxruntime")

ADDED = ("", "_scale", "_zero_point", "_quantized", "_dequantized", "_float", "_low", "_high", "_clipped", "_packed",
            "_QuantizeLinear", "_DequantizeLinear", "_DequantizeLinear_Output", "@quantized", "@float", ".bias", "#2",
            "_scale#2", "_quantized#2", "_QuantizeLinear#2")  # fmt: skip
RANDOM = np.random.default_rng(0)
W, V = (RANDOM.normal(size=(8, 8)).astype(np.float32) for _ in range(2))
X = smooth(2, 8)


def hostile(seed: int) -> tuple[list[str], list[str]]:
    """Names of ten tensors, most like those that would be added for others of them, and of six nodes, some without any."""
    random, tensors = np.random.default_rng(seed), ["x"]
    while len(tensors) < 10:
        name = str(random.choice(tensors)) + str(random.choice(ADDED))
        if name not in tensors:
            tensors.append(name)
    random.shuffle(tensors)
    nodes = ["", "MatMul", "MatMul#2", *(name + added for name in tensors for added in ADDED)]
    return tensors, [str(name) for name in random.choice(nodes, 6)]


def two_products_and_a_branch(tensors: list[str], nodes: list[str], opset: int = 17) -> onnx.ModelProto:
    """y = relu(x w) v, and z = x + a weight or -(x w), by c; tensors are called so, nodes in this order."""
    x, w, t, r, v, y, c, z, a, k = tensors
    called = iter(nodes)

    def node(op: str, inputs: list[str], output: str, **attributes) -> onnx.NodeProto:
        return helper.make_node(op, inputs, [output], name=next(called), **attributes)

    def branch(name: str, body: onnx.NodeProto, constants: tuple[onnx.TensorProto, ...] = ()) -> onnx.GraphProto:
        return helper.make_graph([body], name, [], [helper.make_tensor_value_info(a, 1, ["N", 8])], constants)

    then = branch("then", node("Add", [x, k], a), (numpy_helper.from_array(V[0], k),))
    otherwise = branch("else", node("Neg", [t], a))  # both branches give the same name
    graph = helper.make_graph(
        [node("MatMul", [x, w], t), node("Relu", [t], r), node("MatMul", [r, v], y),
         node("If", [c], z, then_branch=then, else_branch=otherwise)],
        "hostile",
        [helper.make_tensor_value_info(x, 1, ["N", 8]), helper.make_tensor_value_info(c, TensorProto.BOOL, [])],
        [helper.make_tensor_value_info(y, 1, ["N", 8]), helper.make_tensor_value_info(z, 1, ["N", 8])],
        [numpy_helper.from_array(W, w), numpy_helper.from_array(V, v)],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graphs(attribute.g)


def check_names(proto: onnx.ModelProto) -> None:
    """Every node and every tensor has a name that no other has, over all graphs together."""
    nodes = [node.name for each in graphs(proto.graph) for node in each.node]
    made = [name for each in graphs(proto.graph) for node in each.node for name in node.output if name]
    made += [value.name for each in graphs(proto.graph) for value in each.input]
    made += [value.name for each in graphs(proto.graph) for value in each.initializer]
    assert all(nodes)
    assert len(set(nodes)) == len(nodes)
    assert len(set(made)) == len(made)
    onnx.checker.check_model(proto, full_check=True)


def check_runs_alike(model: Model, proto: onnx.ModelProto) -> None:
    """The runtime, without optimizations, computes what the model does."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    runtime = ort.InferenceSession(proto.SerializeToString(), options)
    for taken in (True, False):
        feed = {name: X if kind.shape else np.array(taken) for name, kind in model.inputs.items()}
        for name, value in zip(model.outputs, runtime.run(list(model.outputs), feed), strict=True):
            np.testing.assert_allclose(value, model(feed)[name], atol=1e-5)


def grid(signed: bool = True) -> IntType:
    return IntType(8, signed)


def with_encodings(model: Model, tensors: list[str]) -> Model:
    """The model with quantizers for its input, what Relu makes, both outputs and both weights."""
    x, w, _, r, v, y, *_ = tensors
    wide = QuantParams.of(np.full((1, 1), 1 / 32, np.float32), 0, IntType(7))  # a grid that its type does not fill
    plain = QuantParams.of(np.full((1, 1), 1 / 16, np.float32), 0, grid())
    return model.replace(encodings={x: plain, r: wide, y: plain, w: plain, v: plain})


@settings(max_examples=60)
@given(
    st.integers(0, 1 << 30),
    st.sampled_from([11, 13, 17]),
)
def test_names_that_are_added_are_new_and_those_of_the_file_stay(seed, opset):
    tensors, nodes = hostile(seed)
    proto = two_products_and_a_branch(tensors, nodes, opset)
    model = load(proto)
    # The first node of a name keeps it, whatever nodes without names come before.
    wanted = {node.name for each in graphs(proto.graph) for node in each.node if node.name}
    assert wanted <= {node.name for _, node in model.graph.walk()}
    written = to_proto(with_encodings(model, tensors))
    check_names(written)
    assert wanted <= {node.name for each in graphs(written.graph) for node in each.node}
    assert [each.name for each in written.graph.output] == [each.name for each in proto.graph.output]
    assert [each.name for each in written.graph.input] == [each.name for each in proto.graph.input]


@settings(max_examples=8)
@given(
    st.integers(0, 1 << 30),
)
def test_a_file_with_any_names_runs_as_it_is_simulated(seed):
    tensors, nodes = hostile(seed)
    proto = two_products_and_a_branch(tensors, nodes)
    model = with_encodings(load(proto), tensors)
    check_runs_alike(model, to_proto(model))


def plain_but(first: str, second: str) -> tuple[list[str], list[str]]:
    """Tensors and nodes with names that are in nobody's way, but for the two products'."""
    return ["x", "w", "t", "r", "v", "y", "c", "z", "a", "k"], ["then", "else", first, "act", second, "branches"]


@pytest.mark.parametrize("first, target", [("x_QuantizeLinear", "onnxruntime"), ("x@quantized", "qnn")])
def test_nodes_of_a_quantized_model_have_names_of_their_own(first, target):
    tensors, nodes = plain_but(first, "x_DequantizeLinear")
    proto = two_products_and_a_branch(tensors, nodes)
    data = [{"x": smooth(2, 8, seed=seed), "c": np.array(seed % 2 == 0)} for seed in range(4)]
    model = jaxq.quantize(
        proto,
        jaxq.Dataset(data, batch_axis=None),
        target_device=target,
        advanced_parameters=AdvancedQuantizationParameters(disable_bias_correction=True),
    )
    check_names(to_proto(model))
    check_runs_alike(model, to_proto(model))


@pytest.mark.parametrize("nbits", [False, True])
@pytest.mark.parametrize("first", ["w_DequantizeLinear", "MatMul", ""])
def test_nodes_of_a_compressed_model_have_names_of_their_own(tmp_path, first, nbits):
    made = "w_packed" if nbits else "w_scale"
    wide = RANDOM.normal(size=(32, 8)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], [made], name=first),
            helper.make_node("Relu", [made], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", 1, ["N", 32])],
        [helper.make_tensor_value_info("y", 1, ["N", 8])],
        [numpy_helper.from_array(wide, "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    compressed = jaxq.compress_weights(proto, mode="int4_sym", group_size=32, all_layers=True)
    jaxq.save(compressed, tmp_path / "m.onnx", matmul_nbits=nbits)
    check_names(onnx.load(tmp_path / "m.onnx"))
    ort.InferenceSession(tmp_path / "m.onnx")


def test_a_node_without_a_name_takes_no_name_of_another_one():
    proto = two_products_and_a_branch(*plain_but("", "MatMul"))
    assert [node.name for node in load(proto).graph.nodes[:3:2]] == ["MatMul#2", "MatMul"]


def test_a_name_that_several_nodes_have_goes_to_the_first():
    proto = two_products_and_a_branch(*plain_but("again", "again"))
    assert [node.name for node in load(proto).graph.nodes[:3:2]] == ["again", "again#2"]


def test_names_of_functions_that_are_called_twice_are_new():
    body = [
        helper.make_node("MatMul", ["a", "b"], ["c"], name="inner"),
        helper.make_node("Relu", ["c"], ["d"], name="act"),
    ]
    function = helper.make_function("local", "layer", ["a", "b"], ["d"], body, [helper.make_opsetid("", 17)])
    graph = helper.make_graph(
        [helper.make_node("layer", ["x", "w"], ["c"], name="inner", domain="local"),
         helper.make_node("layer", ["c", "w"], ["y"], name="inner", domain="local")],
        "g",
        [helper.make_tensor_value_info("x", 1, ["N", 8])],
        [helper.make_tensor_value_info("y", 1, ["N", 8])],
        [numpy_helper.from_array(W, "w")],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    model = load(helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=8))
    plain = QuantParams.of(np.full((1, 1), 1 / 16, np.float32), 0, grid())
    model = model.replace(encodings=dict.fromkeys(("x", "y", "w", *model.graph.nodes[0].outputs), plain))
    check_names(to_proto(model))
    check_runs_alike(model, to_proto(model))
