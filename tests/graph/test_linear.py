"""Where the channels of linear layers lie: asked of what the operators themselves compute."""

import numpy as np
import pytest
from models import Network, smooth

from jaxq import load
from jaxq.graph.ir import FrozenDict, Graph, Node
from jaxq.graph.linear import Linear, own_bias, owned

INPUTS, OUTPUTS = 4, 8
# name -> (operator, shape of the weight, attributes)
CASES = {
    "Conv": ("Conv", (8, 4, 3, 2), {}),
    "Conv in one dimension": ("Conv", (8, 4, 3), {}),
    "Conv in two groups": ("Conv", (8, 2, 3, 3), {"group": 2}),
    "depthwise Conv, two each": ("Conv", (8, 1, 3, 3), {"group": 4}),
    "ConvTranspose": ("ConvTranspose", (4, 8, 3, 2), {}),
    "ConvTranspose with strides": ("ConvTranspose", (4, 8, 4, 4), {"strides": (2, 2)}),
    "ConvTranspose in two groups": ("ConvTranspose", (4, 4, 3, 3), {"group": 2}),
    "Gemm": ("Gemm", (4, 8), {"alpha": 0.5}),
    "Gemm, transB": ("Gemm", (8, 4), {"transB": 1}),
    "MatMul": ("MatMul", (4, 8), {}),
    "stacked MatMul": ("MatMul", (3, 4, 8), {}),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def layer(case):
    """The layer, its weight, data for it, and a function that runs it with other weights."""
    op, shape, attributes = case
    net = Network(seed=1)
    x = smooth(3, INPUTS, *[9] * (len(shape) - 2)) if op.startswith("Conv") else smooth(*shape[:-2], 5, INPUTS)
    net.node(op, [net.input("x", list(x.shape)), net.weight("w", *shape)], "y", **attributes)
    net.output("y", [None] * x.ndim)
    model = load(net.proto())
    (node,) = model.graph.nodes
    return Linear.of(node, model.params), model.params["w"], x, lambda w, x: model.replace(params={"w": w})(x)["y"]


def spread(linear: Linear, values: np.ndarray, rank: int) -> np.ndarray:
    """Values of channels, to be multiplied with data or results."""
    shape = [1] * rank
    shape[linear.channel_axis] = -1
    return values.reshape(shape).astype(np.float32)


@cases
def test_its_channels_are_those_of_data_and_result(case):
    linear, weight, x, run = layer(case)
    y = run(weight, x)
    assert (linear.inputs, linear.outputs) == (INPUTS, OUTPUTS)
    assert (x.shape[linear.channel_axis], y.shape[linear.channel_axis]) == (INPUTS, OUTPUTS)


@cases
def test_scaling_its_input_undoes_a_division_of_the_data(case):
    linear, weight, x, run = layer(case)
    factor = np.array([0.5, 2.0, 3.0, 0.1])
    numbers = {"w": weight}
    linear.scale_input(numbers, factor)
    found = run(numbers["w"], x / spread(linear, factor, x.ndim))
    np.testing.assert_allclose(found, run(weight, x), rtol=1e-4, atol=1e-5)


@cases
def test_scaling_its_output_multiplies_the_result(case):
    linear, weight, x, run = layer(case)
    factor, numbers = np.linspace(0.5, 2.0, OUTPUTS), {"w": weight}
    linear.scale_output(numbers, factor)
    y = run(weight, x)
    np.testing.assert_allclose(run(numbers["w"], x), y * spread(linear, factor, y.ndim), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", [each for name, each in CASES.items() if "stacked" not in name])
def test_its_response_is_the_result_in_the_middle_of_even_data(case):
    linear, weight, x, run = layer(case)
    values = np.array([1.0, -2.0, 0.5, 3.0])
    y = np.asarray(run(weight, np.broadcast_to(spread(linear, values, x.ndim), x.shape).copy()))
    where = tuple(slice(size // 2 - 1, size // 2 + 1) for size in y.shape[2:])  # two each way: all phases of a stride
    expected = y[(0, slice(None), *where)].reshape(OUTPUTS, -1).mean(1)
    np.testing.assert_allclose(linear.response(weight.astype(np.float64), values), expected, rtol=1e-4, atol=1e-5)


@cases
def test_its_connections_are_what_each_output_channel_reads(case):
    linear, weight, x, run = layer(case)
    found = linear.connections(weight)
    assert found.shape[:2] == (OUTPUTS, INPUTS)
    assert np.sort(found[found != 0]).tolist() == np.sort(weight.ravel()).tolist()
    for channel in range(INPUTS):
        alone = x * spread(linear, np.arange(INPUTS) == channel, x.ndim)
        made = np.moveaxis(np.asarray(run(weight, alone)), linear.channel_axis, 0).reshape(OUTPUTS, -1)
        np.testing.assert_array_equal(made.any(1), found[:, channel].any(1))


@cases
def test_its_rows_are_its_connections_without_those_of_other_groups(case):
    linear, weight, _, _ = layer(case)
    rows, connections = linear.rows(weight), linear.connections(weight)
    for row, each in zip(rows, connections, strict=True):
        np.testing.assert_array_equal(row, each[each.any(1)])


def test_other_operators_and_computed_weights_make_no_linear_layer():
    params = {"w": np.ones((4, 4), np.float32), "v": np.ones(4, np.float32)}
    for node in (
        Node("Add", ("x", "w"), ("y",)),
        Node("MatMul", ("x", "y"), ("z",)),
        Node("MatMul", ("x", "v"), ("z",)),
        Node("Gemm", ("x", "w"), ("y",), domain="com.example"),
    ):
        assert Linear.of(node, params) is None


GEMM = Node("Gemm", ("x", "w", "b"), ("y",), name="gemm")
ADD = (Node("MatMul", ("x", "w"), ("p",), name="product"), Node("Add", ("b", "p"), ("y",), name="add"))


BRANCH = Graph((Node("Neg", ("b",), ("n",)),), (), ("n",))
BIASES = {
    "of a Gemm": ((GEMM,), ("b", "y", -1)),
    "of an Add behind a MatMul": (ADD, ("b", "y", -1)),
    "read by another node, too": ((GEMM, Node("Neg", ("b",), ("z",))), None),
    "read in a branch, too": ((GEMM, Node("If", ("c",), ("z",), FrozenDict(then_branch=BRANCH))), None),
    "multiplied by a beta": ((Node("Gemm", ("x", "w", "b"), ("y",), FrozenDict(beta=2.0)),), None),
    "of a product that is read elsewhere, too": ((*ADD, Node("Neg", ("p",), ("z",))), None),
    "one number for all channels": ((Node("Gemm", ("x", "w", "one"), ("y",)),), None),
}


@pytest.mark.parametrize("nodes, expected", BIASES.values(), ids=BIASES)
def test_a_bias_is_its_own_or_none(nodes, expected):
    params = {"w": np.ones((4, 4), np.float32), "b": np.ones(4, np.float32), "one": np.ones(1, np.float32)}
    assert own_bias(Graph(nodes, ("x",), ("y",)), params, nodes[0]) == expected


def test_a_param_that_is_an_output_is_not_owned():
    graph = Graph((GEMM,), ("x",), ("y", "b"))
    params = {"w": np.ones((4, 4), np.float32), "b": np.ones(4, np.float32)}
    assert owned(graph, params, "w")
    assert not owned(graph, params, "b")
