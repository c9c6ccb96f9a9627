"""Conversions: the rules that numpy and XLA do not share, and the small floats."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from node_case import Case, assert_agrees, normal, run_jaxq
from onnx import TensorProto, numpy_helper

from jaxq.errors import ModelError, UnsupportedOpError
from jaxq.ops import ELEMENT_TYPES, find
from jaxq.ops.cast import FLOAT8, convert, element_dtype

floats = np.array([0, 0.4, -0.6, 1.5, -2.7, 127.9, -128.9, 300, -300, 65535, 1e9, -1e9], np.float32)
SPECIAL = np.array(
    [np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-40, 0, -0.0, 1, 448, 449, 464, 465, 57344, 6e4, 1e5], np.float32
)

CASES = {
    f"to {ELEMENT_TYPES[to]} at {opset}": Case(op="Cast", inputs=(floats,), opset=opset, attributes={"to": to})
    for opset, to in ((7, 7), (9, 6), (9, 9), (13, 10), (13, 3), (13, 2), (13, 5))
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_agrees_with_the_runtime(case):
    assert_agrees(case)


@given(
    values=st.lists(st.floats(width=32), min_size=1, max_size=8),
    number=st.sampled_from(sorted(set(ELEMENT_TYPES) - {8, 14, 15, 24, 27, 28})),
    saturate=st.booleans(),
)
def test_static_and_traced_values_are_converted_alike(values, number, saturate):
    values = np.array(values, np.float32)
    values[np.abs(values) < 1e-37] = 0  # XLA flushes them
    with jax.enable_x64(True), np.errstate(all="ignore"):
        dtype = element_dtype(number, values)
        static = convert(values, dtype, saturate=saturate)
        traced = np.asarray(convert(jnp.asarray(values), dtype, saturate=saturate))
    assert static.dtype == traced.dtype == dtype
    np.testing.assert_array_equal(static.astype(np.float64), traced.astype(np.float64))


@pytest.mark.parametrize("namespace", [np, jnp])
@pytest.mark.parametrize("name", FLOAT8)
def test_saturation_keeps_float8_finite(name, namespace):
    finite = np.array([np.inf, -np.inf, 1e9, -1e9, 3.0], np.float32)
    got = np.asarray(convert(namespace.asarray(finite), name)).astype(np.float32)
    largest = float(ml_dtypes.finfo(name).max)
    np.testing.assert_array_equal(got, [largest, -largest, largest, -largest, 3])
    open_ended = np.asarray(convert(namespace.asarray(finite), name, saturate=False)).astype(np.float32)
    assert not np.isfinite(open_ended[:4]).any()


@pytest.mark.parametrize("namespace", [np, jnp])
@pytest.mark.parametrize("saturate", [True, False])
@pytest.mark.parametrize("mode", ["up", "down", "nearest"])
def test_powers_of_two_are_onnx_s(mode, saturate, namespace):
    values = np.abs(np.concatenate([normal(50), SPECIAL, np.float32([2**-126, 1.5 * 2**-127, 1.5 * 2**127])]))
    wanted = numpy_helper.to_float8e8m0(values, saturate=saturate, round_mode=mode)
    if namespace is jnp:  # XLA flushes what is below the normal numbers
        values, wanted = values[values >= 2**-126], wanted[values >= 2**-126]
    got = np.asarray(convert(namespace.asarray(values), "float8_e8m0fnu", saturate=saturate, round_mode=mode))
    np.testing.assert_array_equal(got.view(np.uint8), wanted.view(np.uint8))


def test_six_bit_floats_are_converted_while_tracing():
    cast = find("Cast", "", 28).function
    got = cast(np.array([1.0, 3.3, 100], np.float32), to=TensorProto.FLOAT6E2M3)
    assert got.dtype.name == "float6_e2m3fn"
    np.testing.assert_array_equal(got.astype(np.float32), [1, 3.25, 7.5])


def test_strings_become_numbers_and_back():
    cast = find("Cast", "", 13).function
    np.testing.assert_array_equal(
        cast(np.array(["1.5", "-INF", "nan", "1e3"], object), to=1), [1.5, -np.inf, np.nan, 1e3]
    )
    assert cast(np.array([1, 20]), to=8).tolist() == ["1", "20"]


def test_wide_types_are_kept_while_static_and_narrowed_when_traced():
    assert element_dtype(7, np.zeros(1)) == np.int64
    assert element_dtype(7, jnp.zeros(1)) == np.int32
    with jax.enable_x64(True):
        assert element_dtype(11, jnp.zeros(1)) == np.float64


def test_errors_say_what_is_known():
    with pytest.raises(UnsupportedOpError, match="element type 99"):
        element_dtype(99)
    with pytest.raises(UnsupportedOpError, match="round_mode 'odd'; known are"):
        convert(floats, "float8_e8m0fnu", round_mode="odd")
    with pytest.raises(ModelError, match="float32 cannot be read as int8: their widths differ"):
        run_jaxq(Case(op="BitCast", inputs=(floats,), opset=26, attributes={"to": 3}))


@pytest.mark.parametrize("namespace", [np, jnp])
def test_bits_are_read_as_another_type_and_back(namespace):
    bit_cast = find("BitCast", "", 26).function
    there = bit_cast(namespace.asarray(floats), to=6)
    np.testing.assert_array_equal(np.asarray(there), floats.view(np.int32))
    np.testing.assert_array_equal(np.asarray(bit_cast(there, to=1)), floats)
    flags = namespace.asarray(np.array([True, False]))
    np.testing.assert_array_equal(np.asarray(bit_cast(bit_cast(flags, to=2), to=9)), [True, False])
