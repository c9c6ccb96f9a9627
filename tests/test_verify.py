"""What the report says of a file in ONNX Runtime, and what is said when it cannot be run."""

import builtins
import importlib
import json
import re
import warnings
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from models import quantized, residual_network, samples, smooth, written

from jaxq.errors import CalibrationError, ConfigError, InputError, JaxqWarning, ModelError, RuntimeMissingError
from jaxq.onnx_export import save
from jaxq.options import AdvancedQuantizationParameters
from jaxq.quantize import quantize
from jaxq.schemes import FP8QuantizationParameters
from jaxq.targets import ONNXRUNTIME
from jaxq.targets.installed import installed_version, limits_of
from jaxq.targets.onnxruntime import FLOAT8
from jaxq.verify import OutputComparison, VerifyReport, as_array, compare, compare_rows, saturation, verify

pytest.importorskip("onnxruntime")
MODULE = importlib.import_module("jaxq.verify")  # `jaxq.verify` is the function


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


def test_a_report_is_printed_as_a_table(report):
    lines = replace(report, saturation="it can").table().splitlines()
    assert lines[0].split("  ")[0] == "output"
    assert [line.split()[:3] for line in lines[1:3]] == [
        ["scores", "optimized", "100.00%"],
        ["scores", "plain", "100.00%"],
    ]
    assert lines[3].startswith("integer kernels: 1 QGemm, 1 QLinearAdd, 3 QLinearConv")
    assert lines[3].endswith("products left in float: none")
    assert lines[4] == "note: it can"


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


@pytest.mark.filterwarnings("ignore:the model is in float:jaxq.errors.JaxqWarning")
def test_outputs_that_are_integers_are_compared():
    proto = written("(float[N, 4] x) => (int64[N, 1] y) { h = Relu (x)  y = ArgMax <axis = 1> (h) }")
    found = verify(proto, [smooth(3, 4)])
    assert found.ok
    assert [each.agreement for each in found.outputs] == [None, None]


# ---------------------------------------------------------------------------------------------------- the comparison


def comparison(expected, found) -> OutputComparison:
    return compare("y", "plain", [np.float32(each) for each in expected], [np.float32(each) for each in found])


def test_differences_are_in_steps_of_eight_bits_over_the_range_of_the_simulation():
    found = comparison([[[0.0, 2.55]], [[1.0, 1.0]]], [[[0.02, 2.55]], [[1.0, 1.0]]])
    np.testing.assert_allclose([found.largest, found.steps, found.typical_steps], [0.02, 2, 1], rtol=1e-5)


def test_agreement_is_the_share_of_rows_with_the_same_largest_entry():
    found = comparison([[[1, 2], [2, 1]], [[3, 1]]], [[[1, 3], [1, 2]], [[2, 1]]])
    assert found.agreement == pytest.approx((0.5 + 1) / 2)


@pytest.mark.parametrize(
    "shape, scores",
    [((2, 5), True), ((2, 5, 1, 1), True), ((2, 1), False), ((2, 5, 3), False), ((5,), False), ((), False)],
)
def test_class_scores_are_rows_of_several_numbers(shape, scores):
    value = np.zeros(shape)
    assert (comparison([value], [value]).agreement is not None) is scores


@pytest.mark.parametrize(
    "expected, found, share",
    [
        ([[0, 0], [9, 9]], [[9, 9], [0, 0]], 1.0),  # the order does not count
        ([[0, 0], [9, 9]], [[0, 0]], 2 / 3),
        ([[0, 0, 255], [9, 9, 9]], [[0, 0], [9, 9]], 4 / 5),  # columns, as NonZero gives them
        ([[0, 255]], [[0, 254.5]], 1.0),  # within a step
        ([[0, 255]], [[0, 253]], 0.5),
        (np.zeros((0, 2)), [[0, 255]], 0.0),
        (np.zeros((0, 2)), np.zeros((0, 2)), 1.0),
        ([1.0, 255], 1.0, 2 / 3),  # another rank
    ],
)
def test_rows_are_compared_as_a_set(expected, found, share):
    compared = compare_rows("y", "plain", [np.float32(expected)], [np.float32(found)])
    assert compared.agreement is None
    assert compared.same_rows == pytest.approx(share)


def test_integers_must_be_the_same():
    found = compare_rows("y", "plain", [np.array([[0, 1000]])], [np.array([[0, 1001]])])
    assert found.same_rows == 0.5


def test_a_sequence_is_compared_element_by_element():
    np.testing.assert_array_equal(as_array([np.zeros((1, 2)), np.ones(1)]), [0, 0, 1])
    assert as_array([]).size == 0


def entry(**changes) -> OutputComparison:
    return replace(OutputComparison("y", "plain", 0.0, 0.0, 0.0, None), **changes)


@pytest.mark.parametrize(
    "outputs, ok",
    [
        ([entry(agreement=0.996, typical_steps=3.0)], True),
        ([entry(agreement=0.99, typical_steps=0.5)], True),
        ([entry(agreement=0.99, typical_steps=1.5)], False),
        ([entry(typical_steps=0.9, steps=30.0)], True),
        ([entry(typical_steps=1.1)], False),
        ([entry(typical_steps=float("nan"))], False),
        ([entry(), entry(typical_steps=2.0)], False),
        ([entry(), entry(runtime="optimized", typical_steps=2.0)], True),
    ],
)
def test_the_verdict_is_about_the_plain_runtime(outputs, ok):
    assert VerifyReport(1, tuple(outputs), {}, {}, "").ok is ok


def test_a_runtime_that_computes_something_else_is_found(monkeypatch):
    def wrong(path, *, optimized):
        run = plain(path, optimized=optimized)
        return lambda feed: {name: value[:, ::-1] for name, value in run(feed).items()}

    plain = MODULE.session
    monkeypatch.setattr(MODULE, "session", wrong)
    found = verify(quantized("residual"), samples("residual", 5))
    assert not found.ok
    assert found.agreement < 0.9


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


# -------------------------------------------------------------------------------------------------------- the machine


@pytest.mark.parametrize(
    "machine, flags, words",
    [
        ("aarch64", "", None),
        ("x86_64", "flags: avx2 avx512_vnni", None),
        ("AMD64", "flags: avx2 avx_vnni", None),
        ("x86_64", "flags: avx2", ".* no VNNI: .* can saturate, .*"),
        ("x86_64", None, ".* features are unknown; .*"),
    ],
)
def test_a_machine_whose_kernels_can_saturate_is_known(monkeypatch, machine, flags, words):
    def read_text(self, *_, **__):
        if flags is None:
            raise FileNotFoundError(self)
        return flags

    monkeypatch.setattr(MODULE.platform, "machine", lambda: machine)
    monkeypatch.setattr(Path, "read_text", read_text)
    assert re.fullmatch(words or "", saturation())
