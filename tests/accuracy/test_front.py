"""What `quantize_with_accuracy_control` reaches on a small classifier."""

import json
import sys
from dataclasses import replace
from types import ModuleType

import jax
import numpy as np
import pytest
from accuracy_models import (
    BAD,
    accuracy,
    base_of,
    chain,
    images,
    labelled,
    picking,
    prepared,
    ruined,
    run,
)
from compilations import compilations

import jaxq
from jaxq import AdvancedAccuracyRestorerParameters as Parameters
from jaxq.accuracy import search, trials
from jaxq.accuracy.base import ASKED_FOR
from jaxq.accuracy.ranking import Ranker
from jaxq.accuracy.space import Space
from jaxq.accuracy.treatments import FLOAT, WEIGHTS
from jaxq.errors import AccuracyError


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
    assert dict(report.steps[1].setting) == {BAD: FLOAT.name}
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
    assert [dict(step.setting) for step in reports[-1].steps] == [{}, {BAD: FLOAT.name}]
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


def test_a_gradient_that_is_no_number_does_not_rank(monkeypatch):
    space = Space(ruined(base_of(chain(), images(12)), BAD))
    ranker = Ranker(space, [{"image": each} for each in images(2, 50)], FLOAT)
    monkeypatch.setattr(Ranker, "_slopes", lambda *_: {"x": float("nan")})
    assert ranker.by_gradient({}) == ranker.alone({})


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


def three_ruined(base):
    return ruined(ruined(ruined(base, "Conv_conv0"), BAD), "Conv_conv2")


def test_no_trial_is_spent_on_a_model_that_the_ranking_says_is_broken(spoilt):
    spoilt(three_ruined)
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
    assert json.loads(loaded.metadata["jaxq.kept"]) == {BAD: FLOAT.name}


@pytest.mark.parametrize("layer", ["Conv_conv0", BAD])
def test_the_search_goes_on_where_the_file_misses_what_the_simulation_promised(layer, monkeypatch, tmp_path):
    def file_needs_it(validation, model):
        return {"validation_fn": float(layer in json.loads(model.metadata["jaxq.kept"]))}

    monkeypatch.setattr(trials, "in_runtime", file_needs_it)
    reports = []
    folder = Parameters(intermediate_model_dir=tmp_path)
    model = run(max_drop=0.2, reports=reports, advanced_accuracy_restorer_parameters=folder)
    assert reports[-1].steps[0].reached
    assert reports[-1].status == "reached"
    assert reports[-1].runtime_values == {"validation_fn": 1.0}
    assert json.loads(model.metadata["jaxq.kept"]) == {layer: FLOAT.name}
    assert json.loads(jaxq.load(tmp_path / "best.onnx").metadata["jaxq.kept"]) == {layer: FLOAT.name}
    assert "in simulation" in reports[-1].notes[0]
    assert "the search goes on" in reports[-1].notes[1]


def test_a_target_that_no_file_reaches_in_the_runtime_is_missed(monkeypatch):
    monkeypatch.setattr(trials, "in_runtime", lambda validation, model: {"validation_fn": 0.25})
    with pytest.raises(AccuracyError, match=r"is 0\.25 at best, a drop of 0\.75") as caught:
        run(max_drop=0.2)
    assert caught.value.report.status == "not reached"


def test_one_by_one_finds_the_same_layer(planted):
    reports = []
    run(max_drop=0.1, reports=reports, advanced_accuracy_restorer_parameters=Parameters(search="pot"))
    assert dict(reports[-1].steps[-1].setting) == {BAD: FLOAT.name}


def test_a_cheaper_repair_is_taken_where_it_suffices(spoilt):
    """With absurd ranges of an activation, the weight of the layer may stay rounded."""

    def wide(base):
        tensors = {"relu0": replace(base.encodings[ASKED_FOR]["relu0"], scale=np.full((1, 1, 1, 1), 50.0, np.float32))}
        return replace(base, encodings={ASKED_FOR: {**base.encodings[ASKED_FOR], **tensors}})

    spoilt(wide)
    reports = []
    run(max_drop=0.1, reports=reports, advanced_accuracy_restorer_parameters=Parameters(repairs=("int8_weights",)))
    assert [(each.layer, each.step) for each in reports[-1].kept] == [(BAD, WEIGHTS.name)]
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


def test_the_number_of_compilations_does_not_depend_on_the_number_of_layers(planted, monkeypatch):
    # writing a file rounds each shape of weight apart
    monkeypatch.setattr(trials.Trials, "measure", lambda self, candidate: None)
    counts = {}
    for length in (2, 5):
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


def test_the_preparation_of_a_search_is_that_of_quantize():
    given = prepared(chain(), images(4))
    assert given.place().nodes == given.plan.nodes
    assert BAD not in given.place([BAD]).nodes


def test_layers_are_put_back_until_none_can_be(spoilt, monkeypatch):
    """What one layer costs depends on the others: one that could not be put back at first can be later."""
    rounds = []
    put_back = search.put_back

    def one_each_round(found, order, start):
        rounds.append(dict(found.setting))
        if len(rounds) == 3:
            return (yield from put_back(found, order, start))
        left = dict(found.setting)
        if len(left) > 1:
            left.popitem()
        return search.Found(left, True)

    spoilt(three_ruined)
    monkeypatch.setattr(search, "put_back", one_each_round)
    run(max_drop=0.1)
    assert len(rounds) >= 3
    assert len(rounds[0]) > len(rounds[1]) > len(rounds[2])


@pytest.mark.parametrize("prune", [True, False])
def test_repairs_and_putting_back_are_asked_for_apart(prune, spoilt):
    spoilt(three_ruined)
    reports = []
    advanced = Parameters(prune=prune, repairs=("int8_weights",))
    run(max_drop=0.1, reports=reports, advanced_accuracy_restorer_parameters=advanced)
    tried = [step.what for step in reports[-1].steps]
    assert any("put back" in each for each in tried) == prune
    assert f"{BAD}: {WEIGHTS.name}" in tried
