"""What evaluating by metrics runs, keeps in memory and refuses."""

import numpy as np
import onnx
import pytest
from accuracy_models import images, picking
from models import Network, written

import jaxq
from jaxq.analysis import by_metric
from jaxq.analysis.by_metric import open_validation
from jaxq.analysis.validation import EXACT, QUANTIZED
from jaxq.engine.model import Model
from jaxq.errors import CalibrationError, ConfigError


@pytest.fixture
def runs(monkeypatch):
    """The models that are run on a batch, in order."""
    seen = []
    run = by_metric.run_samples
    monkeypatch.setattr(by_metric, "run_samples", lambda model, *rest: (seen.append(model), run(model, *rest))[1])
    return seen


def image_to_image():
    """image [N, 4, 6, 6] -> the same, so that no class scores come out and cosine is chosen."""
    net = Network(seed=1)
    net.convolution(net.input("image", ["N", 4, 6, 6]), "smooth", (4, 4))
    net.output("smooth", ["N", 4, 6, 6])
    return net.proto()


def test_without_labels_the_float_model_runs_once_for_each_batch(runs):
    model = jaxq.load(image_to_image())
    validation = open_validation([{"image": x} for x in images(8)], None, [], model, batch_size=4)
    assert validation.evaluate(model, EXACT)["cosine"].value == pytest.approx(1)
    validation.evaluate(jaxq.quantize(model, images(8)), QUANTIZED)
    assert len(runs) == 4
    assert runs[:2] == [model, model]
    assert model not in runs[2:]


def test_what_is_kept_of_the_float_model_is_bounded_and_the_result_the_same(runs):
    model, feeds = jaxq.load(image_to_image()), [{"image": x} for x in images(8)]
    quantized, size = jaxq.quantize(model, images(8)), 4 * 6 * 6 * 4
    found = []
    for room in (100 * size, 3 * size):
        validation = open_validation(feeds, None, [], model, batch_size=2)
        validation._room = room
        validation.evaluate(model, EXACT)
        found.append(validation.evaluate(quantized, QUANTIZED)["cosine"].value)
        assert validation._room >= 0
    assert list(validation._exact) == [0, 1, 2]
    assert found[0] == found[1]
    # in the first round the float model runs at first alone, in the second again for the three batches that are not kept
    assert runs.count(model) == 4 + 4 + 3


@pytest.mark.parametrize(
    ("output", "shape", "metric"),
    [("embedding", [1, 12], "cosine"), ("logits", [1, 12], "top1"), ("logits", [2, 12], "cosine")],
)
def test_only_a_row_of_class_scores_is_compared_by_class(output, shape, metric):
    """By the rule of `jaxq.analysis.classes`, as everywhere."""
    proto = written(
        f"(float[{shape[0]}, 4] x) => (float[{shape[0]}, 12] {output}) {{ {output} = MatMul (x, w) }}",
        17,
        w=np.ones((4, 12), np.float32),
    )
    validation = open_validation(
        [{"x": np.ones((shape[0], 4), np.float32)}], None, [], jaxq.load(proto), batch_size=None
    )
    assert [each.name for each in validation.metrics] == [metric]


@pytest.mark.parametrize("name", ["mse", "psnr", "spearman", "cosine"])
def test_a_metric_by_name_compares_with_the_float_model_where_there_are_no_annotations(name):
    model = jaxq.load(image_to_image())
    data = [({"image": x}, "no label") for x in images(4)]
    validation = open_validation(data, name, [], model, None, annotation_free=True)
    best = validation.evaluate(model, EXACT)[name].value
    assert best == {"mse": 0.0, "psnr": 100.0}.get(name, pytest.approx(1))
    quantized = validation.evaluate(jaxq.quantize(model, images(4)), QUANTIZED)[name].value
    assert quantized > best if name == "mse" else quantized < best


def test_a_metric_that_needs_labels_is_refused_without_annotations():
    model = jaxq.load(image_to_image())
    with pytest.raises(ConfigError, match=r"'map' with annotation_free: .* can for those of cosine, miou, mse"):
        open_validation(images(4), "map", [], model, None, annotation_free=True)
    with pytest.raises(ConfigError, match="annotation_free is for metrics by name"):
        open_validation(images(4), print, [], model, None, annotation_free=True)


@pytest.mark.parametrize("function", ["top1", print])
def test_a_function_and_metrics_are_not_both_taken(function):
    with pytest.raises(ConfigError, match="give validation_fn or metrics, not both"):
        open_validation(images(4), function, ["top5"], jaxq.load(image_to_image()), None)


def test_a_model_with_a_part_on_the_host_runs_its_compiled_part_once_for_each_batch(runs, monkeypatch):
    model, feeds = jaxq.load(picking()), [{"image": x} for x in images(5, 100)]
    alone = [model(feed) for feed in feeds]
    validation = open_validation(feeds, None, [], model, batch_size=4)
    (first, last) = validation.batches()
    monkeypatch.setattr(Model, "__call__", None)
    found = {**validation.outputs(model, first), **validation.outputs(model, last)}
    assert len({len(each["values"]) for each in alone}) > 1
    for number, each in enumerate(alone):
        assert list(found[number]) == ["values", "classes"]
        np.testing.assert_array_equal(found[number]["classes"], each["classes"])
        np.testing.assert_allclose(found[number]["values"], each["values"], rtol=1e-5)
    assert len(runs) == 2


def test_data_that_do_not_fit_into_memory_have_to_give_as_many_samples_again(monkeypatch):
    monkeypatch.setattr(by_metric, "MOST_BYTES", 0)
    model, data = jaxq.load(image_to_image()), [{"image": x} for x in images(6)]
    validation = open_validation(data, None, [], model, None)
    validation.evaluate(model, EXACT)
    del data[4:]
    with pytest.raises(CalibrationError, match="gave 6 samples the first time and 4 now"):
        validation.evaluate(model, QUANTIZED)


def tokens_to_scores():
    """tokens int64 [N, 4] -> scores [N, 5]."""
    net = Network(seed=2)
    tokens = net.input("tokens", ["N", 4], onnx.TensorProto.INT64)
    words = net.node("Gather", [net.weight("table", 16, 8), tokens], "words")
    net.dense(net.node("Flatten", [words], "features"), "scores", (32, 5))
    net.output("scores", ["N", 5])
    return net.proto()


def test_64_bit_inputs_reach_the_runtime_as_the_file_declares_them():
    pytest.importorskip("onnxruntime")
    random, reports = np.random.default_rng(0), []
    data = [random.integers(0, 16, (1, 4)) for _ in range(12)]
    jaxq.quantize_with_accuracy_control(tokens_to_scores(), data, data, max_drop=0.5, on_step=reports.append)
    assert reports[-1].notes == ()
    assert reports[-1].runtime_values == pytest.approx(reports[-1].values)


def test_samples_to_rank_on_are_as_the_model_takes_them():
    model = jaxq.load(tokens_to_scores())
    data = [np.arange(4)[None] + shift for shift in range(3)]
    validation = open_validation(data, None, [], model, None)
    for role in (EXACT, QUANTIZED):
        validation.evaluate(model, role)
    assert {feed["tokens"].dtype for feed in validation.pool().feeds} == {np.dtype(np.int64)}
