"""What is said about each node is what ONNX Runtime does."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from models import NETWORKS, Network, quantized, smooth, written

import jaxq
from jaxq.analysis.inspect import summarize
from jaxq.analysis.lint import lint
from jaxq.analysis.verify import kernels, session
from jaxq.onnx_io.runtime import LINEAR_OPS
from jaxq.placement.fates import AN_OUTPUT, COMPUTED_BIAS, CONSTANT_SIDE, INTEGER, STORED
from jaxq.placement.targets import ONNXRUNTIME

KERNELS = {  # operators -> the kernels that compute them in integers
    ("Conv",): ("QLinearConv",),
    ("Gemm", "MatMul"): ("QGemm", "MatMulIntegerToFloat", "QLinearMatMul", "MatMulInteger"),
    ("ConvTranspose",): ("QLinearConvTranspose",),
    **{(op,): (f"QLinear{op}",) for op in ("Add", "Mul", "Sigmoid", "LeakyRelu", "AveragePool", "GlobalAveragePool")},
}


def run_in_integers(model: jaxq.Model, folder: Path) -> dict[tuple[str, ...], int]:
    """Operators -> how many of them the optimized graph of ONNX Runtime has in integers."""
    jaxq.save(model, folder / "model.onnx")
    session(folder / "model.onnx", optimized=folder / "optimized.onnx")
    found, _ = kernels(folder / "optimized.onnx")
    return {ops: sum(found.get(kernel, 0) for kernel in names) for ops, names in KERNELS.items()}


def said_in_integers(model: jaxq.Model) -> dict[tuple[str, ...], int]:
    """The same, as `summarize` has it."""
    fates = summarize(model, "onnxruntime").fates
    return {ops: sum(fates.get(op, {}).get(INTEGER, 0) for op in ops) for ops in KERNELS}


def convolutions(between: str, **numbers: Any) -> onnx.ModelProto:
    """x -> Conv -> z, what stands between z and y, y -> Conv -> o; and a last layer, so that o is no output."""
    weights = {f"w{k}": np.random.default_rng(k).normal(size=(8, 8, 3, 3)) / 8 for k in (1, 2)}
    weights["v"] = np.random.default_rng(3).normal(size=(8, 4)) / 3
    text = f"""(float[N, 8, 8, 8] x) => (float[N, 4] s) {{
        z = Conv <pads = [1, 1, 1, 1]> (x, w1)  {between}  o = Conv <pads = [1, 1, 1, 1]> (y, w2)
        p = GlobalAveragePool (o)  f = Flatten (p)  s = MatMul (f, v) }}"""
    return written(text, **{key: np.asarray(each, np.float32) for key, each in {**weights, **numbers}.items()})


ACTIVATIONS = {
    "Max with a number": convolutions("y = Max (z, floor)", floor=-0.4),
    "Relu6 in two steps": convolutions("q = Relu (z)  y = Min (q, six)", six=6),
    "a clip to both sides": convolutions("y = Clip (z, low, high)", low=-1, high=1),
    "the larger of two": convolutions("y = Max (z, x)"),
    "Abs": convolutions("y = Abs (z)"),
    "Erf": convolutions("y = Erf (z)"),
    "a selection": convolutions("q = Less (z, zero)  y = Where (q, zero, z)", zero=0),
    "a logarithm": convolutions("a = Exp (z)  b = Add (a, one)  y = Log (b)", one=1),
    "a normalization": convolutions("y = InstanceNormalization (z, ones, zeros)", ones=np.ones(8), zeros=np.zeros(8)),
    "a gate": convolutions("a = Sigmoid (z)  y = Mul (a, z)"),
    "joined with what is negative": convolutions(
        "a = Relu (z)  b = Concat <axis = 1> (a, x)  c = Conv (b, u)  y = LeakyRelu (c)",
        u=np.random.default_rng(4).normal(size=(8, 16, 1, 1)) / 4,
    ),
}
INTEGERS = {"a logarithm": 1, "a normalization": 1}  # the others have all of their convolutions in integers


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_convolutions_around_any_pointwise_function_run_in_integers_or_it_is_said_that_they_do_not(name, tmp_path):
    model = jaxq.load(ACTIVATIONS[name])
    result = jaxq.quantize(model, [{"x": smooth(2, 8, 8, 8, seed=seed)} for seed in range(4)])
    assert said_in_integers(model) == said_in_integers(result) == run_in_integers(result, tmp_path)
    count = sum(node.op == "Conv" for node in model.graph.nodes)
    assert said_in_integers(model)["Conv",] == INTEGERS.get(name, count)


def ends(*nodes: str, outputs: str) -> onnx.ModelProto:
    weights = {"w": np.random.default_rng(0).normal(size=(8, 8, 3, 3)) / 8}
    names = ", ".join(f"float[N, 8, 8, 8] {name}" for name in outputs)
    return written(f"(float[N, 8, 8, 8] x) => ({names}) {{ {'  '.join(nodes)} }}",
                   **{key: value.astype(np.float32) for key, value in weights.items()})  # fmt: skip


CONV = "Conv <pads = [1, 1, 1, 1]>"
ENDS = {
    "a convolution gives the output": (ends(f"y = {CONV} (x, w)", outputs="y"), 0),
    "a sigmoid gives the output": (ends(f"z = {CONV} (x, w)", "y = Sigmoid (z)", outputs="y"), 0),
    "an activation is an output and read by the next": (
        ends(f"z = {CONV} (x, w)", "a = Relu (z)", f"y = {CONV} (a, w)", outputs="ay"), 0,
    ),
    "only the last": (ends(f"z = {CONV} (x, w)", f"y = {CONV} (z, w)", outputs="y"), 1),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDS)
def test_a_convolution_whose_result_nothing_takes_in_integers_is_counted_as_float(name, tmp_path):
    proto, integers = ENDS[name]
    model = jaxq.load(proto)
    result = jaxq.quantize(model, [{"x": smooth(2, 8, 8, 8, seed=seed)} for seed in range(4)])
    assert said_in_integers(model) == said_in_integers(result) == run_in_integers(result, tmp_path)
    fates = summarize(model, "onnxruntime").fates["Conv"]
    assert fates.get(INTEGER, 0) == integers
    assert AN_OUTPUT in fates or "Sigmoid takes it in float" in " ".join(fates)


@pytest.mark.parametrize("name", NETWORKS)
def test_of_small_networks_what_is_said_is_what_the_runtime_does(name, tmp_path):
    result = quantized(name)
    assert said_in_integers(jaxq.load(NETWORKS[name][0]())) == run_in_integers(result, tmp_path)
    assert said_in_integers(result) == run_in_integers(result, tmp_path)


def dense_layers() -> onnx.ModelProto:
    """Gemms with every form of bias, one that is computed, a constant on the left, and a transposed convolution."""
    net = Network()
    x = net.input("x", ["N", 8])
    for number, shape in enumerate([(8,), (1, 8), (1,), ()]):
        bias = net.constant(f"b{number}", np.full(shape, 0.1))
        x = net.node("Gemm", [x, net.weight(f"w{number}", 8, 8), bias], f"x{number}", alpha=0.5, beta=2.0)
        x = net.node("Relu", [x], f"a{number}")
    shared = net.constant("shared", np.linspace(-1, 1, 8))
    x = net.node("Gemm", [x, net.weight("v", 8, 8), shared], "c")
    x = net.node("Gemm", [x, net.weight("u", 8, 8), shared], "d", transB=1)
    x = net.node("Unsqueeze", [x, net.constant("axis", [2], np.int64)], "columns")
    rows = net.constant("left", net.random.normal(size=(8, 8)) * np.logspace(-2, 2, 8)[:, None])
    x = net.node("MatMul", [rows, x], "product")
    x = net.node("ConvTranspose", [x, net.weight("t", 8, 2, 2)], "y", strides=[2])
    net.output("y", ["N", 2, 2])
    return net.proto()


def test_of_dense_layers_what_is_said_is_what_the_runtime_does(tmp_path):
    model = jaxq.load(dense_layers())
    result = jaxq.quantize(model, [{"x": smooth(4, 8, seed=seed)} for seed in range(4)])
    assert said_in_integers(model) == said_in_integers(result) == run_in_integers(result, tmp_path)
    fates = summarize(model, "onnxruntime").fates
    assert (fates["Gemm"], fates["MatMul"], fates["ConvTranspose"]) == ({INTEGER: 6}, {INTEGER: 1}, {STORED: 1})


def test_a_convolution_with_a_computed_bias_is_counted_as_float(tmp_path):
    model = jaxq.load(
        written("(float[N, 4, 8, 8] x, float[4] b) => (float[N, 4, 8, 8] y) {"
                " z = Conv (x, w, b)  y = Conv (z, w) }", w=smooth(4, 4, 1, 1)))  # fmt: skip
    result = jaxq.quantize(model, [{"x": smooth(1, 4, 8, 8, seed=seed), "b": smooth(4)} for seed in range(4)])
    assert said_in_integers(model) == run_in_integers(result, tmp_path)
    assert summarize(model, "onnxruntime").fates["Conv"] == {COMPUTED_BIAS: 1, AN_OUTPUT: 1}
    assert said_in_float_by_the_linter(tmp_path / "model.onnx") == 2


@pytest.mark.parametrize("shape", ["2, 5, 8", "N, 5, 8", "N, 8"])
@pytest.mark.parametrize("end", ["", "z = Relu (s)  y = MatMul (z, v)"])
def test_of_products_with_a_bias_behind_what_is_said_is_what_the_runtime_does(shape, end, tmp_path):
    body = f"p = MatMul (x, w)  s = Add (p, b)  {end}" if end else "p = MatMul (x, w)  y = Add (p, b)"
    numbers = {"w": smooth(8, 8), "b": smooth(8)} | ({"v": smooth(8, 8, seed=1)} if end else {})
    model = jaxq.load(written(f"(float[{shape}] x) => (float[{shape}] y) {{ {body} }}", **numbers))
    sizes = [4 if size == "N" else int(size) for size in shape.split(", ")]
    result = jaxq.quantize(model, [{"x": smooth(*sizes, seed=seed)} for seed in range(4)])
    run = run_in_integers(result, tmp_path)
    assert said_in_integers(result) == said_in_integers(model) == run
    _, left = kernels(tmp_path / "optimized.onnx")
    assert said_in_float_by_the_linter(tmp_path / "model.onnx") == sum(left.values())


def test_rows_of_a_constant_on_the_left_keep_their_precision():
    rows = (np.random.default_rng(0).normal(size=(8, 8)) * np.logspace(-2, 2, 8)[:, None]).astype(np.float32)
    proto = written("(float[N, 8, 5] x) => (float[N, 8, 5] y) { y = MatMul (w, x) }", w=rows)
    feeds = [{"x": np.random.default_rng(seed).normal(size=(4, 8, 5)).astype(np.float32)} for seed in range(4)]
    result = jaxq.quantize(proto, feeds)
    wanted, found = (np.asarray(model(feeds[0])["y"]) for model in (jaxq.load(proto), result))
    noise = 10 * np.log10((wanted**2).sum((0, 2)) / ((wanted - found) ** 2).sum((0, 2)))
    assert noise.min() > 30


KIND = {"Conv": "N, 8, 4, 4", "Gemm": "N, 8", "MatMul": "N, 8", "MatMul, rank 3": "N, 3, 8"}
SHARED = {  # what follows t, and which tensors are outputs
    "read by a product": ("y = {op} (t, v)", "y"),
    "read by two products": ("a = {op} (t, v)  b = {op} (t, w)  y = Sub (a, b)", "y"),
    "read in float too": ("y = {op} (t, v)  z = Softmax (t)", "yz"),
    "an output too": ("y = {op} (t, v)", "yt"),
    "with Relu": ("a = Relu (t)  y = {op} (a, v)", "y"),
    "with Relu that is an output": ("a = Relu (t)  y = {op} (a, v)", "ya"),
    "with Relu that is read in float too": ("a = Relu (t)  y = {op} (a, v)  z = Softmax (a)", "yz"),
    "around a product": ("u = {op} (t, v)  y = Add (t, u)", "y"),
    "around products": ("u = {op} (t, v)  a = Relu (u)  b = {op} (a, w)  h = Add (x, b)  c = {op} (h, v)  y = Add (c, h)", "y"),
    "two products in a sum": ("u = {op} (x, v)  s = Add (t, u)  y = Softmax (s)", "y"),
    "a sum that is quantized": ("u = {op} (x, v)  a = Softmax (x)  s = Add (u, a)  y = {op} (s, v)", "ty"),
    "read in a branch": (
        "m = ReduceSum <keepdims = 0> (x)  k = Greater (m, zero)  y = If (k) <"
        " then_branch = yes () => (float[{kind}] p) {{ p = {op} (t, v) }},"
        " else_branch = no () => (float[{kind}] n) {{ n = Softmax (t) }}>",
        "y",
    ),
}  # fmt: skip


def shared(kind: str, name: str) -> onnx.ModelProto:
    text, outputs = SHARED[name]
    op, shape = kind.split(",")[0], KIND[kind]
    made = ", ".join(f"float[{shape}] {each}" for each in outputs)
    body = f"t = {op} (x, w)  {text.format(op=op, kind=shape)}"
    weights = {each: smooth(8, 8, *([1, 1] if op == "Conv" else []), seed=seed) for seed, each in enumerate("wv")}
    numbers = {**weights, "zero": np.float32(0)}
    numbers = {key: value for key, value in numbers.items() if f"{key})" in body}
    return written(f"(float[{shape}] x) => ({made}) {{ {body} }}", **numbers)


def said_in_float_by_the_linter(path: Path) -> int:
    """How many products the linter says run in float."""
    found = {
        each.node for each in lint(jaxq.load(path), ONNXRUNTIME) if each.op in LINEAR_OPS and "in float" in each.problem
    }
    return len(found)


SUMS = frozenset(
    {"two products in a sum", "a sum that is quantized", "around products", "read by two products", "with Relu"}
)
CASES = [
    (kind, name)
    for kind in KIND
    for name in SHARED
    if kind in ("MatMul", "Gemm") or (name in SUMS) is ("rank 3" in kind)
]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_of_shared_results_what_fates_and_linter_say_is_what_the_runtime_does(kind, name, tmp_path):
    proto = shared(kind, name)
    sizes = [4 if size == "N" else int(size) for size in KIND[kind].split(", ")]
    quick = jaxq.AdvancedQuantizationParameters(disable_bias_correction=True, disable_channel_alignment=True)
    feeds = [
        {"x": smooth(*sizes, seed=seed) + sign} for seed, sign in enumerate((1, -1))
    ]  # the sign decides on the branch
    result = jaxq.quantize(proto, feeds, advanced_parameters=quick)
    run = run_in_integers(result, tmp_path)
    assert said_in_integers(result) == run
    assert said_in_integers(jaxq.load(proto)) == run
    _, left = kernels(tmp_path / "optimized.onnx")
    assert said_in_float_by_the_linter(tmp_path / "model.onnx") == sum(left.values())


def test_a_bias_behind_a_product_has_a_word_of_its_own():
    proto = written("(float[N, 3, 4] x) => (float[N, 3, 4] y) { p = MatMul (x, w)  y = Add (p, b) }",
                    w=smooth(4, 4), b=smooth(4))  # fmt: skip
    assert summarize(jaxq.load(proto), "onnxruntime").fates["Add"] == {CONSTANT_SIDE: 1}
