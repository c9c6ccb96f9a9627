import json
from dataclasses import fields

import numpy as np
import onnx
import pytest
from accuracy_models import chain, images, labelled

import jaxq
from jaxq.accuracy.options import AccuracySection, AdvancedAccuracyRestorerParameters, MetricOptions
from jaxq.errors import AccuracyError, ConfigError, JaxqWarning
from jaxq.jobs.job import job_of
from jaxq.jobs.run import run_file
from jaxq.jobs.schema import schema


def section(**given):
    return job_of({"model": "m.onnx", "data": "d.npz", "accuracy": given}, "f").accuracy


def test_names_of_pot_and_of_nncf_are_the_same_arguments():
    pot = {"maximal_drop": 0.005, "max_iter_num": 30, "metrics": [{"name": "accuracy", "type": "x", "baseline_value": 0.72}],
           "annotation_conf_threshold": 0.6, "base_algorithm": "DefaultQuantization", "time_budget": None}  # fmt: skip
    found = section(**pot)
    assert found == AccuracySection(max_drop=0.005, max_num_iterations=30, metrics=(MetricOptions("top1", 0.72),))
    parameters = AdvancedAccuracyRestorerParameters(max_num_iterations=30, metrics=(MetricOptions("top1", 0.72),))
    assert found.arguments() == {
        "max_drop": 0.005, "drop_type": "absolute", "validation_fn": None, "advanced_accuracy_restorer_parameters": parameters,
    }  # fmt: skip


def test_every_option_of_the_search_is_a_key_and_an_argument():
    options = {each.name for each in fields(AdvancedAccuracyRestorerParameters)}
    assert options <= schema()["$defs"]["AccuracySection"]["properties"].keys()
    given = {"confirm": 7, "prune": False, "restore_mode": "only_activations", "repairs": "bias_correction"}
    found = section(**given).arguments()["advanced_accuracy_restorer_parameters"]
    assert found == AdvancedAccuracyRestorerParameters(**given)


def test_annotation_free_keeps_the_metrics_and_not_what_they_were_with_labels():
    found = section(annotation_free=True, metrics=[{"name": "mean_iou", "baseline_value": 0.7}])
    assert found.annotation_free
    assert found.metrics == (MetricOptions("miou"),)


@pytest.mark.parametrize("given", ["accuracy", {"name": "accuracy"}, [{"name": "accuracy"}], ["accuracy"]])
def test_one_metric_may_stand_without_a_list(given):
    assert section(metrics=given).metrics == (MetricOptions("top1"),)


BAD = {
    "two ways to say one thing": (
        {"metric": "top1", "metrics": ["top5"]}, "accuracy.metric and metrics are two ways to say what is measured; give one"
    ),
    "one key under two names": (
        {"maximal_drop": 0.01, "max_drop": 0.02}, "accuracy.maximal_drop and max_drop are the same; give one of them"
    ),
    "unknown key": ({"max_dorp": 0.1}, "accuracy.max_dorp: unknown key; did you mean 'max_drop'?"),
    "type": ({"confirm": "all"}, 'accuracy.confirm = "all"; expected an integer'),
    "value": ({"confirm": -1}, "accuracy.confirm = -1; expected an integer of at least 0"),
    "drop": ({"max_drop": -0.5}, "accuracy.max_drop = -0.5; a drop that is allowed is 0 or more"),
    "relative drop": (
        {"max_drop": 1.0, "drop_type": "relative"}, "accuracy.max_drop = 1.0 with drop_type = 'relative' allows to lose all"
    ),
    "enumeration": ({"search": "bisekt"}, "accuracy.search = 'bisekt'; expected one of ['bisect', 'pot']; did you mean"),
    "repairs": (
        {"search": "pot", "repairs": ["bias_correction"]}, "accuracy.repairs: search = 'pot' takes layers back to float only"
    ),
    "key of a metric": ({"metrics": [{"name": "top1", "baseline": 1.0}]}, "accuracy.metrics[0].baseline: unknown key; did you"),
}  # fmt: skip


@pytest.mark.parametrize("given, message", BAD.values(), ids=BAD)
def test_what_is_wrong_is_said_with_its_place(given, message):
    with pytest.raises(ConfigError) as error:
        section(**given)
    assert str(error.value).startswith(f"f: {message}")


@pytest.fixture
def job(tmp_path):
    onnx.save(chain(), tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", image=np.concatenate(images(12)))
    feeds, labels = zip(*labelled(), strict=True)
    np.savez(tmp_path / "val.npz", image=np.concatenate([feed["image"] for feed in feeds]), label=np.array(labels))

    def write(**accuracy):
        content = {
            "model": "model.onnx",
            "data": "data.npz",
            "accuracy": {"validation": str(tmp_path / "val.npz"), **accuracy},
        }
        (tmp_path / "job.json").write_text(json.dumps(content))
        return tmp_path / "job.json"

    return write


def test_a_configuration_file_controls_the_accuracy_and_its_report_says_how(job, tmp_path):
    result = jaxq.run_config(job(metric="top1", max_drop=0.3), tmp_path / "out")
    assert json.loads(result.model.metadata["jaxq.accuracy"])["top1"][0] == 1.0
    written = json.loads((tmp_path / "out" / "model.json").read_text())
    assert written["accuracy"]["status"] == "reached"
    assert [step["what"] for step in written["accuracy"]["steps"]] == ["all layers quantized"]
    assert {each.name for each in (tmp_path / "out").iterdir()} == {"model.onnx", "model.json"}


def test_a_configuration_file_without_annotations_needs_no_labels(job, tmp_path):
    path = job(metric="top5", annotation_free=True, max_drop=0.3, validation=str(tmp_path / "data.npz"))
    jaxq.run_config(path, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "model.json").read_text())
    assert written["accuracy"]["values"] == {"top5": 1.0}
    assert written["accuracy"]["goals"][0]["baseline"] == 1.0


def test_a_target_that_is_missed_leaves_the_best_model_and_the_report_beside_the_error(job, tmp_path):
    metrics = [{"name": "top1", "baseline_value": 3.0}]
    with pytest.raises(AccuracyError, match="below the target"):
        jaxq.run_config(job(metrics=metrics, max_drop=0.1), tmp_path / "out")
    assert (tmp_path / "out" / "model.onnx").is_file()
    assert json.loads((tmp_path / "out" / "model.json").read_text())["accuracy"]["status"] == "not reached"


def test_a_job_that_was_interrupted_leaves_the_best_model_and_goes_on_when_run_again(job, tmp_path):
    path = job(metric="top1", max_drop=0.3)

    def interrupt(report):
        if report.steps and report.status == "running":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        run_file(path, tmp_path / "out", interrupt)
    assert "model.onnx.search" in caught.value.__notes__[0]
    assert "jaxq.accuracy" in jaxq.load(tmp_path / "out" / "model.onnx").metadata
    with pytest.warns(JaxqWarning, match="1 candidate is known already"):
        result, missed = run_file(path, tmp_path / "out")
    assert missed is None
    assert result.report["accuracy"]["steps"][0]["resumed"]
    assert not (tmp_path / "out" / "model.onnx.search").exists()
