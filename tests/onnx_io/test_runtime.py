"""ONNX Runtime: what is inside of its sessions, and on which machines it can saturate."""

import importlib
import re
from pathlib import Path

import numpy as np
import pytest
from models import quantized, samples

from jaxq.errors import InputError, ModelError
from jaxq.onnx_io.runtime import Inner, saturation, session
from jaxq.onnx_io.save import save

pytest.importorskip("onnxruntime")
MODULE = importlib.import_module("jaxq.onnx_io.runtime")


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("runtime") / "model.onnx"
    save(quantized("residual"), path)
    return path


def test_tensors_inside_of_the_graph_are_given_out(path):
    inner = Inner(path)
    assert {"stem.relu", "stem.relu_quantized", "scores"} <= inner.shown
    found = inner.open(["stem.relu_quantized", "scores"])(samples("residual", 1)[0])
    assert found["stem.relu_quantized"].dtype == np.uint8
    plain = session(path, optimized=None)(samples("residual", 1)[0])
    np.testing.assert_array_equal(found["scores"], plain["scores"])


def test_without_other_layouts_the_optimized_graph_keeps_its_names(path, tmp_path):
    session(path, optimized=tmp_path / "kept.onnx", layouts=False)
    assert {"stem.relu_quantized", "depthwise.relu_quantized", "scores"} <= Inner(tmp_path / "kept.onnx").shown


def test_large_weights_of_the_optimized_graph_go_into_a_second_file(path, tmp_path, monkeypatch):
    monkeypatch.setattr(MODULE, "LARGE_INITIALIZER", 64)
    run = session(path, optimized=tmp_path / "optimized.onnx")
    assert (tmp_path / "optimized.onnx.data").stat().st_size > 64
    inner = Inner(tmp_path / "optimized.onnx")
    feed = samples("residual", 1)[0]
    np.testing.assert_allclose(inner.open(["scores"])(feed)["scores"], run(feed)["scores"], rtol=1e-6)


def test_a_tensor_that_is_not_there_is_refused(path):
    with pytest.raises(ModelError, match=r"ONNX Runtime .* refuses"):
        Inner(path).open(["nobody"])


def test_a_sample_that_does_not_fit_is_an_input_error(path):
    with pytest.raises(InputError, match="cannot run the file on the given sample"):
        session(path, optimized=None)({"image": np.zeros((1, 3, 9, 9), np.float32)})


@pytest.mark.parametrize(
    "machine, flags, words",
    [
        ("aarch64", "", None),
        ("x86_64", "flags: avx2 avx512_vnni", None),
        ("AMD64", "flags: avx2 avx_vnni", None),
        ("x86_64", "flags: avx2", ".* no VNNI: .* can saturate, .*"),
        ("x86_64", None, ".* features are unknown; .*"),
    ],
)
def test_a_machine_whose_kernels_can_saturate_is_known(monkeypatch, machine, flags, words):
    def read_text(self, *_, **__):
        if flags is None:
            raise FileNotFoundError(self)
        return flags

    monkeypatch.setattr(MODULE.platform, "machine", lambda: machine)
    monkeypatch.setattr(Path, "read_text", read_text)
    assert re.fullmatch(words or "", saturation())
