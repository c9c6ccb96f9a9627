"""Validation functions, data and arguments that are wrong, and what is said of them."""

import contextlib
import json
import math

import numpy as np
import pytest
from accuracy_models import (
    MINMAX,
    accuracy,
    chain,
    images,
    labelled,
    run,
)
from models import integer_network

import jaxq
from jaxq import AdvancedAccuracyRestorerParameters as Parameters
from jaxq.accuracy import ranking, space
from jaxq.errors import AccuracyError, CalibrationError, ConfigError, JaxqError, JaxqWarning, ModelError


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
    made = ranking.Ranker.__init__

    def watch(self, space, feeds, *rest):
        seen.extend(feeds)
        made(self, space, feeds, *rest)

    monkeypatch.setattr(ranking.Ranker, "__init__", watch)
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


@pytest.mark.parametrize(
    "override, message",
    [
        ({"names": "Conv_conv0", "activations": {"per_channel": True}}, "activations.per_channel = True; target"),
        ({"names": "nowhere"}, "names: 'nowhere' matches no node"),
    ],
)
def test_options_of_the_quantization_have_the_names_of_the_arguments_here(override, message):
    parameters = jaxq.QuantizationParameters(**override.pop("activations", {"num_bits": 8}))
    advanced = jaxq.AdvancedQuantizationParameters(overrides=[jaxq.Override(**override, activations=parameters)])
    with pytest.raises(ConfigError) as raised:
        jaxq.quantize_with_accuracy_control(
            chain(), images(12), list(labelled()), accuracy, advanced_quantization_parameters=advanced
        )
    assert str(raised.value).startswith(f"advanced_quantization_parameters.overrides[0].{message}")


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
    (tmp_path / "counting_metric.py").write_text("def count(outputs, targets):\n    return outputs[0]['nothing']\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"metric 'counting_metric:count' failed: KeyError: 'nothing'"):
        run(function="counting_metric:count")


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
    monkeypatch.setattr(space, "quantized", lambda *_: pytest.fail("the model was quantized"))
    with pytest.raises(JaxqError, match=message):
        run(data, function)


@pytest.mark.parametrize("function", ["top1", None])
def test_a_sample_of_the_validation_data_that_holds_nan_is_named(function):
    data = [({"image": feed["image"].copy()}, label) for feed, label in labelled()]
    data[3][0]["image"][0, 0, 0, 0] = np.nan
    with pytest.raises(CalibrationError, match=r"validation sample 3 \(counted from 0\): input 'image' holds NaN"):
        run(data if function else [feed for feed, _ in data], function)
