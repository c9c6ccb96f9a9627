"""Normalizations: early versions against ONNX Runtime, the types of the statistics, and what is refused."""

import numpy as np
import pytest
from node_case import Case, assert_agrees, normal, run_jaxq, run_runtime

from jaxq.errors import ModelError, UnsupportedOpError

x = normal(2, 3, 4, 5) * 2 + 1
scale, bias, mean = normal(3, seed=1), normal(3, seed=2), normal(3, seed=3)
variance = normal(3, seed=4) ** 2
row = normal(5, seed=1), normal(5, seed=2)
plane = normal(4, 5, seed=1), normal(4, 5, seed=2)


def case(op, opset, *inputs, outputs=1, **attributes):
    return Case(op=op, inputs=inputs, opset=opset, outputs=outputs, attributes=attributes)


CASES = {
    "BatchNormalization 7": case("BatchNormalization", 7, x, scale, bias, mean, variance, epsilon=1e-3),
    "BatchNormalization 9": case("BatchNormalization", 9, x, scale, bias, mean, variance),
    "BatchNormalization 14": case("BatchNormalization", 14, x, scale, bias, mean, variance, momentum=0.5),
    "BatchNormalization 15 of rows": case("BatchNormalization", 15, x[:, :, 0, 0], scale, bias, mean, variance),
    "InstanceNormalization 6": case("InstanceNormalization", 6, x, scale, bias, epsilon=1e-2),
    "InstanceNormalization of lines": case("InstanceNormalization", 6, x[..., 0], scale, bias),
    "LayerNormalization 17": case("LayerNormalization", 17, x, *row, outputs=3),
    "LayerNormalization 17 from an axis": case("LayerNormalization", 17, x, *plane, axis=2, epsilon=1e-2, outputs=3),
    "LayerNormalization 17 without bias": case("LayerNormalization", 17, x, row[0], axis=-1),
    "LayerNormalization before 17": case("LayerNormalization", 11, x, *row),
    "SimplifiedLayerNormalization": case("SimplifiedLayerNormalization", 11, x, row[0]),
    "RMSNormalization": case("RMSNormalization", 23, x, row[0], epsilon=1e-2),
    "GroupNormalization 18": case("GroupNormalization", 18, normal(2, 6, 4), scale, bias, num_groups=3),
    "GroupNormalization 21": case("GroupNormalization", 21, x, scale, bias, num_groups=1),
    "LRN": case("LRN", 7, normal(2, 7, 3, 3), size=3, alpha=0.2, beta=0.6, bias=2.0),
    "LRN of all channels": case("LRN", 13, x, size=5, alpha=0.5),
    "LpNormalization": case("LpNormalization", 7, x, axis=1, p=1),
    "LpNormalization by default": case("LpNormalization", 7, x),
    "MeanVarianceNormalization 9": case("MeanVarianceNormalization", 9, x),
    "MeanVarianceNormalization 13 on axes": case("MeanVarianceNormalization", 13, x, axes=[1, 3]),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_agrees_with_the_runtime(case):
    assert_agrees(case, rtol=1e-4)


def test_an_even_window_of_channels_reaches_further_up():
    """ONNX Runtime takes odd sizes only. Source: ONNX LRN-13, which rounds half of size - 1 down before a channel."""
    data = normal(1, 5, 2)
    [got] = run_jaxq(case("LRN", 13, data, size=4, alpha=0.8, beta=0.5))
    squares = [np.sum(data[0, max(0, c - 1) : c + 3] ** 2, axis=0) for c in range(5)]
    np.testing.assert_allclose(got[0], data[0] / (1 + 0.2 * np.array(squares)) ** 0.5, rtol=1e-5)


def test_before_opset_9_each_cell_may_have_its_own_statistics():
    """ONNX Runtime no longer knows `spatial=0`."""
    cells = [normal(3, 4, 5, seed=seed) for seed in (1, 2, 3)]
    spread = normal(3, 4, 5, seed=4) ** 2
    [got] = run_jaxq(case("BatchNormalization", 7, x, *cells, spread, spatial=0))
    wanted = (x - cells[2]) / np.sqrt(spread + 1e-5) * cells[0] + cells[1]
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


HALF = {
    "BatchNormalization": case("BatchNormalization", 14, x, scale, bias, mean, variance),
    "InstanceNormalization": case("InstanceNormalization", 6, x, scale, bias),
    "LayerNormalization": case("LayerNormalization", 17, x, *row, outputs=3),
    "RMSNormalization": case("RMSNormalization", 23, x, row[0]),
    "GroupNormalization": case("GroupNormalization", 21, x, scale, bias, num_groups=3),
    "LRN": case("LRN", 13, x, size=3),
    "LpNormalization": case("LpNormalization", 7, x),
    "MeanVarianceNormalization": case("MeanVarianceNormalization", 13, x),
}


@pytest.mark.parametrize("single", HALF.values(), ids=HALF)
def test_half_floats_stay_half_floats(single):
    rounded = [value.astype(np.float16) for value in single.inputs]
    half = case(single.op, single.opset, *rounded, outputs=single.outputs, **single.attributes)
    exact = case(
        single.op, single.opset, *(v.astype(np.float32) for v in rounded), outputs=single.outputs, **single.attributes
    )
    got, wanted = run_jaxq(half), run_runtime(exact)
    assert [value.dtype.name for value in got] == ["float16", "float32", "float32"][: single.outputs]
    np.testing.assert_allclose(got[0], wanted[0], rtol=5e-3, atol=1e-2)


def test_statistics_may_be_wider_than_the_data():
    data, factors = x.astype(np.float16), (scale.astype(np.float16), bias.astype(np.float16))
    [got] = run_jaxq(case("BatchNormalization", 15, data, *factors, mean, variance))
    [wanted] = run_runtime(case("BatchNormalization", 15, x, scale, bias, mean, variance))
    assert got.dtype == np.float16
    np.testing.assert_allclose(got, wanted, rtol=1e-2, atol=2e-2)


def test_a_row_of_zeros_has_no_direction():
    [got] = run_jaxq(case("LpNormalization", 22, np.zeros((2, 3), np.float32)))
    np.testing.assert_array_equal(got, 0)


def test_what_is_not_implemented_is_refused():
    inputs = (x, scale, bias, mean, variance)
    with pytest.raises(UnsupportedOpError, match="in training mode; export the model in evaluation mode"):
        run_jaxq(case("BatchNormalization", 15, *inputs, training_mode=1))
    with pytest.raises(UnsupportedOpError, match="in training mode"):
        run_jaxq(case("BatchNormalization", 7, *inputs, outputs=5))
    with pytest.raises(UnsupportedOpError, match="p = 3; LpNormalization is defined for 1 and 2"):
        run_jaxq(case("LpNormalization", 22, x, p=3))
    with pytest.raises(ModelError, match="3 channels cannot be split into 2 groups"):
        run_jaxq(case("GroupNormalization", 21, x, scale, bias, num_groups=2))
