"""jaxq's own configuration: a call can be written and read back, and what is wrong is said with its place."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from jaxq.accuracy.options import AccuracySection
from jaxq.data import ImageOptions
from jaxq.errors import ConfigError
from jaxq.graph.select import IgnoredScope, Operation, Subgraph
from jaxq.jobs.job import DataOptions, Job, job_of, of_call, options_of, read_job, write_job
from jaxq.jobs.json_text import parse_json
from jaxq.jobs.pot_job import is_pot, job_of_pot
from jaxq.numerics.estimators import RangeEstimatorParameters, StatisticsCollectorParameters
from jaxq.options import AdvancedBiasCorrectionParameters, AdvancedQuantizationParameters, QuantizeOptions
from jaxq.placement.schemes import FP8QuantizationParameters, Override, QuantizationParameters

EVERYTHING = QuantizeOptions(
    preset="mixed",
    target_device="openvino",
    subset_size=None,
    fast_bias_correction=False,
    model_type="transformer",
    ignored_scope=IgnoredScope(
        names=("a",), patterns=("b.*",), types=("Add",), subgraphs=(Subgraph("c", "d"),),
        operations=(Operation("Conv", {"group": 2, "strides": [1, 1]}),), validate=False,
    ),
    advanced_parameters=AdvancedQuantizationParameters(
        overflow_fix="enable",
        quantize_outputs=True,
        disable_channel_alignment=False,
        activations_quantization_params=QuantizationParameters(num_bits=8, mode="asymmetric"),
        weights_quantization_params=FP8QuantizationParameters(destination_type="f8e5m2"),
        overrides=(Override(names="e", weights=QuantizationParameters(num_bits=4)),),
        quantizer_propagation_rule="do_not_merge_branches",
        activations_range_estimator_params="entropy",
        weights_range_estimator_params=RangeEstimatorParameters(max=StatisticsCollectorParameters("quantile", "max", 2.0, 1e-3)),
        bias_correction_params=AdvancedBiasCorrectionParameters(threshold=3.0),
        backend_params={"external_data_dir": "/x"},
    ),
    seed=3,
    batch_size=4,
)  # fmt: skip
OPTIONS = {"defaults": QuantizeOptions(), "everything": EVERYTHING}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_call_that_is_written_is_read_back_as_it_was(options, tmp_path):
    job = of_call(
        "model.onnx", "photos", options, images=ImageOptions(resize=256, mean=(1.0, 2.0, 3.0)), batch_axis=None
    )
    write_job(job, tmp_path / "job.json")
    assert read_job(tmp_path / "job.json") == job


def test_what_has_its_default_is_not_written(tmp_path):
    write_job(of_call("model.onnx", "samples.npz"), tmp_path / "job.json")
    assert json.loads((tmp_path / "job.json").read_text()) == {"model": "model.onnx", "data": "samples.npz"}


def test_paths_are_written_relative_to_the_file(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "m.onnx").write_bytes(b"")
    write_job(of_call(tmp_path / "models" / "m.onnx", "my_data:load"), tmp_path / "job.json")
    assert json.loads((tmp_path / "job.json").read_text()) == {"model": "models/m.onnx", "data": "my_data:load"}


def test_limits_of_accuracy_are_written_too(tmp_path):
    (tmp_path / "val.npz").write_bytes(b"")
    limits = AccuracySection(max_drop=0.02, metric="top1", validation=str(tmp_path / "val.npz"))
    write_job(of_call("m.onnx", "d.npz", accuracy=limits), tmp_path / "job.json")
    written = json.loads((tmp_path / "job.json").read_text())["accuracy"]
    assert written == {"max_drop": 0.02, "metric": "top1", "validation": "val.npz"}
    assert read_job(tmp_path / "job.json").accuracy == replace(limits, validation="val.npz")


def test_a_job_without_quantization_is_one():
    assert job_of({"model": "m.onnx", "data": "d", "quantize": None}, "file").quantize is None


# ------------------------------------------------------------------------------------------------------------- bad input


def advanced(**values):
    return {"model": "m", "data": "d", "quantize": {"advanced_parameters": values}}


BAD = {
    "unknown key": ({"model": "m", "data": "d", "quantise": {}}, "f: quantise: unknown key; did you mean 'quantize'\\?"),
    "unknown key inside": (
        advanced(weights_quantization_params={"num_bit": 4}),
        r"f: quantize\.advanced_parameters\.weights_quantization_params\.num_bit: unknown key; did you mean 'num_bits'\?",
    ),
    "unknown key, nothing near": ({"model": "m", "data": {"source": "d", "zzz": 1}}, r"zzz: unknown key; known here: batch_axis"),
    "missing": ({"model": "m"}, "f: data is missing"),
    "wrong types, all of them": (
        {"model": 1, "data": "d", "quantize": {"subset_size": 2.5}},
        "f: model = 1; expected a string\nf: quantize.subset_size = 2.5; expected an integer",
    ),
    "an enumeration": ({"model": "m", "data": "d", "quantize": {"preset": "mixd"}}, "preset = 'mixd'; .*; did you mean 'mixed'"),
    "one bit": (
        advanced(weights_quantization_params={"num_bits": 1}),
        r"f: quantize\.advanced_parameters\.weights_quantization_params\.num_bits = 1; expected an integer from 2 to 16$",
    ),
    "an estimator by name": (advanced(activations_range_estimator_params="mes"), "= 'mes'; .*; did you mean 'mse'"),
    "an estimator": (
        advanced(activations_range_estimator_params={"max": {"statistics_type": "quantile", "quantile_outlier_prob": 0.7}}),
        r"activations_range_estimator_params\.max\.quantile_outlier_prob = 0\.7; expected at least 0 and less than 0\.5",
    ),
    "what the target forbids": (
        {"model": "m", "data": "d", "quantize": {"target_device": "tensorrt", "advanced_parameters": {
            "activations_quantization_params": {"mode": "asymmetric"}}}},
        "f: quantize.advanced_parameters.activations_quantization_params.mode = 'asymmetric'; target .* takes symmetric only",
    ),
    "no object": ([1], r"expected an object, not \[1\]"),
}  # fmt: skip


@pytest.mark.parametrize("content, message", BAD.values(), ids=BAD)
def test_wrong_files_are_refused_with_their_path(content, message):
    with pytest.raises(ConfigError, match=message):
        job_of(content, "f")


# ------------------------------------------------------------------------------------------------------------- settings


def test_settings_are_options_by_path():
    found = options_of(["preset=mixed", "subset_size=10", "advanced_parameters.smooth_quant_alphas.matmul=0.5"])
    assert (found.preset, found.subset_size) == ("mixed", 10)
    assert found.advanced_parameters.smooth_quant_alphas.matmul == 0.5
    assert options_of([]) == QuantizeOptions()


@pytest.mark.parametrize(
    "setting, message",
    [
        ("preset", "'preset' is no setting; expected key=value"),
        ("presett=mixed", "settings: quantize.presett: unknown key; did you mean 'preset'"),
        ("subset_size=ten", 'settings: quantize.subset_size = "ten"; expected an integer'),
    ],
)
def test_wrong_settings_are_refused(setting, message):
    with pytest.raises(ConfigError, match=message):
        options_of([setting])


def test_a_job_is_the_same_however_its_data_are_written():
    one, other = (job_of({"model": "m", "data": data}, "f") for data in ("d", {"source": "d"}))
    assert one == other == Job(model="m", data=DataOptions(source="d"))


def test_the_examples_of_the_documentation_are_read():
    page = (Path(__file__).parents[2] / "docs" / "config.md").read_text(encoding="utf-8")
    own, pot = (parse_json(text, "docs/config.md") for text in re.findall(r"```json\n(.*?)```", page, re.DOTALL))
    assert job_of(own, "own").quantize.advanced_parameters.overrides[0].patterns == ("layer4.*",)
    assert is_pot(pot)
    assert not is_pot(own)
    assert job_of_pot(pot, "pot")[0].quantize.subset_size == 300
