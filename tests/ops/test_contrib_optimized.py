"""Models that ONNX Runtime's own optimizer and quantizer have rewritten: jaxq reads them and computes the same."""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import NETWORKS, Network, quantized, run_onnx, smooth

from jaxq.onnx_io.load import load
from jaxq.onnx_io.save import save, to_proto

ort = pytest.importorskip("onnxruntime")
EXTENDED = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
# For convolutions in float this uses layouts of one machine: not portable.
ALL = ort.GraphOptimizationLevel.ORT_ENABLE_ALL


def post_norm_network() -> onnx.ModelProto:
    """tokens [N, 6, 16] -> out [N, 6, 16]: Gelu of both kinds, with biases, and normalizations of sums."""
    net = Network()
    x = net.input("tokens", ["N", 6, 16])
    for name in ("exact", "tanh"):
        wide = net.node("MatMul", [x, net.weight(f"{name}.in", 16, 32)], f"{name}.wide")
        wide = net.node("Add", [wide, net.constant(f"{name}.bias", net.random.normal(size=32))], f"{name}.biased")
        gelu = exact_gelu if name == "exact" else tanh_gelu
        narrow = net.node("MatMul", [gelu(net, wide, name), net.weight(f"{name}.out", 32, 16)], f"{name}.narrow")
        narrow = net.node("Add", [narrow, net.constant(f"{name}.shift", net.random.normal(size=16))], f"{name}.shifted")
        total = net.node("Add", [narrow, x], f"{name}.sum")
        scale, bias = net.constant(f"{name}.gamma", np.full(16, 1.2)), net.constant(f"{name}.beta", np.full(16, 0.1))
        x = net.node("LayerNormalization", [total, scale, bias], f"{name}.norm")
    net.node("Identity", [x], "out")
    net.output("out", ["N", 6, 16])
    return net.proto()


def exact_gelu(net: Network, x: str, name: str) -> str:
    scaled = net.node("Div", [x, net.constant(f"{name}.root", np.sqrt(2))], f"{name}.scaled")
    total = net.node("Add", [net.node("Erf", [scaled], f"{name}.erf"), net.constant(f"{name}.one", 1)], f"{name}.total")
    product = net.node("Mul", [x, total], f"{name}.product")
    return net.node("Mul", [product, net.constant(f"{name}.half", 0.5)], f"{name}.gelu")


def tanh_gelu(net: Network, x: str, name: str) -> str:
    cube = net.node("Pow", [x, net.constant(f"{name}.three", 3)], f"{name}.cube")
    part = net.node("Mul", [cube, net.constant(f"{name}.small", 0.044715)], f"{name}.part")
    inner = net.node("Add", [x, part], f"{name}.inner")
    scaled = net.node("Mul", [inner, net.constant(f"{name}.root", np.sqrt(2 / np.pi))], f"{name}.scaled")
    total = net.node(
        "Add", [net.node("Tanh", [scaled], f"{name}.tanh"), net.constant(f"{name}.one", 1)], f"{name}.total"
    )
    half = net.node("Mul", [x, net.constant(f"{name}.half", 0.5)], f"{name}.halved")
    return net.node("Mul", [half, total], f"{name}.gelu")


def written_by_jaxq(name: str, folder: Path) -> Path:
    """The quantized network, with Q and DQ nodes."""
    save(quantized(name), folder / "model.onnx")
    return folder / "model.onnx"


def dynamic(proto: onnx.ModelProto, folder: Path) -> Path:
    """The network with its products in integers, by ONNX Runtime's quantizer."""
    from onnxruntime.quantization import quantize_dynamic

    onnx.save(proto, folder / "float.onnx")
    quantize_dynamic(folder / "float.onnx", folder / "model.onnx")
    return folder / "model.onnx"


def in_operators(name: str, folder: Path) -> Path:
    """The network in quantized operators, by ONNX Runtime's quantizer."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        feeds = iter([NETWORKS[name][1](seed) for seed in range(4)])

        def get_next(self):
            return next(self.feeds, None)

    onnx.save(NETWORKS[name][0](), folder / "float.onnx")
    kinds = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    quantize_static(folder / "float.onnx", folder / "model.onnx", Reader(), quant_format=QuantFormat.QOperator, **kinds)
    return folder / "model.onnx"


def plain(proto: onnx.ModelProto, folder: Path) -> Path:
    onnx.save(proto, folder / "model.onnx")
    return folder / "model.onnx"


TOKENS = {"tokens": smooth(2, 6, 16)}

# name -> (how to make the file, inputs, optimization level, com.microsoft operators that must be in the result)
CASES: dict[str, tuple[Callable[[Path], Path], dict, object, set[str]]] = {
    "post-norm": (
        lambda folder: plain(post_norm_network(), folder), TOKENS, ALL, {"BiasGelu", "FastGelu", "SkipLayerNormalization"}
    ),
    "transformer": (lambda folder: plain(NETWORKS["transformer"][0](), folder), TOKENS, ALL, {"FusedMatMul", "QuickGelu"}),
    "residual": (lambda f: plain(NETWORKS["residual"][0](), f), NETWORKS["residual"][1](0), EXTENDED, {"FusedConv"}),
    "shuffle": (lambda f: plain(NETWORKS["shuffle"][0](), f), NETWORKS["shuffle"][1](0), EXTENDED, {"FusedConv"}),
    "branching": (lambda f: plain(NETWORKS["branching"][0](), f), NETWORKS["branching"][1](0), ALL, {"FusedGemm"}),
    "residual, quantized": (
        functools.partial(written_by_jaxq, "residual"), NETWORKS["residual"][1](0), ALL,
        {"QLinearConv", "QLinearAdd", "QLinearGlobalAveragePool", "QGemm"},
    ),
    "shuffle, quantized": (
        functools.partial(written_by_jaxq, "shuffle"), NETWORKS["shuffle"][1](0), ALL, {"QLinearConcat", "NhwcMaxPool", "QGemm"}
    ),
    "transformer, quantized": (
        functools.partial(written_by_jaxq, "transformer"), NETWORKS["transformer"][1](0), ALL, {"MatMulIntegerToFloat"}
    ),
    "transformer, dynamic": (
        lambda f: dynamic(NETWORKS["transformer"][0](), f), TOKENS, ALL, {"DynamicQuantizeMatMul"}
    ),
    "post-norm, dynamic": (lambda f: dynamic(post_norm_network(), f), TOKENS, EXTENDED, {"DynamicQuantizeMatMul"}),
    "residual in operators": (
        functools.partial(in_operators, "residual"), NETWORKS["residual"][1](0), EXTENDED,
        {"QLinearAdd", "QLinearGlobalAveragePool", "QGemm"},
    ),
    "shuffle in operators": (
        functools.partial(in_operators, "shuffle"), NETWORKS["shuffle"][1](0), EXTENDED, {"QLinearConcat", "QGemm"}
    ),
    "transformer in operators": (
        functools.partial(in_operators, "transformer"), NETWORKS["transformer"][1](0), EXTENDED, {"QLinearAdd", "QLinearMul"}
    ),
}  # fmt: skip


@pytest.mark.parametrize("make, feed, level, operators", CASES.values(), ids=CASES)
def test_an_optimized_model_computes_what_the_runtime_computes(make, feed, level, operators, tmp_path):
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(str(make(tmp_path)), options, providers=["CPUExecutionProvider"])
    optimized = onnx.load(tmp_path / "optimized.onnx")
    assert operators <= {node.op_type for node in optimized.graph.node if node.domain == "com.microsoft"}
    model = load(tmp_path / "optimized.onnx")
    outputs = model(feed)
    for name, value in run_onnx(optimized, feed).items():
        np.testing.assert_allclose(outputs[name], value, rtol=1e-3, atol=1e-4 + step_of(optimized))
    for name, value in run_onnx(to_proto(model), feed).items():
        np.testing.assert_allclose(outputs[name], value, rtol=1e-3, atol=1e-4 + step_of(optimized))


def step_of(model: onnx.ModelProto) -> float:
    """The step of the grid of the model's output, by which kernels may differ that round in the middle; 0 for a float output."""
    last = next(node for node in model.graph.node if model.graph.output[0].name in node.output)
    if last.op_type != "DequantizeLinear":
        return 0.0
    (scale,) = (onnx.numpy_helper.to_array(each) for each in model.graph.initializer if each.name == last.input[1])
    return float(scale)
