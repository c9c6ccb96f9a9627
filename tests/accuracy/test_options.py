import pytest

from jaxq.accuracy.options import AdvancedAccuracyRestorerParameters as Parameters
from jaxq.accuracy.treatments import FLOAT, UNCORRECTED, WEIGHTS, WIDE
from jaxq.analysis.validation import DropType, check_drop
from jaxq.errors import ConfigError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ranking": "gradent"}, "did you mean 'gradient'"),
        ({"search": "greedy"}, "expected one of"),
        ({"repairs": ["int8_weight"]}, "did you mean 'int8_weights'"),
        ({"max_num_iterations": 0}, "at least 1"),
        ({"search": "pot", "repairs": "int8_weights"}, "leave repairs away"),
        ({"ranking_subset_size": 1.5}, "an integer"),
        ({"metric_subset_ratio": 0}, "above 0"),
        ({"time_budget": -1}, "above 0"),
        ({"base_algorithm": "Other"}, "DefaultQuantization"),
        ({"metrics": ["top1", {"name": "top5", "baseline_value": 0.9}]}, "not for 'top1'"),
        ({"metrics": ["top1", "top1"]}, "twice"),
        ({"metrics": [{"name": "top1", "baseline": 0.9}]}, "did you mean 'baseline_value'"),
        ({"metrics": [3]}, "not a metric"),
    ],
)
def test_a_wrong_option_says_what_is_expected(options, message):
    with pytest.raises(ConfigError, match=message):
        Parameters(**options)


def test_repairs_are_tried_in_the_order_of_their_cost():
    assert Parameters(repairs=("int8_weights", "bias_correction", "int16_activations")).treatments == (
        UNCORRECTED, WIDE, WEIGHTS, FLOAT,
    )  # fmt: skip
    assert Parameters().treatments == (FLOAT,)
    assert Parameters(restore_mode="only_activations").treatments == (WEIGHTS,)


@pytest.mark.parametrize(
    ("value", "kind"), [(-0.1, "absolute"), (float("nan"), "absolute"), ("1%", "absolute"), (1.0, "relative")]
)
def test_a_limit_that_makes_no_sense_is_refused(value, kind):
    with pytest.raises(ConfigError, match="max_drop"):
        check_drop(value, DropType(kind))
