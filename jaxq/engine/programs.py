"""Compiled programs live as long as the model or the job that they were compiled for; beyond that, only the latest do.

What `jax.jit` has compiled stays in memory as long as the function that it was given. A function of a module stays for good, and
with it the programs of every graph that it was ever called with: each takes memory mappings, of which a process on Linux may
have 65,530, and then it dies. So each graph gets a function of its own here, which goes with its programs.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, MutableMapping, Sequence
from contextvars import ContextVar
from typing import Any

import jax

from jaxq.errors import ConfigError

SETTING = "JAXQ_PROGRAMS"  # of the environment: how many programs that nobody holds are kept
LATEST = 32  # where it is not set

Key = tuple[Callable[..., Any], tuple[Hashable, ...]]


class CompiledProgram:
    """A function with its structure given, compiled for each set of shapes that it is called with.

    Args:
      function: what is compiled.
      static: its first arguments.
      donated: positions of those of the others whose memory the result may take.
    """

    def __init__(self, function: Callable[..., Any], static: tuple[Hashable, ...], donated: Sequence[int] = ()):
        traces: list[None] = []

        def bound(*arguments: Any) -> Any:
            traces.append(None)
            return function(*static, *arguments)

        named = next(filter(callable, static), function)  # what the structure says is computed, if it says so
        name = getattr(named, "__name__", type(named).__name__)
        bound.__name__ = bound.__qualname__ = name  # by which profilers and logs know it
        self._jitted, self._traces = jax.jit(bound, donate_argnums=donated), traces

    def __call__(self, *arguments: Any) -> Any:
        return self._jitted(*arguments)

    def __len__(self) -> int:
        """How often it was compiled."""
        return len(self._traces)


class Held(dict[Key, CompiledProgram]):
    """The programs that somebody holds. A copy, here or in another process, holds none."""

    def __reduce__(self) -> Any:
        return Held, ()


class Programs:
    """Programs by what they do: those that somebody holds, and the latest.

    Args:
      most: how many of those that nobody holds are kept, each set of shapes counted; None: what the environment says.
    """

    def __init__(self, most: int | None = None):
        self.most = most
        self._alive: MutableMapping[Key, CompiledProgram] = weakref.WeakValueDictionary()
        self._latest: OrderedDict[Key, CompiledProgram] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """How many are kept as the latest."""
        with self._lock:
            return sum(map(len, self._latest.values()))

    def get(self, key: Key, donated: Sequence[int] = ()) -> CompiledProgram:
        """The program under a key, which becomes the latest; made if there is none."""
        with self._lock:
            found = self._alive.get(key)
            if found is None:
                found = self._alive[key] = CompiledProgram(*key, donated)
            self._latest[key] = found
            self._latest.move_to_end(key)
        return found

    def trim(self) -> None:
        """Lets go of what was not used for longest, until no more than `most` are kept."""
        most = _setting() if self.most is None else self.most
        with self._lock:
            left = sum(map(len, self._latest.values()))
            while left > most:
                left -= len(self._latest.popitem(last=False)[1])


PROGRAMS = Programs()

_holders: ContextVar[tuple[Held, ...]] = ContextVar("holders", default=())


@contextlib.contextmanager
def holding(programs: Held | None = None) -> Iterator[None]:
    """Every program that is called in the block stays as long as `programs`; None: until the end of the block.

    So what belongs to one job or one model is never compiled twice for it, however much else is compiled meanwhile.
    """
    before = _holders.set((*_holders.get(), Held() if programs is None else programs))
    try:
        yield
    finally:
        _holders.reset(before)


class Compiled:
    """A function that is compiled for its first arguments, which are structure (graphs, values of static inputs).

    Args:
      function: what is compiled.
      static: how many arguments are structure.
      donated: positions of those of the others whose memory the result may take.
    """

    def __init__(self, function: Callable[..., Any], static: int, donated: Sequence[int] = ()):
        functools.update_wrapper(self, function)
        self.function, self.static, self.donated = function, static, donated

    def __call__(self, *arguments: Any) -> Any:
        key = (self.function, arguments[: self.static])
        program = PROGRAMS.get(key, self.donated)
        for held in _holders.get():
            held[key] = program
        try:
            return program(*arguments[self.static :])
        finally:
            PROGRAMS.trim()


def compiled(*, static: int, donated: Sequence[int] = ()) -> Callable[[Callable[..., Any]], Compiled]:
    """A decorator; see `Compiled`."""
    return lambda function: Compiled(function, static, donated)


def _setting() -> int:
    text = os.environ.get(SETTING, "")
    if not text:
        return LATEST
    if not text.isdecimal():
        raise ConfigError(f"{SETTING}={text!r} must be a number of programs, 0 or more (default: {LATEST})")
    return int(text)
