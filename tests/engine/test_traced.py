"""Every branch that occurs in the data is calibrated, whatever the order of the samples."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from models import run_onnx, written

import jaxq
from jaxq.data.samples import Samples
from jaxq.engine import model as module
from jaxq.engine import traced
from jaxq.engine.execute import execute
from jaxq.engine.traced import Traces, signatures, untaken_nodes
from jaxq.errors import CalibrationError, JaxqWarning
from jaxq.onnx_io.load import load
from jaxq.onnx_io.save import to_proto

WEIGHTS = {name: np.random.default_rng(ord(name[0]) + int(name[1])).normal(size=(8, 8)).astype(np.float32)
           for name in ("w1", "v1", "w2", "v2")}  # fmt: skip
BRANCHES = """
  y = If (c) <
    then_branch = then_graph () => (float[N, 8] u1) { t1 = MatMul (x, w1) r1 = Relu (t1) [one] u1 = MatMul (r1, v1) },
    else_branch = else_graph () => (float[N, 8] u2) { t2 = MatMul (x, w2) r2 = Relu (t2) [two] u2 = MatMul (r2, v2) }
  >"""
BY_SWITCH = written("(float[N, 8] x, bool c) => (float[N, 8] y) {" + BRANCHES + "}", **WEIGHTS)
BY_LENGTH = written(
    "(float[N, 8] x) => (float[N, 8] y) { s = Shape (x) n = Gather (s, zero) c = Equal (n, one)" + BRANCHES + "}",
    **WEIGHTS, zero=np.int64(0), one=np.int64(1),
)  # fmt: skip
BY_DATA = written(
    "(float[N, 8] x) => (float[N, 8] y) { m = ReduceMean <keepdims = 0> (x) c = Greater (m, zero)" + BRANCHES + "}",
    **WEIGHTS, zero=np.float32(0),
)  # fmt: skip
LOOP = written(
    """(float[N, 8] x) => (float[N, 8] y) {
      start = MatMul (x, w2)
      s = Shape (x)
      n = Gather (s, zero)
      end = Loop (n, , start) <body = turn (int64 i, bool on, float[N, 8] state) => (bool on2, float[N, 8] u1)
        { on2 = Identity (on) t1 = MatMul (state, w1) r1 = Relu (t1) u1 = MatMul (r1, v1) }>
      y = MatMul (end, v2)
    }""",
    **WEIGHTS,
    zero=np.int64(0),
)


def sample(seed: int, rows: int = 2, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 0.3, size=(rows, 8)).astype(np.float32)


BOTH = {
    "by a switch": (BY_SWITCH, [{"x": sample(i), "c": np.array(i % 2 == 0)} for i in range(12)]),
    "by length": (BY_LENGTH, [{"x": sample(i, 1 + i % 3)} for i in range(12)]),
    "by the data": (BY_DATA, [{"x": sample(i, shift=1 - 2 * (i % 2))} for i in range(12)]),
}


def quantize(proto: onnx.ModelProto, data, *, calibration=False):
    advanced = jaxq.AdvancedQuantizationParameters(disable_bias_correction=calibration)
    return jaxq.quantize(proto, jaxq.Dataset(data, batch_axis=None), advanced_parameters=advanced)


@pytest.mark.parametrize("kind", BOTH)
def test_all_branches_of_the_data_are_calibrated_whatever_its_order(kind):
    proto, data = BOTH[kind]
    one, other = (quantize(proto, each, calibration=True) for each in (data, data[::-1]))
    assert {"r1", "r2", "w1", "v1", "w2", "v2"} <= set(one.encodings)
    files = [to_proto(each.replace(metadata={})).SerializeToString() for each in (one, other)]
    assert files[0] == files[1]
    for feed in data[:3]:
        found = run_onnx(to_proto(one), feed)["y"]
        np.testing.assert_allclose(one(feed)["y"], found, atol=0.02)
        exact = run_onnx(proto, feed)["y"]
        assert 0 < np.abs(found - exact).max() < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize("kind", BOTH)
def test_a_branch_is_calibrated_by_the_samples_that_take_it(kind):
    proto, data = BOTH[kind]
    made = quantize(proto, data, calibration=True)
    for weight, relu, wanted in (("w1", "r1", True), ("w2", "r2", False)):
        rows = [feed["x"] for feed in data if takes_first(feed, kind) is wanted]
        largest = max(float(np.maximum(each @ WEIGHTS[weight], 0).max()) for each in rows)
        end = float(made.encodings[relu].scale) * 255
        assert 0.6 * largest < end < 1.02 * largest


def takes_first(feed, kind) -> bool:
    if kind == "by the data":
        return bool(feed["x"].mean() > 0)
    return bool(feed["c"]) if kind == "by a switch" else len(feed["x"]) == 1


@pytest.mark.parametrize("kind", BOTH)
def test_a_branch_that_no_sample_takes_is_named(kind):
    proto, data = BOTH[kind]
    with pytest.warns(JaxqWarning, match="no calibration sample takes .* stay in float: .*'two'") as found:
        made = quantize(proto, [feed for feed in data if takes_first(feed, kind)] * 3)
    assert sum("no calibration sample" in str(each.message) for each in found) == 1
    assert {"r1", "v1"} <= set(made.encodings)
    assert not {"r2", "v2"} & set(made.encodings)
    feed = next(feed for feed in data if not takes_first(feed, kind))
    np.testing.assert_allclose(made(feed)["y"], run_onnx(to_proto(made), feed)["y"], atol=0.05)


def test_nothing_is_said_where_all_branches_are_taken():
    with warnings.catch_warnings():
        warnings.simplefilter("error", JaxqWarning)
        quantize(*BOTH["by a switch"], calibration=True)


def test_a_loop_that_turns_once_for_some_samples_is_calibrated_by_all_of_them_whatever_their_order():
    data = [{"x": sample(i, 1 + i % 3)} for i in range(12)]
    made = [quantize(LOOP, each, calibration=True) for each in (data, data[::-1])]
    files = [to_proto(each.replace(metadata={})).SerializeToString() for each in made]
    assert files[0] == files[1]
    assert set(made[0].encodings) == {"x", "w2", "end", "v2", "state", "w1", "r1", "v1"}


def test_samples_of_a_generator_are_looked_at_and_then_used():
    proto, data = BOTH["by a switch"]
    made = quantize(proto, iter(data), calibration=True)
    assert {"r1", "r2"} <= set(made.encodings)
    assert made.metadata["jaxq.calibration_samples"] == "12"


def test_accuracy_control_calibrates_all_branches():
    proto, data = BOTH["by a switch"]
    made = jaxq.quantize_with_accuracy_control(
        proto, jaxq.Dataset(data), jaxq.Dataset(data), lambda model, items: 1.0, max_drop=0.1
    )
    assert {"r1", "r2", "v1", "v2"} <= set(made.encodings)


def test_signatures_hold_shapes_and_switches_once():
    proto, data = BOTH["by a switch"]
    model = load(proto)
    found = signatures(model.graph, data * 5)
    assert [(bool(each.static["c"].array), each.inputs["x"].shape) for each in found] == [
        (True, (2, 8)),
        (False, (2, 8)),
    ]
    assert {"r1", "r2"} <= Traces.over(map(model.traced, found)).dtypes.keys()
    assert [node.name for node in untaken_nodes(model.graph, Traces.over([model.traced(found[0])]))][-1] == "two"


def test_only_the_first_sample_is_looked_at_where_there_are_no_branches():
    model = load(written("(float[N, 8] x) => (float[N, 8] y) { y = MatMul (x, w1) }", w1=WEIGHTS["w1"]))
    seen = []
    signatures(model.graph, (seen.append(i) or {"x": sample(i)} for i in range(5)))
    assert seen == [0]


def test_data_without_samples_is_an_error():
    with pytest.raises(CalibrationError, match="at least one sample"):
        signatures(load(BY_SWITCH).graph, Samples(load(BY_SWITCH), [], None).unseen())


# ------------------------------------------------------------------------------------------------ one value of a model


def test_what_follows_from_shapes_is_found_once(monkeypatch):
    """Also by models that differ in numbers alone, and whatever arrays have the shapes."""
    walks = []
    monkeypatch.setattr(
        traced, "execute", lambda graph, *rest, **how: walks.append(graph) or execute(graph, *rest, **how)
    )
    model = load(written("(float[N, 8] x) => (float[N, 8] once) { once = MatMul (x, w1) }", w1=WEIGHTS["w1"]))
    first = model.traced({"x": sample(0)})
    assert model.traced({"x": jnp.asarray(sample(1))}) is first
    assert walks == []  # it is found when it is asked
    assert {name: each.shape for name, each in first.tensors.items()} == {"w1": (8, 8), "x": (2, 8), "once": (2, 8)}
    assert first.activations.keys() == {"x", "once"}
    other = model.replace(params={"w1": WEIGHTS["w1"] * 2})
    assert (first.largest, first.head, other.traced(first.signature).largest) == (64, model.graph, 64)
    assert len(walks) == 1
    assert model.traced({"x": sample(0, 3)}).largest == 96
    assert len(walks) == 2


def test_what_is_made_with_64_bits_is_another_thing():
    model = load(written("(int64[N] x) => (int64[N] y) { y = Neg (x) }"))

    def kinds():
        return {each.dtype.name for each in model.traced({"x": np.arange(3)}).tensors.values()}

    assert kinds() == {"int32"}
    with jax.enable_x64(True):
        assert kinds() == {"int64"}
    assert kinds() == {"int32"}


def test_outputs_of_the_host_are_known_and_the_head_is_without_them():
    model = load(written("(float[N, 8] x) => (float[N, 8] y, int64[2, K] z) { y = Relu (x) z = NonZero (y) }"))
    found = model.traced({"x": sample(0)})
    assert found.on_host == {"z"}
    assert found.head.outputs == ("y",)
    assert found.tensors.keys() == {"x", "y"}


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "MOST_TRACED", 3)
    model = load(written("(float[N, 8] x) => (float[N, 8] y) { y = MatMul (x, w1) }", w1=WEIGHTS["w1"]))
    for rows in range(1, 9):
        assert model.traced({"x": sample(0, rows)}).largest == rows * 32
        assert len(model._traced) <= 3
