import json

import numpy as np
import onnx
import pytest
from accuracy_models import chain, images, labelled

import jaxq
from jaxq.accuracy.options import MetricOptions, read_section
from jaxq.errors import AccuracyError, ConfigError, JaxqWarning
from jaxq.run import run_file


def test_names_of_pot_and_of_nncf_are_the_same_arguments():
    pot = {"maximal_drop": 0.005, "max_iter_num": 30, "metrics": [{"name": "accuracy", "baseline_value": 0.72}],
           "annotation_conf_threshold": 0.6, "base_algorithm": "DefaultQuantization"}  # fmt: skip
    limits = read_section(pot)
    assert limits.max_drop == 0.005
    assert limits.parameters.max_num_iterations == 30
    assert limits.parameters.metrics == (MetricOptions("top1", 0.72),)
    assert limits.validation is None
    assert read_section({"max_drop": 0.005}).max_drop == 0.005


def test_annotation_free_keeps_the_metrics_and_not_what_they_were_with_labels():
    pot = {"annotation_free": True, "metrics": [{"name": "mean_iou", "baseline_value": 0.7}]}
    advanced = read_section(pot).parameters
    assert advanced.annotation_free
    assert advanced.metrics == (MetricOptions("miou"),)


def test_metric_and_metrics_are_not_both_taken():
    with pytest.raises(ConfigError, match=r"accuracy\.metric and accuracy\.metrics are two ways"):
        read_section({"metric": "top1", "metrics": ["top5"]})


def test_an_unknown_key_gives_the_nearest_one():
    with pytest.raises(ConfigError, match=r"accuracy\.max_dorp: unknown key; did you mean 'max_drop'"):
        read_section({"max_dorp": 0.1})


@pytest.mark.parametrize("given", ["accuracy", {"name": "accuracy"}, [{"name": "accuracy"}]])
def test_one_metric_may_stand_without_a_list(given):
    assert read_section({"metrics": given}).parameters.metrics == (MetricOptions("top1"),)


def test_one_key_under_two_names_is_refused():
    with pytest.raises(ConfigError, match=r"accuracy\.maximal_drop and accuracy\.max_drop are the same"):
        read_section({"maximal_drop": 0.01, "max_drop": 0.02})


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
