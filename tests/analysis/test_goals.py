import math

import pytest

from jaxq.analysis.validation import DropType, Goal, excess
from jaxq.errors import ConfigError


def goal(baseline=0.8, max_drop=0.01, kind=DropType.ABSOLUTE, higher=True):
    return Goal("m", higher, baseline, max_drop, kind)


def test_a_drop_is_in_the_direction_of_the_metric():
    assert goal().drop(0.7) == pytest.approx(0.1)
    assert goal(higher=False).drop(0.7) == pytest.approx(-0.1)
    assert goal(kind=DropType.RELATIVE).drop(0.7) == pytest.approx(0.125)
    assert goal(baseline=-2.0, kind=DropType.RELATIVE).drop(-3.0) == pytest.approx(0.5)


def test_a_drop_of_exactly_the_limit_is_within_it():
    assert goal(0.93).excess(0.92) == 0.0  # 0.93 - 0.92 > 0.01 in floats
    assert goal(0.93).excess(0.9199) > 0


def test_the_limit_of_a_tiny_metric_is_kept():
    assert goal(1e-10, 1e-11, higher=False).excess(9e-10) > 0


def test_nan_never_reaches_a_goal():
    assert math.isinf(goal().excess(math.nan))


def test_a_baseline_of_zero_divides_nothing():
    zero = goal(baseline=0.0, kind=DropType.RELATIVE)
    assert [zero.excess(value) > 0 for value in (0.0, 1.0, -1.0)] == [False, False, True]


def test_the_metric_that_is_furthest_off_counts():
    goals = [goal(), Goal("other", False, 2.0, 0.01, DropType.ABSOLUTE)]
    assert excess(goals, {"m": 0.8, "other": 2.5}) == pytest.approx(0.49 / 2)


def test_a_drop_above_the_metric_is_refused():
    with pytest.raises(ConfigError, match=r"percent\? 1 % is 0.01"):
        goal(max_drop=1.0).check()
    goal(higher=False, baseline=0.001).check()  # an error may grow by more than itself
