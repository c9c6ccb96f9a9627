"""Options in messages: their paths, and the same message in the words of a call, a file and a command."""

import copy

import pytest

from jaxq.errors import (
    CalibrationError,
    ConfigError,
    ModelError,
    Option,
    RuntimeMissingError,
    Words,
    about,
    inside,
    show_path,
    told,
    worded,
)

LEVELS = (Option(("level_low",), 9), " is not below ", Option(("level_high",), -9))


def test_paths_are_written_as_people_do():
    assert show_path(("a", 0, "b", "c")) == "a[0].b.c"
    assert str(Option(("a", 0), "x")) == "a[0] = 'x'"
    assert str(Option(("--preset",), "mixed")) == "--preset mixed"


def test_a_message_names_the_first_option_in_full_and_others_from_where_they_differ():
    with pytest.raises(ConfigError) as raised, inside("overrides", 0), inside("weights"):
        raise ConfigError(*LEVELS)
    assert str(raised.value) == "overrides[0].weights.level_low = 9 is not below level_high = -9"
    assert raised.value.path == ("overrides", 0, "weights", "level_low")
    ends = ConfigError(Option(("x", "min", "type")), " and ", Option(("x", "max", "type")))
    assert str(ends) == "x.min.type and max.type"
    assert str(ConfigError(Option(("x", "a")), " or ", Option(("x", "a"), 1))) == "x.a or a = 1"


def test_plain_text_stays_as_it_is_and_is_led_in_by_its_path_where_that_is_asked_for():
    error = CalibrationError("sample 3 holds NaN", path=("calibration_dataset",))
    assert str(error) == "sample 3 holds NaN"
    assert error.placed() == "calibration_dataset: sample 3 holds NaN"
    assert ConfigError("no place").placed() == "no place"


WORDS = Words(
    {("options",): ("params",), ("options", "weights_params"): ("params", "weights"), ("data",): ("--data",)},
    keys={"per_channel": "granularity", "num_bits": "bits"},
    values={("granularity", True): "perchannel"},
)


@pytest.mark.parametrize(
    "option, shown",
    [
        (Option(("options", "weights_params", "num_bits"), 1), "params.weights.bits = 1"),
        (Option(("options", "weights_params", "per_channel"), True), "params.weights.granularity = 'perchannel'"),
        (Option(("options", "other", 2), 1.5), "params.other[2] = 1.5"),
        (Option(("elsewhere",), [1]), "elsewhere = [1]"),
        (Option(("data",), "x.npz"), "--data x.npz"),
        (Option(()), ""),
    ],
)
def test_a_table_gives_the_words_of_a_format(option, shown):
    assert str(WORDS(option)) == shown


def test_errors_are_told_in_the_words_of_a_format():
    with pytest.raises(ConfigError) as raised, told(WORDS), inside("options"), inside("weights_params"):
        raise ConfigError(Option(("num_bits",), 1), "; expected ", Option(("num_bits",)), " from 2 to 16")
    assert str(raised.value) == "params.weights.bits = 1; expected bits from 2 to 16"
    assert raised.value.args == (str(raised.value),)


def test_only_errors_of_a_kind_that_have_no_path_get_the_one_that_is_usual():
    for error, path in (
        (CalibrationError("x"), ("data",)),
        (CalibrationError("x", path=("model",)), ("model",)),
        (ConfigError("x"), ()),
    ):
        with pytest.raises(type(error)), about("data", kinds=(CalibrationError,)):
            raise error
        assert error.path == path


def test_what_is_wrong_with_a_model_or_the_data_is_not_laid_to_an_option():
    for error in (ModelError("x"), CalibrationError("x", path=("calibration_dataset",)), RuntimeMissingError("x")):
        path = error.path
        with pytest.raises(type(error)), inside("advanced_parameters"):
            raise error
        assert error.path == path


def test_an_error_keeps_its_class_its_cause_and_itself():
    cause = OSError("disk")
    with pytest.raises(ConfigError) as raised, worded(WORDS):
        raise ConfigError(Option(("data",), 3), " is wrong") from cause
    assert raised.value.__cause__ is cause
    again = copy.deepcopy(ConfigError(*LEVELS, Option(("c",)), path=("a",)))
    assert str(again) == "level_low = 9 is not below level_high = -9c"
    assert again.path == ("a",)
