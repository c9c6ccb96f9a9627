"""Reading and writing by index: early versions, negative and static indices, types."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from node_case import Case, assert_agrees, normal, run_jaxq

from jaxq.errors import ModelError, UnsupportedOpError
from jaxq.ops import find


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


x = normal(3, 4, 5)
places = np.array([[0, -1, 2, 1], [1, 0, -2, 0]], np.int64)
updates = normal(2, 4)
LAST = 2**63 - 1

CASES = {
    "Slice 7": Case(
        op="Slice", inputs=(x,), opset=7, attributes={"starts": [1, -3], "ends": [3, LAST], "axes": [0, 2]}
    ),
    "Slice 7 leading axes": Case(op="Slice", inputs=(x,), opset=7, attributes={"starts": [0, 1], "ends": [-1, 3]}),
    "Slice 10": Case(
        op="Slice", inputs=(x, ints(4, -1), ints(-LAST, -6), ints(2, 1), ints(-2, -1)), opset=10, static=(1, 2, 3, 4)
    ),
    "Gather 7": Case(op="Gather", inputs=(x, ints(1, 0)), opset=7, attributes={"axis": 1}),
    "Gather from the end": Case(op="Gather", inputs=(x, places), opset=11, attributes={"axis": -2}),
    "Gather one": Case(op="Gather", inputs=(x, np.array(-1)), opset=13, static=(1,), attributes={"axis": 2}),
    "Gather static": Case(op="Gather", inputs=(x, places), opset=13, static=(1,)),
    "Gather from constants": Case(op="Gather", inputs=(x, places), opset=13, static=(0,)),
    "GatherElements": Case(op="GatherElements", inputs=(normal(3, 4), places), opset=11),
    "GatherElements of a corner": Case(
        op="GatherElements", inputs=(normal(1, 9), ints(3, 8).reshape(1, 2)), opset=13, attributes={"axis": 1}
    ),
    "GatherND": Case(op="GatherND", inputs=(x, places[:, None, :2]), opset=11),
    "GatherND in batches": Case(
        op="GatherND", inputs=(x[:2], ints(0, -1).reshape(2, 1)), opset=12, attributes={"batch_dims": 1}
    ),
    "Scatter 9": Case(op="Scatter", inputs=(normal(3, 4), np.abs(places), updates), opset=9),
    "ScatterElements": Case(op="ScatterElements", inputs=(normal(3, 4), places, updates), opset=11),
    "ScatterElements add": Case(
        op="ScatterElements",
        inputs=(normal(3, 4), places, updates),
        opset=16,
        attributes={"reduction": "add", "axis": 0},
    ),
    "ScatterElements max": Case(
        op="ScatterElements",
        inputs=(normal(2, 6), places, updates),
        opset=18,
        attributes={"reduction": "max", "axis": 1},
    ),
    "ScatterND": Case(op="ScatterND", inputs=(x, ints(2, 0).reshape(2, 1), normal(2, 4, 5)), opset=11),
    "ScatterND mul": Case(
        op="ScatterND",
        inputs=(x, ints(2, 0, 2, 0).reshape(2, 2), normal(2, 5)),
        opset=16,
        attributes={"reduction": "mul"},
    ),
    "OneHot": Case(
        op="OneHot", inputs=(places, np.array(5), np.float32([2, 7])), opset=11, static=(1,), attributes={"axis": 1}
    ),
    "TopK 7": Case(op="TopK", inputs=(x,), opset=7, outputs=2, attributes={"k": 2, "axis": 1}),
    "TopK 10": Case(op="TopK", inputs=(x, ints(3)), opset=10, outputs=2, static=(1,)),
    "TopK 11 smallest": Case(
        op="TopK", inputs=(x, ints(2)), opset=11, outputs=2, static=(1,), attributes={"largest": 0}
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_agrees_with_the_runtime(case):
    assert_agrees(case)


@given(begin=st.integers(-7, 7), end=st.integers(-7, 7), step=st.integers(-3, 3).filter(bool))
def test_slices_are_onnx_s(begin, end, step):
    """Starts and ends are clamped to the tensor, and an end before the first element includes it, going back."""
    length = 5
    got = find("Slice", "", 13).function(np.arange(length), ints(begin), ints(end), ints(0), ints(step))
    first, last = (v + length if v < 0 else v for v in (begin, end))
    if step > 0:
        wanted = range(min(max(first, 0), length), min(max(last, 0), length), step)
    else:
        wanted = range(min(max(first, 0), length - 1), min(max(last, -1), length - 1), step)
    assert got.tolist() == list(wanted)


def test_smallest_of_integers_includes_the_lowest():
    values = np.array([3, -128, 127, -128], np.int8)
    top_k = find("TopK", "", 24).function
    got, where = top_k(jnp.asarray(values), ints(3), largest=0)
    assert got.tolist() == [-128, -128, 3]
    assert where.tolist() == [1, 3, 0]
    assert top_k(jnp.asarray(values.view(np.uint8)), ints(2), largest=0)[0].tolist() == [3, 127]


@pytest.mark.parametrize("opset, negative", [(9, [0, 0, 0]), (11, [1, 0, 0])])
def test_one_hot_beyond_the_depth_is_all_off(opset, negative):
    got = find("OneHot", "", opset).function(jnp.array([3, -4, -3, 2]), ints(3), np.array([0, 1], np.int32))
    np.testing.assert_array_equal(got, [[0, 0, 0], [0, 0, 0], negative, [0, 0, 1]])


def test_a_circular_cache_goes_on_at_its_start():
    scatter = find("TensorScatter", "", 24).function
    cache, update = np.zeros((2, 1, 4, 1), np.float32), np.ones((2, 1, 2, 1), np.float32)
    got = scatter(cache, update, np.array([3, 1]), mode="circular")
    np.testing.assert_array_equal(got[:, 0, :, 0], [[1, 0, 0, 1], [0, 1, 1, 0]])


def test_what_cannot_be_is_refused():
    with pytest.raises(ModelError, match=r"indices reach 0..7, but axis 1 has length 4"):
        run_jaxq(Case(op="Gather", inputs=(x, ints(0, 7)), opset=13, static=(1,), attributes={"axis": 1}))
    with pytest.raises(UnsupportedOpError, match="reduction 'avg'; known are"):
        run_jaxq(
            Case(op="ScatterND", inputs=(x, ints(0).reshape(1, 1), x[:1]), opset=18, attributes={"reduction": "avg"})
        )
    with pytest.raises(UnsupportedOpError, match="mode 'ring'"):
        run_jaxq(Case(op="TensorScatter", inputs=(x, x), opset=24, attributes={"mode": "ring"}))
