"""Options in messages: the path that leads to one, and what a file format or a command calls it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
        return f"{name} {self.value}" if name.startswith("--") else f"{name} = {self.value!r}"

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
