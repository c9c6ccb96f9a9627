"""One family of errors, and messages that help."""

import pytest

from jaxq import errors

FAMILY = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.JaxqError)]


@pytest.mark.parametrize("kind", FAMILY, ids=lambda kind: kind.__name__)
def test_every_error_is_caught_by_the_base_class_and_documented(kind):
    assert issubclass(kind, errors.JaxqError)
    assert kind.__doc__
    assert kind.__name__ in errors.__doc__


def test_the_nearest_name_is_suggested():
    assert errors.did_you_mean("Rleu_3", ["Conv_1", "Relu_3"]) == "; did you mean 'Relu_3'?"


def test_nothing_is_suggested_where_nothing_is_near():
    assert errors.did_you_mean("input", ["zzz"]) == ""
    assert errors.did_you_mean("input", []) == ""


def test_a_warning_is_no_error():
    assert issubclass(errors.JaxqWarning, UserWarning)
    assert not issubclass(errors.JaxqWarning, errors.JaxqError)
