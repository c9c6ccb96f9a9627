"""Every error that jaxq raises on purpose.

* JaxqError
  + ModelError                the ONNX file is not one that jaxq can run
    - UnsupportedOpError      operators (or versions of them) without a meaning here
    - DynamicShapeError       a shape depends on the data where it must be known while tracing
  + InputError                the arrays given to a model do not fit its inputs
  + ConfigError               an option is wrong
  + CalibrationError          the calibration data cannot give the numbers asked for
  + DeviceError               the device asked for is not there
  + AccuracyError             no model within the drop allowed was found; it carries the best one and the report
  + RuntimeMissingError       an optional package is needed for what was asked

Messages have three parts: what is wrong (with the value), where (tensor, node, file), and what to do. An error about an option
has the path that leads to it, and its message is kept in pieces, so that a configuration file or a command can say the same in
its own words:

    raise ConfigError(Option(("num_bits",), 17), "; expected an integer from 2 to 16")
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

OptionPath = tuple[str | int, ...]  # e.g. ("advanced_parameters", "overrides", 0, "names")


@dataclass(frozen=True)
class Option:
    """An option in a message.

    Attributes:
      path: the names and numbers that lead to it, beginning with an argument of a call or a key of a file.
      value: what it is set to; `...` where the message does not show that.
    """

    path: OptionPath
    value: Any = ...

    def __str__(self) -> str:
        """As people write it: `preset = 'mixed'`, or `--preset mixed`."""
        name = show_path(self.path)
        if self.value is ...:
            return name
        if name.startswith("--"):
            return f"{name} {','.join(map(str, self.value)) if isinstance(self.value, tuple) else self.value}"
        return f"{name} = {self.value!r}"

    def inside(self, *outer: str | int) -> Option:
        """The same option, seen from where `outer` leads to the place that its path begins at."""
        return replace(self, path=(*outer, *self.path))

    def beside(self, other: Option) -> Option:
        """The option by the part of its path that differs from that of another one, the last step at least."""
        same = 0
        while same < min(len(self.path) - 1, len(other.path)) and self.path[same] == other.path[same]:
            same += 1
        return replace(self, path=self.path[same:])


def show_path(path: Iterable[str | int]) -> str:
    """A path as people write it: compression.algorithms[0].params."""
    return "".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in path).removeprefix(".")


@dataclass(frozen=True)
class Words:
    """What a format calls the options.

    Attributes:
      starts: beginning of a path -> what stands for it; of several the longest counts, and a path without any stays as it is.
      keys: a name in the rest of the path -> that of the format.
      values: (name in the format, value) -> the format's value.
    """

    starts: Mapping[OptionPath, OptionPath]
    keys: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[tuple[str | int, Any], Any] = field(default_factory=dict)

    def __call__(self, option: Option) -> Option:
        """The option in these words."""
        known = [start for start in self.starts if option.path[: len(start)] == start]
        if not option.path or not known:
            return option
        start = max(known, key=len)
        rest = [self.keys.get(step, step) if isinstance(step, str) else step for step in option.path[len(start) :]]
        path = (*self.starts[start], *rest)
        shown = isinstance(option.value, bool | int | str) and path
        return Option(path, self.values.get((path[-1], option.value), option.value) if shown else option.value)


class JaxqError(Exception):
    """Base class: `except JaxqError` catches everything that jaxq raises on purpose.

    Attributes:
      args: the message in pieces: text, and options that it names.
      path: leads to the option that the error is about; () where it is about none.
    """

    located = False  # whether the message already begins with the node that is meant

    def __init__(self, *message: Any, path: OptionPath | None = None):
        super().__init__(*message)
        named = [piece.path for piece in message if isinstance(piece, Option)]
        self.path = path if path is not None else named[0] if named else ()

    def __str__(self) -> str:
        """The message. The first option in it is named in full, another one from where its path is a different one."""
        options = [piece for piece in self.args if isinstance(piece, Option)]
        return "".join(
            str(piece.beside(options[0]) if isinstance(piece, Option) and piece is not options[0] else piece)
            for piece in self.args
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def say(self, words: Callable[[Option], Option]) -> None:
        """Calls the options what `words` calls them, from now on."""
        self.args = tuple(words(piece) if isinstance(piece, Option) else piece for piece in self.args)
        self.path = words(Option(self.path)).path

    def placed(self) -> str:
        """The message, led in by the path unless it names options itself."""
        named = any(isinstance(piece, Option) for piece in self.args)
        return str(self) if named or not self.path else f"{show_path(self.path)}: {self}"


class ModelError(JaxqError):
    """The model is not one that jaxq can read or run."""


class UnsupportedOpError(ModelError):
    """Operators of the model, or their versions, have no implementation."""


class DynamicShapeError(ModelError):
    """A shape or another structural value depends on the data, so the graph cannot be compiled."""


class InputError(JaxqError):
    """Arrays given to a model do not match its inputs in name, rank, shape or dtype."""


class ConfigError(JaxqError, ValueError):
    """An option or a combination of options is wrong."""


class CalibrationError(JaxqError):
    """The calibration data is empty, not finite, or otherwise cannot give the ranges."""


class DeviceError(JaxqError):
    """The requested device is not available to JAX."""


class AccuracyError(JaxqError):
    """No model within the drop of accuracy that is allowed was found, or the search was broken off by an error.

    Attributes:
      best: the best `Model` so far, or None.
      report: what was tried, `jaxq.accuracy.report.AccuracyReport`, or None.
    """

    def __init__(self, message: str, best: Any = None, report: Any = None):
        super().__init__(message)
        self.best, self.report = best, report


class RuntimeMissingError(JaxqError):
    """An optional dependency is not installed; the message names the extra that brings it."""


def did_you_mean(name: str, known: Iterable[str], *, cutoff: float = 0.5) -> str:
    """The hint that ends a message about an unknown name, e.g. `; did you mean 'Relu_3'?`, or ''.

    `cutoff` is the least likeness, from 0 to 1: high where another name is seldom a slip of the pen.
    """
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {near[0]!r}?" if near else ""


class JaxqWarning(UserWarning):
    """Something that the user should know of, though the work goes on."""


@contextlib.contextmanager
def worded(words: Callable[[Option], Option]) -> Iterator[None]:
    """Errors that leave this `with` call options what `words` calls them."""
    try:
        yield
    except JaxqError as error:
        error.say(words)
        raise


@contextlib.contextmanager
def inside(*outer: str | int) -> Iterator[None]:
    """The options in this `with` stand at the path `outer`, with which the paths of errors about options then begin."""
    try:
        yield
    except ConfigError as error:
        error.say(lambda option: option.inside(*outer))
        raise


@contextlib.contextmanager
def about(*path: str | int, kinds: tuple[type[JaxqError], ...]) -> Iterator[None]:
    """Errors of these kinds in this `with` that have no path are about what stands at this one."""
    try:
        yield
    except kinds as error:
        error.path = error.path or path
        raise


@contextlib.contextmanager
def told(words: Callable[[Option], Option], where: str = "") -> Iterator[None]:
    """Errors that leave this `with` are for people: text, with options in the words of a format, led in by a file's name."""
    try:
        yield
    except JaxqError as error:
        error.say(words)
        error.args = (f"{where}: {error.placed()}" if where else error.placed(),)
        raise
