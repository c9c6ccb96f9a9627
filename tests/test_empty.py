"""Layers without elements (a head with no outputs, a group with no features) stay in float; what is around is quantized."""

import numpy as np
import onnx
import pytest
from models import smooth
from onnx import helper, numpy_helper

import jaxq
from jaxq.onnx_io.load import load
from jaxq.options import AdvancedQuantizationParameters

ort = pytest.importorskip("onnxruntime")
RANDOM = np.random.default_rng(0)
CASES = {  # name -> operator, shape of the data without the batch, shape of the empty weight, attributes
    "MatMul to nothing": ("MatMul", [16], (16, 0), {}),
    "MatMul of nothing": ("MatMul", [0], (0, 4), {}),
    "Gemm to nothing": ("Gemm", [16], (0, 16), {"transB": 1}),
    "Gemm of nothing": ("Gemm", [0], (0, 4), {}),
    "Conv to nothing": ("Conv", [16, 4, 4], (0, 16, 3, 3), {}),
    "1x1 Conv to nothing": ("Conv", [16, 4, 4], (0, 16, 1, 1), {}),
    "ConvTranspose to nothing": ("ConvTranspose", [16, 4, 4], (16, 0, 2, 2), {"strides": [2, 2]}),
}
UNCORRECTED = AdvancedQuantizationParameters(disable_bias_correction=True)


def beside_a_product(op: str, shape: list[int], weight: tuple[int, ...], attributes: dict) -> onnx.ModelProto:
    """y from x by the operator with the empty weight w, and u = z v beside it."""
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w"], ["y"], "empty", **attributes), helper.make_node("MatMul", ["z", "v"], ["u"], "whole")],
        "g",
        [helper.make_tensor_value_info("x", 1, ["N", *shape]), helper.make_tensor_value_info("z", 1, ["N", 16])],
        [helper.make_tensor_value_info("y", 1, ["N", *[None] * len(shape)]), helper.make_tensor_value_info("u", 1, ["N", 4])],
        [numpy_helper.from_array(np.zeros(weight, np.float32), "w"),
         numpy_helper.from_array(RANDOM.normal(size=(16, 4)).astype(np.float32), "v")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def feed(shape: list[int], seed: int = 0) -> dict[str, np.ndarray]:
    return {"x": np.ones((1, *shape), np.float32), "z": smooth(1, 16, seed=seed)}


def in_runtime(path, given) -> dict[str, np.ndarray]:
    runtime = ort.InferenceSession(path)
    return dict(zip([each.name for each in runtime.get_outputs()], runtime.run(None, given), strict=True))


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_an_empty_weight_stays_in_float(tmp_path, case):
    proto, shape = beside_a_product(*case), case[1]
    try:
        exact = in_runtime(proto.SerializeToString(), feed(shape))
    except Exception as error:  # then nothing can be asked of the product
        pytest.skip(f"the runtime does not run it in float: {error}")
    np.testing.assert_allclose(load(proto)(feed(shape))["u"], exact["u"], rtol=1e-5)
    assert load(proto)(feed(shape))["y"].shape == exact["y"].shape
    quantized = jaxq.quantize(proto, [feed(shape, seed) for seed in range(10)], advanced_parameters=UNCORRECTED)
    assert {"z", "v"} <= quantized.encodings.keys()
    assert "w" not in quantized.encodings
    jaxq.save(quantized, tmp_path / "q.onnx")
    jaxq.save(jaxq.compress_weights(proto), tmp_path / "c.onnx")
    for name in ("q.onnx", "c.onnx"):
        found = in_runtime(tmp_path / name, feed(shape))
        assert found["y"].shape == exact["y"].shape
        np.testing.assert_array_equal(found["y"], exact["y"])
        assert np.abs(found["u"] - exact["u"]).max() < 0.1


def test_an_empty_table_of_embeddings_stays_in_float(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Gather", ["w", "i"], ["y"]), helper.make_node("MatMul", ["z", "v"], ["u"])],
        "g",
        [helper.make_tensor_value_info("i", 7, ["N"]), helper.make_tensor_value_info("z", 1, ["N", 16])],
        [helper.make_tensor_value_info("y", 1, ["N", 0]), helper.make_tensor_value_info("u", 1, ["N", 4])],
        [numpy_helper.from_array(np.zeros((5, 0), np.float32), "w"),
         numpy_helper.from_array(RANDOM.normal(size=(16, 4)).astype(np.float32), "v")],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    for target in ("onnxruntime", "openvino"):
        data = [{"i": np.arange(2) % 5, "z": smooth(2, 16, seed=seed)} for seed in range(5)]
        quantized = jaxq.quantize(proto, data, target_device=target, advanced_parameters=UNCORRECTED)
        assert "w" not in quantized.encodings
    assert jaxq.compress_weights(proto).encodings.keys() == {"v"}


def test_activations_without_elements_stay_in_float(tmp_path):
    """x [N, 0, 4] times the transpose of itself, and a product behind a part that holds nothing."""
    weight = RANDOM.normal(size=(4, 8)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]), helper.make_node("MatMul", ["t", "x"], ["p"]),
         helper.make_node("MatMul", ["p", "w"], ["y"]), helper.make_node("MatMul", ["x", "w"], ["e"])],
        "g",
        [helper.make_tensor_value_info("x", 1, ["N", "L", 4])],
        [helper.make_tensor_value_info("y", 1, ["N", 4, 8]), helper.make_tensor_value_info("e", 1, ["N", "L", 8])],
        [numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    given = {"x": np.zeros((1, 0, 4), np.float32)}
    quantized = jaxq.quantize(proto, [given] * 10, advanced_parameters=UNCORRECTED)
    assert "x" not in quantized.encodings
    jaxq.save(quantized, tmp_path / "q.onnx")
    found = in_runtime(tmp_path / "q.onnx", given)
    np.testing.assert_array_equal(found["y"], np.zeros((1, 4, 8)))
    assert found["e"].shape == (1, 0, 8)
