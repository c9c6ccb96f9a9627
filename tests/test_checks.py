"""Checks of options: what passes, what does not, and what is said then."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import pytest

from jaxq.checks import check_booleans, check_integer, check_kind, check_number, member
from jaxq.errors import ConfigError


class Colour(StrEnum):
    RED = "red"
    CPU = "CPU"


@pytest.mark.parametrize("value", ["red", "RED", Colour.RED])
def test_a_member_is_itself_or_its_value_in_capitals_or_not(value):
    assert member(Colour, "colour", value) is Colour.RED
    assert member(Colour, "colour", "cpu") is Colour.CPU


@pytest.mark.parametrize("value, hint", [("rad", r"; did you mean 'red'\?"), (3, ""), (None, "")])
def test_what_is_no_member_is_refused_with_the_nearest(value, hint):
    with pytest.raises(ConfigError, match=rf"colour = {value!r}; expected one of \['red', 'CPU'\]{hint}$"):
        member(Colour, "colour", value)


@pytest.mark.parametrize("value", [1, np.int64(7), np.uint8(1)])
def test_integers_of_numpy_count(value):
    check_integer("count", value, at_least=1)


@pytest.mark.parametrize("value", [0, -1, 1.0, "1", None, True])
def test_what_is_no_integer_or_too_small_is_refused(value):
    with pytest.raises(ConfigError, match=rf"count = {value!r}; expected an integer of at least 1"):
        check_integer("count", value, at_least=1)


def test_numbers_are_finite_and_above_their_limit():
    check_number("size", 0.5, above=0)
    check_number("size", np.float32(-3))
    for value in (float("nan"), float("inf"), "1", True, None):
        with pytest.raises(ConfigError, match=r"expected a finite number$"):
            check_number("size", value)
    with pytest.raises(ConfigError, match="size = 0; expected a finite number above 0"):
        check_number("size", 0, above=0)


def test_switches_are_true_or_false():
    @dataclass
    class Options:
        on: object

    check_booleans(Options(True), "on")
    with pytest.raises(ConfigError, match="on = 1; expected True or False"):
        check_booleans(Options(1), "on")


def test_an_object_of_another_class_is_refused_with_an_example():
    check_kind("colour", Colour.RED, Colour)
    with pytest.raises(ConfigError, match=r"size = 3; expected a Colour, e\.g\. RED"):
        check_kind("size", 3, Colour, "e.g. RED")
