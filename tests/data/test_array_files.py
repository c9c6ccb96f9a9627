"""Samples in .npz and .npy files."""

import io
import zipfile
from dataclasses import dataclass

import numpy as np
import pytest

from jaxq.data.array_files import ArrayFile, ArrayFiles
from jaxq.errors import CalibrationError, InputError
from jaxq.graph.ir import TensorType

FREE = {"x": TensorType("float32", ("N", 2, 3))}


def numbers(*shape: int, dtype=np.float32) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """An array in a file, an input, and the samples that the one gives the other."""

    array: np.ndarray
    wanted: TensorType
    samples: list[np.ndarray]


FITS = {
    "first axis counts": Fit(
        array=numbers(5, 2, 3), wanted=TensorType("float32", ("N", 2, 3)), samples=list(numbers(5, 1, 2, 3))
    ),
    "batch of one": Fit(array=numbers(5, 2), wanted=TensorType("float32", (1, 2)), samples=list(numbers(5, 1, 2))),
    "fixed batch": Fit(array=numbers(6, 2), wanted=TensorType("float32", (3, 2)), samples=list(numbers(2, 3, 2))),
    "an axis in front": Fit(
        array=numbers(5, 2, 1, 4), wanted=TensorType("float32", (2, "N", 4)), samples=list(numbers(5, 2, 1, 4))
    ),
    "one sample": Fit(array=numbers(2, 3), wanted=TensorType("float32", ("N", 2, 3)), samples=[numbers(1, 2, 3)]),
    "scalars": Fit(
        array=numbers(3, dtype=np.int64), wanted=TensorType("int64", ()), samples=list(numbers(3, dtype=np.int64))
    ),
    "unknown rank": Fit(array=numbers(3, 2), wanted=TensorType("float32"), samples=list(numbers(3, 1, 2))),
    "Fortran order": Fit(
        array=np.asfortranarray(numbers(5, 2, 3)), wanted=FREE["x"], samples=list(numbers(5, 1, 2, 3))
    ),
    "big-endian": Fit(array=numbers(2, 2, 3, dtype=">f4"), wanted=FREE["x"], samples=list(numbers(2, 1, 2, 3))),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["stored", "compressed"])
@pytest.mark.parametrize("fit", FITS.values(), ids=FITS)
def test_npz_gives_samples_with_the_batch_axis_of_the_input(tmp_path, fit, save):
    save(tmp_path / "data.npz", x=fit.array)
    data = ArrayFile(tmp_path / "data.npz", {"x": fit.wanted})
    assert len(data) == len(fit.samples)
    for item, sample in zip(data, fit.samples, strict=True):
        np.testing.assert_array_equal(item["x"], sample)
        assert item["x"].dtype.isnative
        assert item["x"].dtype == fit.array.dtype.newbyteorder("=")


@pytest.mark.parametrize("fit", FITS.values(), ids=FITS)
def test_npy_gives_the_same(tmp_path, fit):
    np.save(tmp_path / "data.npy", fit.array)
    for item, sample in zip(ArrayFile(tmp_path / "data.npy", {"x": fit.wanted}), fit.samples, strict=True):
        np.testing.assert_array_equal(item["x"], sample)


def test_a_single_value_for_a_scalar_input_serves_every_sample(tmp_path):
    np.savez(tmp_path / "data.npz", x=numbers(3, 2, 3), rate=np.int64(16000), label=numbers(7))
    declared = FREE | {"rate": TensorType("int64", ())}
    assert [int(item["rate"]) for item in ArrayFile(tmp_path / "data.npz", declared)] == [16000] * 3


def test_a_file_can_be_read_again(tmp_path):
    np.savez(tmp_path / "data.npz", x=numbers(3, 2, 3))
    data = ArrayFile(tmp_path / "data.npz", FREE)
    for first, second in zip(data, data, strict=True):
        np.testing.assert_array_equal(first["x"], second["x"])


def test_rows_are_read_when_they_are_asked_for(tmp_path):
    """The second row's bytes are damaged: the first row is given all the same."""
    np.savez_compressed(tmp_path / "data.npz", x=np.random.default_rng(0).random((2, 2, 300_000), np.float32))
    content = bytearray((tmp_path / "data.npz").read_bytes())
    content[len(content) * 3 // 4] ^= 0xFF
    (tmp_path / "data.npz").write_bytes(content)
    items = iter(ArrayFile(tmp_path / "data.npz", {"x": TensorType("float32", ("N", 2, 300_000))}))
    next(items)
    with pytest.raises(CalibrationError, match=r"key 'x' of .*data\.npz' is damaged"):
        list(items)


def test_several_files_follow_each_other(tmp_path):
    np.savez(tmp_path / "a.npz", x=numbers(2, 2, 3))
    np.save(tmp_path / "b.npy", numbers(2, 3))
    files = ArrayFiles([tmp_path / "a.npz", tmp_path / "b.npy"], FREE)
    assert [item["x"].shape for item in files] == [(1, 2, 3)] * 3


@pytest.mark.parametrize(
    "arrays, declared, message",
    [
        pytest.param(
            {"y": numbers(1, 2, 3), "label": numbers(1)}, FREE,
            r"no array for .* 'x'.*its keys: \['y', 'label'\]", id="no key",
        ),
        pytest.param({"inputs": numbers(1, 2, 3)}, {"input": FREE["x"]}, "did you mean 'inputs'", id="misspelt key"),
        pytest.param({"x": numbers(4)}, FREE, r"shape \[4\], but input 'x' is float32\[N, 2, 3\]", id="rank too low"),
        pytest.param({"x": numbers(1, 1, 1, 2, 3)}, FREE, "rank must be 3", id="rank too high"),
        pytest.param(
            {"x": numbers(4, 2)}, {"x": TensorType("float32", (3, 2))}, "4 rows.*exactly 3", id="no whole batches"
        ),
        pytest.param(
            {"x": numbers(3, 2, 3), "y": numbers(2, 1)}, FREE | {"y": TensorType("float32", ("N", 1))},
            "'x' has 3, 'y' has 2", id="lengths differ",
        ),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit_are_an_error_that_shows_both_sides(tmp_path, arrays, declared, message):
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(InputError, match=message):
        ArrayFile(tmp_path / "data.npz", declared)


def test_no_rows_are_no_samples(tmp_path):
    np.savez(tmp_path / "data.npz", x=numbers(0, 2, 3))
    with pytest.raises(CalibrationError, match="no samples"):
        ArrayFile(tmp_path / "data.npz", FREE)


@pytest.mark.parametrize("name", ["data.npz", "data.npy"])
def test_pickled_objects_are_refused(tmp_path, name):
    save = np.savez if name.endswith("npz") else np.save
    save(tmp_path / name, **{"x" if name.endswith("npz") else "arr": np.array([{}, {}], object)}, allow_pickle=True)
    with pytest.raises(CalibrationError, match="pickled Python objects"):
        ArrayFile(tmp_path / name, FREE)


def test_npy_for_a_model_with_two_inputs_is_refused(tmp_path):
    np.save(tmp_path / "data.npy", numbers(1, 2, 3))
    with pytest.raises(InputError, match=r"but 2 are needed; use \.npz, with the keys \['x', 'y'\]"):
        ArrayFile(tmp_path / "data.npy", {"x": FREE["x"], "y": FREE["x"]})


def test_a_file_that_is_no_npz_is_an_error(tmp_path):
    (tmp_path / "data.npz").write_bytes(b"no zip")
    with pytest.raises(CalibrationError, match=r"data\.npz' is not an \.npz file"):
        ArrayFile(tmp_path / "data.npz", FREE)


def test_a_member_that_is_no_array_is_an_error(tmp_path):
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        archive.writestr("x.npy", b"no array at all")
    with pytest.raises(CalibrationError, match=r"key 'x' of .* is not an array"):
        ArrayFile(tmp_path / "data.npz", FREE)


def test_a_truncated_npy_is_an_error(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, numbers(3, 2, 3))
    (tmp_path / "data.npy").write_bytes(buffer.getvalue()[:-8])
    with pytest.raises(CalibrationError, match="is truncated: 24 bytes were expected, 16 are left"):
        list(ArrayFile(tmp_path / "data.npy", FREE))
