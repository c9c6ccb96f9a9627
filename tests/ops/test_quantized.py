"""Quantization inside the graph: exact against ONNX Runtime, and against the formulas where it has no kernel."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from node_case import Case, normal, run_jaxq, run_runtime

from jaxq.errors import ModelError, UnsupportedOpError
from jaxq.ops import find

RANDOM = np.random.default_rng(0)
x = normal(2, 3, 4) * 3


def steps(*shape, dtype=np.uint8):
    limits = np.iinfo(dtype)
    return RANDOM.integers(limits.min, limits.max, shape, dtype, endpoint=True)


def scalar(value, dtype=np.float32):
    return np.array(value, dtype)


a, b = steps(5, 40), steps(40, 6, dtype=np.int8)
image, kernel = steps(2, 4, 7, 6), steps(6, 4, 3, 3, dtype=np.int8)
column_scales = np.linspace(0.01, 0.03, 6, dtype=np.float32)

CASES = {
    "QuantizeLinear 10": Case(op="QuantizeLinear", inputs=(x, scalar(0.1), scalar(9, np.uint8)), opset=10),
    "QuantizeLinear without a zero point": Case(op="QuantizeLinear", inputs=(x, scalar(0.1)), opset=10),
    "QuantizeLinear 13 by channel": Case(
        op="QuantizeLinear",
        inputs=(x, np.float32([0.1, 0.2, 0.01]), np.int8([0, -3, 100])),
        opset=13,
        attributes={"axis": -2},
    ),
    "QuantizeLinear 21 in blocks": Case(
        op="QuantizeLinear",
        inputs=(x, np.abs(normal(2, 3, 2)) + 0.1, steps(2, 3, 2, dtype=np.int16)),
        opset=21,
        attributes={"axis": 2, "block_size": 3},
    ),
    "QuantizeLinear of ties": Case(
        op="QuantizeLinear",
        inputs=(np.arange(-50, 50, dtype=np.float32) / 4, scalar(0.5), scalar(128, np.uint8)),
        opset=13,
    ),
    "DequantizeLinear 10": Case(
        op="DequantizeLinear", inputs=(steps(2, 3), scalar(0.1), scalar(9, np.uint8)), opset=10
    ),
    "DequantizeLinear of a bias": Case(
        op="DequantizeLinear",
        inputs=(np.int32([10**8 + 1, -5, 7]), np.float32([0.1, 0.2, 0.3])),
        opset=13,
        attributes={"axis": 0},
    ),
    "DequantizeLinear 21 in blocks": Case(
        op="DequantizeLinear",
        inputs=(steps(5, 4), np.abs(normal(3, 4)), steps(3, 4)),
        opset=21,
        attributes={"axis": 0, "block_size": 2},
    ),
    "DynamicQuantizeLinear": Case(op="DynamicQuantizeLinear", inputs=(x,), opset=11, outputs=3),
    "DynamicQuantizeLinear of positive numbers": Case(
        op="DynamicQuantizeLinear", inputs=(np.abs(x) + 1,), opset=11, outputs=3
    ),
    "MatMulInteger": Case(op="MatMulInteger", inputs=(a, b, scalar(7, np.uint8), scalar(-3, np.int8)), opset=10),
    "MatMulInteger without zero points": Case(op="MatMulInteger", inputs=(a, steps(40, 3)), opset=10),
    "MatMulInteger by column": Case(
        op="MatMulInteger", inputs=(a, b, scalar(7, np.uint8), steps(6, dtype=np.int8)), opset=10, static=(3,)
    ),
    "MatMulInteger in batches": Case(
        op="MatMulInteger", inputs=(steps(2, 3, 4), steps(2, 4, 5), scalar(1, np.uint8), scalar(2, np.uint8)), opset=10
    ),
    "ConvInteger": Case(
        op="ConvInteger",
        inputs=(image, steps(6, 4, 3, 3), scalar(3, np.uint8), scalar(5, np.uint8)),
        opset=10,
        attributes={"pads": [1, 1, 1, 1], "strides": [2, 1]},
    ),
    "QLinearMatMul": Case(
        op="QLinearMatMul",
        inputs=(
            a,
            scalar(0.02),
            scalar(100, np.uint8),
            b,
            column_scales,
            np.zeros(6, np.int8),
            scalar(0.3),
            scalar(120, np.uint8),
        ),
        opset=10,
        static=(4, 5),
    ),
    "QLinearConv": Case(
        op="QLinearConv",
        inputs=(
            image,
            scalar(0.02),
            scalar(100, np.uint8),
            kernel,
            column_scales,
            np.zeros(6, np.int8),
            scalar(0.5),
            scalar(120, np.uint8),
            RANDOM.integers(-9999, 9999, 6, np.int32),
        ),
        opset=10,
        static=(3, 4, 5, 8),
        attributes={"pads": [0, 1, 1, 0], "dilations": [2, 1]},
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_is_exactly_the_runtime_s(case):
    for got, wanted in zip(run_jaxq(case), run_runtime(case), strict=True):
        np.testing.assert_array_equal(got, wanted)
        assert got.dtype == wanted.dtype


@given(
    values=st.lists(st.integers(-1000, 1000), min_size=2, max_size=20),
    scale=st.floats(0.0625, 10, width=32),
    zero_point=st.integers(0, 255),
)
def test_division_is_exact_at_ties(values, scale, zero_point):
    """Halves of the scale are ties; a multiplication by the reciprocal would break some of them the other way."""
    scale, zero_point = np.float32(scale), np.uint8(zero_point)
    ties = (np.array(values) / 2).astype(np.float32) * scale
    quantize = find("QuantizeLinear", "", 13).function
    wanted = np.clip(np.rint(ties / scale) + zero_point, 0, 255).astype(np.uint8)
    traced = jax.jit(quantize)(ties, scale, zero_point)
    np.testing.assert_array_equal(traced, wanted)
    np.testing.assert_array_equal(quantize(ties, scale, zero_point), wanted)


@pytest.mark.parametrize("namespace", [np, jnp])
def test_types_come_from_the_zero_point_or_the_attribute(namespace):
    quantize = find("QuantizeLinear", "", 25).function
    values = namespace.asarray(np.array([-9.0, -1.6, 0.5, 1.5, 9.0], np.float32))
    for number, name, wanted in (
        (22, "int4", [-8, -2, 0, 2, 7]),
        (21, "uint4", [0, 0, 0, 2, 9]),
        (26, "int2", [-2, -2, 0, 1, 1]),
        (25, "uint2", [0, 0, 0, 2, 3]),
        (5, "int16", [-9, -2, 0, 2, 9]),
        (23, "float4_e2m1fn", [-6, -1.5, 0.5, 1.5, 6]),
    ):
        by_attribute = np.asarray(quantize(values, np.float32(1), output_dtype=number))
        by_zero_point = np.asarray(quantize(values, np.float32(1), np.zeros((), name)))
        assert by_attribute.dtype.name == by_zero_point.dtype.name == name
        np.testing.assert_array_equal(by_attribute.astype(np.float32), wanted)
        np.testing.assert_array_equal(by_zero_point.astype(np.float32), wanted)


def test_float8_saturates_unless_told_otherwise():
    quantize = find("QuantizeLinear", "", 19).function
    values, zero_point = np.array([1000.0, 3.1], np.float32), np.zeros((), ml_dtypes.float8_e4m3fn)
    np.testing.assert_array_equal(quantize(values, np.float32(1), zero_point).astype(np.float32), [448, 3])
    open_ended = quantize(values, np.float32(1), zero_point, saturate=0).astype(np.float32)
    np.testing.assert_array_equal(open_ended, [np.nan, 3])


@pytest.mark.parametrize("namespace", [np, jnp])
def test_powers_of_two_are_scales_that_nothing_is_computed_in(namespace):
    scale = np.array([0.5, 4], np.float32).astype(ml_dtypes.float8_e8m0fnu)
    quantize, dequantize = find("QuantizeLinear", "", 24).function, find("DequantizeLinear", "", 24).function
    values = namespace.asarray(np.array([[1.3, 9.0]], np.float32))
    q = quantize(values, scale, output_dtype=3)
    np.testing.assert_array_equal(np.asarray(q), [[3, 2]])
    np.testing.assert_array_equal(np.asarray(dequantize(q, scale, output_dtype=1)), [[1.5, 8.0]])


@pytest.mark.parametrize("terms, channels", [(257, 257), (258, 258), (4200, 4200), (17000, 17000)])
def test_integer_convolutions_stay_exact_when_float32_would_not(terms, channels):
    convolve = find("ConvInteger", "", 10).function
    data, weights = steps(1, channels, 1, 2), steps(2, channels, 1, 1, dtype=np.int8)
    data[:, :, 0, 0], weights[0] = 255, 127  # the largest sum
    weights[1, ::2] = -128
    got = convolve(jnp.asarray(data), jnp.asarray(weights), np.uint8(0), np.int8(-128))
    wanted = np.einsum("nchw,oc->nohw", data.astype(np.int64), weights[:, :, 0, 0].astype(np.int64) + 128)
    np.testing.assert_array_equal(got, wanted)


def test_grouped_integer_convolution():
    weights = steps(4, 1, 3, 3, dtype=np.int8)
    case = Case(op="ConvInteger", inputs=(image, weights), opset=10, attributes={"group": 4})
    whole = np.zeros((4, 4, 3, 3), np.int8)
    whole[range(4), range(4)] = weights[:, 0]
    np.testing.assert_array_equal(
        run_jaxq(case)[0], run_jaxq(Case(op="ConvInteger", inputs=(image, whole), opset=10))[0]
    )


def test_vectors_multiply_as_in_numpy():
    multiply = find("MatMulInteger", "", 10).function
    row, column = steps(4), steps(4, dtype=np.int8)
    assert multiply(row, column).tolist() == row.astype(int) @ column.astype(int)
    matrix = steps(3, 4)
    np.testing.assert_array_equal(multiply(matrix, column, np.uint8(2)), (matrix.astype(int) - 2) @ column.astype(int))


def test_what_cannot_be_is_refused():
    with pytest.raises(ModelError, match=r"shape \[2\] does not fit axis 1 of \[2, 3, 4\]"):
        run_jaxq(Case(op="QuantizeLinear", inputs=(x, np.float32([1, 2]), np.uint8([0, 0])), opset=13))
    with pytest.raises(UnsupportedOpError, match="over 40000 terms are not supported"):
        run_jaxq(Case(op="ConvInteger", inputs=(steps(1, 40000, 1, 1), steps(1, 40000, 1, 1)), opset=10))
