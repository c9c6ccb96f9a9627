"""What pydantic found wrong with a configuration, in words: the path in the file, what was expected, the nearest valid key."""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import pydantic

from jaxq.errors import ConfigError, OptionPath, did_you_mean, show_path

EXPECTED = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "string_type": "a string",
    "bool_type": "a boolean",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "dataclass_type": "an object",
}
UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")

Kind = TypeVar("Kind")


def validated(kind: type[Kind], data: Any, where: str) -> Kind:
    """The content of a file as `kind`: types as JSON has them, nothing is converted, every key is known.

    Args:
      kind: a pydantic model or a dataclass, in which there may be others.
      data: what the JSON text stands for.
      where: the file's name, for the message.

    Raises:
      ConfigError: one line for each mistake: file, path in it, what was expected, and what was meant if that is near.
    """
    try:
        return pydantic.TypeAdapter(kind).validate_json(json.dumps(data), strict=True)
    except pydantic.ValidationError as error:
        located = [
            (_path(each["loc"], data, each["type"] == "missing"), each) for each in error.errors(include_url=False)
        ]
        lines = {
            _in_words(each, path, kind): getattr(each.get("ctx", {}).get("error"), "path", path)
            for path, each in located
            if not _beside_the_point(path, each, located, kind)
        }
        first = next(iter(lines.values()))
        raise ConfigError("\n".join(f"{where}: {line}" for line in lines), path=first) from None


def _beside_the_point(path: OptionPath, error: Any, others: Sequence[tuple[OptionPath, Any]], kind: Any) -> bool:
    """Whether an error comes from an alternative that was not meant: of a union, pydantic reports every member."""
    if error["type"] in UNKNOWN:
        return path[-1] in known_keys(kind, path[:-1])
    if error["type"] == "callable_type":  # no JSON stands for a function
        return True
    if error["type"] not in ("string_type", "enum"):
        return False
    deeper = any(len(other) > len(path) and other[: len(path)] == path for other, _ in others)
    return deeper or (
        error["type"] == "string_type" and any(o == path and e["type"] != "string_type" for o, e in others)
    )


def _in_words(error: Any, path: OptionPath, kind: Any) -> str:
    place, given = show_path(path), _shortened(error["input"])
    if error["type"] in UNKNOWN:
        known = sorted(known_keys(kind, path[:-1]))
        near = did_you_mean(str(path[-1]), known) or f"; known here: {', '.join(known)}"
        return f"{place}: unknown key{near}"
    if error["type"] == "missing":
        return f"{place} is missing"
    if error["type"] == "value_error":  # raised by one of our own checks, which says all there is to say
        said = error["ctx"]["error"]
        if not isinstance(said, ConfigError):
            return f"{place}: {said}" if place else str(said)
        said.say(lambda option: option.inside(*path))
        return said.placed()
    if error["type"] == "union_tag_invalid":
        key, known = error["ctx"]["discriminator"].strip("'"), _quoted(error["ctx"]["expected_tags"])
        tag = error["ctx"]["tag"]
        return f"{place}.{key} = {tag!r}; expected {' or '.join(map(repr, known))}{did_you_mean(tag, known)}"
    if error["type"] == "union_tag_not_found":
        return f"{place}.{error['ctx']['discriminator'].strip(chr(39))} is missing"
    expected = EXPECTED.get(error["type"]) or error["msg"].removeprefix("Input should be ")
    near = did_you_mean(given.strip('"'), _quoted(str(error.get("ctx", {}).get("expected", ""))))
    return f"{place} = {given}; expected {expected}{near}" if place else f"expected {expected}, not {given}"


def _path(location: Sequence[str | int], data: Any, missing: bool) -> OptionPath:
    """pydantic's location without the tags of unions in it: what can be followed in the data, and a missing key at its end."""
    path: list[str | int] = []
    for position, each in enumerate(location):
        if each in (data if isinstance(data, Mapping) else range(len(data)) if isinstance(data, list) else ()):
            data = data[each]
        elif not (missing and position == len(location) - 1):
            continue
        path.append(each)
    return tuple(path)


def _shortened(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _quoted(text: str) -> list[str]:
    return re.findall(r"'([^']*)'", text)


def known_keys(kind: Any, path: Iterable[str | int]) -> set[str]:
    """The keys that may stand at `path` in a file of that kind."""
    kinds = list(_objects(kind))
    for step in path:
        if isinstance(step, int):
            continue  # `_objects` looks into lists
        kinds = [
            inner for each in kinds for key, hint in _fields(each).items() if key == step for inner in _objects(hint)
        ]
    return {key for each in kinds for key in _fields(each)}


def _objects(hint: Any) -> Iterator[Any]:
    """The models and dataclasses in a type: those of a union, of the elements of a list."""
    if isinstance(hint, type) and not isinstance(hint, types.GenericAlias):
        if dataclasses.is_dataclass(hint) or issubclass(hint, pydantic.BaseModel):
            yield hint
        return
    for inner in typing.get_args(hint):
        yield from _objects(inner)


def _fields(kind: Any) -> dict[str, Any]:
    """Key in the file -> type."""
    if issubclass(kind, pydantic.BaseModel):
        return {field.alias or name: field.annotation for name, field in kind.model_fields.items()}
    return typing.get_type_hints(kind)
