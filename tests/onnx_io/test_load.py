"""Reading ONNX: names stay, structure and numbers come apart, and what is wrong is said in one sentence."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import (
    branching_network,
    free_size_network,
    old_network,
    residual_network,
    run_onnx,
    shuffle_network,
    smooth,
    transformer_block,
    written,
)
from onnx import TensorProto, helper, numpy_helper

from jaxq.errors import ModelError, UnsupportedOpError
from jaxq.graph.ir import Graph
from jaxq.onnx_io.load import load
from jaxq.ops import table

RELU = "(float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }"


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(residual_network(), path)
    return path


def external(folder: Path, **changes: str) -> Path:
    """A model whose weights lie in a second file; `changes` go into where the model says they lie."""
    path = folder / "model.onnx"
    onnx.save(residual_network(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        entry.value = changes.get(entry.key, entry.value)
    path.write_bytes(model.SerializeToString())
    return path


# ---------------------------------------------------------------------------------------------------- what can be loaded

NETWORKS = {
    "residual": (residual_network(), {"image": smooth(3, 3, 8, 8)}),
    "fixed batch": (residual_network(1), {"image": smooth(1, 3, 8, 8)}),
    "shuffle": (shuffle_network(), {"image": smooth(3, 3, 8, 8)}),
    "transformer": (transformer_block(), {"tokens": smooth(2, 6, 16)}),
    "free size": (free_size_network(), {"image": smooth(2, 1, 6, 10)}),
    "branching": (branching_network(), {"sound": smooth(2, 1, 16), "rate": np.array(16000)}),
    **{f"opset {opset}": (old_network(opset), {"image": smooth(1, 3, 8, 8)}) for opset in (7, 9, 11)},
}


@pytest.mark.parametrize("proto, feed", NETWORKS.values(), ids=NETWORKS)
def test_a_loaded_network_computes_what_the_runtime_computes(proto, feed):
    pytest.importorskip("onnxruntime")
    outputs = load(proto)(feed)
    for name, value in run_onnx(proto, feed).items():
        assert outputs[name].dtype == value.dtype
        np.testing.assert_allclose(outputs[name], value, rtol=1e-4, atol=1e-5)


def test_all_sources_give_the_same_model(file):
    model = load(file)
    for source in (str(file), file.read_bytes(), onnx.load(file)):
        other = load(source)
        assert other.graph == model.graph
        assert other.params.keys() == model.params.keys()
        assert all((other.params[name] == value).all() for name, value in model.params.items())
    assert load(model) is model


def test_names_types_and_metadata_are_kept():
    proto = residual_network()
    helper.set_model_props(proto, {"author": "somebody", "classes": "a b"})
    model = load(proto)
    assert {name: str(each) for name, each in model.inputs.items()} == {"image": "float32[N, 3, 8, 8]"}
    assert {name: str(each) for name, each in model.outputs.items()} == {"scores": "float32[N, 5]"}
    assert [node.name for node in model.graph.nodes] == [node.name for node in proto.graph.node]
    assert set(model.params) == {each.name for each in proto.graph.initializer}
    assert model.metadata == {"author": "somebody", "classes": "a b"}


def test_structure_is_hashable_and_holds_no_weights():
    for proto, _ in NETWORKS.values():
        model = load(proto)
        assert isinstance(hash(model.graph), int)
        assert all(value.dtype.kind == "f" for value in model.params.values())
        assert all(
            literal.array.dtype.kind != "f" or literal.array.size <= 16 for literal in model.graph.constants.values()
        )


def test_external_data_stay_on_disk(tmp_path):
    model = load(external(tmp_path))
    weight = model.params["stem.weight"]
    while isinstance(weight, np.ndarray) and weight.base is not None:
        weight = weight.base
    assert "mmap" in type(weight).__name__ + type(getattr(weight, "obj", None)).__name__
    plain = load(residual_network())
    for name, value in plain.params.items():
        np.testing.assert_array_equal(model.params[name], value)


def test_initializers_that_are_listed_as_inputs_are_weights():
    """As in files of before IR version 4."""
    proto = written(
        "(float[N, 2] x, float[2, 2] w) => (float[N, 2] y) { y = MatMul (x, w) }", w=np.eye(2, dtype=np.float32)
    )
    model = load(proto)
    assert list(model.inputs) == ["x"]
    assert set(model.params) == {"w"}


def test_nodes_without_names_get_one_and_names_used_twice_become_two():
    text = "(float[N, 4] x) => (float[N, 4] y) { a = Relu (x)  b = Relu (a)  [r] c = Neg (b)  [r] y = Neg (c) }"
    assert [node.name for node in load(written(text)).graph.nodes] == ["Relu", "Relu#2", "r", "r#2"]


def test_a_tensor_name_that_both_branches_use_becomes_two():
    text = """(float[N, 2] x, bool b) => (float[N, 2] y) {
        y = If (b) <then_branch = t () => (float[N, 2] c) { c = Relu (x) },
                    else_branch = e () => (float[N, 2] c) { c = Neg (x) }> }"""
    graph = load(written(text)).graph
    names = [name for _, node in graph.walk() for name in node.outputs]
    assert len(names) == len(set(names))
    assert isinstance(graph.nodes[0].attributes["then_branch"], Graph)
    assert load(written(text))({"x": np.float32([[1, -1]]), "b": np.array(True)})["y"].tolist() == [[1, 0]]


def test_nodes_in_any_order_are_sorted():
    proto = residual_network()
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend(reversed(nodes))
    x = smooth(1, 3, 8, 8)
    np.testing.assert_array_equal(load(proto)([x])["scores"], load(residual_network())([x])["scores"])


def test_functions_are_inlined():
    proto = written("(float[N, 2] x) => (float[N, 2] y) { y = local.Twice (x) }")
    proto.opset_import.append(helper.make_opsetid("local", 1))
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    proto.functions.append(helper.make_function("local", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 17)]))
    assert [node.op for node in load(proto).graph.nodes] == ["Add"]
    np.testing.assert_array_equal(load(proto)([np.float32([[1, 2]])])["y"], [[2, 4]])


@pytest.mark.parametrize("kind, value", [
    ("value_float", 2.0), ("value_floats", [2.0]), ("value_int", 2), ("value_ints", [2]),
    ("value", numpy_helper.from_array(np.float32([2]))),
])  # fmt: skip
def test_constants_of_every_kind_are_read(kind, value):
    constant = helper.make_node("Constant", [], ["c"], **{kind: value})
    cast = [helper.make_node("Cast", ["c"], ["d"], to=TensorProto.FLOAT), helper.make_node("Mul", ["x", "d"], ["y"])]
    proto = written(RELU)
    del proto.graph.node[:]
    proto.graph.node.extend([constant, *cast])
    np.testing.assert_array_equal(load(proto)([np.ones((1, 4), np.float32)])["y"], np.full((1, 4), 2))


# ------------------------------------------------------------------------------------------------------- what is refused


@dataclass(frozen=True)
class Bad:
    """How to make a bad file in a folder, and what is said of it."""

    make: Callable[[Path], Path]
    message: str


def bytes_of(content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "model.onnx").write_bytes(content)
        return folder / "model.onnx"

    return make


def proto_of(proto: onnx.ModelProto) -> Callable[[Path], Path]:
    return bytes_of(proto.SerializeToString())


def with_opset(version: int) -> onnx.ModelProto:
    proto = written(RELU)
    proto.opset_import[0].version = version
    return proto


def truncated_weights(folder: Path) -> Path:
    path = external(folder)
    (folder / "weights.bin").write_bytes((folder / "weights.bin").read_bytes()[:100])
    return path


def missing_weights(folder: Path) -> Path:
    path = external(folder)
    (folder / "weights.bin").unlink()
    return path


def linked_weights(folder: Path) -> Path:
    (folder / "inner").mkdir()
    path = external(folder / "inner")
    (folder / "inner" / "weights.bin").rename(folder / "elsewhere.bin")
    (folder / "inner" / "weights.bin").symlink_to(folder / "elsewhere.bin")
    return path


NO_ONNX = "'.*model.onnx' is not an ONNX file, or it is truncated"
OUTSIDE = "outside of the model's folder; this is refused"
WHOLE = residual_network().SerializeToString()

BAD = {
    "no such file": Bad(lambda folder: folder / "modle.onnx", r"no such file: '.*modle\.onnx'"),
    "no such folder": Bad(lambda folder: folder / "nowhere" / "m.onnx", "no such file: '.*nowhere/m.onnx'"),
    "a folder": Bad(lambda folder: folder, "is a folder; give the .onnx file in it"),
    "empty": Bad(bytes_of(b""), r"'.*model.onnx' is empty \(0 bytes\)"),
    "text": Bad(bytes_of(b"this is not a model, whatever its name says\n"), NO_ONNX),
    "zeros": Bad(bytes_of(bytes(100)), NO_ONNX),
    "an image": Bad(bytes_of(b"\x89PNG\r\n\x1a\n" + bytes(range(256))), NO_ONNX),
    "truncated": Bad(bytes_of(WHOLE[: len(WHOLE) // 2]), NO_ONNX),
    "another protobuf": Bad(
        proto_of(onnx.ModelProto(producer_name="nobody")), "holds no graph with outputs; it is not an ONNX model"
    ),
    "external data missing": Bad(
        missing_weights, r"tensor '.*' has its data in 'weights.bin', which is missing; copy it beside the model",
    ),
    "external data truncated": Bad(
        truncated_weights,
        r"tensor '.*' has its data in 'weights.bin', which ends at byte 100 but byte \d+ is needed; it is truncated",
    ),
    "external data above": Bad(
        lambda folder: external(folder, location="../weights.bin"),
        r"'\.\./weights.bin', " + OUTSIDE,
    ),
    "external data elsewhere": Bad(
        lambda folder: external(folder, location=os.fspath(folder / "weights.bin")), OUTSIDE,
    ),
    "external data behind a link": Bad(linked_weights, OUTSIDE + r"\. Move the data file beside"),
    "opset 0": Bad(proto_of(with_opset(0)), "imports opset 0 of ONNX's standard operators; known are 1 to"),
    "opset 999": Bad(proto_of(with_opset(999)), "imports opset 999 of ONNX's standard operators; known are 1 to"),
    "a tensor that nothing makes": Bad(
        proto_of(written("(float[N, 4] x) => (float[N, 4] y) { y = Add (x, lost) }")), "'lost' is read but nothing makes it",
    ),
    "an output that nothing makes": Bad(proto_of(written("(float[N, 4] x) => (float[N, 4] y) { z = Relu (x) }")), "'y'"),
    "a circle": Bad(
        proto_of(written("(float[N, 4] x) => (float[N, 4] y) { a = Add (x, y)  y = Relu (a) }")),
        r"in a circle: 'a' \(Add\) -> 'y' \(Relu\) -> 'a'",
    ),
    "an unknown attribute": Bad(
        proto_of(written("(float[N, 4] x) => (float[N, 4] y) { [soft] y = Softmax <axes = 1> (x) }")),
        r"node 'soft' \(Softmax, opset 17\): attribute 'axes' is not one of Softmax's: \['axis'\]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_a_bad_file_is_refused_with_what_and_where(case, tmp_path):
    path = case.make(tmp_path)
    with pytest.raises(ModelError, match=case.message):
        load(path)


def test_a_missing_file_is_answered_with_what_is_there(file):
    with pytest.raises(ModelError, match=r"no such file: '.*modle\.onnx' \(the folder holds model\.onnx\)"):
        load(file.with_name("modle.onnx"))


def test_all_unsupported_operators_are_listed_with_how_often_and_where():
    text = """(float[N, 4] x) => (float[N, 4] y) { [one] a = Reluu (x)  [two] b = Reluu (a)  [three] c = com.acme.Fold (b)
        y = If (yes) <then_branch = t () => (float[N, 4] d) { [four] d = Hidden (c) },
                      else_branch = e () => (float[N, 4] f) { f = Relu (c) }> }"""
    proto = written(text, yes=np.array(True))
    proto.opset_import.append(helper.make_opsetid("com.acme", 3))
    with pytest.raises(UnsupportedOpError) as raised:
        load(proto)
    lines = str(raised.value).splitlines()
    assert lines[0] == "the model uses operators that jaxq does not implement:"
    assert (
        lines[1]
        .strip()
        .startswith("operator Reluu (opset 17) is not implemented; did you mean 'Relu'?: 2 node(s), first 'one'")
    )
    assert "operator com.acme.Fold (opset 3) is not implemented" in lines[2]
    assert "operator Hidden (opset 17) is not implemented" in lines[3]
    assert "first 'four'" in lines[3]


def test_an_operator_of_its_own_kind_is_not_taken_for_a_slip_of_the_pen():
    with pytest.raises(
        UnsupportedOpError, match=r"operator Frobnicate \(opset 17\) is not implemented: 1 node\(s\), first"
    ):
        load(written("(float[N, 4] x) => (float[N, 4] y) { y = Frobnicate (x) }"))


def test_an_operator_that_is_too_new_for_its_opset_says_from_which_on_it_is_there():
    proto = written("(float[N, 4] x) => (float[N, 4] y) { y = Gelu (x) }", opset=17)
    with pytest.raises(UnsupportedOpError, match=r"operator Gelu at opset 17 is not implemented \(from 20 on it is\)"):
        load(proto)


@pytest.mark.parametrize("source", [17, None, np.zeros(3), onnx.GraphProto()], ids=lambda each: type(each).__name__)
def test_what_is_no_model_is_refused_with_what_can_be_loaded(source):
    with pytest.raises(ModelError, match=r"cannot load a .*; give a path, an onnx\.ModelProto, bytes or a Model"):
        load(source)


def test_what_cannot_be_read_is_refused(file):
    file.chmod(0)
    if os.access(file, os.R_OK):
        pytest.skip("the superuser may read everything")
    with pytest.raises(ModelError, match="Permission denied"):
        load(file)


# --------------------------------------------------------------------------------------------------------- real models


@pytest.mark.slow
def test_every_operator_of_the_real_models_is_there(shared_data):
    used = set()
    for path in sorted((shared_data / "models").rglob("*.onnx")):
        used |= {(node.domain, node.op) for _, node in load(path).graph.walk()}
    assert used <= table().keys()
