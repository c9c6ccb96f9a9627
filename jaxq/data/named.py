"""The data that a name stands for: files, folders, patterns, lists, images, a function."""

from __future__ import annotations

import glob
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxq.data.array_files import ARRAY_SUFFIXES, ArrayFile, ArrayFiles
from jaxq.data.dataset import Dataset
from jaxq.data.functions import named_function, names_function
from jaxq.data.images import IMAGE_SUFFIXES, ImageOptions, ImageReader
from jaxq.engine.model import Model
from jaxq.errors import (
    CalibrationError,
    ConfigError,
    InputError,
    JaxqError,
    JaxqWarning,
    Option,
    OptionPath,
    about,
    did_you_mean,
    inside,
)

# Options of images that are no reason to refuse data of another kind: the last asks for the model's size only.
NOTHING_SAID = (ImageOptions(), ImageOptions(central_fraction=1.0))


def open_data(
    spec: str | os.PathLike[str],
    model: Model,
    *,
    limit: int | None = None,
    images: ImageOptions | None = None,
    batch_axis: int | None = 0,
    seed: int | None = None,
    label: str | None = None,
    place: OptionPath = (),
) -> Dataset:
    """The data set that a name stands for.

    * `samples.npz`: keys are input names, the first axis counts samples; other keys (`label`) are left out.
      `samples.npy` does for a model with one input. Both are read row by row, whatever their size.
    * a folder of images, in its subfolders too, in the order of their paths.
    * a folder of `.npy` or `.npz` files, each one sample or several, in the order of their paths.
    * a pattern (`photos/**/*.jpg`), or a text file with one path in each line, of either kind of files.
    * `package.module:function`: what the function returns; it is called anew for each pass.

    Args:
      spec: one of the above.
      model: its inputs say what a sample looks like.
      limit: of several files, at most this many, evenly spread, so that a folder sorted by class gives every class.
      images: how images become inputs; for images only.
      batch_axis: see `Dataset`.
      label: a key of .npz files that is kept beside the inputs.
      seed: draws `limit` items at random instead; None: the first ones, or files evenly spread.
      place: the argument that errors are about, e.g. ("validation_dataset",).

    Raises:
      CalibrationError: there are no data under that name, or they cannot be read; the message names the file.
      InputError: names or ranks do not fit the model's inputs.
      ConfigError: an option is wrong, or has no meaning for such data.
      RuntimeMissingError: images, without pillow.
    """
    with about(*place, kinds=(CalibrationError, ConfigError, InputError)):
        loader, reader = _source(os.fspath(spec), model, images, batch_axis, limit if seed is None else None, label)
    data = Dataset(loader, reader, batch_axis=batch_axis)
    data.place = place
    return data if seed is None or limit is None else data.sample(limit, seed)


def _source(
    text: str,
    model: Model,
    images: ImageOptions | None,
    batch_axis: int | None,
    limit: int | None,
    label: str | None = None,
) -> tuple[Iterable[Any], ImageReader | None]:
    """What gives the items, and what makes inputs of them where they are images."""
    path = Path(text)
    files = _listed_files(text, path)
    if files is not None:
        chosen = spread(files, limit)
        if files[0].suffix.lower() in IMAGE_SUFFIXES:
            return chosen, _image_reader(model, images)
    if images is not None and images not in NOTHING_SAID:
        said = [Option(("images", key), value) for key, value in vars(images).items() if value is not None]
        listed = [piece for option in said for piece in (option, ", ")][:-1]
        raise ConfigError(*listed, f" is for a folder of images, and {text!r} is not one")
    if files is not None:
        return ArrayFiles(chosen, model.inputs, batch_axis is not None, label), None
    if path.suffix.lower() in ARRAY_SUFFIXES and path.is_file():
        return ArrayFile(path, model.inputs, batch_axis is not None, label), None
    if names_function(text) and not path.exists():
        return _Called(text), None
    raise _not_data(path)


def _image_reader(model: Model, images: ImageOptions | None) -> ImageReader:
    options = images or ImageOptions()
    with inside("images"):
        reader = ImageReader.of(model.inputs, options)
    if options.mean is None and options.std is None and reader.wanted.dtype != "uint8":
        warnings.warn(
            "pictures are given to the model as pixels from 0 to 255, since neither mean nor std is set; if it was trained on "
            "normalized pictures, set them (a mean of 0 says that pixels are meant)",
            JaxqWarning,
            stacklevel=4,
        )
    return reader


def _not_data(path: Path) -> JaxqError:
    if path.exists():
        return ConfigError(
            f"{str(path)!r} is nothing that jaxq reads data from; give an .npz or .npy file, a folder of images or of "
            "such files, or package.module:function"
        )
    around = path.parent.iterdir() if path.parent.is_dir() else ()
    known = [other.name for other in around if other.is_dir() or other.suffix.lower() in ARRAY_SUFFIXES]
    return CalibrationError(f"no such file or folder of data: {str(path)!r}{did_you_mean(path.name, known)}")


def _listed_files(text: str, path: Path) -> list[Path] | None:
    """The files of a folder, of a pattern or in a list, all of one kind; None if the name stands for something else."""
    if path.is_dir():
        return list_folder(path)
    if path.suffix.lower() == ".txt" and path.is_file():
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        found = [path.parent / line for line in lines if line]
        for file in found:
            if not file.is_file():
                raise CalibrationError(f"{text!r} lists {str(file)!r}, which does not exist")
    elif any(sign in text for sign in "*?[") and not path.exists():
        found = sorted(Path(name) for name in glob.glob(text, recursive=True) if Path(name).is_file())  # noqa: PTH207
    else:
        return None
    return one_kind(found, text)


def list_folder(folder: Path) -> list[Path]:
    """The data files below a folder, sorted by path, all images or all arrays; hidden files are left out."""
    files = sorted(
        path
        for path in folder.rglob("[!.]*")
        if path.is_file() and "/." not in f"/{path.relative_to(folder).as_posix()}"
    )
    return one_kind(files, str(folder))


def one_kind(files: Sequence[Path], where: str) -> list[Path]:
    """The images, or the arrays, among the files.

    Raises:
      ConfigError: there are both.
      CalibrationError: there are none.
    """
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    arrays = [path for path in files if path.suffix.lower() in ARRAY_SUFFIXES]
    if images and arrays:
        raise ConfigError(
            f"{where!r} holds images and arrays ({images[0].name!r}, {arrays[0].name!r}); put them into folders of their own"
        )
    if not images and not arrays:
        held = f"{len(files)} other files, {files[0].name!r} the first" if files else "nothing"
        suffixes = " ".join(sorted(IMAGE_SUFFIXES | ARRAY_SUFFIXES))
        raise CalibrationError(f"{where!r} has no images and no arrays ({suffixes}); it holds {held}")
    return images or arrays


def spread(files: Sequence[Path], limit: int | None) -> list[Path]:
    """At most `limit` of the files, evenly spread over the list."""
    if limit is None or len(files) <= limit:
        return list(files)
    return [files[number * len(files) // limit] for number in range(limit)]


class _Called:
    """What `package.module:function` returns, called anew for each pass."""

    def __init__(self, spec: str):
        self.spec = spec
        self.function = named_function(spec)

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from Dataset(self.function())
        except JaxqError as error:
            error.args = (f"{self.spec}: ", *error.args)
            raise
        except Exception as error:
            raise CalibrationError(f"{self.spec} failed: {type(error).__name__}: {error}") from error
