"""The command line: what it prints, what it writes, and what it says to bad input."""

import dataclasses
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import jaxq
import jaxq.analysis.verify
import jaxq.pipeline
from jaxq import cli, demo
from jaxq.jobs.run import read_any

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def no_compilation_cache(monkeypatch):
    monkeypatch.setenv("JAXQ_CACHE_DIR", "")


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """A folder with the demo's model, and its calibration images as the command line takes them."""
    folder = tmp_path_factory.mktemp("digits")
    (folder / "digits.onnx").write_bytes(demo.stored("digits.onnx"))
    np.savez(folder / "calibration.npz", image=demo.images("calibration"))
    np.savez(folder / "few.npz", image=demo.images("calibration")[:12])
    return folder


@pytest.fixture(scope="module")
def quantized(digits) -> Path:
    """The demo's model, quantized by the command line."""
    assert cli.main(["quantize", *paths(digits), "-o", str(digits / "digits.int8.onnx"), "--quiet"]) == 0
    return digits / "digits.int8.onnx"


def paths(digits: Path, data: str = "calibration.npz") -> list[str]:
    return [str(digits / "digits.onnx"), "--data", str(digits / data)]


# ------------------------------------------------------------------------------------------------------ the good cases


def test_quantize_writes_a_model_that_verify_accepts(digits, quantized, capsys):
    assert cli.main(["verify", str(quantized), "--data", str(digits / "few.npz")]) == 0
    assert "logits" in capsys.readouterr().out


def test_quantize_says_what_it_wrote(digits, tmp_path, capsys):
    assert cli.main(["quantize", *paths(digits, "few.npz"), "-o", str(tmp_path / "out.onnx")]) == 0
    assert re.search(r"out\.onnx: 97,503 -> [\d,]+ bytes, in [\d.]+ s", capsys.readouterr().out)


@pytest.mark.parametrize("command", ["quantize", "compress", "run"])
def test_the_data_file_is_named_where_there_is_one(digits, tmp_path, capsys, command):
    model, out, data = tmp_path / "large.onnx", tmp_path / "out" / "large.onnx", str(digits / "few.npz")
    jaxq.save(jaxq.load(digits / "digits.onnx"), model, external_data=True)
    out.parent.mkdir()
    (tmp_path / "job.json").write_text(json.dumps({"model": str(model), "data": data}))
    arguments = {
        "quantize": [str(model), "--data", data, "-o", str(out)],
        "compress": [str(model), "-o", str(out)],
        "run": [str(tmp_path / "job.json"), "-o", str(out.parent)],
    }
    assert cli.main([command, *arguments[command], "--json", str(tmp_path / "result.json")]) == 0
    (written,) = out.parent.glob("*.data")
    assert f"large.onnx (weights in {written}): " in capsys.readouterr().out
    assert json.loads((tmp_path / "result.json").read_text())["data_file"] == str(written)


@pytest.mark.parametrize("command", ["quantize", "compress", "run"])
def test_an_earlier_report_is_gone_before_the_model_that_it_is_about(digits, tmp_path, monkeypatch, command):
    model, data = str(digits / "digits.onnx"), str(digits / "few.npz")
    out, report = tmp_path / "digits.onnx", tmp_path / "digits.json"
    report.write_text("{}")
    (tmp_path / "job").write_text(json.dumps({"model": model, "data": data}))
    arguments = {
        "quantize": [model, "--data", data, "-o", str(out), "--json", str(report)],
        "compress": [model, "-o", str(out), "--json", str(report)],
        "run": [str(tmp_path / "job"), "-o", str(tmp_path)],
    }

    def kill(*_, **__):
        assert not report.exists()
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxq.onnx_io.save.put_in_place", kill)
    assert cli.main([command, *arguments[command], "-q"]) == 130


def test_quiet_prints_nothing_where_nothing_is_wrong(digits, quantized, capsys):
    assert cli.main(["verify", str(quantized), "--data", str(digits / "few.npz"), "-q"]) == 0
    assert capsys.readouterr() == ("", "")


def test_json_on_standard_output_is_all_that_stands_there(digits, tmp_path, capsys):
    arguments = ["quantize", *paths(digits, "few.npz"), "-o", str(tmp_path / "out.onnx"), "--json", "-"]
    assert cli.main([*arguments, "--preset", "performance", "--ignore", "classifier", "--seed", "7"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["bias_correction"] == json.loads(result["metadata"]["jaxq.bias_correction"])
    assert (
        result["bias_correction"]["moved"] + len(result["bias_correction"]["left"])
        == result["bias_correction"]["of"]
        > 0
    )
    assert result["float_bytes"] > result["quantized_bytes"] == (tmp_path / "out.onnx").stat().st_size
    assert result["metadata"]["jaxq.preset"] == "performance"
    assert result["metadata"]["jaxq.ignored"] == "classifier"
    assert json.loads(result["metadata"]["jaxq.options"])["seed"] == 7
    assert result["metadata"]["jaxq.calibration_samples"] == "12"


def test_json_and_report_become_files(digits, tmp_path):
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    extra = ["--json", str(tmp_path / "result.json"), "--report", str(tmp_path / "page.html")]
    assert cli.main(["quantize", *paths(digits, "few.npz"), "-o", str(tmp_path / "out.onnx"), *extra]) == 0
    assert json.loads((tmp_path / "result.json").read_text())["output"] == str(tmp_path / "out.onnx")
    assert "block1/depthwise" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_the_same_command_writes_the_same_file(digits, tmp_path):
    for name in ("one.onnx", "two.onnx"):
        assert cli.main(["quantize", *paths(digits, "few.npz"), "-o", str(tmp_path / name), "-q"]) == 0
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()


def test_a_command_that_is_written_down_does_the_same_again(digits, tmp_path):
    config = tmp_path / "config.json"
    options = [
        "--ignore",
        "classifier",
        "--range-estimator",
        "minmax",
        "--bias-correction",
        "full",
        "--save-config",
        str(config),
    ]
    assert cli.main(["quantize", *paths(digits, "few.npz"), "-o", str(tmp_path / "digits.onnx"), *options, "-q"]) == 0
    assert cli.main(["run", str(config), "-o", str(tmp_path / "again"), "-q"]) == 0
    assert (tmp_path / "digits.onnx").read_bytes() == (tmp_path / "again" / "digits.onnx").read_bytes()


def test_widths_and_one_scale_for_each_weight_are_options(digits, tmp_path):
    import onnx

    config = tmp_path / "config.json"
    options = ["--weight-bits", "4", "--activation-bits", "16", "--per-tensor", "--save-config", str(config), "-q"]
    assert cli.main(["quantize", *paths(digits, "few.npz"), "-o", str(tmp_path / "digits.onnx"), *options]) == 0
    proto = onnx.load(tmp_path / "digits.onnx")
    types = {each.name: onnx.TensorProto.DataType.Name(each.data_type) for each in proto.graph.initializer}
    sizes = {each.name: list(each.dims) for each in proto.graph.initializer}
    reads = [node for node in proto.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in types]
    weights = [node for node in reads if len(sizes[node.input[0]]) > 1]
    assert {types[node.input[0]] for node in weights} == {"INT4"}
    assert {tuple(sizes[node.input[1]]) for node in weights} <= {(), (1,)}
    zeros = [node.input[2] for node in proto.graph.node if node.op_type == "QuantizeLinear" and len(node.input) > 2]
    assert {types[name] for name in zeros} == {"UINT16"}
    assert cli.main(["run", str(config), "-o", str(tmp_path / "again"), "-q"]) == 0
    assert (tmp_path / "digits.onnx").read_bytes() == (tmp_path / "again" / "digits.onnx").read_bytes()


def test_limits_of_accuracy_are_written_down_too(digits, tmp_path):
    config = ["--save-config", str(tmp_path / "config.json")]
    options = ["--max-drop", "0.5", "--search", "pot", "--val", str(digits / "few.npz"), *config]
    assert cli.main(["quantize", *paths(digits, "few.npz"), "-o", str(tmp_path / "digits.onnx"), *options, "-q"]) == 0
    job, _ = read_any(tmp_path / "config.json")
    assert job.accuracy.max_drop == 0.5
    assert job.accuracy.search == "pot"
    assert job.accuracy.validation == str((digits / "few.npz").resolve())


def test_run_says_what_it_wrote_and_gives_it_as_json(digits, tmp_path, capsys):
    (tmp_path / "job.json").write_text(
        json.dumps({"model": str(digits / "digits.onnx"), "data": str(digits / "few.npz")})
    )
    assert cli.main(["run", str(tmp_path / "job.json"), "-o", str(tmp_path)]) == 0
    assert re.search(r"digits\.onnx: \d+ weights and biases, \d+ activations quantized, in", capsys.readouterr().out)
    assert cli.main(["run", str(tmp_path / "job.json"), "-o", str(tmp_path), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["output"] == str(tmp_path / "digits.onnx")


def test_run_prints_the_schema(capsys):
    assert cli.main(["run", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "jaxq configuration"


@pytest.mark.parametrize("arguments", [[], ["job.json"]])
def test_run_without_its_arguments_says_how_it_is_called(arguments, capsys):
    assert cli.main(["run", *arguments]) == 2
    assert capsys.readouterr().err.endswith("is missing; write `jaxq run CONFIG.json -o FOLDER`\n")


def test_images_are_taken_from_a_folder(digits, tmp_path):
    pillow = pytest.importorskip("PIL.Image")
    (tmp_path / "images").mkdir()
    for number, image in enumerate(demo.images("calibration")[:12]):
        pillow.fromarray((image[0] * 255).astype(np.uint8)).save(tmp_path / "images" / f"{number}.png")
    arguments = ["quantize", str(digits / "digits.onnx"), "--data", str(tmp_path / "images"), "--std", "255"]
    assert cli.main([*arguments, "-o", str(tmp_path / "out.onnx"), "--quiet"]) == 0


def test_inspect_shows_what_a_model_holds_and_what_becomes_of_it(digits, capsys):
    assert cli.main(["inspect", str(digits / "digits.onnx")]) == 0
    shown = capsys.readouterr().out
    assert "image: float32[N, 1, 8, 8]" in shown
    assert re.search(r"Conv +9 +9 in integers", shown)
    assert re.search(r"BatchNormalization +9 +9 folded", shown)


def test_inspect_of_a_quantized_model_says_so_and_who_made_it(quantized, capsys):
    assert cli.main(["inspect", str(quantized), "--json", "-"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["quantized"]
    assert summary["fates"] == {}
    assert summary["metadata"]["jaxq.calibration_samples"] == "100"


def test_inspect_judges_a_file_for_the_target_that_it_names(digits, quantized, tmp_path, capsys):
    made = tmp_path / "digits.qnn.onnx"
    assert cli.main(["quantize", *paths(digits, "few.npz"), "-o", str(made), "--target", "qnn", "-q"]) == 0
    for arguments, target in (([], "qnn"), (["--target", "openvino"], "openvino")):
        assert cli.main(["inspect", str(made), "--json", "-", *arguments]) == 0
        assert json.loads(capsys.readouterr().out)["target"] == target
    for model in (quantized, digits / "digits.onnx"):
        assert cli.main(["inspect", str(model), "--json", "-"]) == 0
        assert json.loads(capsys.readouterr().out)["target"] == "onnxruntime"
    assert cli.main(["inspect", str(made)]) == 0
    assert "for target qnn:" in capsys.readouterr().out


def test_verify_of_a_runtime_that_does_not_agree_is_exit_code_3(digits, quantized, monkeypatch, capsys):
    monkeypatch.setattr(
        importlib.import_module("jaxq.analysis.verdict"), "LARGEST_STEPS", -1.0
    )  # which nothing reaches
    assert cli.main(["verify", str(quantized), "--data", str(digits / "few.npz")]) == 3
    assert "does not agree: of " in capsys.readouterr().out


def test_verify_with_the_float_model_says_what_quantization_costs(digits, quantized, capsys):
    arguments = ["verify", str(quantized), "--data", str(digits / "few.npz"), "--float", str(digits / "digits.onnx")]
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert "agrees: the runtime computes what the file says" in out
    assert "quantization costs at 'logits': signal to noise" in out
    assert "against the float model, the same class for" in out
    assert cli.main([*arguments, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["costs"][0]["snr"] > 20


def test_the_version_is_printed(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"jaxq {jaxq.__version__}\n"


@pytest.mark.parametrize("command", [[], ["quantize"], ["compress"], ["run"], ["inspect"], ["verify"], ["demo"]])
def test_help_is_there_for_every_command(command, capsys):
    assert cli.main([*command, "--help"]) == 0
    assert "Usage: jaxq" in capsys.readouterr().out


def test_no_command_is_answered_with_help(capsys):
    assert cli.main([]) == 0
    assert "quantize" in capsys.readouterr().out


def test_the_module_can_be_run():
    done = subprocess.run(
        [sys.executable, "-m", "jaxq.cli", "inspect", "nowhere.onnx"],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: no such file: 'nowhere.onnx'")


# ---------------------------------------------------------------------------------------------------------- bad models


def model_of(*nodes: onnx.NodeProto, opset: int = 17) -> onnx.ModelProto:
    """x float32 [N, 4] -> y, through the nodes; `weight` is float32 [4, 4]."""
    x, y = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4]), onnx.ValueInfoProto(name="y")
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "weight")
    domains = {node.domain: 1 for node in nodes if node.domain}
    return helper.make_model(
        helper.make_graph(nodes, "graph", [x], [y], [weight]),
        opset_imports=[helper.make_opsetid("", opset), *(helper.make_opsetid(*each) for each in domains.items())],
        ir_version=8,
    )


MATMUL = helper.make_node("MatMul", ["x", "weight"], ["y"], name="product")


def external(location: str) -> onnx.ModelProto:
    model = model_of(MATMUL)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return model


@dataclasses.dataclass(frozen=True, kw_only=True)
class BadModel:
    """The bytes of a file, and what must be said about it."""

    content: Callable[[], bytes]
    message: str


def serialized(*nodes: onnx.NodeProto, opset: int = 17) -> Callable[[], bytes]:
    return lambda: model_of(*nodes, opset=opset).SerializeToString()


BAD_MODELS = {
    "no ONNX": BadModel(content=lambda: b"not a model at all", message="is not an ONNX file"),
    "empty": BadModel(content=lambda: b"", message=r"is empty \(0 bytes\)"),
    "truncated": BadModel(content=lambda: demo.stored("digits.onnx")[:50_000], message="or it is truncated"),
    "external data missing": BadModel(
        content=lambda: external("weights.bin").SerializeToString(), message="'weights.bin', which is missing"
    ),
    "external data outside": BadModel(
        content=lambda: external("../weights.bin").SerializeToString(), message="outside of the model's folder"
    ),
    "unknown operators": BadModel(
        content=serialized(
            helper.make_node("Frobnicate", ["x"], ["t"], name="first"),
            helper.make_node("Quux", ["t"], ["y"], name="second", domain="com.acme"),
        ),
        message=r"(?s)Frobnicate.*'first'.*com\.acme\.Quux.*'second'",
    ),
    "unknown opset": BadModel(content=serialized(MATMUL, opset=99), message="opset 99"),
    "quantized already": BadModel(
        content=serialized(
            helper.make_node("QuantizeLinear", ["x", "scale"], ["q"], name="quantizer"),
            helper.make_node("DequantizeLinear", ["q", "scale"], ["y"]),
            helper.make_node("Constant", [], ["scale"], value_float=0.1),
        ),
        message="already quantized.*'quantizer'",
    ),
    "nothing to quantize": BadModel(
        content=serialized(helper.make_node("Tanh", ["x"], ["y"])), message="nothing that target 'onnxruntime'.*Tanh"
    ),
}


def refused(arguments: list[str], output: Path, capsys) -> str:
    """The message of a command that must fail: exit code 2, one message without traceback, and no file."""
    before = sorted(output.parent.iterdir())
    assert cli.main([*arguments, "-o", str(output)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert "Traceback" not in printed.err
    assert sorted(output.parent.iterdir()) == before
    return printed.err


@pytest.mark.parametrize("case", BAD_MODELS.values(), ids=BAD_MODELS)
def test_a_bad_model_is_refused(case, tmp_path, capsys):
    (tmp_path / "model.onnx").write_bytes(case.content())
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).random((20, 4), np.float32))
    arguments = ["quantize", str(tmp_path / "model.onnx"), "--data", str(tmp_path / "data.npz")]
    assert re.search(case.message, refused(arguments, tmp_path / "out.onnx", capsys))


def test_a_missing_model_is_refused_with_what_there_is(digits, tmp_path, capsys):
    arguments = ["quantize", str(digits / "digit.onnx"), "--data", str(digits / "few.npz")]
    assert "digits.onnx" in refused(arguments, tmp_path / "out.onnx", capsys)


# ------------------------------------------------------------------------------------------------------------ bad data


def with_value(value: float) -> np.ndarray:
    image = demo.images("calibration")[:12]
    image[3, 0, 4, 4] = value
    return image


BAD_DATA = {
    "another key": ({"images": with_value(0)}, "no array for the model's input 'image' .*did you mean 'images'"),
    "another rank": ({"image": with_value(0)[:, 0, 0, 0]}, r"shape \[12\], but input 'image' is float32\[N, 1, 8, 8\]"),
    "another shape": (
        {"image": with_value(0)[..., :7]},
        r"key 'image' of .*data.npz' is float32\[12, 1, 8, 7\], .*: axis 3 must be 8, not 7",
    ),
    "another dtype": ({"image": with_value(0).astype(np.float64)}, "key 'image' of .* is float64.*; convert it"),
    "no samples": ({"image": with_value(0)[:0]}, "no samples"),
    "NaN": ({"image": with_value(np.nan)}, "sample 3 .*input 'image' holds NaN"),
    "infinity": ({"image": with_value(np.inf)}, "sample 3 .*input 'image' holds infinity"),
    "pickled objects": ({"image": np.array([{}], object)}, "pickled Python objects; unpickling .* is refused"),
}


@pytest.mark.parametrize("arrays, message", BAD_DATA.values(), ids=BAD_DATA)
def test_bad_data_are_refused(digits, tmp_path, capsys, arrays, message):
    np.savez(tmp_path / "data.npz", **arrays)
    arguments = ["quantize", str(digits / "digits.onnx"), "--data", str(tmp_path / "data.npz")]
    assert re.search(message, refused(arguments, tmp_path / "out.onnx", capsys))


SUSPICIOUS_DATA = {
    "constant": (np.full((12, 1, 8, 8), 0.5, np.float32), "input 'image' is constant"),
    "identical": (np.repeat(demo.images("calibration")[:1], 12, axis=0), "all 12 calibration samples are identical"),
    "noise": (np.random.default_rng(0).random((40, 1, 8, 8), np.float32), "input 'image' looks like random noise"),
}


@pytest.mark.parametrize("image, message", SUSPICIOUS_DATA.values(), ids=SUSPICIOUS_DATA)
def test_suspicious_data_are_used_with_a_warning(digits, tmp_path, capsys, image, message):
    np.savez(tmp_path / "data.npz", image=image)
    arguments = ["quantize", str(digits / "digits.onnx"), "--data", str(tmp_path / "data.npz"), "--quiet"]
    assert cli.main([*arguments, "-o", str(tmp_path / "out.onnx")]) == 0
    assert re.search(f"(?m)^warning: {message}", capsys.readouterr().err)


def test_real_data_are_used_without_a_warning(digits, tmp_path, capsys):
    assert cli.main(["quantize", *paths(digits), "-o", str(tmp_path / "out.onnx"), "--quiet"]) == 0
    assert capsys.readouterr().err == ""


# ------------------------------------------------------------------------------------------------------------- bad use

BAD_USE = {
    "ignored name": (
        ["--ignore", "stem/cnv"],
        "^error: --ignore: ignored name 'stem/cnv' matches no node; did you mean 'stem/conv'",
    ),
    "ignored type": (["--ignore-type", "Convv"], "did you mean 'Conv'"),
    "ignored pattern": (["--ignore-pattern", "nothing.*"], "matches no node"),
    "no pattern": (["--ignore-pattern", "stem/("], "--ignore-pattern: .*is not a regular expression"),
    "target": (["--target", "onnxrutime"], "^error: --target onnxrutime; .*did you mean 'onnxruntime'"),
    "preset": (["--preset", "fast"], "'--preset'.*'performance', 'mixed', 'accuracy'"),
    "slip of the pen": (
        ["--preset", "mixd"],
        "error: Invalid value for '--preset': 'mixd' is not one of .*; did you mean 'mixed'",
    ),
    "no samples wanted": (["--subset-size", "0"], "'--subset-size'"),
    "size": (["--resize", "1x2x3"], "'1x2x3' is neither a number of pixels nor HEIGHTxWIDTH"),
    "axis": (["--batch-axis", "first"], "'first' is neither the number of an axis nor none"),
    "range estimator": (["--range-estimator", "min_max"], "^error: --range-estimator min_max; .*did you mean 'minmax'"),
    "bias correction": (["--bias-correction", "slow"], "'--bias-correction'.*'fast', 'full', 'off'"),
    "bits": (
        ["--target", "tensorrt", "--activation-bits", "4"],
        "^error: --activation-bits 4 needs .*int4, which target",
    ),
    "pixels": (["--mean", "0.5,1"], "^error: --mean 0.5,1.0 is for a folder of images"),
    "numbers": (["--mean", "a,b"], "'a,b' is not a list of numbers"),
    "image options": (["--resize", "256"], "^error: --resize 256 is for a folder of images"),
    "option of a later release": (["--sparsity", "0.01"], "No such option: --sparsity"),
    "absent device": (["--device", "tpu"], "there is no tpu here: JAX has .*cpu"),
}


@pytest.mark.parametrize("options, message", BAD_USE.values(), ids=BAD_USE)
def test_bad_use_is_refused(digits, tmp_path, capsys, options, message):
    assert re.search(message, refused(["quantize", *paths(digits), *options], tmp_path / "out.onnx", capsys))


def test_an_output_that_cannot_be_written_is_refused_before_the_work(digits, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.modules["jaxq.pipeline"], "quantize", lambda *_, **__: pytest.fail("work was started"))
    for option in ("-o", "--json", "--report"):
        arguments = [
            "quantize",
            *paths(digits),
            "-o",
            str(tmp_path / "out.onnx"),
            option,
            str(tmp_path / "nowhere" / "f"),
        ]
        assert cli.main(arguments) == 2
        assert re.fullmatch(r"error: cannot write .*nowhere' does not exist; make it first\n", capsys.readouterr().err)


def test_the_float_model_is_not_overwritten(digits, capsys):
    before = (digits / "digits.onnx").read_bytes()
    assert "are the same file" in refused(["quantize", *paths(digits)], digits / "digits.onnx", capsys)
    assert (digits / "digits.onnx").read_bytes() == before


def test_a_usage_error_says_where_help_is(capsys):
    assert cli.main(["quantize"]) == 2
    assert capsys.readouterr().err == "error: Missing argument 'MODEL'.\nsee `jaxq quantize --help`\n"


def test_verbose_shows_where_an_error_comes_from(tmp_path, capsys):
    assert cli.main(["inspect", str(tmp_path / "model.onnx"), "-v"]) == 2
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert error.splitlines()[-1].startswith("error: no such file")


def test_an_interrupt_ends_with_130_and_leaves_nothing(digits, tmp_path, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["jaxq.pipeline"], "quantize", interrupt)
    assert cli.main(["quantize", *paths(digits), "-o", str(tmp_path / "out.onnx")]) == 130
    assert capsys.readouterr().err == "interrupted: the command was stopped before its end\n"
    assert list(tmp_path.iterdir()) == []


def test_a_defect_of_jaxq_shows_itself(digits, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(sys.modules["jaxq.pipeline"], "quantize", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["quantize", *paths(digits), "-o", str(tmp_path / "out.onnx")])


# ---------------------------------------------------------------------------------------------------------- the cache

COMPILE = """
from jaxq.cli.session import use_compilation_cache
use_compilation_cache()
import jax
jax.jit(lambda x: x + 1)(1.0)
"""


@pytest.mark.parametrize(
    "setting, folder",
    [
        pytest.param({}, "cache/jaxq", id="user's cache folder"),
        pytest.param({"JAXQ_CACHE_DIR": "elsewhere"}, "elsewhere", id="named"),
        pytest.param({"JAXQ_CACHE_DIR": ""}, None, id="off"),
    ],
)
def test_compiled_programs_are_kept_in_the_users_cache_folder(tmp_path, setting, folder):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("JAX", "XDG"))}
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(REPOSITORY)} | setting
    subprocess.run([sys.executable, "-c", COMPILE], cwd=tmp_path, env=environment, check=True)
    made = {path.parent.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*-cache")}
    assert made == ({folder} if folder else set())


# --------------------------------------------------------------------------------------------------- accuracy control


@pytest.fixture(scope="module")
def labelled_digits(digits) -> Path:
    """Test images of the demo with their labels, as the command line takes them."""
    np.savez(digits / "labelled.npz", image=demo.images("test")[:60], label=demo.labels("test")[:60])
    return digits / "labelled.npz"


def within(digits: Path, out: Path, *options: str) -> int:
    return cli.main(["quantize", *paths(digits, "few.npz"), "-o", str(out), "--max-drop", *options])


def test_a_limit_on_the_drop_is_kept_and_reported(digits, labelled_digits, tmp_path, capsys):
    out = tmp_path / "out.onnx"
    options = ("0.05", "--metric", "top1", "--val", str(labelled_digits), "--json", str(tmp_path / "out.json"))
    assert within(digits, out, *options) == 0
    assert "reached: top1" in capsys.readouterr().out
    report = json.loads((tmp_path / "out.json").read_text())["accuracy"]
    assert report["status"] == "reached"
    assert report["goals"][0]["baseline"] > 0.9
    assert not (tmp_path / "out.onnx.search").exists()


def test_modules_beside_a_configuration_import_each_other(digits, tmp_path):
    (tmp_path / "where_it_lies.py").write_text(f"file = {str(digits / 'few.npz')!r}\n")
    (tmp_path / "samples_of_a_job.py").write_text(
        "import numpy as np\nimport where_it_lies\ndef load(): return [np.load(where_it_lies.file)['image']]\n"
    )
    job = {"model": str(digits / "digits.onnx"), "data": "samples_of_a_job:load"}
    (tmp_path / "job.json").write_text(json.dumps(job))
    command = [sys.executable, "-m", "jaxq.cli", "run", str(tmp_path / "job.json"), "-o", str(tmp_path / "out"), "-q"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "digits.onnx").is_file()


def test_a_target_that_is_missed_is_exit_code_3_and_the_best_model_is_there(digits, labelled_digits, tmp_path, capsys):
    out = tmp_path / "out.onnx"
    options = ("0.1", "--metric", "falling:metric", "--val", str(labelled_digits), "--max-iter-num", "1")
    (tmp_path / "falling.py").write_text(
        "values = [1.0]\ndef metric(outputs, targets):\n    return values.pop() if values else 0.5\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        assert within(digits, out, *options) == 3
    finally:
        sys.path.remove(str(tmp_path))
    assert "was not reached" in capsys.readouterr().err
    assert jaxq.load(out).graph.nodes
    assert (tmp_path / "out.onnx.search" / "state.json").is_file()


@pytest.fixture
def interrupted(monkeypatch):
    """Whoever searches is interrupted when the first candidates are known."""
    from jaxq.accuracy.trials import Trials

    def interrupt(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trials, "_finish", interrupt)


def in_words(command: str, model: Path, data: str, out: Path) -> list[str]:
    """The same search as a command with options, and by a configuration file."""
    if command == "quantize":
        return ["quantize", str(model), "--data", data, "-o", str(out), "--max-drop", "0.05"]
    job = {"model": str(model), "data": {"source": data}, "quantize": {}, "accuracy": {"max_drop": 0.05}}
    config = model.with_name("job.json")
    config.write_text(json.dumps(job))
    return ["run", str(config), "-o", str(out.parent)]


@pytest.mark.parametrize("command", ["quantize", "run"])
def test_the_best_of_an_interrupted_search_can_be_read(digits, labelled_digits, tmp_path, capsys, interrupted, command):
    model = tmp_path / "large.onnx"
    _, weights = jaxq.save(jaxq.load(digits / "digits.onnx"), model, external_data=True)
    out, data = tmp_path / "results" / "large.onnx", str(digits / "few.npz")
    out.parent.mkdir()
    assert cli.main(in_words(command, model, data, out)) == 130
    said = capsys.readouterr().err
    assert "the best model so far is" in said
    found = {path.name for path in out.parent.iterdir()} - {"large.onnx", "large.onnx.search"}
    assert len(found) == 1
    assert command == "run" or f"large.onnx with {out.parent / min(found)}" in said
    shutil.rmtree(out.parent / "large.onnx.search")
    model.unlink()
    weights.unlink()
    assert jaxq.load(out)(demo.images("test")[:1])


@pytest.mark.parametrize("command", ["quantize", "run"])
def test_an_interrupt_before_the_search_writes_no_model_of_another_one(digits, tmp_path, capsys, monkeypatch, command):
    out, data = tmp_path / "digits.onnx", str(digits / "few.npz")
    (tmp_path / "digits.onnx.search").mkdir()
    shutil.copyfile(digits / "digits.onnx", tmp_path / "digits.onnx.search" / "best.onnx")
    (tmp_path / "digits.onnx.search" / "state.json").write_text("{}")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxq.accuracy.space.quantized", interrupt)
    assert cli.main(in_words(command, digits / "digits.onnx", data, out)) == 130
    assert not out.exists()
    assert (tmp_path / "digits.onnx.search" / "earlier-1" / "best.onnx").is_file()


@pytest.mark.parametrize("command", ["quantize", "run"])
def test_a_result_that_cannot_be_written_leaves_the_search(digits, tmp_path, capsys, monkeypatch, command):
    out, data = tmp_path / "digits.onnx", str(digits / "few.npz")
    real = jaxq.save

    def full(model, path, **options):
        if Path(path) == out:
            raise jaxq.ConfigError(f"cannot write {str(path)!r}: No space left on device")
        real(model, path, **options)

    importlib.import_module("jaxq.accuracy.front")  # so that the name below is the command's alone
    monkeypatch.setattr("jaxq.onnx_io.save.save", full)
    monkeypatch.setattr("jaxq.jobs.run.save", full)
    given = in_words(command, digits / "digits.onnx", data, out)
    assert cli.main(given) == 2
    assert (tmp_path / "digits.onnx.search" / "best.onnx").is_file()
    monkeypatch.undo()
    assert cli.main(given) == 0
    assert "finished" in capsys.readouterr().err
    assert out.is_file()
    assert not (tmp_path / "digits.onnx.search").exists()


def test_quantizing_without_a_limit_leaves_a_search_alone(digits, tmp_path):
    kept = tmp_path / "out.onnx.search" / "state.json"
    kept.parent.mkdir()
    kept.write_text("{}")
    assert cli.main(["quantize", *paths(digits, "few.npz"), "-o", str(tmp_path / "out.onnx")]) == 0
    assert kept.is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-0.1",), "error: --max-drop -0.1; a drop that is allowed is 0 or more"),
        (("0.1", "--metric", "top_1"), "did you mean 'top1'"),
        (("0.1", "--metric", "top1"), "label"),
        (("0.1", "--val", "nowhere.npz"), "no such file"),
        (("0.1", "--repair", "magic"), "error: --repair: 'magic' is not known"),
    ],
)
def test_wrong_options_of_accuracy_control_are_refused(digits, tmp_path, capsys, options, message):
    assert within(digits, tmp_path / "out.onnx", *options) == 2
    assert message in capsys.readouterr().err


def test_options_of_accuracy_control_without_a_limit_are_refused(digits, tmp_path, capsys):
    given = ["quantize", *paths(digits, "few.npz"), "-o", str(tmp_path / "out.onnx"), "--metric", "top1"]
    assert cli.main(given) == 2
    assert "--metric is for --max-drop" in capsys.readouterr().err
