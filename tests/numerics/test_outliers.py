"""A broken sample does not take the range from the good ones; honest large values stay."""

import re
import warnings

import numpy as np
import pytest
from models import NETWORKS, samples, written

import jaxq
from jaxq.data.samples import Samples
from jaxq.errors import JaxqWarning
from jaxq.numerics.outliers import Outliers, may_be_left_out, outliers
from jaxq.onnx_io.load import load

GOOD = np.random.default_rng(0).uniform(2, 4, 99)


@pytest.mark.parametrize("bad", [40.0, 300.0, 1e6, 1e20, 3e38])
def test_a_sample_far_beyond_the_others_is_found(bad):
    found = outliers(np.insert(GOOD, 7, bad))
    assert found == Outliers((7,), (bad,), GOOD.max())


def test_several_are_found_whatever_their_order_of_magnitude():
    assert outliers(np.array([1e20, *GOOD[:9], 1e6])).samples == (0, 10)
    assert may_be_left_out(1, 10)
    assert not may_be_left_out(2, 10)
    assert may_be_left_out(5, 100)
    assert not may_be_left_out(6, 100)


@pytest.mark.parametrize(
    "honest",
    [
        GOOD,
        np.append(GOOD, 30.0),  # rare, but not broken
        np.append(np.zeros(99), 5.0),  # a feature of one sample in a hundred
        np.append(np.full(99, 1e-6), 0.99),  # a score of a rare class
        np.abs(np.random.default_rng(1).standard_t(2, size=(300, 1000))).max(1),  # heavy tails
        np.full(100, 1e6),  # the same large value in every sample
        np.append(GOOD[:6], 1e6),  # too few to tell
        np.full(20, np.nan),
        np.append(GOOD, np.inf),  # an error, elsewhere
    ],
)
def test_honest_values_stay(honest):
    assert outliers(honest) is None


def noise_ratio(exact, made, feeds):
    name = next(iter(exact.outputs))
    wanted, found = (np.concatenate([np.asarray(each(feed)[name]) for feed in feeds]) for each in (exact, made))
    return 10 * np.log10((wanted**2).sum() / ((found - wanted) ** 2).sum())


def with_bad(name, count, **values):
    feeds = [{key: value.copy() for key, value in feed.items()} for feed in samples(name, count)]
    for number, value in values.items():
        next(iter(feeds[int(number[1:])].values())).flat[5] = value
    return feeds


@pytest.mark.parametrize(("count", "value"), [(10, 1e6), (40, 100), (40, 3e38)])
@pytest.mark.parametrize("name", ["residual", "transformer"])
def test_one_bad_sample_is_named_and_left_out(name, count, value):
    proto = NETWORKS[name][0]()
    feeds = with_bad(name, count, n3=value)
    message = re.escape(f"sample(s) 3 (counted from 0) reach {value:.4g} in tensor")
    with pytest.warns(JaxqWarning, match=message) as found:
        made = jaxq.quantize(proto, feeds)
    assert sum("left out" in str(each.message) for each in found) == 1
    assert made.metadata["jaxq.left_out_samples"] == "3"
    assert made.metadata["jaxq.calibration_samples"] == str(count - 1)
    clean = jaxq.quantize(proto, [*feeds[:3], *feeds[4:]])
    assert made.encodings.keys() == clean.encodings.keys()
    for tensor, each in clean.encodings.items():
        np.testing.assert_array_equal(made.encodings[tensor].scale, each.scale)
    assert noise_ratio(load(proto), made, samples(name, 4, first=900)) > 15


def test_a_tensor_inside_of_the_network_is_looked_at_too():
    proto = written(
        "(float[N, 8] x) => (float[N, 8] y) { t = MatMul (x, twice) r = Reciprocal (t) y = MatMul (r, v) }",
        twice=2 * np.eye(8, dtype=np.float32),
        v=np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32),
    )
    feeds = [{"x": np.random.default_rng(i).uniform(0.5, 2, size=(1, 8)).astype(np.float32)} for i in range(20)]
    feeds[11]["x"][0, 2] = 1e-6
    with pytest.warns(JaxqWarning, match=r"sample\(s\) 11 \(counted from 0\) reach .* in tensor 'r'"):
        made = jaxq.quantize(proto, feeds)
    assert float(made.encodings["r"].scale) * 255 < 10


def test_many_outlying_samples_are_named_and_used():
    feeds = with_bad("residual", 12, n1=1e6, n4=1e6, n7=2e6)
    with pytest.warns(JaxqWarning, match=r"sample\(s\) 1, 4, 7 .* reach 2e\+06 .* used all the same: repair"):
        made = jaxq.quantize(NETWORKS["residual"][0](), feeds)
    assert made.metadata["jaxq.calibration_samples"] == "12"


def test_an_estimator_that_was_asked_for_sees_every_sample():
    chosen = jaxq.AdvancedQuantizationParameters(activations_range_estimator_params="minmax")
    with pytest.warns(JaxqWarning, match="used all the same"):
        made = jaxq.quantize(NETWORKS["residual"][0](), with_bad("residual", 12, n3=1e6), advanced_parameters=chosen)
    assert float(made.encodings["image"].scale) > 1000


def test_nothing_is_said_of_good_samples():
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        jaxq.quantize(NETWORKS["residual"][0](), samples("residual", 12))
    assert not [each for each in found if "reach" in str(each.message)]


def test_numbers_are_those_of_the_data_after_samples_were_left_out():
    model = load(NETWORKS["residual"][0]())
    left = Samples(model, samples("residual", 40), None)
    assert len(list(left)) == 40
    assert left.leave_out({"a": Outliers((3,), (1e6,), 1.0)})
    assert left.leave_out({"b": Outliers((3,), (1e6,), 1.0)})  # the fourth of those that are left
    assert left.left_out == {3, 4}
    assert not left.leave_out({"c": Outliers((1,), (1e6,), 1.0)})  # three of 40 are not a few
    assert len(list(left)) == 38
