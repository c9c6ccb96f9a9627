"""Writing files."""

import os
import stat
from pathlib import Path

import pytest

from jaxq.errors import ConfigError
from jaxq.files import check_writable, write_bytes, write_text


def test_a_new_file_in_a_folder_can_be_written(tmp_path):
    check_writable(tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_path_in_the_current_folder_needs_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_writable("model.onnx")
    write_text("model.onnx", "x")


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="nowhere' does not exist; make it first"):
        check_writable(tmp_path / "nowhere" / "model.onnx")


def test_a_folder_in_place_of_a_file_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="it is a folder"):
        check_writable(tmp_path)


def test_a_file_in_place_of_a_folder_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file, not a folder"):
        check_writable(tmp_path / "file" / "model.onnx")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_without_permission_is_an_error(tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(ConfigError, match="no file can be made in"):
        check_writable(tmp_path / "model.onnx")
    tmp_path.chmod(stat.S_IRWXU)


def test_a_file_is_replaced_as_a_whole(tmp_path):
    write_text(tmp_path / "result.json", "first, and long")
    write_text(tmp_path / "result.json", "zweites, größer")
    assert (tmp_path / "result.json").read_text(encoding="utf-8") == "zweites, größer"
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_a_file_gets_the_permissions_of_any_new_file(tmp_path):
    write_bytes(tmp_path / "a", b"")
    (tmp_path / "b").write_bytes(b"")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_nothing_is_left_when_writing_fails(tmp_path):
    (tmp_path / "result.json").mkdir()
    with pytest.raises(OSError):
        write_text(tmp_path / "result.json", "x")
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder in which nobody can make files")
def test_a_folder_in_which_no_file_can_be_made_is_an_error():
    with pytest.raises(ConfigError, match="no file can be made in '/proc'"):
        check_writable("/proc/model.onnx")
