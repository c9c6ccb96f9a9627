"""The linter says, node by node, what a runtime would refuse, compute wrongly, or leave slow."""

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from models import quantized, written

from jaxq.analysis.lint import Severity, describe, lint
from jaxq.onnx_io.load import load
from jaxq.onnx_io.qdq import with_qdq
from jaxq.placement.targets import ASCEND, ONNXRUNTIME, ONNXRUNTIME_AVX2, OPENVINO, QNN, TENSORRT, Target

REFUSED, WRONG, SLOW = Severity.REFUSED, Severity.WRONG, Severity.SLOW
GOOD: dict[str, Any] = {
    "sx": np.float32(0.5), "zx": np.uint8(3), "sy": np.float32(0.25), "zy": np.uint8(0),
    "w": np.ones((4, 4, 1, 1), np.int8), "sw": np.float32([1, 2, 3, 4]), "zw": np.zeros(4, np.int8),
    "b": np.arange(4, dtype=np.int32), "sb": np.float32([0.5, 1, 1.5, 2]), "zb": np.zeros(4, np.int32),
}  # fmt: skip
QX = "[qx] xi = QuantizeLinear (x, sx, zx)  [dx] xd = DequantizeLinear (xi, sx, zx)"
DW = "[dw] wd = DequantizeLinear <axis = 0> (w, sw, zw)"
DB = "[db] bd = DequantizeLinear <axis = 0> (b, sb, zb)"
QY = "[qy] yi = QuantizeLinear (a, sy, zy)  [dy] y = DequantizeLinear (yi, sy, zy)"
CONV = "[conv] c = Conv (xd, wd, bd)  [relu] a = Relu (c)"
WHOLE = f"{QX} {DW} {DB} {CONV} {QY}"


def found(
    text: str = WHOLE, target: Target = ONNXRUNTIME, opset: int = 17, **values: Any
) -> list[tuple[Severity, str]]:
    """Severity and node of each finding, for x -> y; `values` change the numbers of the good file."""
    numbers = {name: value for name, value in {**GOOD, **values}.items() if f" {name}" in text or f"({name}" in text}
    model = load(written(f"(float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) {{ {text} }}", opset, **numbers))
    return [(each.severity, each.node) for each in lint(model, target)]


def test_a_good_file_has_no_findings():
    assert found() == []
    assert found(target=OPENVINO) == []
    assert found(target=QNN) == []


@pytest.mark.parametrize("scale", [0.0, -0.5, np.nan, np.inf, 1e-40], ids=str)
def test_a_scale_is_a_positive_normal_number(scale):
    assert (WRONG, "qx") in found(sx=np.float32(scale))


def test_types_that_a_runtime_does_not_read_are_refused():
    assert found(target=ASCEND) == [(REFUSED, "qx"), (REFUSED, "qy")]
    signed = {"zx": np.int8(3), "zy": np.int8(-128)}
    assert found(target=ASCEND, **signed) == []


def test_tensorrt_wants_zero_points_of_zero_and_biases_in_float():
    signed = {"zx": np.int8(3), "zy": np.int8(0)}
    assert found(target=TENSORRT, **signed) == [(REFUSED, "qx"), (REFUSED, "db")]
    floats = WHOLE.replace(DB, "").replace("wd, bd", "wd")
    assert found(floats, target=TENSORRT, zx=np.int8(0), zy=np.int8(0)) == []


def test_sixteen_bits_need_opset_21_and_have_no_kernels_in_onnx_runtime():
    wide = {"zx": np.uint16(3), "zy": np.uint16(0)}
    assert (REFUSED, "qx") in found(**wide, opset=19)
    assert (SLOW, "qx") in found(**wide, opset=21)
    assert found(target=QNN, **wide, opset=21) == []


def test_the_scales_of_a_weight_belong_to_its_output_channels():
    assert (REFUSED, "conv") in found(
        WHOLE.replace("[dw] wd = DequantizeLinear <axis = 0>", "[dw] wd = DequantizeLinear <axis = 1>")
    )


def test_channels_with_different_zero_points_are_refused_where_the_kernel_wants_one():
    uneven = {"w": np.ones((4, 4, 1, 1), np.uint8), "zw": np.uint8([1, 2, 3, 4])}
    assert (REFUSED, "dw") in found(**uneven)
    assert (REFUSED, "dw") not in found(target=OPENVINO, **uneven)


def test_a_bias_has_the_scale_of_the_products():
    assert found(sb=GOOD["sb"] * 2) == [(WRONG, "conv")]
    assert found(zb=np.int32([0, 0, 1, 0])) == [(WRONG, "conv")]


def test_large_weights_saturate_without_dot_products():
    large = np.full((4, 4, 1, 1), 100, np.int8)
    assert found(w=large) == []
    assert found(w=large, target=ONNXRUNTIME_AVX2) == [(WRONG, "conv")]
    assert found(w=np.full((4, 4, 1, 1), -64, np.int8), target=ONNXRUNTIME_AVX2) == []
    wide = {"zx": np.uint16(0), "zy": np.uint16(0)}  # products with 16 bits are computed in float
    assert WRONG not in {severity for severity, _ in found(w=large, opset=21, target=ONNXRUNTIME_AVX2, **wide)}


def test_a_kernel_with_some_of_its_inputs_quantized_is_slow():
    assert found(WHOLE.replace("Conv (xd", "Conv (x")) == [(SLOW, "conv")]


def test_weights_alone_in_integers_are_not_called_slow():
    several = {"zw": np.int8([0, 1, 2, 3])}  # zero points, which a kernel in integers would refuse
    text = f"{DW} c = Conv (x, wd)  y = Relu (c)"
    assert found(text, **several) == found(text, **several, target=OPENVINO) == []
    assert found(text, **several, target=TENSORRT) == [(REFUSED, "dw")]
    assert found(**several) == [(REFUSED, "dw")]


def lint_float8(monkeypatch, version, target=ONNXRUNTIME, **more):
    monkeypatch.setattr("jaxq.analysis.lint.operators.installed_version", lambda _: version)
    float8 = np.zeros((), ml_dtypes.float8_e4m3fn)
    text = f"{QX} {DW} [conv] c = Conv (xd, wd)  [relu] a = Relu (c) {QY}"
    values = {"zx": float8, "zy": float8, "w": np.ones((4, 4, 1, 1), float8.dtype), "zw": np.zeros(4, float8.dtype)}
    return found(text, opset=19, target=target, **values)


@pytest.mark.parametrize("version, wrong", [("1.23.2", True), ("1.31.1", True), ("1.32.0", False), (None, True)])
def test_float8_is_wrong_in_versions_that_take_it_for_integers(monkeypatch, version, wrong):
    assert ((WRONG, "conv") in lint_float8(monkeypatch, version)) is wrong
    assert (WRONG, "conv") not in lint_float8(monkeypatch, version, OPENVINO)


def test_a_relu_before_float8_with_a_zero_point_is_wrong_where_the_runtime_drops_it(monkeypatch):
    assert (WRONG, "relu") in lint_float8(monkeypatch, "1.32.0")
    assert (WRONG, "relu") not in lint_float8(monkeypatch, "1.32.0", OPENVINO)


@pytest.mark.parametrize("bias, wrong", [(2.0**32, True), (2.0**30, False)])
def test_a_float_bias_that_int32_does_not_hold_is_wrong_where_the_runtime_rounds_it(bias, wrong):
    text = f"{QX} {DW} [conv] c = Conv (xd, wd, b)  [relu] a = Relu (c) {QY}"
    units = GOOD["sx"] * GOOD["sw"].max()
    values = {"b": np.float32([0, 0, 0, -bias * units])}
    assert ((WRONG, "conv") in found(text, **values)) is wrong
    assert (WRONG, "conv") not in found(text, target=OPENVINO, **values)


def test_a_kernel_without_a_quantized_output_is_slow_where_it_needs_one():
    text = f"{QX} {DW} {DB} {CONV} y = Abs (a)"
    assert found(text) == [(SLOW, "conv")]
    assert found(text, target=OPENVINO) == []


def test_quantizers_between_a_kernel_and_its_activation_function_are_slow():
    text = f"{QX} {DW} {DB} [conv] c = Conv (xd, wd, bd)  [qc] ci = QuantizeLinear (c, sx, zx)" \
           f"  [dc] cd = DequantizeLinear (ci, sx, zx)  [relu] a = Relu (cd) {QY}"  # fmt: skip
    assert found(text) == [(SLOW, "relu")]


def test_a_relu_is_merged_only_if_the_quantizer_behind_starts_at_zero():
    assert found(zy=np.uint8(128)) == [(SLOW, "relu")]
    assert found(zy=np.uint8(128), target=OPENVINO) == []


def test_values_that_are_rounded_twice_are_slow():
    again = "[q2] i2 = QuantizeLinear (xd, sy, zy)  [d2] x2 = DequantizeLinear (i2, sy, zy)"
    assert (SLOW, "q2") in found(f"{QX} {again} {DW} {DB} {CONV.replace('xd', 'x2')} {QY}")
    pool = "[pool] a = MaxPool <kernel_shape = [1, 1]> (xd)"
    assert found(f"{QX} {pool} {QY}") == [(SLOW, "pool")]
    assert found(f"{QX} {pool} {QY}", sy=GOOD["sx"], zy=GOOD["zx"]) == []


def test_the_two_halves_of_a_pair_have_the_same_numbers():
    assert (WRONG, "dx") in found(WHOLE.replace("DequantizeLinear (xi, sx, zx)", "DequantizeLinear (xi, sy, zy)"))


def test_integers_without_a_dequantizer_are_refused():
    text = "[qx] xi = QuantizeLinear (x, sx, zx)  [sum] s = Add (xi, xi)  y = Cast <to = 1> (s)"
    assert (REFUSED, "qx") in found(text)


WEIGHT = {"w": np.ones((8, 4), np.int8), "s": np.full(4, 0.1, np.float32), "z": np.zeros(4, np.int8)}
BLOCKS = WEIGHT | {"w": np.ones((48, 4), np.int8), "s": np.ones((2, 4), np.float32), "z": np.zeros((2, 4), np.int8)}
TURNED = WEIGHT | {"w": np.ones((4, 4), np.int8), "s": np.float32(0.1), "z": np.int8(0)}
STACK = WEIGHT | {
    "w": np.ones((2, 8, 4), np.int8),
    "s": np.ones((2, 1, 4), np.float32),
    "z": np.zeros((2, 1, 4), np.int8),
}
ALONE = {  # what reads a weight whose activations are floats, and what is said of that
    "a product": ("y = MatMul (x, d)", WEIGHT, ""),
    "a transposed product": ("y = Gemm <transB = 1> (x, d)", TURNED, "Gemm 'read' transposes it"),
    "two": ("h = MatMul (x, d)  y = MatMul (h, d)", WEIGHT, "2 nodes read it"),
    "an embedding": ("i = Cast <to = 7> (x)  [read] y = Gather (d, i)", WEIGHT, "Gather 'read' reads it"),
    "the first factor": ("y = MatMul (d, x)", WEIGHT, "not the second factor"),
    "a stack": ("y = MatMul (x, d)", STACK, "its rank is 3"),
    "alpha": ("y = Gemm <alpha = 0.5> (x, d)", WEIGHT, "more than x @ w + b"),
    "groups of 24": ("y = MatMul (x, d)", BLOCKS, "its groups are of 24"),
}


@pytest.mark.parametrize("body, weight, said", ALONE.values(), ids=ALONE.keys())
def test_weights_alone_that_no_kernel_unpacks_are_slow(body, weight, said):
    axis = (
        "axis = 0, block_size = 24"
        if weight is BLOCKS
        else "axis = 1, block_size = 8"
        if weight is STACK
        else "axis = 1"
    )
    text = f"(float[N, K] x) => (float y) {{ d = DequantizeLinear <{axis}> (w, s, z)  [read] {body.removeprefix('[read] ')} }}"
    model = load(written(text.replace("[read] i =", "i =").replace("[read] h =", "h ="), opset=21, **weight))
    found = lint(model, ONNXRUNTIME)
    assert [each.severity for each in found] == [SLOW] * bool(said)
    assert all(said in each.problem and "unpacked at every run" in each.problem for each in found)
    assert lint(model, OPENVINO) == ()


def test_operators_on_integers_are_for_those_who_have_them():
    text = f"{QX} [q] q = QLinearConv (xi, sx, zx, w, sw, zw, sy, zy)  [dy] y = DequantizeLinear (q, sy, zy)"
    assert found(text) == []
    assert (REFUSED, "q") in found(text, target=TENSORRT)


def test_outputs_are_quantized_where_everything_is():
    text = f"{QX} {DW} {DB} [conv] y = Conv (xd, wd, bd)"
    assert (SLOW, "y") in found(text, target=QNN)


def test_findings_are_told_together_and_the_worst_first():
    model = load(
        written(f"(float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) {{ {WHOLE} }}", **{**GOOD, "sb": GOOD["sb"] * 2})
    )
    lines = describe(lint(model, TENSORRT))
    assert lines[0].startswith("refused")
    assert sum("int32" in line for line in lines) == 1
    one = lint(model, ONNXRUNTIME)[0]
    many = describe(tuple(replace(one, node=f"conv{number}") for number in range(9)))
    assert "conv0, conv1, conv2, conv3 and 5 more" in many[0]


def test_every_network_of_the_tests_is_read_whatever_its_operators():
    for name in ("residual", "transformer", "free size"):  # with operators of one input, of two, and without weights
        assert not [each for each in lint(with_qdq(quantized(name)), ONNXRUNTIME) if each.severity is not SLOW]
