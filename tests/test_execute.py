"""The one walk: taps see what is made, messages say where, structure is computed in 64 bit, nothing compiles twice."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import branching_network, run_onnx, smooth, written

import jaxq
from jaxq.errors import DynamicShapeError, ModelError, UnsupportedOpError
from jaxq.execute import chain, execute, observing, quantizing, traced_params
from jaxq.graph import Graph, Node
from jaxq.onnx_import import load
from jaxq.quantizer import IntType, QuantParams, fake_quantize

LINEAR = load(
    written(
        "(float[N, 2] x) => (float[N, 3] z) { y = MatMul (x, w)  z = Relu (y) }",
        w=np.float32([[1, -1, 2], [0, 3, -2]]),
    )
)
X = jnp.array([[1.0, 2.0]])


def run(model: jaxq.Model, inputs, **options):
    return execute(model.graph, traced_params(model.params), inputs, **options)


def test_a_tap_sees_params_inputs_and_every_tensor_in_the_order_in_which_they_are_made():
    def note(name, value, seen):
        return value, (*seen, name)

    outputs, seen = run(LINEAR, {"x": X}, tap=note, carry=())
    assert seen == ("w", "x", "y", "z")
    np.testing.assert_array_equal(outputs["z"], [[1, 5, 0]])


def test_a_tap_may_replace_a_tensor():
    outputs, _ = run(LINEAR, {"x": X}, tap=lambda name, value, carry: (-value if name == "y" else value, carry))
    np.testing.assert_array_equal(outputs["z"], [[0, 0, 2]])


def test_observing_updates_the_states_of_the_names_it_knows():
    tap = observing({"y": lambda state, value: state + value.sum(), "z": lambda state, value: state + value.max()})
    _, states = run(LINEAR, {"x": X}, tap=tap, carry={"y": 10, "z": 100})
    assert states == {"y": 14, "z": 105}


def test_quantizing_rounds_weights_and_activations_as_they_are_made():
    encodings = {name: QuantParams.of(np.full((1, 1), 0.4), 0, IntType(4)) for name in ("w", "y")}
    outputs, _ = run(LINEAR, {"x": X}, tap=quantizing(encodings))
    y = X @ fake_quantize(jnp.asarray(LINEAR.params["w"]), encodings["w"])
    np.testing.assert_array_equal(outputs["z"], jnp.maximum(fake_quantize(y, encodings["y"]), 0))


def test_a_chain_applies_its_taps_in_order():
    def double(name, value, carry):
        return (value * 2 if name == "y" else value), carry

    watch = observing({"y": lambda state, value: value})
    assert chain(None, None) is None
    before, after = (
        run(LINEAR, {"x": X}, tap=chain(*taps), carry={"y": 0})[1]["y"] for taps in ((watch, double), (double, watch))
    )
    np.testing.assert_array_equal(after, 2 * before)


# ------------------------------------------------------------------------------------------------------ branches


def test_a_branch_that_is_known_while_tracing_shows_its_tensors_to_the_tap():
    model = load(branching_network())
    for rate, name, other in ((8000, "slow", "fast"), (16000, "fast", "slow")):
        seen = set()
        run(
            model,
            {"sound": jnp.asarray(smooth(1, 1, 16)), "rate": np.array(rate)},
            tap=lambda key, value, carry, seen=seen: (value, seen.add(key)),
        )
        assert f"{name}.relu" in seen
        assert f"{other}.relu" not in seen


@pytest.mark.parametrize("rate", [8000, 16000])
def test_a_branch_on_data_gives_what_the_runtime_gives(rate):
    pytest.importorskip("onnxruntime")
    proto = branching_network()
    model = load(proto)
    feed = {"sound": smooth(2, 1, 16), "rate": np.array(rate, np.int64)}
    traced = {"sound": jnp.asarray(feed["sound"]), "rate": jnp.asarray(rate)}
    seen = set()
    outputs, _ = jax.jit(lambda inputs: run(model, inputs, tap=lambda key, value, carry: (value, seen.add(key))))(
        traced
    )
    np.testing.assert_allclose(outputs["score"], run_onnx(proto, feed)["score"], rtol=1e-5)
    assert "score" in seen
    assert "slow.relu" not in seen  # no statistic can leave lax.cond


# ------------------------------------------------------------------------------------------------ messages say where


def test_a_node_that_cannot_run_is_named_with_the_shapes_of_its_inputs():
    model = load(written("(float[a, b] x, float[c, d] w) => (float y) { [product] y = MatMul (x, w) }"))
    words = r"node 'product' \(MatMul, opset 17\) cannot run on inputs \['float32\[3, 5\]', 'float32\[8, 4\]'\]"
    with pytest.raises(ModelError, match=words):
        run(model, {"x": jnp.ones((3, 5)), "w": jnp.ones((8, 4))})


def test_an_unknown_operator_is_named_with_its_nearest_neighbour():
    graph = Graph((Node("Reluu", ("x",), ("y",), name="r"),), ("x",), ("y",))
    with pytest.raises(
        UnsupportedOpError, match=r"operator Reluu \(opset 17\) is not implemented; did you mean 'Relu'\?"
    ):
        execute(graph, {}, {"x": X})


def test_a_tensor_that_nothing_makes_is_named():
    graph = Graph((Node("Add", ("x", "w"), ("y",), name="sum"),), ("x",), ("y",))
    with pytest.raises(ModelError, match=r"node 'sum' \(Add, opset 17\): its input 'w' is made by no earlier node"):
        execute(graph, {}, {"x": X})
    with pytest.raises(ModelError, match=r"no node makes its outputs \['z'\]"):
        execute(Graph((), ("x",), ("z",)), {}, {"x": X})


def test_a_shape_that_depends_on_the_data_is_followed_back_to_where_it_comes_from():
    text = """(float[N, 4] x) => (float y) {
        largest = ReduceMax <keepdims = 0> (x)  whole = Cast <to = 7> (largest)
        size = Unsqueeze (whole, axes)  [stretch] y = Expand (x, size) }"""
    model = load(written(text, axes=np.array([0])))
    with pytest.raises(DynamicShapeError) as raised:
        run(model, {"x": jnp.ones((1, 4))})
    message = str(raised.value)
    assert "node 'stretch' (Expand, opset 17)" in message
    assert "depends on the data" in message
    assert re.search(r"comes from: 'size' <- 'whole' <- 'largest'", message)


# ---------------------------------------------------------------------------------------------------- 64-bit integers


def test_shape_arithmetic_is_done_in_64_bit():
    text = """(float[N, 4] x) => (int64[1] y) {
        size = Shape (x)  y2 = Mul (size, size)  y4 = Mul (y2, huge)  y = ReduceSum <keepdims = 0> (y4) }"""
    model = load(written(text, huge=np.array([2**40])))
    assert run(model, {"x": jnp.ones((3, 4))})[0]["y"] == 2**40 * (9 + 16)


def test_a_large_integer_meets_traced_ones_only_with_an_error():
    model = load(written("(int64[N] x) => (int64[N] y) { [sum] y = Add (x, huge) }", huge=np.array(2**40)))
    with pytest.raises(
        ModelError,
        match=r"node 'sum'.*holds the 64-bit value 1099511627776, which does not fit into 32 bit.*enable_x64",
    ):
        run(model, {"x": jnp.arange(3)})
    with jax.enable_x64(True):
        assert run(model, {"x": jnp.arange(3)})[0]["y"][2] == 2**40 + 2


def test_large_integers_in_params_are_refused_by_name():
    with pytest.raises(ModelError, match="initializer 'ids' holds the 64-bit value -4294967296"):
        traced_params({"ids": np.array([1, -(2**32)])})


def test_compiled_or_not_the_result_is_the_same():
    plain = run(LINEAR, {"x": X})[0]["z"]
    compiled = jax.jit(lambda params, x: execute(LINEAR.graph, params, {"x": x})[0]["z"])(LINEAR.params, X)
    np.testing.assert_array_equal(plain, compiled)
