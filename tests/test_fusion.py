import numpy as np
import pytest
from models import Network, branching_network, residual_network, run_onnx, smooth

from jaxq.fusion import add_missing_biases, channel_count, fold_batch_normalization, fold_bias_add, fuse, scale_output
from jaxq.model import Model
from jaxq.onnx_import import load


def ops(model: Model) -> list[str]:
    return [node.op for node in model.graph.nodes]


def fused(proto, change=fuse) -> Model:
    model = load(proto)
    graph, params = change(model.graph, model.params)
    return model.replace(graph=graph, params=params)


def linear_network(op: str, bias: bool, follow: str, group: int = 1, trans: int = 0):
    """x -> Conv, ConvTranspose or Gemm -> BatchNormalization or Add -> y."""
    net = Network(seed=3)
    shape = [2, 4] if op == "Gemm" else [2, 4, 5, 5]
    weight = {
        "Gemm": (6, 4) if trans else (4, 6),
        "Conv": (6, 4 // group, 3, 3),
        "ConvTranspose": (4, 6 // group, 3, 3),
    }
    inputs = [net.input("x", shape), net.weight("w", *weight[op])]
    if bias or op == "Gemm":
        inputs.append(net.constant("b", net.random.normal(size=6)))
    attributes = {"transB": trans} if op == "Gemm" else {"group": group}
    z = net.node(op, inputs, "z", **attributes)
    if follow == "BatchNormalization":
        net.normalization(z, "y", 6)
    else:
        net.node("Add", [net.constant("shift", net.random.normal(size=(1, 6, 1, 1))), z], "y")
    net.output("y", [None] * len(shape))
    return net.proto(), smooth(*shape)


CASES = {
    "Conv, normalization": ("Conv", True, "BatchNormalization"),
    "Conv without bias, normalization": ("Conv", False, "BatchNormalization"),
    "grouped Conv, normalization": ("Conv", True, "BatchNormalization", 2),
    "ConvTranspose, normalization": ("ConvTranspose", True, "BatchNormalization"),
    "grouped ConvTranspose, normalization": ("ConvTranspose", False, "BatchNormalization", 2),
    "Gemm, normalization": ("Gemm", True, "BatchNormalization"),
    "transposed Gemm, normalization": ("Gemm", True, "BatchNormalization", 1, 1),
    "Conv, Add": ("Conv", True, "Add"),
    "Conv without bias, Add": ("Conv", False, "Add"),
    "grouped ConvTranspose, Add": ("ConvTranspose", True, "Add", 2),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_arithmetic_behind_a_linear_node_goes_into_its_weights(case):
    proto, x = linear_network(*case)
    model = fused(proto)
    assert ops(model) == [case[0]]
    np.testing.assert_allclose(model(x)["y"], run_onnx(proto, {"x": x})["y"], rtol=1e-4, atol=1e-5)


def test_fusion_leaves_the_function_of_a_network_unchanged():
    x = smooth(2, 3, 8, 8)
    model = fused(residual_network())
    assert "BatchNormalization" not in ops(model)
    np.testing.assert_allclose(model(x)["scores"], load(residual_network())(x)["scores"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [fuse, fold_batch_normalization, fold_bias_add, add_missing_biases],
    ids=lambda f: getattr(f, "__name__", "fuse"),
)
@pytest.mark.parametrize("network", [residual_network, branching_network], ids=lambda f: f.__name__)
def test_a_second_run_returns_the_same_objects(network, change):
    once = fused(network(), change)
    graph, params = change(once.graph, once.params)
    assert graph is once.graph
    assert params is once.params


def test_normalization_then_addition_both_go_into_one_convolution():
    net = Network()
    x = net.convolution(net.input("x", [1, 3, 6, 6]), "c", (3, 4), bias=False)
    x = net.normalization(x, "n", 4)
    net.node("Add", [x, net.constant("shift", smooth(4, 1, 1))], "y")
    net.output("y", [1, 4, 6, 6])
    model, feed = fused(net.proto()), smooth(1, 3, 6, 6)
    assert ops(model) == ["Conv"]
    np.testing.assert_allclose(model(feed)["y"], run_onnx(net.proto(), {"x": feed})["y"], rtol=1e-4, atol=1e-5)


def test_a_bias_of_that_name_which_is_another_tensor_is_not_taken():
    """The normalization's own beta is called as the convolution's new bias would be."""
    net = Network()
    x = net.convolution(net.input("x", [1, 3, 6, 6]), "c", (3, 4), bias=False)
    operands = [net.constant(f"y.{key}", net.random.uniform(0.5, 2, 4)) for key in ("weight", "bias", "mean", "var")]
    net.node("BatchNormalization", [x, *operands], "y")
    net.output("y", [1, 4, 6, 6])
    model, feed = fused(net.proto()), smooth(1, 3, 6, 6)
    np.testing.assert_allclose(model(feed)["y"], run_onnx(net.proto(), {"x": feed})["y"], rtol=1e-4, atol=1e-5)


def test_a_new_bias_of_zeros_does_not_take_the_name_of_another_tensor():
    net = Network()
    x = net.convolution(net.input("x", [1, 3, 6, 6]), "c", (3, 4), bias=False)
    net.node("Mul", [x, net.constant("c.bias", smooth(4, 1, 1))], "y")
    net.output("y", [1, 4, 6, 6])
    model, feed = fused(net.proto(), add_missing_biases), smooth(1, 3, 6, 6)
    np.testing.assert_allclose(model(feed)["y"], run_onnx(net.proto(), {"x": feed})["y"], rtol=1e-4, atol=1e-5)


def two_readers(net, x):
    net.node("Relu", [x], "other")
    net.output("other", [1, 4, 6, 6])


def an_output(net, x):
    net.output(x, [1, 4, 6, 6])


@pytest.mark.parametrize("also", [two_readers, an_output], ids=lambda f: f.__name__)
def test_a_normalization_stays_where_its_input_is_needed(also):
    net = Network()
    x = net.convolution(net.input("x", [1, 3, 6, 6]), "c", (3, 4))
    net.normalization(x, "y", 4)
    net.output("y", [1, 4, 6, 6])
    also(net, x)
    assert "BatchNormalization" in ops(fused(net.proto()))


def test_shared_weights_are_left_alone():
    net = Network()
    x = net.convolution(net.input("x", [1, 4, 6, 6]), "c", (4, 4), bias=False)
    y = net.normalization(x, "n", 4)
    net.node("Conv", [y, "c.weight"], "y", pads=[1] * 4)
    net.output("y", [1, 4, 6, 6])
    assert "BatchNormalization" in ops(fused(net.proto()))


@pytest.mark.parametrize("shape", [(1, 4, 6, 6), (4, 6, 1), (6,), (1, 1, 1, 1)])
def test_an_addition_that_is_not_per_channel_stays(shape):
    net = Network()
    x = net.convolution(net.input("x", [1, 3, 6, 6]), "c", (3, 4))
    net.node("Add", [x, net.constant("shift", smooth(*shape))], "y")
    net.output("y", [1, 4, 6, 6])
    model, feed = fused(net.proto()), smooth(1, 3, 6, 6)
    assert ops(model) == ["Conv", "Add"]
    np.testing.assert_allclose(model(feed)["y"], run_onnx(net.proto(), {"x": feed})["y"], rtol=1e-4, atol=1e-5)


def test_a_linear_node_without_a_bias_gets_one_of_zeros_in_subgraphs_too():
    model = fused(branching_network(), add_missing_biases)
    linear = [node for _, node in model.graph.walk() if node.op in ("Conv", "Gemm")]
    assert all(len(node.inputs) == 3 for node in linear)
    assert all(not model.params[node.inputs[2]].any() for node in linear if node.op == "Conv")
    before = load(branching_network())
    for rate in (8000, 16000):
        feed = {"sound": smooth(2, 1, 16), "rate": np.array(rate)}
        np.testing.assert_allclose(model(feed)["score"], before(feed)["score"], atol=1e-6)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_scaling_an_output_scales_each_channel(case):
    proto, x = linear_network(*case)
    model = fused(proto)
    node, numbers, factor = model.graph.nodes[0], dict(model.params), np.linspace(0.5, 2.0, 6)
    assert channel_count(node, numbers[node.inputs[1]].shape) == 6
    scale_output(node, numbers, factor)
    spread = factor.reshape(1, 6) if case[0] == "Gemm" else factor.reshape(1, 6, 1, 1)
    np.testing.assert_allclose(model.replace(params=numbers)(x)["y"], model(x)["y"] * spread, rtol=1e-4, atol=1e-5)


def test_the_weights_of_the_model_given_are_not_changed():
    model = load(residual_network())
    before = {name: value.copy() for name, value in model.params.items()}
    fuse(model.graph, model.params)
    for name, value in before.items():
        np.testing.assert_array_equal(model.params[name], value)


def product_and_sum(shape, *, reshape: bool, bias=(4,)):
    net = Network(seed=1)
    x = net.input("x", shape)
    if reshape:
        x = net.node("Reshape", [x, net.constant("flat", [-1, 6], np.int64)], "rows")
    product = net.node("MatMul", [x, net.weight("w", 6, 4)], "product")
    net.output(net.node("Add", [net.constant("b", smooth(*bias)), product], "y"), [None] * max(len(shape), 2))
    return load(net.proto())


@pytest.mark.parametrize("bias", [(4,), (1, 4)])
@pytest.mark.parametrize("shape, reshape", [((3, 6), False), ((3, 2, 3), True)])
def test_a_product_of_matrices_and_a_sum_become_one_gemm(shape, reshape, bias):
    model = product_and_sum(shape, reshape=reshape, bias=bias)
    graph, params = fuse(model.graph, model.params)
    assert [node.op for node in graph.nodes] == ["Reshape", "Gemm"][not reshape :]
    feed = {"x": smooth(*shape)}
    found = model.replace(graph=graph, params=params)(feed)["y"]
    np.testing.assert_allclose(found, model(feed)["y"], rtol=1e-5, atol=1e-6)


def test_a_product_of_higher_rank_stays_a_matmul():
    model = product_and_sum((2, 3, 6), reshape=False)
    assert [node.op for node in fuse(model.graph, model.params)[0].nodes] == ["MatMul", "Add"]
