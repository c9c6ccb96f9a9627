"""Fingerprints of values, functions, models and data sets: the same in every process for what is the same.

What is compared is what can be hashed plainly. A function counts by its name, its code, its defaults, and the arguments of a
`functools.partial`. What it takes along in a closure, has in the attributes of its object, or calls, is not seen; where it is
plain that there is such a thing, `hidden_in` says so.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import itertools
import os
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxq.data.dataset import Dataset
from jaxq.graph.ir import FrozenDict, Graph


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
        digest, count = hashlib.sha256(), 0
        for item in self.data.items():
            for part in parts_of(item):
                digest.update(part)
            count += 1
            if self.read is None or count > self.read[0]:
                self.read = [count, False, digest.hexdigest()]
            yield item
        if count:
            self.read = [count, True, digest.hexdigest()]

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
    """SHA-256 of some values: the same in every process."""
    digest = hashlib.sha256()
    for part in parts_of(values):
        digest.update(part)
    return digest.hexdigest()


def parts_of(value: Any, within: tuple[int, ...] = ()) -> Iterator[bytes]:
    """What a value is made of: arrays by their bytes, files by name, size and time, functions by their code, containers and
    dataclasses by their parts; of anything else the type. The order of a `FrozenDict` does not count.
    """
    yield _word(type(value).__name__)
    if value is None or isinstance(value, str | bool | int | float | complex | np.generic | enum.Enum):
        yield _word(repr(value))
    elif isinstance(value, bytes | bytearray):
        yield from (_word(str(len(value))), bytes(value))
    elif isinstance(value, os.PathLike):
        path = Path(value)
        found = path.stat() if path.exists() else None
        yield _word(f"{path} {found and (found.st_size, found.st_mtime_ns)}")
    elif (array := _array(value)) is not None and array.dtype != object:
        yield _word(f"{array.dtype}{array.shape}")
        yield np.ascontiguousarray(array).tobytes()
    elif id(value) not in within:  # a value may contain itself
        inside = _inside(value) if array is None else [array.shape, array.tolist()]
        yield _word(str(len(inside)))
        for part in inside:
            yield from parts_of(part, (*within, id(value)))


def _inside(value: Any) -> list[Any]:
    """The parts of a container, a dataclass or a function; none of anything else."""
    if isinstance(value, Mapping):
        items = list(value.items())
        return sorted(items, key=lambda item: repr(item[0])) if isinstance(value, FrozenDict) else items
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, types.CodeType):
        return [value.co_code, value.co_names, value.co_varnames, value.co_consts]
    if callable(value):
        names = ("__module__", "__qualname__", "__code__", "__defaults__", "__kwdefaults__")
        return [*(getattr(_function(value), name, None) for name in names), *_fields(value)]
    return _fields(value)


def _fields(value: Any) -> list[Any]:
    known = dataclasses.is_dataclass(value) and not isinstance(value, type)
    return [getattr(value, each.name, None) for each in dataclasses.fields(value)] if known else []


def _function(value: Any) -> Any:
    """The function that a call of something runs."""
    if hasattr(value, "__func__"):
        return value.__func__
    return value if hasattr(value, "__qualname__") else type(value).__call__


def hidden_in(function: Any) -> list[str]:
    """What a function depends on and that is not compared, as far as one can tell that there is something."""
    if isinstance(function, functools.partial):
        return hidden_in(function.func)
    inner = _function(function)
    name, code = getattr(inner, "__qualname__", ""), getattr(inner, "__code__", None)
    own = getattr(function, "__self__", function)
    plain = code is None or own is inner or dataclasses.is_dataclass(own)
    attributes = [] if plain else [f"the attributes of {type(own).__qualname__}"]
    return attributes + [f"{each!r} in {name}" for each in (code.co_freevars if code is not None else ())]


def _word(text: str) -> bytes:
    return f"{len(text)}:{text}".encode(errors="surrogatepass")


def _array(value: Any) -> np.ndarray | None:
    """Arrays and tensors of any package, pictures of pillow; None: it is nothing of that kind, or lies on a device."""
    if not (hasattr(value, "__array__") or hasattr(value, "__array_interface__")) or isinstance(value, type):
        return None
    try:
        return np.asarray(value)
    except Exception:  # whatever the other package raises
        return None
