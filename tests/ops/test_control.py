"""If, Loop and Scan: inlined, unrolled, scanned and looped give the same, and what cannot be compiled says why."""

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from jaxq.engine.execute import execute, observing, traced_params
from jaxq.errors import DynamicShapeError, ModelError
from jaxq.onnx_io.load import load
from jaxq.ops import control

FLOAT, INT, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
x = np.float32([1, 2, 3])


def value(name, kind=FLOAT, shape=None):
    return helper.make_tensor_value_info(name, kind, shape)


def node(op, inputs, outputs, **attributes):
    return helper.make_node(op, inputs.split(), outputs.split(), **attributes)


def body(nodes, inputs, outputs):
    return helper.make_graph(nodes, "body", inputs, outputs)


def constants(**arrays):
    return [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()]


def model(nodes, inputs, outputs, **arrays):
    graph = helper.make_graph(nodes, "control", inputs, [value(name) for name in outputs.split()], constants(**arrays))
    for output in graph.output:
        output.ClearField("type")
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(proto, static=(), tap=None, carry=None, **feed):
    """The outputs under jit, as a list; inputs named in `static` are known while tracing."""
    loaded = load(proto)

    @jax.jit
    def compiled(params, inputs):
        known = {name: np.asarray(feed[name]) for name in static}
        outputs, stats = execute(loaded.graph, params, {**inputs, **known}, tap=tap, carry=carry)
        return [outputs[name] for name in loaded.graph.outputs], stats

    inputs = {name: jnp.asarray(array) for name, array in feed.items() if name not in static}
    outputs, stats = compiled(traced_params(loaded.params), inputs)
    return [np.asarray(each) for each in outputs] if tap is None else stats


def runtime(proto, **feed):
    return onnxruntime.InferenceSession(proto.SerializeToString()).run(
        None, {name: np.asarray(array) for name, array in feed.items()}
    )


def assert_same(got, wanted):
    for mine, theirs in zip(got, wanted, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6)
        assert mine.shape == theirs.shape


# ------------------------------------------------------------------------------------------------------------------- If


def branches(then_nodes=(("Add", "x x"),), else_nodes=(("Mul", "x x"),)):
    def branch(nodes, name):
        return body([node(op, inputs, name) for op, inputs in nodes], [], [value(name, FLOAT)])

    return {"then_branch": branch(then_nodes, "then"), "else_branch": branch(else_nodes, "else")}


def if_model(**changes):
    chosen = node("If", "cond", "y", **branches(**changes))
    return model([chosen], [value("x", FLOAT, [None]), value("cond", BOOL, [])], "y")


@pytest.mark.parametrize("cond", [True, False])
@pytest.mark.parametrize("static", [(), ("cond",)])
def test_if_takes_one_branch(cond, static):
    proto = if_model()
    assert_same(run(proto, static, x=x, cond=cond), runtime(proto, x=x, cond=cond))


def test_a_known_condition_leaves_no_trace_of_the_other_branch():
    loaded = load(if_model())
    traced = jax.make_jaxpr(lambda v: execute(loaded.graph, {}, {"x": v, "cond": np.array(True)})[0])(x)
    assert "cond" not in str(traced)
    assert "mul" not in str(traced)


def test_statistics_see_into_branches_and_are_told_whether_they_are_taken():
    tap = observing({"then": lambda _, seen: jnp.max(seen)})
    assert run(if_model(), ("cond",), tap=tap, carry={"then": jnp.float32(0)}, x=x, cond=True)["then"] == 6

    loaded = load(if_model())

    @jax.jit
    def both(inputs):
        taken: dict[str, jax.Array] = {}
        _, stats = execute(
            loaded.graph,
            traced_params(loaded.params),
            inputs,
            tap=tap,
            carry={"then": jnp.float32(0)},
            conditions=taken,
        )
        return stats["then"], taken["then"]

    for cond in (True, False):  # what the data decide is not known while tracing: both branches are there
        assert [each.item() for each in both({"x": jnp.asarray(x), "cond": jnp.asarray(cond)})] == [6, cond]


def test_branches_of_different_shapes_need_a_known_condition():
    proto = if_model(else_nodes=(("ReduceSum", "x"),))
    assert run(proto, ("cond",), x=x, cond=False)[0].shape == (1,)
    with pytest.raises(DynamicShapeError, match="the branches differ in the shapes"):
        run(proto, x=x, cond=False)


# ----------------------------------------------------------------------------------------------------------------- Loop


def loop_model(*inputs, going="going", state="Add"):
    """acc = acc op x in every turn, with the turn's number and acc as rows; goes on while sum(acc) < limit."""
    turn = body(
        [
            node(state, "acc_in x", "acc_out") if state != "Concat" else node("Concat", "acc_in x", "acc_out", axis=0),
            node("ReduceSum", "acc_out", "total", keepdims=0),
            node("Less", "total limit", "going"),
            node("Identity", "cond_in", "always"),
            node("Cast", "turn", "number", to=FLOAT),
            node("Identity", "acc_out", "row"),
        ],
        [value("turn", INT, []), value("cond_in", BOOL, []), value("acc_in", FLOAT)],
        [value(going, BOOL, []), value("acc_out", FLOAT), value("number", FLOAT), value("row", FLOAT)],
    )
    if not inputs[2]:
        del turn.output[2:]
    outputs = "acc numbers rows" if inputs[2] else "acc"
    names = [name if name in ("trips", "cond") else "" for name in inputs[:2]]
    loop = helper.make_node("Loop", [*names, "start"], outputs.split(), body=turn)
    given = [value("trips", INT, []), value("cond", BOOL, [])]
    given = [each for each in given if each.name in names]
    return model(
        [loop], [*given, value("x", FLOAT, [None]), value("limit", FLOAT, [])], outputs, start=np.zeros(3, np.float32)
    )


@pytest.mark.parametrize("trips", [1, 5, control.MOST_UNROLLED + 4])
def test_a_counted_loop(trips):
    """Unrolled when short, a scan when long: the same as in ONNX Runtime."""
    proto = loop_model("trips", "cond", True, going="always")
    feed = {"x": x, "limit": np.float32(0), "trips": np.int64(trips), "cond": np.array(True)}
    assert_same(run(proto, ("trips", "cond"), **feed), runtime(proto, **feed))


def test_a_loop_without_turns_has_rows_of_the_right_shape():
    feed = {"x": x, "limit": np.float32(0), "trips": np.int64(0), "cond": np.array(True)}
    acc, numbers, rows = run(loop_model("trips", "cond", True), ("trips", "cond"), **feed)
    np.testing.assert_array_equal(acc, 0)
    assert (numbers.shape, rows.shape) == ((0,), (0, 3))


def test_long_loops_are_compiled_once():
    loaded = load(loop_model("trips", "cond", True, going="always"))

    def size(trips):
        feed = {"x": x, "limit": jnp.float32(0)}
        known = {"trips": np.array(trips), "cond": np.array(True)}
        return len(str(jax.make_jaxpr(lambda feed: execute(loaded.graph, loaded.params, {**feed, **known})[0])(feed)))

    assert size(1000) == pytest.approx(size(500), abs=10)


@pytest.mark.parametrize("limit", [-1, 0, 17, 1e9])
@pytest.mark.parametrize("trips", [3, control.MOST_UNROLLED + 4])
def test_a_condition_that_depends_on_the_data(limit, trips):
    proto = loop_model("trips", "cond", False)
    feed = {"x": x, "limit": np.float32(limit), "trips": np.int64(trips), "cond": np.array(True)}
    wanted = runtime(proto, **feed)
    assert_same(run(proto, **feed), wanted)
    assert_same(run(proto, ("trips", "cond"), **feed), wanted)


def test_a_loop_with_a_condition_alone():
    proto = loop_model("", "cond", False)
    feed = {"x": x, "limit": np.float32(100), "cond": np.array(True)}
    assert_same(run(proto, **feed), runtime(proto, **feed))
    feed["cond"] = np.array(False)
    assert_same(run(proto, ("cond",), **feed), runtime(proto, **feed))


def test_known_values_loop_while_tracing():
    """Everything is known, so the loop runs in numpy, rows and all, however the condition comes about."""
    proto = loop_model("trips", "cond", True)
    feed = {"x": x, "limit": np.float32(100), "trips": np.int64(1000), "cond": np.array(True)}
    loaded = load(proto)
    outputs, _ = execute(loaded.graph, loaded.params, feed)
    assert_same([outputs[name] for name in loaded.graph.outputs], runtime(proto, **feed))


def test_a_growing_state_is_unrolled_whatever_its_length():
    proto = loop_model("trips", "cond", False, going="always", state="Concat")
    trips = control.MOST_UNROLLED + 2
    feed = {"x": x, "limit": np.float32(0), "trips": np.int64(trips), "cond": np.array(True)}
    [got] = run(proto, ("trips", "cond"), **feed)
    assert got.shape == (3 + 3 * trips,)


def test_loops_that_cannot_be_compiled_say_why():
    feed = {"x": x, "limit": np.float32(0), "trips": np.int64(3), "cond": np.array(True)}
    with pytest.raises(DynamicShapeError, match="the shape of its stacked outputs"):
        run(loop_model("trips", "cond", True), **feed)
    with pytest.raises(DynamicShapeError, match="its state must keep its shape"):
        run(loop_model("trips", "cond", False, state="Concat"), **feed)
    del feed["trips"], feed["cond"]
    with pytest.raises(ModelError, match="neither a trip count nor a condition"):
        run(loop_model("", "", True), **feed)


# ----------------------------------------------------------------------------------------------------------------- Scan


@pytest.mark.parametrize("reverse", [0, 1])
@pytest.mark.parametrize("axis", [0, 1])
def test_scan(axis, reverse):
    turn = body(
        [node("Add", "total_in piece", "total_out"), node("Mul", "total_out piece", "row")],
        [value("total_in", FLOAT, [2]), value("piece", FLOAT, [2])],
        [value("total_out", FLOAT, [2]), value("row", FLOAT, [2])],
    )
    scan = helper.make_node(
        "Scan",
        ["start", "pieces"],
        ["total", "rows"],
        body=turn,
        num_scan_inputs=1,
        scan_input_axes=[axis],
        scan_input_directions=[reverse],
        scan_output_axes=[1],
        scan_output_directions=[1],
    )
    shape = [3, 2] if axis == 0 else [2, 3]
    proto = model([scan], [value("pieces", FLOAT, shape)], "total rows", start=np.ones(2, np.float32))
    pieces = np.arange(6, dtype=np.float32).reshape(shape)
    assert_same(run(proto, pieces=pieces), runtime(proto, pieces=pieces))


def test_loops_within_branches_within_loops():
    """Captures reach through two floors: x from the graph, acc from the loop around."""
    inner = body(
        [node("Add", "deep x", "deeper"), node("Identity", "c2", "c2_out")],
        [value("t2", INT, []), value("c2", BOOL, []), value("deep", FLOAT)],
        [value("c2_out", BOOL, []), value("deeper", FLOAT)],
    )
    then = body([helper.make_node("Loop", ["two", "", "acc_in"], ["twice"], body=inner)], [], [value("twice")])
    other = body([node("Sub", "acc_in x", "less")], [], [value("less")])
    outer = body(
        [
            node("Mod", "turn two", "odd"),
            node("Cast", "odd", "is_odd", to=BOOL),
            helper.make_node("If", ["is_odd"], ["acc_out"], then_branch=then, else_branch=other),
            node("Identity", "c1", "c1_out"),
        ],
        [value("turn", INT, []), value("c1", BOOL, []), value("acc_in", FLOAT)],
        [value("c1_out", BOOL, []), value("acc_out", FLOAT)],
    )
    for graph in (inner, then, other, outer):
        for output in graph.output:
            if output.type.tensor_type.elem_type == FLOAT:
                output.type.tensor_type.shape.dim.add().dim_value = 3
    loop = helper.make_node("Loop", ["trips", "", "x"], ["y"], body=outer)
    proto = model([loop], [value("x", FLOAT, [3]), value("trips", INT, [])], "y", two=np.int64(2))
    for trips in (4, control.MOST_UNROLLED + 1):
        feed = {"x": x, "trips": np.int64(trips)}
        wanted = runtime(proto, **feed)
        assert_same(run(proto, ("trips",), **feed), wanted)
        assert_same(run(proto, **feed), wanted)
