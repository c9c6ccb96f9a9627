"""The whole of `quantize_with_accuracy_control` on a small classifier."""

import contextlib
import json
import math
import sys
import warnings
from types import ModuleType

import jax
import numpy as np
import pytest
from accuracy_models import MINMAX, accuracy, base_of, chain, images, labelled, picking, prepared, ruined
from compilations import compilations
from models import integer_network

import jaxq
from jaxq import AdvancedAccuracyRestorerParameters as Parameters
from jaxq.accuracy import candidates, control, rankings
from jaxq.accuracy.base import ASKED_FOR, quantize_once
from jaxq.accuracy.by_function import FunctionValidation
from jaxq.accuracy.ranking import Ranker
from jaxq.accuracy.space import FLOAT, QUANTILES, WEIGHTS, Space
from jaxq.errors import AccuracyError, CalibrationError, ConfigError, JaxqError, JaxqWarning, ModelError

BAD = "Conv_conv1"


@pytest.fixture
def planted(monkeypatch):
    """One layer of the quantized model has absurd ranges."""
    monkeypatch.setattr(control, "open_base", lambda given, *rest: ruined(control_base(given, *rest), BAD))


def control_base(given, estimators, state):
    return quantize_once(given, estimators)


def run(validation=None, function=accuracy, *, model=None, reports=None, **options):
    data = list(labelled()) if validation is None else validation
    keep = reports.append if reports is not None else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", JaxqWarning)
        return jaxq.quantize_with_accuracy_control(
            chain() if model is None else model,
            images(12),
            data,
            function,
            on_step=keep,
            advanced_quantization_parameters=MINMAX,
            **options,
        )


# ------------------------------------------------------------------------------------------------------- what it reaches


def test_a_model_within_the_limit_is_quantized_in_all_layers():
    reports = []
    model = run(max_drop=0.2, reports=reports)
    assert reports[-1].status == "reached"
    assert [step.what for step in reports[-1].steps] == ["all layers quantized"]
    assert model.encodings.keys() == jaxq.quantize(chain(), images(12)).encodings.keys()


@pytest.mark.parametrize("ranking", ["alone", "gradient", "exact"])
@pytest.mark.parametrize("function", [accuracy, "top1", None], ids=["function", "metric", "label-free"])
def test_a_layer_with_absurd_ranges_is_found_and_reverted_first(planted, ranking, function):
    reports = []
    data = [feed for feed, _ in labelled()] if function is None else None
    run(
        data, function, max_drop=0.1, reports=reports, advanced_accuracy_restorer_parameters=Parameters(ranking=ranking)
    )
    report = reports[-1]
    assert report.status == "reached"
    assert dict(report.steps[1].setting) == {BAD: FLOAT}
    assert [(each.layer, each.rank) for each in report.kept] == [(BAD, 1)]
    assert report.float_layers == 1


def sum_of_picked(model, items):
    """A validation function for `picking()`: near to what the float model says, higher is better."""
    each = [-abs(float(np.asarray(model(feed)["values"]).sum()) - wanted) for feed, wanted in items]
    return 100 + float(np.mean(each)), each


def error_of_picked(outputs, targets):
    """The same as a metric by name, lower is better."""
    each = [abs(float(found["values"].sum()) - wanted) for found, wanted in zip(outputs, targets, strict=True)]
    return 1 + float(np.mean(each)), each


error_of_picked.higher_is_better = False


@pytest.mark.parametrize("function", [sum_of_picked, "picked_metric:error_of_picked", None])
def test_outputs_whose_shapes_depend_on_the_data_are_compared(planted, monkeypatch, function):
    """Quantization changes how many scores are positive."""
    metric = ModuleType("picked_metric")
    metric.error_of_picked = error_of_picked
    monkeypatch.setitem(sys.modules, "picked_metric", metric)
    float_model = jaxq.load(picking())
    feeds = [{"image": each} for each in images(8, 100)]
    wanted = [float(float_model(feed)["values"].sum()) for feed in feeds]
    reports = []
    data = feeds if function is None else list(zip(feeds, wanted, strict=True))
    run(data, function, model=picking(), max_drop=0.1 if function is None else 0.5, reports=reports)
    assert [dict(step.setting) for step in reports[-1].steps] == [{}, {BAD: FLOAT}]
    assert reports[-1].status == "reached"
    assert reports[-1].runtime_values == pytest.approx(reports[-1].values, abs=0.1)


def test_several_metrics_take_the_float_model_as_their_reference(planted):
    reports = []
    advanced = Parameters(metrics=("top1", "cosine"), annotation_free=True)
    run(
        [feed for feed, _ in labelled()],
        None,
        max_drop=0.1,
        reports=reports,
        advanced_accuracy_restorer_parameters=advanced,
    )
    assert {goal.metric: goal.baseline for goal in reports[-1].goals} == {"top1": 1.0, "cosine": pytest.approx(1.0)}
    assert [each.layer for each in reports[-1].kept] == [BAD]


def test_gradient_and_exact_ranking_name_the_same_worst_layer():
    space = Space(ruined(base_of(chain(), images(12)), BAD))
    ranker = Ranker(space, [{"image": each} for each in images(8, 50)], FLOAT)
    by_gradient, exactly = ranker.by_gradient({}), ranker.exactly({})
    assert by_gradient[0].layer == exactly[0].layer == BAD
    assert not by_gradient[0].exact
    assert exactly[0].exact
    assert {each.layer for each in by_gradient} == set(space.layers)
    assert ranker.by_gradient({}, confirm=2)[0].gain == pytest.approx(exactly[0].gain)


def test_layers_are_told_apart_where_quantization_has_broken_the_model():
    """Two bad layers: with both, taking one away alone gains nothing; each alone does harm, the others do not."""
    base = ruined(ruined(base_of(chain(5), images(12)), BAD), "Conv_conv3")
    ranker = Ranker(Space(base), [{"image": each} for each in images(4, 50)], FLOAT)
    ranked = ranker.alone({})
    assert {each.layer for each in ranked[:2]} == {BAD, "Conv_conv3"}
    assert ranked[1].gain > 10 * ranked[2].gain
    assert [each.layer for each in ranker.alone({BAD: FLOAT})] == [each.layer for each in ranked if each.layer != BAD]


def test_ranking_alone_compiles_nothing(monkeypatch):
    space = Space(base_of(chain(), images(12)))
    ranker = Ranker(space, [{"image": each} for each in images(4, 50)], FLOAT)
    ranker.divergence({})
    with compilations() as compiled:
        ranker.alone({})
    assert compiled == []


def test_no_trial_is_spent_on_a_model_that_the_ranking_says_is_broken(monkeypatch):
    def spoilt(given, *rest):
        base = control_base(given, *rest)
        for layer in ("Conv_conv0", BAD, "Conv_conv2"):
            base = ruined(base, layer)
        return base

    monkeypatch.setattr(control, "open_base", spoilt)
    reports = []
    run(max_drop=0.1, reports=reports)
    assert reports[-1].status == "reached"
    assert len(reports[-1].steps[1].setting) > 1


def test_the_written_file_keeps_what_the_search_promised(planted, tmp_path):
    pytest.importorskip("onnxruntime")
    reports = []
    model = run(max_drop=0.1, reports=reports)
    jaxq.save(model, tmp_path / "model.onnx")
    assert reports[-1].runtime_values == pytest.approx(reports[-1].values)
    loaded = jaxq.load(tmp_path / "model.onnx")
    assert accuracy(loaded, labelled())[0] == pytest.approx(reports[-1].values["validation_fn"])
    assert json.loads(loaded.metadata["jaxq.kept"]) == {BAD: FLOAT}


@pytest.mark.parametrize("layer", ["Conv_conv0", BAD])
def test_the_search_goes_on_where_the_file_misses_what_the_simulation_promised(layer, monkeypatch, tmp_path):
    def file_needs_it(validation, model):
        return {"validation_fn": float(layer in json.loads(model.metadata["jaxq.kept"]))}

    monkeypatch.setattr(candidates, "in_runtime", file_needs_it)
    reports = []
    folder = Parameters(intermediate_model_dir=tmp_path)
    model = run(max_drop=0.2, reports=reports, advanced_accuracy_restorer_parameters=folder)
    assert reports[-1].steps[0].reached
    assert reports[-1].status == "reached"
    assert reports[-1].runtime_values == {"validation_fn": 1.0}
    assert json.loads(model.metadata["jaxq.kept"]) == {layer: FLOAT}
    assert json.loads(jaxq.load(tmp_path / "best.onnx").metadata["jaxq.kept"]) == {layer: FLOAT}
    assert "in simulation" in reports[-1].notes[0]
    assert "the search goes on" in reports[-1].notes[1]


def test_a_target_that_no_file_reaches_in_the_runtime_is_missed(monkeypatch):
    monkeypatch.setattr(candidates, "in_runtime", lambda validation, model: {"validation_fn": 0.25})
    with pytest.raises(AccuracyError, match=r"is 0\.25 at best, a drop of 0\.75") as caught:
        run(max_drop=0.2)
    assert caught.value.report.status == "not reached"


def test_one_by_one_finds_the_same_layer(planted):
    reports = []
    run(max_drop=0.1, reports=reports, advanced_accuracy_restorer_parameters=Parameters(search="pot"))
    assert dict(reports[-1].steps[-1].setting) == {BAD: FLOAT}


def test_a_cheaper_repair_is_taken_where_it_suffices(monkeypatch):
    """With absurd ranges of an activation, the weight of the layer may stay rounded."""

    def spoilt(given, *rest):
        from dataclasses import replace

        base = control_base(given, *rest)
        tensors = {"relu0": replace(base.encodings[ASKED_FOR]["relu0"], scale=np.full((1, 1, 1, 1), 50.0, np.float32))}
        return replace(base, encodings={ASKED_FOR: {**base.encodings[ASKED_FOR], **tensors}})

    monkeypatch.setattr(control, "open_base", spoilt)
    reports = []
    run(max_drop=0.1, reports=reports, advanced_accuracy_restorer_parameters=Parameters(repairs=("int8_weights",)))
    assert [(each.layer, each.step) for each in reports[-1].kept] == [(BAD, WEIGHTS)]
    assert reports[-1].float_layers == 0


def test_tuning_and_mixed_mode_come_before_reverting(planted):
    reports = []
    advanced = Parameters(tune_hyperparams=True, convert_to_mixed_preset=True)
    run(max_drop=0.1, preset="performance", reports=reports, advanced_accuracy_restorer_parameters=advanced)
    tried = [step.what for step in reports[-1].steps]
    assert tried[:2] == ["all layers quantized", "asymmetric activations (preset mixed)"]
    assert "all layers: no bias correction" in tried
    assert "all layers: range estimator quantile 0.001 to quantile 0.9999" in tried
    assert reports[-1].status == "reached"


def test_tuning_leaves_out_estimators_that_give_the_same_ranges(planted):
    reports = []
    advanced = Parameters(tune_hyperparams=True)
    run(max_drop=0.1, preset="performance", reports=reports, advanced_accuracy_restorer_parameters=advanced)
    tried = [step.what for step in reports[-1].steps]
    assert "all layers: range estimator min to quantile 0.999" in tried
    assert "all layers: range estimator quantile 0.001 to quantile 0.999" not in tried


def test_the_grid_of_quantiles_is_that_of_pot():
    assert len(QUANTILES) == 8  # and minmax
    ends = QUANTILES["quantile 0.001 to max"]
    assert (ends.min.statistics_type, ends.min.aggregator_type, ends.min.quantile_outlier_prob) == (
        "quantile",
        "mean",
        1e-3,
    )
    assert (ends.max.statistics_type, ends.max.aggregator_type) == ("max", "max")


def test_several_metrics_all_have_to_hold():
    reports = []
    run(
        None,
        None,
        max_drop=0.3,
        reports=reports,
        advanced_accuracy_restorer_parameters=Parameters(metrics=("top1", "top5")),
    )
    assert reports[-1].values.keys() == {"top1", "top5"}
    assert all(step.drops.keys() == {"top1", "top5"} for step in reports[-1].steps)


def test_the_number_of_compilations_does_not_depend_on_the_number_of_layers(monkeypatch):
    # writing a file rounds each shape of weight apart
    monkeypatch.setattr(candidates.Candidates, "measure", lambda self, candidate: None)
    counts = {}
    for length in (2, 5):
        monkeypatch.setattr(control, "open_base", lambda given, *rest: ruined(control_base(given, *rest), BAD))
        jax.clear_caches()
        reports = []
        with compilations() as compiled:
            model = chain(length)
            float_model = jaxq.load(model)
            data = [({"image": x}, np.asarray(float_model(x)["scores"][0])) for x in images(16, 100)]
            run(data, "cosine", model=model, max_drop=1e-6, reports=reports,
                advanced_accuracy_restorer_parameters=Parameters(repairs=("int8_weights",)))  # fmt: skip
        assert len(reports[-1].steps) > length
        counts[length] = len(compiled)
    assert counts[2] == counts[5] > 0


# -------------------------------------------------------------------------------------------------------- the honest end


def test_a_target_that_is_missed_is_an_error_with_the_best_model(planted):
    advanced = Parameters(restore_mode="only_activations")  # the weight is what is wrong
    with pytest.raises(AccuracyError, match="was not reached") as caught:
        run(max_drop=0.05, advanced_accuracy_restorer_parameters=advanced)
    assert caught.value.report.status == "not reached"
    assert isinstance(caught.value.best, jaxq.Model)
    assert caught.value.report.steps


def test_a_float_model_below_the_target_is_said_to_be():
    advanced = Parameters(metrics=({"name": "top1", "baseline_value": 3.0},))
    with pytest.raises(AccuracyError, match="float model itself is below the target"):
        run(None, None, max_drop=0.01, advanced_accuracy_restorer_parameters=advanced)


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
            raise control.OutOfTime

    monkeypatch.setattr(control.Control, "check_time", check_time)
    reports = []
    run(max_drop=0.1, reports=reports, advanced_accuracy_restorer_parameters=Parameters(time_budget=9.0))
    assert reports[-1].status == "reached"
    (note,) = [each for each in reports[-1].notes if "time budget of 9 s" in each]
    assert "within the limit with 1 of 4 layers in float, perhaps more than needed" in note
    assert "intermediate_model_dir" in note


def test_a_search_that_was_killed_goes_on_and_says_so(planted, monkeypatch, tmp_path):
    calls = []
    evaluate = FunctionValidation.evaluate

    class Killed(BaseException):
        """As good as SIGKILL for what is on disk."""

    def failing(self, *arguments):
        calls.append(1)
        if len(calls) == 5:  # float, quantized, float again, and one candidate are done
            raise Killed
        return evaluate(self, *arguments)

    advanced = Parameters(intermediate_model_dir=tmp_path / "work", prune=False)
    monkeypatch.setattr(FunctionValidation, "evaluate", failing)
    with pytest.raises(Killed):
        run(max_drop=0.0, advanced_accuracy_restorer_parameters=advanced)
    monkeypatch.setattr(FunctionValidation, "evaluate", evaluate)
    assert (tmp_path / "work" / "best.onnx").is_file()
    jaxq.load(tmp_path / "work" / "best.onnx")
    known = len(json.loads((tmp_path / "work" / "state.json").read_text())["trials"])
    assert known == 2
    reports = []
    run(max_drop=0.0, reports=reports, advanced_accuracy_restorer_parameters=advanced)
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


# ------------------------------------------------------------------------------------------------------------ bad input


def returns(value):
    def validation_fn(model, items):
        list(items)
        return value

    return validation_fn


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "float model is nan"),
        (float("inf"), "float model is inf"),
        ("0.9", "returned '0.9' .str."),
        (np.zeros((2, 3)), r"an array of shape \(2, 3\)"),
        (None, "returned None"),
    ],
)
def test_a_validation_function_that_gives_no_number_is_refused(value, message):
    with pytest.raises(ConfigError, match=message):
        run(function=returns(value))


def test_a_validation_function_that_raises_is_named():
    def validation_fn(model, items):
        raise ZeroDivisionError("division by zero")

    with pytest.raises(ConfigError, match="validation_fn failed: ZeroDivisionError"):
        run(function=validation_fn)


def test_numbers_that_belong_to_no_samples_are_refused_with_what_was_expected():
    def validation_fn(model, items):
        value, each = accuracy(model, items)
        return value, each[1:]

    with pytest.raises(ConfigError, match=r"23 numbers\) after 24 calls of the model with 24 samples from 24 items"):
        run(function=validation_fn)


def test_numbers_for_batches_are_those_of_their_samples(planted, monkeypatch):
    """The samples that layers are ranked on are those of the batch that loses most."""
    feeds = [feed for feed, _ in labelled(24)]
    batches = [{"image": np.concatenate([each["image"] for each in feeds[row : row + 6]])} for row in range(0, 24, 6)]
    values = iter([[0.0] * 4, [0.0, 0.0, -5.0, 0.0]])  # float, quantized

    def validation_fn(model, items):
        for feed in items:
            model(feed)
        each = next(values, [-5.0] * 4)
        return float(np.mean(each)), each

    seen = []
    made = rankings.Ranker.__init__

    def watch(self, space, feeds, *rest):
        seen.extend(feeds)
        made(self, space, feeds, *rest)

    monkeypatch.setattr(rankings.Ranker, "__init__", watch)
    advanced = Parameters(ranking_subset_size=6)
    with pytest.raises(AccuracyError):
        run(batches, validation_fn, max_drop=0.01, advanced_accuracy_restorer_parameters=advanced)
    assert sorted(each["image"].tobytes() for each in seen) == sorted(
        batches[2]["image"][row : row + 1].tobytes() for row in range(6)
    )


def test_what_was_found_before_a_failure_is_kept(planted):
    calls = []

    def validation_fn(model, items):
        calls.append(1)
        if len(calls) > 3:  # float, quantized, float again
            raise ValueError("out of paper")
        return accuracy(model, items)

    with pytest.raises(AccuracyError, match="broken off: validation_fn failed: ValueError: out of paper") as caught:
        run(function=validation_fn, max_drop=0.0)
    assert caught.value.best is not None
    assert len(caught.value.report.steps) >= 1


def test_nan_of_a_candidate_counts_as_missed(planted):
    reports = []

    def validation_fn(model, items):
        value = accuracy(model, items)[0]
        return value if value > 0.9 else math.nan

    run(function=validation_fn, max_drop=0.1, reports=reports)
    assert math.isnan(reports[-1].steps[0].values["validation_fn"])
    assert not reports[-1].steps[0].reached
    assert reports[-1].status == "reached"
    json.loads(json.dumps(reports[-1].to_dict(), allow_nan=False))


def test_a_noisy_validation_function_is_warned_of_with_its_spread(planted):
    """It takes a few samples each time, of which the float model gets one in four wrong."""
    random, reports = np.random.default_rng(0), []
    data = [(feed, (label + (number % 4 == 0)) % 5) for number, (feed, label) in enumerate(labelled())]

    def some(model, items):
        items = list(items)
        return accuracy(model, [items[number] for number in random.permutation(len(items))[:12]])[0]

    with pytest.warns(JaxqWarning, match=r"a spread of 0\.\d+: drops of this size"), contextlib.suppress(AccuracyError):
        jaxq.quantize_with_accuracy_control(
            chain(), images(12), data, some, max_drop=0.1, on_step=reports.append,
            advanced_quantization_parameters=MINMAX,
        )  # fmt: skip
    assert sum("a spread of 0." in note for note in reports[-1].notes) == 1


def test_a_function_that_gives_the_same_again_is_called_twice_on_the_float_model_and_not_warned_of(planted):
    calls, reports = [], []

    def counted(model, items):
        calls.append(accuracy(model, items)[0])
        return calls[-1]

    run(function=counted, max_drop=0.1, reports=reports)
    assert calls[0] == calls[2] == 1.0
    assert len(calls) == 2 + len(reports[-1].steps) + len(reports[-1].runtime_values)
    assert reports[-1].notes == ()


def test_a_model_within_the_limit_is_evaluated_once_in_float():
    calls, reports = [], []
    run(function=lambda *given: (calls.append(1), accuracy(*given)[0])[1], max_drop=0.3, reports=reports)
    assert len(calls) == 2 + len(reports[-1].runtime_values)


def test_a_negative_metric_is_warned_of():
    reports = []
    run(function=lambda model, items: accuracy(model, items)[0] - 2, max_drop=0.5, reports=reports)
    assert any("is negative" in note for note in reports[-1].notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_drop": -0.01}, "0 or more"),
        ({"max_drop": 5}, "not below the metric itself"),
        ({"drop_type": "relativ"}, "did you mean 'relative'"),
        ({"function": "top_1"}, "did you mean 'top1'"),
        ({"function": 3}, "expected a function"),
        ({"advanced_accuracy_restorer_parameters": {"ranking": "exact"}}, "AdvancedAccuracyRestorerParameters"),
    ],
)
def test_a_wrong_argument_is_refused_before_or_with_the_baseline(options, message):
    with pytest.raises(ConfigError, match=message):
        run(**options)


def test_empty_validation_data_are_refused():
    for function in (accuracy, "top1", None):
        with pytest.raises(CalibrationError, match="validation data is empty"):
            run([], function)


def test_a_generator_is_enough_and_a_loader_that_runs_dry_is_named():
    run(iter(labelled()), max_drop=0.3)

    class Once:
        def __init__(self):
            self.items = list(labelled())

        def __iter__(self):
            while self.items:
                yield self.items.pop()

    with pytest.raises((CalibrationError, AccuracyError), match=r"items the first time and none now|is empty"):
        run(Once(), max_drop=0.3)


class Shrinking:
    """A loader whose later passes are shorter."""

    def __init__(self, longs):
        self.longs = longs

    def __iter__(self):
        self.longs -= 1
        return iter(labelled() if self.longs >= 0 else labelled()[:5])


@pytest.mark.parametrize("longs", range(2, 5))
def test_a_loader_that_gives_fewer_items_later_is_named(planted, longs):
    with pytest.raises((CalibrationError, AccuracyError), match="gave 24 items the first time and 5 now"):
        run(Shrinking(longs), max_drop=0.0)


def test_a_label_that_is_no_class_is_named_with_its_sample():
    feeds = [feed for feed, _ in labelled()]
    with pytest.raises(jaxq.InputError, match="top1 of sample 2 of the validation data: label 77 is not a class"):
        run([(feeds[0], 0), (feeds[1], 0), (feeds[2], 77)], "top1")


def test_a_metric_of_the_users_own_that_fails_is_named(tmp_path, monkeypatch):
    (tmp_path / "own_metric.py").write_text("def count(outputs, targets):\n    return outputs[0]['nothing']\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"metric 'own_metric:count' failed: KeyError: 'nothing'"):
        run(function="own_metric:count")


def test_labels_that_are_missing_are_asked_for():
    with pytest.raises(ConfigError, match="has no label"):
        run(images(3), "top1")


def test_a_model_in_which_nothing_can_be_reverted_is_refused():
    tokens = [np.arange(4)[None]]
    with pytest.raises(ModelError, match="nothing that target"):
        jaxq.quantize_with_accuracy_control(integer_network(), tokens, tokens, max_drop=0.1)


def test_a_function_that_never_calls_the_model_is_refused_when_layers_must_be_ranked(planted):
    values = iter([1.0] + [0.0] * 50)
    with pytest.raises((ConfigError, AccuracyError), match="never called the model"):
        run(function=lambda model, items: (list(items), next(values))[1], max_drop=0.1)


def test_batches_of_labels_belong_to_batches_of_samples():
    reports = []
    feeds, labels = zip(*labelled(), strict=True)
    batch = ({"image": np.concatenate([feed["image"] for feed in feeds])}, np.array(labels))
    run([batch], "top1", max_drop=0.9, reports=reports)
    assert reports[-1].goals[0].baseline == 1.0
    with pytest.raises(jaxq.InputError, match="24 samples and 3 labels"):
        run([(batch[0], np.array(labels[:3]))], "top1", max_drop=0.9)


def test_the_preparation_of_a_search_is_that_of_quantize():
    given = prepared(chain(), images(4))
    assert given.place().nodes == given.plan.nodes
    assert BAD not in given.place([BAD]).nodes


def test_layers_are_put_back_until_none_can_be(monkeypatch):
    """What one layer costs depends on the others: one that could not be put back at first can be later."""
    rounds = []
    put_back = control.put_back

    def one_each_round(found, order, *rest):
        rounds.append(dict(found.setting))
        left = dict(found.setting)
        if len(left) > 1:
            left.popitem()
        return type(found)(left, True) if len(rounds) < 3 else put_back(found, order, *rest)

    def spoilt(given, *rest):
        return ruined(ruined(ruined(control_base(given, *rest), "Conv_conv0"), BAD), "Conv_conv2")

    monkeypatch.setattr(control, "open_base", spoilt)
    monkeypatch.setattr(control, "put_back", one_each_round)
    run(max_drop=0.1)
    assert len(rounds) >= 3
    assert len(rounds[0]) > len(rounds[1]) > len(rounds[2])


@pytest.mark.parametrize("prune", [True, False])
def test_repairs_and_putting_back_are_asked_for_apart(prune, planted, monkeypatch):
    calls = []
    put_back = control.put_back
    monkeypatch.setattr(control, "put_back", lambda *given: calls.append("put back") or put_back(*given))
    reports = []
    advanced = Parameters(prune=prune, repairs=("int8_weights",))
    run(max_drop=0.1, reports=reports, advanced_accuracy_restorer_parameters=advanced)
    assert bool(calls) == prune
    assert f"{BAD}: {WEIGHTS}" in [step.what for step in reports[-1].steps]


def test_an_interrupted_confirmation_says_where_the_best_model_is(planted, monkeypatch, tmp_path):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(control.Candidates, "confirm", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        run(max_drop=0.1, advanced_accuracy_restorer_parameters=Parameters(intermediate_model_dir=tmp_path))
    assert "best.onnx" in caught.value.__notes__[0]
    assert json.loads((tmp_path / "report.json").read_text())["status"] == "interrupted"


def test_a_float_model_below_the_target_is_said_in_plain_words():
    advanced = Parameters(metrics=({"name": "top1", "baseline_value": 2.0},))
    with pytest.raises(AccuracyError) as caught:
        run(None, None, max_drop=0.01, advanced_accuracy_restorer_parameters=advanced)
    assert str(caught.value).startswith("the float model itself is below the target")


@pytest.mark.parametrize(
    ("data", "function", "message"),
    [
        (None, "top_1", "did you mean 'top1'"),
        (None, 3, "expected a function"),
        (images(4), "top1", "has no label"),
        ([], accuracy, "validation data is empty"),
        ([], "top1", "validation data is empty"),
    ],
)
def test_what_is_wrong_with_the_validation_is_said_before_anything_is_computed(data, function, message, monkeypatch):
    monkeypatch.setattr(control, "open_base", lambda *_: pytest.fail("the model was quantized"))
    with pytest.raises(JaxqError, match=message):
        run(data, function)
