import numpy as np

from jaxq.algorithms.biases import accepted, moved_biases


def test_a_shift_above_the_threshold_is_refused():
    bias, output = np.array([0.0, 1.0]), np.array([0.5, 0.5])
    assert accepted(np.array([1.9, 0.0]), bias, output, 2.0)
    assert not accepted(np.array([2.1, 0.0]), bias, output, 2.0)
    assert not accepted(np.array([np.nan, 0.0]), bias, output, 2.0)
    assert accepted(np.array([1.0]), np.array([0.0]), np.array([1.0]), 2.0)  # a bias of zeros is no obstacle


def test_each_bias_is_moved_or_left_by_itself_and_keeps_its_type():
    params = {"a": np.ones(2, np.float16), "b": np.ones(2, np.float32), "w": np.ones((2, 2), np.float32)}
    shifts, outputs = {"a": np.array([0.5, 0.0]), "b": np.array([9.0, 0.0])}, dict.fromkeys("ab", np.zeros(2))
    moved = moved_biases(params, shifts, outputs, 2.0)
    np.testing.assert_array_equal(moved["a"], np.float16([1.5, 1.0]))
    assert moved["a"].dtype == np.float16
    assert moved["b"] is params["b"]
    assert moved["w"] is params["w"]
    np.testing.assert_array_equal(params["a"], 1)
