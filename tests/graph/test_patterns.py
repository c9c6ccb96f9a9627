"""Groups of nodes are found however they are written out, and nothing else is taken for them."""

import numpy as np
import onnx
import pytest
from models import residual_network, transformer_block, written

from jaxq.graph.patterns import PATTERNS, Matcher, tail_nodes
from jaxq.onnx_io.load import load

ONE = np.float32([1.0])
CONSTANTS = {
    "half": ONE / 2,
    "two": ONE * 2,
    "three": ONE * 3,
    "six": ONE * 6,
    "tiny": ONE * 1e-5,
    "ends": np.array([-1]),
}


def nodes_of(text: str, pattern: str, **weights: np.ndarray) -> list[str]:
    """The operators of the nodes that belong to the pattern, in the order of the graph."""
    used = {
        name: value for name, value in CONSTANTS.items() if name in text.replace(",", " ").replace(")", " ").split()
    }
    model = load(written(f"(float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) {{ {text} }}", **used, **weights))
    found = Matcher(model.graph, model.params).find(pattern)
    return [node.op for node in model.graph.nodes if node.name in found]


@pytest.mark.parametrize(
    "pattern, text, ops",
    [
        ("swish", "s = Sigmoid (x)  y = Mul (x, s)", "Sigmoid Mul"),
        ("swish", "s = Sigmoid (x)  y = Mul (s, x)", "Sigmoid Mul"),
        ("swish", "s = HardSigmoid (x)  y = Mul (x, s)", "HardSigmoid Mul"),
        ("swish", "r = Relu (x)  s = Sigmoid (r)  y = Mul (x, s)", ""),
        ("hard swish", "a = Add (x, three)  c = Clip (a)  m = Mul (x, c)  y = Div (m, six)", "Add Clip Mul Div"),
        ("hard swish", "a = Add (x, three)  c = Clip (a)  d = Div (c, six)  y = Mul (x, d)", "Add Clip Div Mul"),
        ("GELU", "d = Div (x, two)  e = Erf (d)  a = Add (e, three)  m = Mul (x, a)  y = Mul (m, half)", "Div Erf Add Mul Mul"),
        ("GELU", "d = Div (x, two)  e = Erf (d)  a = Add (e, three)  h = Mul (x, half)  y = Mul (h, a)", "Div Erf Add Mul Mul"),
        ("softmax", "e = Exp (x)  s = ReduceSum (e, ends)  y = Div (e, s)", "ReduceSum Div"),
        ("softmax", "e = Exp (x)  s = ReduceSum (x, ends)  y = Div (e, s)", ""),
        ("layer normalization", "m = ReduceMean (x)  d = Sub (x, m)  p = Pow (d, two)  v = ReduceMean (p)"
         "  e = Add (v, tiny)  s = Sqrt (e)  n = Div (d, s)  g = Mul (n, half)  y = Add (g, three)",
         "ReduceMean Sub Pow ReduceMean Add Sqrt Div Mul Add"),
        ("L2 normalization", "n = ReduceL2 (x)  c = Clip (n)  y = Div (x, c)", "ReduceL2 Clip Div"),
        ("attention output", "s = Softmax (x)  y = MatMul (s, x)", "Softmax MatMul"),
        ("attention output", "s = Relu (x)  y = MatMul (s, x)", ""),
        ("rotary embedding", "n, m = Split <axis = -1> (x)  i = Neg (m)  r = Concat <axis = -1> (i, n)"
         "  c = Mul (x, x)  s = Mul (r, x)  y = Add (c, s)", "Split Neg Concat Mul Mul Add"),
        ("input preprocessing", "a = Sub (x, three)  b = Mul (a, half)  c = Relu (b)  y = Mul (c, two)", "Sub Mul"),
    ],
)  # fmt: skip
def test_a_pattern_is_found_in_each_of_its_forms(pattern, text, ops):
    assert nodes_of(text, pattern) == ops.split()


def test_squeeze_and_excitation_is_found_with_its_layers():
    weights = {"w1": np.ones((2, 4, 1, 1), np.float32), "w2": np.ones((4, 2, 1, 1), np.float32)}
    text = (
        "p = GlobalAveragePool (x)  a = Conv (p, w1)  r = Relu (a)  b = Conv (r, w2)  s = Sigmoid (b)  y = Mul (x, s)"
    )
    assert nodes_of(text, "squeeze and excitation", **weights) == [
        "GlobalAveragePool",
        "Conv",
        "Relu",
        "Conv",
        "Sigmoid",
        "Mul",
    ]


def test_a_chain_of_gates_takes_time_linear_in_its_length():
    text, last = [], "x"
    for number in range(200):
        text.append(f"s{number} = Sigmoid ({last})  m{number} = Mul ({last}, s{number})")
        last = f"m{number}"
    assert len(nodes_of("  ".join(text) + f"  y = Relu ({last})", "swish")) == 400


@pytest.mark.parametrize("name", PATTERNS)
def test_ordinary_networks_hold_none(name):
    model = load(residual_network())
    assert Matcher(model.graph, model.params).find(name) == frozenset()


def test_the_tail_is_what_no_layer_follows():
    graph = load(transformer_block()).graph
    layers = {node.name for node in graph.nodes if node.op == "MatMul"}
    tail = tail_nodes(graph, layers)
    assert not layers & tail
    assert {node.name for node in graph.nodes if set(node.outputs) & set(graph.outputs)} <= tail | layers


def test_a_branch_before_a_layer_is_no_tail():
    inner = onnx.parser.parse_graph("inner () => (float[N, 4] b) { b = Neg (x) }")
    other = onnx.parser.parse_graph("other () => (float[N, 4] c) { c = Abs (x) }")
    model = written("(float[N, 4] x, bool z) => (float[N, 4] y) { y = MatMul (a, w) }", w=np.eye(4, dtype=np.float32))
    model.graph.node.insert(
        0, onnx.helper.make_node("If", ["z"], ["a"], name="choice", then_branch=inner, else_branch=other)
    )
    graph = load(model).graph
    layer = next(node.name for node in graph.nodes if node.op == "MatMul")
    assert tail_nodes(graph, {layer}) == frozenset()
