"""`jaxq compress`: what it writes, what it says, and what it refuses."""

import json

import numpy as np
import onnx
import pytest
from models import run_onnx, written

from jaxq import cli
from jaxq.onnx_io.load import load

TEXT = "(float[N, 64] x) => (float[N, 8] y) { h = MatMul (x, first)  r = Relu (h)  y = MatMul (r, last) }"


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXQ_CACHE_DIR", "")
    random = np.random.default_rng(0)
    weights = {name: random.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    onnx.save(written(TEXT, **weights), tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", x=samples(16))
    return tmp_path / "model.onnx"


SHAPES = {"first": (64, 96), "last": (96, 8)}


def samples(rows: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(rows, 64)).astype(np.float32)


def compressed(model, *options: str) -> onnx.ModelProto:
    output = model.with_name("out.onnx")
    assert cli.main(["compress", str(model), "-o", str(output), "--quiet", *options]) == 0
    return onnx.load(output)


def grids(proto: onnx.ModelProto) -> dict[tuple[int, ...], str]:
    """Shape of each weight -> the type that it is kept in."""
    types = onnx.TensorProto.DataType
    kept = [each for each in proto.graph.initializer if tuple(each.dims) in SHAPES.values()]
    return {tuple(each.dims): types.Name(each.data_type).lower() for each in kept}


def test_a_file_with_bytes_is_written_without_any_data(model):
    assert set(grids(compressed(model)).values()) == {"uint8"}


def test_four_bits_are_for_the_inner_layers_unless_all_are_meant(model):
    options = ["--mode", "int4_sym", "--group-size", "32"]
    assert grids(compressed(model, *options)) == {(64, 96): "int4", (96, 8): "uint8"}
    assert grids(compressed(model, *options, "--backup-mode", "none")) == {(64, 96): "int4", (96, 8): "float"}
    assert grids(compressed(model, *options, "--all-layers")) == {(64, 96): "int4", (96, 8): "int4"}
    most = compressed(model, *options, "--all-layers", "--ratio", "0.9")
    assert grids(most) == {(64, 96): "int4", (96, 8): "uint8"}  # the first has 89 % of the weights


def test_what_is_ignored_stays_in_float(model):
    names = [node.name for node in load(model).graph.nodes if node.op == "MatMul"]
    assert grids(compressed(model, "--ignore", names[0]))[64, 96] == "float"


def test_gptq_is_closer_to_the_float_model_at_the_output(model):
    options = ["--mode", "int4_sym", "--group-size", "32", "--all-layers", "--data", str(model.with_name("data.npz"))]
    exact, error = load(model)({"x": samples(16)})["y"], {}
    for gptq in (False, True):
        proto = compressed(model, *options, *(["--gptq"] if gptq else []))
        error[gptq] = float(((run_onnx(proto, {"x": samples(16)})["y"] - exact) ** 2).mean())
    assert error[True] < 0.9 * error[False]


def test_matmul_nbits_is_written_on_request(model):
    options = ["--mode", "int4_asym", "--group-size", "32", "--all-layers"]
    assert {node.op_type for node in compressed(model, *options).graph.node} == {"DequantizeLinear", "MatMul", "Max"}
    found = compressed(model, *options, "--matmul-nbits")
    assert {node.op_type for node in found.graph.node} == {"MatMulNBits", "Relu"}


def test_the_result_says_how_many_weights_have_how_many_bits(model, capsys):
    arguments = ["compress", str(model), "-o", str(model.with_name("out.onnx")), "--mode", "int4_sym"]
    assert cli.main([*arguments, "--group-size", "32", "--json", "-"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["weights_in_4_bits"], result["weights_in_8_bits"]) == (1, 1)
    assert result["compressed_bytes"] == model.with_name("out.onnx").stat().st_size < result["float_bytes"]
    assert result["metadata"]["jaxq.compress_weights"] == "int4_sym"
    assert cli.main([*arguments, "--backup-mode", "none"]) == 0
    assert "out.onnx: " in capsys.readouterr().out


@pytest.mark.parametrize("options, said", [((), True), (("--mode", "int4_sym", "--matmul-nbits"), False)], ids=str)
def test_that_the_runtime_rounds_activations_is_said(model, options, said, capsys):
    assert cli.main(["compress", str(model), "-o", str(model.with_name("out.onnx")), *options]) == 0
    assert ("qdq_matmulnbits_accuracy_level" in capsys.readouterr().out) == said


def test_the_size_of_a_model_is_that_of_its_file(model, capsys):
    text = (
        "(float[N, 64] x) => (float[N, 64] y, float[N, 64] z) { t = Transpose (w)  y = MatMul (x, t)  z = Gemm (x, w) }"
    )
    onnx.save(written(text, w=np.eye(64, dtype=np.float32)), model)
    assert cli.main(["compress", str(model), "-o", str(model.with_name("out.onnx")), "--json", "-"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["float_bytes"] == model.stat().st_size
    assert result["compressed_bytes"] == model.with_name("out.onnx").stat().st_size


@pytest.mark.parametrize(
    "options, message",
    [
        (["--gptq"], "--gptq looks at the inputs of each layer; give samples with --data"),
        (["--mode", "int4"], "'int4' is not one of 'int8_asym', 'int8_sym', 'int4_asym', 'int4_sym'"),
        (
            ["--group-size", "64"],
            "error: --group-size 64 with --mode int8_asym, which has one scale a channel; leave it out",
        ),
        (["--ratio", "2", "--mode", "int4_sym"], "error: --ratio 2.0; expected a share of the weights between 0 and 1"),
        (["--ignore", "nothing"], "ignored name 'nothing' matches no node"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_done_is_refused(model, options, message, capsys):
    output = model.with_name("out.onnx")
    assert cli.main(["compress", str(model), "-o", str(output), *options]) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()
