"""A raised graph means the same: checked in ONNX Runtime where it knows the old opset, by hand where it does not."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import onnx
import pytest

from jaxq.engine.execute import execute
from jaxq.engine.model import Model
from jaxq.errors import ModelError
from jaxq.graph.ir import FrozenDict, Graph, Literal, Node, TensorType
from jaxq.graph.opset import STEPS, raise_opset
from jaxq.onnx_io.load import load
from jaxq.onnx_io.save import to_proto

ort = pytest.importorskip("onnxruntime")

NEWEST = 26  # the newest opset that ONNX Runtime runs
GENERATOR = np.random.default_rng(7)


def normal(*shape: int) -> np.ndarray:
    return GENERATOR.normal(size=shape).astype(np.float32)


def positive(*shape: int) -> np.ndarray:
    return GENERATOR.uniform(0.5, 2, shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def proto(graph: Graph, params: Mapping[str, Any]) -> onnx.ModelProto:
    """The graph as ONNX Runtime reads it."""
    return to_proto(Model(graph, params))


def run(model: onnx.ModelProto, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs in ONNX Runtime, without its rewriting."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, feed)


# --------------------------------------------------------------------------------------------------------- one operator


@dataclass(frozen=True, kw_only=True)
class Case:
    """One node of `op` at `opset`, which reads inputs of the graph first, then constants."""

    op: str
    opset: int
    data: tuple[np.ndarray, ...]
    constants: tuple[np.ndarray, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    outputs: int = 1
    declared: bool = True  # whether the shape of the first operand is declared
    expected: np.ndarray | None = None  # of the first output; ONNX Runtime does not know operators before opset 7
    newest: int = NEWEST  # the newest opset for which ONNX Runtime has the operator

    @property
    def feed(self) -> dict[str, np.ndarray]:
        return {f"x{index}": value for index, value in enumerate(self.data)}

    @property
    def graph(self) -> Graph:
        literals = {f"c{index}": Literal.of(value) for index, value in enumerate(self.constants)}
        names = tuple(f"y{index}" for index in range(self.outputs))
        types = {name: TensorType(value.dtype.name, value.shape) for name, value in self.feed.items()}
        operands, before = (*self.feed, *literals), ()
        if not self.declared:  # behind a node, nothing is known of it
            before = (Node("Identity", ("x0",), ("hidden",), name="before", version=self.opset),)
            operands = ("hidden", *operands[1:])
        node = Node(self.op, operands, names, FrozenDict(self.attributes), name="node", version=self.opset)
        return Graph(
            nodes=(*before, node),
            inputs=tuple(self.feed),
            outputs=names,
            types=FrozenDict(types),
            constants=FrozenDict(literals),
            opsets=FrozenDict({"": self.opset}),
        )


FIELDS = {"constants", "outputs", "declared", "expected", "newest"}


def case(op: str, opset: int, *data: np.ndarray, **more: Any) -> Case:
    """A case whose attributes are written as keywords, among its own fields."""
    fields = {key: value for key, value in more.items() if key in FIELDS}
    attributes = {key: value for key, value in more.items() if key not in FIELDS}
    return Case(op=op, opset=opset, data=data, attributes=attributes, **fields)


def resize(opset, mode, *scales, **attributes) -> Case:
    """Upsample or Resize by constant scales, in the form of that opset."""
    operands = (np.float32([]), np.float32(scales)) if opset >= 11 else (np.float32(scales),)
    op = "Resize" if opset >= 10 else "Upsample"
    return case(op, opset, IMAGE, constants=operands, mode=mode, **attributes)


IMAGE = normal(2, 4, 6, 5)
CUBE = normal(2, 3, 4)
POSITIVE = positive(2, 3, 4)
DOUBLES = GENERATOR.normal(size=(2, 3))
CELLS = tuple(positive(4, 6, 5) for _ in range(4))
CHANNELS = tuple(positive(4) for _ in range(4))
GAMMA, BETA, MEAN, VARIANCE = (value[:, None, None] for value in CHANNELS)
MATRIX, IDENTITY, ROW = normal(2, 3), np.eye(3, 4, dtype=np.float32), normal(4)
BOXES = np.float32([[0, 0, 4, 4], [1, 0.5, 3, 5]])
PLACES = GENERATOR.uniform(-1, 1, (2, 3, 3, 2)).astype(np.float32)
SIGNAL = normal(2, 5, 3, 1)
SEQUENCE, RECURRENT = normal(3, 2, 4), (normal(1, 8, 4), normal(1, 8, 2))
HALF, TENTH = np.float32(0.5), np.float32(0.1)
SELU = 1.0507 * np.where(CUBE > 0, CUBE, 1.6732 * np.expm1(np.minimum(CUBE, 0)))


def slope(x: np.ndarray, factor: np.ndarray) -> np.ndarray:
    return np.where(x < 0, x * factor, x)


CASES: dict[str, Case] = {
    # Opsets that ONNX Runtime does not know.
    "Relu-1 in place": case("Relu", 1, CUBE, consumed_inputs=(0,), expected=np.maximum(CUBE, 0)),
    "Selu-1": case("Selu", 1, CUBE, expected=SELU),
    "Pad-1": case("Pad", 1, CUBE, paddings=(0, 1, 2, 0, 0, 0), expected=np.pad(CUBE, ((0, 0), (1, 0), (2, 0)))),
    "Split-1": case("Split", 1, CUBE, constants=(np.float32([1, 2]),), axis=1, outputs=2, expected=CUBE[:, :1]),
    "LpPool-1": case("LpPool", 1, IMAGE, p=1.0, kernel_shape=(6, 5), expected=np.abs(IMAGE).sum((2, 3), keepdims=True)),
    "GlobalLpPool-1": case("GlobalLpPool", 1, CUBE, newest=21, expected=np.linalg.norm(CUBE, axis=2, keepdims=True)),
    "Concat-1": case("Concat", 1, CUBE, CUBE, expected=np.concatenate([CUBE, CUBE], 1)),
    "Reshape-1": case("Reshape", 1, CUBE, shape=(0, -1), expected=CUBE.reshape(2, 12)),
    "Tile-1": case("Tile", 1, CUBE, constants=(np.float32(3), np.float32(1)), expected=np.tile(CUBE, (1, 3, 1))),
    "Cast-1 to INT32": case("Cast", 1, CUBE, to="INT32", expected=CUBE.astype(np.int32)),
    "Cast-1 to DOUBLE": case("Cast", 1, CUBE, to="DOUBLE", expected=CUBE.astype(np.float64)),
    "PRelu-6": case("PRelu", 6, IMAGE, constants=(CHANNELS[0],), expected=slope(IMAGE, GAMMA)),
    "PRelu-6 with one slope": case("PRelu", 6, IMAGE, constants=(TENTH.reshape(1),), expected=slope(IMAGE, TENTH)),
    "BatchNormalization-6": case(
        "BatchNormalization", 6, IMAGE, constants=CHANNELS, is_test=1, epsilon=0.25,
        expected=GAMMA * (IMAGE - MEAN) / np.sqrt(VARIANCE + 0.25) + BETA,
    ),
    "Dropout-6": case("Dropout", 6, CUBE, is_test=1, ratio=0.25, expected=CUBE),
    "Gemm-6": case("Gemm", 6, MATRIX, constants=(IDENTITY, ROW), broadcast=1, expected=MATRIX @ IDENTITY + ROW),
    "Add-1": case("Add", 1, CUBE, CUBE, consumed_inputs=(1, 0), expected=CUBE + CUBE),
    "Sub-6 amid": case("Sub", 6, IMAGE, constants=(BETA[:, 0],), broadcast=1, axis=1, expected=IMAGE - BETA),
    "Mul-6 in front": case("Mul", 6, CUBE, MATRIX, broadcast=1, axis=0, expected=CUBE * MATRIX[:, :, None]),
    "Div-6 behind": case("Div", 6, CUBE, constants=(POSITIVE[0],), broadcast=1, expected=CUBE / POSITIVE[0]),
    "Pow-6 of a scalar": case("Pow", 6, POSITIVE, constants=(HALF,), broadcast=1, axis=0, expected=np.sqrt(POSITIVE)),
    "Less-6 from the end": case("Less", 6, CUBE, constants=(ROW,), broadcast=1, axis=-1, expected=CUBE < ROW),
    # The forms of opset 7 and on.
    "Upsample-7 nearest": case("Upsample", 7, IMAGE, scales=(1.0, 1.0, 2.0, 3.0)),
    "Upsample-8 linear": case("Upsample", 8, IMAGE, scales=(1.0, 1.0, 2.0, 1.5), mode="linear"),
    "Upsample-9 nearest": resize(9, "nearest", 1, 1, 1.7, 2),
    "Upsample-9 linear": resize(9, "linear", 1, 1, 2, 2),
    "Resize-10 linear": resize(10, "linear", 1, 1, 2.5, 0.6),
    "Resize-10 nearest, growing": resize(10, "nearest", 1, 1, 2.5, 2),
    "Resize-10 nearest, shrinking": resize(10, "nearest", 1, 1, 0.6, 0.37),
    "Resize-10 nearest, both": resize(10, "nearest", 1, 1, 1.7, 0.6),
    "Resize-11 half pixel": resize(11, "linear", 1, 1, 2, 2),
    "Resize-11 asymmetric": resize(11, "nearest", 1, 1, 2, 2, coordinate_transformation_mode="asymmetric"),
    "Resize-11 to sizes": case(
        "Resize", 11, IMAGE, constants=(np.float32([]), np.float32([]), ints(2, 4, 9, 3)), mode="cubic",
        coordinate_transformation_mode="align_corners",
    ),
    **{
        f"Resize-11 tf_half_pixel_for_nn {nearest}": resize(
            11, "nearest", 1, 1, 2, 0.6, coordinate_transformation_mode="tf_half_pixel_for_nn", nearest_mode=nearest
        )
        for nearest in ("floor", "round_prefer_floor")
    },
    "BatchNormalization-8": case("BatchNormalization", 8, IMAGE, constants=CHANNELS, spatial=1),
    "BatchNormalization-7 cells": case("BatchNormalization", 7, IMAGE, constants=CELLS, spatial=0, epsilon=0.5),
    "BatchNormalization-9": case("BatchNormalization", 9, IMAGE, constants=CHANNELS),
    "Dropout-7": case("Dropout", 7, CUBE, ratio=0.25),
    "Dropout-10": case("Dropout", 10, CUBE),
    "Slice-9": case("Slice", 9, CUBE, starts=(1, -3), ends=(9, -1), axes=(0, 2)),
    "Slice-7 of all axes": case("Slice", 7, CUBE, starts=(0, 1, 0), ends=(1, 3, 2**31 - 1)),
    "TopK-9": case("TopK", 9, CUBE, k=2, axis=1, outputs=2),
    "TopK-10": case("TopK", 10, CUBE, constants=(ints(2),), outputs=2),
    "Clip-7": case("Clip", 7, CUBE, min=-0.5, max=0.25),
    "Clip-10 above": case("Clip", 10, CUBE, max=0.25, declared=False),
    "Clip-7 of float16": case("Clip", 7, CUBE.astype(np.float16), min=0.1, declared=False),
    "Clip-7 of float64": case("Clip", 7, DOUBLES, min=0.5, declared=False, expected=np.maximum(DOUBLES, 0.5)),
    "Pad-7": case("Pad", 7, CUBE, pads=(0, 1, 2, 0, -1, 0)),
    "Pad-7 with a value": case("Pad", 7, CUBE, pads=(0, 1, 2, 0, 1, 0), value=1.5, declared=False),
    "Pad-10 reflect": case("Pad", 10, CUBE, pads=(0, 1, 2, 0, 1, 0), mode="reflect"),
    "Scatter-9": case("Scatter", 9, normal(3, 3), constants=(ints(0, 2, 1).reshape(1, 3), normal(1, 3))),
    **{
        f"{op}-{opset} {attributes} {'declared' if declared else 'unknown'}": case(
            op, opset, IMAGE, declared=declared, **attributes
        )
        for op in ("Softmax", "LogSoftmax", "Hardmax")
        for opset, attributes in ((7, {}), (7, {"axis": 2}), (7, {"axis": 3}), (11, {"axis": 0}), (12, {"axis": -2}))
        for declared in (True, False)
    },
    "Softmax-7 of a matrix": case("Softmax", 7, MATRIX),
    "Softmax-11 from the end": case("Softmax", 11, IMAGE, axis=-1, declared=False),
    "Squeeze-7": case("Squeeze", 7, normal(1, 2, 1, 3), axes=(0,)),
    "Squeeze-7 of every one": case("Squeeze", 7, normal(1, 2, 1, 3)),
    "Unsqueeze-7": case("Unsqueeze", 7, CUBE, axes=(0, 4)),
    "Unsqueeze-11 from the end": case("Unsqueeze", 11, CUBE, axes=(-1, 1)),
    "Split-7": case("Split", 7, CUBE, axis=2, split=(1, 3), outputs=2),
    "Split-7 into equal parts": case("Split", 7, CUBE, axis=2, outputs=2),
    "Split-13": case("Split", 13, CUBE, constants=(ints(1, 2),), axis=1, outputs=2),
    "Split-13 into equal parts": case("Split", 13, CUBE, axis=2, outputs=2),
    **{
        f"{op}-{opset} {attributes}": case(op, opset, POSITIVE, **attributes)
        for op in sorted(op for op in STEPS if op.startswith("Reduce"))
        for opset, attributes in ((7, {"axes": (0, 2)}), (11, {"axes": (-1,), "keepdims": 0}), (12, {"keepdims": 0}))
    },
    "ReduceMax-13": case("ReduceMax", 13, CUBE, axes=(1,)),
    "RoiAlign-10": case(
        "RoiAlign", 10, IMAGE, BOXES, constants=(ints(0, 1),), output_height=2, sampling_ratio=2, newest=21
    ),
    "DFT-17": case("DFT", 17, SIGNAL),
    "DFT-17 of a length": case("DFT", 17, SIGNAL, constants=(np.int64(4),), axis=2, onesided=1),
    **{
        f"GridSample-16 {attributes}": case("GridSample", 16, IMAGE, PLACES, **attributes)
        for attributes in ({}, {"mode": "bilinear"}, {"mode": "bicubic"}, {"mode": "nearest"})
    },
    "GroupNormalization-18": case("GroupNormalization", 18, IMAGE, constants=(normal(2), normal(2)), num_groups=2),
    # Without a step.
    "LSTM-7": case("LSTM", 7, SEQUENCE, constants=RECURRENT, hidden_size=2, outputs=2),
    "AveragePool-7": case("AveragePool", 7, IMAGE, kernel_shape=(3, 3), pads=(1, 1, 1, 1)),
    "MaxPool-10": case("MaxPool", 10, IMAGE, kernel_shape=(2, 2), strides=(3, 3), pads=(1, 1, 1, 1), ceil_mode=1),
    "ArgMax-7": case("ArgMax", 7, np.float32([[1, 2, 2], [3, 3, 0]]), axis=1),
}  # fmt: skip


def wanted(case: Case) -> list[np.ndarray]:
    """What the node gives at its own opset."""
    return [case.expected] if case.expected is not None else run(proto(case.graph, {}), case.feed)


RAISED = {
    f"{name} to {target}": (case, target)
    for name, case in CASES.items()
    for target in (13, 21, NEWEST)
    if case.opset < target <= case.newest
}


@pytest.mark.parametrize("case, target", RAISED.values(), ids=RAISED)
def test_a_raised_operator_gives_the_same(case, target):
    raised, params = raise_opset(case.graph, {}, target)
    outputs = dict(zip(raised.outputs, run(proto(raised, params), case.feed), strict=True))
    types = {name: TensorType(value.dtype.name, (None,) * value.ndim) for name, value in outputs.items()}
    onnx.checker.check_model(proto(replace(raised, types=raised.types | types), params), full_check=True)
    for before, after in zip(wanted(case), outputs.values(), strict=case.expected is None):
        np.testing.assert_allclose(after, before, rtol=2e-6, atol=2e-6)
        assert after.dtype == before.dtype
    ours, _ = execute(raised, params, {name: jnp.asarray(value) for name, value in case.feed.items()})
    for name, value in ours.items():
        np.testing.assert_allclose(value, outputs[name], rtol=2e-4, atol=2e-5)


def test_clipping_without_bounds_ends_at_the_largest_numbers():
    infinite = case("Clip", 7, np.float32([np.inf, -np.inf, 1]))
    raised, _ = raise_opset(infinite.graph, {}, 13)
    np.testing.assert_array_equal(run(proto(raised, {}), infinite.feed), wanted(infinite))


def test_scales_that_are_computed_may_grow_one_axis_and_shrink_another():
    scales = np.float32([1, 1, 0.6, 1.7])
    computed = case("Resize", 10, IMAGE, scales)
    raised, _ = raise_opset(computed.graph, {}, 13)
    np.testing.assert_array_equal(run(proto(raised, {}), computed.feed), wanted(computed))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_one_step_at_a_time_leads_to_the_same_graph(case):
    graph = case.graph
    for version in range(case.opset + 1, NEWEST + 1):
        graph, _ = raise_opset(graph, {}, version)
    assert graph == raise_opset(case.graph, {}, NEWEST)[0]


REFUSED = {"Scan"}


# The same node at an opset that ONNX Runtime does not know, and at one that it does.
OLDER = {
    "Upsample": (
        case("Upsample", 1, IMAGE, height_scale=2.0, width_scale=3.0, mode="bilinear"),
        case("Upsample", 7, IMAGE, scales=(1.0, 1.0, 2.0, 3.0), mode="linear"),
    ),
    "LSTM": (
        case("LSTM", 6, SEQUENCE, constants=RECURRENT, hidden_size=2, output_sequence=1, outputs=2),
        case("LSTM", 7, SEQUENCE, constants=RECURRENT, hidden_size=2, outputs=2),
    ),
}


@pytest.mark.parametrize("before, after", OLDER.values(), ids=OLDER)
def test_an_older_form_becomes_the_same_graph(before, after):
    assert raise_opset(before.graph, {}, NEWEST)[0] == raise_opset(after.graph, {}, NEWEST)[0]


def test_every_step_has_a_case():
    assert STEPS.keys() <= SCHEMAS.keys(), "no such operator"
    cases = [*CASES.values(), *(before for before, _ in OLDER.values())]
    crossed = {(case.op, version) for case in cases for version in range(case.opset + 1, NEWEST + 1)}
    steps = {(op, version): step for op, steps in STEPS.items() for version, step in steps if op not in REFUSED}
    tested = {step for place, step in steps.items() if place in crossed}  # operators that share a line share its case
    assert not [place for place, step in steps.items() if step not in tested]


# --------------------------------------------------------------------------------------------------------- the standard

# Operators whose form changed without a step: why the node may stay as it is.
UNCHANGED = {
    ("ArgMax", 12): "the first of equals, as before",
    ("ArgMin", 12): "the first of equals, as before",
    ("Attention", 24): "new optional input",
    ("Attention", 25): "window off by default",
    ("AveragePool", 7): "padding not counted, as before",
    ("AveragePool", 10): "ceil_mode off by default",
    ("AveragePool", 19): "dilations 1 by default",
    ("Cast", 19): "saturate: for float8 only, which is new",
    ("Cast", 24): "round_mode: for float8e8m0 only, which is new",
    ("CastLike", 19): "as Cast",
    ("CastLike", 24): "as Cast",
    ("Constant", 11): "further kinds of value",
    ("Constant", 12): "further kinds of value",
    ("DepthToSpace", 11): "mode DCR, as before",
    ("DequantizeLinear", 13): "axis plays no part with one scale",
    ("DequantizeLinear", 21): "blocks off by default",
    ("DequantizeLinear", 23): "output type by default that of the scale",
    ("GRU", 3): "linear_before_reset off by default",
    ("GRU", 14): "layout 0, as before",
    ("GatherND", 12): "batch_dims 0, as before",
    ("Gemm", 11): "C became optional",
    ("LSTM", 14): "layout 0, as before",
    ("LpPool", 18): "ceil_mode off, dilations 1 by default",
    ("MaxPool", 8): "indices are a new output",
    ("MaxPool", 10): "ceil_mode off, dilations 1 by default",
    ("OptionalHasElement", 18): "input became optional",
    ("Pad", 18): "axes: all by default",
    ("QuantizeLinear", 13): "axis plays no part with one scale",
    ("QuantizeLinear", 19): "saturate: for float8 only, which is new",
    ("QuantizeLinear", 21): "blocks off, output type by default that of the zero point",
    ("QuantizeLinear", 23): "precision by default that of the scale",
    ("RNN", 14): "layout 0, as before",
    ("Range", 27): "stash_type: precision of half floats",
    ("Reshape", 14): "allowzero off by default",
    ("Resize", 18): "antialias off, all axes, stretched by default",
    ("ScatterElements", 16): "reduction off by default",
    ("ScatterND", 16): "reduction off by default",
    ("Shape", 15): "from the first to the last axis by default",
    ("SpaceToDepth", 28): "mode DCR, as before",
    ("TopK", 11): "the largest, sorted, as before",
}


def form(schema: onnx.defs.OpSchema) -> tuple:
    """What a node must fit: attributes with kind and default, kinds of inputs and outputs, whether it may be used."""

    def default(attribute):
        value = attribute.default_value
        return onnx.helper.get_attribute_value(value) if value is not None and value.type else None

    return (
        {name: (each.type, each.required, default(each)) for name, each in schema.attributes.items()},
        [each.option for each in schema.inputs],
        [each.option for each in schema.outputs],
        schema.deprecated,
    )


def standard_schemas() -> dict[str, list[onnx.defs.OpSchema]]:
    history: dict[str, list[onnx.defs.OpSchema]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            history.setdefault(schema.name, []).append(schema)
    return {name: sorted(schemas, key=lambda schema: schema.since_version) for name, schemas in history.items()}


SCHEMAS = standard_schemas()


@pytest.mark.parametrize("op", sorted(SCHEMAS))
def test_every_change_of_form_has_a_step_or_a_reason(op):
    changes = {
        after.since_version
        for before, after in zip(SCHEMAS[op], SCHEMAS[op][1:], strict=False)
        if form(before) != form(after)
    }
    steps = {version for version, _ in STEPS.get(op, ())}
    reasons = {version for name, version in UNCHANGED if name == op}
    assert not steps & reasons
    assert not changes - steps - reasons, "write a step in jaxq.graph.opset.HISTORY, or say here why none is needed"
    assert not reasons - changes, "nothing changed there"
    assert steps <= {schema.since_version for schema in SCHEMAS[op]}, "no version of the operator begins there"


# --------------------------------------------------------------------------------------------------------- whole graphs


@pytest.mark.parametrize("target", [13, 21])
@pytest.mark.parametrize("name", ["mnist_cnn", "fastestdet"])
def test_a_raised_model_gives_the_same(name, target, evaluate):
    task = evaluate.TASKS[name]
    model = load(task.model)
    raised, params = raise_opset(model.graph, model.params, target)
    assert params is model.params
    file = proto(raised, params)
    onnx.checker.check_model(file, full_check=True)
    for feed in task.calib(2):
        for before, after in zip(run(onnx.load(task.model), feed), run(file, feed), strict=True):
            np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5 * np.abs(before).max())


def test_a_graph_that_is_new_enough_is_the_same_object():
    graph, params = CASES["Split-13"].graph, {}
    for version in (7, 13):
        same, numbers = raise_opset(graph, params, version)
        assert same is graph
        assert numbers is params


def test_operators_without_a_step_only_move_to_the_new_opset():
    graph = CASES["AveragePool-7"].graph
    raised, _ = raise_opset(graph, {}, NEWEST)
    assert raised.opsets == {"": NEWEST}
    assert raised == replace(graph, nodes=(replace(graph.nodes[0], version=NEWEST),), opsets=FrozenDict({"": NEWEST}))


def test_other_domains_stay_as_they_are():
    graph = CASES["Softmax-7 of a matrix"].graph
    foreign = Node("Softmax", ("y0",), ("z",), name="foreign", domain="com.example", version=1)
    graph = replace(graph, nodes=(*graph.nodes, foreign), outputs=("z",), opsets=graph.opsets | {"com.example": 1})
    raised, _ = raise_opset(graph, {}, 13)
    assert raised.nodes[-1] is foreign
    assert raised.opsets == {"": 13, "com.example": 1}


def test_new_names_avoid_those_in_use():
    graph = CASES["Squeeze-7"].graph
    taken = Node("Identity", ("x0",), ("y0.axes",), name="taken", version=7)
    graph = replace(graph, nodes=(taken, *graph.nodes), outputs=("y0", "y0.axes"))
    raised, _ = raise_opset(graph, {}, 13)
    assert raised.nodes[1].inputs == ("x0", "y0.axes#2")
    np.testing.assert_array_equal(raised.constants["y0.axes#2"].array, [0])


def test_nodes_of_subgraphs_are_raised():
    def branch(name: str, axis: int) -> Graph:
        squeeze = Node("Squeeze", ("x0",), (name,), FrozenDict(axes=(axis,)), name=f"{name}/squeeze", version=11)
        flat = Node("Flatten", (name,), (f"{name}/flat",), FrozenDict(axis=0), name=f"{name}/flatten", version=11)
        return Graph((squeeze, flat), (), flat.outputs, opsets=FrozenDict({"": 11}), name=name)

    choice = FrozenDict(then_branch=branch("then", 0), else_branch=branch("else", 2))
    graph = Graph(
        nodes=(Node("If", ("x1",), ("y",), choice, name="choice", version=11),),
        inputs=("x0", "x1"),
        outputs=("y",),
        types=FrozenDict({"x0": TensorType("float32", (1, 3, 1)), "x1": TensorType("bool", ())}),
        opsets=FrozenDict({"": 11}),
    )
    raised, _ = raise_opset(graph, {}, 13)
    assert {node.version for _, node in raised.walk()} == {13}
    assert {inner.opsets[""] for inner, _ in raised.walk()} == {13}
    feed = {"x0": normal(1, 3, 1), "x1": np.array(False)}
    np.testing.assert_array_equal(run(proto(raised, {}), feed), run(proto(graph, {}), feed))


def test_training_outputs_that_nobody_reads_go():
    graph = replace(CASES["BatchNormalization-9"], outputs=3).graph
    raised, _ = raise_opset(replace(graph, outputs=("y0",)), {}, 14)
    assert raised.nodes[0].outputs == ("y0",)


REFUSALS = {
    "an output of training is read": (
        replace(CASES["BatchNormalization-9"], outputs=3),
        r"node 'node' \(BatchNormalization, opset 9\) cannot be raised to opset 14: its output 'y1' .* evaluation mode",
    ),
    "a mask is read": (replace(CASES["Dropout-10"], outputs=2), "'y1' has a meaning in training only"),
    "a rank is not known": (replace(CASES["Mul-6 in front"], declared=False), "rank of 'hidden' must be known"),
    "a coordinate mode went": (
        resize(11, "linear", 1, 1, 2, 2, coordinate_transformation_mode="tf_half_pixel_for_nn"),
        "'tf_half_pixel_for_nn' went",
    ),
    "an exponent is broken": (case("GlobalLpPool", 1, IMAGE, p=1.5), "p = 1.5"),
    "Scan has a batch axis": (case("Scan", 8, CUBE), "batch axis of Scan"),
    "lengths are computed": (case("Split", 1, CUBE, np.float32([1, 2])), "'x1' are computed"),
    "repeats are computed": (case("Tile", 1, CUBE, np.float32(3), np.float32(1)), "must be constants"),
}


@pytest.mark.parametrize("case, message", REFUSALS.values(), ids=REFUSALS)
def test_what_cannot_be_raised_is_named(case, message):
    with pytest.raises(ModelError, match=message):
        raise_opset(case.graph, {}, NEWEST)
