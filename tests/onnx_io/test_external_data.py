"""Whenever writing is cut short, a model stands there whole, old or new, with its data; nothing else is touched."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from kills import every_kill
from models import Network

from jaxq.engine.mapped import is_mapped
from jaxq.engine.model import Model
from jaxq.errors import ConfigError
from jaxq.files import withdraw, write_text
from jaxq.onnx_io.external_data import data_file, data_files, locations, move_model
from jaxq.onnx_io.load import load
from jaxq.onnx_io.save import save

X = np.linspace(-1, 1, 16, dtype=np.float32)[None]


def product(factor: float) -> Model:
    """x [N, 16] times a matrix that says which model it is."""
    network = Network()
    weight = network.weight("w", 16, 16)
    network.node("MatMul", [network.input("x", ["N", 16]), weight], "y")
    network.output("y", ["N", 16])
    model = load(network.proto())
    return model.replace(params={"w": np.float32(factor) * np.eye(16, dtype=np.float32)})


def factor(path: Path) -> float:
    return float(load(path)([X])["y"][0, -1])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ----------------------------------------------------------------------------------------------------------- one model


def test_the_data_file_is_named_after_the_model_and_its_content(tmp_path):
    written = save(product(1), tmp_path / "m.onnx", external_data=True)
    assert written == (tmp_path / "m.onnx", *data_files(tmp_path / "m.onnx"))
    assert names(tmp_path) == sorted(path.name for path in written)
    assert locations(tmp_path / "m.onnx") == {written[1].name}
    assert data_file(written) == str(written[1])
    assert is_mapped(load(tmp_path / "m.onnx").params["w"])
    assert factor(tmp_path / "m.onnx") == 1
    onnx.checker.check_model(tmp_path / "m.onnx", full_check=True)


def test_the_same_model_gives_the_same_files_another_one_others(tmp_path):
    first = save(product(1), tmp_path / "m.onnx", external_data=True)
    before = [path.read_bytes() for path in first]
    assert save(product(1), tmp_path / "m.onnx", external_data=True) == first
    assert [path.read_bytes() for path in first] == before
    assert save(product(2), tmp_path / "m.onnx", external_data=True)[1] != first[1]


def test_a_model_of_small_tensors_has_no_data_file(tmp_path):
    model = product(1)
    small = model.replace(params={"w": model.params["w"][:, :4].copy()}, graph=model.graph)
    assert save(small, tmp_path / "m.onnx", external_data=True) == (tmp_path / "m.onnx",)
    assert names(tmp_path) == ["m.onnx"]
    assert data_file((tmp_path / "m.onnx",)) is None


@pytest.mark.parametrize("before", [True, False], ids=["data outside", "data inside"])
@pytest.mark.parametrize("after", [True, False], ids=["then outside", "then inside"])
def test_a_model_that_is_replaced_is_whole_at_every_moment(tmp_path, monkeypatch, before, after):
    path = tmp_path / "m.onnx"

    def action():
        for each in tmp_path.iterdir():
            if each.is_file():
                each.unlink()
        save(product(1), path, external_data=before)
        return lambda: save(product(2), path, external_data=after)

    found = []
    every_kill(monkeypatch, action, lambda: found.append(factor(path)))
    assert found == sorted(found)
    assert set(found) == {1.0, 2.0}
    files = [each.name for each in tmp_path.iterdir() if each.is_file()]
    assert len(files) == 1 + after  # the old data are gone


def test_a_first_model_is_there_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    path, found = tmp_path / "m.onnx", set()

    def action():
        path.unlink(missing_ok=True)
        return lambda: save(product(3), path, external_data=True)

    every_kill(monkeypatch, action, lambda: found.add(factor(path) if path.exists() else None))
    assert found == {None, 3.0}


def test_a_model_is_written_over_the_data_that_it_reads(tmp_path):
    path = tmp_path / "m.onnx"
    (_, old) = save(product(1), path, external_data=True)
    model = load(path)
    doubled = model.replace(params={"w": model.params["w"] * 2, "kept": model.params["w"]})
    assert is_mapped(doubled.params["kept"])
    save(doubled, path, external_data=True)
    assert not old.exists()
    assert factor(path) == 2
    np.testing.assert_array_equal(load(path).params["w"], 2 * np.eye(16))
    assert float(model([X])["y"][0, -1]) == 1  # the mapped file lives on until nobody reads it
    save(model, path)  # and can be written again
    assert factor(path) == 1


def test_data_files_of_others_stay(tmp_path):
    path = tmp_path / "m.onnx"
    kept = ["m.onnx.data", "m.onnx.0123456789abcdef.data", "other.onnx.0123456789abcdef.data", "m.bin"]
    for name in kept:
        (tmp_path / name).write_bytes(bytes(2048))
    save(product(1), path, external_data=True)
    save(product(2), path)
    assert names(tmp_path) == sorted([*kept, "m.onnx"])


@pytest.mark.parametrize("name", ["m.onnx.data", "weights", "other.onnx.0123456789abcdef.data"])
def test_data_of_a_model_that_another_tool_wrote_stay(tmp_path, name):
    path = tmp_path / "m.onnx"
    save(product(1), path)
    proto = onnx.load(path)
    onnx.save(proto, path, save_as_external_data=True, location=name, size_threshold=0)
    save(product(2), path)
    assert names(tmp_path) == sorted(["m.onnx", name])
    assert factor(path) == 2


def test_a_file_that_is_no_model_is_replaced(tmp_path):
    path = tmp_path / "m.onnx"
    (tmp_path / "m.onnx.0123456789abcdef.data").write_bytes(b"mine")
    path.write_bytes(b"no model")
    assert data_files(path) == set()
    save(product(1), path)
    assert names(tmp_path) == ["m.onnx", "m.onnx.0123456789abcdef.data"]


def test_when_the_model_file_cannot_be_put_in_place_its_data_go_too(tmp_path, monkeypatch):
    path = tmp_path / "m.onnx"
    save(product(1), path, external_data=True)
    before = names(tmp_path)
    real = os.replace

    def full(source, target, **options):
        if str(target) == str(path):
            raise OSError(28, "No space left on device")
        real(source, target, **options)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ConfigError, match="No space left"):
        save(product(2), path, external_data=True)
    assert names(tmp_path) == before
    assert factor(path) == 1


# ------------------------------------------------------------------------------------------------------ files that go together


def test_a_model_that_is_moved_is_whole_here_or_there(tmp_path, monkeypatch):
    here, there = tmp_path / "m.onnx", tmp_path / "there" / "m.onnx"
    there.parent.mkdir()

    def action():
        for each in (*there.parent.iterdir(), *tmp_path.glob("m.*")):
            each.unlink()
        save(product(1), here, external_data=True)
        return lambda: move_model(here, there.parent)

    def check():
        assert here.exists() != there.exists()
        assert factor(here if here.exists() else there) == 1

    assert every_kill(monkeypatch, action, check) >= 2
    assert there.exists()
    assert names(tmp_path) == ["there"]
    assert len(names(there.parent)) == 2


def test_reports_are_withdrawn_before_what_they_are_about_is_replaced(tmp_path):
    write_text(tmp_path / "a.json", "{}")
    withdraw(tmp_path / "a.json", tmp_path / "never there.json", None)
    assert names(tmp_path) == []
