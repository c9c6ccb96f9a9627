import sys

import numpy as np
import pytest

from jaxq.analysis.metrics import (
    METRICS,
    as_score,
    average_precision,
    find_metric,
    intersection_over_union,
    rank_correlation,
)
from jaxq.errors import ConfigError, InputError


def score(name, samples):
    metric = find_metric(name)
    return metric.combine([metric.measure({"y": np.asarray(output)}, target) for output, target in samples])


def test_top1_and_top5_count_hits():
    outputs = np.random.default_rng(0).normal(size=(50, 20))
    labels = np.random.default_rng(1).integers(0, 20, 50)
    order = np.argsort(-outputs, axis=1)
    samples = list(zip(outputs, labels, strict=True))
    assert score("top1", samples).value == (order[:, 0] == labels).mean()
    assert score("top5", samples).value == (order[:, :5] == labels[:, None]).any(1).mean()
    assert score("top5", samples).samples.sum() == (order[:, :5] == labels[:, None]).any(1).sum()


def test_equal_scores_go_to_the_lower_class_and_nan_is_never_right():
    assert score("top1", [([1.0, 1.0], 0), ([1.0, 1.0], 1)]).samples.tolist() == [1.0, 0.0]
    assert score("top1", [([np.nan, 1.0], 1)]).value == 0.0


def test_a_one_hot_label_stands_for_its_class():
    assert score("top1", [([0.1, 0.9], [0, 1])]).value == 1.0


@pytest.mark.parametrize("label", [7, -1, "cat", [1, 2, 3]])
def test_a_label_that_is_no_class_is_refused(label):
    with pytest.raises(InputError, match="label"):
        score("top1", [([0.1, 0.9], label)])


def test_mse_is_over_all_elements_whatever_the_sizes_of_the_samples():
    found = score("mse", [([1.0, 2.0, 3.0], [1, 2, 6]), ([5.0], [4])])
    assert found.value == (9 + 1) / 4
    assert found.samples.tolist() == [3.0, 1.0]
    assert not METRICS["mse"].higher_is_better


def test_psnr_of_equal_pictures_is_finite_and_of_others_is_ten_log_of_the_error():
    assert score("psnr", [([0.5, 0.25], [0.5, 0.25])]).value == 100.0
    np.testing.assert_allclose(score("psnr", [([0.6, 0.2], [0.5, 0.2])]).value, -10 * np.log10(0.01 / 2))


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [([3, 4], [3, 4], 1), ([3, 4], [-6, -8], -1), ([1, 0], [0, 1], 0), ([0, 0], [0, 0], 1), ([0, 0], [1, 0], 0),
     ([1e30, 1e30], [1e-30, 1e-30], 1)],
)  # fmt: skip
def test_cosine(a, b, expected):
    np.testing.assert_allclose(score("cosine", [(np.float32(a), np.float32(b))]).value, expected, atol=1e-12)


def test_spearman_over_samples_is_the_correlation_of_ranks():
    values, wanted = [0.1, 0.4, 0.2, 9.0], [1.0, 3.0, 2.0, 4.0]
    found = score("spearman", [([value], [target]) for value, target in zip(values, wanted, strict=True)])
    assert found.value == pytest.approx(1.0)
    assert found.samples.mean() == pytest.approx(found.value)
    # Worked by hand: ranks of a are 1, 2.5, 2.5, 4; their covariance with 1, 2, 3, 4 is 4.5, the norms 4.5 ** 0.5 and 5 ** 0.5.
    np.testing.assert_allclose(rank_correlation(np.array([1.0, 2, 2, 3]), np.arange(4.0)), 4.5 / np.sqrt(4.5 * 5))
    assert rank_correlation(np.ones(3), np.arange(3.0)) == 0.0


def test_mean_iou_counts_classes_over_all_pictures_and_leaves_255_out():
    scores = np.zeros((2, 2, 2))
    scores[1, 0] = 1.0  # upper row is class 1
    target = np.array([[1, 0], [0, 255]])
    # class 1: 1 of 2; class 0: 1 of 2
    assert score("miou", [(scores, target)]).value == 0.5
    assert score("miou", [(np.array([[1, 1], [0, 0]]), target)]).value == 0.5


def test_mean_iou_takes_class_numbers_of_any_dtype_and_one_channel():
    numbers = np.array([[[1.0, 1.0], [0.0, 2.0]]], np.float32)
    assert score("miou", [(numbers, np.array([[[1, 1], [0, 2]]]))]).value == 1.0


@pytest.mark.parametrize("values", [[[0.9, 0.8], [0.1, 0.7]], [[-5.0, 3.0], [2.0, -1.0]], [[np.nan, 1.0], [0.0, 1.0]]])
def test_mean_iou_refuses_scores_of_one_class(values):
    with pytest.raises(
        InputError, match=r"class numbers \[H, W\] or scores .*the model's first output is float32\[1, 2, 2\]"
    ):
        score("miou", [(np.array([values], np.float32), np.array([[1, 1], [0, 1]]))])
    with pytest.raises(InputError, match="the target is float32"):
        score("miou", [(np.ones((2, 2)), np.array(values, np.float32))])


def test_mean_iou_refuses_several_pictures_at_once():
    with pytest.raises(InputError, match=r"\[2, 3, 4, 4\]"):
        score("miou", [(np.ones((2, 3, 4, 4)), np.ones((4, 4)))])


def test_perplexity_is_exp_of_the_mean_loss_and_survives_large_logits():
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))
    expected = np.exp(-(np.log(0.5) + np.log(0.8)) / 2)
    np.testing.assert_allclose(score("perplexity", [(logits, np.array([0, 2]))]).value, expected)
    np.testing.assert_allclose(score("perplexity", [(logits + 1e5, np.array([0, 2]))]).value, expected, rtol=1e-9)
    np.testing.assert_allclose(score("perplexity", [(logits, np.array([0, -100]))]).value, 2.0)


def test_perplexity_of_a_model_that_ends_in_a_softmax_is_that_of_its_probabilities():
    logits = np.random.default_rng(0).normal(size=(1, 6, 5)).astype(np.float32)
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    words = np.array([0, 1, 2, 3, 4, 0])
    expected = score("perplexity", [(logits, words)]).value
    np.testing.assert_allclose(score("perplexity", [(probabilities, words)]).value, expected, rtol=1e-5)


def test_average_precision_is_the_area_under_the_falling_precision():
    # right, wrong, right of 2: precision 1, 1/2, 2/3 -> made falling 1, 2/3, 2/3
    assert average_precision(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]), 2) == pytest.approx(
        (1 + 2 / 3) / 2
    )


def test_map_matches_each_true_box_once():
    true = [[0, 0, 10, 10, 1], [20, 20, 30, 30, 1]]
    found = [[0, 0, 10, 10, 0.9, 1], [1, 1, 10, 10, 0.8, 1], [20, 20, 30, 30, 0.7, 1], [0, 0, 10, 10, 0.9, 2]]
    assert score("map", [(found, true)]).value == pytest.approx((1 + 2 / 3) / 2)
    assert score("map", [(np.zeros((0, 6)), true)]).value == 0.0
    assert score("map", [(np.zeros((0, 6)), [])]).value == 1.0


def test_map_takes_boxes_scores_and_classes_apart():
    metric = find_metric("map")
    outputs = {"boxes": np.array([[0.0, 0, 4, 4]]), "scores": np.array([0.7]), "labels": np.array([3])}
    assert metric.combine([metric.measure(outputs, {"boxes": [[0, 0, 4, 4]], "labels": [3]})]).value == 1.0
    with pytest.raises(InputError, match=r"package\.module:function"):
        metric.measure({"y": np.zeros(7)}, [])


def test_map_takes_a_single_box_whose_first_axis_was_dropped():
    box = np.array([0.0, 0, 4, 4])
    assert score("map", [(np.array([*box, 0.9, 1]), [[*box, 1]])]).value == 1.0
    metric = find_metric("map")
    apart = {"boxes": box, "scores": np.array(0.7), "labels": np.array(3)}
    assert metric.combine([metric.measure(apart, [[*box, 3]])]).value == 1.0


def test_empty_boxes_overlap_with_nothing():
    assert intersection_over_union(np.zeros((1, 4)), np.zeros((1, 4))).tolist() == [[0.0]]


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if metric.refer is not None])
def test_a_model_agrees_with_itself(name):
    metric = METRICS[name]
    outputs = {"y": np.random.default_rng(0).uniform(size=(3, 4, 4)).astype(np.float32)}
    best = {"mse": 0.0, "psnr": 100.0}.get(name, 1.0)
    assert metric.combine([metric.measure(outputs, metric.refer(outputs))] * 3).value == pytest.approx(best)


def test_an_unknown_metric_gives_the_nearest_name():
    with pytest.raises(ConfigError, match="did you mean 'top1'"):
        find_metric("top_1")


def test_a_function_of_a_module_is_a_metric(tmp_path, monkeypatch):
    (tmp_path / "own_metric.py").write_text(
        "def loss(outputs, targets):\n    return sum(float(o['y']) - t for o, t in zip(outputs, targets)), [0.5, 0.5]\n"
        "loss.higher_is_better = False\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert score("own_metric:loss", [(2.0, 1.0), (4.0, 1.0)]).value == 4.0
    assert not find_metric("own_metric:loss").higher_is_better
    with pytest.raises(ConfigError, match="did you mean 'loss'"):
        find_metric("own_metric:los")
    with pytest.raises(ConfigError, match="cannot be imported"):
        find_metric("no_such_module_here:f")
    sys.modules.pop("own_metric")


@pytest.mark.parametrize("value", [1, 1.5, np.float32(2), np.array([3.0]), np.array(4, np.int32)])
def test_a_score_may_be_any_single_number(value):
    assert as_score(value, "f").value == float(np.asarray(value).reshape(()))
    assert as_score((value, [1, 2]), "f").samples.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("value", ["0.9", None, np.zeros(3), {"top1": 1.0}, (0.5, 1, 2), (0.5, "abc")])
def test_a_score_that_is_no_number_is_refused(value):
    with pytest.raises(ConfigError, match="returned"):
        as_score(value, "validation_fn")
