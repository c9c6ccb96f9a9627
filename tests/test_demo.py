"""The demo, and the README's ten lines, which begin where it ends."""

import builtins
import json
import re
from pathlib import Path

import numpy as np
import pytest

import jaxq
from jaxq import demo
from jaxq.errors import ConfigError

README = Path(__file__).resolve().parent.parent / "README.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What the demo writes; `printed.txt` beside it holds what it says."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "printed.txt").write_text(demo.run(folder / "jaxq-demo"))
    return folder / "jaxq-demo"


def test_result_has_the_accuracies_and_sizes(folder):
    result = json.loads((folder / "result.json").read_text())
    assert result["float_accuracy"] >= 0.97
    assert result["quantized_accuracy"] >= result["float_accuracy"] - 0.005
    assert result["float_bytes"] == (folder / "digits.onnx").stat().st_size
    assert result["quantized_bytes"] == (folder / "digits.int8.onnx").stat().st_size < 0.6 * result["float_bytes"]
    assert result["seconds"] > 0


def test_the_runtime_is_as_accurate_as_the_simulation(folder):
    pytest.importorskip("onnxruntime")
    result = json.loads((folder / "result.json").read_text())
    assert result["agreement"] >= 0.995
    assert result["runtime_accuracy"] >= result["float_accuracy"] - 0.005


def test_the_table_shows_both_models(folder):
    printed = (folder.parent / "printed.txt").read_text()
    assert re.search(r"(?m)^ +float +int8$", printed)
    assert re.search(r"(?m)^accuracy in jaxq +9\d\.\d\d% +9\d\.\d\d%$", printed)
    assert re.search(r"(?m)^size in bytes +97,503 +\d\d,\d{3}$", printed)


def test_the_commands_at_the_end_name_files_that_are_there(folder):
    printed = (folder.parent / "printed.txt").read_text()
    for command in re.findall(r"(?m)^  jaxq (.*)$", printed):
        for path in re.findall(r"\S+\.(?:npz|onnx)", command):
            assert Path(path).exists() or Path(path).name == "mine.onnx"


def test_the_page_is_there_where_its_packages_are(folder):
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 3


def test_calibration_and_test_images_have_nothing_in_common():
    seen = {image.tobytes() for image in demo.images("calibration")}
    assert not seen & {image.tobytes() for image in demo.images("test")}


def test_images_are_scaled_as_the_model_takes_them():
    image = demo.images("test")
    assert (image.dtype, image.shape) == (np.float32, (400, 1, 8, 8))
    assert (image.min(), image.max()) == (0.0, 1.0)


def test_without_onnxruntime_the_demo_says_how_to_get_it(tmp_path, monkeypatch):
    absent(monkeypatch, "onnxruntime", "jinja2")
    printed = demo.run(tmp_path / "demo")
    assert "pip install 'jaxq[runtime]'" in printed
    assert "pip install 'jaxq[report]'" in printed
    assert json.loads((tmp_path / "demo" / "result.json").read_text())["runtime_accuracy"] is None
    assert not (tmp_path / "demo" / "index.html").exists()


def absent(monkeypatch, *packages: str) -> None:
    """Makes packages impossible to import."""
    real = builtins.__import__

    def without(name, *more):
        if name.partition(".")[0] in packages:
            raise ImportError(f"No module named {name!r}", name=name)
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)


def test_a_file_in_place_of_the_folder_is_an_error(tmp_path):
    (tmp_path / "demo").write_text("")
    with pytest.raises(ConfigError, match="cannot make the folder"):
        demo.run(tmp_path / "demo")


def test_the_lines_of_the_readme_run(folder, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    (lines,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(folder.parent)
    exec(compile(lines, str(README), "exec"), {})
    assert "logits" in capsys.readouterr().out
    assert jaxq.load("digits.int8.onnx").inputs.keys() == {"image"}
