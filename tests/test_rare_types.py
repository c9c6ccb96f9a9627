"""Tensors of the rarer types of ONNX, wherever they stand, end in a result or in an error of jaxq."""

import contextlib
import warnings

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import jaxq
from jaxq.analysis.inspect import summarize
from jaxq.ops import ELEMENT_TYPES

W = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
SIX_BITS = ("float6_e2m3fn", "float6_e3m2fn")
RARE = (8, 11, 14, 16, 18, 21, 22, 23, 24, 25, 26, 27, 28)
PLACES = ("weight", "weight and output", "factors", "input", "input and output", "output")


def ones(name: str, *shape: int) -> np.ndarray:
    if name == "object":
        return np.full(shape, "1", object)
    return np.ones(shape).astype(getattr(ml_dtypes, name, name))


def stored(name: str, number: int, *shape: int) -> TensorProto:
    if name in SIX_BITS:  # which onnx's helpers do not write yet
        return TensorProto(name="r", data_type=number, dims=shape, raw_data=bytes(int(np.prod(shape)) * 6 // 8))
    return numpy_helper.from_array(ones(name, *shape), "r")


def model(number: int, place: str) -> onnx.ModelProto:
    """y = x w beside a tensor r of that type in that place."""
    name = ELEMENT_TYPES[number]
    nodes, weights = [helper.make_node("MatMul", ["x", "w"], ["t"])], [numpy_helper.from_array(W, "w")]
    inputs, outputs = [("x", 1, ["N", 4])], [("y", 1, ["N", 4])]
    if place.startswith("input"):
        inputs.append(("r", number, ["M", 4]))
    elif place != "output":
        weights.append(stored(name, number, 4, 4))
    if place.endswith("output"):
        outputs.append(("s", number, None))
    if place == "output":
        nodes += [helper.make_node("Relu", ["t"], ["y"]), helper.make_node("Cast", ["t"], ["s"], to=number)]
    elif place.endswith("and output"):
        nodes += [helper.make_node("Relu", ["t"], ["y"]), helper.make_node("Identity", ["r"], ["s"])]
    elif place == "factors":
        nodes += [helper.make_node("Cast", ["t"], ["c"], to=number), helper.make_node("MatMul", ["c", "r"], ["z"]),
                  helper.make_node("Cast", ["z"], ["y"], to=1)]  # fmt: skip
    else:
        nodes += [helper.make_node("Cast", ["r"], ["c"], to=1), helper.make_node("Add", ["t", "c"], ["y"])]
    infos = [[helper.make_tensor_value_info(*each) for each in part] for part in (inputs, outputs)]
    graph = helper.make_graph(nodes, "g", *infos, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)], ir_version=13)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("number", RARE, ids=lambda number: ELEMENT_TYPES[number])
def test_a_rare_type_ends_in_a_result_or_an_error_of_ours(tmp_path, number, place):
    feed = {"x": np.ones((1, 4), np.float32)}
    if place.startswith("input"):
        feed["r"] = ones(ELEMENT_TYPES[number], 1, 4)
    try:
        loaded = jaxq.load(model(number, place))
    except jaxq.JaxqError:
        return
    actions = (
        lambda: np.asarray(loaded(feed)["y"]),
        lambda: jaxq.save(loaded, tmp_path / "m.onnx"),
        lambda: jaxq.save(jaxq.compress_weights(loaded), tmp_path / "m.onnx"),
        lambda: summarize(loaded, "onnxruntime"),
        lambda: jaxq.to_flax(loaded),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jaxq.JaxqWarning)
        for action in actions:
            with contextlib.suppress(jaxq.JaxqError):
                action()


@pytest.mark.parametrize("name", [*SIX_BITS, "int2", "float4_e2m1fn", "float8_e8m0fnu", "complex64", "object"])
def test_quantizing_beside_a_rare_type_ends_in_a_result_or_an_error_of_ours(name):
    number = next(each for each, known in ELEMENT_TYPES.items() if known == name)
    for place in ("weight and output", "output"):
        with warnings.catch_warnings(), contextlib.suppress(jaxq.JaxqError):
            warnings.simplefilter("ignore", jaxq.JaxqWarning)
            made = jaxq.quantize(model(number, place), [np.ones((1, 4), np.float32)] * 2)
            assert "w" in made.encodings


def test_what_xla_does_not_know_is_named():
    with pytest.raises(jaxq.ModelError, match=r"'s' is of type float6_e3m2fn, with which XLA does not compute"):
        jaxq.load(model(28, "weight and output"))({"x": np.ones((1, 4), np.float32)})
    with pytest.raises(jaxq.ModelError, match="input 'r' is of type float6_e2m3fn"):
        jaxq.load(model(27, "input"))({"x": np.ones((1, 4), np.float32), "r": ones("float6_e2m3fn", 1, 4)})
