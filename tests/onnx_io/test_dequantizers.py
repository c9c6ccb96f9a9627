"""Where DequantizeLinear stands in a file: ONNX Runtime must merge it with its reader, and compute what jaxq simulates."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from models import run_onnx, smooth, written

import jaxq
from jaxq import compress_weights
from jaxq.analysis.lint import lint
from jaxq.onnx_io.load import load
from jaxq.onnx_io.save import save, to_proto
from jaxq.placement.targets import find_target

random = np.random.default_rng(0)
SQUARE = {name: (random.normal(size=(64, 64)) / 8).astype(np.float32) for name in ("w", "v")}
BIAS = {name: random.normal(size=64).astype(np.float32) for name in "bc"}
BIAS |= {"low": np.float32(-0.5), "high": np.float32(0.75)}
BIAS |= {"row": random.normal(size=(1, 64)).astype(np.float32), "one": np.float32([0.7])}
INT4 = {"mode": "int4_sym", "group_size": 32, "all_layers": True}
# Older ones merge fewer kinds (8 bits, one scale a channel, Gemm); what they compute is the same.
MERGES = tuple(map(int, onnxruntime.__version__.split(".")[:2])) >= (1, 32)
MODES = [INT4, {**INT4, "mode": "int4_asym"}, {"mode": "int8_sym"}, {"mode": "int8_asym"}]


def operators(graph: onnx.GraphProto) -> Counter[str]:
    """How many nodes of each kind there are, those of subgraphs too."""
    found = Counter(node.op_type for node in graph.node)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found += operators(attribute.g)
    return found


def optimized(path, feed, rounded: bool = True):
    """The outputs of a file in ONNX Runtime at its default level, and the operators that it made of it.

    Not `rounded`: MatMulNBits computes in float32, where it else rounds its inputs to 8 bits.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = f"{path}.optimized"
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "4" if rounded else "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    outputs = dict(zip([each.name for each in session.get_outputs()], session.run(None, feed), strict=True))
    return outputs, operators(onnx.load(f"{path}.optimized").graph)


def check(model, path, feeds, merged: int):
    """Writes a compressed model, and checks what the runtime makes of it, and of the file read and written again."""
    save(model, path)
    again = load(path)
    save(again, path.with_name("again.onnx"))
    assert lint(again, find_target("onnxruntime")) == ()
    for feed in feeds:
        expected = model(feed)
        for file in (path, path.with_name("again.onnx")):
            outputs, found = optimized(file, feed, rounded=False)
            assert not MERGES or (found["MatMulNBits"], found["DequantizeLinear"]) == (merged, 0), found
            plain = run_onnx(str(file), feed)
            for name, value in expected.items():
                np.testing.assert_allclose(plain[name], value, rtol=1e-4, atol=1e-5)
                np.testing.assert_allclose(outputs[name], value, rtol=1e-4, atol=1e-4)
        for name, value in again(feed).items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------- weights alone

PRODUCTS = {
    "matmul": "h = MatMul (x, w)  r = Tanh (h)  y = MatMul (r, v)",
    "gemm": "h = Gemm (x, w, b)  r = Tanh (h)  y = Gemm (r, v, c)",
    "a transposed weight": "h = Gemm <transB = 1> (x, w, b)  r = Tanh (h)  y = Gemm <transB = 1> (r, v)",
    "one bias for both": "h = Gemm (x, w, b)  r = Tanh (h)  y = Gemm <transB = 1> (r, v, b)",
    "matmul and add": "p = MatMul (x, w)  h = Add (p, b)  r = Tanh (h)  q = MatMul (r, v)  y = Add (q, c)",
    "a weight read twice": "h = MatMul (x, w)  r = Tanh (h)  y = MatMul (r, w)",
    "a transposed weight read twice": "h = Gemm <transB = 1> (x, w)  r = Tanh (h)  y = Gemm <transB = 1> (r, w)",
    "alpha": "h = Gemm <alpha = 0.5> (x, w, b)  r = Tanh (h)  y = Gemm <alpha = 2.0, transB = 1> (r, w)",
    "beta": "h = Gemm <beta = 0.5> (x, w, b)  r = Tanh (h)  y = Gemm <beta = 3.0> (r, v, b)",
    "other shapes of bias": "h = Gemm (x, w, row)  r = Tanh (h)  y = Gemm <transB = 1> (r, v, one)",
    "transposed data": "p = Transpose (x)  h = Gemm <transA = 1> (p, w, b)  r = Tanh (h)  y = MatMul (r, v)",
    "relu": "h = Gemm <transB = 1> (x, w, b)  r = Relu (h)  q = Gemm (r, v, c)  y = Relu (q)",
    "relu alone": "h = MatMul (x, w)  r = Relu (h)  y = MatMul (r, v)",
    "relu behind an add": "p = MatMul (x, w)  h = Add (p, b)  r = Relu (h)  y = MatMul (r, v)",
    "clip": "h = Gemm (x, w, b)  r = Clip (h, low, high)  y = MatMul (r, v)",
    "clip from above": "h = MatMul (x, w)  r = Clip (h, , high)  y = MatMul (r, v)",
    "a weight read along both axes": "h = MatMul (x, w)  r = Tanh (h)  y = Gemm <transB = 1> (r, w)",
}


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode["mode"])
@pytest.mark.parametrize("body", PRODUCTS.values(), ids=PRODUCTS.keys())
def test_weights_of_products_are_unpacked_by_the_kernel(body, mode, tmp_path):
    used = {name: value for name, value in (SQUARE | BIAS).items() if f" {name})" in body or f" {name}," in body}
    proto = written(f"(float[N, 64] x) => (float[N, 64] y) {{ {body} }}", **used)
    check(compress_weights(proto, **mode), tmp_path / "model.onnx", [{"x": smooth(3, 64)}], merged=2)


def branches(then: str, other: str, before: str = "", after: str = "y = Tanh (a)") -> str:
    """x, flag -> y with an If in the middle whose branches compute u and o."""
    return f"""(float[N, 64] x, bool flag) => (float[N, 64] y) {{ {before}
        a = If (flag) <then_branch = yes () => (float[N, 64] u) {{ {then} }},
                       else_branch = no () => (float[N, 64] o) {{ {other} }}>
        {after} }}"""


NESTED = """u = If (flag) <then_branch = in () => (float[N, 64] i) { i = MatMul (x, w) },
                          else_branch = out () => (float[N, 64] n) { n = MatMul (x, v) }>"""
SUBGRAPHS = {  # text, and the products in it
    "a weight to a branch": (branches("u = MatMul (x, w)", "o = Gemm <transB = 1> (x, v, b)"), 2),
    "one weight for both branches": (branches("u = MatMul (x, w)", "m = MatMul (x, w)  o = Relu (m)"), 2),
    "a transposed one for both": (branches("u = Gemm <transB = 1> (x, w)", "o = Gemm <transB = 1> (x, w, b)"), 2),
    "a weight for a branch and outside": (branches("u = MatMul (h, w)", "o = Relu (h)", "h = MatMul (x, w)"), 2),
    "a weight twice in each": (branches("t = MatMul (x, w)  u = MatMul (t, w)", "m = MatMul (x, w)  o = MatMul (m, w)"), 4),
    "a branch in a branch": (branches(NESTED, "o = MatMul (x, v)"), 3),
    "a loop": (
        """(float[N, 64] x) => (float[N, 64] y) {
        y = Loop (turns, go, x) <body = turn (int64 i, bool c, float[N, 64] s) => (bool d, float[N, 64] t) {
            d = Identity (c)  m = MatMul (s, w)  t = Tanh (m) }> }""",
        1,
    ),
    "a scan": (
        """(float[4, N, 64] x) => (float[4, N, 64] y) {
        y = Scan (x) <num_scan_inputs = 1, body = turn (float[N, 64] s) => (float[N, 64] t) {
            t = Gemm <transB = 1> (s, w, b) }> }""",
        1,
    ),
}  # fmt: skip
CONSTANTS = {"turns": np.int64(3), "go": np.array(True)}


def subgraphs(text: str) -> onnx.ModelProto:
    return written(
        text,
        **{
            name: value
            for name, value in (SQUARE | BIAS | CONSTANTS).items()
            if f", {name}" in text or f"({name}" in text
        },
    )


@pytest.mark.parametrize("mode", MODES[::3], ids=lambda mode: mode["mode"])
@pytest.mark.parametrize("text, merged", SUBGRAPHS.values(), ids=SUBGRAPHS.keys())
def test_weights_are_unpacked_by_the_kernel_in_branches_and_loops_too(text, merged, mode, tmp_path):
    model = compress_weights(subgraphs(text), **mode)
    x = smooth(4, 2, 64) if "Scan" in text else smooth(3, 64)
    feeds = [{"x": x, "flag": np.array(flag)} if "flag" in text else {"x": x} for flag in (True, False)]
    check(model, tmp_path / "model.onnx", feeds, merged)


def stored(proto: onnx.ModelProto) -> int:
    """The weights that are in a file, those in subgraphs too."""

    def of(graph):
        inner = sum(of(attribute.g) for node in graph.node for attribute in node.attribute if attribute.HasField("g"))
        return inner + sum(len(each.dims) == 2 and each.dims[0] * each.dims[1] == 64 * 64 for each in graph.initializer)

    return of(proto.graph)


STORED = {  # name of a text above, and how many weights of 64 x 64 its file holds
    "one weight for both branches": 1,
    "a weight for a branch and outside": 1,
    "a weight twice in each": 2,
    "a branch in a branch": 2,
}


@pytest.mark.parametrize("name, count", STORED.items())
def test_integers_that_several_graphs_read_are_in_the_file_once(name, count):
    assert stored(to_proto(compress_weights(subgraphs(SUBGRAPHS[name][0]), **INT4))) == count


TABLE = random.normal(size=(64, 64)).astype(np.float32)
EMBEDDINGS = {  # text, products that are merged, weights of 64 x 64 that are stored
    "an embedding": (
        "(int64[N] i) => (float[N, 64] y) { x = Gather (t, i)  h = MatMul (x, w)  y = MatMul (h, v) }",
        2,
        3,
    ),
    "tied": (
        "(int64[N] i) => (float[N, 64] y) { x = Gather (t, i)  h = MatMul (x, w)  y = Gemm <transB = 1> (h, t) }",
        2,
        2,
    ),
}


@pytest.mark.parametrize("text, merged, count", EMBEDDINGS.values(), ids=EMBEDDINGS.keys())
@pytest.mark.parametrize("backup", ["int8_sym", "int8_asym"])
def test_rows_of_an_embedding_are_unpacked_and_not_the_table(text, merged, count, backup, tmp_path):
    weights = {
        name: value for name, value in ({"t": TABLE} | SQUARE).items() if f" {name})" in text or f"({name}," in text
    }
    model = compress_weights(written(text, **weights), mode="int4_sym", group_size=32, backup_mode=backup)
    feed = {"i": np.array([5, 0, 63, 5])}
    save(model, tmp_path / "model.onnx")
    again = load(tmp_path / "model.onnx")
    assert lint(again, find_target("onnxruntime")) == ()
    outputs, found = optimized(tmp_path / "model.onnx", feed, rounded=False)
    assert not MERGES or found["MatMulNBits"] == merged
    for result in (outputs, run_onnx(str(tmp_path / "model.onnx"), feed), again(feed)):
        np.testing.assert_allclose(result["y"], model(feed)["y"], rtol=1e-3, atol=1e-3)
    assert stored(onnx.load(tmp_path / "model.onnx")) == count


# -------------------------------------------------------------------------------------------------- quantized activations


QUANTIZED = {  # text, and the weights that are stored for it
    "products": (branches("m = MatMul (x, w)  u = Relu (m)", "o = Gemm <transB = 1> (x, w, b)"), 1),
    "a product before": (branches("u = MatMul (k, w)", "o = MatMul (k, w)", "h = MatMul (x, v)  k = Relu (h)"), 2),
}


@pytest.mark.parametrize("text, count", QUANTIZED.values(), ids=QUANTIZED.keys())
def test_a_branch_computes_in_integers_what_it_reads_from_outside(text, count, tmp_path):
    samples = [{"x": smooth(4, 64, seed=seed), "flag": np.array(bool(seed % 2))} for seed in range(8)]
    model = jaxq.quantize(subgraphs(text), jaxq.Dataset(samples))
    save(model, tmp_path / "model.onnx")
    assert stored(onnx.load(tmp_path / "model.onnx")) == count
    for feed in samples[:2]:
        outputs, found = optimized(tmp_path / "model.onnx", feed)
        assert not {"MatMul", "Gemm"} & found.keys(), found
        np.testing.assert_allclose(outputs["y"], model(feed)["y"], atol=0.02)


WIDE = {
    "one graph": "(float[N, 64] x) => (float[N, 64] y) { h = MatMul (x, w)  r = Tanh (h)  y = MatMul (r, w) }",
    "both axes": "(float[N, 64] x) => (float[N, 64] y) { h = Gemm (x, w, b)  r = Tanh (h)  y = Gemm <transB = 1> (r, w) }",
    "branches": branches("m = MatMul (x, w)  u = Relu (m)", "o = Gemm <transB = 1> (x, w, b)"),
    "a branch alone": branches("m = MatMul (x, w)  u = Relu (m)", "o = Gemm <transB = 1> (x, v, b)"),
    "outside and inside": branches("u = MatMul (k, w)", "o = MatMul (k, w)", "h = MatMul (x, w)  k = Relu (h)"),
}


@pytest.mark.parametrize("text", WIDE.values(), ids=WIDE.keys())
def test_products_of_16_bits_that_share_a_weight_are_loaded(text, tmp_path):
    samples = [{"x": smooth(4, 64, seed=seed), "flag": np.array(bool(seed % 2))} for seed in range(8)]
    inputs = ("x", "flag") if "flag" in text else ("x",)
    samples = [{name: each[name] for name in inputs} for each in samples]
    bits = jaxq.AdvancedQuantizationParameters(activations_quantization_params=jaxq.QuantizationParameters(num_bits=16))
    proto = (
        subgraphs(text) if "flag" in text else written(text, w=SQUARE["w"], **{"b": BIAS["b"]} if "b)" in text else {})
    )
    model = jaxq.quantize(proto, jaxq.Dataset(samples), advanced_parameters=bits)
    save(model, tmp_path / "model.onnx")
    for feed in samples[:2]:
        outputs, _ = optimized(tmp_path / "model.onnx", feed, rounded=False)
        np.testing.assert_allclose(outputs["y"], model(feed)["y"], atol=0.001)


def test_a_relu_that_keeps_the_runtime_from_merging_is_found():
    half = "w = DequantizeLinear <axis = 1> (i, s)  p = MatMul (x, w)  r = Relu (p)"
    constants = {"i": np.ones((64, 64), np.int8), "s": np.ones(64, np.float32)}
    for text, count in ((f"{half}  y = Tanh (r)", 1), (half.replace("r = ", "y = "), 0)):
        model = load(written(f"(float[N, 64] x) => (float[N, 64] y) {{ {text} }}", **constants))
        assert len(lint(model, find_target("onnxruntime"))) == count


@pytest.mark.parametrize("mode", MODES[::2], ids=lambda mode: mode["mode"])
def test_a_stack_of_weights_is_slow_but_not_refused(mode, tmp_path):
    proto = written("(float[1, N, 64] x) => (float[1, N, 64] y) { y = MatMul (x, w) }", w=SQUARE["w"][None])
    save(compress_weights(proto, **mode), tmp_path / "model.onnx")
    run_onnx(str(tmp_path / "model.onnx"), {"x": smooth(1, 3, 64)})
    found = lint(load(tmp_path / "model.onnx"), find_target("onnxruntime"))
    assert [each.severity.value for each in found] == ["slow"]


def test_nodes_without_inputs_are_written():
    model = load(written("(float[N] x) => (float[N] y) { r = RandomNormal <shape = [1]> () y = Add (x, r) }"))
    assert [node.op_type for node in to_proto(model).graph.node] == ["RandomNormal", "Add"]
