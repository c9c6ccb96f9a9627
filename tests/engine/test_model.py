from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import branching_network, free_size_network, residual_network, run_onnx, smooth, written

import jaxq.engine.model
from jaxq.engine.execute import execute
from jaxq.engine.model import Model, check_feed
from jaxq.engine.traced import signed
from jaxq.errors import InputError, ModelError
from jaxq.graph.ir import FrozenDict
from jaxq.numerics.quantizer import IntType, QuantParams
from jaxq.onnx_io.load import load

IMAGE = smooth(2, 3, 8, 8)


@pytest.fixture
def model(request) -> Model:
    """The residual network under a name of its own, so that nothing is compiled yet."""
    loaded = load(residual_network())
    return loaded.replace(graph=replace(loaded.graph, name=request.node.name))


@pytest.fixture
def traces(monkeypatch) -> list[str]:
    """Grows by one for each time the model is traced."""
    found: list[str] = []

    def counted(graph, *arguments, **options):
        found.append(graph.name)
        return execute(graph, *arguments, **options)

    monkeypatch.setattr(jaxq.engine.runner, "execute", counted)
    return found


def test_a_model_tells_its_inputs_and_outputs(model):
    assert {name: str(each) for name, each in model.inputs.items()} == {"image": "float32[N, 3, 8, 8]"}
    assert {name: str(each) for name, each in model.outputs.items()} == {"scores": "float32[N, 5]"}


@pytest.mark.parametrize("form", ["dict", "array", "tuple", "list", "jax"])
def test_a_batch_may_be_given_in_each_usual_form(model, form):
    forms = {"dict": {"image": IMAGE}, "array": IMAGE, "tuple": (IMAGE,), "list": [IMAGE], "jax": jnp.asarray(IMAGE)}
    expected = run_onnx(residual_network(), {"image": IMAGE})["scores"]
    np.testing.assert_allclose(model(forms[form])["scores"], expected, atol=1e-5)


def test_a_second_call_of_the_same_shapes_compiles_nothing(model, traces):
    for shift in range(3):
        model(IMAGE + shift)
    assert len(traces) == 1


def test_new_weights_scales_bits_and_switches_compile_nothing(model, traces):
    def encoded(scale, bits, on):
        params = QuantParams.of(np.full((1, 1, 1, 1), scale), 0, IntType(bits))
        return {"stem.relu": replace(params, enabled=np.bool_(on))}

    for scale, bits, on in ((0.1, 8, True), (0.2, 4, True), (0.1, 2, False)):
        params = {name: value * 2 for name, value in model.params.items()}
        model.replace(encodings=encoded(scale, bits, on), params=params)(IMAGE)
    assert len(traces) == 1


def test_a_disabled_encoding_changes_nothing(model):
    off = replace(QuantParams.of(np.ones((1, 1, 1, 1)), 0, IntType(8)), enabled=np.bool_(False))
    np.testing.assert_array_equal(model.replace(encodings={"stem.relu": off})(IMAGE)["scores"], model(IMAGE)["scores"])


def test_an_encoding_changes_what_the_model_gives(model):
    coarse = QuantParams.of(np.ones((1, 1, 1, 1)), 0, IntType(8))
    assert not np.array_equal(model.replace(encodings={"stem.relu": coarse})(IMAGE)["scores"], model(IMAGE)["scores"])


def test_a_replaced_model_uses_its_own_params(model):
    before = model(IMAGE)["scores"]
    bias = next(name for name in model.params if name == "scores.bias")
    after = model.replace(params={**model.params, bias: model.params[bias] + 1})(IMAGE)["scores"]
    np.testing.assert_allclose(after, before + 1, rtol=1e-5)


def test_a_model_runs_inside_other_transformations(model):
    def total(image):
        return model({"image": image})["scores"].sum()

    assert jax.grad(total)(jnp.asarray(IMAGE)).shape == IMAGE.shape


def test_a_static_input_chooses_the_branch_and_each_value_compiles_once(traces):
    model = load(branching_network())
    model = model.replace(graph=replace(model.graph, name="static input"))
    sound = smooth(1, 1, 16)
    for rate in (8000, 16000, 8000):
        feed = {"sound": sound, "rate": np.array(rate)}
        expected = run_onnx(branching_network(), feed)["score"]
        np.testing.assert_allclose(model(feed)["score"], expected, atol=1e-5)
    assert len(traces) == 2


def test_a_free_size_is_free():
    model = load(free_size_network())
    for height, width in ((8, 8), (6, 10)):
        image = smooth(1, 1, height, width)
        expected = run_onnx(free_size_network(), {"image": image})["clean"]
        np.testing.assert_allclose(model(image)["clean"], expected, atol=1e-5)


BAD = {
    "unknown name": ({"imag": IMAGE}, "no input 'imag'; did you mean 'image'"),
    "missing name": ({}, r"input 'image' \(float32\[N, 3, 8, 8\]\) is missing"),
    "too many arrays": ((IMAGE, IMAGE), "has 1 inputs .*2 arrays were given"),
    "dtype": (IMAGE.astype(np.float64), r"float32\[N, 3, 8, 8\], but float64\[2, 3, 8, 8\].*astype"),
    "rank": (IMAGE[0], r"float32\[3, 8, 8\] was given: its rank is 3, not 4"),
    "size": (IMAGE[:, :2], "axis 1 must be 3, not 2"),
    "no array": ({"image": "picture.png"}, "input 'image'"),
}


@pytest.mark.parametrize("inputs, message", BAD.values(), ids=BAD)
def test_inputs_that_do_not_fit_are_refused_with_both_sides(model, inputs, message):
    with pytest.raises(InputError, match=message):
        model(inputs)


def test_a_feed_comes_in_the_order_of_the_file():
    declared = load(branching_network()).inputs
    feed = check_feed(declared, {"rate": np.array(8000), "sound": smooth(1, 1, 16)})
    assert list(feed) == ["sound", "rate"]


def test_static_inputs_are_literals_and_the_others_are_left():
    graph = load(branching_network()).graph
    signature, traced = signed(graph, {"sound": smooth(1, 1, 16), "rate": np.array(8000)})
    assert isinstance(signature.static, FrozenDict)
    assert signature.static["rate"].array == 8000
    assert list(traced) == ["sound"]


def test_models_of_batch_one_and_of_free_batch_agree():
    fixed, free = load(residual_network(batch=1)), load(residual_network())
    for feed in [{"image": row[None]} for row in smooth(2, 3, 8, 8)]:
        np.testing.assert_array_equal(fixed(feed)["scores"], free(feed)["scores"])
    with pytest.raises(InputError, match="axis 0 must be 1, not 2"):
        fixed(IMAGE)


def test_64_bit_integers_are_refused_or_true_but_never_wrong():
    model = load(written("(int64[N] x) => (int64[N] y) { y = Add (x, x) }"))
    large = np.array([2**40, -(2**40)])
    with pytest.raises(InputError, match=r"input 'x' holds the 64-bit value .* jax.enable_x64"):
        model({"x": large})
    with jax.enable_x64(True):
        np.testing.assert_array_equal(model({"x": large})["y"], 2 * large)
    constant = load(written("(int64[N] x) => (int64[N] y) { y = Add (x, c) }", c=np.int64(2**40)))
    with pytest.raises(ModelError, match="64-bit value 1099511627776"):
        constant({"x": large // 2**40})
    with jax.enable_x64(True):
        np.testing.assert_array_equal(constant({"x": large // 2**40})["y"], [2**40 + 1, 2**40 - 1])


@pytest.mark.parametrize(
    "declared, value, made",
    [
        ("int64[1] k", np.array([2]), "y, i = TopK (x, k)"),
        ("int64 k", np.array(2), "z = Constant <value_ints = [0]> () s = Unsqueeze (k, z) y, i = TopK (x, s)"),
        ("int64[2] k", np.array([2, -1]), "y = Reshape (x, k)"),
        ("int64[1] k", np.array([8]), "y = Resize <axes = [0]> (x, , , k)"),
        ("float[1] k", np.array([2.0], np.float32), "y = Resize (x, , k)"),
        ("bool[1] k", np.array([True]), "y = If <then_branch = A () => (float[a] u) { u = Neg (x) }, "
         "else_branch = B () => (float[b] v) { v = Exp (x) }> (k)"),
    ],
)  # fmt: skip
def test_inputs_that_decide_shapes_are_taken_as_known(declared, value, made):
    model = load(written(f"(float[N] x, {declared}) => (float[K] y) {{ {made} }}", 18))
    assert model.graph.static_inputs == ("k",)
    assert model({"x": np.arange(6, dtype=np.float32), "k": value})["y"].size


def test_data_is_not_taken_as_known():
    text = "(int64[N] x, float[N] y) => (int64[A, K] i, float[B] c) { i = NonZero (x) g = Greater (y, z) c = Compress (y, g) }"
    assert load(written(text, z=np.float32(0))).graph.static_inputs == ()


def test_the_weights_are_as_wide_as_jax_is_set_to_at_each_call():
    weight = np.random.default_rng(0).normal(size=(4, 3))
    model = load(written("(double[N, 4] x) => (double[N, 3] y) { y = MatMul (x, w) }", w=weight))
    x = np.random.default_rng(1).normal(size=(2, 4))
    for wide, tolerance in ((False, 1e-6), (True, 1e-14), (False, 1e-6)):
        with jax.enable_x64(wide):
            found = model(x)["y"]
            assert model.program.params["w"].dtype == ("float64" if wide else "float32")
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, x @ weight, rtol=tolerance, atol=tolerance)
