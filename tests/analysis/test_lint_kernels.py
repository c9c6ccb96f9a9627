"""What the linter says runs in float is what ONNX Runtime leaves in float."""

import re

import numpy as np
import onnx
import pytest
from models import quantized, written

from jaxq.analysis.lint import lint
from jaxq.onnx_io.load import load
from jaxq.onnx_io.runtime import kernels, session
from jaxq.onnx_io.save import save
from jaxq.placement.targets import ONNXRUNTIME

pytest.importorskip("onnxruntime")
NUMBERS = {
    "sx": np.float32(0.1), "zx": np.uint8(128), "z0": np.uint8(0), "s6": np.float32(6 / 255), "ones": np.ones(8, np.float32),
    "w": np.arange(-32, 32, dtype=np.int8).reshape(8, 8), "sw": np.float32(0.01), "zw": np.int8(0),
    "b": np.arange(8, dtype=np.int32), "sb": np.float32(0.001), "zb": np.int32(0), "low": np.float32(0), "high": np.float32(6),
}  # fmt: skip
DATA = "q = QuantizeLinear (x, sx, zx) d = DequantizeLinear (q, sx, zx) wd = DequantizeLinear (w, sw, zw)"
BIAS = "bd = DequantizeLinear (b, sb, zb)"
END = "e = QuantizeLinear (a, sx, {zero}) y = DequantizeLinear (e, sx, {zero})"
AT_128, AT_0, TO_6 = END.format(zero="zx"), END.format(zero="z0"), END.format(zero="z0").replace("sx", "s6")
NORMALIZED = "a = BatchNormalization (c, ones, ones, ones, ones)"
DENSE = {
    "product": "y = MatMul (d, wd)",
    "product, bias": "c = MatMul (d, wd) y = Add (c, ones)",
    "product, bias first": "c = MatMul (d, wd) y = Add (ones, c)",
    "product, bias, quantized": f"c = MatMul (d, wd) a = Add (c, ones) {AT_128}",
    "dense": f"{BIAS} y = Gemm (d, wd, bd)",
    "dense without bias": "y = Gemm <alpha = 0.5> (d, wd)",
    "dense, bias in float": "y = Gemm (d, wd, ones)",
    "dense, bias in float, quantized": f"a = Gemm (d, wd, ones) {AT_128}",
    "dense, alpha": f"{BIAS} y = Gemm <alpha = 0.5> (d, wd, bd)",
    "dense, beta, quantized": f"{BIAS} a = Gemm <beta = 0.5> (d, wd, bd) {AT_128}",
    "dense, two readers": f"{BIAS} a = Gemm (d, wd, bd) {AT_128.replace(' y =', ' z =')} y = Add (z, a)",
    "dense, Relu": f"{BIAS} c = Gemm (d, wd, bd) a = Relu (c) {AT_0}",
    "dense, Relu above the lowest": f"{BIAS} c = Gemm (d, wd, bd) a = Relu (c) {AT_128}",
}
IMAGES = {
    "convolution": f"a = Conv (d, wd) {AT_128}",
    "convolution, output": "y = Conv (d, wd)",
    "convolution, normalization": f"c = Conv (d, wd) {NORMALIZED} {AT_128}",
    "convolution, quantized, normalization": f"a = Conv (d, wd) {AT_128.replace(' y =', ' c =')} "
    + NORMALIZED.replace("a =", "y ="),
    "convolution, Sigmoid": f"c = Conv (d, wd) a = Sigmoid (c) {AT_128}",
    "convolution, Relu": f"c = Conv (d, wd) a = Relu (c) {AT_0}",
    "convolution, Relu, two readers": f"c = Conv (d, wd) a = Relu (c) {AT_0.replace(' y =', ' z =')} y = Add (z, a)",
    "convolution, Clip": f"c = Conv (d, wd) a = Clip (c, low, high) {TO_6}",
    "convolution, Clip in the middle": f"c = Conv (d, wd) a = Clip (c, low, high) {AT_0}",
    "convolution, two readers": f"a = Conv (d, wd) {AT_128.replace(' y =', ' z =')} y = Add (z, a)",
}
CASES = {
    **{name: ("float[N, 8]", text, {}) for name, text in DENSE.items()},
    **{name: ("float[N, 8, 4, 4]", text, {"w": NUMBERS["w"].reshape(8, 8, 1, 1)}) for name, text in IMAGES.items()},
    "product, bias, shapes known": ("float[2, 5, 8]", DENSE["product, bias"], {}),
    "transposed convolution": (
        "float[N, 8, 4, 4]",
        f"a = ConvTranspose (d, wd) {AT_128}",
        {"w": NUMBERS["w"].reshape(8, 8, 1, 1)},
    ),
    "product, bias, of rank 3": ("float[N, 5, 8]", DENSE["product, bias"], {}),
}


def said(model) -> bool:
    """Whether some product is said to run in float."""
    texts = [f"{each.problem} {each.advice}" for each in lint(model, ONNXRUNTIME)]
    return any("runs in float" in text for text in texts)


@pytest.mark.parametrize("name", CASES)
def test_products_in_float_are_said_to_be(name, tmp_path):
    kind, text, changes = CASES[name]
    given, whole = {**NUMBERS, **changes}, f"{DATA} {text}"
    numbers = {key: value for key, value in given.items() if re.search(rf"[ (]{key}[,)]", whole)}
    onnx.save(written(f"({kind} x) => ({kind} y) {{ {whole} }}", **numbers), tmp_path / "model.onnx")
    session(tmp_path / "model.onnx", optimized=tmp_path / "optimized.onnx")
    _, left = kernels(tmp_path / "optimized.onnx")
    assert said(load(tmp_path / "model.onnx")) is bool(left)


@pytest.mark.parametrize("name", ["residual", "transformer", "shuffle"])
def test_files_of_jaxq_run_in_integers_as_is_said(name, tmp_path):
    save(quantized(name), tmp_path / "model.onnx")
    session(tmp_path / "model.onnx", optimized=tmp_path / "optimized.onnx")
    _, left = kernels(tmp_path / "optimized.onnx")
    assert said(load(tmp_path / "model.onnx")) is bool(left) is False
