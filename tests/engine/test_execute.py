from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilations import compilations
from models import Network, branching_network, residual_network, run_onnx, smooth
from onnx import TensorProto

from jaxq.algorithms.bias_correction import rounded
from jaxq.engine.execute import chain, execute, observing, quantizing, traced_params
from jaxq.engine.model import Model
from jaxq.errors import DynamicShapeError, InputError, ModelError
from jaxq.graph.ir import FrozenDict, Graph, Literal, Node
from jaxq.numerics.quantizer import IntType, QuantParams, fake_quantize
from jaxq.onnx_io.load import load
from jaxq.ops.evaluate import as_int32, describe


def graph_of(*nodes: Node, outputs: tuple[str, ...], inputs: tuple[str, ...] = ("x",), **constants) -> Graph:
    literals = FrozenDict({name: Literal.of(value) for name, value in constants.items()})
    return Graph(nodes=nodes, inputs=inputs, outputs=outputs, constants=literals)


def node(op: str, inputs: str, outputs: str, version: int = 17, **attributes) -> Node:
    return Node(
        op, tuple(inputs.split()), tuple(outputs.split()), FrozenDict(attributes), f"{op}_{outputs}", "", version
    )


@pytest.fixture(scope="module")
def residual() -> Model:
    return load(residual_network())


IMAGE = smooth(2, 3, 8, 8)


def test_the_float_run_agrees_with_the_runtime(residual):
    found = execute(residual.graph, traced_params(residual.params), {"image": jnp.asarray(IMAGE)})[0]
    np.testing.assert_allclose(found["scores"], run_onnx(residual_network(), {"image": IMAGE})["scores"], atol=1e-5)


def test_a_tap_sees_every_traced_tensor_once(residual):
    seen = []

    def tap(name, value, carry):
        seen.append(name)
        return value, carry + 1

    params = traced_params(residual.params)
    _, count = execute(residual.graph, params, {"image": jnp.asarray(IMAGE)}, tap=tap, carry=0)
    made = [name for each in residual.graph.nodes for name in each.outputs]
    assert sorted(seen) == sorted([*params, "image", *made])
    assert count == len(seen)


def test_a_tap_that_watches_leaves_the_outputs_as_they_are(residual):
    params, feed = traced_params(residual.params), {"image": jnp.asarray(IMAGE)}
    update = {"sum": lambda state, value: jnp.maximum(state, value.max())}
    outputs, states = execute(residual.graph, params, feed, tap=observing(update), carry={"sum": jnp.float32(-1)})
    np.testing.assert_array_equal(outputs["scores"], execute(residual.graph, params, feed)[0]["scores"])
    assert states["sum"] > 0


def test_a_tap_may_replace_a_value_for_all_readers():
    graph = graph_of(node("Relu", "x", "y"), node("Neg", "y", "z"), node("Abs", "y", "w"), outputs=("z", "w"))
    doubled = execute(graph, {}, {"x": jnp.ones(2)}, tap=lambda name, v, carry: (v * 2 if name == "y" else v, carry))[0]
    np.testing.assert_array_equal(doubled["z"], [-2, -2])
    np.testing.assert_array_equal(doubled["w"], [2, 2])


def test_quantizing_rounds_the_named_tensors_only():
    params = QuantParams.of(np.ones(1), 0, IntType(8))
    graph = graph_of(node("Mul", "x half", "y"), node("Mul", "y half", "z"), outputs=("z",), half=np.float32(0.5))
    x = jnp.array([1.0, 3.0, 5.2])
    outputs, _ = execute(graph, {}, {"x": x}, tap=quantizing({"y": params}))
    np.testing.assert_array_equal(outputs["z"], fake_quantize(x * 0.5, params) * 0.5)


def test_chained_taps_run_in_order_and_share_the_carry():
    def add(amount):
        return lambda name, value, carry: (value, (*carry, amount))

    graph = graph_of(outputs=("x",))
    assert execute(graph, {}, {"x": jnp.ones(1)}, tap=chain(add(1), None, add(2)), carry=())[1] == (1, 2)
    assert chain(None, None) is None


def sums(length):
    """x0 -> x1 -> ...: each is the sum of the one before and of its sine, and both read a rounded copy of their own."""
    nodes, encodings = [], {}
    for k in range(length):
        nodes += [node("Identity", f"x{k}", f"a{k}"), node("Identity", f"x{k}", f"b{k}"), node("Sin", f"b{k}", f"s{k}")]
        nodes += [node("Add", f"a{k} s{k}", f"x{k + 1}")]
        encodings |= {
            f"a{k}": QuantParams.of(np.ones((1, 1)) / 8, 1, IntType(8)),
            f"b{k}": QuantParams.of(np.ones((1, 1)) / 9, 2, IntType(8)),
        }
    return graph_of(*nodes, inputs=("x0",), outputs=(f"x{length}",)), encodings


def compiled_sums(length, quantize):
    graph, encodings = sums(length)

    def run(x, encodings):
        def tap(name, value, carry):
            return (quantize(value, encodings[name]) if name in encodings else value), carry

        return execute(graph, {}, {"x0": x}, tap=tap)[0]

    x = np.linspace(-3, 3, 24, dtype=np.float32).reshape(4, 6)
    return jax.jit(run).lower(x, encodings).compile(), (x, encodings)


@pytest.mark.parametrize("quantize", [fake_quantize, rounded])
def test_a_tensor_that_several_quantizers_read_is_computed_once(quantize):
    """Programs grow as the chain does: computed anew in each reader, a sum took all sums before it along."""
    short, middle, long = (compiled_sums(length, quantize)[0].as_text().count(" = ") for length in (4, 8, 12))
    assert long - middle <= 1.1 * (middle - short)


def test_storing_a_tensor_changes_no_bit(monkeypatch):
    def found():
        program, arguments = compiled_sums(3, fake_quantize)
        return np.asarray(program(*arguments)["x3"])

    stored = found()
    monkeypatch.setattr("jaxq.engine.execute.shared", lambda graph: frozenset())
    np.testing.assert_array_equal(stored, found())


def test_shape_arithmetic_is_static_and_64_bit():
    """Shape -> Gather -> Mul by 2**40 -> Div by 2**40 -> Reshape, under jit, in 32-bit JAX."""
    graph = graph_of(
        node("Shape", "x", "s"), node("Gather", "s zero", "n"), node("Mul", "n big", "m"), node("Div", "m big", "k"),
        node("Concat", "k rest", "target", axis=0), node("Reshape", "x target", "y"),
        outputs=("y", "m"), zero=np.array([0]), big=np.array([2**40]), rest=np.array([-1]),
    )  # fmt: skip
    found = {}

    @jax.jit
    def run(x):
        outputs = execute(graph, {}, {"x": x})[0]
        found["m"] = outputs["m"]
        return outputs["y"]

    assert run(jnp.zeros((3, 2, 2))).shape == (3, 4)
    assert isinstance(found["m"], np.ndarray)
    assert found["m"].dtype == np.int64
    assert found["m"].tolist() == [3 * 2**40]


def test_a_static_64_bit_operand_that_does_not_fit_names_the_node():
    graph = graph_of(node("Add", "x big", "y"), outputs=("y",), big=np.array([2**40]))
    with pytest.raises(ModelError, match=r"'Add_y'.*1099511627776.*32 bit"):
        execute(graph, {}, {"x": jnp.zeros(1, jnp.int32)})


def test_a_64_bit_param_that_does_not_fit_is_named():
    with pytest.raises(ModelError, match=r"'table'.*-1099511627776"):
        traced_params({"table": np.array([1, -(2**40)])})
    assert traced_params({"table": np.array([2**31 - 1, -(2**31)])})["table"].dtype == jnp.int32


def test_64_bit_values_pass_where_jax_runs_in_64_bit():
    with jax.enable_x64(True):
        assert traced_params({"table": np.array([2**40])})["table"].dtype == jnp.int64


def test_params_are_placed_without_compiling_and_do_not_change_with_the_array_they_came_from():
    value = np.zeros((7, 11, 13), np.float32)
    with compilations() as compiled:
        placed = traced_params({"w": value})["w"]
    value[:] = 1
    assert not compiled
    assert not np.asarray(placed).any()


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1, -(2**63), 2**63 - 1])
def test_the_first_values_beyond_32_bit_are_refused(value):
    with pytest.raises(ModelError, match=str(value)):
        as_int32(np.array([0, value]), "the index")


def test_unsigned_64_bit_values_beyond_the_range_are_refused():
    with pytest.raises(ModelError, match=str(2**64 - 1)):
        as_int32(np.array([2**64 - 1], np.uint64), "the index")
    assert as_int32(np.zeros(0, np.int64), "nothing").dtype == np.int32


def test_an_input_of_64_bit_that_does_not_fit_is_named():
    net = Network()
    net.node("Add", [net.input("tokens", [2], TensorProto.INT64), net.constant("one", [1], np.int64)], "y")
    net.output("y", [2], TensorProto.INT64)
    model = load(net.proto())
    assert model(np.array([1, -2]))["y"].tolist() == [2, -1]
    assert model(np.array([1, -2]))["y"].dtype == np.int64
    with pytest.raises(InputError, match=r"input 'tokens'.*1099511627776"):
        model(np.array([2**40, 0]))


def test_a_node_that_cannot_run_is_named_with_its_shapes():
    graph = graph_of(node("MatMul", "x w", "y"), outputs=("y",))
    with pytest.raises(ModelError, match=r"node 'MatMul_y' \(MatMul, opset 17\).*\[2, 3\].*\[4, 5\]"):
        execute(graph, {"w": jnp.ones((4, 5))}, {"x": jnp.ones((2, 3))})


def test_an_input_that_nothing_makes_is_named():
    with pytest.raises(ModelError, match=r"'Relu_y'.*'ghost' is made by no earlier node"):
        execute(graph_of(node("Relu", "ghost", "y"), outputs=("y",)), {}, {"x": jnp.ones(1)})


def test_an_output_that_nothing_makes_is_named():
    with pytest.raises(ModelError, match=r"no node makes its outputs \['ghost'\]"):
        execute(graph_of(outputs=("ghost",)), {}, {"x": jnp.ones(1)})


def test_a_shape_from_the_data_is_an_error_with_the_chain_of_tensors():
    graph = graph_of(
        node("Abs", "x", "a"), node("Cast", "a", "c", to=7), node("Reshape", "w c", "y"), outputs=("y",)
    )  # fmt: skip
    with pytest.raises(DynamicShapeError, match=r"'Reshape_y'.*'c' <- 'a' <- 'x'"):
        jax.jit(lambda x: execute(graph, {"w": jnp.ones(6)}, {"x": x})[0])(jnp.array([2.0, 3.0]))


def test_an_error_inside_a_subgraph_names_the_inner_node_once():
    inner = graph_of(node("MatMul", "x w", "z"), outputs=("z",), inputs=())
    outer = graph_of(node("If", "yes", "y", then_branch=inner, else_branch=inner), outputs=("y",), yes=np.array(True))
    with pytest.raises(ModelError, match="'MatMul_z'") as caught:
        execute(outer, {"w": jnp.ones((4, 5))}, {"x": jnp.ones((2, 3))})
    assert str(caught.value).count("node '") == 1


def test_optional_outputs_and_inputs_may_be_absent():
    graph = graph_of(node("Clip", "x _ high", "c"), outputs=("c",), high=np.float32(1.0))
    # An absent input is "".
    clip = replace(graph.nodes[0], inputs=("x", "", "high"))
    outputs, _ = execute(replace(graph, nodes=(clip,)), {}, {"x": jnp.array([-5.0, 5.0])})
    np.testing.assert_array_equal(outputs["c"], [-5, 1])


def test_the_taken_branch_is_tapped_and_the_other_one_is_not_run():
    model = load(branching_network())
    for rate, taken, other in ((8000, "slow.conv", "fast.conv"), (16000, "fast.conv", "slow.conv")):
        seen = []
        feed = {"sound": jnp.asarray(smooth(1, 1, 16)), "rate": np.array(rate)}
        execute(
            model.graph, traced_params(model.params), feed, tap=lambda name, v, c, seen=seen: (v, seen.append(name))
        )
        assert taken in seen
        assert other not in seen


@pytest.mark.parametrize("taken", [True, False])
def test_a_branch_on_data_gives_what_the_chosen_branch_gives(taken):
    positive = graph_of(node("Relu", "x", "a"), outputs=("a",), inputs=())
    negative = graph_of(node("Neg", "x", "b"), outputs=("b",), inputs=())
    graph = graph_of(
        node("If", "choice", "y", then_branch=positive, else_branch=negative), outputs=("y",), inputs=("x", "choice")
    )
    x = jnp.array([-1.0, 2.0])
    found = jax.jit(lambda x, choice: execute(graph, {}, {"x": x, "choice": choice})[0]["y"])(x, jnp.bool_(taken))
    np.testing.assert_array_equal(found, [0, 2] if taken else [1, -2])


def test_compiled_or_not_the_result_is_the_same(residual):
    params, feed = traced_params(residual.params), {"image": jnp.asarray(IMAGE)}
    compiled = jax.jit(lambda p, x: execute(residual.graph, p, x)[0])(params, feed)
    np.testing.assert_allclose(
        compiled["scores"], execute(residual.graph, params, feed)[0]["scores"], rtol=1e-5, atol=1e-6
    )


def test_values_are_described_for_messages():
    assert describe(None) == "absent"
    assert describe(np.zeros((2, 3), np.float32)) == "float32[2, 3]"
    assert describe(3) == "3"


def test_every_error_here_is_of_the_family_of_model_errors():
    assert issubclass(DynamicShapeError, ModelError)
    assert not issubclass(InputError, ModelError)
