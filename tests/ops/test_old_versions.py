"""Operators in the forms of old opsets, run as they stand: against ONNX Runtime from opset 7 on, by hand before.

The official suite has next to no cases of them. `CASES` of test_opsets.py are run here too, without raising them.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from graph.test_opset import (
    BOXES,
    CASES,
    CUBE,
    IMAGE,
    MATRIX,
    POSITIVE,
    RECURRENT,
    SEQUENCE,
    case,
    ints,
    normal,
    wanted,
)

from jaxq.engine.execute import execute
from jaxq.graph.ir import FrozenDict, Graph, Node, TensorType
from jaxq.ops import find, table

OLDEST = 6  # the oldest opset that jaxq runs
FLAGS, ROW = CUBE > 0, np.float32([1, -1, 0, 2])
BYTES = np.arange(12, dtype=np.uint8).reshape(3, 4)
GATES = (normal(1, 6, 4), normal(1, 6, 2), normal(1, 12))
SCORES = np.float32([[[0.9, 0.8, 0.7]]])
THREE_BOXES = np.float32([[[0, 0, 1, 1], [0, 0.1, 1, 1.1], [3, 3, 4, 4]]])
HOLED = np.float32([[1, np.nan], [np.inf, 0]])

STEP = Graph(  # of a scan: the sum so far, and a copy of it
    nodes=(
        Node("Add", ("before", "row"), ("after",), name="add", version=8),
        Node("Identity", ("after",), ("copy",), name="copy", version=8),
    ),
    inputs=("before", "row"),
    outputs=("after", "copy"),
    types=FrozenDict({name: TensorType("float32", (4,)) for name in ("before", "row", "after", "copy")}),
    opsets=FrozenDict({"": 8}),
    name="step",
)

MORE = {
    "Add-6": case("Add", 6, IMAGE, normal(4, 6), broadcast=1, axis=1, expected=None),
    "And-6": case("And", 6, FLAGS, FLAGS[0], broadcast=1, expected=FLAGS & FLAGS[0]),
    "Or-6": case("Or", 6, FLAGS, FLAGS[:, 0, 0], broadcast=1, axis=0, expected=FLAGS | FLAGS[:, :1, :1]),
    "Xor-6": case("Xor", 6, FLAGS, FLAGS[0, 0], broadcast=1, axis=2, expected=FLAGS ^ FLAGS[0, 0]),
    "Equal-6": case("Equal", 6, ints(1, 2, 3), ints(2), broadcast=1, expected=np.array([False, True, False])),
    "Greater-6": case("Greater", 6, CUBE, ROW, broadcast=1, axis=-1, expected=CUBE > ROW),
    "Upsample-6": case(
        "Upsample", 6, IMAGE, height_scale=2.0, width_scale=3.0, expected=IMAGE.repeat(2, axis=2).repeat(3, axis=3)
    ),
    "Scan-8": case("Scan", 8, normal(2, 4), normal(2, 5, 4), outputs=2, body=STEP, num_scan_inputs=1),
    "Scan-8 backwards": case(
        "Scan", 8, normal(2, 4), normal(2, 5, 4), outputs=2, body=STEP, num_scan_inputs=1, directions=(1,)
    ),
    **{f"{op}-6": case(op, 6, CUBE, CUBE[::-1].copy(), expected=function(CUBE, CUBE[::-1])) for op, function in (
        ("Sum", np.add), ("Max", np.maximum), ("Min", np.minimum), ("Mean", lambda a, b: (a + b) / 2))},
    **{f"{op}-8": case(op, 8, CUBE, ROW, CUBE[:1]) for op in ("Sum", "Max", "Min", "Mean")},
    "Cast-6": case("Cast", 6, CUBE, to=6, expected=CUBE.astype(np.int32)),
    "Cast-7": case("Cast", 7, CUBE, to=6),
    "Cast-9": case("Cast", 9, FLAGS, to=1),
    "Reshape-7": case("Reshape", 7, CUBE, constants=(ints(0, -1),)),
    "Flatten-7": case("Flatten", 7, IMAGE, axis=2),
    "Flatten-9": case("Flatten", 9, IMAGE, axis=0),
    "Expand-8": case("Expand", 8, MATRIX, constants=(ints(2, 1, 3),)),
    "PRelu-7": case("PRelu", 7, IMAGE, constants=(normal(4, 1, 1),)),
    "PRelu-9": case("PRelu", 9, IMAGE, constants=(normal(5),)),
    "Pow-7": case("Pow", 7, POSITIVE, ROW),
    "Tile-7": case("Tile", 7, MATRIX, constants=(ints(2, 3),)),
    "Where-9": case("Where", 9, FLAGS, CUBE, ROW),
    "IsNaN-9": case("IsNaN", 9, HOLED),
    "OneHot-9": case("OneHot", 9, ints(0, 2, 5), constants=(ints(3), np.float32([0, 1])), axis=0),
    "OneHot-11 from the end": case("OneHot", 11, ints(0, -1, 2), constants=(ints(3), np.float32([0, 1]))),
    "Mod-10": case("Mod", 10, ints(5, -5, 7), ints(3)),
    "Mod-10 of floats": case("Mod", 10, CUBE, POSITIVE, fmod=1),
    "CumSum-11": case("CumSum", 11, CUBE, constants=(np.int64(1),), exclusive=1, reverse=1),
    "ArgMax-11": case("ArgMax", 11, np.float32([[1, 2, 2], [3, 3, 0]]), axis=-1, keepdims=0),
    "ArgMin-7": case("ArgMin", 7, np.float32([[1, 2, 1], [3, 0, 0]]), axis=1),
    "MaxPool-7": case("MaxPool", 7, IMAGE, kernel_shape=(3, 2), strides=(2, 1), pads=(1, 0, 1, 1)),
    "MaxPool-8 with indices": case("MaxPool", 8, IMAGE, kernel_shape=(2, 2), strides=(2, 2), outputs=2),
    "AveragePool-7 with the padding": case(
        "AveragePool", 7, IMAGE, kernel_shape=(3, 3), pads=(1, 1, 1, 1), count_include_pad=1
    ),
    "AveragePool-10": case("AveragePool", 10, IMAGE, kernel_shape=(2, 2), strides=(3, 3), ceil_mode=1),
    "MaxUnpool-9": case(
        "MaxUnpool", 9, np.float32([[[[1, 2], [3, 4]]]]), constants=(ints(0, 3, 8, 15).reshape(1, 1, 2, 2),),
        kernel_shape=(2, 2), strides=(2, 2),
    ),
    "GRU-7": case("GRU", 7, SEQUENCE, constants=GATES, hidden_size=2, outputs=2),
    "GRU-7 linear before reset": case("GRU", 7, SEQUENCE, constants=GATES, hidden_size=2, linear_before_reset=1),
    "RNN-7": case("RNN", 7, SEQUENCE, constants=(normal(1, 2, 4), normal(1, 2, 2)), hidden_size=2, outputs=2),
    "LSTM-7 backwards": case("LSTM", 7, SEQUENCE, constants=RECURRENT, hidden_size=2, direction="reverse"),
    "NonMaxSuppression-10": case(
        "NonMaxSuppression", 10, constants=(THREE_BOXES, SCORES, ints(2), np.float32([0.5]), np.float32([0.1]))
    ),
    "NonZero-9": case("NonZero", 9, constants=(CUBE,)),
    "Compress-9": case("Compress", 9, CUBE, constants=(np.array([True, False, True]),), axis=1),
    "EyeLike-9": case("EyeLike", 9, MATRIX, k=1),
    "ConstantOfShape-9": case("ConstantOfShape", 9, constants=(ints(2, 3),)),
    "Gather-7": case("Gather", 7, CUBE, constants=(ints(2, 0),), axis=1),
    "GatherElements-11": case("GatherElements", 11, MATRIX, constants=(ints(1, 0, 1).reshape(1, 3),), axis=0),
    "ScatterElements-11": case(
        "ScatterElements", 11, MATRIX, constants=(ints(1, 0, 1).reshape(1, 3), np.float32([[7, 8, 9]])), axis=0
    ),
    "ReverseSequence-10": case("ReverseSequence", 10, CUBE, constants=(ints(2, 1, 2),), time_axis=0, batch_axis=1),
    "RoiAlign-10": case("RoiAlign", 10, IMAGE, BOXES, constants=(ints(0, 1),), output_height=2, output_width=2),
    "Resize-10 of one axis": case("Resize", 10, IMAGE, constants=(np.float32([1, 1, 1, 2]),), mode="nearest"),
    "QuantizeLinear-10": case("QuantizeLinear", 10, CUBE, constants=(np.float32(0.1), np.uint8(100))),
    "DequantizeLinear-10": case("DequantizeLinear", 10, BYTES, constants=(np.float32(0.1), np.uint8(3))),
    "MatMulInteger-10": case("MatMulInteger", 10, BYTES, BYTES.T.copy(), constants=(np.uint8(1), np.uint8(2))),
    "InstanceNormalization-7": case("InstanceNormalization", 7, IMAGE, constants=(normal(4), normal(4))),
    "LRN-7": case("LRN", 7, IMAGE, size=3),
    "DepthToSpace-7": case("DepthToSpace", 7, IMAGE, blocksize=2),
    "Unsqueeze-11": case("Unsqueeze", 11, MATRIX, axes=(0, 3)),
    "TopK-11 smallest": case("TopK", 11, CUBE, constants=(ints(2),), axis=1, largest=0, outputs=2),
    "Clip-12 of integers": case("Clip", 12, ints(-5, 0, 5), constants=(np.int64(-2), np.int64(3))),
    "Pad-11": case("Pad", 11, MATRIX, constants=(ints(0, 1, 2, 0), np.float32(0.5))),
    "Dropout-12": case("Dropout", 12, CUBE, constants=(np.float32(0.5),)),
    "Slice-10 backwards": case("Slice", 10, CUBE, constants=(ints(-1), ints(-9), ints(1), ints(-2))),
}  # fmt: skip
MORE["Add-6"] = replace(MORE["Add-6"], expected=IMAGE + MORE["Add-6"].data[1][None, :, :, None])

OLD = {name: each for name, each in {**CASES, **MORE}.items() if each.opset >= OLDEST}


def graph_of(each) -> Graph:
    """Scan-8 has an optional input in front, which is left out."""
    if each.op != "Scan":
        return each.graph
    (node,) = each.graph.nodes
    return replace(each.graph, nodes=(replace(node, inputs=("", *node.inputs)),))


class WithGraph:
    """A case whose graph is another one."""

    def __init__(self, each):
        self.expected, self.feed, self.graph = each.expected, each.feed, graph_of(each)


@pytest.mark.parametrize("each", OLD.values(), ids=OLD)
def test_an_old_form_gives_what_the_runtime_gives(each):
    each = WithGraph(each)
    with jax.enable_x64(True):  # so that 64-bit types stay what they are
        feed = {name: jnp.asarray(value) for name, value in each.feed.items()}
        outputs, _ = jax.jit(lambda inputs: execute(each.graph, {}, inputs))(feed)
    for name, value in zip(each.graph.outputs, wanted(each), strict=each.expected is None):
        got = np.asarray(outputs[name])
        assert got.dtype == value.dtype
        assert got.shape == value.shape
        np.testing.assert_allclose(got, value, rtol=2e-4, atol=2e-5)


def test_every_function_for_old_opsets_alone_has_a_case():
    """A function that a newer one has replaced is reached by nothing but old files."""
    tested = {find(each.op, "", each.opset) for each in OLD.values() if ("", each.op) in table()}
    replaced = {
        versions[since] for (domain, _), versions in table().items() if not domain for since in sorted(versions)[:-1]
    }
    assert not [f"{entry.name} since {entry.since}" for entry in replaced - tested]
