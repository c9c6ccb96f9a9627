"""Layer by layer: single steps are not carried on, and what is wrong is named where it is wrong."""

import dataclasses
import importlib

import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from models import Network, quantized, samples, written
from onnx import numpy_helper

from jaxq.analysis.layerwise import Difference, distance, in_chunks, rounds
from jaxq.analysis.verify import verify
from jaxq.engine import programs
from jaxq.engine.programs import Programs
from jaxq.errors import ModelError
from jaxq.graph.cut import between
from jaxq.onnx_io.load import load
from jaxq.onnx_io.save import save

pytest.importorskip("onnxruntime")
MODULE = importlib.import_module("jaxq.analysis.verify")  # `jaxq.verify` is the function
WIDTH = 32


ODD = 9  # the layer of the file that has another activation function than the others


def chaotic_network(layers: int) -> onnx.ModelProto:
    """x [N, 32] -> y [N, 32]: a quantized network in which a single step grows from layer to layer."""
    net = Network(seed=5)
    x = net.input("x", ["N", WIDTH])
    net.constant("scale", 1 / 127)
    net.constant("middle", 128, np.uint8)
    net.constant("weight_scale", 1 / 40)
    net.constant("zero", 0, np.int8)
    net.constant("bias_scale", np.float32(1 / 127) * np.float32(1 / 40))
    net.constant("bias_zero", 0, np.int32)
    for index in range(layers):
        q = net.node("QuantizeLinear", [x, "scale", "middle"], f"q{index}")
        d = net.node("DequantizeLinear", [q, "scale", "middle"], f"d{index}")
        integers = np.clip(np.rint(net.random.normal(size=(WIDTH, WIDTH)) * 40 * 2 / np.sqrt(WIDTH)), -127, 127)
        w = net.constant(f"w{index}_integers", integers, np.int8)
        b = net.constant(f"b{index}_integers", net.random.integers(-500, 500, WIDTH), np.int32)
        w = net.node("DequantizeLinear", [w, "weight_scale", "zero"], f"w{index}")
        b = net.node("DequantizeLinear", [b, "bias_scale", "bias_zero"], f"b{index}")
        x = net.node("Gemm", [d, w, b], f"dense{index}")
        x = net.node("Erf" if index == ODD else "Tanh", [x], "y" if index == layers - 1 else f"t{index}")
    net.output("y", ["N", WIDTH])
    return net.proto()


def inputs(count: int) -> list[dict[str, np.ndarray]]:
    return [{"x": np.random.default_rng(seed).uniform(-1, 1, (1, WIDTH)).astype(np.float32)} for seed in range(count)]


@pytest.fixture(scope="module")
def chaotic(tmp_path_factory):
    """The file of a network of twenty layers."""
    path = tmp_path_factory.mktemp("chaotic") / "model.onnx"
    onnx.save(chaotic_network(20), path)
    return path


def changed(source, target, **initializers):
    """A copy of a file in which some constants have other values."""
    proto = onnx.load(source)
    for tensor in proto.graph.initializer:
        if tensor.name in initializers:
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(initializers.pop(tensor.name)), tensor.name))
    assert not initializers
    onnx.save(proto, target)
    return target


def named(report) -> set[tuple[str, str]]:
    return {(fault.name, fault.runtime) for fault in report.faults if fault.op != "output"}


def test_single_steps_that_a_deep_network_amplifies_raise_no_alarm(tmp_path):
    onnx.save(chaotic_network(64), tmp_path / "model.onnx")
    found = verify(tmp_path / "model.onnx", inputs(200))
    assert max(each.typical_steps for each in found.outputs) > 5  # from end to end they are far apart
    assert found.agrees
    assert max(layer.steps for layer in found.layers) == pytest.approx(1)  # a value fell on the other side of a border
    assert "agrees: the runtime computes what the file says (65 layers plain, 65 layers optimized)" in found.table()


def test_an_operator_that_the_simulation_computes_otherwise_is_named(chaotic, monkeypatch):
    def find(name, domain, version):
        entry = plain(name, domain, version)
        if name != "Erf":
            return entry
        return dataclasses.replace(entry, function=lambda x: entry.function(x) * np.float32(1.03))

    execute = importlib.import_module("jaxq.engine.execute")
    plain = execute.find
    monkeypatch.setattr(execute, "find", find)
    monkeypatch.setattr(programs, "PROGRAMS", Programs())  # what is compiled with it serves nobody else
    found = verify(chaotic, inputs(3))
    assert not found.agrees
    assert named(found) == {(f"Erf_t{ODD}", "plain"), (f"Gemm_dense{ODD}", "optimized")}
    assert all(f"Gemm_dense{ODD}" in fault.nodes for fault in found.faults)
    assert "does not agree: of 21 layers plain, 21 layers optimized, 2 differ" in found.table()
    assert f"Erf 'Erf_t{ODD}' -> 'q{ODD + 1}', plain (in one layer with 'Gemm_dense{ODD}')" in found.table()


@pytest.mark.parametrize("way", ["plain", "optimized"])
def test_a_scale_that_is_another_in_the_runtime_is_named(chaotic, tmp_path, monkeypatch, way):
    """The runtime gets a file with another weight than the one that is simulated; once in one way of running alone."""
    weights = {each.name: numpy_helper.to_array(each) for each in onnx.load(chaotic).graph.initializer}
    other = changed(chaotic, tmp_path / "other.onnx", w7_integers=weights["w7_integers"] // 2)
    monkeypatch.setattr(MODULE, "Inner", lambda path: plain_inner(other if path == chaotic else path))
    monkeypatch.setattr(MODULE, "session", lambda path, **how: plain_session(other, **how))
    plain_inner, plain_session = inner_and_session()
    if way == "optimized":
        monkeypatch.setattr(MODULE, "Inner", plain_inner)
    found = verify(chaotic, inputs(3))
    ways = {"optimized"} if way == "optimized" else {"plain", "optimized"}
    assert named(found) == {("Gemm_dense7", each) for each in ways}


def inner_and_session():
    runtime = importlib.import_module("jaxq.onnx_io.runtime")
    return runtime.Inner, runtime.session


def test_a_zero_point_that_is_another_in_the_file_is_named(monkeypatch):
    """The writer is given another model than the one that is verified."""
    model = quantized("residual")
    tensor = "depthwise.relu"
    each = model.encodings[tensor]
    wrong = dataclasses.replace(each, zero_point=each.zero_point + 3)
    monkeypatch.setattr(MODULE, "save", lambda given, path: save(given, path))
    found = verify(model.replace(encodings={**model.encodings, tensor: wrong}), samples("residual", 2))
    assert found.agrees  # the file says the same as the model
    monkeypatch.setattr(MODULE, "save", lambda _, path: save(model, path))
    found = verify(model.replace(encodings={**model.encodings, tensor: wrong}), samples("residual", 2))
    assert not found.agrees
    assert {(fault.tensor, fault.runtime) for fault in found.faults} <= {
        (f"{name}_quantized", way) for name in (tensor, "pointwise.norm") for way in ("plain", "optimized")
    }
    assert {fault.tensor for fault in found.faults} >= {f"{tensor}_quantized"}


@pytest.mark.parametrize("scale, agrees", [(1.0, True), (1e-9, False)])
def test_a_float_bias_that_the_optimizer_makes_overflow_is_named(tmp_path, scale, agrees):
    """ONNX Runtime makes a float bias int32 in units of input scale times weight scale, and clips it."""
    proto = chaotic_network(3)
    proto.graph.initializer.append(numpy_helper.from_array(np.linspace(-1, 1, WIDTH).astype(np.float32), "b1"))
    for name in ("b1", "t1"):  # behind a Tanh it would leave the bias in float
        del proto.graph.node[[node.output[0] for node in proto.graph.node].index(name)]
    proto.graph.initializer.append(numpy_helper.from_array(np.float32(scale / 40), "small"))
    makers = {node.output[0]: node for node in proto.graph.node}
    makers["w1"].input[1], makers["q2"].input[0] = "small", "dense1"
    onnx.save(proto, tmp_path / "model.onnx")
    found = verify(tmp_path / "model.onnx", inputs(3))
    assert found.agrees is agrees
    assert named(found) == (set() if agrees else {("Gemm_dense1", "optimized")})


# --------------------------------------------------------------------------------------- what is hard to compare, and is


def test_a_body_is_one_layer():
    found = verify(quantized("branching"), samples("branching", 2))
    assert found.agrees
    inside = [layer for layer in found.layers if layer.op == "If"]
    assert {layer.runtime for layer in inside} == {"plain", "optimized"}
    assert all(layer.tensor == "features" for layer in inside)


def test_files_with_external_data_are_looked_into(tmp_path):
    save(quantized("residual"), tmp_path / "model.onnx", external_data=True)
    found = verify(tmp_path / "model.onnx", samples("residual", 2))
    assert found.agrees
    assert not found.unseen
    assert len(found.layers) > 10


def test_chunks_make_no_difference(monkeypatch):
    whole = verify(quantized("residual"), samples("residual", 2))
    monkeypatch.setattr(importlib.import_module("jaxq.analysis.layerwise"), "CHUNK_BYTES", 600)
    parts = verify(quantized("residual"), samples("residual", 2))
    assert [layer.tensor for layer in parts.layers] == [layer.tensor for layer in whole.layers]
    assert [layer.steps for layer in parts.layers] == pytest.approx([layer.steps for layer in whole.layers], abs=1e-3)


def test_rows_that_values_select_are_a_layer_of_their_own(tmp_path):
    proto = written(
        """(float[N, 4] x) => (int64[2, K] places, float[N, 4] y) {
        q = QuantizeLinear (x, scale, zero) d = DequantizeLinear (q, scale, zero) y = Relu (d)
        places = NonZero (y) }""",
        scale=np.float32(0.1),
        zero=np.uint8(128),
    )
    onnx.save(proto, tmp_path / "model.onnx")
    feeds = [{"x": np.random.default_rng(seed).normal(size=(1, 4)).astype(np.float32)} for seed in range(4)]
    found = verify(tmp_path / "model.onnx", feeds)
    assert found.agrees
    selected = [layer for layer in found.layers if layer.op == "NonZero"]
    assert [layer.same_rows for layer in selected] == [1.0, 1.0]


def test_chance_is_no_fault(tmp_path):
    proto = written(
        """(float[N, 4] x) => (float[N, 4] y) { n = RandomNormalLike (x) s = Add (x, n)
        q = QuantizeLinear (s, scale, zero) y = DequantizeLinear (q, scale, zero) }""",
        scale=np.float32(0.1),
        zero=np.uint8(128),
    )
    onnx.save(proto, tmp_path / "model.onnx")
    assert verify(tmp_path / "model.onnx", [np.zeros((8, 4), np.float32)]).agrees


@pytest.mark.filterwarnings("ignore:the model is in float:jaxq.errors.JaxqWarning")
def test_layers_that_the_runtime_does_not_show_are_judged_by_the_outputs_and_that_is_said(monkeypatch):
    class Closed(inner_and_session()[0]):
        def open(self, names):
            raise ModelError("no such outputs")

    monkeypatch.setattr(MODULE, "Inner", Closed)
    found = verify(quantized("residual"), samples("residual", 2))
    assert found.agrees
    assert found.unseen == {"plain": "no such outputs", "optimized": "no such outputs"}
    assert "note: plain, layer by layer: not compared" in found.table()


# ----------------------------------------------------------------------------------------------------------- the parts


def apart(ours, theirs) -> Difference:
    ours, theirs = (jnp.asarray(each) for each in (ours, theirs))
    found = Difference(None)
    found.add(distance(ours, theirs), ours.size)
    return found


@pytest.mark.parametrize(
    "ours, theirs, largest, squared",
    [
        (np.uint8([1, 255]), np.uint8([1, 0]), 255, 255**2),
        (np.float32([0.5, 2]), np.float32([1, 2]), 0.5, 0.25),
        (np.float32([np.nan, np.inf, -np.inf]), np.float32([np.nan, np.inf, -np.inf]), 0, 0),
        (np.float32([np.nan, 1]), np.float32([1, 1]), np.inf, np.inf),
        (np.float32([1, 1]), np.float32([np.inf, 3]), np.inf, np.inf),
        (np.float32([np.inf]), np.float32([-np.inf]), np.inf, np.inf),
        (np.int32([7, 8, 9]), np.int32([7, 80, 90]), 1, 2),  # indices that differ are one apart
        (np.bool_([True, False]), np.bool_([True, True]), 1, 1),
        (np.float32([1, 2]), np.float32([1, 2, 3]), np.inf, np.inf),
        (np.zeros(0, np.float32), np.zeros(0, np.float32), 0, 0),
    ],
)
def test_distances(ours, theirs, largest, squared):
    found = apart(ours, theirs)
    assert found.largest == largest
    assert found.squared == pytest.approx(squared)


def test_differences_of_floats_are_in_steps_of_eight_bits_over_all_samples():
    found = Difference(None)
    for theirs in (np.float32([0, 2.55]), np.float32([-2.55, 0])):
        found.add(distance(jnp.asarray(theirs + np.float32(0.02)), jnp.asarray(theirs)), 2)
    assert found.steps == pytest.approx(1, rel=1e-4)
    assert found.typical_steps == pytest.approx(1, rel=1e-4)


def test_roundings_of_a_layer_are_counted():
    layer = between(load(chaotic_network(3)).graph, ["q0", "q1", "q2"], ["q2"])
    assert sum(rounds(node, {}) for node in layer.nodes) == 1


def test_chunks_hold_what_fits(monkeypatch):
    class Shape:
        size, dtype = 10, np.dtype(np.float32)

    monkeypatch.setattr(importlib.import_module("jaxq.analysis.layerwise"), "CHUNK_BYTES", 100)
    assert list(in_chunks(list("abcde"), dict.fromkeys("abcde", Shape))) == [["a", "b", "c"], ["d", "e"]]
