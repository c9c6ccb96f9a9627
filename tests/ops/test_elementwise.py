"""Arithmetic, comparison, logic and bits: what the official suite does not reach."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from node_case import Case, assert_agrees, normal, run_jaxq

from jaxq.errors import UnsupportedOpError
from jaxq.ops import find

x, y = normal(2, 3, 4), normal(2, 3, 4, seed=1)
integers = np.array([7, -7, 9, -9, 0], np.int32)
divisors = np.array([2, 2, -4, -4, 3], np.int32)
bits = np.array([1, 200, 255, 16], np.uint8)

CASES = {
    "Div truncates": Case(op="Div", inputs=(integers, divisors), opset=7),
    "Div unsigned": Case(op="Div", inputs=(bits, np.full(4, 7, np.uint8)), opset=14),
    "Mod as in Python": Case(op="Mod", inputs=(integers, divisors), opset=10),
    "Mod as in C": Case(op="Mod", inputs=(x, y), opset=10, attributes={"fmod": 1}),
    "Pow of an integer": Case(op="Pow", inputs=(np.abs(integers), np.array([2, 1, 3, 0, 2], np.int64)), opset=12),
    "Pow by a fraction": Case(op="Pow", inputs=(np.abs(x), np.float32(0.5)), opset=7, static=(1,)),
    "Pow by 2": Case(op="Pow", inputs=(x, np.float32(2)), opset=7, static=(1,)),
    "Pow in mixed types": Case(op="Pow", inputs=(x, np.array(3, np.int64)), opset=12),
    "Sum without broadcasting": Case(op="Sum", inputs=(x, y, x), opset=7),
    "Sum with broadcasting": Case(op="Sum", inputs=(x, y[0], x[:1, :1]), opset=8),
    "Max": Case(op="Max", inputs=(x, y), opset=7),
    "Min of integers": Case(op="Min", inputs=(integers, divisors), opset=12),
    "Mean": Case(op="Mean", inputs=(x, y, x), opset=7),
    "Clip by attributes": Case(op="Clip", inputs=(x,), opset=7, attributes={"min": -0.5, "max": 0.5}),
    "Clip by one attribute": Case(op="Clip", inputs=(x,), opset=10, attributes={"max": 0.25}),
    "Clip by inputs": Case(op="Clip", inputs=(x, None, np.array(0.25, np.float32)), opset=11),
    "Clip with low above high": Case(
        op="Clip", inputs=(x, np.array(1, np.float32), np.array(-1, np.float32)), opset=13
    ),
    "IsInf below": Case(
        op="IsInf", inputs=(np.array([np.inf, -np.inf, 1], np.float32),), opset=10, attributes={"detect_positive": 0}
    ),
    "Round": Case(op="Round", inputs=(np.array([0.5, 1.5, -0.5, -2.5, 2.4], np.float32),), opset=11),
    "BitShift left": Case(
        op="BitShift", inputs=(bits, np.array([1, 1, 7, 4], np.uint8)), opset=11, attributes={"direction": "LEFT"}
    ),
    "Where": Case(op="Where", inputs=(x > 0, x, y[0]), opset=9),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_agrees_with_the_runtime(case):
    assert_agrees(case)


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("axis, shape", [(None, (4,)), (1, (3,)), (-2, (3,)), (0, (2, 3)), (None, (1,))])
def test_before_opset_7_the_second_operand_is_laid_along_an_axis(op, axis, shape):
    b = normal(*shape) + 3
    attributes = {"broadcast": 1} if axis is None else {"broadcast": 1, "axis": axis}
    [got] = run_jaxq(Case(op=op, inputs=(x, b), opset=6, attributes=attributes))
    laid = b if axis is None else b.reshape({(3,): (3, 1), (2, 3): (2, 3, 1)}[shape])
    wanted = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}[op](x, laid)
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_comparisons_and_logic_before_opset_7():
    [got] = run_jaxq(Case(op="Greater", inputs=(x, normal(3)), opset=6, attributes={"broadcast": 1, "axis": 1}))
    np.testing.assert_array_equal(got, x > normal(3)[:, None])
    [got] = run_jaxq(Case(op="And", inputs=(x > 0, y > 0), opset=6))
    np.testing.assert_array_equal(got, (x > 0) & (y > 0))


@given(
    a=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=5, max_size=5),
    b=st.lists(st.integers(-(2**31), 2**31 - 1).filter(bool), min_size=5, max_size=5),
)
def test_integer_quotients_and_remainders_fit_together(a, b):
    """a == b * Div(a, b) + Mod(a, b, fmod=1), static and traced alike."""
    div, mod = find("Div", "", 14).function, find("Mod", "", 13).function
    a, b = np.array(a, np.int32), np.array(b, np.int32)
    keep = ~((a == -(2**31)) & (b == -1))  # overflows
    a, b = a[keep], b[keep]
    quotient, remainder = div(a, b), mod(a, b, fmod=1)
    np.testing.assert_array_equal(b * quotient + remainder, a)
    np.testing.assert_array_equal(div(jnp.asarray(a), jnp.asarray(b)), quotient)
    np.testing.assert_array_equal(mod(jnp.asarray(a), jnp.asarray(b), fmod=1), remainder)


def test_a_square_is_a_product_and_has_a_derivative_at_zero():
    power = find("Pow", "", 15).function
    assert jax.grad(lambda v: power(v, np.float32(2)))(0.0) == 0
    assert "integer_pow" in str(jax.make_jaxpr(lambda v: power(v, np.float32(3)))(jnp.float32(2)))


def test_shifts_beyond_the_width_leave_the_sign():
    shift = find("BitShift", "", 28).function
    values, amounts = np.array([-5, 5, -5, 5], np.int8), np.array([8, 100, -1, -1], np.int8)
    for namespace in (np, jnp):
        got = shift(namespace.asarray(values), namespace.asarray(amounts), direction="RIGHT")
        np.testing.assert_array_equal(got, [-1, 0, -1, 0])
        got = shift(namespace.asarray(values), namespace.asarray(amounts), direction="LEFT")
        np.testing.assert_array_equal(got, 0)


def test_an_unknown_direction_is_refused():
    with pytest.raises(UnsupportedOpError, match="direction 'UP'; known are"):
        run_jaxq(Case(op="BitShift", inputs=(bits, bits), opset=11, attributes={"direction": "UP"}))


def test_zero_remainders_have_the_sign_of_the_divisor():
    mod = find("Mod", "", 28).function
    a, b = np.array([4, -4, 0, -0.0], np.float32), np.array([-2, 2, -3, 3], np.float32)
    np.testing.assert_array_equal(np.signbit(mod(jnp.asarray(a), jnp.asarray(b))), np.signbit(b))
    np.testing.assert_array_equal(np.signbit(mod(a, b)), np.signbit(b))
