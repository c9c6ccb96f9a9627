"""Names, defaults and refusals of the range estimators."""

import pytest

from jaxq.errors import ConfigError
from jaxq.numerics.estimators import (
    QUANTILE_GRID,
    AggregatorType,
    RangeEstimatorParameters,
    RangeEstimatorParametersSet,
    StatisticsCollectorParameters,
    StatisticsType,
)

# (weights, symmetric, per channel, preset) -> the statistics and aggregators of both ends; pot_range_estimator, nncf's sets.
DEFAULTS = {
    "nncf activation, symmetric": ((False, True, False, None), "min mean, abs_max mean"),
    "nncf activation, asymmetric": ((False, False, False, None), "min mean, max mean"),
    "nncf channel, symmetric": ((False, True, True, None), "min min, abs_max max"),
    "nncf channel, asymmetric": ((False, False, True, None), "min min, max max"),
    "nncf weight, symmetric": ((True, True, True, None), "min min, abs_max max"),
    "nncf weight, asymmetric": ((True, False, True, None), "min min, max max"),
    "POT activation, symmetric": ((False, True, False, "default"), "min min, abs_max mean"),
    "POT activation, asymmetric": ((False, False, False, "default"), "min mean, max mean"),
    "POT channel, symmetric": ((False, True, True, "default"), "min min, abs_max max"),
    "POT channel, asymmetric": ((False, False, True, "default"), "min min, max max"),
    "POT weight, symmetric": ((True, True, True, "default"), "min min, abs_max max"),
    "quantile activation, symmetric": ((False, True, False, "quantile"), "min min, abs_quantile mean"),
    "quantile activation, asymmetric": ((False, False, False, "quantile"), "quantile mean, quantile mean"),
    "quantile channel, symmetric": ((False, True, True, "quantile"), "min min, abs_quantile max"),
    "quantile channel, asymmetric": ((False, False, True, "quantile"), "quantile min, quantile max"),
    "quantile weight, symmetric": ((True, True, True, "quantile"), "min min, abs_quantile max"),
    "quantile weight, asymmetric": ((True, False, True, "quantile"), "quantile min, quantile max"),
}


def completed(estimator, *, weights=False, symmetric=False, per_channel=False) -> str:
    found = estimator.completed(weights=weights, symmetric=symmetric, per_channel=per_channel)
    return ", ".join(f"{end.statistics_type} {end.aggregator_type}" for end in (found.min, found.max))


@pytest.mark.parametrize(("kind", "expected"), DEFAULTS.values(), ids=DEFAULTS)
def test_what_is_left_out_has_the_documented_default(kind, expected):
    weights, symmetric, per_channel, preset = kind
    estimator = RangeEstimatorParameters(preset=preset)
    assert completed(estimator, weights=weights, symmetric=symmetric, per_channel=per_channel) == expected
    assert estimator.max.quantile_outlier_prob == 1e-4


def test_what_is_given_stands():
    given = RangeEstimatorParameters(
        min=StatisticsCollectorParameters(aggregator_type="median"),
        max=StatisticsCollectorParameters("quantile", quantile_outlier_prob=0.01, clipping_value=6),
    )
    assert completed(given) == "min median, quantile mean"
    found = given.completed(weights=False, symmetric=False, per_channel=False)
    assert (found.max.quantile_outlier_prob, found.max.clipping_value) == (0.01, 6)


@pytest.mark.parametrize(("statistic", "meant"), [("max", "abs_max"), ("quantile", "abs_quantile"), ("mean", "mean")])
def test_in_symmetric_mode_the_upper_end_is_of_absolute_values(statistic, meant):
    """POT and nncf take the signed quantile, and cut off the negative side."""
    given = RangeEstimatorParameters(max=StatisticsCollectorParameters(statistic))
    assert completed(given, symmetric=True) == f"min mean, {meant} mean"
    assert completed(given) == f"min mean, {statistic} mean"


def test_strings_are_members():
    found = StatisticsCollectorParameters("ABS_MAX", "hl_estimator")
    assert found.statistics_type is StatisticsType.ABS_MAX
    assert found.aggregator_type is AggregatorType.HODGES_LEHMANN
    assert found == StatisticsCollectorParameters(StatisticsType.ABS_MAX, AggregatorType.HODGES_LEHMANN)


@pytest.mark.parametrize(("name", "parameters"), list(RangeEstimatorParametersSet.items()))
def test_an_estimator_is_found_by_its_name_and_has_it(name, parameters):
    assert RangeEstimatorParametersSet.of(name) is parameters
    assert RangeEstimatorParametersSet.of(name.upper()) is parameters
    assert RangeEstimatorParametersSet.of(parameters) is parameters
    assert RangeEstimatorParametersSet.name(parameters) == name


def test_an_estimator_without_a_name_is_described():
    given = RangeEstimatorParameters(max=StatisticsCollectorParameters("quantile"))
    assert RangeEstimatorParametersSet.name(given) == "min default default, max quantile default"


def ends(low, high=None) -> RangeEstimatorParameters:
    return RangeEstimatorParameters(low, high or StatisticsCollectorParameters())


REFUSED = {
    "unknown statistic": (
        lambda: StatisticsCollectorParameters("quantil"), r"statistics_type = 'quantil'; .*did you mean 'quantile'"),
    "unknown aggregator": (lambda: StatisticsCollectorParameters("max", "meen"), r"did you mean 'mean'"),
    "unknown preset": (lambda: RangeEstimatorParameters(preset="quantiles"), r"did you mean 'quantile'"),
    "unknown name": (lambda: RangeEstimatorParametersSet.of("min_max"), r"did you mean 'minmax'"),
    "quantile without probability": (
        lambda: StatisticsCollectorParameters("quantile", quantile_outlier_prob=None), r"None with quantile; .* 0.0001 is usual"),
    "percentile without probability": (
        lambda: StatisticsCollectorParameters(None, "percentile", None, None), r"None with percentile"),
    "0.7 beyond an end": (
        lambda: StatisticsCollectorParameters("quantile", quantile_outlier_prob=0.7),
        r"0\.7; .*the nearest: 0\.4999.*write 0\.3$"),
    "a percentile for a probability": (
        lambda: StatisticsCollectorParameters("quantile", quantile_outlier_prob=99.99), r"write 0\.0001$"),
    "negative probability": (lambda: StatisticsCollectorParameters(quantile_outlier_prob=-1), r"the nearest: 0\.0"),
    "probability of text": (lambda: StatisticsCollectorParameters(quantile_outlier_prob="1e-4"), r"expected a finite number"),
    "infinite clipping": (lambda: StatisticsCollectorParameters(clipping_value=float("inf")), r"clipping_value = inf"),
    "boolean clipping": (lambda: StatisticsCollectorParameters(clipping_value=True), r"clipping_value = True"),
    "raw with a mean": (lambda: StatisticsCollectorParameters("raw", "mean"), r"'mean' cannot aggregate .*'raw'"),
    "histogram of a maximum": (lambda: StatisticsCollectorParameters("max", "histogram"), r"must be 'raw' or left out"),
    "histogram of one end": (
        lambda: ends(StatisticsCollectorParameters("raw", "histogram")), r"= 'histogram' and max\.aggregator_type = None; "),
    "two distributions": (
        lambda: ends(StatisticsCollectorParameters(None, "mse"), StatisticsCollectorParameters(None, "entropy")), r"for both"),
    "the largest at the lower end": (lambda: ends(StatisticsCollectorParameters("max")), r"did you mean 'min'"),
    "the smallest at the upper end": (
        lambda: ends(StatisticsCollectorParameters(), StatisticsCollectorParameters("min")), r"did you mean 'max'"),
    "zero clipped away": (
        lambda: ends(StatisticsCollectorParameters(clipping_value=1.0)), r"a range holds 0: expected min <= 0 <= max"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_what_makes_no_sense_is_refused_with_the_nearest_that_does(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_the_grid_of_quantiles_is_that_of_pot():
    assert len(QUANTILE_GRID) == 8  # and minmax
    ends = QUANTILE_GRID["quantile 0.001 to max"]
    assert (ends.min.statistics_type, ends.min.aggregator_type, ends.min.quantile_outlier_prob) == (
        "quantile",
        "mean",
        1e-3,
    )
    assert (ends.max.statistics_type, ends.max.aggregator_type) == ("max", "max")
