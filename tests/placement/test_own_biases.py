"""Each layer gets a bias of its own; what was its own stays the same object."""

import numpy as np
import pytest
from models import written

from jaxq.onnx_io.load import load
from jaxq.placement.own_biases import own_biases

X = "(float[N, 4] x) => (float[N, 4] y"
W = {name: np.eye(4, dtype=np.float32) for name in ("v", "w")}
B = np.float32([1, 2, 3, 4])


def owners(text: str, **more) -> tuple[list[list[str]], dict]:
    """What each layer reads behind its first two inputs, in the order of the graph; and the params."""
    model = load(written(text, **{**W, "b": B, **more}))
    graph, params = own_biases(model.graph, model.params)
    found = [list(node.inputs) for _, node in graph.walk() if node.op in ("Gemm", "Conv", "Add", "Mul")]
    return [[name for name in names if name.startswith("b")] for names in found], dict(params)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("){ a = Gemm (x, v, b)  y = Gemm (a, w, b) }", [["b"], ["b@Gemm#2"]]),
        ("){ a = MatMul (x, v)  c = Add (a, b)  y = Gemm (c, w, b) }", [["b"], ["b@Gemm"]]),
        ("){ a = Gemm (x, v, b)  y = Mul (a, b) }", [["b@Gemm"], ["b"]]),
        (", float[4] b) { y = Gemm (x, v, b) }", [["b@Gemm"]]),
    ],
    ids=["two layers", "an Add behind a MatMul", "a layer and another operator", "an output"],
)
def test_a_bias_is_copied_where_something_else_reads_it(text, expected):
    found, params = owners(X + text)
    assert [[name.split("#")[0] for name in names] for names in found] == [
        [name.split("#")[0] for name in names] for names in expected
    ]
    for names in found:
        np.testing.assert_array_equal(params[names[0]], B)


def test_a_bias_of_branches_is_copied_for_each():
    text = """(float[N, 4] x, bool flag) => (float[N, 4] y) { y = If <
        then_branch = then () => (float[N, 4] i) { i = Gemm (x, v, b) },
        else_branch = else () => (float[N, 4] j) { j = Gemm (x, w, b) }> (flag) }"""
    found, params = owners(text)
    assert found[0] != found[1]
    assert all(np.array_equal(params[name], B) for [name] in found)


def test_biases_of_their_own_leave_graph_and_params_as_they_are():
    model = load(written(f"{X}){{ a = Gemm (x, v, b)  y = Gemm (a, w, c) }}", **W, b=B, c=B))
    graph, params = own_biases(model.graph, model.params)
    assert graph is model.graph
    assert params is model.params
