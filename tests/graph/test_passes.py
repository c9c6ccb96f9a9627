from dataclasses import replace

import numpy as np
import pytest
from models import Network, branching_network, residual_network, run_onnx, shuffle_network, smooth, transformer_block
from onnx import TensorProto

from jaxq.graph.ir import FrozenDict, Graph, Literal, Node
from jaxq.graph.passes import (
    clean,
    drop_identity,
    drop_unused,
    fold_constants,
    lift_constants,
    static_sources,
    until_stable,
)
from jaxq.onnx_io.load import load

NETWORKS = {
    "residual": residual_network(),
    "shuffle": shuffle_network(),
    "transformer": transformer_block(),
    "branching": branching_network(),
}
PASSES = {"fold constants": fold_constants, "drop identity": drop_identity, "drop unused": drop_unused, "clean": clean}


def node(op: str, inputs: str, outputs: str, **attributes) -> Node:
    return Node(op, tuple(inputs.split()), tuple(outputs.split()), FrozenDict(attributes), f"{op}_{outputs}")


def graph_of(*nodes: Node, outputs: str = "y", inputs: str = "x", **constants) -> Graph:
    literals = FrozenDict({name: Literal.of(value) for name, value in constants.items()})
    return Graph(nodes, tuple(inputs.split()), tuple(outputs.split()), constants=literals)


def ops(graph: Graph) -> list[str]:
    return [each.op for each in graph.nodes]


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("each", PASSES.values(), ids=PASSES)
def test_a_second_run_returns_the_same_objects(network, each):
    model = load(network)
    once = each(model.graph, model.params)
    again = each(*once)
    assert again[0] is once[0]
    assert again[1] is once[1]


def test_loading_has_cleaned_already():
    for network in NETWORKS.values():
        model = load(network)
        assert clean(model.graph, model.params)[0] is model.graph


def test_nodes_of_constants_are_computed_once():
    graph = graph_of(node("Add", "a b", "c"), node("Mul", "x c", "y"), a=np.float32(1), b=np.float32(2))
    folded, params = fold_constants(graph, {})
    assert ops(folded) == ["Mul"]
    assert folded.constants["c"].array == 3
    assert params == {}


def test_folding_integers_is_exact_in_64_bit():
    graph = graph_of(node("Mul", "a a", "c"), node("Add", "x c", "y"), a=np.array(2**31))
    assert fold_constants(graph, {})[0].constants["c"].array == 2**62


def test_a_folded_weight_keeps_its_name():
    weight = smooth(3, 4)
    graph = graph_of(node("Transpose", "w", "t"), node("MatMul", "x t", "y"))
    folded, params = fold_constants(graph, {"w": weight})
    assert ops(folded) == ["MatMul"]
    assert folded.nodes[0].inputs == ("x", "w")
    np.testing.assert_array_equal(params["w"], weight.T)


def test_a_folded_weight_that_is_used_twice_gets_a_name_of_its_own():
    weight = smooth(3, 3)
    graph = graph_of(node("Transpose", "w", "t"), node("MatMul", "x t", "z"), node("MatMul", "z w", "y"))
    folded, params = fold_constants(graph, {"w": weight})
    np.testing.assert_array_equal(params["w"], weight)
    np.testing.assert_array_equal(params["t"], weight.T)
    assert [each.inputs for each in folded.nodes] == [("x", "t"), ("z", "w")]


def test_a_folded_output_keeps_its_name():
    folded, params = fold_constants(graph_of(node("Neg", "w", "y")), {"w": smooth(20)})
    assert folded.outputs == ("y",)
    np.testing.assert_array_equal(params["y"], -smooth(20))


def test_a_weight_renamed_by_folding_is_renamed_where_a_subgraph_captures_it():
    branch = graph_of(node("MatMul", "x t", "z"), outputs="z", inputs="")
    graph = graph_of(
        node("Transpose", "w", "t"), node("If", "yes", "y", then_branch=branch, else_branch=branch), inputs="x yes"
    )
    folded, params = fold_constants(graph, {"w": smooth(3, 4)})
    inner = folded.nodes[0].attributes["then_branch"].nodes[0]
    assert inner.inputs[1] in params
    assert params[inner.inputs[1]].shape == (4, 3)


def test_chance_and_quantization_are_not_folded():
    graph = graph_of(
        node("RandomNormalLike", "a", "r"), node("QuantizeLinear", "a s", "q"), outputs="r q", inputs="",
        a=smooth(3), s=np.float32(0.1),
    )  # fmt: skip
    assert fold_constants(graph, {})[0] is graph


def test_a_weight_is_not_blown_up_by_folding():
    graph = graph_of(node("Expand", "w shape", "e"), node("Add", "x e", "y"), shape=np.array([4096, 1024]))
    assert fold_constants(graph, {"w": smooth(1, 1024)})[0] is graph


def test_a_constant_that_cannot_be_computed_is_left_for_the_run_to_report():
    graph = graph_of(node("Reshape", "a shape", "y"), inputs="", a=smooth(3), shape=np.array([2, 2]))
    assert fold_constants(graph, {})[0] is graph


def test_identity_and_dropout_vanish_but_outputs_keep_their_names():
    graph = graph_of(
        node("Identity", "x", "a"), node("Dropout", "a", "b"), node("Relu", "b", "c"), node("Identity", "c", "y")
    )
    found, _ = drop_identity(graph, {})
    assert [(each.op, each.inputs) for each in found.nodes] == [("Relu", ("x",)), ("Identity", ("c",))]


def test_dropout_stays_where_its_mask_is_used_or_training_is_asked_for():
    masked = graph_of(node("Dropout", "x", "a mask"), node("Relu", "a", "y"), node("Not", "mask", "n"), outputs="y n")
    training = graph_of(node("Dropout", "x ratio train", "a"), node("Relu", "a", "y"), inputs="x ratio train")
    for graph in (masked, training):
        assert drop_identity(graph, {})[0] is graph


def test_dropout_stays_where_its_mask_is_an_output():
    graph = graph_of(node("Dropout", "x", "a mask"), node("Relu", "a", "y"), outputs="y mask")
    found, _ = drop_unused(*drop_identity(graph, {}))
    assert "mask" in found.producers


def test_what_no_output_needs_is_dropped():
    graph = graph_of(
        node("Relu", "x", "y"), node("Add", "x c", "unused"), node("Neg", "unused", "more"), c=np.float32(1)
    )
    found, params = drop_unused(graph, {"w": smooth(3)})
    assert ops(found) == ["Relu"]
    assert not found.constants
    assert not params


def test_what_a_subgraph_captures_is_kept():
    model = load(branching_network())
    found, params = drop_unused(model.graph, model.params)
    assert set(params) == set(model.params)
    assert {"slow.weight", "fast.weight"} <= set(params)
    assert found is model.graph


def test_small_integers_and_scalars_become_structure_and_floats_stay_numbers():
    model = load(shuffle_network())
    assert {"split", "join", "flat"} <= set(model.graph.constants)
    assert {"left.weight", "scores.bias"} <= set(model.params)
    assert not any(value.dtype.kind in "iu" for value in model.params.values())


def test_what_decides_shapes_is_found_through_arithmetic_but_not_through_shape():
    graph = graph_of(
        node("Abs", "x", "a"), node("Shape", "a", "s"), node("Mul", "s two", "t"), node("Reshape", "w t", "y"),
        inputs="x w two",
    )  # fmt: skip
    assert static_sources(graph) == {"t", "s", "two"}


def test_an_integer_input_that_decides_a_shape_becomes_static():
    net = Network()
    net.node("Reshape", [net.input("x", [4]), net.input("shape", [2], TensorProto.INT64)], "y")
    net.output("y", ["a", "b"])
    model = load(net.proto())
    assert model.graph.static_inputs == ("shape",)
    assert model({"x": smooth(4), "shape": np.array([2, 2])})["y"].shape == (2, 2)
    assert lift_constants(model.graph, model.params, 100)[0] is model.graph


def test_large_tables_of_integers_stay_numbers():
    table, graph = np.arange(200).reshape(100, 2), graph_of(node("Gather", "table x", "y"))
    lifted, params = lift_constants(graph, {"table": table}, 100)
    assert lifted is graph
    assert "table" in params
    assert "table" in lift_constants(graph, {"table": table}, 1000)[0].constants


def test_until_stable_runs_until_nothing_changes():
    def shrink(graph, params):
        return (replace(graph, name=graph.name[:-1]), params) if len(graph.name) > 2 else (graph, params)

    assert until_stable(shrink)(graph_of(outputs="x"), {})[0].name == "gr"


@pytest.mark.parametrize("name", ["residual", "shuffle", "transformer"])
def test_a_cleaned_model_computes_what_the_runtime_computes(name):
    feed = {"tokens": smooth(2, 6, 16)} if name == "transformer" else {"image": smooth(2, 3, 8, 8)}
    for key, expected in run_onnx(NETWORKS[name], feed).items():
        np.testing.assert_allclose(load(NETWORKS[name])(feed)[key], expected, atol=1e-5)
