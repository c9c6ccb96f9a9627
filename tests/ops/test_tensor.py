"""Making, reshaping, joining and cutting tensors: early versions, and what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from node_case import Case, assert_agrees, normal, run_jaxq

from jaxq.errors import DynamicShapeError, ModelError, UnsupportedOpError
from jaxq.ops import find


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


x, image = normal(2, 3, 4), normal(1, 8, 2, 3)

CASES = {
    "ConstantOfShape": Case(op="ConstantOfShape", inputs=(ints(2, 3),), opset=9, static=(0,)),
    "EyeLike": Case(op="EyeLike", inputs=(x[0],), opset=9, attributes={"k": 1, "dtype": 6}),
    "Dropout 7": Case(op="Dropout", inputs=(x,), opset=7, attributes={"ratio": 0.3}),
    "Dropout 12": Case(op="Dropout", inputs=(x, np.float32(0.5), np.array(False)), opset=12, static=(1, 2)),
    "Flatten 9": Case(op="Flatten", inputs=(x,), opset=9, attributes={"axis": 2}),
    "Flatten from the end": Case(op="Flatten", inputs=(x,), opset=11, attributes={"axis": -1}),
    "Squeeze 7": Case(op="Squeeze", inputs=(x[:1, :, None],), opset=7, attributes={"axes": [0, 2]}),
    "Squeeze 11": Case(op="Squeeze", inputs=(x[:1, :, None],), opset=11, attributes={"axes": [-2]}),
    "Unsqueeze 7": Case(op="Unsqueeze", inputs=(x,), opset=7, attributes={"axes": [4, 0]}),
    "Unsqueeze 11": Case(op="Unsqueeze", inputs=(x,), opset=11, attributes={"axes": [-1]}),
    "Split 7": Case(op="Split", inputs=(x,), opset=7, outputs=2, attributes={"axis": 2}),
    "Split 11": Case(op="Split", inputs=(x,), opset=11, outputs=3, attributes={"axis": -1, "split": [1, 2, 1]}),
    "Split 18 unevenly": Case(op="Split", inputs=(x,), opset=18, outputs=2, attributes={"axis": 1, "num_outputs": 2}),
    "Concat 7": Case(op="Concat", inputs=(x, x[:, :1]), opset=7, attributes={"axis": 1}),
    "Tile 7": Case(op="Tile", inputs=(x, ints(1, 2, 3)), opset=7, static=(1,)),
    "Expand": Case(op="Expand", inputs=(x[:, :1], ints(2, 1, 3, 1)), opset=8, static=(1,)),
    "Pad 7": Case(op="Pad", inputs=(x,), opset=7, attributes={"pads": [0, 1, 2, 0, 0, 1], "value": 0.5}),
    "Pad 7 reflect": Case(op="Pad", inputs=(x,), opset=7, attributes={"pads": [0, 1, 2, 0, 0, 1], "mode": "reflect"}),
    "Pad crops": Case(op="Pad", inputs=(x,), opset=7, attributes={"pads": [0, -1, 2, 0, 0, -1]}),
    "Pad 11 edge": Case(
        op="Pad", inputs=(x, ints(1, 0, 2, 0, 1, 1)), opset=11, static=(1,), attributes={"mode": "edge"}
    ),
    "Pad 18 on axes": Case(
        op="Pad", inputs=(x, ints(1, 2, 0, 1), np.float32(2), ints(-1, 0)), opset=18, static=(1, 2, 3)
    ),
    "Pad 19 wrap": Case(
        op="Pad", inputs=(x, ints(0, 1, 5, 0, 2, 3)), opset=19, static=(1,), attributes={"mode": "wrap"}
    ),
    "DepthToSpace 7": Case(op="DepthToSpace", inputs=(image,), opset=7, attributes={"blocksize": 2}),
    "DepthToSpace CRD": Case(op="DepthToSpace", inputs=(image,), opset=11, attributes={"blocksize": 2, "mode": "CRD"}),
    "SpaceToDepth": Case(op="SpaceToDepth", inputs=(normal(1, 2, 4, 6),), opset=7, attributes={"blocksize": 2}),
    "Trilu": Case(op="Trilu", inputs=(x, np.array(1, np.int64)), opset=14, attributes={"upper": 0}),
    "ReverseSequence": Case(
        op="ReverseSequence", inputs=(x, ints(1, 3)), opset=10, attributes={"batch_axis": 0, "time_axis": 1}
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_agrees_with_the_runtime(case):
    assert_agrees(case)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_space_to_depth_undoes_depth_to_space(mode):
    there, back = find("DepthToSpace", "", 28).function, find("SpaceToDepth", "", 28).function
    np.testing.assert_array_equal(back(there(image, blocksize=2, mode=mode), blocksize=2, mode=mode), image)


@given(st.integers(-50, 50), st.integers(-50, 50), st.integers(-7, 7).filter(bool))
def test_range_counts_as_python_does(start, limit, delta):
    got = find("Range", "", 11).function(*(np.array(v, np.int64) for v in (start, limit, delta)))
    np.testing.assert_array_equal(got, np.arange(start, limit, delta))


def test_large_ranges_of_small_floats_do_not_stick():
    got = find("Range", "", 27).function(*(np.array(v, np.float16) for v in (0, 4000, 1)))
    np.testing.assert_array_equal(got, np.arange(4000).astype(np.float16))


def test_shapes_are_known_and_have_64_bits():
    shape, size = find("Shape", "", 15).function, find("Size", "", 13).function
    assert shape(x, start=-2).tolist() == [3, 4]
    assert shape(x).dtype == size(x).dtype == np.int64
    assert size(x) == 24


def test_constants_have_a_bound():
    with pytest.raises(ModelError, match=r"float32\[1000000, 1000000\] would have 3.73e\+03 GiB; .* may have 2 GiB"):
        find("ConstantOfShape", "", 9).function(ints(10**6, 10**6))
    with pytest.raises(ModelError, match=r"GiB; .* may have 2 GiB"):
        find("Range", "", 11).function(np.array(0), np.array(2**60), np.array(1))
    with pytest.raises(ModelError, match="delta is 0"):
        find("Range", "", 11).function(np.array(0), np.array(1), np.array(0))


def test_what_cannot_be_is_refused():
    def refused(error, match, **case):
        with pytest.raises(error, match=match):
            run_jaxq(Case(**{"opset": 18, **case}))

    refused(DynamicShapeError, "Reshape.shape must be known", op="Reshape", inputs=(x, normal(2)))
    refused(ModelError, "copies a dimension that", op="Reshape", inputs=(x, ints(2, 3, 4, 0)), static=(1,))
    refused(
        ModelError, "length 4 cannot be split", op="Split", inputs=(x, ints(3, 3)), static=(1,), attributes={"axis": 2}
    )
    refused(
        UnsupportedOpError,
        "mode 'mirror'; known",
        op="Pad",
        inputs=(x, ints(*[0] * 6)),
        static=(1,),
        attributes={"mode": "mirror"},
    )
    refused(
        UnsupportedOpError, "mode 'RCD'", op="DepthToSpace", inputs=(image,), attributes={"blocksize": 2, "mode": "RCD"}
    )
    refused(
        UnsupportedOpError,
        "Dropout in training mode",
        op="Dropout",
        inputs=(x, np.float32(0.5), np.array(True)),
        static=(1, 2),
    )
