"""Matrix products and softmax: early versions against ONNX Runtime, and extreme values."""

import numpy as np
import pytest
from node_case import Case, assert_agrees, normal, run_jaxq, run_runtime

from jaxq.errors import ModelError

x = normal(2, 3, 4) * 3
a, b, c = normal(3, 4), normal(4, 5), normal(5)


def case(op, opset, *inputs, **attributes):
    return Case(op=op, inputs=inputs, opset=opset, attributes=attributes)


CASES = {
    **{
        f"{name} {opset} on {axis}": case(name, opset, x, axis=axis)
        for name in ("Softmax", "LogSoftmax")
        for opset, axis in ((7, 0), (7, 1), (7, 2), (11, 1), (11, -2), (13, 1), (13, -1))
    },
    "Softmax 7 by default": case("Softmax", 7, x),
    "Softmax 13 by default": case("Softmax", 13, x),
    "LogSoftmax 11 by default": case("LogSoftmax", 11, x),
    "LogSoftmax 13 by default": case("LogSoftmax", 13, x),
    "Softmax of large values": case("Softmax", 13, x * 1e4),
    "LogSoftmax of large values": case("LogSoftmax", 13, x * 1e4),
    "Gemm 7": case("Gemm", 7, a, b, c, alpha=0.5, beta=2.0),
    "Gemm 7 transposed": case("Gemm", 7, a.T, b.T, normal(3, 1), transA=1, transB=1),
    "Gemm 9 with a number": case("Gemm", 9, a, b, np.array(3, np.float32), beta=0.5),
    "Gemm 11 without C": case("Gemm", 11, a, b, alpha=0.25),
    "MatMul broadcasts": case("MatMul", 7, normal(2, 1, 3, 4), normal(5, 4, 2)),
    "MatMul of vectors": case("MatMul", 7, c, c),
    "MatMul by a vector": case("MatMul", 7, x, normal(4)),
    "Einsum": case("Einsum", 12, x, normal(2, 4, 5), equation="bij, bjk -> bik"),
    "Einsum with dots": case("Einsum", 12, x, normal(5, 4), equation="...i,ji->...j"),
    "Einsum of one": case("Einsum", 12, x, equation="abc->cb"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_agrees_with_the_runtime(case):
    assert_agrees(case, rtol=1e-4)


def test_before_opset_7_gemm_says_that_it_broadcasts():
    [got] = run_jaxq(case("Gemm", 6, a, b, c, broadcast=1, alpha=0.5))
    np.testing.assert_allclose(got, 0.5 * a @ b + c, rtol=1e-4, atol=1e-5)


def test_gemm_of_integers():
    """ONNX Runtime's CPU has no kernel for them."""
    whole = [(value * 5).astype(np.int32) for value in (a, b, c)]
    [got] = run_jaxq(case("Gemm", 9, *whole, beta=2.0))
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, whole[0] @ whole[1] + 2 * whole[2])


@pytest.mark.parametrize(
    "name, inputs", [("Gemm", (a, b, c)), ("MatMul", (a, b)), ("Softmax", (x,)), ("LogSoftmax", (x,))]
)
def test_half_floats_stay_half_floats(name, inputs):
    half = [value.astype(np.float16) for value in inputs]
    attributes = {"alpha": 0.3, "beta": 0.7} if name == "Gemm" else {}
    [got] = run_jaxq(case(name, 13, *half, **attributes))
    [wanted] = run_runtime(case(name, 13, *(value.astype(np.float32) for value in half), **attributes))
    assert got.dtype == np.float16
    np.testing.assert_allclose(got, wanted, rtol=3e-3, atol=3e-3)


def test_what_does_not_fit_is_refused():
    with pytest.raises(
        ModelError, match=r"Gemm, opset 13\) cannot run on inputs \['float32\[3, 4\]', 'float32\[3, 4\]'\]"
    ):
        run_jaxq(case("Gemm", 13, a, a))
