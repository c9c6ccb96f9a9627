import numpy as np
import pytest
from models import Network, branching_network, residual_network, run_onnx, smooth, written

from jaxq.engine.model import Model
from jaxq.graph.fusion import add_missing_biases, even_rows, fold_affine, fuse, simplify_gemm
from jaxq.graph.linear import Linear
from jaxq.onnx_io.load import load


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
    [fuse, simplify_gemm, fold_affine, even_rows, add_missing_biases],
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


def siamese(own_kernel: bool, own_normalization: bool):
    """Two inputs through a kernel and a BatchNormalization each, which they share or not; added."""
    net = Network()
    for side in "ab":
        kernel = "kernel" if not own_kernel else f"kernel.{side}"
        if kernel not in net.initializers:
            net.weight(kernel, 4, 3, 3, 3)
        x = net.node("Conv", [net.input(side, [1, 3, 6, 6]), kernel], f"c.{side}", pads=[1] * 4)
        net.normalization(x, f"n.{side}", 4)
    if not own_normalization:
        net.nodes[3].input[1:] = net.nodes[1].input[1:]
    net.node("Add", ["n.a", "n.b"], "y")
    net.output("y", [1, 4, 6, 6])
    return net.proto()


@pytest.mark.parametrize("own_kernel, own_normalization", [(False, False), (False, True), (True, False)])
def test_a_shared_kernel_is_copied_where_normalizations_change_it_differently(own_kernel, own_normalization):
    proto = siamese(own_kernel, own_normalization)
    model = fused(proto)
    assert ops(model) == ["Conv", "Conv", "Add"]
    kernels = {node.inputs[1] for node in model.graph.nodes if node.op == "Conv"}
    assert len(kernels) == 1 + (own_kernel or own_normalization)
    assert len({node.inputs[2] for node in model.graph.nodes if node.op == "Conv"}) == 2
    feed = {"a": smooth(1, 3, 6, 6), "b": smooth(1, 3, 6, 6, seed=1)}
    np.testing.assert_allclose(model(feed)["y"], run_onnx(proto, feed)["y"], rtol=1e-4, atol=1e-5)


def test_a_kernel_that_others_read_keeps_its_value_for_them():
    net = Network()
    x = net.convolution(net.input("x", [1, 4, 6, 6]), "c", (4, 4), bias=False)
    y = net.normalization(x, "n", 4)
    net.node("Conv", [y, "c.weight"], "y", pads=[1] * 4)
    net.output("y", [1, 4, 6, 6])
    model, feed = fused(net.proto()), smooth(1, 4, 6, 6)
    assert ops(model) == ["Conv", "Conv"]
    np.testing.assert_allclose(model(feed)["y"], run_onnx(net.proto(), {"x": feed})["y"], rtol=1e-4, atol=1e-5)


# name -> (attributes, shape of the bias, operators that are left); the product is [5, 8], its inner size 6
GEMMS = {
    "row": ({}, (1, 8), ["Gemm"]),
    "one number": ({}, (1,), ["Gemm"]),
    "scalar": ({}, (), ["Gemm"]),
    "one by one": ({}, (1, 1), ["Gemm"]),
    "column": ({}, (5, 1), ["Gemm", "Add"]),
    "matrix": ({"beta": 2.0}, (5, 8), ["Gemm", "Add"]),
    "alpha": ({"alpha": 0.5}, (8,), ["Gemm"]),
    "alpha, no bias": ({"alpha": 0.5}, None, ["Gemm"]),
    "beta": ({"beta": -0.5}, (1, 8), ["Gemm"]),
    "both, transposed": ({"alpha": 0.25, "beta": 3.0, "transA": 1, "transB": 1}, (), ["Gemm"]),
}


@pytest.mark.parametrize("attributes, shape, left", GEMMS.values(), ids=GEMMS)
def test_a_gemm_has_no_factors_and_a_bias_of_its_own(attributes, shape, left):
    net = Network()
    weight = net.weight("w", *((8, 6) if "transB" in attributes else (6, 8)))
    inputs = [net.input("x", [6, 5] if "transA" in attributes else [5, 6]), weight]
    if shape is not None:
        inputs.append(net.constant("b", net.random.normal(size=shape)))
        net.node("Neg", ["b"], "other")
        net.output("other", shape)
    net.output(net.node("Gemm", inputs, "y", **attributes), [5, 8])
    model, feed = fused(net.proto()), smooth(*((6, 5) if "transA" in attributes else (5, 6)))
    (gemm,) = (node for node in model.graph.nodes if node.op == "Gemm")
    assert [op for op in ops(model) if op != "Neg"] == left
    assert {gemm.attributes.get(key, 1.0) for key in ("alpha", "beta")} == {1.0}
    for name in gemm.inputs[2:]:
        assert model.params[name].shape == (8,)
        assert len(model.graph.consumers[name]) == 1
    np.testing.assert_allclose(model(feed)["y"], run_onnx(net.proto(), {"x": feed})["y"], rtol=1e-4, atol=1e-5)


def test_a_bias_that_is_computed_becomes_an_addition():
    net = Network()
    inputs = [net.input("x", [5, 6]), net.weight("w", 6, 8), net.input("b", [8])]
    net.output(net.node("Gemm", inputs, "y"), [5, 8])
    model, feed = fused(net.proto()), {"x": smooth(5, 6), "b": smooth(8)}
    assert ops(model) == ["Gemm", "Add"]
    np.testing.assert_allclose(model(feed)["y"], run_onnx(net.proto(), feed)["y"], rtol=1e-4, atol=1e-5)


# arithmetic on z, the output of a layer with 6 channels: c is a constant for each channel, s one for all
FORMS = {
    "frozen normalization": "m = Mul (z, c)  y = Add (m, d)",
    "of a reader": "m = Sub (z, c)  n = Div (m, d)  y = Add (s, n)",
    "turned round": "m = Sub (c, z)  y = Mul (s, m)",
    "one number": "y = Div (z, s)",
}
LAYERS = {
    "Conv": ("z = Conv (x, w)", (2, 4, 5, 5), (6, 4, 3, 3), (6, 1, 1)),
    "Conv with a bias": ("z = Conv (x, w, b)", (2, 4, 5, 5), (6, 4, 3, 3), (1, 6, 1, 1)),
    "ConvTranspose": ("z = ConvTranspose <group = 2> (x, w, b)", (2, 4, 5, 5), (4, 3, 3, 3), (6, 1, 1)),
    "Gemm": ("z = Gemm <transB = 1> (x, w, b)", (2, 4), (6, 4), (6,)),
    "MatMul": ("z = MatMul (x, w)", (2, 4), (4, 6), (1, 6)),
}


@pytest.mark.parametrize("layer, shape, weight, channels", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_arithmetic_with_one_constant_a_channel_goes_into_the_layer_before(layer, shape, weight, channels, form):
    random = np.random.default_rng(2)
    size = ", ".join(map(str, shape))
    numbers = {"w": weight, "b": (6,), "c": channels, "d": channels, "s": ()}
    values = {key: random.uniform(0.5, 2.0, each).astype(np.float32) for key, each in numbers.items()}
    used = {
        key: value
        for key, value in values.items()
        if any(f" {key}{end}" in f"{layer} {form}" or f"({key}," in form for end in ",)")
    }
    proto, x = (
        written(f"(float[{size}] x) => (float[{', '.join('?' * len(shape))}] y) {{ {layer}  {form} }}", **used),
        smooth(*shape),
    )
    model = fused(proto)
    assert len(ops(model)) == 1
    np.testing.assert_allclose(model(x)["y"], run_onnx(proto, {"x": x})["y"], rtol=1e-4, atol=1e-5)


def test_a_factor_behind_a_product_of_any_rank_goes_into_the_weight_and_a_shift_stays():
    proto = written("(float[2, 3, 4] x) => (float[2, 3, 6] y) { a = MatMul (x, w)  b = Mul (a, c)  y = Add (b, c) }",
                    w=smooth(4, 6), c=smooth(6))  # fmt: skip
    model, x = fused(proto), smooth(2, 3, 4)
    assert ops(model) == ["MatMul", "Add"]
    np.testing.assert_allclose(model(x)["y"], run_onnx(proto, {"x": x})["y"], rtol=1e-4, atol=1e-5)


def test_a_normalization_behind_a_product_of_matrices_goes_into_a_gemm():
    net = Network()
    x = net.node("Flatten", [net.input("x", [2, 3, 2])], "flat")
    net.output(net.normalization(net.node("MatMul", [x, net.weight("w", 6, 4)], "z"), "y", 4), [2, 4])
    model, feed = fused(net.proto()), smooth(2, 3, 2)
    assert ops(model) == ["Flatten", "Gemm"]
    np.testing.assert_allclose(model(feed)["y"], run_onnx(net.proto(), {"x": feed})["y"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("change", ["y = Div (c, z)", "y = Mul (z, z)", "y = Mul (z, huge)", "y = Div (z, zero)"])
def test_arithmetic_that_no_weight_can_say_stays(change):
    proto = written(f"(float[1, 4, 5, 5] x) => (float[1, 6, 5, 5] y) {{ z = Conv (x, w)  {change} }}",
                    w=smooth(6, 4, 1, 1) + 2, c=smooth(6, 1, 1), huge=np.full((6, 1, 1), 3e38, np.float32),
                    zero=np.zeros((6, 1, 1), np.float32))  # fmt: skip
    assert len(ops(fused(proto))) == 2


def test_what_stands_in_branches_is_merged_too():
    proto = written("""(float[1, 3, 6, 6] x, bool flag) => (float[1, 4, 6, 6] y) { y = If (flag) <
        then_branch = g1 () => (float[1, 4, 6, 6] a) { p = Conv (x, w)  q = Mul (p, c)  a = Add (q, d) },
        else_branch = g2 () => (float[1, 4, 6, 6] b) { r = Conv (x, w)  b = Sub (r, c) }> }""",
        w=smooth(4, 3, 1, 1), c=smooth(4, 1, 1), d=smooth(1, 4, 1, 1, seed=1))  # fmt: skip
    model = fused(proto)
    assert [node.op for _, node in model.graph.walk()] == ["If", "Conv", "Conv"]
    for flag in (True, False):
        feed = {"x": smooth(1, 3, 6, 6), "flag": np.array(flag)}
        np.testing.assert_allclose(model(feed)["y"], run_onnx(proto, feed)["y"], rtol=1e-4, atol=1e-5)


def test_rows_of_a_constant_on_the_left_are_made_alike():
    w = (smooth(5, 4) + 1) * np.logspace(-2, 2, 5, dtype=np.float32)[:, None]
    w[3] = 0
    proto = written("(float[2, 4, 3] x) => (float[2, 5, 3] y) { y = MatMul (w, x) }", w=w)
    model, x = fused(proto), smooth(2, 4, 3)
    assert ops(model) == ["MatMul", "Mul"]
    largest = np.abs(model.params[model.graph.nodes[0].inputs[0]]).max(1)
    np.testing.assert_allclose(largest, [1, 1, 1, 0, 1], rtol=1e-6)
    np.testing.assert_allclose(model(x)["y"], run_onnx(proto, {"x": x})["y"], rtol=1e-4, atol=1e-5)


def test_rows_that_are_alike_stay():
    model = fused(
        written("(float[2, 4, 3] x) => (float[2, 5, 3] y) { y = MatMul (w, x) }", w=np.ones((5, 4), np.float32))
    )
    assert ops(model) == ["MatMul"]


@pytest.mark.parametrize("shape", [(1, 4, 6, 6), (4, 6, 1), (6,), (1, 1, 1, 1, 1)])
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
    linear, numbers, factor = (
        Linear.of(model.graph.nodes[0], model.params),
        dict(model.params),
        np.linspace(0.5, 2.0, 6),
    )
    assert linear.outputs == 6
    linear.scale_output(numbers, factor)
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


ROWS_AND_DATA = {
    "matrix and vector": ((4, 4), (4,)),
    "matrix and matrix": ((3, 4), (4, 5)),
    "matrix and stacked matrices": ((3, 4), (2, 4, 5)),
    "stacked matrices and vector": ((2, 4, 4), (4,)),
    "stacked matrices and matrix": ((2, 3, 4), (4, 5)),
    "stacked matrices and stacked matrices": ((2, 3, 4), (2, 4, 5)),
}


@pytest.mark.parametrize("behind", ["Relu", "Add"])
@pytest.mark.parametrize(("rows", "data"), ROWS_AND_DATA.values(), ids=ROWS_AND_DATA)
def test_uneven_rows_are_made_even_for_data_of_each_rank(rows, data, behind):
    net = Network()
    x = net.node(behind, [net.input("x", data)] * (1 if behind == "Relu" else 2), "data")
    sizes = np.logspace(0, 3, rows[-2])[:, None]
    net.node("MatMul", [net.constant("w", net.random.normal(size=rows) * sizes), x], "y")
    net.output("y", np.matmul(np.ones(rows), np.ones(data)).shape)
    model, feed = fused(net.proto()), smooth(*data)
    assert ops(model) == [behind, "MatMul", "Mul"]
    expected = run_onnx(net.proto(), {"x": feed})["y"]
    assert model(feed)["y"].shape == expected.shape
    np.testing.assert_allclose(model(feed)["y"], expected, rtol=1e-4, atol=1e-4)


def test_uneven_rows_stay_where_the_data_might_be_a_vector():
    net = Network()
    x = net.node("Squeeze", [net.input("x", ["N", 4])], "data")
    net.node("MatMul", [net.constant("w", net.random.normal(size=(4, 4)) * np.logspace(0, 3, 4)[:, None]), x], "y")
    net.output("y", [None])
    net.outputs[0].type.tensor_type.ClearField("shape")
    model, feed = fused(net.proto()), smooth(1, 4)
    assert ops(model) == ["Squeeze", "MatMul"]
    np.testing.assert_allclose(model(feed)["y"], run_onnx(net.proto(), {"x": feed})["y"], rtol=1e-4)


def product_and_normalization(data, weight, shift: bool):
    """x -> MatMul -> BatchNormalization, which shifts or scales only -> y."""
    net = Network()
    net.node("MatMul", [net.input("x", data), net.weight("w", *weight)], "z")
    zero, one = np.zeros(4), np.ones(4)
    operands = {"scale": [1, 2, 3, 4], "beta": [1, 2, 3, 4] if shift else zero, "mean": zero, "var": one}
    net.node("BatchNormalization", ["z", *(net.constant(f"z.{key}", each) for key, each in operands.items())], "y")
    net.output("y", np.matmul(np.ones(data), np.ones(weight)).shape)
    return net.proto(), smooth(*data)


@pytest.mark.parametrize("shift", [False, True], ids=["scale", "shift"])
@pytest.mark.parametrize(
    ("data", "weight", "expected"),
    [
        ((2, 4, 5), (5, 4), ["MatMul", "BatchNormalization"]),
        ((4, 5), (3, 5, 4), ["MatMul", "BatchNormalization"]),
        ((2, 5), (5, 4), None),
    ],
    ids=["stacked data", "stacked weights", "matrices"],
)
def test_normalization_goes_into_a_product_only_along_its_last_axis(data, weight, expected, shift):
    proto, x = product_and_normalization(data, weight, shift)
    model = fused(proto)
    assert ops(model) == (expected or (["Gemm"] if shift else ["MatMul"]))
    np.testing.assert_allclose(model(x)["y"], run_onnx(proto, {"x": x})["y"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("follow", ["Add", "BatchNormalization"])
@pytest.mark.parametrize(
    ("data", "first", "second"),
    [((4, 8), (2, 8, 6), (6, 4)), ((3, 8), (8, 6), (2, 6, 4)), ((8,), (2, 8, 6), (6, 4)), ((8,), (8, 6), (6, 4))],
    ids=["stacked weights", "stacked second weights", "vector and stacked weights", "vector"],
)
def test_only_a_product_of_matrices_becomes_a_gemm(data, first, second, follow):
    """The rank of a product is that of the larger factor, less one for a vector."""
    net = Network()
    net.node("MatMul", [net.input("x", data), net.weight("v", *first)], "a")
    net.node("MatMul", [net.node("Relu", ["a"], "b"), net.weight("w", *second)], "z")
    shape = (np.ones(data) @ np.ones(first) @ np.ones(second)).shape
    if follow == "Add" or len(shape) == 1:
        net.node("Add", ["z", net.constant("shift", smooth(4))], "y")
    else:
        channels = shape[1]
        net.normalization("z", "y", channels)
    net.output("y", shape)
    model, feed = fused(net.proto()), smooth(*data)
    assert ("Gemm" in ops(model)) == (shape == (2, 4) and len(second) == 2)
    np.testing.assert_allclose(model(feed)["y"], run_onnx(net.proto(), {"x": feed})["y"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("opset", [6, 7, 11])
def test_a_gemm_of_an_early_opset_runs_without_a_computed_bias(opset):
    """C became optional with opset 11; what is no bias becomes an Add behind the product at each."""
    broadcast = "<broadcast = 1>" if opset < 7 else ""
    text = f"(float[2, 4] x, float[3] c) => (float[2, 3] y) {{ y = Gemm {broadcast} (x, w, c) }}"
    weight = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    model, x, c = fused(written(text, opset, w=weight)), smooth(2, 4), smooth(3)
    assert ops(model) == ["Gemm", "Add"]
    np.testing.assert_allclose(model({"x": x, "c": c})["y"], x @ weight + c, rtol=1e-5)
