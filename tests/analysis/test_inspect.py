"""What a model holds, and what a target would make of it."""

import jax
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from jaxq.analysis.inspect import Summary, stored_bytes, summarize
from jaxq.errors import ConfigError
from jaxq.onnx_io.load import load
from jaxq.placement.fates import (
    CONSTANT_SIDE,
    FOLDED,
    INTEGER,
    MERGED,
    MOVES,
    NO_KERNEL,
    NO_READER,
    NOT_TAKEN,
    READ_TWICE,
)


def summary_of(
    *nodes: onnx.NodeProto, shape=("N", 3, "H", "W"), target: str = "onnxruntime", **weights: np.ndarray
) -> Summary:
    """The summary of a model from float32 x of that shape to y."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    initializers = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "graph", [x], [onnx.ValueInfoProto(name="y")], initializers)
    opset = [helper.make_opsetid("", 17)]
    return summarize(load(helper.make_model(graph, opset_imports=opset, ir_version=8)), target)


CONV = helper.make_node("Conv", ["x", "weight"], ["a"], name="conv")
WEIGHT = np.ones((3, 3, 1, 1))


def test_inputs_outputs_operators_and_weights_are_listed():
    summary = summary_of(CONV, helper.make_node("Relu", ["a"], ["y"]), weight=WEIGHT)
    assert summary.inputs == {"x": "float32[N, 3, H, W]"}
    assert list(summary.outputs) == ["y"]
    assert summary.operators == {"Conv": 1, "Relu": 1}
    assert (summary.parameter_count, summary.parameter_bytes) == (9, 36)
    assert not summary.quantized
    assert summary.to_dict()["opsets"] == {"": 17}


def test_each_node_has_a_fate():
    norm = {name: np.ones(3) for name in ("gamma", "beta", "mean", "variance")}
    summary = summary_of(
        CONV,
        helper.make_node("BatchNormalization", ["a", *norm], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("MaxPool", ["c"], ["d"], kernel_shape=[2, 2]),
        helper.make_node("Conv", ["d", "other"], ["e"]),
        helper.make_node("Sigmoid", ["e"], ["f"]),
        helper.make_node("Add", ["f", "one"], ["g"]),
        helper.make_node("Softmax", ["g"], ["y"]),
        weight=WEIGHT, other=WEIGHT, one=np.ones(1), **norm,
    )  # fmt: skip
    assert summary.fates == {
        "Conv": {INTEGER: 1, NOT_TAKEN.format("Sigmoid"): 1},
        "BatchNormalization": {FOLDED: 1},
        "Relu": {MERGED: 1},
        "MaxPool": {MOVES: 1},
        "Sigmoid": {NO_READER: 1},
        "Add": {CONSTANT_SIDE: 1},
        "Softmax": {NO_KERNEL: 1},
    }


def test_additions_of_transformers_stay_in_float():
    summary = summary_of(
        helper.make_node("MatMul", ["x", "weight"], ["a"]),
        helper.make_node("Softmax", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "a"], ["c"]),
        helper.make_node("Add", ["c", "x"], ["y"]),
        shape=(1, 4, 4), weight=np.eye(4),
    )  # fmt: skip
    assert summary.fates["Add"] == {"float: kept so in transformers": 1}
    assert summary.fates["MatMul"] == {INTEGER: 1, READ_TWICE: 1}  # the Softmax reads the first in float


def test_a_quantized_model_is_recognized():
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale"], ["y"]),
    ]
    summary = summary_of(*nodes, scale=np.array(0.5))
    assert summary.quantized
    assert summary.fates == {}
    assert summary.findings == ()


def test_of_a_quantized_model_the_target_s_findings_are_listed():
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], name="rounded"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3))
    numbers = {"scale": np.float32(0.5), "zero": np.int8(3)}
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in numbers.items()]
    graph = helper.make_graph(nodes, "graph", [x], [onnx.ValueInfoProto(name="y")], initializers)
    model = load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    (finding,) = summarize(model, "tensorrt").to_dict()["findings"]
    assert (finding["severity"], finding["node"]) == ("refused", "rounded")
    assert summarize(model, "onnxruntime").findings == ()


def test_a_free_size_that_must_be_large_is_guessed():
    summary = summary_of(
        helper.make_node("Conv", ["x", "weight"], ["a"]),
        helper.make_node("AveragePool", ["a"], ["y"], kernel_shape=[7, 7]),
        weight=np.ones((3, 3, 5, 5)),
    )  # fmt: skip
    assert summary.fates["Conv"] == {INTEGER: 1}


def test_an_unknown_target_is_an_error_with_the_nearest_name():
    with pytest.raises(ConfigError, match="did you mean 'onnxruntime'"):
        summary_of(helper.make_node("Relu", ["x"], ["y"]), target="onnxruntme")


@pytest.mark.parametrize(
    "dtype, expected", [("int4", 8), ("uint4", 8), ("int8", 15), ("float32", 60), ("float8_e4m3fn", 15)]
)
def test_two_numbers_of_four_bits_share_a_byte_of_the_file(dtype, expected):
    assert stored_bytes(np.zeros((3, 5), jax.numpy.dtype(dtype))) == expected
