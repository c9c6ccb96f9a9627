"""Calling a model: what goes in is checked against the file, what comes out is as declared, nothing compiles twice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import branching_network, residual_network, run_onnx, smooth, written

from jaxq import model as model_module
from jaxq.errors import InputError
from jaxq.onnx_import import load
from jaxq.quantizer import IntType, QuantParams

TWO = load(written("(float[N, 2] x, int64[N, 2] ids) => (float[N, 2] y, int64[N, 2] next) "
                   "{ f = Cast <to = 1> (ids)  y = Add (x, f)  next = Add (ids, one) }", one=np.array(1)))  # fmt: skip
X, IDS = np.float32([[0.5, 1]]), np.array([[3, 4]])


def test_inputs_and_outputs_are_those_of_the_file():
    assert {name: str(each) for name, each in TWO.inputs.items()} == {"x": "float32[N, 2]", "ids": "int64[N, 2]"}
    assert {name: str(each) for name, each in TWO.outputs.items()} == {"y": "float32[N, 2]", "next": "int64[N, 2]"}


@pytest.mark.parametrize(
    "inputs", [{"ids": IDS, "x": X}, (X, IDS), [X, IDS], {"x": jnp.asarray(X), "ids": jnp.asarray(IDS)}],
    ids=["by name", "tuple", "list", "jax arrays"],
)  # fmt: skip
def test_inputs_are_given_by_name_or_in_order(inputs):
    outputs = TWO(inputs)
    np.testing.assert_array_equal(outputs["y"], [[3.5, 5]])
    np.testing.assert_array_equal(outputs["next"], [[4, 5]])


def test_outputs_have_the_types_of_the_file():
    outputs = TWO((X, IDS))
    assert {name: value.dtype.name for name, value in outputs.items()} == {"y": "float32", "next": "int64"}


BAD = {
    "an unknown name": (
        {"xs": X, "ids": IDS}, r"no input 'xs'; did you mean 'x'\?; its inputs: 'x': float32\[N, 2\], 'ids': int64\[N, 2\]",
    ),
    "a missing name": ({"x": X}, r"input 'ids' \(int64\[N, 2\]\) is missing; given were \['x'\]"),
    "too few arrays": (X, r"the model has 2 inputs \('x': float32\[N, 2\], .*, but 1 arrays were given"),
    "another rank": ((X[0], IDS), r"input 'x' is float32\[N, 2\], but float32\[2\] was given: its rank is 1, not 2"),
    "another size": ((np.ones((1, 3), np.float32), IDS), r"'x' is float32\[N, 2\], but float32\[1, 3\] .*: axis 1 must be 2, not 3"),
    "another dtype": ((X.astype(float), IDS), r"'x' is float32\[N, 2\], but float64\[1, 2\] was given; .*\.astype\('float32'\)"),
    "floats for integers": ((X, IDS * 1.0), r"'ids' is int64\[N, 2\], but float64\[1, 2\] was given"),
    "integers that are too large": ((X, IDS * 2**40), r"input 'ids' holds the 64-bit value 4398046511104"),
}  # fmt: skip


@pytest.mark.parametrize("inputs, message", BAD.values(), ids=BAD)
def test_what_does_not_fit_is_refused_with_both_sides(inputs, message):
    with pytest.raises(InputError, match=message):
        TWO(inputs)


@pytest.fixture
def traces(monkeypatch):
    """Counts how often the forward pass is traced: its Python runs only then."""
    counted = []

    def execute(*arguments, **options):
        counted.append(1)
        return plain(*arguments, **options)

    plain = model_module.execute
    monkeypatch.setattr(model_module, "execute", execute)
    return counted


def test_calls_with_the_same_shapes_compile_once(traces):
    model = load(written("(float[N, 3] x) => (float[N, 3] y) { h = Relu (x)  y = Neg (h) }"))
    for seed in range(3):
        model({"x": smooth(2, 3, seed=seed)})
    model({"x": jnp.ones((2, 3))})
    assert len(traces) == 1
    model({"x": smooth(4, 3)})
    assert len(traces) == 2


def test_new_weights_and_new_encodings_do_not_compile_again(traces):
    model = load(written("(float[N, 3] x) => (float[N, 3] y) { y = MatMul (x, w) }", w=np.eye(3, dtype=np.float32)))
    results = []
    for scale, bits, enabled in ((0.1, 8, True), (0.5, 8, True), (0.5, 2, True), (0.5, 2, False)):
        params = QuantParams.of(np.full((1, 1), scale), 0, IntType(bits))
        encoded = model.replace(
            encodings={"x": QuantParams(params.scale, params.zero_point, params.qmin, params.qmax, np.bool_(enabled))}
        )
        results.append(float(encoded({"x": np.full((1, 3), 0.77, np.float32)})["y"][0, 0]))
    np.testing.assert_allclose(results, [0.8, 1.0, 0.5, 0.77], rtol=1e-6)
    model.replace(params={"w": np.ones((3, 3), np.float32)}, encodings=encoded.encodings)(
        {"x": np.ones((1, 3), np.float32)}
    )
    assert len(traces) == 1


def test_an_input_that_decides_a_branch_is_part_of_the_compilation(traces):
    pytest.importorskip("onnxruntime")
    proto = branching_network()
    model = load(proto)
    assert model.graph.static_inputs == ("rate",)
    for rate in (8000, 16000, 8000):
        feed = {"sound": smooth(2, 1, 16), "rate": np.array(rate, np.int64)}
        np.testing.assert_allclose(model(feed)["score"], run_onnx(proto, feed)["score"], rtol=1e-5)
    assert len(traces) == 2


def test_a_model_is_a_pure_function_for_jax():
    model = load(residual_network())
    x = jnp.asarray(smooth(3, 3, 8, 8))
    together = jax.jit(lambda x: model({"image": x})["scores"])(x)
    np.testing.assert_allclose(together, model({"image": x})["scores"], rtol=1e-5, atol=1e-6)
    apart = jax.vmap(lambda row: model({"image": row[None]})["scores"][0])(x)
    np.testing.assert_allclose(apart, together, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        model({"image": x})["scores"], together, rtol=1e-5, atol=1e-6
    )  # what was traced has not stayed
    assert jax.grad(lambda x: model({"image": x})["scores"].sum())(x).shape == x.shape


def test_a_model_is_a_function_of_its_weights_for_jax():
    model = load(written("(float[N, 2] x) => (float[N, 1] y) { y = MatMul (x, w) }", w=np.float32([[1], [2]])))
    gradient = jax.grad(lambda w: model.replace(params={"w": w})({"x": X})["y"].sum())(jnp.asarray(model.params["w"]))
    np.testing.assert_array_equal(gradient, X.T)
