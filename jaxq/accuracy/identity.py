"""What has to be the same for a search to go on: model, options, the validation function, and all that was read of the data."""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import itertools
import os
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxq.data import Dataset
from jaxq.data.samples import Samples
from jaxq.graph.ir import FrozenDict, Graph

Part = str | list[Any] | None  # as it stands in `state.json`; None where nothing depends on it yet


class Identity:
    """What the values of a search depend on.

    The data are hashed while they are read for the work itself. Only where an earlier search is found, whose other parts are
    the same, they are read once more, which that search spares the calibration and the evaluation of the float model.

    Args:
      fixed: name -> digest, of what is known at once.
      calibration: the calibration samples.
      validation: the validation data.
    """

    def __init__(self, fixed: Mapping[str, str], calibration: Samples, validation: ReadOnce):
        self.fixed, self.calibration, self.validation = fixed, calibration, validation

    def to_dict(self) -> dict[str, Part]:
        """As far as it is known by now."""
        hashed = self.calibration.hashed
        return {
            **self.fixed,
            "calibration data": None if hashed is None else hashed.hexdigest,
            "validation data": self.validation.read,
        }

    def differences(self, stored: Mapping[str, Part]) -> list[str]:
        """The parts in which what `to_dict` gave once is another one."""
        found = [name for name, value in self.fixed.items() if stored.get(name) != value]
        if found:
            return found
        calibration, validation = stored.get("calibration data"), stored.get("validation data")
        if calibration is not None and calibration != self._hash_calibration():
            found.append("calibration data")
        if validation is not None and not self.validation.reads_as(list(validation)):
            found.append("validation data")
        return found

    def _hash_calibration(self) -> str:
        if self.calibration.hashed is None:
            for _ in self.calibration:
                pass
        assert self.calibration.hashed is not None, "the samples have been passed over"
        return self.calibration.hashed.hexdigest


class ReadOnce:
    """Passes the items of a data set through, while it hashes them until one pass has reached the end.

    Attributes:
      read: [items of the longest pass so far, whether they are all there are, SHA-256 of them]; None before the first item.
    """

    def __init__(self, data: Dataset):
        self.data = data
        self.read: list[Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        if self.read is not None and self.read[1]:
            yield from self.data.items()
            return
        digest, count = Digest(), 0
        for item in self.data.items():
            digest.add(item)
            count += 1
            if self.read is None or count > self.read[0]:
                self.read = [count, False, digest.hexdigest]
            yield item
        if count:
            self.read = [count, True, digest.hexdigest]

    def reads_as(self, stored: list[Any]) -> bool:
        """Whether as many items as an earlier run has read are the same now, and all there are if they were."""
        count, complete, _ = stored
        for _ in itertools.islice(self, count + bool(complete)):
            pass
        return self.read == stored


def model_digest(graph: Graph, params: Mapping[str, Any]) -> str:
    """That of a model: of everything in its graph and subgraphs, and of every param."""
    return digest_of(graph, FrozenDict({name: np.asarray(value) for name, value in params.items()}))


def digest_of(*values: Any) -> str:
    """That of some values; see `Digest.add`."""
    digest = Digest()
    for value in values:
        digest.add(value)
    return digest.hexdigest


class Digest:
    """SHA-256 of values: the same in every process for what computes the same, as far as can be seen from outside."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._within: set[int] = set()  # a value may contain itself

    @property
    def hexdigest(self) -> str:
        return self._hash.hexdigest()

    def add(self, value: Any) -> None:
        """Takes arrays in by their bytes, files by name, size and time, containers and dataclasses by their parts, functions
        by what they compute with; of anything else only the type. The order of a `FrozenDict` does not count.
        """
        if id(value) in self._within:
            return
        self._within.add(id(value))
        self._word(type(value).__name__)
        if value is None or isinstance(value, str | bool | int | float | complex | np.generic | enum.Enum):
            self._word(repr(value))
        elif isinstance(value, bytes | bytearray):
            self._word(str(len(value)))
            self._hash.update(value)
        elif isinstance(value, os.PathLike):
            self._add_file(Path(value))
        elif isinstance(value, Mapping):
            ordered = isinstance(value, FrozenDict)
            self.add(sorted(value.items(), key=lambda item: repr(item[0])) if ordered else list(value.items()))
        elif isinstance(value, list | tuple):
            self._word(str(len(value)))
            for part in value:
                self.add(part)
        elif isinstance(value, set | frozenset):
            self.add(sorted(map(repr, value)))
        elif (array := _array(value)) is not None:
            self._word(f"{array.dtype}{array.shape}")
            if array.dtype == object:
                self.add(array.tolist())
            else:
                self._hash.update(np.ascontiguousarray(array).tobytes())
        elif callable(value):
            self._add_function(value)
        elif dataclasses.is_dataclass(value):
            self.add([getattr(value, each.name, None) for each in dataclasses.fields(value)])
        self._within.discard(id(value))

    def _word(self, text: str) -> None:
        self._hash.update(f"{len(text)}:{text}".encode(errors="surrogatepass"))

    def _add_file(self, path: Path) -> None:
        self._word(str(path))
        try:
            found = path.stat()
        except OSError:
            return
        self._word(f"{found.st_size} {found.st_mtime_ns}")

    def _add_function(self, function: Callable[..., Any]) -> None:
        """By its code, its defaults, and what it has taken along: in its closure, its partial arguments, or its object."""
        if isinstance(function, functools.partial):
            self.add([function.func, function.args, function.keywords])
        elif isinstance(function, types.MethodType):
            self.add(function.__func__)
            self._add_object(function.__self__)
        elif isinstance(function, types.FunctionType):
            self._word(f"{function.__module__}.{function.__qualname__}")
            self._add_code(function.__code__)
            self.add([function.__defaults__, function.__kwdefaults__, vars(function), _taken_along(function)])
        elif isinstance(function, type | types.BuiltinFunctionType):
            self._word(f"{function.__module__}.{function.__qualname__}")
        else:
            self.add(type(function).__call__)
            self._add_object(function)

    def _add_object(self, value: Any) -> None:
        self._word(f"{type(value).__module__}.{type(value).__qualname__}")
        self.add(getattr(value, "__dict__", None))

    def _add_code(self, code: types.CodeType) -> None:
        self.add([code.co_code, code.co_names, code.co_varnames])
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):  # of a function or comprehension in it
                self._add_code(constant)
            else:
                self.add(constant)


def _taken_along(function: types.FunctionType) -> list[Any]:
    found = []
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # not set yet
            found.append(None)
    return found


def _array(value: Any) -> np.ndarray | None:
    """Arrays and tensors of any package, pictures of pillow; None: it is nothing of that kind, or lies on a device."""
    if not (hasattr(value, "__array__") or hasattr(value, "__array_interface__")) or isinstance(value, type):
        return None
    try:
        return np.asarray(value)
    except Exception:  # whatever the other package raises
        return None
