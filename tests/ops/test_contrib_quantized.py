"""com.microsoft operators on quantized tensors against ONNX Runtime's own."""

import numpy as np
import pytest
from node_case import Case, normal, run_jaxq, run_runtime

from jaxq.errors import ModelError

RANDOM = np.random.default_rng(0)


def steps(*shape, dtype=np.uint8):
    limits = np.iinfo(dtype)
    return RANDOM.integers(limits.min, limits.max, shape, dtype, endpoint=True)


def f(value):
    return np.array(value, np.float32)


def u8(value):
    return np.array(value, np.uint8)


def case(op, *inputs, static=(), **attributes):
    return Case(op=op, inputs=inputs, attributes=attributes, static=static, opset=1, domain="com.microsoft")


q, r, channels_last = steps(2, 3, 4), steps(2, 3, 4), steps(1, 6, 6, 4)
image = steps(1, 4, 6, 6)
a, b = steps(5, 16), steps(16, 6, dtype=np.int8)
columns = np.linspace(0.01, 0.02, 6, dtype=np.float32)

CASES = {
    "QLinearAdd": case("QLinearAdd", q, f(0.1), u8(7), r, f(0.2), u8(130), f(0.25), u8(100)),
    "QLinearAdd without the last zero point": case("QLinearAdd", q, f(0.1), u8(7), r[:, :1], f(0.2), u8(130), f(0.3)),
    "QLinearMul": case("QLinearMul", q, f(0.1), u8(7), r, f(0.2), u8(130), f(2.0), u8(100)),
    "QLinearWhere": case("QLinearWhere", q > 90, q, f(0.1), u8(7), r, f(0.2), u8(130), f(0.25), u8(100)),
    "QLinearLeakyRelu": case("QLinearLeakyRelu", q, f(0.1), u8(100), f(0.05), u8(20), static=(1, 2, 3, 4), alpha=0.2),
    "QLinearSigmoid": case("QLinearSigmoid", q, f(0.05), u8(128), f(1 / 256), u8(0), static=(1, 2, 3, 4)),
    "QLinearSoftmax": case(
        "QLinearSoftmax", q, f(0.02), u8(128), f(1 / 256), u8(0), opset=13, axis=-1, static=(1, 2, 3, 4)
    ),
    "QLinearSoftmax of all": case(
        "QLinearSoftmax", q, f(0.02), u8(3), f(1 / 256), u8(0), opset=11, axis=1, static=(1, 2, 3, 4)
    ),
    "QLinearConcat": case(
        "QLinearConcat", f(0.2), u8(50), q, f(0.1), u8(7), r, f(0.2), u8(50), axis=1, static=(0, 1, 3, 4, 6, 7)
    ),
    "QLinearAveragePool": case(
        "QLinearAveragePool",
        image,
        f(0.1),
        u8(9),
        f(0.08),
        u8(20),
        kernel_shape=[3, 2],
        pads=[1, 0, 1, 1],
        strides=[2, 1],
    ),
    "QLinearAveragePool over the padding": case(
        "QLinearAveragePool",
        image,
        f(0.1),
        u8(0),
        f(0.08),
        u8(20),
        kernel_shape=[3, 3],
        pads=[1] * 4,
        count_include_pad=1,
    ),
    "QLinearAveragePool of the last axis": case(
        "QLinearAveragePool", channels_last, f(0.1), u8(9), f(0.08), u8(20), kernel_shape=[2, 2], channels_last=1
    ),
    "NhwcMaxPool": case("NhwcMaxPool", channels_last, kernel_shape=[3, 2], pads=[1, 0, 1, 1], strides=[2, 1]),
    "NhwcMaxPool of signed": case(
        "NhwcMaxPool",
        steps(1, 5, 6, 3, dtype=np.int8),
        kernel_shape=[2, 2],
        dilations=[2, 1],
        ceil_mode=1,
        strides=[2, 2],
    ),
    "QLinearGlobalAveragePool": case("QLinearGlobalAveragePool", image, f(0.1), u8(9), f(0.05), u8(20)),
    "QLinearConv": case(
        "QLinearConv",
        channels_last,
        f(0.02),
        u8(100),
        steps(6, 4, 3, 3, dtype=np.int8),
        columns,
        np.zeros(6, np.int8),
        f(0.5),
        u8(120),
        channels_last=1,
        static=(3, 4, 5),
    ),
    "QGemm": case(
        "QGemm",
        a,
        f(0.02),
        u8(100),
        b.T.copy(),
        columns,
        np.zeros(6, np.int8),
        RANDOM.integers(-999, 999, 6, np.int32),
        f(0.3),
        u8(120),
        transB=1,
        static=(3, 4, 5, 6),
    ),
    "QGemm to float": case("QGemm", a, f(0.02), u8(100), b, f(0.01), np.array(3, np.int8), alpha=0.5),
    "MatMulIntegerToFloat": case(
        "MatMulIntegerToFloat", a, b, f(0.02), columns, u8(100), steps(6, dtype=np.int8), normal(6), static=(1, 3, 5, 6)
    ),
    "DynamicQuantizeMatMul": case(
        "DynamicQuantizeMatMul", normal(5, 16), b, columns, np.zeros(6, np.int8), normal(6), static=(1, 2, 3, 4)
    ),
    "QuantizeLinear": case("QuantizeLinear", normal(2, 3), f(0.1), np.array(9, np.uint16)),
    "DequantizeLinear": case("DequantizeLinear", steps(2, 3), np.float32([0.1, 0.2, 0.3]), u8([1, 2, 3]), axis=1),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_agrees_with_the_runtime(case):
    """Floats to their precision; integers within one step, since the runtime's kernels round in the middle."""
    for got, wanted in zip(run_jaxq(case), run_runtime(case), strict=True):
        assert got.dtype == wanted.dtype
        assert got.shape == wanted.shape
        if got.dtype == np.float32:
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
        else:
            difference = np.abs(got.astype(int) - wanted.astype(int))
            assert difference.max() <= 1
            assert (difference > 0).mean() <= 0.1


def test_integers_are_multiplied_and_summed_in_32_bits():
    [got] = run_jaxq(case("MulInteger", q, u8(3), r, u8(250)))
    np.testing.assert_array_equal(got, (q.astype(int) - 3) * (r.astype(int) - 250))
    [got] = run_jaxq(case("ReduceSumInteger", q, axes=[1], keepdims=0))
    np.testing.assert_array_equal(got, q.sum(1))
    assert got.dtype == np.uint32
    [got] = run_jaxq(case("QLinearReduceMean", q, f(0.1), u8(0), f(0.1), u8(0), axes=[2], keepdims=1))
    np.testing.assert_array_equal(got, np.rint(q.mean(2, keepdims=True)))


def test_tensors_to_concatenate_come_with_scale_and_zero_point():
    with pytest.raises(ModelError, match="4 inputs after the zero point; they come in threes"):
        run_jaxq(case("QLinearConcat", f(0.2), u8(50), q, f(0.1), u8(7), r, axis=1))
