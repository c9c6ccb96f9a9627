"""Checks of options, each with a message that shows the value and what was expected."""

from __future__ import annotations

import math
import numbers
from enum import StrEnum
from typing import Any, TypeVar

from jaxq.errors import ConfigError, Option, did_you_mean

Kind = TypeVar("Kind", bound=StrEnum)


def check_integer(key: str, value: object, *, at_least: int) -> None:
    """Refuses an option that is no integer (numpy's count too, booleans do not) or too small.

    Raises:
      ConfigError: the message shows the value and what was expected.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < at_least:
        raise ConfigError(Option((key,), value), f"; expected an integer of at least {at_least}")


def check_number(key: str, value: object, *, above: float | None = None) -> None:
    """Refuses an option that is no finite number, or not above a limit.

    Raises:
      ConfigError: the message shows the value and what was expected.
    """
    real = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    if not real or (above is not None and not value > above):  # type: ignore[operator]
        limit = "" if above is None else f" above {above}"
        raise ConfigError(Option((key,), value), f"; expected a finite number{limit}")


def check_booleans(owner: object, *keys: str) -> None:
    """Refuses attributes that are not True or False.

    Raises:
      ConfigError: the message shows the value.
    """
    for key in keys:
        if not isinstance(getattr(owner, key), bool):
            raise ConfigError(Option((key,), getattr(owner, key)), "; expected True or False")


def check_kind(key: str, value: object, kind: Any, example: str = "") -> None:
    """Refuses an object of another class.

    Raises:
      ConfigError: the message names the class, and gives the example.
    """
    if not isinstance(value, kind):
        wanted = kind[0] if isinstance(kind, tuple) else kind
        article = "an" if wanted.__name__[0] in "AEIOU" else "a"
        raise ConfigError(
            Option((key,), value), f"; expected {article} {wanted.__name__}{', ' if example else ''}{example}"
        )


def member(kind: type[Kind], key: str, value: object) -> Kind:
    """The member of an enumeration that `value` is or names, in capitals or not.

    Raises:
      ConfigError: there is none; the message lists the values and gives the nearest.
    """
    for each in kind:
        if isinstance(value, str) and each.value.lower() == value.lower():
            return each
    known = [each.value for each in kind]
    raise ConfigError(Option((key,), value), f"; expected one of {known}{did_you_mean(str(value), known)}")
