"""Running configuration files: what is written, where paths lead, and which format a file has."""

import json
import os
import re

import numpy as np
import onnx
import pytest
from models import residual_network, samples

import jaxq
from jaxq.accuracy.options import AccuracySection
from jaxq.errors import CalibrationError, ConfigError, JaxqWarning
from jaxq.jobs.run import read_any, run_config
from jaxq.onnx_io.load import load


@pytest.fixture
def folder(tmp_path):
    """A folder with a small network and twelve samples for it."""
    onnx.save(residual_network(), tmp_path / "network.onnx")
    np.savez(tmp_path / "samples.npz", image=np.concatenate([feed["image"] for feed in samples("residual", 12)]))
    return tmp_path


def written(folder, content):
    (folder / "job.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder / "job.json"


def advanced(**parameters):
    return {"quantize": {"advanced_parameters": parameters}}


FOUR = {"num_bits": 4}
JOB = {"model": "network.onnx", "data": "samples.npz"}
POT = {
    "model": {"model": "network.onnx"},
    "engine": {"data_source": "samples.npz"},
    "compression": {"algorithms": [{"name": "DefaultQuantization", "params": {"ignored": {"scope": ["Gemm_score"]}}}]},
}


def test_a_job_is_the_call_that_it_says(folder):
    options = jaxq.AdvancedQuantizationParameters(disable_bias_correction=True)
    job = JOB | {"quantize": {"preset": "performance", "advanced_parameters": {"disable_bias_correction": True}}}
    made = run_config(written(folder, job)).model
    data = jaxq.Dataset([np.load(folder / "samples.npz")["image"]])
    expected = jaxq.quantize(folder / "network.onnx", data, preset="performance", advanced_parameters=options)
    assert dict(made.metadata) == dict(expected.metadata)
    for name, each in expected.encodings.items():
        np.testing.assert_array_equal(made.encodings[name].scale, each.scale)


def test_the_model_and_a_report_are_written_into_the_folder(folder, tmp_path):
    text = '{"model": "network.onnx", // a note\n "data": "samples.npz",}'
    result = run_config(written(folder, text), tmp_path / "new" / "out")
    assert sorted(path.name for path in (tmp_path / "new" / "out").iterdir()) == ["network.json", "network.onnx"]
    assert result.path == tmp_path / "new" / "out" / "network.onnx"
    assert any(node.op == "QuantizeLinear" for node in load(result.path).graph.nodes)
    report = json.loads((tmp_path / "new" / "out" / "network.json").read_text())
    assert report == result.report
    assert report["job"]["data"] == str(folder / "samples.npz")
    assert report["metadata"]["jaxq.calibration_samples"] == "12"


def test_without_a_folder_nothing_is_written(folder):
    before = sorted(folder.iterdir())
    assert run_config(written(folder, JOB)).path is None
    assert sorted(folder.iterdir()) == sorted({*before, folder / "job.json"})


def test_a_name_is_that_of_the_files(folder, tmp_path):
    run_config(written(folder, JOB | {"name": "mine"}), tmp_path / "out")
    assert (tmp_path / "out" / "mine.onnx").is_file()


def test_paths_are_relative_to_the_file(folder, monkeypatch, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run_config(os.path.relpath(written(folder, JOB))).model.encodings


def test_the_data_that_accuracy_is_taken_on_lie_beside_the_file_too(folder):
    job, _ = read_any(written(folder, JOB | {"accuracy": {"max_drop": 0.01, "validation": "val.npz"}}))
    assert job.accuracy == AccuracySection(max_drop=0.01, validation=str(folder / "val.npz"))


def test_the_model_itself_is_not_replaced(folder):
    with pytest.raises(ConfigError, match="would replace the model itself"):
        run_config(written(folder, JOB), folder)


def test_a_model_may_stay_in_float(folder, tmp_path):
    with pytest.warns(JaxqWarning, match="leaves the whole model in float"):
        run_config(written(folder, JOB | {"quantize": None}), tmp_path / "out")
    assert not any(node.op == "QuantizeLinear" for node in load(tmp_path / "out" / "network.onnx").graph.nodes)


def test_more_samples_than_there_are_is_a_warning_only_where_the_file_says_so(folder, recwarn):
    run_config(written(folder, JOB))
    assert not [each for each in recwarn if "samples; all of them" in str(each.message)]
    with pytest.warns(
        JaxqWarning, match=r"job\.json: quantize\.subset_size = 100, but the data has 12 samples; all of them"
    ):
        run_config(written(folder, JOB | {"quantize": {"subset_size": 100}}))


@pytest.mark.parametrize(
    "content, message",
    [
        (
            POT,
            r"job\.json: compression\.algorithms\[0\]\.params\.ignored\.scope: ignored name 'Gemm_score' matches no node; did",
        ),
        (
            JOB | {"quantize": {"ignored_scope": {"types": ["Cnv"]}}},
            r"job\.json: quantize\.ignored_scope\.types: ignored type 'Cnv' matches no node; did you mean 'Conv'",
        ),
        (
            JOB | {"quantize": {"ignored_scope": {"patterns": ["layer9.*"]}}},
            r"job\.json: quantize\.ignored_scope\.patterns: ignored pattern 'layer9\.\*' matches no node of",
        ),
        (
            JOB | advanced(overrides=[{"names": ["Conv_stm"], "weights": FOUR}]),
            r"job\.json: quantize\.advanced_parameters\.overrides\[0\]\.names: 'Conv_stm' matches no node; did you mean",
        ),
        (
            JOB | advanced(overrides=[{"types": ["Gemm"], "weights": FOUR}, {"patterns": ["Cnv.*"], "weights": FOUR}]),
            r"job\.json: quantize\.advanced_parameters\.overrides\[1\]\.patterns: 'Cnv\.\*' matches no node of",
        ),
        (
            JOB | advanced(overrides=[{"types": ["Conv"], "activations": {"per_channel": True}}]),
            r"job\.json: quantize\.advanced_parameters\.overrides\[0\]\.activations\.per_channel = True; target",
        ),
        ([1], r"job\.json: expected an object in braces, not list"),
        ({"model": {"model": "x"}}, "job.json: model = .*; expected a string"),
    ],
    ids=[
        "POT",
        "type",
        "pattern",
        "name of an override",
        "pattern of an override",
        "grid of an override",
        "list",
        "half a POT file",
    ],
)
def test_what_is_wrong_is_said_with_its_place(folder, content, message):
    with pytest.raises(ConfigError, match=message):
        run_config(written(folder, content))


PARAMS = ("compression", "algorithms", 0, "params")


@pytest.mark.parametrize(
    "content, path",
    [
        (JOB | advanced(overrides=[{"names": ["Conv_stm"], "weights": FOUR}]),
         ("quantize", "advanced_parameters", "overrides", 0, "names")),
        (JOB | advanced(overrides=[{"types": ["Conv"], "weights": {"num_bits": 1}}]),
         ("quantize", "advanced_parameters", "overrides", 0, "weights", "num_bits")),
        (JOB | {"quantize": {"preset": 3}}, ("quantize", "preset")),
        (JOB | {"accuracy": {"max_drop": 0.1, "maximal_drop": 0.1}}, ("accuracy", "maximal_drop")),
        (JOB | {"accuracy": {"metric": "top_1"}}, ("accuracy", "metric")),
        (JOB | {"data": "nowhere.npz"}, ("data", "source")),
        (POT, (*PARAMS, "ignored", "scope")),
    ],
    ids=["run", "check", "type", "twice", "metric", "data", "POT"],
)  # fmt: skip
def test_errors_have_the_path_in_the_file(folder, content, path):
    with pytest.raises(jaxq.JaxqError) as raised:
        run_config(written(folder, content))
    assert raised.value.path == path
    assert str(raised.value).startswith(f"{folder / 'job.json'}: ")


POT_WITHOUT_MISTAKES = POT | {"compression": {"algorithms": [{"name": "DefaultQuantization"}]}}


@pytest.mark.parametrize(
    "content, place",
    [
        (JOB | {"data": "spoilt.npz"}, "data.source"),
        (POT_WITHOUT_MISTAKES | {"engine": {"data_source": "spoilt.npz"}}, "engine.data_source"),
    ],
    ids=["jaxq", "POT"],
)
def test_a_sample_that_is_no_number_is_said_with_the_place_of_the_data(folder, content, place):
    images = np.load(folder / "samples.npz")["image"]
    images[3] = np.nan
    np.savez(folder / "spoilt.npz", image=images)
    message = f"job.json: {place}: calibration sample 3 (counted from 0): input 'image' holds NaN"
    with pytest.raises(CalibrationError, match=re.escape(message)):
        run_config(written(folder, content))


@pytest.mark.parametrize("key, place", [("validation", "accuracy.validation"), (None, "data.source")])
def test_a_validation_sample_that_is_no_number_is_said_with_the_place_of_its_data(folder, key, place):
    images = np.load(folder / "samples.npz")["image"]
    np.savez(folder / "labelled.npz", image=images, label=np.zeros(12, np.int64))
    images[3] = np.inf
    np.savez(folder / "spoilt.npz", image=images, label=np.zeros(12, np.int64))
    accuracy = {"metric": "top1", **({key: "spoilt.npz"} if key else {})}
    data = "labelled.npz" if key else "spoilt.npz"
    what = "validation" if key else "calibration"
    with pytest.raises(CalibrationError, match=rf"job\.json: {re.escape(place)}: {what} sample 3 .*holds infinity"):
        run_config(written(folder, JOB | {"data": data, "accuracy": accuracy}))


def test_data_without_samples_are_said_with_their_place(folder):
    (folder / "no_samples.py").write_text("def load():\n    return []\n")
    with pytest.raises(CalibrationError, match=r"job\.json: data\.source: the calibration data is empty"):
        run_config(written(folder, JOB | {"data": "no_samples:load"}))


def test_a_module_beside_the_file_that_cannot_be_imported_is_said_with_its_place(folder):
    (folder / "torn_samples.py").write_text("raise OSError('no such disk')\n")
    message = (
        r"job\.json: data\.source: 'torn_samples:load': module 'torn_samples' cannot be imported: OSError: no such"
    )
    with pytest.raises(ConfigError, match=message):
        run_config(written(folder, JOB | {"data": "torn_samples:load"}))


@pytest.mark.parametrize(
    "accuracy, message",
    [
        ({"metric": "top_1"}, "accuracy.metric = 'top_1'; expected one of .*did you mean 'top1'"),
        ({"metrics": ["mse", "top_1"]}, "accuracy.metrics[1].name = 'top_1'; expected one of .*did you mean 'top1'"),
        (
            {"metric": "no_such_module:f"},
            "accuracy.metric: 'no_such_module:f': module 'no_such_module' cannot be imported",
        ),
    ],
)
def test_metrics_that_there_are_not_are_refused_before_anything_is_loaded(folder, accuracy, message):
    content = JOB | {"model": "nowhere.onnx", "accuracy": accuracy}
    with pytest.raises(ConfigError, match=r"job\.json: " + ".*".join(map(re.escape, message.split(".*")))):
        run_config(written(folder, content))


def test_missing_validation_data_are_said_with_their_place(folder):
    content = JOB | {"accuracy": {"max_drop": 0.01, "validation": "nothing.npz"}}
    with pytest.raises(CalibrationError, match=r"job\.json: accuracy\.validation: no such file or folder of data"):
        run_config(written(folder, content))


def test_a_missing_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read '.*nowhere\.json'"):
        run_config(tmp_path / "nowhere.json")
