"""Samples in .npz and .npy files.

They are read row by row, so that memory does not grow with the file, and nothing is ever unpickled.
"""

from __future__ import annotations

import functools
import itertools
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from jaxq.engine.model import layout_hint
from jaxq.errors import CalibrationError, InputError, did_you_mean
from jaxq.graph.ir import TensorType

ARRAY_SUFFIXES = frozenset({".npy", ".npz"})


@dataclass(frozen=True)
class ArrayFiles:
    """The samples of several .npy and .npz files, one file after another."""

    paths: Sequence[Path]
    declared: Mapping[str, TensorType]
    batched: bool = True
    label: str | None = None

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        for path in self.paths:
            yield from ArrayFile(path, self.declared, self.batched, self.label)


class ArrayFile:
    """The samples in one .npz or .npy file, each as {input name: array} with a batch of 1, or the model's fixed one.

    An array fits an input of rank r in four ways:

      * rank r: the first axis counts samples, along the input's own batch axis
      * rank r + 1: the first axis counts samples, before all axes that the input has
      * rank r - 1: one sample, without its batch axis
      * rank 0, where the input has rank 0: one value for all samples

    Args:
      path: the file. Keys of an .npz are input names, others are left out; an .npy does for a model with one input.
      declared: input name -> type.
      batched: whether the first axis of an array of rank r counts samples. Otherwise the array is one sample.
      label: a key that is kept beside the inputs, one row for each sample, or None.

    Raises:
      InputError: an input has no array, or one of another rank, size or dtype, or the numbers of samples differ.
      CalibrationError: the file is empty, damaged, or holds pickled objects.
    """

    def __init__(self, path: Path, declared: Mapping[str, TensorType], batched: bool = True, label: str | None = None):
        if label is not None:
            declared = {**declared, label: TensorType("")}
        stored = _stored_arrays(path, declared, label)
        if label is not None:
            declared = {**declared, label: TensorType(stored[label].dtype.name)}  # whatever it is
        self._columns = {name: _Column(name, declared[name], array, batched) for name, array in stored.items()}
        counts = {name: column.count() for name, column in self._columns.items()}
        lengths = {name: count for name, count in counts.items() if count is not None}
        if len(set(lengths.values())) > 1:
            listing = ", ".join(f"{name!r} has {count}" for name, count in lengths.items())
            raise InputError(f"{str(path)!r}: the arrays differ in their number of samples: {listing}")
        self._count = next(iter(lengths.values()), 1)
        if self._count == 0:
            raise CalibrationError(f"{str(path)!r} holds no samples: its arrays have length 0; at least one is needed")

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        columns = {name: column.samples() for name, column in self._columns.items()}
        for _ in range(self._count):
            yield {name: next(samples) for name, samples in columns.items()}


@dataclass(frozen=True)
class _Column:
    """One input's array in a file."""

    name: str
    wanted: TensorType
    array: _Stored
    batched: bool

    @property
    def rank(self) -> int:
        """The input's rank; that of the array where the model does not say."""
        return len(self.array.shape) if self.wanted.shape is None else len(self.wanted.shape)

    @property
    def batch(self) -> int:
        """Rows that make one sample: 1, or the batch that the input is fixed to."""
        first = (self.wanted.shape or (None,))[0]
        return first if isinstance(first, int) and first > 0 else 1

    def count(self) -> int | None:
        """How many samples there are; None: one value, for every sample."""
        shape, rank = self.array.shape, self.rank
        if not rank - 1 <= len(shape) <= rank + 1:
            raise InputError(
                f"{self.array.where} has shape {list(shape)}, but input {self.name!r} is {self.wanted}: "
                f"its rank must be {rank}, with samples along the first axis"
            )
        self.check()
        if len(shape) == rank == 0:
            return None
        if len(shape) == rank - 1 or (len(shape) == rank and not self.batched):
            return 1
        if len(shape) == rank + 1:
            return shape[0]
        if shape[0] % self.batch:
            raise InputError(
                f"{self.array.where} has {shape[0]} rows, but input {self.name!r} ({self.wanted}) takes exactly "
                f"{self.batch} at a time; give a multiple of that"
            )
        return shape[0] // self.batch

    def check(self) -> None:
        """Refuses another dtype or size than the input's, with the place in the file."""
        given = f"{self.array.where} is {self.array.dtype}{list(self.array.shape)}, but input {self.name!r} is {self.wanted}"
        if self.array.dtype.name != self.wanted.dtype:
            raise InputError(f"{given}; convert it with .astype({self.wanted.dtype!r})")
        wanted = (self.wanted.shape or ())[1:] if self.wanted.shape is not None else self.array.shape[1:]
        sizes = self.array.shape[len(self.array.shape) - len(wanted) :]
        for axis, (size, here) in enumerate(zip(wanted, sizes, strict=True), 1):
            if isinstance(size, int) and size != here:
                raise InputError(
                    f"{given}: axis {axis} must be {size}, not {here}{layout_hint(self.wanted.shape, (None, *sizes))}"
                )

    def samples(self) -> Iterator[np.ndarray]:
        rank, rank_here = self.rank, len(self.array.shape)
        if rank_here == rank == 0:
            return itertools.repeat(self.array.whole())
        if rank_here == rank - 1:
            return iter([self.array.whole()[None]])
        if rank_here == rank and not self.batched:
            return iter([self.array.whole()])
        rows = self.array.rows()
        if rank_here == rank + 1:
            return rows
        return (np.stack([row, *itertools.islice(rows, self.batch - 1)]) for row in rows)


@dataclass(frozen=True)
class _Stored:
    """An array in numpy's .npy format, wherever its bytes come from."""

    open: Callable[[], AbstractContextManager[IO[bytes]]]
    where: str  # for messages

    @functools.cached_property
    def shape(self) -> tuple[int, ...]:
        with self.open() as stream:
            return self._header(stream)[0]

    @functools.cached_property
    def dtype(self) -> np.dtype[Any]:
        """As it is read: in the machine's order of bytes."""
        with self.open() as stream:
            return self._header(stream)[2].newbyteorder("=")

    def whole(self) -> np.ndarray:
        """The array."""
        with self.open() as stream:
            shape, order, dtype = self._header(stream)
            return self._read(stream, shape, order, dtype)

    def rows(self) -> Iterator[np.ndarray]:
        """The array's rows along its first axis, each read when it is asked for."""
        with self.open() as stream:
            shape, order, dtype = self._header(stream)
            if order == "F" and len(shape) > 1:  # a row does not lie in one piece
                yield from self._read(stream, shape, order, dtype)
                return
            for _ in range(shape[0]):
                yield self._read(stream, shape[1:], "C", dtype)

    def _header(self, stream: IO[bytes]) -> tuple[tuple[int, ...], Literal["C", "F"], np.dtype[Any]]:
        try:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran_order, dtype = read(stream)
        except (ValueError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise CalibrationError(f"{self.where} is not an array in numpy's format, or is damaged: {error}") from None
        if dtype.hasobject:
            raise CalibrationError(
                f"{self.where} holds pickled Python objects; unpickling can run code and is refused. "
                "Save plain arrays of numbers"
            )
        return shape, "F" if fortran_order else "C", dtype

    def _read(
        self, stream: IO[bytes], shape: tuple[int, ...], order: Literal["C", "F"], dtype: np.dtype[Any]
    ) -> np.ndarray:
        size = dtype.itemsize * math.prod(shape)
        try:
            data = stream.read(size)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
            raise CalibrationError(f"{self.where} is damaged: {error}") from None
        if len(data) < size:
            raise CalibrationError(f"{self.where} is truncated: {size} bytes were expected, {len(data)} are left")
        return np.frombuffer(data, dtype).reshape(shape, order=order).astype(dtype.newbyteorder("="), copy=False)


def _stored_arrays(path: Path, declared: Mapping[str, TensorType], label: str | None = None) -> dict[str, _Stored]:
    """The file's array for each input, and for the label."""
    if path.suffix.lower() == ".npy":
        if len(declared) != 1:
            raise InputError(
                f"{str(path)!r} holds one array, but {len(declared)} are needed; use .npz, with the keys {list(declared)}"
            )
        return {name: _Stored(functools.partial(_file, path), repr(str(path))) for name in declared}
    try:
        with zipfile.ZipFile(path) as archive:
            keys = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    except (zipfile.BadZipFile, OSError) as error:
        raise CalibrationError(f"{str(path)!r} is not an .npz file, or is damaged: {error}") from None
    for name, wanted in declared.items():
        if name not in keys and name == label:
            raise InputError(
                f"{str(path)!r} has no labels: no key {name!r} among {keys}{did_you_mean(name, keys)}; "
                f"np.savez(path, ..., {name}=array), one row a sample"
            )
        if name not in keys:
            raise InputError(
                f"{str(path)!r} has no array for the model's input {name!r} ({wanted}){did_you_mean(name, keys)}; "
                f"its keys: {keys}, needed: {list(declared)}. "
                f"Keys must be input names: np.savez(path, **{{{name!r}: array}})"
            )
    return {
        name: _Stored(functools.partial(_member, path, name), f"key {name!r} of {str(path)!r}") for name in declared
    }


def _file(path: Path) -> IO[bytes]:
    return path.open("rb")


@contextmanager
def _member(path: Path, key: str) -> Iterator[IO[bytes]]:
    with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as stream:
        yield stream
