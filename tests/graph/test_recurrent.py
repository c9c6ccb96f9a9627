"""Cells that are written out stay in float between their layers; gates of other kinds are no cells."""

import numpy as np
import pytest
from models import run_onnx, written

import jaxq
from jaxq.graph.ir import constants
from jaxq.graph.recurrent import Cells

H = 4
WEIGHTS = {f"w{k}": (H, H) for k in range(8)} | {f"b{k}": (H,) for k in range(8)} | {"one": (), "zero": (1, H)}


def network(inputs: str, outputs: str, nodes: str):
    """A model of [1, 4] tensors; w0 ... w7 [4, 4] and b0 ... b7 [4] are weights, `one` is 1, `zero` [1, 4] is 0."""
    random = np.random.default_rng(0)
    used = {
        key: shape
        for key, shape in WEIGHTS.items()
        if any(f"{mark}{key}{end}" in nodes for mark in " (" for end in ",) ")
    }
    values = {key: random.normal(size=shape).astype(np.float32) for key, shape in used.items()}
    values |= {key: np.full(WEIGHTS[key], key == "one", np.float32) for key in ("one", "zero") if key in used}
    declared = [", ".join(f"float[1, {H}] {name}" for name in names.split()) for names in (inputs, outputs)]
    return written(f"({declared[0]}) => ({declared[1]}) {{ {nodes} }}", opset=18, **values)


def cell(proto) -> set[str]:
    """The outputs of the nodes that are found to compute cells."""
    model = jaxq.load(proto)
    names = Cells(model.graph, {**model.params, **constants(model.graph)}).nodes()
    return {node.outputs[0] for _, node in model.graph.walk() if node.name in names}


def gate(name: str, k: int, h: str = "h") -> str:
    """sigmoid(x @ w + h @ w + b), with the sums named apart."""
    return (f" {name}x = Gemm (x, w{k}, b{k})  {name}h = MatMul ({h}, w{k + 1})"
            f"  {name}a = Add ({name}x, {name}h)  {name} = Sigmoid ({name}a) ")  # fmt: skip


LSTM_END = " d = Mul (f, c)  e = Mul (i, g)  c2 = Add (d, e)  t = Tanh (c2)  h2 = Mul (o, t) "
GATES = gate("i", 0) + gate("f", 2) + gate("o", 4)
CANDIDATE = " gx = Gemm (x, w6, b6)  gh = MatMul (h, w7)  ga = Add (gx, gh)  g = Tanh (ga) "
SUMS = {"ia", "i", "fa", "f", "oa", "o", "ga", "g"}
LSTM = SUMS | {"d", "e", "c2", "t", "h2"}
GRU_GATES = gate("r", 0) + gate("z", 2)
GRU = {"ra", "r", "za", "z", "n", "h2"}

CELLS = {  # name -> (inputs, outputs, nodes, what must stay in float)
    "LSTM": ("x h c", "h2 c2", GATES + CANDIDATE + LSTM_END, LSTM),
    "LSTM with chunks": (
        "x h c", "h2 c2",
        " ax = Gemm (x, w0, b0)  ah = Gemm (h, w1, b1)  a = Add (ax, ah)"
        " p, q, r, s = Split <axis = 1, num_outputs = 4> (a)  i = Sigmoid (p)  f = Sigmoid (q)  g = Tanh (r)  o = Sigmoid (s) "
        + LSTM_END,
        {"a", "i", "f", "g", "o", "d", "e", "c2", "t", "h2"},
    ),
    "gates squashed together": (
        "x h c", "h2 c2",
        " ax = Gemm (x, w0, b0)  ah = Gemm (h, w1, b1)  a = Add (ax, ah)  s = Sigmoid (a)"
        " i, f, o, u = Split <axis = 1, num_outputs = 4> (s)  g = Tanh (u)" + LSTM_END,
        {"a", "s", "g", "d", "e", "c2", "t", "h2"},
    ),
    "peepholes": (
        "x h c", "h2 c2",
        GATES.replace("f = Sigmoid (fa)", "fp = Mul (c, b7)  fs = Add (fa, fp)  f = Sigmoid (fs)") + CANDIDATE + LSTM_END,
        LSTM | {"fp", "fs"},
    ),
    "coupled gates": (
        "x h c", "h2 c2",
        gate("f", 2) + gate("o", 4) + " i = Sub (one, f) " + CANDIDATE + LSTM_END, LSTM - {"ia"},
    ),
    "hard gates": (
        "x h c", "h2 c2",
        gate("i", 0).replace("Sigmoid", "HardSigmoid") + gate("f", 2).replace("Sigmoid", "HardSigmoid") + gate("o", 4) + CANDIDATE
        + LSTM_END, LSTM,
    ),
    "GRU": (
        "x h", "h2",
        GRU_GATES + " nx = Gemm (x, w4, b4)  nh = Gemm (h, w5, b5)  rn = Mul (r, nh)  na = Add (nx, rn)  n = Tanh (na)"
        "  k = Sub (one, z)  p = Mul (k, n)  q = Mul (z, h)  h2 = Add (p, q)",
        GRU | {"rn", "na", "k", "p", "q"},
    ),
    "GRU of differences, reset before the product": (
        "x h", "h2",
        GRU_GATES + " rs = Mul (r, h)  nx = Gemm (x, w4, b4)  nh = MatMul (rs, w5)  na = Add (nx, nh)  n = Tanh (na)"
        "  m = Sub (h, n)  q = Mul (z, m)  h2 = Add (n, q)",
        GRU | {"rs", "na", "m", "q"},
    ),
    "unrolled from zeros": (
        "x", "y",
        gate("f", 0, "zero") + " g = Tanh (fx)  d = Mul (f, zero)  e = Mul (g, f)  c = Add (d, e) "
        + gate("i", 2, "c") + " v = Tanh (ix)  p = Mul (i, c)  q = Mul (v, i)  c2 = Add (p, q)  y = MatMul (c2, w6)",
        {"fa", "f", "g", "d", "e", "c", "ia", "i", "v", "p", "q", "c2"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CELLS)
def test_the_arithmetic_of_a_cell_is_found(name):
    inputs, outputs, nodes, wanted = CELLS[name]
    proto = network(inputs, outputs, nodes)
    if "Split" not in nodes:  # whose parts are too narrow for the state
        run_onnx(proto, {key: np.ones((1, H), np.float32) for key in inputs.split()})
    assert cell(proto) == wanted


def test_a_cell_in_the_body_of_a_scan_is_found():
    body = "za = Add (zx, zh)  z = Sigmoid (za)  n = Tanh (nx)  k = Sub (one, z)  p = Mul (k, n)  q = Mul (z, h)  h2 = Add (p, q)"
    proto = written(f"""(float[3, 1, 4] xs, float[1, 4] h0) => (float[1, 4] y, float[3, 1, 4] ys) {{
        y, ys = Scan <num_scan_inputs = 1, body = b (float[1, 4] h, float[1, 4] x) => (float[1, 4] h2, float[1, 4] s) {{
            zx = MatMul (x, w)  zh = MatMul (h, w)  nx = MatMul (x, v) {body}  s = Identity (h2) }}> (h0, xs) }}""",
        w=np.ones((4, 4), np.float32), v=np.ones((4, 4), np.float32), one=np.float32(1))  # fmt: skip
    assert cell(proto) >= {"za", "z", "n", "k", "p", "q", "h2"}


GATED = {  # name -> (inputs, outputs, nodes): gates that carry no state
    "SiLU": ("x", "y", "a = MatMul (x, w0)  s = Sigmoid (a)  m = Mul (a, s)  y = Add (m, x)"),
    "SiLU of an input, twice": (
        "x u", "y",
        "s = Sigmoid (x)  m = Mul (x, s)  v = Add (m, u)  t = Sigmoid (v)  n = Mul (v, t)  k = MatMul (n, w0)  y = Add (n, k)",
    ),
    "GLU": ("x", "y", "a = MatMul (x, w0)  b = MatMul (x, w1)  s = Sigmoid (b)  m = Mul (a, s)  y = Add (m, x)"),
    "squeeze and excitation with a skip": ("x", "y", "a = MatMul (x, w0)  s = Sigmoid (a)  m = Mul (x, s)  y = Add (m, x)"),
    "highway": (
        "x", "y",
        "a = MatMul (x, w0)  s = Sigmoid (a)  b = MatMul (x, w1)  r = Relu (b)  m = Mul (s, r)"
        "  k = Sub (one, s)  n = Mul (k, x)  y = Add (m, n)",
    ),
    "two experts": (
        "x u", "y",
        "a = MatMul (x, w0)  s = Sigmoid (a)  p = MatMul (x, w1)  q = MatMul (u, w2)  m = Mul (s, p)"
        "  k = Sub (one, s)  n = Mul (k, q)  y = Add (m, n)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GATED)
def test_other_gates_are_no_cells(name):
    assert cell(network(*GATED[name])) == set()


@pytest.mark.parametrize(
    "target, left", [("onnxruntime", True), ("openvino", True), ("tensorrt", True), ("qnn", False)]
)
def test_a_cell_stays_in_float_where_the_target_has_floats(target, left):
    inputs, outputs, nodes, _ = CELLS["LSTM"]
    proto = network(inputs, outputs, nodes + " y = MatMul (h2, w0)")
    proto.graph.output.append(proto.graph.output[0])
    proto.graph.output[-1].name = "y"
    random = np.random.default_rng(1)
    feeds = [{key: random.normal(size=(1, H)).astype(np.float32) for key in "xhc"} for _ in range(4)]
    quantized = jaxq.quantize(proto, feeds, target_device=target)
    names = {name.partition("@")[0] for name in quantized.encodings.keys() - quantized.params.keys()}
    assert names.isdisjoint({"d", "e", "t", "fa"}) == left
    assert {"x", "h", "h2"} <= names
