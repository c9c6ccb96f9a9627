"""Every pass leaves the function alone, and run twice it returns the same object."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from models import branching_network, old_network, residual_network, shuffle_network, smooth, transformer_block, written

from jaxq import onnx_import
from jaxq.execute import execute, traced_params
from jaxq.graph import FrozenDict, Graph, Literal, Node, TensorType
from jaxq.model import Model
from jaxq.passes import clean, drop_identity, drop_unused, fold_constants, lift_constants, static_sources, until_stable


def unclean(proto: onnx.ModelProto) -> Model:
    """The model as the file has it, before any pass but the lifting of constants."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_import, "clean", lambda graph, params: (graph, params))
        return onnx_import.load(proto)


def ops(graph: Graph) -> list[str]:
    return [node.op for _, node in graph.walk()]


def outputs(graph: Graph, params, feed) -> dict[str, np.ndarray]:
    values = {name: jnp.asarray(value) if np.ndim(value) else value for name, value in feed.items()}
    return {name: np.asarray(value) for name, value in execute(graph, traced_params(params), values)[0].items()}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A graph, and the operators that are left of it."""

    text: str
    after: str
    feed: dict[str, Any] = field(default_factory=lambda: {"x": np.float32([[1, -2], [3, 0.5]])})
    initializers: dict[str, Any] = field(default_factory=dict)


PASSES = {"fold_constants": fold_constants, "drop_identity": drop_identity, "drop_unused": drop_unused, "clean": clean}

CASES = {
    "fold_constants: arithmetic of weights": Case(
        text="(float[N, 2] x) => (float[N, 2] y) { t = Transpose (w)  half = Mul (t, s)  y = MatMul (x, half) }",
        initializers={"w": np.float32([[1, 2], [3, 4]]), "s": np.float32(0.5)},
        after="MatMul",
    ),
    "fold_constants: a weight that is read twice": Case(
        text="(float[N, 2] x) => (float[N, 2] y) { t = Transpose (w)  h = MatMul (x, t)  y = MatMul (h, w) }",
        initializers={"w": np.float32([[1, 2], [3, 4]])},
        after="MatMul MatMul",
    ),
    "fold_constants: not a weight that would grow": Case(
        text="(float[N, 2] x) => (float[] y) { big = Tile (w, times)  wide = MatMul (x, big)  y = ReduceSum <keepdims = 0> (wide) }",
        initializers={"w": np.float32([[1, 2], [3, 4]]), "times": np.array([1, 1 << 17])},
        after="Tile MatMul ReduceSum",
    ),
    "fold_constants: not a quantized weight": Case(
        text="(float[N, 2] x) => (float[N, 2] y) { w = DequantizeLinear (q, s)  y = MatMul (x, w) }",
        initializers={"q": np.int8([[1, 2], [3, 4]]), "s": np.float32(0.5)},
        after="DequantizeLinear MatMul",
    ),
    "drop_identity: in a chain": Case(
        text="(float[N, 2] x) => (float[N, 2] y) { a = Identity (x)  b = Identity (a)  y = Relu (b) }", after="Relu"
    ),
    "drop_identity: not the name of an output": Case(
        text="(float[N, 2] x) => (float[N, 2] y) { a = Relu (x)  y = Identity (a) }", after="Relu Identity"
    ),
    "drop_identity: dropout": Case(
        text="(float[N, 2] x) => (float[N, 2] y) { a, mask = Dropout (x)  y = Relu (a) }", after="Relu"
    ),
    "drop_identity: not dropout whose mask is read": Case(
        text="(float[N, 2] x) => (float[N, 2] y) { a, mask = Dropout (x)  m = Cast <to = 1> (mask)  y = Mul (a, m) }",
        after="Dropout Cast Mul",
    ),
    "drop_identity: before a branch": Case(
        text="""(float[N, 2] x) => (float[N, 2] y) { a = Identity (x)
            y = If (yes) <then_branch = t () => (float[N, 2] b) { b = Neg (a) }, else_branch = e () => (float[N, 2] c) { c = Relu (a) }> }""",
        initializers={"yes": np.array(True)},
        after="If Neg Relu",
    ),
    "drop_unused: nodes and weights": Case(
        text="(float[N, 2] x) => (float[N, 2] y) { a = MatMul (x, w)  b = Relu (a)  y = Neg (x) }",
        initializers={"w": np.eye(2, dtype=np.float32)},
        after="Neg",
    ),
    "drop_unused: not what a branch reads": Case(
        text="""(float[N, 2] x) => (float[N, 2] y) { a = MatMul (x, w)
            y = If (yes) <then_branch = t () => (float[N, 2] b) { b = Neg (a) }, else_branch = e () => (float[N, 2] c) { c = Identity (x) }> }""",
        initializers={"yes": np.array(True), "w": np.eye(2, dtype=np.float32)},
        after="MatMul If Neg Identity",
    ),
    "clean: what folding leaves over": Case(
        text="(float[N, 2] x) => (float[N, 2] y) { s = Shape (w)  one = Gather (s, zero)  e = ConstantOfShape (one)  a = Identity (x)  y = Add (a, e) }",
        initializers={"w": np.eye(2, dtype=np.float32), "zero": np.array([0])},
        after="Add",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_pass_leaves_the_function_alone(name):
    case, run = CASES[name], PASSES[name.partition(":")[0]]
    model = unclean(written(case.text, **case.initializers))
    graph, params = run(model.graph, model.params)
    assert " ".join(ops(graph)) == case.after
    before, after = outputs(model.graph, model.params, case.feed), outputs(graph, params, case.feed)
    assert before.keys() == after.keys()
    for key, value in before.items():
        np.testing.assert_allclose(after[key], value, rtol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_a_pass_that_is_run_again_returns_the_same_objects(name):
    case, run = CASES[name], PASSES[name.partition(":")[0]]
    model = unclean(written(case.text, **case.initializers))
    once = run(model.graph, model.params)
    twice = run(*once)
    assert twice[0] is once[0]
    assert twice[1] is once[1]


NETWORKS = {
    "residual": (residual_network(), {"image": smooth(1, 3, 8, 8)}),
    "shuffle": (shuffle_network(), {"image": smooth(1, 3, 8, 8)}),
    "transformer": (transformer_block(), {"tokens": smooth(1, 6, 16)}),
    "branching": (branching_network(), {"sound": smooth(1, 1, 16), "rate": np.array(8000)}),
    "opset 7": (old_network(7), {"image": smooth(1, 3, 8, 8)}),
    "opset 11": (old_network(11), {"image": smooth(1, 3, 8, 8)}),
}


@pytest.mark.parametrize("proto, feed", NETWORKS.values(), ids=NETWORKS)
def test_cleaning_leaves_networks_alone(proto, feed):
    before, after = unclean(proto), onnx_import.load(proto)
    found, expected = outputs(after.graph, after.params, feed), outputs(before.graph, before.params, feed)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6)
    assert after.inputs == before.inputs
    assert after.outputs == before.outputs
    assert clean(after.graph, after.params) == (after.graph, after.params)


def test_a_folded_weight_keeps_the_name_of_its_initializer():
    case = CASES["fold_constants: arithmetic of weights"]
    model = unclean(written(case.text, **case.initializers))
    graph, params = fold_constants(model.graph, model.params)
    assert set(params) == {"w"}
    np.testing.assert_array_equal(params["w"], case.initializers["w"].T * 0.5)
    assert graph.nodes[-1].inputs == ("x", "w")


def test_a_weight_that_is_renamed_is_renamed_in_branches():
    text = """(float[N, 2] x) => (float[N, 2] y) { t = Transpose (w)
        y = If (yes) <then_branch = a () => (float[N, 2] b) { b = MatMul (x, t) }, else_branch = e () => (float[2, 2] c) { c = Identity (t) }> }"""
    model = unclean(written(text, yes=np.array(True), w=np.float32([[1, 2], [3, 4]])))
    graph, params = clean(model.graph, model.params)
    x = np.float32([[1, 1]])
    np.testing.assert_array_equal(outputs(graph, params, {"x": x})["y"], [[3, 7]])


def test_folding_says_which_node_is_wrong():
    model = unclean(written("(float[N, 2] x) => (float[N, 2] y) { [broken] t = Gather (w, i)  y = Add (x, t) }",
                            w=np.ones((2, 2), np.float32), i=np.array(7)))  # fmt: skip
    with pytest.raises(Exception, match=r"node 'broken' \(Gather, opset 17\)"):
        clean(model.graph, model.params)


# ------------------------------------------------------------------------------------------- structure and numbers


def test_what_decides_shapes_is_structure_and_all_other_floats_are_numbers():
    text = """(float[N, 4] x, float[M] size) => (float y) {
        a = Reshape (x, target)  b = Add (a, bias)  c = Resize (b, , scales)  d = Clip (c, low)  y = Gather (d, ids) }"""
    model = unclean(
        written(
            text, target=np.array([1, 1, -1]), bias=np.float32([1]), scales=np.float32([1, 1, 2]), low=np.float32(0), ids=np.array([0])
        )
    )  # fmt: skip
    assert set(model.graph.constants) == {"target", "scales", "low", "ids"}
    assert set(model.params) == {"bias"}


def test_large_integer_tables_are_numbers():
    graph = Graph((Node("Gather", ("table", "x"), ("y",)),), ("x",), ("y",))
    params = {"table": np.arange(100)}
    assert lift_constants(graph, params, 99)[1].keys() == {"table"}
    assert lift_constants(graph, params, 100)[1] == {}


def test_inputs_that_decide_shapes_are_static_if_they_are_small_integers():
    nodes = (Node("Reshape", ("x", "size"), ("a",)), Node("Expand", ("a", "wide"), ("y",)))
    types = {
        "x": TensorType("float32", ("N",)),
        "size": TensorType("int64", ("R",)),
        "wide": TensorType("int64", (1, 1)),
    }
    graph = Graph(nodes, ("x", "size", "wide"), ("y",), FrozenDict(types))
    assert static_sources(graph) == {"size", "wide"}
    assert lift_constants(graph, {}, 9)[0].static_inputs == ("size",)


def test_the_shape_of_a_tensor_needs_no_static_tensor():
    nodes = (Node("Shape", ("x",), ("s",)), Node("Gather", ("s", "i"), ("n",)), Node("Reshape", ("z", "n"), ("y",)))
    assert static_sources(Graph(nodes, ("x", "z"), ("y",))) == {"n", "s", "i"}


def test_passes_run_until_none_changes_anything():
    def shorten(graph, params):
        return (dataclasses.replace(graph, nodes=graph.nodes[1:]) if len(graph.nodes) > 1 else graph), params

    graph = Graph(
        tuple(Node("Relu", ("x",), (f"y{i}",)) for i in range(4)),
        ("x",),
        ("y3",),
        constants=FrozenDict({"c": Literal.of(1)}),
    )
    assert [node.outputs for node in until_stable(shorten)(graph, {})[0].nodes] == [("y3",)]
