"""Mistakes in a configuration, in words: one line each, with the path in the file and the nearest valid key."""

from dataclasses import dataclass
from enum import StrEnum

import pydantic
import pytest

from jaxq.errors import ConfigError, Option
from jaxq.jobs.validation import known_keys, validated


class Kind(StrEnum):
    ROUND = "round"
    SQUARE = "square"


@dataclass(frozen=True, kw_only=True)
class Part:
    """A dataclass with a check of its own."""

    size: int = 1
    kind: Kind | None = None

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(Option(("size",), self.size), "; expected at least 1")


@dataclass(frozen=True, kw_only=True)
class Label:
    """Another one, as the alternative in a union."""

    text: str = ""


class Whole(pydantic.BaseModel):
    """A model with parts."""

    model_config = pydantic.ConfigDict(extra="forbid")

    name: str
    parts: list[Part] = []
    either: Part | Label | None = None
    named: Part | str | None = None


def test_what_is_right_becomes_the_class():
    found = validated(Whole, {"name": "a", "parts": [{"kind": "round"}], "either": {"text": "b"}, "named": "c"}, "f")
    assert found == Whole(name="a", parts=[Part(kind=Kind.ROUND)], either=Label(text="b"), named="c")


MISTAKES = {
    "unknown key": ({"nam": "a"}, ["name is missing", "nam: unknown key; did you mean 'name'?"]),
    "unknown key in a list": ({"name": "a", "parts": [{}, {"siz": 2}]}, ["parts[1].siz: unknown key; did you mean 'size'?"]),
    "unlike any": ({"name": "a", "zzz": 1}, ["zzz: unknown key; known here: either, name, named, parts"]),
    "another type": ({"name": 3}, ["name = 3; expected a string"]),
    "nothing is converted": ({"name": "a", "parts": [{"size": "2"}]}, ['parts[0].size = "2"; expected an integer']),
    "an own check": ({"name": "a", "parts": [{"size": 0}]}, ["parts[0].size = 0; expected at least 1"]),
    "an enumeration": (
        {"name": "a", "parts": [{"kind": "rond"}]},
        ["parts[0].kind = \"rond\"; expected 'round' or 'square'; did you mean 'round'?"],
    ),
    "a key of no alternative": ({"name": "a", "either": {"tex": "b"}}, ["either.tex: unknown key; did you mean 'text'?"]),
    "a mistake in one alternative": ({"name": "a", "either": {"size": 0}}, ["either.size = 0; expected at least 1"]),
    "where text would do": ({"name": "a", "named": {"siz": 1}}, ["named.siz: unknown key; did you mean 'size'?"]),
    "something long": ({"name": ["x" * 99]}, ['name = ["' + "x" * 55 + "...; expected a string"]),
}  # fmt: skip


@pytest.mark.parametrize("content, lines", MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_told_one_a_line(content, lines):
    with pytest.raises(ConfigError) as error:
        validated(Whole, content, "f")
    assert str(error.value).splitlines() == [f"f: {line}" for line in lines]


def test_known_keys_are_those_of_every_alternative():
    assert known_keys(Whole, ("either",)) == {"size", "kind", "text"}
    assert known_keys(Whole, ("parts", 3)) == {"size", "kind"}
    assert known_keys(Whole, ()) == {"name", "parts", "either", "named"}
