"""What the report says of a file in ONNX Runtime, and what is said when it cannot be run."""

import builtins
import importlib
import json
import warnings
from dataclasses import replace

import ml_dtypes
import numpy as np
import onnx
import pytest
from models import NETWORKS, quantized, residual_network, samples, smooth, written

import jaxq
from jaxq.analysis.verdict import VerifyReport
from jaxq.analysis.verify import verify
from jaxq.errors import CalibrationError, ConfigError, InputError, JaxqWarning, ModelError, RuntimeMissingError
from jaxq.onnx_io.save import save
from jaxq.options import AdvancedQuantizationParameters
from jaxq.pipeline import quantize
from jaxq.placement.schemes import FP8QuantizationParameters
from jaxq.placement.targets import ONNXRUNTIME
from jaxq.placement.targets.installed import installed_version, limits_of
from jaxq.placement.targets.onnxruntime import FLOAT8

pytest.importorskip("onnxruntime")
MODULE = importlib.import_module("jaxq.analysis.verify")  # `jaxq.verify` is the function


@pytest.fixture(scope="module")
def report() -> VerifyReport:
    return verify(quantized("residual"), samples("residual", 5, first=50))


def test_every_output_is_compared_both_ways(report):
    assert [(each.name, each.runtime) for each in report.outputs] == [("scores", "optimized"), ("scores", "plain")]
    assert report.samples == 5


def test_the_runtime_computes_what_is_simulated(report):
    assert report.ok
    assert report.agreement == 1.0
    for each in report.outputs:
        assert each.steps <= 1
        assert each.typical_steps <= each.steps


def test_float8_is_compared_with_optimizations_in_versions_that_take_it():
    float8 = FP8QuantizationParameters()
    advanced = AdvancedQuantizationParameters(
        activations_quantization_params=float8, weights_quantization_params=float8
    )
    limited = FLOAT8 in limits_of(ONNXRUNTIME, installed_version(ONNXRUNTIME))
    with warnings.catch_warnings(record=True) as warned:
        model = quantize(residual_network(), samples("residual", 12), advanced_parameters=advanced)
    assert any("float8_e4m3fn" in str(each.message) for each in warned) is limited
    found = verify(model, samples("residual", 3, first=50))
    assert found.ok
    assert {each.runtime for each in found.outputs} == ({"plain"} if limited else {"plain", "optimized"})
    assert bool(found.refused) is limited


def test_a_file_that_the_runtime_cannot_optimize_is_compared_without(tmp_path):
    """A Clip in front of a float8 zero point ends the optimizer of every version up to 1.32."""
    text = "(float[N, 4] x) => (float[N, 4] y) { p = QuantizeLinear (x, s, z)  d = DequantizeLinear (p, s, z)  a = Add (d, d)" \
           " c = Clip (a, low, high)  q = QuantizeLinear (c, s, z)  y = DequantizeLinear (q, s, z) }"  # fmt: skip
    scalars = {"low": np.float32(0), "high": np.float32(6), "s": np.float32(0.5)}
    file = tmp_path / "clipped.onnx"
    onnx.save(written(text, 21, **scalars, z=np.zeros((), ml_dtypes.float8_e4m3fn)), file)
    found = verify(file, [{"x": np.float32([[0, 1, 2, 3]])}])
    assert [each.runtime for each in found.outputs] == ["plain"]
    assert found.ok
    assert "float8" in found.refused or "QuantizeLinear" in found.refused
    assert "note: with graph optimizations on: ONNX Runtime" in found.table()


def test_the_kernels_of_the_optimized_runtime_are_counted(report):
    assert report.integer_kernels == {"QLinearConv": 3, "QLinearAdd": 1, "QLinearGlobalAveragePool": 1, "QGemm": 1}
    assert report.float_kernels == {}


def test_kernels_inside_of_branches_are_counted():
    found = verify(quantized("branching"), samples("branching", 2))
    products = {**found.integer_kernels, **found.float_kernels}
    assert sum(products.values()) == 5  # two convolutions in each branch, and a Gemm behind them


@pytest.mark.parametrize("name", ["transformer", "free size", "fixed batch", "opset 7"])
def test_other_networks_agree_too(name):
    assert verify(quantized(name), samples(name, 3, first=50)).ok


def test_a_report_is_plain_data(report):
    found = json.loads(json.dumps(report.to_dict()))
    assert found["ok"] is True
    assert found["agreement"] == 1.0
    assert found["outputs"][0]["name"] == "scores"
    assert found["integer_kernels"]["QLinearConv"] == 3
    assert found["agrees"] is True
    assert len(found["layers"]) == 18  # eight each, and the output of each session


def test_a_report_is_printed_as_a_table(report):
    lines = replace(report, saturation="it can").table().splitlines()
    assert lines[0].split("  ")[0] == "output"
    assert [line.split()[:3] for line in lines[1:3]] == [
        ["scores", "optimized", "100.00%"],
        ["scores", "plain", "100.00%"],
    ]
    assert lines[3].startswith("integer kernels: 1 QGemm, 1 QLinearAdd, 3 QLinearConv")
    assert lines[3].endswith("products left in float: none")
    assert lines[4] == "agrees: the runtime computes what the file says (8 layers plain, 8 layers optimized)"
    assert "note: it can" in lines


def test_a_file_is_verified_as_it_lies_there(tmp_path):
    save(quantized("residual"), tmp_path / "model.onnx")
    before = (tmp_path / "model.onnx").read_bytes()
    for path in (tmp_path / "model.onnx", str(tmp_path / "model.onnx")):
        assert verify(path, samples("residual", 2)).ok
    assert (tmp_path / "model.onnx").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_a_float_model_can_be_verified_too_with_a_warning():
    with pytest.warns(JaxqWarning, match="the model is in float: it holds no quantizers, so that this says nothing"):
        found = verify(residual_network(), samples("residual", 2))
    assert found.ok
    assert found.integer_kernels == {}
    assert sum(found.float_kernels.values()) == 4


def test_batches_are_split_and_no_more_samples_are_taken_than_asked_for():
    assert verify(quantized("residual"), [smooth(4, 3, 8, 8), smooth(4, 3, 8, 8)], samples=6).samples == 6


def test_no_more_is_read_of_the_data_than_what_is_compared():
    source = iter(samples("residual", 3))
    assert verify(quantized("residual"), source, samples=2).samples == 2
    assert len(list(source)) == 1


@pytest.mark.filterwarnings("ignore:the model is in float:jaxq.errors.JaxqWarning")
def test_outputs_that_are_integers_are_compared():
    proto = written("(float[N, 4] x) => (int64[N, 1] y) { h = Relu (x)  y = ArgMax <axis = 1> (h) }")
    found = verify(proto, [smooth(3, 4)])
    assert found.ok
    assert [each.agreement for each in found.outputs] == [None, None]


def test_a_runtime_that_computes_something_else_is_found(monkeypatch):
    def wrong(path, **options):
        run = plain(path, **options)
        return lambda feed: {name: value[:, ::-1] for name, value in run(feed).items()}

    plain = MODULE.session
    monkeypatch.setattr(MODULE, "session", wrong)
    found = verify(quantized("residual"), samples("residual", 5))
    assert not found.ok
    assert found.agreement < 0.9


def test_products_that_round_their_inputs_in_the_runtime_alone_are_said(tmp_path):
    text = """(float[N, 32] x) => (float[N, 32] y) {
        d = DequantizeLinear <axis = 0, block_size = 32> (w, s, z) y = MatMul (x, d) }"""
    integers = np.random.default_rng(0).integers(-8, 8, (32, 32)).astype(ml_dtypes.int4)
    scales = {"s": np.full((1, 32), 0.1, np.float32), "z": np.zeros((1, 32), ml_dtypes.int4)}
    onnx.save(written(text, 21, w=integers, **scales), tmp_path / "model.onnx")
    found = verify(tmp_path / "model.onnx", [smooth(64, 32)])
    assert found.agrees
    assert ("rounds the inputs of 1 products to 8 bits" in found.table()) is bool(found.rounded)
    assert {layer.roundings for layer in found.layers if layer.runtime == "plain" and layer.op != "output"} == {0}


def test_what_rounds_in_the_runtime_alone_is_told_from_other_products_of_the_file(tmp_path):
    text = """(float[N, 32] x) => (float[N, 32] y, float[N, 32] z, float[N, 32] g) {
        d = DequantizeLinear <axis = 0, block_size = 32> (w, s, o) m = MatMul (x, d) y = Add (m, b)
        z = MatMul (x, v) g = Gemm (x, v, b) }"""
    random = np.random.default_rng(0)
    stored = {"w": random.integers(-8, 8, (32, 32)).astype(ml_dtypes.int4), "o": np.zeros((1, 32), ml_dtypes.int4)}
    floats = {"s": np.full((1, 32), 0.1), "v": random.normal(size=(32, 32)), "b": random.normal(size=32)}
    proto = written(text, 21, **stored, **{name: value.astype(np.float32) for name, value in floats.items()})
    onnx.save(proto, tmp_path / "model.onnx")
    found = verify(tmp_path / "model.onnx", [smooth(64, 32)])
    assert found.agrees
    roundings = {
        each.tensor: each.roundings for each in found.layers if each.runtime == "optimized" and each.op != "output"
    }
    assert roundings == {"y": found.rounded, "z": 0, "g": 0}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_runtime_that_gives_no_number_is_found_where_roundings_lie_inside_of_a_layer(tmp_path, monkeypatch, value):
    """Both the session and what is looked into give it, so that the two are the same."""

    def broken(open_):
        def opened(*args, **options):
            run = open_(*args, **options)
            return lambda feed: {
                name: np.where(np.arange(32) == 3, np.float32(value), each) for name, each in run(feed).items()
            }

        return opened

    text = """(float[N, 32] x, bool c) => (float[N, 32] y) { y = If (c) <then_branch = t () => (float[N, 32] a) {
        q = QuantizeLinear (x, s, o) d = DequantizeLinear (q, s, o) a = Mul (d, d) },
        else_branch = e () => (float[N, 32] b) { b = Identity (x) }> }"""
    proto = written(text, 21, s=np.float32(0.1), o=np.int8(0))
    onnx.save(proto, tmp_path / "model.onnx")
    feeds = [{"x": smooth(4, 32), "c": np.array(True)}]
    assert verify(tmp_path / "model.onnx", feeds).agrees
    monkeypatch.setattr(MODULE, "session", broken(MODULE.session))
    monkeypatch.setattr(MODULE.Inner, "open", broken(MODULE.Inner.open))
    found = verify(tmp_path / "model.onnx", feeds)
    assert not found.agrees
    assert {each.roundings for each in found.faults if each.op == "If"} == {1}
    assert {each.runtime for each in found.lost} == {"plain", "optimized"}


@pytest.mark.filterwarnings("ignore:the model is in float:jaxq.errors.JaxqWarning")
@pytest.mark.parametrize("name", ["bfloat16", "float8e4m3fn", "int4"])
def test_outputs_of_types_that_python_does_not_get_are_named(tmp_path, name):
    proto = written(
        f"(float[2, 4] x) => ({name}[2, 4] y) {{ y = Cast <to = {onnx.TensorProto.DataType.Value(name.upper())}> (x) }}",
        21,
    )
    onnx.save(proto, tmp_path / "model.onnx")
    with pytest.raises(ModelError, match=rf"output 'y' of .* is a tensor\({name}\), a type that numpy does not have"):
        verify(tmp_path / "model.onnx", [{"x": smooth(2, 4)}])


# ------------------------------------------------------------------------------------------------- against the float model


def test_a_wrong_scale_in_the_file_is_seen_against_the_float_model_alone(tmp_path):
    """A file that says something else is simulated as it says: the runtime computes what the file says, and that is wrong."""
    model, tensor = quantized("residual"), "image"
    each = model.encodings[tensor]
    wrong = model.replace(encodings={**model.encodings, tensor: replace(each, scale=each.scale * np.float32(0.05))})
    save(wrong, tmp_path / "wrong.onnx")
    save(model, tmp_path / "right.onnx")
    costs = {}
    for name in ("wrong", "right"):
        found = verify(tmp_path / f"{name}.onnx", samples("residual", 5), float_model=residual_network())
        assert found.agrees
        assert found.costs is not None
        costs[name] = found.costs[0]
    assert costs["right"].snr > 30 > 20 > costs["wrong"].snr
    assert costs["right"].agreement == 1.0
    assert "what quantization costs was not measured" in verify(tmp_path / "wrong.onnx", samples("residual", 2)).table()
    assert f"signal to noise {costs['right'].snr:.1f} dB against the float model" in found.table()


def test_costs_are_those_of_the_optimized_runtime():
    found = verify(quantized("residual"), samples("residual", 3), float_model=residual_network())
    reference = jaxq.load(residual_network())
    pairs = [(reference(each)["scores"], quantized("residual")(each)["scores"]) for each in samples("residual", 3)]
    noise = sum(float(np.sum((np.asarray(a) - np.asarray(b)) ** 2)) for a, b in pairs)
    wanted = 10 * np.log10(sum(float(np.sum(np.asarray(a) ** 2)) for a, _ in pairs) / noise)
    assert found.costs[0].snr == pytest.approx(wanted, abs=0.05)


def test_a_float_model_with_other_outputs_is_refused():
    with pytest.raises(ModelError, match=r"the float model has no output 'scores'; its outputs: .*'mixed'"):
        verify(quantized("residual"), samples("residual", 1), float_model=NETWORKS["transformer"][0]())


# ------------------------------------------------------------------------------------------------------- bad input


def test_without_onnxruntime_the_extra_is_named(monkeypatch):
    def absent(name, *arguments, **options):
        if name == "onnxruntime":
            raise ImportError(name)
        return plain(name, *arguments, **options)

    plain = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(
        RuntimeMissingError, match=r"ONNX Runtime, which is not installed; pip install 'jaxq\[runtime\]'"
    ):
        verify(quantized("residual"), samples("residual", 1))


def test_a_file_that_the_runtime_refuses_is_named(tmp_path):
    proto = residual_network()
    proto.ir_version = 99
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    with (
        pytest.warns(JaxqWarning),
        pytest.raises(ModelError, match=r"ONNX Runtime .* refuses '.*model\.onnx': .*IR version"),
    ):
        verify(tmp_path / "model.onnx", samples("residual", 1))


def test_no_samples_is_an_error():
    with pytest.raises(CalibrationError, match="no samples to verify with; at least one is needed"):
        verify(quantized("residual"), [])


@pytest.mark.parametrize(
    "data, message",
    [({"image": smooth(1, 3, 8, 8)}, "a mapping is one batch"), ("data.npz", "not the path 'data.npz'")],
)
def test_what_is_no_data_set_is_refused(data, message):
    with pytest.raises(ConfigError, match=message):
        verify(quantized("residual"), data)


def test_samples_that_do_not_fit_are_refused_with_both_sides():
    with pytest.raises(InputError, match=r"'image' is float32\[N, 3, 8, 8\], but float32\[1, 3, 9, 9\] was given"):
        verify(quantized("residual"), [smooth(1, 3, 9, 9)])


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(ModelError, match="no such file"):
        verify(tmp_path / "model.onnx", samples("residual", 1))
