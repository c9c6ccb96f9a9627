"""Data sets from Python and by name."""

import sys
from pathlib import Path

import numpy as np
import pytest

from jaxq.data import Dataset, ImageOptions, open_data
from jaxq.data.named import list_folder, spread
from jaxq.engine.model import Model
from jaxq.errors import CalibrationError, ConfigError, InputError, JaxqError, JaxqWarning
from jaxq.graph.ir import FrozenDict, Graph, TensorType


def model_with(**inputs: TensorType) -> Model:
    """A model of which only the inputs matter."""
    return Model(Graph(nodes=(), inputs=tuple(inputs), outputs=(), types=FrozenDict(inputs)), params={})


VECTOR = model_with(x=TensorType("float32", ("N", 4)))
IMAGE = model_with(image=TensorType("float32", ("N", 3, 8, 8)))

# ------------------------------------------------------------------------------------------------------------ Dataset


def test_dataset_gives_the_items_of_its_loader_each_time():
    data = Dataset([1, 2, 3])
    assert list(data) == list(data) == [1, 2, 3]


def test_dataset_applies_transform_func():
    assert list(Dataset([(1, "a"), (2, "b")], lambda item: item[0])) == [1, 2]


def test_dataset_replays_a_one_shot_iterator():
    data = Dataset(item for item in range(4))
    first = iter(data)
    assert [next(first), next(first)] == [0, 1]
    assert list(data) == [0, 1, 2, 3]
    assert list(first) == [2, 3]


def test_dataset_reads_no_more_of_a_one_shot_iterator_than_it_is_asked_for():
    source = iter(range(10))
    next(iter(Dataset(source)))
    assert next(source) == 1


def test_dataset_has_the_length_of_its_loader():
    assert len(Dataset([1, 2, 3])) == 3


def test_dataset_of_unknown_length_has_none_but_is_true():
    data = Dataset(iter([1]))
    assert data
    with pytest.raises(TypeError):
        len(data)


@pytest.mark.parametrize(
    "loader, message",
    [
        pytest.param("samples.npz", "open_data", id="path"),
        pytest.param({"x": np.zeros(3)}, r"put it in a list: \[{name: array}\]", id="one batch"),
        pytest.param(3, "int is not iterable", id="number"),
    ],
)
def test_dataset_refuses_what_is_no_iterable_of_batches(loader, message):
    with pytest.raises(ConfigError, match=message):
        Dataset(loader)


def test_dataset_refuses_a_transform_that_cannot_be_called():
    with pytest.raises(ConfigError, match="cannot be called"):
        Dataset([1], transform_func="first")


def test_an_error_in_transform_func_says_for_which_item():
    with pytest.raises(ZeroDivisionError) as error:
        list(Dataset([1, 0], lambda item: 1 / item))
    assert "item 1" in error.value.__notes__[0]


@pytest.mark.parametrize("axis", [-1, True, "0", 1.0])
def test_dataset_refuses_what_is_no_axis(axis):
    with pytest.raises(ConfigError, match=r"batch_axis = .*; expected the number of an axis"):
        Dataset([1], batch_axis=axis)


def test_a_sample_of_the_items_is_drawn_by_its_seed():
    data = Dataset(list(range(100)), lambda item: -item)
    some = list(data.sample(10, seed=0))
    assert some == sorted(some, reverse=True) == list(data.sample(10, seed=0))
    assert len(set(some)) == 10
    assert set(some) != {-item for item in range(10)}
    assert some != list(data.sample(10, seed=1))
    assert list(data.sample(200, seed=0)) == list(data)


def test_a_sample_is_drawn_from_a_source_of_unknown_length_too():
    class Source:
        def __iter__(self):
            return iter(range(100))

    assert list(Dataset(Source()).sample(10, seed=3)) == list(Dataset(list(range(100))).sample(10, seed=3))


def shapes(data: Dataset, model: Model) -> list[tuple[int, ...]]:
    return [feed["x"].shape for feed in data.feeds(model)]


def test_an_item_is_split_along_the_batch_axis():
    sound = model_with(x=TensorType("float32", ("time", "N", 4)))
    item = np.zeros((5, 2, 4), np.float32)
    assert shapes(Dataset([item]), sound) == [(1, 2, 4)] * 5
    assert shapes(Dataset([item], batch_axis=1), sound) == [(5, 1, 4)] * 2
    assert shapes(Dataset([item], batch_axis=None), sound) == [(5, 2, 4)]
    assert shapes(Dataset([item], batch_axis=2), sound) == [(5, 2, 4)]  # an axis of one size holds no samples


def test_one_batch_in_place_of_batches_is_an_error_that_says_so():
    message = r"its rank is 3, not 4\. The data set is one array, \[5, 3, 8, 8\], whose 5 rows .*: \[array\]"
    with pytest.raises(InputError, match=message):
        list(Dataset(np.zeros((5, 3, 8, 8), np.float32)).feeds(IMAGE))


def test_channels_at_the_other_end_are_an_error_that_says_how_to_turn_them():
    message = (
        r"axis 1 must be 3, not 8; it looks like NHWC where the model takes NCHW: give array\.transpose\(0, 3, 1, 2\)"
    )
    with pytest.raises(InputError, match=message):
        list(Dataset([np.zeros((5, 8, 8, 3), np.float32)]).feeds(IMAGE))


# ------------------------------------------------------------------------------------------------------- DATA, by name


def test_npz_is_opened_by_name(tmp_path):
    np.savez(tmp_path / "samples.npz", x=np.arange(12, dtype=np.float32).reshape(3, 4), label=np.arange(3))
    data = open_data(tmp_path / "samples.npz", VECTOR)
    assert len(data) == 3
    np.testing.assert_array_equal(list(data)[1]["x"], [[4, 5, 6, 7]])


def test_folder_of_arrays_is_read_in_the_order_of_the_paths(tmp_path):
    for number in (2, 0, 1):
        np.save(tmp_path / f"{number}.npy", np.full(4, number, np.float32))
    values = [item["x"][0, 0] for item in open_data(tmp_path, VECTOR)]
    assert values == [0, 1, 2]


def test_folder_of_images_is_read_with_its_subfolders(tmp_path):
    pillow = pytest.importorskip("PIL.Image")
    for number, place in enumerate(["a/2.png", "b/1.PNG", "a/10.png"]):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        pillow.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / place)
    red = [item["image"][0, 0, 0, 0] for item in open_data(tmp_path, IMAGE)]
    assert red == [2, 0, 1]  # a/10, a/2, b/1


def test_limit_spreads_over_a_folder_sorted_by_class():
    files = [Path(f"{label}/{number}.png") for label in "abcd" for number in range(10)]
    assert {file.parent.name for file in spread(files, 4)} == set("abcd")
    assert spread(files, 40) == spread(files, 41) == spread(files, None) == files
    assert len(set(spread(files, 39))) == 39


def test_hidden_files_are_left_out(tmp_path):
    (tmp_path / ".git").mkdir()
    for name in (".git/x.npy", "._1.npy", "1.npy"):
        np.save(tmp_path / name, np.zeros(4, np.float32))
    assert list_folder(tmp_path) == [tmp_path / "1.npy"]


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    """A current folder whose modules can be imported, and are forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_function_is_called_anew_for_each_pass(in_folder):
    (in_folder / "my_samples.py").write_text("def load():\n    for number in range(3): yield number\n")
    data = open_data("my_samples:load", VECTOR)
    assert list(data) == list(data) == [0, 1, 2]


FUNCTIONS = """
number = 3
def give_number(): return 3
def fail(): raise ValueError("no such disk")
def fail_later():
    yield 1
    raise OSError("disk gone")
"""


@pytest.mark.parametrize(
    "spec, message",
    [
        pytest.param("no_module_so_named:load", "No module named 'no_module_so_named'", id="no module"),
        pytest.param("broken_module:load", "broken_module' cannot be imported: SyntaxError", id="broken module"),
        pytest.param("its_functions:give_numbr", "no function 'give_numbr'; did you mean 'give_number'", id="misspelt"),
        pytest.param("its_functions:number", "no function 'number'", id="no function"),
        pytest.param("its_functions.py:fail", "without .py: its_functions:fail", id="file"),
        pytest.param("its_functions:give_number", "int is not iterable", id="no iterable"),
        pytest.param("its_functions:fail", "its_functions:fail failed: ValueError: no such disk", id="fails"),
        pytest.param("its_functions:fail_later", "OSError: disk gone", id="fails later"),
    ],
)
def test_a_function_that_gives_no_data_is_an_error_that_names_it(in_folder, spec, message):
    (in_folder / "its_functions.py").write_text(FUNCTIONS)
    (in_folder / "broken_module.py").write_text("def load(:\n")
    with pytest.raises(JaxqError, match=message):
        list(open_data(spec, VECTOR))


def test_a_missing_file_is_an_error_with_the_nearest_name(tmp_path):
    np.savez(tmp_path / "samples.npz", x=np.zeros((1, 4), np.float32))
    with pytest.raises(CalibrationError, match=r"no such file .*sample\.npz'; did you mean 'samples\.npz'"):
        open_data(tmp_path / "sample.npz", VECTOR)
    with pytest.raises(CalibrationError, match="no such file"):
        open_data(tmp_path / "nowhere" / "sample.npz", VECTOR)


def test_an_empty_folder_is_an_error_that_says_what_it_holds(tmp_path):
    with pytest.raises(CalibrationError, match="it holds nothing"):
        open_data(tmp_path, VECTOR)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(CalibrationError, match=r"1 other files, 'notes\.txt' the first"):
        open_data(tmp_path, VECTOR)


def test_a_folder_of_images_and_arrays_is_refused(tmp_path):
    np.save(tmp_path / "1.npy", np.zeros(4, np.float32))
    (tmp_path / "2.png").write_bytes(b"")
    with pytest.raises(ConfigError, match="folders of their own"):
        open_data(tmp_path, VECTOR)


def test_another_kind_of_file_is_refused(tmp_path):
    (tmp_path / "samples.csv").write_text("1,2,3,4")
    with pytest.raises(ConfigError, match="nothing that jaxq reads data from"):
        open_data(tmp_path / "samples.csv", VECTOR)


def test_image_options_without_images_are_refused(tmp_path):
    np.savez(tmp_path / "samples.npz", x=np.zeros((1, 4), np.float32))
    with pytest.raises(ConfigError, match=r"images\.resize = 256, layout = 'NCHW' is for a folder of images"):
        open_data(tmp_path / "samples.npz", VECTOR, images=ImageOptions(resize=256, layout="NCHW"))


@pytest.fixture
def folder_of_images(tmp_path):
    """Twelve pictures; the red of each is its number."""
    pillow = pytest.importorskip("PIL.Image")
    for number in range(12):
        pillow.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number:02}.png")
    return tmp_path


def reds(data: Dataset) -> list[int]:
    return [int(item["image"][0, 0, 0, 0]) for item in data]


def test_a_pattern_and_a_list_name_images(folder_of_images):
    (folder_of_images / "some.txt").write_text("11.png\n\n02.png\n")
    plain = ImageOptions(mean=(0.0,))
    assert reds(open_data(folder_of_images / "0[0-3].png", IMAGE, images=plain)) == [0, 1, 2, 3]
    assert reds(open_data(folder_of_images / "some.txt", IMAGE, images=plain)) == [11, 2]


def test_a_list_of_files_that_are_not_there_is_refused(tmp_path):
    (tmp_path / "some.txt").write_text("nowhere.png\n")
    with pytest.raises(CalibrationError, match=r"some.txt' lists .*nowhere.png', which does not exist"):
        open_data(tmp_path / "some.txt", IMAGE)
    with pytest.raises(CalibrationError, match="it holds nothing"):
        open_data(tmp_path / "*.png", IMAGE)


def test_images_are_drawn_by_a_seed_or_evenly_spread(folder_of_images):
    plain = ImageOptions(mean=(0.0,))
    assert reds(open_data(folder_of_images, IMAGE, limit=3, images=plain)) == [0, 4, 8]
    drawn = reds(open_data(folder_of_images, IMAGE, limit=3, images=plain, seed=1))
    assert len(drawn) == 3
    assert drawn == reds(open_data(folder_of_images, IMAGE, limit=3, images=plain, seed=1)) != [0, 4, 8]


def test_pictures_without_normalization_are_used_with_a_warning(folder_of_images):
    with pytest.warns(JaxqWarning, match="pixels from 0 to 255, since neither mean nor std is set"):
        open_data(folder_of_images, IMAGE)


def test_a_file_is_one_sample_where_no_axis_counts_samples(tmp_path):
    np.savez(tmp_path / "samples.npz", x=np.zeros((3, 4), np.float32))
    assert shapes(open_data(tmp_path / "samples.npz", VECTOR), VECTOR) == [(1, 4)] * 3
    assert shapes(open_data(tmp_path / "samples.npz", VECTOR, batch_axis=None), VECTOR) == [(3, 4)]


BAD_ARRAYS = {
    "dtype": (np.zeros((3, 4)), r"key 'x' of '.*npz' is float64\[3, 4\], but input 'x' is float32\[N, 4\]; convert it"),
    "size": (np.zeros((3, 5), np.float32), r"key 'x' of '.*npz' is float32\[3, 5\], .*: axis 1 must be 4, not 5"),
    "rank": (np.zeros((3, 1, 1, 4), np.float32), r"key 'x' of '.*npz' has shape \[3, 1, 1, 4\], .* its rank must be 2"),
}


@pytest.mark.parametrize("array, message", BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_an_array_that_does_not_fit_is_refused_with_its_place_in_the_file(tmp_path, array, message):
    np.savez(tmp_path / "samples.npz", x=array)
    with pytest.raises(InputError, match=message):
        open_data(tmp_path / "samples.npz", VECTOR)
