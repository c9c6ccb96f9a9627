"""Operators whose output shape depends on the values."""

import jax.numpy as jnp
import numpy as np
import pytest
from node_case import Case, normal, run_jaxq, run_runtime

from jaxq.errors import DynamicShapeError
from jaxq.ops import find

RANDOM = np.random.default_rng(0)
repeated = RANDOM.integers(0, 4, (6, 3), np.int64)


def boxes(count):
    corners = RANDOM.uniform(0, 1, (2, count, 2, 2)).astype(np.float32)
    return corners.reshape(2, count, 4)


NMS = (boxes(30), RANDOM.uniform(0, 1, (2, 3, 30)).astype(np.float32), np.array(9), np.float32(0.3), np.float32(0.2))

CASES = {
    "NonZero": Case(op="NonZero", inputs=(repeated,), opset=9),
    "Compress": Case(
        op="Compress", inputs=(normal(3, 4), np.array([True, False, True])), opset=9, attributes={"axis": 0}
    ),
    "Compress flat": Case(op="Compress", inputs=(normal(3, 4), np.arange(10) % 3 == 0), opset=11),
    "Unique": Case(op="Unique", inputs=(repeated,), opset=11, outputs=4),
    "Unique unsorted": Case(op="Unique", inputs=(repeated,), opset=11, outputs=4, attributes={"sorted": 0}),
    "Unique rows": Case(op="Unique", inputs=(repeated,), opset=11, outputs=4, attributes={"axis": 0}),
    "Unique unsorted columns": Case(
        op="Unique", inputs=(repeated[:2, [0, 1, 0, 2]],), opset=11, outputs=4, attributes={"axis": 1, "sorted": 0}
    ),
    "NonMaxSuppression 10": Case(op="NonMaxSuppression", inputs=NMS, opset=10),
    "NonMaxSuppression centered": Case(
        op="NonMaxSuppression", inputs=NMS, opset=11, attributes={"center_point_box": 1}
    ),
    "NonMaxSuppression without thresholds": Case(op="NonMaxSuppression", inputs=NMS[:3], opset=11),
    "NonMaxSuppression of nothing": Case(op="NonMaxSuppression", inputs=NMS[:2], opset=11),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_is_the_runtime_s(case):
    case = Case(**{**vars(case), "inputs": tuple(np.asarray(value) for value in case.inputs)})
    got = find(case.op, "", case.opset).function(*case.inputs, **case.attributes)
    got = got if isinstance(got, tuple) else (got,)
    for mine, wanted in zip(got, run_runtime(case), strict=True):
        np.testing.assert_array_equal(mine, wanted)
        assert mine.dtype == wanted.dtype


def test_a_known_condition_compresses_traced_data():
    case = Case(op="Compress", inputs=(normal(3, 4), np.array([True, False, True])), opset=9, static=(1,))
    np.testing.assert_array_equal(run_jaxq(case)[0], normal(3, 4).ravel()[[0, 2]])


@pytest.mark.parametrize("value, rows", [(3, 1), (0, 0)])
def test_a_scalar_has_no_axes_to_index(value, rows):
    assert find("NonZero", "", 13).function(np.array(value)).shape == (0, rows)


def test_traced_values_are_refused_with_their_origin():
    with pytest.raises(DynamicShapeError, match=r"NonZero.X must be known before the data is.* It comes from: 'in0'"):
        run_jaxq(Case(op="NonZero", inputs=(repeated,), opset=9))
    with pytest.raises(DynamicShapeError, match=r"NonMaxSuppression.boxes must be known"):
        find("NonMaxSuppression", "", 11).function(jnp.asarray(NMS[0]), *NMS[1:])
