"""Whether calibration data can be what they are meant to be."""

import ml_dtypes
import numpy as np
import pytest

from jaxq.data.check import DataCheck, image_axes
from jaxq.errors import CalibrationError


def warnings_of(samples) -> list[str]:
    check = DataCheck(samples)
    list(check)
    return check.warnings()


def noise(count: int, *shape: int):
    random = np.random.default_rng(0)
    return [{"x": random.normal(size=shape).astype(np.float32)} for _ in range(count)]


def test_samples_pass_through_unchanged():
    samples = noise(3, 1, 4)
    assert all(given is seen for given, seen in zip(samples, DataCheck(samples), strict=True))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("value, word", [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")])
def test_a_value_that_is_not_finite_is_an_error_that_says_where(dtype, value, word):
    samples = [{"y": np.zeros((1, 5), dtype)}, {"y": np.array([[0, value, value, 1, 2]], dtype)}]
    given = iter(DataCheck(samples))
    next(given)
    with pytest.raises(CalibrationError, match=rf"sample 1 \(counted from 0\): input 'y' holds {word}, in 2 of 5"):
        next(given)


def test_identical_samples_are_suspicious():
    sample = {"x": np.arange(4, dtype=np.float32), "mask": np.ones(4, np.int64)}
    assert "all 3 calibration samples are identical" in warnings_of([sample] * 3)[0]
    assert warnings_of([sample]) == []
    assert warnings_of([sample, sample, sample | {"mask": np.zeros(4, np.int64)}]) == []


def test_a_buffer_that_is_filled_anew_is_not_mistaken_for_identical_samples():
    def samples():
        buffer = np.zeros(4, np.float32)
        for number in range(3):
            buffer[:] = range(number, number + 4)
            yield {"x": buffer}

    assert warnings_of(samples()) == []


def test_a_constant_input_is_suspicious():
    assert "constant: every element of a calibration sample has the same value (0)" in " ".join(
        warnings_of([{"x": np.zeros((1, 4), np.float32)}] * 2)
    )
    assert "(from 1 to 3)" in warnings_of([{"x": np.full((1, 4), value, np.float32)} for value in (1, 3, 2)])[0]
    assert warnings_of([{"x": np.full((1, 4), value, np.float32)} for value in (1, 3)] + noise(1, 1, 4)) == []


def test_constant_masks_and_scalars_are_usual():
    samples = [{"x": sample["x"], "mask": np.ones(9, np.int64), "rate": np.float32(16000)} for sample in noise(2, 1, 4)]
    assert warnings_of(samples) == []


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (1, 32, 32, 3), (1, 1, 64, 64)])
def test_white_noise_in_place_of_images_is_suspicious(shape):
    assert "looks like random noise" in warnings_of(noise(1, *shape))[0]
    random = np.random.default_rng(0)
    assert "looks like random noise" in warnings_of([{"x": random.integers(0, 256, shape, np.uint8)}])[0]


def test_smooth_images_are_not_noise_even_with_noise_on_them():
    ramp = np.linspace(0, 4, 32, dtype=np.float32)
    images = [{"x": sample["x"] + ramp[:, None] + ramp} for sample in noise(4, 1, 3, 32, 32)]
    assert warnings_of(images) == []


def test_images_whose_brightness_differs_do_not_hide_that_they_are_noise():
    images = [{"x": sample["x"] + 100 * number} for number, sample in enumerate(noise(4, 1, 3, 32, 32))]
    assert "looks like random noise" in warnings_of(images)[0]


def test_too_little_to_tell_is_not_called_noise():
    assert warnings_of(noise(2, 1, 1, 8, 8)) == []


@pytest.mark.parametrize(
    "shape, axes",
    [((1, 3, 8, 9), (2, 3)), ((1, 8, 9, 3), (1, 2)), ((1, 3, 7, 9), None), ((1, 64, 8, 8), None), ((1, 64), None)],
)
def test_an_image_has_few_channels_and_two_long_axes(shape, axes):
    assert image_axes(np.zeros(shape, np.float32)) == axes


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["cifar_resnet20", "mnist_cnn", "kws_dscnn", "dncnn_s25", "minilm_stsb", "mobilenetv1_x0.25"]
)
def test_real_calibration_data_raise_no_suspicion(evaluate, name):
    assert warnings_of(evaluate.TASKS[name].calib(16)) == []
