"""Reductions: early versions, empty axes and empty tensors, integers."""

import jax.numpy as jnp
import numpy as np
import pytest
from node_case import Case, assert_agrees, normal

from jaxq.ops import find

x = np.abs(normal(2, 3, 4)) + 0.1
REDUCTIONS = [
    f"Reduce{kind}" for kind in ("Sum", "Prod", "Mean", "Max", "Min", "L1", "L2", "SumSquare", "LogSum", "LogSumExp")
]
integers = np.arange(24, dtype=np.int32).reshape(2, 3, 4)


@pytest.mark.parametrize("op", REDUCTIONS)
@pytest.mark.parametrize("opset", [7, 11])
def test_axes_as_an_attribute(op, opset):
    assert_agrees(Case(op=op, inputs=(x,), opset=opset, attributes={"axes": [0, 2], "keepdims": 0}))
    assert_agrees(Case(op=op, inputs=(x,), opset=opset))


@pytest.mark.parametrize("op", REDUCTIONS)
def test_axes_as_an_input(op):
    axes = np.array([-1, 0], np.int64)
    assert_agrees(Case(op=op, inputs=(x, axes), opset=18, static=(1,)))
    assert_agrees(Case(op=op, inputs=(x,), opset=18, attributes={"keepdims": 0}))


@pytest.mark.parametrize("op", ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceProd", "ReduceL2"])
def test_integers_stay_integers(op):
    opset = 12 if op == "ReduceMax" else 11
    assert_agrees(Case(op=op, inputs=(integers[:1, :2] + 1,), opset=opset, attributes={"axes": [2]}))


@pytest.mark.parametrize("namespace", [np, jnp])
def test_empty_axes_reduce_nothing_when_asked(namespace):
    for op, wanted in {"ReduceSum": x, "ReduceL1": x, "ReduceSumSquare": x * x, "ReduceLogSum": np.log(x)}.items():
        got = find(op, "", 18).function(namespace.asarray(x), np.array([], np.int64), noop_with_empty_axes=1)
        np.testing.assert_allclose(got, wanted, rtol=1e-6)
        assert find(op, "", 18).function(namespace.asarray(x), np.array([], np.int64)).shape == (1, 1, 1)


@pytest.mark.parametrize("namespace", [np, jnp])
def test_extremes_of_nothing(namespace):
    for dtype, lowest, highest in ((np.float32, -np.inf, np.inf), (np.int8, -128, 127), (np.uint8, 0, 255)):
        nothing = namespace.zeros((0, 2), dtype)
        assert find("ReduceMax", "", 20).function(nothing, np.array([0])).tolist() == [[lowest] * 2]
        assert find("ReduceMin", "", 20).function(nothing, np.array([0])).tolist() == [[highest] * 2]


CASES = {
    "ArgMax 7": Case(op="ArgMax", inputs=(x,), opset=7, attributes={"axis": 1}),
    "ArgMin 11": Case(op="ArgMin", inputs=(x,), opset=11, attributes={"axis": -1, "keepdims": 0}),
    "ArgMax last": Case(
        op="ArgMax", inputs=(np.ones((2, 3), np.float32),), opset=12, attributes={"select_last_index": 1}
    ),
    "Hardmax 7": Case(op="Hardmax", inputs=(x,), opset=7),
    "Hardmax 11 axis 2": Case(op="Hardmax", inputs=(x,), opset=11, attributes={"axis": 2}),
    "Hardmax 11 axis 0": Case(op="Hardmax", inputs=(x,), opset=11, attributes={"axis": 0}),
    "Hardmax 13": Case(op="Hardmax", inputs=(x,), opset=13, attributes={"axis": 1}),
    "CumSum": Case(op="CumSum", inputs=(integers, np.array(1)), opset=11, static=(1,)),
    "CumSum exclusive reverse": Case(
        op="CumSum", inputs=(x, np.array(-1)), opset=14, static=(1,), attributes={"exclusive": 1, "reverse": 1}
    ),
    "Det": Case(op="Det", inputs=(normal(2, 3, 3),), opset=11),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_agrees_with_the_runtime(case):
    assert_agrees(case)


@pytest.mark.parametrize("name, one_more", [("CumSum", np.add), ("CumProd", np.multiply)])
def test_the_inclusive_result_is_the_exclusive_one_and_one_more(name, one_more):
    cumulate = find(name, "", 26).function
    for reverse in (0, 1):
        exclusive = cumulate(x, np.array(2), exclusive=1, reverse=reverse)
        np.testing.assert_allclose(one_more(exclusive, x), cumulate(x, np.array(2), reverse=reverse), rtol=1e-6)
