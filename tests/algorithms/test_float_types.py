"""Models of 16-bit and 64-bit floats: quantized like the same model in float32, their inputs and outputs as they were."""

from collections import Counter

import numpy as np
import onnx
import pytest
from float_types import between_casts, feed_in, in_type
from models import NETWORKS, residual_network, samples, smooth, written
from onnx import TensorProto

import jaxq
from jaxq.algorithms.float_types import float_types, in_float32, to_replace
from jaxq.algorithms.weight_compression import not_below
from jaxq.analysis.inspect import summarize
from jaxq.errors import JaxqWarning, ModelError
from jaxq.onnx_io.load import load
from jaxq.onnx_io.save import to_proto
from jaxq.options import AdvancedQuantizationParameters
from jaxq.placement.fates import SUMMED

ort = pytest.importorskip("onnxruntime")
HALF, BRAIN, DOUBLE, FLOAT = TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE, TensorProto.FLOAT
UNCORRECTED = AdvancedQuantizationParameters(disable_bias_correction=True)
RANDOM = np.random.default_rng(0)
W, V = (RANDOM.normal(size=(16, 16)).astype(np.float32) for _ in range(2))


def quantized_in(proto: onnx.ModelProto, name: str, kind: int, **options) -> jaxq.Model:
    """The network quantized with its samples in that type; a warning names the type."""
    data = [feed_in(each, kind) for each in samples(name, 12)]
    with pytest.warns(JaxqWarning, match=f"computes in {'float16' if kind == HALF else 'float64'}, "):
        return jaxq.quantize(proto, data, **options)


def kernels(path, optimized) -> Counter[str]:
    """Operators of the file as the runtime runs it, without conversions at its ends."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(optimized)
    options.log_severity_level = 4
    ort.InferenceSession(str(path), options)
    found = Counter(node.op_type for node in onnx.load(optimized).graph.node)
    del found["Cast"]
    return found


def check_ends(proto: onnx.ModelProto, path) -> None:
    """The file's inputs and outputs are those of the float model, and its types fit."""
    made = onnx.load(path)
    for before, after in ((proto.graph.input, made.graph.input), (proto.graph.output, made.graph.output)):
        for old, new in zip(before, after, strict=True):
            assert (old.name, old.type.tensor_type.elem_type) == (new.name, new.type.tensor_type.elem_type)
    onnx.checker.check_model(made, full_check=True)


# --------------------------------------------------------------------------------------------------------------- float16


@pytest.mark.parametrize("name, mixed", [("residual", ("Relu", "GlobalAveragePool", "Add")), ("transformer", ())])
def test_a_model_of_16_bits_runs_on_the_same_kernels_as_that_of_32(tmp_path, name, mixed):
    base = NETWORKS[name][0]()
    proto = between_casts(base, HALF, mixed)
    model = quantized_in(proto, name, HALF)
    jaxq.save(model, tmp_path / "half.onnx")
    jaxq.save(jaxq.quantize(base, samples(name, 12)), tmp_path / "single.onnx")
    check_ends(proto, tmp_path / "half.onnx")
    assert kernels(tmp_path / "half.onnx", tmp_path / "a") == kernels(tmp_path / "single.onnx", tmp_path / "b")
    feed = feed_in(samples(name, 1)[0], HALF)
    runtime = ort.InferenceSession(str(tmp_path / "half.onnx"))
    for output, value in zip(model.outputs, runtime.run(list(model.outputs), feed), strict=True):
        assert value.dtype == np.float16
        exact = np.asarray(load(proto)(feed)[output], np.float32)
        assert np.asarray(model(feed)[output]).dtype == np.float16
        np.testing.assert_allclose(value, np.asarray(model(feed)[output]), atol=2e-3)
        assert np.abs(value - exact).max() < 0.1 * max(np.abs(exact).max(), 1)
    assert jaxq.verify(tmp_path / "half.onnx", [feed_in(each, HALF) for each in samples(name, 4)]).ok


def test_a_node_of_16_bits_that_is_ignored_stays_in_float(tmp_path):
    proto = in_type(residual_network(), HALF)
    model = quantized_in(proto, "residual", HALF, ignored_scope=jaxq.IgnoredScope(names=("Conv_stem",)))
    jaxq.save(model, tmp_path / "m.onnx")
    assert kernels(tmp_path / "m.onnx", tmp_path / "o")["QLinearConv"] == 2
    assert model.metadata["jaxq.in_float32"] == "float16"


def test_accuracy_control_takes_a_model_of_16_bits():
    proto = in_type(residual_network(), HALF)
    data = [feed_in(each, HALF) for each in samples("residual", 12)]
    with pytest.warns(JaxqWarning, match="computes in float16"):
        model = jaxq.quantize_with_accuracy_control(proto, data, data, max_drop=0.5)
    assert model.encodings
    assert np.asarray(model(data[0])["scores"]).dtype == np.float16


@pytest.mark.parametrize("kind", [HALF, BRAIN, DOUBLE])
def test_inspecting_foretells_the_same_as_for_32_bits(kind):
    single = summarize(load(residual_network()), "onnxruntime")
    assert summarize(load(in_type(residual_network(), kind)), "onnxruntime").fates == single.fates


# ------------------------------------------------------------------------------------------------------ the same in float32


@pytest.mark.parametrize("kind, close", [(HALF, 2e-2), (BRAIN, 2e-1), (DOUBLE, 1e-5)])
@pytest.mark.parametrize("name", ["residual", "branching"])
def test_a_model_in_float32_computes_the_same(name, kind, close):
    proto = in_type(NETWORKS[name][0](), kind)
    model = load(proto)
    again = load(to_proto(in_float32(model, to_replace(model))))
    assert again.inputs == model.inputs
    assert again.outputs == model.outputs
    feed = feed_in(samples(name, 1)[0], kind)
    for output, value in again(feed).items():
        np.testing.assert_allclose(
            np.asarray(value, np.float64), np.asarray(model(feed)[output], np.float64), atol=close
        )


def test_inputs_and_weights_that_are_outputs_keep_type_and_value():
    proto = in_type(
        written("(float[N, 16] x) => (float[N, 16] y, float[16, 16] w, float[N, 16] x) { y = MatMul (x, w) }", w=W),
        HALF,
    )
    model = load(proto)
    changed = in_float32(model, {"float16"})
    x = smooth(2, 16).astype(np.float16)
    found = changed([x])
    assert {name: np.asarray(value).dtype.name for name, value in found.items()} == dict.fromkeys("ywx", "float16")
    np.testing.assert_array_equal(found["w"], W.astype(np.float16))
    np.testing.assert_array_equal(found["x"], x)


# --------------------------------------------------------------------------------------------------------------- float64

SIDE = """(float[N, 16] x) => (float[N, 16] y) {
    [single] t = MatMul (x, w)  d = Cast <to = 11> (x)  [double] e = MatMul (d, v)  f = Cast <to = 1> (e)  y = Add (t, f)
}"""


def test_a_part_in_float64_stays_so_and_is_named(tmp_path):
    proto = written(SIDE, w=W, v=V.astype(np.float64))
    data = [smooth(4, 16, seed=seed) for seed in range(4)]
    with pytest.warns(
        JaxqWarning, match="1 node.s. compute in float64, which nothing quantizes, and stay in float, first 'double'"
    ):
        model = jaxq.quantize(proto, data)
    assert {"x", "w"} <= {name.split("@")[0] for name in model.encodings}
    assert model.encodings.keys().isdisjoint("vde")
    jaxq.save(model, tmp_path / "m.onnx")
    check_ends(proto, tmp_path / "m.onnx")
    found = ort.InferenceSession(tmp_path / "m.onnx").run(None, {"x": data[0]})[0]
    np.testing.assert_allclose(found, data[0] @ W + data[0] @ V, atol=0.3)
    # of the other one and the Add of its result ONNX Runtime makes a Gemm, with a summand in float
    assert summarize(load(proto), "onnxruntime").fates["MatMul"] == {SUMMED: 1, "float: it computes in float64": 1}


BRANCHES = """(float[N, 16] x, bool c) => (float[N, 16] y) {
    t = MatMul (x, w)
    y = If (c) <
        then_branch = then () => (float[N, 16] p) { d = Cast <to = 11> (t)  e = MatMul (d, v)  p = Cast <to = 1> (e) },
        else_branch = otherwise () => (float[N, 16] q) { q = MatMul (t, u) }
    >
}"""


def test_a_branch_in_float64_stays_so(tmp_path):
    proto = written(BRANCHES, w=W, v=V.astype(np.float64), u=V)
    data = [{"x": smooth(2, 16, seed=seed), "c": np.array(seed % 2 == 0)} for seed in range(6)]
    with pytest.warns(JaxqWarning, match="float64"):
        model = jaxq.quantize(proto, jaxq.Dataset(data, batch_axis=None), advanced_parameters=UNCORRECTED)
    assert {"w", "u"} <= model.encodings.keys()
    assert "v" not in model.encodings
    jaxq.save(model, tmp_path / "m.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "m.onnx"), full_check=True)
    runtime = ort.InferenceSession(tmp_path / "m.onnx")
    for feed in data[:2]:
        np.testing.assert_allclose(runtime.run(None, feed)[0], model(feed)["y"], atol=1e-3)


def test_smoothing_a_product_in_float64_keeps_its_type(tmp_path):
    proto = written(SIDE, w=W, v=V.astype(np.float64))
    spread = np.exp(np.linspace(-3, 3, 16)).astype(np.float32)
    with pytest.warns(JaxqWarning, match="float64"):
        model = jaxq.quantize(proto, [smooth(4, 16, seed=seed) * spread for seed in range(4)], model_type="transformer")
    jaxq.save(model, tmp_path / "m.onnx")
    ort.InferenceSession(tmp_path / "m.onnx")


def test_a_model_in_float64_throughout_is_quantized_in_float32(tmp_path):
    proto = in_type(written("(float[N, 16] x) => (float[N, 16] y) { t = MatMul (x, w)  y = Relu (t) }", w=W), DOUBLE)
    data = [smooth(4, 16, seed=seed).astype(np.float64) for seed in range(4)]
    with pytest.warns(JaxqWarning, match="the model computes in float64"):
        model = jaxq.quantize(proto, data)
    jaxq.save(model, tmp_path / "m.onnx")
    check_ends(proto, tmp_path / "m.onnx")
    found = ort.InferenceSession(tmp_path / "m.onnx").run(None, {"x": data[0]})[0]
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, np.maximum(data[0] @ W, 0), atol=0.2)


def test_a_model_with_nothing_but_products_in_float64_is_refused_with_the_reason():
    text = SIDE.replace("[single] t = MatMul (x, w)", "t = Neg (x)")
    with pytest.raises(ModelError, match="in float64: 1, which nothing quantizes"):
        jaxq.quantize(written(text, v=V.astype(np.float64)), [smooth(4, 16)])


def test_types_are_found_wherever_they_stand():
    assert float_types(load(written(SIDE, w=W, v=V.astype(np.float64)))) == {"float32", "float64"}
    assert to_replace(load(written(SIDE, w=W, v=V.astype(np.float64)))) == frozenset()
    assert to_replace(load(in_type(residual_network(), DOUBLE))) == {"float64"}
    assert to_replace(load(between_casts(residual_network(), HALF, ("Relu",)))) == {"float16"}
    assert to_replace(load(residual_network())) == frozenset()


# ---------------------------------------------------------------------------------------------------------- weights alone

FEED_FORWARD = """(float16[N, 64] x, int64[M] i) => (float16[N, 8] y, float16[M, 64] e) {
    t = Gemm <transB = 1> (x, a)  r = Relu (t)  y = MatMul (r, w)  e = Gather (table, i)
}"""


def half(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float16)


@pytest.mark.parametrize("options", [
    {"mode": "int8_asym"}, {"mode": "int8_sym"}, {"mode": "int4_sym", "group_size": 32, "all_layers": True},
    {"mode": "int4_asym", "group_size": 32, "all_layers": True, "gptq": True}], ids=lambda each: each["mode"])  # fmt: skip
def test_weights_of_16_bits_are_compressed_as_they_are(tmp_path, options):
    proto = written(FEED_FORWARD, a=half(64, 64), w=half(64, 8) * np.float16(1e-3), table=half(10, 64))
    feed = {"x": smooth(3, 64).astype(np.float16), "i": np.array([1, 9])}
    data = {"dataset": jaxq.Dataset([feed], batch_axis=None)} if options.get("gptq") else {}
    model = jaxq.compress_weights(proto, **options, **data)
    assert model.encodings.keys() == {"a", "w", "table"}
    exact = {name: np.asarray(value, np.float32) for name, value in load(proto)(feed).items()}
    for nbits in (False, True) if "int4" in options["mode"] else (False,):
        jaxq.save(model, tmp_path / "m.onnx", matmul_nbits=nbits)
        check_ends(proto, tmp_path / "m.onnx")
        for level, close in (
            ("ORT_DISABLE_ALL", 2e-3),
            ("ORT_ENABLE_ALL", 2e-2),
        ):  # the kernels round the data to 8 bits
            settings = ort.SessionOptions()
            settings.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
            found = ort.InferenceSession(tmp_path / "m.onnx", settings).run(["y", "e"], feed)
            for name, value in zip(("y", "e"), found, strict=True):
                assert value.dtype == np.float16
                simulated = np.asarray(model(feed)[name], np.float32)
                spread = np.abs(exact[name]).max()
                assert np.abs(value - simulated).max() < close * spread
                assert np.abs(simulated - exact[name]).max() < (0.3 if "int4" in options["mode"] else 0.03) * spread


def test_weights_of_other_types_are_named_when_others_are_compressed():
    proto = written(SIDE, w=W, v=V.astype(np.float64))
    with pytest.warns(JaxqWarning, match="float64, not float32 or float16"):
        assert jaxq.compress_weights(proto).encodings.keys() == {"w"}
    with pytest.raises(ModelError, match="float64, not float32 or float16"):
        jaxq.compress_weights(
            in_type(written("(float[N, 16] x) => (float[N, 16] y) { y = MatMul (x, w) }", w=W), DOUBLE)
        )


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_scales_are_numbers_of_the_weights_type_and_cover_all(kind):
    scale = np.exp(RANDOM.uniform(-18, 4, 1000)).astype(np.float32)
    found = not_below(scale, np.dtype(kind))
    assert (found >= scale).all()
    np.testing.assert_array_equal(found, found.astype(kind).astype(np.float32))
    assert (found <= np.maximum(scale * 1.001, 6e-8) + 6e-8).all()
