"""What is written is what was simulated: valid, readable by runtimes of today, complete or not there."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import NETWORKS, quantized, residual_network, run_onnx, samples, smooth, written
from mutations import feed_for, seeds
from onnx import TensorProto, helper, numpy_helper

import jaxq
from jaxq.engine.model import Model
from jaxq.errors import ConfigError, ModelError
from jaxq.graph.fusion import fuse
from jaxq.graph.ir import FrozenDict, Graph, Literal
from jaxq.numerics.quantizer import E4M3, E5M2, IntType, QuantParams
from jaxq.onnx_io import save as onnx_export
from jaxq.onnx_io.flax import from_flax, to_flax
from jaxq.onnx_io.load import load
from jaxq.onnx_io.qdq import storage
from jaxq.onnx_io.save import ir_version, save, to_proto

pytest.importorskip("onnxruntime")
EVERY = pytest.mark.parametrize("name", NETWORKS)


def io(proto: onnx.ModelProto) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    return list(proto.graph.input), list(proto.graph.output)


def standard_opset(proto: onnx.ModelProto) -> int:
    return next(each.version for each in proto.opset_import if each.domain == "")


# ------------------------------------------------------------------------------------------------------- float models


@EVERY
def test_a_float_model_is_written_as_it_was_read(name):
    proto = NETWORKS[name][0]()
    again = to_proto(load(proto))
    onnx.checker.check_model(again, full_check=True)
    assert io(again) == io(proto)
    assert standard_opset(again) == standard_opset(proto)
    (feed,) = samples(name, 1)
    for key, value in run_onnx(proto, feed).items():
        np.testing.assert_allclose(run_onnx(again, feed)[key], value, rtol=1e-5, atol=1e-6)


def test_a_model_that_is_read_and_written_twice_is_the_same():
    proto = to_proto(load(residual_network()))
    assert to_proto(load(proto)).SerializeToString() == proto.SerializeToString()


VALID = seeds()  # control flow, functions, shape arithmetic, recurrent and integer operators, the demo's model
X8 = np.arange(8, dtype=np.float32)
EYE = np.array([[1, -2], [3, 7]])
KINDS = {
    "an initializer as output": written("(float[2] x) => (float[2] y, float[2] w) { y = Add (x, w) }", w=np.float32([1, 2])),
    "an input as output": written("(float[N] x) => (float[N] x, float[N] y) { y = Neg (x) }"),
    "nothing but an input": written("(float[N] x) => (float[N] x) { }"),
    "a constant as output": written(
        "(float[N] x) => (int64[2] c, float[N] y) { y = Neg (x)  c = Constant <value_ints = [1, 2]> () }"
    ),
    "an input that nobody reads": written("(float[N, 4] x, float[M] z) => (float[N, 4] y) { y = Neg (x) }"),
    "an absent input": written("(float[N, 4] x) => (float[N, 4] y) { y = Clip (x, , high) }", high=np.float32(0.5)),
    "float16": written("(float16[N, 2] x) => (float16[N, 2] y) { y = MatMul (x, w) }", w=EYE.astype(np.float16)),
    "bfloat16": written("(float[N, 2] x) => (float[N, 2] y) { c = Cast <to = 16> (x)  d = Add (c, w)  y = Cast <to = 1> (d) }",
                        w=EYE.astype(jnp.bfloat16)),
    **{
        dtype: written("(float[N, 2] x) => (float[N, 2] y) { d = DequantizeLinear (w, s)  y = MatMul (x, d) }", opset=21,
                       w=EYE.astype(jnp.dtype(dtype)), s=np.float32(0.5))
        for dtype in ("int4", "uint8", "float8_e4m3fn", "float8_e5m2")
    },
}  # fmt: skip


@pytest.mark.parametrize("proto", [*VALID.values(), *KINDS.values()], ids=[*VALID, *KINDS])
def test_a_graph_of_any_kind_is_written_with_its_names_and_read_as_the_same_function(proto, tmp_path):
    model = load(proto)
    save(model, tmp_path / "again.onnx")
    again = onnx.load(tmp_path / "again.onnx")
    onnx.checker.check_model(again, full_check=True)
    assert io(again) == io(proto)  # names, types and symbolic sizes
    feed = feed_for(model)
    once, twice = model(feed), load(again)(feed)
    for name, value in once.items():
        assert twice[name].dtype == value.dtype
        np.testing.assert_array_equal(np.asarray(twice[name]), np.asarray(value))
    if proto is KINDS["bfloat16"]:
        return  # which ONNX Runtime does not compute in on a CPU
    for name, value in run_onnx(again, feed).items():
        np.testing.assert_allclose(np.asarray(once[name], np.float64), value.astype(np.float64), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["residual", "demo", "function", "loop"])
def test_a_fused_and_tuned_model_keeps_its_names_and_its_function(name, tmp_path):
    original = load(VALID[name])
    fused = original.replace(**dict(zip(("graph", "params"), fuse(original.graph, original.params), strict=True)))
    module = to_flax(fused)
    for variable in module.params.values():
        variable[...] = variable[...] * 1.5  # stands for training
    tuned = from_flax(module)
    save(tuned, tmp_path / "tuned.onnx")
    again = onnx.load(tmp_path / "tuned.onnx")
    onnx.checker.check_model(again, full_check=True)
    assert io(again) == io(VALID[name])
    feed = feed_for(original)
    outputs = tuned(feed)
    for key, value in run_onnx(again, feed).items():
        np.testing.assert_allclose(outputs[key], value, rtol=1e-3, atol=1e-4)
    for key, value in original(feed).items():
        np.testing.assert_allclose(fused(feed)[key], value, rtol=1e-3, atol=1e-4)
    if name in ("residual", "demo"):
        assert "BatchNormalization" not in {node.op_type for node in again.graph.node}


def test_declared_shapes_of_inner_tensors_and_symbolic_names_are_kept():
    proto = written("(float[batch, 4] x) => (float[batch, 4] y) { a = Neg (x)  y = Relu (a) }")
    proto.graph.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, ["batch", 4]))
    assert list(to_proto(load(proto)).graph.value_info) == list(proto.graph.value_info)


def test_attributes_and_constants_of_every_kind_survive():
    nodes = [
        helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT64),
        helper.make_node("Mod", ["i", "three"], ["m"], fmod=0),
        helper.make_node("Cast", ["m"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("ConstantOfShape", ["shape"], ["ones"], value=numpy_helper.from_array(np.float32([1]))),
        helper.make_node("Elu", ["f"], ["e"], alpha=0.5),
        helper.make_node("Einsum", ["e", "ones"], ["y"], equation="ij,jk->ik"),
        helper.make_node(
            "StringNormalizer", ["words"], ["z"], case_change_action="LOWER", stopwords=["b"], is_case_sensitive=0
        ),
    ]
    proto = written("(float[N, 2] x) => (float[N, 3] y) { y = Relu (x) }", three=np.array(3), shape=np.array([2, 3]),
                    words=np.array(["a", "b"], object))  # fmt: skip
    del proto.graph.node[:]
    proto.graph.node.extend(nodes[:-1])
    again = to_proto(load(proto))
    feed = {"x": np.float32([[1.5, -7]])}
    np.testing.assert_array_equal(run_onnx(again, feed)["y"], run_onnx(proto, feed)["y"])


def test_string_constants_are_written():
    literal = Literal.of(np.array(["a", "bc"], object))
    graph = Graph((), ("x",), ("x",), constants=FrozenDict({"words": literal}))
    (found,) = to_proto(Model(graph, {})).graph.initializer
    assert numpy_helper.to_array(found).tolist() == ["a", "bc"]


@pytest.mark.parametrize(
    "opsets, version",
    [({"": 7}, 4), ({"": 9}, 4), ({"": 13}, 7), ({"": 17}, 8), ({"": 21}, 10), ({"": 25}, 13), ({"": 99}, 13), ({}, 4)],
)
def test_the_ir_version_is_the_lowest_for_the_opset_and_never_too_new(opsets, version):
    assert ir_version(opsets) == version


# -------------------------------------------------------------------------------------------------- quantized models


@EVERY
def test_the_file_computes_in_the_runtime_what_was_simulated(name):
    model = quantized(name)
    proto = to_proto(model)
    for feed in samples(name, 3, first=100):
        found = run_onnx(proto, feed)
        for key, value in model(feed).items():
            # Sums in another order may put a value on the other side of a rounding border; these networks are shallow.
            step = float(np.ptp(found[key])) / 255
            np.testing.assert_allclose(found[key], value, atol=max(step, 1e-6))
            assert np.median(np.abs(found[key] - value)) <= 1e-5 * max(float(np.abs(found[key]).max()), 1)


@EVERY
def test_the_file_read_back_is_the_simulation(name):
    model = quantized(name)
    again = load(to_proto(model))
    assert again.inputs == model.inputs
    assert again.outputs == model.outputs
    (feed,) = samples(name, 1, first=200)
    for key, value in model(feed).items():
        np.testing.assert_allclose(again(feed)[key], value, rtol=1e-5, atol=1e-6)


@EVERY
def test_the_file_is_valid_for_runtimes_of_today_and_keeps_its_interface(name):
    before, proto = NETWORKS[name][0](), to_proto(quantized(name))
    onnx.checker.check_model(proto, full_check=True)
    assert io(proto) == io(before)
    assert standard_opset(proto) == max(13, standard_opset(before))
    assert proto.ir_version <= 13
    assert proto.producer_name == "jaxq"


def test_the_raised_float_model_is_the_original():
    """What the format does to old models is not to be blamed on quantization."""
    for name in ("opset 7", "opset 11"):
        before = load(NETWORKS[name][0]())
        off = {
            key: dataclasses.replace(each, enabled=np.bool_(False)) for key, each in quantized(name).encodings.items()
        }
        (feed,) = samples(name, 1)
        after = quantized(name).replace(encodings=off)(feed)["probabilities"]
        np.testing.assert_allclose(after, before(feed)["probabilities"], atol=0.02)  # biases have been corrected


def test_the_file_says_who_made_it_and_how():
    proto = to_proto(quantized("residual"))
    found = {each.key: each.value for each in proto.metadata_props}
    assert found["jaxq.version"] == jaxq.__version__
    assert found["jaxq.preset"] == "mixed"
    assert found["jaxq.target"] == "onnxruntime"
    assert found["jaxq.options"] == "{}"
    assert found["jaxq.calibration_samples"] == "12"
    assert len(found["jaxq.calibration_sha256"]) == 64


def test_metadata_of_the_float_model_travels_along():
    model = quantized("residual")
    model = model.replace(metadata=model.metadata | {"classes": "a b"})
    assert {each.key: each.value for each in to_proto(model).metadata_props}["classes"] == "a b"


def test_weights_are_int8_biases_int32_and_activations_uint8():
    proto = to_proto(quantized("residual"))
    stored = {each.name: numpy_helper.to_array(each) for each in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Conv":
            weight, bias = (stored[name + "_quantized"] for name in node.input[1:])
            assert (weight.dtype, bias.dtype) == (np.int8, np.int32)
            assert weight.min() >= -127
            assert np.abs(weight).max(axis=(1, 2, 3)).tolist() == [127] * 8
            assert stored[node.input[1] + "_scale"].shape == (8,)
        if node.op_type == "QuantizeLinear":
            assert stored[node.input[2]].dtype == np.uint8
            assert stored[node.input[1]].shape == ()
    assert not {name for name, value in stored.items() if value.dtype == np.float32 and not name.endswith("_scale")}


def test_weights_have_no_quantize_nodes():
    proto = to_proto(quantized("residual"))
    made = {name for node in proto.graph.node for name in node.output} | {each.name for each in proto.graph.input}
    assert all(node.input[0] in made for node in proto.graph.node if node.op_type == "QuantizeLinear")


# ------------------------------------------------------------------------------------- any encodings, anywhere in a graph

LINEAR = load(
    written("(float[N, 4] x) => (float[N, 3] y) { h = Relu (x)  y = MatMul (h, w) }",
            w=np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32))
)  # fmt: skip
scales = st.floats(2.0**-6, 0.5, width=32)
grids = st.builds(IntType, bits=st.sampled_from([4, 7, 8, 16]), signed=st.booleans()) | st.sampled_from([E4M3, E5M2])


@settings(max_examples=25)
@given(data=st.data(), grid=grids, seed=st.integers(0, 99))
def test_any_encodings_are_written_as_they_are_simulated(data, grid, seed):
    def params(*shape: int) -> QuantParams:
        scale = np.float32(data.draw(st.lists(scales, min_size=shape[-1], max_size=shape[-1]))).reshape(shape)
        zero_point = data.draw(st.integers(grid.qmin, grid.qmax)) if isinstance(grid, IntType) else 0
        return QuantParams.of(scale, zero_point, grid)

    model = LINEAR.replace(encodings={"x": params(1, 1), "h": params(1, 1), "w": params(1, 3)})
    feed = {"x": smooth(2, 4, seed=seed)}
    proto = to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    np.testing.assert_allclose(run_onnx(proto, feed)["y"], model(feed)["y"], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("axis", [0, 1])
def test_blocks_of_a_weight_have_scales_of_their_own(axis, bits):
    weight = np.random.default_rng(1).normal(size=(32, 8)).astype(np.float32)
    text = "(float[N, 32] x) => (float[N, 8] y) { y = MatMul (x, w) }"
    shape = [(4, 8), (32, 2)][axis]
    scale = np.random.default_rng(2).uniform(0.01, 0.2, shape).astype(np.float32)
    model = load(written(text, w=weight)).replace(encodings={"w": QuantParams.of(scale, 0, IntType(bits))})
    proto = to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    (node,) = [node for node in proto.graph.node if node.op_type == "DequantizeLinear"]
    found = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
    assert found == {"axis": axis, "block_size": [8, 4][axis]}
    feed = {"x": smooth(3, 32)}
    np.testing.assert_allclose(run_onnx(proto, feed)["y"], model(feed)["y"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(load(proto)(feed)["y"], model(feed)["y"], rtol=1e-5, atol=1e-5)


EVERYWHERE = QuantParams.of(np.float32(0.125).reshape(1, 1), 128, IntType(8, signed=False))
PLACES = {
    "a graph output": "(float[N, 4] x) => (float[N, 4] y) { y = Neg (x) }",
    "a graph output that is read": "(float[N, 4] x) => (float[N, 4] z, float[N, 4] y) { y = Neg (x)  z = Exp (y) }",
    "a graph input": "(float[N, 4] y) => (float[N, 4] z) { z = Exp (y) }",
    "a graph input that is an output": "(float[N, 4] y) => (float[N, 4] y2) { y2 = Identity (y) }",
    "a tensor that is read twice": "(float[N, 4] x) => (float[N, 4] z) { y = Neg (x)  a = Exp (y)  z = Add (a, y) }",
    "a copy for quantized readers": "(float[N, 4] x) => (float[N, 4] z) { y = Identity (x)  a = Exp (y)  z = Add (a, x) }",
    "an output that is a copy": "(float[N, 4] x) => (float[N, 4] y) { a = Exp (x)  y = Identity (a) }",
    "a tensor that branches read": """(float[N, 4] x, bool b) => (float[N, 4] z) { y = Neg (x)
        z = If (b) <then_branch = t () => (float[N, 4] c) { c = Exp (y) },
                    else_branch = e () => (float[N, 4] d) { d = Neg (y) }> }""",
    "a tensor within a branch": """(float[N, 4] x, bool b) => (float[N, 4] z) {
        z = If (b) <then_branch = t () => (float[N, 4] c) { y = Neg (x)  c = Exp (y) },
                    else_branch = e () => (float[N, 4] d) { d = Neg (x) }> }""",
}  # fmt: skip


@pytest.mark.parametrize("text", PLACES.values(), ids=PLACES)
def test_a_quantizer_can_stand_on(text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxq.onnx_io.load.clean", lambda graph, params: (graph, params))  # would drop the copies
        model = load(written(text))
    model = model.replace(encodings={"y": EVERYWHERE})
    feed = {
        name: smooth(2, 4, seed=3) if declared.dtype == "float32" else np.array(True)
        for name, declared in model.inputs.items()
    }
    proto = to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    assert {each.name for each in proto.graph.output} == set(model.graph.outputs)
    found = run_onnx(proto, feed)
    for name, value in model(feed).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6)


def test_a_quantizer_for_the_whole_tensor_needs_no_new_opset():
    model = load(written("(float[N, 4] x) => (float[N, 4] y) { h = Relu (x)  y = Neg (h) }", opset=13))
    assert standard_opset(to_proto(model.replace(encodings={"h": EVERYWHERE}))) == 13


@pytest.mark.parametrize(
    "grid, dtype",
    [(IntType(8), "int8"), (IntType(8, narrow=True), "int8"), (IntType(8, signed=False), "uint8"), (IntType(4), "int4"),
     (IntType(4, signed=False), "uint4"), (IntType(16), "int16"), (IntType(32), "int32"), (IntType(7), "int8"),
     (E4M3, "float8_e4m3fn"), (E5M2, "float8_e5m2")],
)  # fmt: skip
def test_numbers_are_stored_in_the_smallest_type_that_holds_them(grid, dtype):
    assert storage(QuantParams.of(np.ones((1,)), 0, grid))[0] == dtype


def test_a_grid_that_nothing_holds_is_an_error():
    with pytest.raises(ModelError, match="no ONNX integer type holds the grid from 0 to 4294967295"):
        storage(QuantParams(np.ones(1), 0, 0, 2**32 - 1))


# ------------------------------------------------------------------------------------------------------------- files


def test_external_data_are_written_beside_the_file(tmp_path):
    save(quantized("transformer"), tmp_path / "model.onnx", external_data=True)
    assert {path.suffix for path in tmp_path.iterdir()} == {".onnx", ".data"}
    proto = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    outside = {each.name for each in proto.graph.initializer if each.data_location == TensorProto.EXTERNAL}
    assert "wide.weight_quantized" in outside  # small ones stay inside
    (feed,) = samples("transformer", 1)
    found = run_onnx(str(tmp_path / "model.onnx"), feed)["mixed"]
    np.testing.assert_array_equal(found, run_onnx(to_proto(quantized("transformer")), feed)["mixed"])


def test_external_data_stay_external(tmp_path):
    onnx.save(
        residual_network(), tmp_path / "float.onnx", save_as_external_data=True, location="weights", size_threshold=0
    )
    _, data = save(load(tmp_path / "float.onnx"), tmp_path / "again.onnx")
    assert data.is_file()
    x = smooth(1, 3, 8, 8)
    np.testing.assert_array_equal(load(tmp_path / "again.onnx")([x])["scores"], load(residual_network())([x])["scores"])


def test_a_quantized_model_of_external_data_has_them_too(tmp_path):
    proto = written("(float[N, 16] x) => (float[N, 32] y) { y = MatMul (x, w) }", w=smooth(16, 32))
    onnx.save(proto, tmp_path / "float.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    _, data = save(jaxq.quantize(tmp_path / "float.onnx", [smooth(4, 16)]), tmp_path / "int8.onnx")
    assert data.is_file()


@pytest.mark.parametrize("external", [False, True])
def test_an_output_whose_rank_the_data_decide_is_written_without_a_shape(tmp_path, external):
    x = np.arange(128, dtype=np.float32)
    proto = written("(float[N] x, int64[R] s) => (float[N] y, float[N] z) { y = Reshape (x, s)  z = Add (x, w) }", w=x)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    save(load(proto), tmp_path / "model.onnx", external_data=external)
    assert not onnx.load(tmp_path / "model.onnx").graph.output[0].type.tensor_type.HasField("shape")
    assert len(list(tmp_path.iterdir())) == 1 + external
    feed = {"x": x, "s": np.array([2, 8, 8])}
    again = load(tmp_path / "model.onnx")
    np.testing.assert_array_equal(again(feed)["y"], run_onnx(proto, feed)["y"])


def test_what_onnx_ir_cannot_write_is_an_error_of_jaxq(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise onnx_export.ir.serde.SerdeError("no type")

    monkeypatch.setattr(onnx_export.ir, "save", fail)
    with pytest.raises(ModelError, match="cannot be written as ONNX: no type"):
        save(load(residual_network()), tmp_path / "model.onnx")


def test_a_model_replaces_its_own_file(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(residual_network(), path, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    x = smooth(1, 3, 8, 8)
    before = load(path)([x])["scores"]
    save(load(path), path)
    np.testing.assert_array_equal(load(path)([x])["scores"], before)


def test_only_the_file_is_left(tmp_path):
    save(quantized("residual"), tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def failing(error: BaseException):
    def fail(*_, **__):
        raise error

    return fail


@pytest.mark.parametrize("before", [None, b"the old one"], ids=["nothing there", "an old file"])
@pytest.mark.parametrize(
    "error, raised, message",
    [
        (onnx.checker.ValidationError("bad node"), ModelError, "not valid ONNX; this is a defect of jaxq.*bad node"),
        (OSError(28, "No space left on device"), ConfigError, "cannot write '.*model.onnx': No space left on device"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
    ids=["not valid", "disk full", "interrupted"],
)
def test_when_writing_fails_all_is_as_before(tmp_path, monkeypatch, error, raised, message, before):
    path = tmp_path / "model.onnx"
    if before:
        path.write_bytes(before)
    monkeypatch.setattr(onnx_export.onnx.checker, "check_model", failing(error))
    with pytest.raises(raised, match=message):
        save(load(residual_network()), path, external_data=True)
    assert [each.name for each in tmp_path.iterdir()] == (["model.onnx"] if before else [])
    assert not before or path.read_bytes() == before


@pytest.mark.parametrize(
    "name, message",
    [
        ("", "it is a folder; name a file in it"),
        ("nowhere/model.onnx", "does not exist; make it first"),
        ("file/model.onnx", "is a file, not a folder"),
    ],
)
def test_a_path_that_cannot_be_written_is_refused(tmp_path, name, message):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=f"cannot write '.*': .*{message}"):
        save(load(residual_network()), tmp_path / name)


def test_params_on_a_device_are_written_too(tmp_path):
    model = load(residual_network())
    moved = model.replace(params={name: jnp.asarray(value) for name, value in model.params.items()})
    save(moved, tmp_path / "model.onnx")
    save(model, Path(tmp_path / "plain.onnx"))
    assert (tmp_path / "model.onnx").read_bytes() == (tmp_path / "plain.onnx").read_bytes()


def test_a_branch_keeps_its_own_weights_at_the_top():
    proto = to_proto(quantized("branching"))
    branches = [attribute.g for node in proto.graph.node for attribute in node.attribute if attribute.HasField("g")]
    assert len(branches) == 2
    assert not any(branch.initializer for branch in branches)
    assert {"slow.weight_quantized", "fast.weight_quantized"} <= {each.name for each in proto.graph.initializer}


# ------------------------------------------------------------------------------------------------------------- types


def test_a_file_whose_types_do_not_fit_is_not_written(tmp_path):
    """A quantizer of float64, which placement never makes, is what no runtime loads."""
    model = load(written("(double[N, 4] x) => (double[N, 4] y) { y = Relu (x) }")).replace(encodings={"x": EVERYWHERE})
    for external in (False, True):
        with pytest.raises(ModelError, match=r"not valid ONNX; this is a defect of jaxq.*double"):
            save(model, tmp_path / "m.onnx", external_data=external)
    assert list(tmp_path.iterdir()) == []


def test_types_that_did_not_fit_before_are_said_and_written(tmp_path):
    proto = written(
        "(int32[N, 4] x, float[N, 4] z) => (int32[N, 4] y, float[N, 4] u) { y = Relu (x)  u = Neg (z) }", opset=13
    )
    for encodings in ({}, {"z": EVERYWHERE}):
        with pytest.warns(jaxq.JaxqWarning, match=r"types in the model do not fit its operators.*Relu.*int32"):
            save(load(proto).replace(encodings=encodings), tmp_path / "m.onnx")
        assert load(tmp_path / "m.onnx").outputs.keys() == {"y", "u"}


def test_operators_of_other_domains_and_declared_shapes_are_no_fault(tmp_path):
    proto = written("(float[N, 4] x) => (float[N, 7] y) { h = Neg (x)  y = Relu (h) }")
    proto.graph.node[0].CopyFrom(helper.make_node("Gelu", ["x"], ["h"], domain="com.microsoft"))
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    save(load(proto).replace(encodings={"h": EVERYWHERE}), tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").is_file()
