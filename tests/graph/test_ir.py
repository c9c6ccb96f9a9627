import copy
from dataclasses import replace

import jax
import ml_dtypes
import numpy as np
import pytest
from models import branching_network, residual_network

from jaxq.graph.ir import LAID_OUT, FrozenDict, Graph, Literal, Node, TensorType, captures, map_nodes
from jaxq.onnx_io.load import load


@pytest.fixture(scope="module")
def residual():
    return load(residual_network()).graph


@pytest.fixture(scope="module")
def branching():
    return load(branching_network()).graph


def test_a_frozen_dict_is_hashed_by_content_in_any_order():
    assert hash(FrozenDict(a=1, b=2)) == hash(FrozenDict(b=2, a=1))
    assert FrozenDict(a=1) == {"a": 1}


@pytest.mark.parametrize(
    "change", ["__setitem__", "update", "setdefault", "pop", "clear", "popitem", "__delitem__", "__ior__"]
)
def test_a_frozen_dict_refuses_to_change(change):
    frozen = FrozenDict(a=1)
    with pytest.raises(TypeError, match="cannot be changed"):
        getattr(frozen, change)(*{"__setitem__": ("b", 2), "setdefault": ("b", 2)}.get(change, ({"b": 2},)))
    assert frozen == {"a": 1}


def test_a_frozen_dict_is_joined_and_copied():
    frozen = FrozenDict(a=1)
    assert frozen | {"b": 2} == FrozenDict(a=1, b=2)
    assert isinstance(frozen | {"b": 2}, FrozenDict)
    assert copy.deepcopy(frozen) == frozen  # by the same door as through a pipe to another process


ARRAYS = {
    "float": np.array([[1.5, -0.0]], np.float32),
    "int64 scalar": np.array(2**40),
    "empty": np.zeros((0, 3), np.int64),
    "bool": np.array([True, False]),
    "bfloat16": np.array([1.0, 2.0], ml_dtypes.bfloat16),
    "int4": np.array([-8, 7], ml_dtypes.int4),
    "not contiguous": np.arange(6, dtype=np.int32).reshape(2, 3).T,
}


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
def test_a_literal_gives_back_its_array(array):
    literal = Literal.of(array)
    assert literal.array.dtype == array.dtype
    np.testing.assert_array_equal(literal.array, array)
    assert literal == Literal.of(array.copy())
    assert hash(literal) == hash(Literal.of(array.copy()))


def test_a_literal_holds_strings():
    assert Literal.of(np.array(["a", "bc"])).array.tolist() == ["a", "bc"]


def test_a_literal_cannot_be_written_to():
    with pytest.raises(ValueError, match="read-only"):
        Literal.of([1, 2]).array[0] = 3


def test_literals_of_other_shape_or_dtype_differ():
    assert Literal.of(np.zeros(2, np.int32)) != Literal.of(np.zeros((1, 2), np.int32))
    assert Literal.of(np.zeros(2, np.int32)) != Literal.of(np.zeros(2, np.float32))


def test_a_type_reads_like_a_declaration():
    assert str(TensorType("float32", ("N", 3, None))) == "float32[N, 3, ?]"
    assert str(TensorType("int64")) == "int64[unknown rank]"


def test_equal_graphs_are_one_key_of_the_compilation_cache(residual):
    again = load(residual_network()).graph
    assert again is not residual
    assert again == residual
    assert hash(again) == hash(residual)
    traces = []

    def count(graph, x):
        traces.append(graph)
        return x

    counted = jax.jit(count, static_argnums=0)
    counted(residual, 1.0)
    counted(again, 2.0)
    assert len(traces) == 1


def test_a_changed_attribute_makes_another_graph(residual):
    first = residual.nodes[0]
    changed = replace(first, attributes=first.attributes | {"group": 3})
    assert replace(residual, nodes=(changed, *residual.nodes[1:])) != residual


def test_producers_and_consumers_agree(residual):
    for name, places in residual.consumers.items():
        for node, index in places:
            assert node.inputs[index] == name
    for name, node in residual.producers.items():
        assert name in node.outputs
    assert [node.op for node, _ in residual.consumers["stem.relu"]] == ["Conv", "Add"]


def test_captures_of_a_subgraph_count_as_readers(branching):
    branch = next(node for node in branching.nodes if node.op == "If")
    assert "sound" in captures(branch)
    assert (branch, -1) in branching.consumers["sound"]


def test_an_output_of_a_subgraph_that_is_an_outer_tensor_is_a_capture():
    inner = Graph(nodes=(), inputs=(), outputs=("x",))
    node = Node("If", ("condition",), ("y",), FrozenDict(then_branch=inner, else_branch=inner), "choose")
    assert captures(node) == {"x"}


def test_walk_shows_the_nodes_of_subgraphs_with_their_own_graph(branching):
    seen = list(branching.walk())
    assert {"slow.conv", "fast.conv"} <= {name for _, node in seen for name in node.outputs}
    assert all(any(node is each for each in graph.nodes) for graph, node in seen)


def test_map_nodes_returns_the_same_object_if_nothing_changed(branching):
    assert map_nodes(branching, lambda graph, node: (node,)) is branching


def test_map_nodes_reaches_into_subgraphs(branching):
    changed = map_nodes(branching, lambda graph, node: (replace(node, name=f"{node.name}!"),))
    assert all(node.name.endswith("!") for _, node in changed.walk())
    assert len(list(changed.walk())) == len(list(branching.walk()))


def test_a_node_says_who_it_is():
    assert str(Node("Conv", (), ("y",), name="Conv_1", version=13)) == "node 'Conv_1' (Conv, opset 13)"
    assert str(Node("Conv", (), ("y",), name="Conv_1", domain=LAID_OUT)) == "node 'Conv_1' (Conv, opset 17)"
    assert "com.microsoft.Gelu" in str(Node("Gelu", (), ("y",), domain="com.microsoft"))
