"""How a search ends: the target missed, no time left, killed or interrupted; and that it goes on where it was."""

import json

import pytest
from accuracy_models import accuracy, ruined, run

import jaxq
from jaxq import AdvancedAccuracyRestorerParameters as Parameters
from jaxq.accuracy import trials
from jaxq.errors import AccuracyError


def test_a_target_that_is_missed_is_an_error_with_the_best_model(planted):
    advanced = Parameters(restore_mode="only_activations")  # the weight is what is wrong
    with pytest.raises(AccuracyError, match="was not reached") as caught:
        run(max_drop=0.05, advanced_accuracy_restorer_parameters=advanced)
    assert caught.value.report.status == "not reached"
    assert isinstance(caught.value.best, jaxq.Model)
    assert caught.value.report.steps


def test_the_time_budget_ends_the_search_with_the_best_so_far(planted):
    with pytest.raises(AccuracyError) as caught:
        run(max_drop=0.0, advanced_accuracy_restorer_parameters=Parameters(time_budget=1e-6))
    assert len(caught.value.report.steps) == 1
    assert any(
        "1e-06 s is used up after 1 candidate: none of them is within" in each for each in caught.value.report.notes
    )
    assert "Allow more time, a larger drop" in str(caught.value)


def test_a_time_budget_that_ends_a_search_within_the_limit_says_what_was_found(planted, monkeypatch):
    def check_time(self):
        if self.reached:
            raise trials.OutOfTime

    monkeypatch.setattr(trials.Trials, "check_time", check_time)
    reports = []
    run(max_drop=0.1, reports=reports, advanced_accuracy_restorer_parameters=Parameters(time_budget=9.0))
    assert reports[-1].status == "reached"
    (note,) = [each for each in reports[-1].notes if "time budget of 9 s" in each]
    assert "within the limit with 1 of 4 layers in float, perhaps more than needed" in note
    assert "intermediate_model_dir" in note


def test_a_search_that_was_killed_goes_on_and_says_so(planted, tmp_path):
    calls = []

    class Killed(BaseException):
        """As good as SIGKILL for what is on disk."""

    def counted(model, items):
        calls.append(1)
        if len(calls) == 5:  # float, quantized, float again, and one candidate are done
            raise Killed
        return accuracy(model, items)

    advanced = Parameters(intermediate_model_dir=tmp_path / "work", prune=False)
    with pytest.raises(Killed):
        run(function=counted, max_drop=0.0, advanced_accuracy_restorer_parameters=advanced)
    assert (tmp_path / "work" / "best.onnx").is_file()
    jaxq.load(tmp_path / "work" / "best.onnx")
    known = len(json.loads((tmp_path / "work" / "state.json").read_text())["trials"])
    assert known == 2
    reports = []
    run(function=counted, max_drop=0.0, reports=reports, advanced_accuracy_restorer_parameters=advanced)
    assert any(f"{known} candidates are known already" in note for note in reports[-1].notes)
    assert [step.resumed for step in reports[-1].steps][: known + 1] == [True] * known + [False] * (
        len(reports[-1].steps) > known
    )
    again = []
    run(max_drop=0.0, reports=again, advanced_accuracy_restorer_parameters=Parameters(prune=False))
    assert [dict(step.setting) for step in again[-1].steps] == [dict(step.setting) for step in reports[-1].steps]
    assert [step.values for step in again[-1].steps] == [step.values for step in reports[-1].steps]


def test_the_state_of_another_search_is_not_taken_up(tmp_path):
    advanced = Parameters(intermediate_model_dir=tmp_path)
    run(max_drop=0.3, advanced_accuracy_restorer_parameters=advanced)
    reports = []
    run(max_drop=0.3, reports=reports, preset="performance", advanced_accuracy_restorer_parameters=advanced)
    assert any("another search" in note for note in reports[-1].notes)
    (tmp_path / "state.json").write_text("{ broken")
    run(max_drop=0.3, reports=reports, advanced_accuracy_restorer_parameters=advanced)
    assert reports[-1].status == "reached"


def test_ctrl_c_leaves_the_best_model_on_disk(planted, tmp_path):
    calls = []

    def interrupted(model, items):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return accuracy(model, items)

    reports = []
    advanced = Parameters(intermediate_model_dir=tmp_path)
    with pytest.raises(KeyboardInterrupt) as caught:
        run(function=interrupted, max_drop=0.0, reports=reports, advanced_accuracy_restorer_parameters=advanced)
    assert reports[-1].status == "interrupted"
    assert "best.onnx" in caught.value.__notes__[0]
    assert (tmp_path / "best.onnx").is_file()
    assert json.loads((tmp_path / "report.json").read_text())["status"] == "interrupted"


def test_an_interrupted_confirmation_says_where_the_best_model_is(planted, monkeypatch, tmp_path):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(trials.Trials, "confirm", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        run(max_drop=0.1, advanced_accuracy_restorer_parameters=Parameters(intermediate_model_dir=tmp_path))
    assert "best.onnx" in caught.value.__notes__[0]
    assert json.loads((tmp_path / "report.json").read_text())["status"] == "interrupted"


def test_a_float_model_below_the_target_is_said_in_plain_words():
    advanced = Parameters(metrics=({"name": "top1", "baseline_value": 2.0},))
    with pytest.raises(AccuracyError) as caught:
        run(None, None, max_drop=0.01, advanced_accuracy_restorer_parameters=advanced)
    assert str(caught.value).startswith("the float model itself is below the target")


def test_a_limit_that_only_the_float_model_keeps_is_said_to_be_one(spoilt):
    def all_ruined(base):
        for node in base.prepared.graph.nodes:
            base = ruined(base, node.name) if node.op in ("Conv", "Gemm") else base
        return base

    spoilt(all_ruined)
    reports = []
    run(max_drop=0.0, reports=reports)
    assert reports[-1].float_layers == reports[-1].weight_layers
    assert any("with every layer in float only" in note for note in reports[-1].notes)


def test_an_interrupted_search_without_a_folder_says_that_nothing_is_kept(planted, monkeypatch):
    monkeypatch.setattr(trials.Trials, "confirm", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt) as caught:
        run(max_drop=0.1)
    assert "intermediate_model_dir" in caught.value.__notes__[0]
