import numpy as np
import pytest
from models import Network, branching_network

from jaxq.graph.ranks import ranks
from jaxq.onnx_io.load import load


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((4,), (4,)),
        ((4,), (4, 5)),
        ((3, 4), (4,)),
        ((3, 4), (4, 5)),
        ((3, 4), (2, 4, 5)),
        ((2, 3, 4), (4,)),
        ((4,), (2, 4, 5)),
    ],
)
def test_rank_of_a_product(left, right):
    net = Network()
    net.node("MatMul", [net.input("x", left), net.weight("w", *right)], "a")
    net.node("Relu", ["a"], "y")
    net.output("y", (np.ones(left) @ np.ones(right)).shape)
    model = load(net.proto())
    assert ranks(model.graph, model.params)["a"] == (np.ones(left) @ np.ones(right)).ndim


def test_rank_of_a_sum_is_the_larger_and_what_nobody_says_is_absent():
    net = Network()
    net.node("Add", [net.input("x", ["N", 4]), net.weight("w", 3, 1, 4)], "sum")
    net.node("Squeeze", ["sum"], "squeezed")
    net.node("Add", ["squeezed", "w"], "y")
    net.output("y", [None])
    net.outputs[0].type.tensor_type.ClearField("shape")
    model = load(net.proto())
    assert ranks(model.graph, model.params) == {"x": 2, "w": 3, "sum": 3}


def test_ranks_of_tensors_in_branches():
    model = load(branching_network())
    known = ranks(model.graph, model.params)
    assert [known[f"{branch}.{name}"] for branch in ("slow", "fast") for name in ("conv", "relu", "conv2")] == [3] * 6
