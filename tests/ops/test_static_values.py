"""Static and traced values give the same: shape arithmetic runs in numpy, the same arithmetic on data in JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxq.ops import find
from jaxq.ops.budget import Budget
from jaxq.ops.evaluate import run_static

OPSET = 28


def ints(*values):
    return np.array(values, np.int64)


ramp = np.arange(24, dtype=np.int64).reshape(2, 3, 4) - 11
halves = ramp.astype(np.float32) / 2
flags = ramp % 3 == 0
same = np.array([3, 5, -7, 9], np.int64)

CASES = {
    "Add": (ramp, same),
    "Sub": (ramp, same),
    "Mul": (ramp, same),
    "Div": (ramp, same),
    "Mod": (ramp, same),
    "Pow": (ramp, np.array(2, np.int64)),
    "Neg": (ramp,),
    "Abs": (ramp,),
    "Sign": (ramp,),
    "Floor": (halves,),
    "Ceil": (halves,),
    "Round": (halves,),
    "Sqrt": (np.abs(halves),),
    "Reciprocal": (halves + 0.25,),
    "Not": (flags,),
    "And": (flags, ~flags),
    "Or": (flags, ~flags),
    "Xor": (flags, ~flags),
    "Equal": (ramp, ramp[::-1]),
    "Less": (ramp, same),
    "LessOrEqual": (ramp, same),
    "Greater": (ramp, same),
    "GreaterOrEqual": (ramp, same),
    "Where": (flags, ramp, same),
    "Max": (ramp, same, ramp[::-1]),
    "Min": (ramp, same),
    "Sum": (ramp, same, ramp),
    "Mean": (halves, halves[::-1]),
    "Clip": (ramp, np.array(-2, np.int64), np.array(5, np.int64)),
    "IsNaN": (halves,),
    "BitwiseAnd": (ramp, same),
    "BitwiseNot": (ramp,),
    "Cast": (halves, {"to": 7}),
    "CastLike": (halves, ramp),
    "Identity": (ramp,),
    "Shape": (ramp, {"start": 1}),
    "Size": (ramp,),
    "Reshape": (ramp, ints(0, -1)),
    "Flatten": (ramp,),
    "Transpose": (ramp, {"perm": (2, 0, 1)}),
    "Squeeze": (ramp[:, :1], ints(1)),
    "Unsqueeze": (ramp, ints(0, -1)),
    "Concat": (ramp, ramp[:, :1], {"axis": 1}),
    "Split": (ramp, ints(1, 2), {"axis": 1, "output_count": 2}),
    "Expand": (ramp[:, :1], ints(2, 3, 1)),
    "Tile": (ramp, ints(1, 2, 1)),
    "Pad": (ramp, ints(1, 0, -1, 0, 2, 0), np.array(7, np.int64)),
    "Trilu": (ramp, np.array(1, np.int64), {"upper": 0}),
    "EyeLike": (ramp[0], {"k": 1}),
    "DepthToSpace": (ramp.reshape(1, 4, 2, 3), {"blocksize": 2}),
    "ReverseSequence": (ramp, ints(1, 2, 2)),
    "Slice": (ramp, ints(-1, 0), ints(0, 9), ints(2, 0), ints(-2, 1)),
    "Gather": (ramp, ints(-1, 0, 1), {"axis": 1}),
    "GatherElements": (ramp, ramp % 4 - 2, {"axis": 2}),
    "GatherND": (ramp, np.array([[1, -1], [0, 2]], np.int64)),
    "ScatterElements": (
        ramp,
        ints(2, -2).reshape(1, 1, 2),
        ints(100, 200).reshape(1, 1, 2),
        {"axis": 1, "reduction": "add"},
    ),
    "ScatterND": (ramp, np.array([[1, -1]], np.int64), ramp[0, :1], {"reduction": "max"}),
    "OneHot": (ints(0, -1, 7), np.array(3, np.int64), ints(5, 6)),
    "Compress": (ramp, np.array([True, False, True]), {"axis": 1}),
    "ReduceSum": (ramp, ints(1)),
    "ReduceProd": (ramp, ints(-1), {"keepdims": 0}),
    "ReduceMax": (ramp, ints(0)),
    "ReduceMin": (ramp,),
    "ReduceMean": (halves, ints(2)),
    "ReduceL1": (ramp, ints(2)),
    "ReduceL2": (halves, ints(2)),
    "ReduceSumSquare": (ramp, ints(2)),
    "ArgMax": (ramp % 5, {"axis": 1, "select_last_index": 1}),
    "ArgMin": (ramp % 5, {"axis": 2, "keepdims": 0}),
    "CumSum": (ramp, np.array(1), {"exclusive": 1, "reverse": 1}),
    "CumProd": (ramp, np.array(2)),
}


def assert_dual(op, *inputs, **attributes):
    """Static inputs give numpy arrays, traced ones JAX arrays, of the same types and values."""
    entry = find(op, "", OPSET)
    static = entry.function(*inputs, **attributes)
    with jax.enable_x64(True):
        given = [v if entry.needs_static(i) else jnp.asarray(v) for i, v in enumerate(inputs)]
        traced = jax.jit(lambda *dynamic: entry.function(*merge(given, dynamic), **attributes))(
            *(value for value in given if isinstance(value, jax.Array))
        )
    for mine, theirs in zip(jax.tree.leaves(static), jax.tree.leaves(traced), strict=True):
        assert not isinstance(mine, jax.Array)
        np.testing.assert_array_equal(mine, theirs)
        assert mine.dtype == theirs.dtype


def merge(values, dynamic):
    """The values, with those that are JAX arrays replaced by the tracers that stand for them."""
    remaining = iter(dynamic)
    return [next(remaining) if isinstance(value, jax.Array) else value for value in values]


@pytest.mark.parametrize("op", CASES)
def test_static_and_traced_values_give_the_same(op):
    *inputs, attributes = CASES[op] if isinstance(CASES[op][-1], dict) else (*CASES[op], {})
    assert_dual(op, *inputs, **attributes)


@given(
    data=hnp.arrays(np.int64, hnp.array_shapes(max_dims=3, max_side=4), elements=st.integers(-(2**62), 2**62)),
    op=st.sampled_from(["Add", "Sub", "Mul", "Div", "Mod", "Max", "Less", "Equal"]),
    scalar=st.integers(-(2**62), 2**62).filter(bool),
)
def test_shape_arithmetic_has_64_bits(data, op, scalar):
    function = find(op, "", OPSET)
    wide = run_static(function, [data, np.array(scalar, np.int64)], {}, Budget())
    with jax.enable_x64(True):
        traced = function.function(jnp.asarray(data), jnp.asarray(scalar))
    np.testing.assert_array_equal(wide, traced)
    assert wide.dtype == traced.dtype
