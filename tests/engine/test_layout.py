"""Weights put into the order in which they are read: the same function, and which weights are left alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from node_case import normal
from onnx import TensorProto, helper, numpy_helper

from jaxq.engine import layout
from jaxq.engine.execute import execute, traced_params
from jaxq.engine.layout import lay_out
from jaxq.graph.ir import LAID_OUT
from jaxq.numerics.quantizer import IntType, QuantParams, fake_quantize
from jaxq.onnx_io.load import load

X = normal(2, 4, 5, 6)


def model(nodes, weights, outputs=("y",)):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, X.shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def laid_out(model):
    """The graph, the order of the params that change, and all params in their order."""
    graph, order = lay_out(model.graph, model.params)
    params = {
        name: np.transpose(value, order[name]) if name in order else value for name, value in model.params.items()
    }
    return graph, order, params


CONVOLUTIONS = {
    "plain": ((6, 4, 3, 3), {"pads": [1, 1, 1, 1]}),
    "1x1": ((6, 4, 1, 1), {}),
    "strides and few channels": ((6, 4, 2, 3), {"strides": [2, 2]}),
    "depthwise": ((8, 1, 3, 2), {"group": 4}),
    "grouped": ((6, 2, 3, 3), {"group": 2, "kernel_shape": [3, 3]}),
}


@pytest.mark.parametrize("shape, attributes", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_a_convolution_is_the_same(shape, attributes):
    weights = {"w": normal(*shape), "b": normal(shape[0])}
    float_model = model([helper.make_node("Conv", ["x", "w", "b"], ["y"], **attributes)], weights)
    graph, order, params = laid_out(float_model)
    assert order == {"w": (2, 3, 1, 0)}
    assert graph.nodes[0].domain == LAID_OUT
    assert lay_out(graph, params) == (graph, {})
    got = execute(graph, traced_params(params), {"x": jnp.asarray(X)})[0]["y"]
    wanted = execute(float_model.graph, traced_params(float_model.params), {"x": jnp.asarray(X)})[0]["y"]
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_a_dense_layer_is_the_same():
    nodes = [helper.make_node("Flatten", ["x"], ["rows"]), helper.make_node("Gemm", ["rows", "w"], ["y"], transB=1)]
    float_model = model(nodes, {"w": normal(7, 120)})
    graph, order, params = laid_out(float_model)
    assert order == {"w": (1, 0)}
    got = execute(graph, traced_params(params), {"x": jnp.asarray(X)})[0]["y"]
    np.testing.assert_allclose(got, X.reshape(2, -1) @ float_model.params["w"].T, rtol=1e-4, atol=1e-4)


CONV = helper.make_node("Conv", ["x", "w"], ["y"])
W = {"w": normal(6, 4, 3, 3)}
LEFT_ALONE = {
    "a kernel that is also added to": model(
        [
            CONV,
            helper.make_node("ReduceMean", ["x"], ["mean"], keepdims=0),
            helper.make_node("Add", ["w", "mean"], ["z"]),
        ],
        W,
        outputs=("y", "z"),
    ),
    "a kernel that is an output": model([CONV], W, outputs=("y", "w")),
    "a kernel that is computed": model(
        [helper.make_node("Mul", ["w", "x"], ["k"]), helper.make_node("Conv", ["x", "k"], ["y"])],
        {"w": normal(2, 4, 5, 6)},
    ),
    "a dense layer in order": model(
        [helper.make_node("Flatten", ["x"], ["rows"]), helper.make_node("Gemm", ["rows", "w"], ["y"])],
        {"w": normal(120, 7)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("float_model", LEFT_ALONE.values(), ids=LEFT_ALONE)
def test_what_is_left_alone(float_model):
    graph, order, _ = laid_out(float_model)
    assert order == {}
    assert graph is float_model.graph


def test_a_shared_kernel_is_laid_out_for_all():
    nodes = [helper.make_node("Conv", ["x", "w"], [name]) for name in ("y", "z")]
    graph, order, _ = laid_out(model(nodes, W, outputs=("y", "z")))
    assert set(order) == {"w"}
    assert {node.domain for node in graph.nodes} == {LAID_OUT}


def test_other_platforms_keep_onnx_order(monkeypatch):
    monkeypatch.setattr(layout, "platform", lambda: "gpu")
    float_model = model([CONV], W)
    assert lay_out(float_model.graph, float_model.params) == (float_model.graph, {})


def test_a_laid_out_model_compiles_no_transposition_of_its_kernels():
    float_model = model([helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])], W)
    graph, params, _ = float_model.program
    text = str(jax.make_jaxpr(lambda p, x: execute(graph, p, {"x": x})[0])(params, jnp.asarray(X)))
    assert "permutation=(2, 3, 1, 0)" not in text
    plain = str(jax.make_jaxpr(lambda p, x: execute(float_model.graph, p, {"x": x})[0])(params | W, jnp.asarray(X)))
    assert "permutation=(2, 3, 1, 0)" in plain


def test_the_program_has_its_encodings_in_the_same_order_and_the_model_keeps_its_own():
    scale = np.linspace(0.1, 0.6, 6, dtype=np.float32).reshape(6, 1, 1, 1)
    encodings = {"w": QuantParams.of(scale, 0, IntType(4))}
    float_model = model([helper.make_node("Conv", ["x", "w"], ["y"])], W)
    quantized = float_model.replace(encodings=encodings)
    assert quantized.program.encodings["w"].scale.shape == (1, 1, 1, 6)
    assert quantized.program.params["w"].shape == (3, 3, 4, 6)
    assert quantized.params["w"].shape == (6, 4, 3, 3)
    assert quantized.encodings["w"].scale.shape == (6, 1, 1, 1)
    rounded = float_model.replace(params={"w": np.asarray(fake_quantize(jnp.asarray(W["w"]), encodings["w"]))})
    np.testing.assert_allclose(quantized(X)["y"], rounded(X)["y"], atol=1e-5)


def test_weights_that_are_jax_arrays_stay_as_they_are():
    float_model = model([CONV], W)
    held = float_model.replace(params={"w": jnp.asarray(W["w"])})
    assert held.program.graph is held.graph

    def total(w):
        return float_model.replace(params={"w": w})(X)["y"].sum()

    assert jax.grad(total)(jnp.asarray(W["w"])).shape == (6, 4, 3, 3)
