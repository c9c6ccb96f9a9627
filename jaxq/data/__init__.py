"""Data sets: any iterable from Python, and what the command line's DATA can name (files, folders, images, a function).

jaxq never makes calibration data up: what is not there, does not fit or cannot be read is an error.
"""

from __future__ import annotations

import importlib
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxq.data.array_files import ARRAY_SUFFIXES, ArrayFile, ArrayFiles
from jaxq.data.check import DataCheck
from jaxq.data.images import IMAGE_SUFFIXES, ImageOptions, ImageReader
from jaxq.errors import CalibrationError, ConfigError, JaxqError, did_you_mean
from jaxq.model import Model

__all__ = ["DataCheck", "Dataset", "ImageOptions", "open_data"]


class Dataset:
    """Samples for calibration or evaluation, from any iterable.

    Each item, after `transform_fn`, is a batch for the model: {input name: array}, a tuple of arrays in the order of
    the inputs, or the array alone.

    Args:
      loader: an iterable that can be passed over more than once (a list, a torch DataLoader, ...). A one-shot iterator
        is taken too: the items that it gave are kept in memory, so that the next pass sees them again.
      transform_fn: turns an item of the loader into what the model takes; e.g. drops the label.

    Raises:
      ConfigError: the loader is not an iterable of batches.
    """

    def __init__(self, loader: Iterable[Any], transform_fn: Callable[[Any], Any] | None = None):
        if isinstance(loader, str | bytes | os.PathLike):
            raise ConfigError(
                f"a Dataset takes an iterable of batches, not the path {loader!r}; "
                "open that with jaxq.data.open_data(path, model)"
            )
        if isinstance(loader, Mapping):
            raise ConfigError(
                "a Dataset takes an iterable of batches, but a mapping is one batch; put it in a list: [{name: array}]"
            )
        if not isinstance(loader, Iterable) and not hasattr(loader, "__getitem__"):
            raise ConfigError(f"a Dataset takes an iterable of batches; {type(loader).__name__} is not iterable")
        if transform_fn is not None and not callable(transform_fn):
            raise ConfigError(f"transform_fn is a function of one item; {transform_fn!r} cannot be called")
        self._loader = _Replayed(loader) if isinstance(loader, Iterator) else loader
        self._transform = transform_fn

    def __iter__(self) -> Iterator[Any]:
        if self._transform is None:
            yield from self._loader
            return
        for number, item in enumerate(self._loader):
            try:
                value = self._transform(item)
            except Exception as error:
                error.add_note(f"in transform_fn, for item {number} of the data set")
                raise
            yield value

    @property
    def transform_fn(self) -> Callable[[Any], Any] | None:
        """What turns an item of the loader into what the model takes; None: items are that already."""
        return self._transform

    def items(self) -> Iterator[Any]:
        """The items as the loader gives them, with their labels."""
        yield from self._loader

    def __len__(self) -> int:
        """The number of items, where the loader knows it; TypeError otherwise, as for a generator."""
        return len(self._loader)  # type: ignore[arg-type]

    def __bool__(self) -> bool:
        return True  # without this, `if dataset:` would ask for the length


class _Replayed:
    """A one-shot iterator that can be passed over more than once, because what it gave is kept."""

    def __init__(self, source: Iterator[Any]):
        self._source, self._seen = source, list[Any]()

    def __iter__(self) -> Iterator[Any]:
        for position in itertools.count():
            if position == len(self._seen):
                try:
                    self._seen.append(next(self._source))
                except StopIteration:
                    return
            yield self._seen[position]


def open_data(
    spec: str | os.PathLike[str],
    model: Model,
    *,
    limit: int | None = None,
    images: ImageOptions | None = None,
    label: str | None = None,
) -> Dataset:
    """The data set that a name stands for.

    * `samples.npz`: keys are input names, the first axis counts samples; other keys (`label`) are left out.
      `samples.npy` does for a model with one input. Both are read row by row, whatever their size.
    * a folder of images, in its subfolders too, in the order of their paths.
    * a folder of `.npy` or `.npz` files, each one sample or several, in the order of their paths.
    * `package.module:function`: what the function returns; it is called anew for each pass.

    Args:
      spec: one of the above.
      model: its inputs say what a sample looks like.
      limit: of a folder, at most this many files, evenly spread, so that one sorted by class gives every class.
      images: how images become inputs; for folders of images only.
      label: a key of .npz files that is kept beside the inputs.

    Raises:
      CalibrationError: there are no data under that name, or they cannot be read; the message names the file.
      InputError: names or ranks do not fit the model's inputs.
      ConfigError: an option is wrong, or has no meaning for such data.
      RuntimeMissingError: images, without pillow.
    """
    text, path = os.fspath(spec), Path(spec)
    loader: Iterable[Any]
    if path.is_dir():
        files, are_images = list_folder(path)
        if are_images:
            return Dataset(spread(files, limit), ImageReader.of(model.inputs, images or ImageOptions()))
        loader = ArrayFiles(spread(files, limit), model.inputs, label)
    elif path.suffix.lower() in ARRAY_SUFFIXES and path.is_file():
        loader = ArrayFile(path, model.inputs, label)
    elif re.fullmatch(r"[^/\\:]+:\w+", text) and not path.exists():
        loader = _Called(text)
    else:
        raise _not_data(path)
    if images not in (None, ImageOptions()):
        raise ConfigError(f"{images} is for a folder of images, and {text!r} is not one")
    return Dataset(loader)


def _not_data(path: Path) -> JaxqError:
    if path.exists():
        return ConfigError(
            f"{str(path)!r} is nothing that jaxq reads data from; give an .npz or .npy file, a folder of images or of "
            "such files, or package.module:function"
        )
    around = path.parent.iterdir() if path.parent.is_dir() else ()
    known = [other.name for other in around if other.is_dir() or other.suffix.lower() in ARRAY_SUFFIXES]
    return CalibrationError(f"no such file or folder of data: {str(path)!r}{did_you_mean(path.name, known)}")


def list_folder(folder: Path) -> tuple[list[Path], bool]:
    """The data files below a folder, sorted by path, and whether they are images; hidden files are left out."""
    files = sorted(
        path
        for path in folder.rglob("[!.]*")
        if path.is_file() and "/." not in f"/{path.relative_to(folder).as_posix()}"
    )
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    arrays = [path for path in files if path.suffix.lower() in ARRAY_SUFFIXES]
    if images and arrays:
        raise ConfigError(
            f"{str(folder)!r} holds images and arrays ({images[0].name!r}, {arrays[0].name!r}); "
            "put them into folders of their own"
        )
    if not images and not arrays:
        held = f"{len(files)} other files, {files[0].name!r} the first" if files else "nothing"
        suffixes = " ".join(sorted(IMAGE_SUFFIXES | ARRAY_SUFFIXES))
        raise CalibrationError(f"{str(folder)!r} has no images and no arrays ({suffixes}); it holds {held}")
    return images or arrays, bool(images)


def spread(files: Sequence[Path], limit: int | None) -> list[Path]:
    """At most `limit` of the files, evenly spread over the list."""
    if limit is None or len(files) <= limit:
        return list(files)
    return [files[number * len(files) // limit] for number in range(limit)]


class _Called:
    """What `package.module:function` returns, called anew for each pass."""

    def __init__(self, spec: str):
        self.spec = spec
        module_name, _, name = spec.partition(":")
        if module_name.endswith(".py"):
            raise ConfigError(f"{spec!r}: give the module without .py: {module_name.removesuffix('.py')}:{name}")
        if "" not in sys.path:  # as with `python -m`: the user's module lies in the current folder
            sys.path.insert(0, "")
        try:
            module = importlib.import_module(module_name)
        except Exception as error:
            raise ConfigError(f"{spec!r}: module {module_name!r} cannot be imported: {_words(error)}") from error
        self.function = getattr(module, name, None)
        if not callable(self.function):
            known = [key for key, value in vars(module).items() if callable(value)]
            raise ConfigError(f"{spec!r}: module {module_name!r} has no function {name!r}{did_you_mean(name, known)}")

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from Dataset(self.function())  # type: ignore[misc]
        except JaxqError as error:
            raise type(error)(f"{self.spec}: {error}") from error
        except Exception as error:
            raise CalibrationError(f"{self.spec} failed: {_words(error)}") from error


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
