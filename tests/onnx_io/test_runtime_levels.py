"""ONNX Runtime loads the files that are written and computes what was simulated, at each of its optimization levels."""

import functools

import numpy as np
import pytest
from models import NETWORKS, quantized, run_at, samples, smooth, written

import jaxq
from jaxq.numerics.quantizer import E4M3, E5M2, FloatType, IntType, QuantParams, fake_quantize_array
from jaxq.onnx_io.qdq import storage
from jaxq.placement.targets import ONNXRUNTIME
from jaxq.placement.targets.installed import installed_version, limits_of
from jaxq.placement.targets.onnxruntime import FLOAT8, WIDE_INPUTS

LEVELS = ("DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_LAYOUT", "ENABLE_ALL")
LOSS = 1.0  # dB: kernels in integers flip single steps
SAME = 100.0  # dB: float32 itself is no nearer
TINY = 1e-4  # of inputs and weights: the units of the products are so small that int32 does not hold a bias of ordinary size

BIASES = """
    (float[N, 8, 6, 6] x, float[N, 8] z, float[N, 3, 8] r, bool flag)
    => (float[N, 8, 6, 6] conv, float[N, 8, 6, 6] transposed, float[N, 8] gemm, float[N, 8] number, float[N, 3, 8] matmul,
        float[N, 8] given, float[8] c, float[N, 8] branch)
    {
        c1 = Conv <pads = [1, 1, 1, 1]> (x, w1, b)  c2 = Relu (c1)  conv = Conv <pads = [1, 1, 1, 1]> (c2, v1, b)
        t1 = ConvTranspose <pads = [1, 1, 1, 1], group = 2> (x, w2, b2)  t2 = Relu (t1)  transposed = Conv (t2, v2)
        g1 = Gemm (z, w3, b)  g2 = Relu (g1)  g3 = Gemm <transB = 1> (g2, v3, b)  gemm = LeakyRelu (g3)
        n1 = Gemm (z, w4, one)  n2 = Relu (n1)  n3 = Gemm (n2, v4, row)  n4 = Relu (n3)  number = Gemm (n4, u4, none)
        m1 = MatMul (r, w5)  m2 = Add (m1, b)  m3 = Relu (m2)  matmul = MatMul (m3, v5)
        o1 = Gemm (z, w6, c)  o2 = Relu (o1)  given = Gemm (o2, v6)
        branch = If <
            then_branch = then () => (float[N, 8] i) { i1 = Gemm (z, w7, b)  i2 = Relu (i1)  i = Gemm (i2, v7, b) },
            else_branch = else () => (float[N, 8] j) { j = Gemm (z, w7, b) }
        > (flag)
    }
"""


def numbers(tiny: float) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    shapes = {"w1": (8, 8, 3, 3), "v1": (8, 8, 3, 3), "w2": (8, 4, 3, 3), "v2": (8, 8, 1, 1)}
    matrices = ("w3", "v3", "w4", "v4", "u4", "w5", "v5", "w6", "v6", "w7", "v7")
    found = {
        name: random.normal(size=shapes.get(name, (8, 8))) * 0.3 * (tiny if name.startswith("w") else 1)
        for name in (*shapes, *matrices)
    }
    values = np.resize([3.0, -2.0, 1.0, 2.5], 8)
    found |= {"b": values, "b2": values, "c": values, "one": values[:1], "row": values[None], "none": values[0]}
    return {name: np.float32(each) for name, each in found.items()}


def biases_network(tiny: float = TINY):
    return written(BIASES, **numbers(tiny))


def biases_feed(seed: int, tiny: float = TINY) -> dict[str, np.ndarray]:
    shapes = {"x": (1, 8, 6, 6), "z": (1, 8), "r": (1, 3, 8)}
    random = np.random.default_rng(seed)
    made = {"x": smooth(*shapes["x"], seed=seed), "z": random.normal(size=(1, 8)), "r": random.normal(size=(1, 3, 8))}
    return {name: np.float32(value * tiny) for name, value in made.items()} | {"flag": np.array(True)}


def options(weights=None, activations=None):
    kinds = {
        "e4m3": jaxq.FP8QuantizationParameters(),
        "e5m2": jaxq.FP8QuantizationParameters(destination_type="f8e5m2"),
    }
    made = {None: None, "asymmetric": jaxq.QuantizationParameters(mode="asymmetric"), **kinds}
    made |= {bits: jaxq.QuantizationParameters(num_bits=bits) for bits in (4, 16)}
    made["per tensor"] = jaxq.QuantizationParameters(per_channel=False)
    return jaxq.AdvancedQuantizationParameters(
        weights_quantization_params=made[weights], activations_quantization_params=made[activations]
    )


def decibels(exact: np.ndarray, found: np.ndarray) -> float:
    """How far the signal is above its error."""
    exact, found = np.float64(exact), np.float64(found)
    return float(10 * np.log10(np.square(exact).sum() / max(np.square(exact - found).sum(), 1e-30)))


def check(source, simulated: jaxq.Model, feeds, folder) -> None:
    """Compares each output at each level with the simulation, both by what they are off from the float model."""
    file = folder / "model.onnx"
    jaxq.save(simulated, file)
    exact, expected = (gathered(map(model, feeds)) for model in (jaxq.load(source), simulated))
    types = {np.dtype(storage(each)[0]).name for each in simulated.encodings.values()}
    limits = list(limits_of(ONNXRUNTIME, installed_version(ONNXRUNTIME)))
    plain_only = FLOAT8 in limits and not FLOAT8.activations.isdisjoint(types)  # float8 weights, too
    config = {"session.qdq_matmulnbits_accuracy_level": "1"} if WIDE_INPUTS in limits else {}
    for level in LEVELS[:1] if plain_only else LEVELS:
        for name, value in gathered(run_at(file, level, feeds, config)).items():
            reached, wanted = decibels(exact[name], value), decibels(exact[name], expected[name])
            assert reached > wanted - LOSS or reached > SAME, f"{name} at {level}: {reached:.1f} of {wanted:.1f} dB"


def gathered(results) -> dict[str, np.ndarray]:
    results = list(results)
    return {name: np.concatenate([np.ravel(each[name]) for each in results]) for name in results[0]}


@functools.cache
def biases_feeds() -> list[dict[str, np.ndarray]]:
    return [biases_feed(seed) for seed in range(8)]


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "tensorrt", "ascend", "any", "qnn"])
def test_a_bias_overflows_for_no_target(target, tmp_path):
    source = biases_network()
    check(source, jaxq.quantize(source, biases_feeds(), target_device=target), biases_feeds(), tmp_path)


@pytest.mark.parametrize(
    "weights, activations",
    [
        *(("asymmetric", None), ("per tensor", None), (4, None), (16, None), (None, 16), (16, 16), (4, 16)),
        *(("e4m3", "e4m3"), ("e5m2", "e5m2"), (None, "e4m3")),
    ],
)
def test_a_bias_overflows_for_no_type(weights, activations, tmp_path):
    source = biases_network()
    simulated = jaxq.quantize(source, biases_feeds(), advanced_parameters=options(weights, activations))
    check(source, simulated, biases_feeds(), tmp_path)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_level_computes_what_is_simulated(name, tmp_path):
    check(NETWORKS[name][0](), quantized(name), samples(name, 4, first=50), tmp_path)


@pytest.mark.parametrize("target", ["onnxruntime-avx2", "openvino", "tensorrt", "ascend", "any", "qnn"])
def test_every_level_computes_what_is_simulated_for_other_targets(target, tmp_path):
    source, feeds = NETWORKS["residual"][0](), samples("residual", 12)
    check(source, jaxq.quantize(source, feeds, target_device=target), feeds, tmp_path)


@pytest.mark.parametrize("weights, activations", [(None, 16), (16, 16), (4, None), ("e4m3", "e4m3"), ("e5m2", "e5m2")])
@pytest.mark.parametrize("name", ["residual", "transformer"])
def test_every_level_computes_what_is_simulated_for_other_types(name, weights, activations, tmp_path):
    source, advanced = NETWORKS[name][0](), options(weights, activations)
    check(source, jaxq.quantize(source, samples(name, 8), advanced_parameters=advanced), samples(name, 4, 50), tmp_path)


GRIDS = {
    f"{grid}": grid
    for grid in (
        *(IntType(bits, signed) for bits in (4, 8, 16) for signed in (True, False)),
        *(IntType(8, narrow=True), IntType(7), IntType(12), IntType(7, signed=False), IntType(3)),
        *(E4M3, E5M2),
    )
}


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_what_is_not_finite_is_rounded_as_by_the_runtime(grid, tmp_path):
    """At every place of vectors and of what is left over of them; in the file, in the simulation, and in the file read back."""
    middle = 0 if isinstance(grid, FloatType) or grid.signed else (grid.qmax + 1) // 2
    encoding = QuantParams.of(np.full(1, 0.5), middle, grid)
    simulated = jaxq.load(written("(float[N] x) => (float[N] y) { y = Neg (x) }")).replace(encodings={"x": encoding})
    jaxq.save(simulated, tmp_path / "model.onnx")
    values = [np.nan, -np.nan, 1] if isinstance(grid, IntType) and grid.bits == 4 else [np.nan, np.inf, -np.inf, 1]
    feeds = [{"x": np.resize(np.float32(values), length)} for length in (1, 2, 37)]
    back = jaxq.load(tmp_path / "model.onnx")
    for feed, found in zip(feeds, run_at(tmp_path / "model.onnx", "DISABLE_ALL", feeds), strict=True):
        np.testing.assert_array_equal(simulated(feed)["y"], found["y"])
        np.testing.assert_array_equal(back(feed)["y"], found["y"])
        assert np.isnan(found["y"]).any() == isinstance(grid, FloatType)
        np.testing.assert_array_equal(-fake_quantize_array(feed["x"], encoding), found["y"])
