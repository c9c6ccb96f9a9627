"""What rounding a tensor does to its layers: measured in one walk, it is what each layer by itself would do."""

import logging

import jax
import numpy as np
import pytest
from models import samples, transformer_block, written

from jaxq.algorithms.layer_errors import LayerErrors, sums
from jaxq.engine.model import Model
from jaxq.numerics.quantizer import IntType, QuantParams, fake_quantize_array
from jaxq.onnx_io.load import load

RANDOM = np.random.default_rng(0)
FIRST, SECOND = (RANDOM.normal(size=(4, 3)).astype(np.float32) for _ in range(2))
FEEDS = [{"x": RANDOM.normal(size=(1, 5, 4)).astype(np.float32)} for _ in range(3)]
COARSE = QuantParams.of(np.full((1, 1, 1), 0.5), 0, IntType(4))


def network(body: str, outputs: str = "float[N, 5, 3] y") -> Model:
    return load(written(f"(float[N, 5, 4] x) => ({outputs}) {{ {body} }}", a=FIRST, b=SECOND))


def squares(*pairs: tuple[np.ndarray, np.ndarray]) -> list[list[float]]:
    """Mean squared difference of each pair, and mean square of its second."""
    return [[float(((one - other) ** 2).mean()), float((other**2).mean())] for one, other in pairs]


def test_each_layer_is_judged_with_nothing_but_its_input_rounded():
    model = network("[first] h = MatMul(x, a)  [second] g = MatMul(x, b)  y = Mul(h, g)")
    found = LayerErrors.of(model, {"x": "x"}, FEEDS[0]).measure({"x": COARSE}, FEEDS)["x"]
    expected = np.zeros((3, 2))
    for feed in FEEDS:
        x, rounded = feed["x"], fake_quantize_array(feed["x"], COARSE)
        expected += squares((rounded, x), (rounded @ FIRST, x @ FIRST), (rounded @ SECOND, x @ SECOND))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_errors_of_several_tensors_do_not_add_up():
    model = network("h = MatMul(x, a)  y = Relu(h)")
    probe = LayerErrors.of(model, {"x": "x", "h": "h"}, FEEDS[0])
    alone, together = probe.measure({"h": COARSE}, FEEDS), probe.measure({"x": COARSE, "h": COARSE}, FEEDS)
    np.testing.assert_array_equal(alone["h"], together["h"])
    assert not alone["x"][:, 0].any()
    assert together["x"][:, 0].all()


@pytest.mark.parametrize(
    "body, outputs, layers",
    [
        ("y = MatMul(x, a)  t = Transpose(x)", "float[N, 5, 3] y, float[4, 5, N] t", 2),
        ("y = MatMul(x, a)  s = Shape(x)", "float[N, 5, 3] y, int64[3] s", 1),  # not float
        ("y = MatMul(x, a)  t = Mul(x, x)", "float[N, 5, 3] y, float[N, 5, 4] t", 2),  # read twice, one layer
        ("h = Relu(x)  y = MatMul(h, a)", "float[N, 5, 3] y", 0),  # moves values: of the same group
    ],
    ids=["two layers", "shape", "both inputs", "moved"],
)
def test_layers_are_the_nodes_that_compute_with_a_tensor(body, outputs, layers):
    probe = LayerErrors.of(network(body, outputs), {"x": "group", "h": "group"}, FEEDS[0])
    assert len(probe.squares["x"]) == 1 + layers


def test_halves_are_squared_in_float32():
    model = load(
        written("(float16[N, 4] x) => (float16[N, 3] y) { y = MatMul(x, a) }", a=np.full((4, 3), 30, np.float16))
    )
    feed = {"x": np.full((1, 4), 300, np.float16)}
    params = QuantParams.of(np.full((1, 1), 7.0), 0, IntType(8))
    found = LayerErrors.of(model, {"x": "x"}, feed).measure({"x": params}, [feed])["x"]
    assert found[1, 1] == pytest.approx(36000.0**2)


def test_another_rounding_compiles_nothing_more(caplog):
    model = load(transformer_block())
    feeds = samples("transformer", 2)
    tensors = {name: name for node in model.graph.nodes if node.op == "MatMul" for name in node.inputs[:1]}
    probe = LayerErrors.of(model, tensors, feeds[0])

    def rounding(scale: float) -> dict[str, QuantParams]:
        return {name: QuantParams.of(np.full((1, 1, 1), scale), 0, IntType(8)) for name in tensors}

    probe.measure(rounding(0.1), feeds)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        probe.measure(rounding(0.2), feeds)
    assert not [record for record in caplog.records if record.getMessage().startswith("Compiling")]


def test_an_error_that_is_no_number_is_infinite():
    error, exact = np.array([1.0, np.nan, np.nan, 2.0]), np.array([1.0, 3.0, np.nan, 5.0])
    assert sums(error, exact) == (np.inf, 9.0)
    assert sums(error[[0, 3]], exact[[0, 3]]) == (3.0, 6.0)
