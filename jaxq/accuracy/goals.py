"""How far metrics may fall, and how far they have."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxq.accuracy.options import DropType
from jaxq.errors import ConfigError

ROUNDING = 1e-9  # of the metric: 0.93 - 0.92 is a little more than 0.01 in floats


@dataclass(frozen=True)
class Goal:
    """One metric and its limit.

    Attributes:
      metric: its name.
      higher_is_better: its direction.
      baseline: its value for the float model.
      max_drop: the largest drop allowed, in units of `drop_type`.
      drop_type: absolute: baseline - value. Relative: the same over |baseline|. The sign is turned where lower is better.
    """

    metric: str
    higher_is_better: bool
    baseline: float
    max_drop: float
    drop_type: DropType

    def drop(self, value: float) -> float:
        """How much worse `value` is than the baseline; negative where it is better, infinite for NaN."""
        if math.isnan(value):
            return math.inf
        lost = self.baseline - value if self.higher_is_better else value - self.baseline
        if self.drop_type is DropType.ABSOLUTE:
            return lost
        return lost / abs(self.baseline) if self.baseline else math.inf if lost > 0 else -math.inf if lost < 0 else 0.0

    def excess(self, value: float) -> float:
        """How far the drop is above the limit; 0 or less: the goal is reached. Comparable between metrics."""
        over = self.drop(value) - self.max_drop
        scale = abs(self.baseline) if self.drop_type is DropType.ABSOLUTE else 1.0
        if over <= ROUNDING * max(scale, self.max_drop):
            over = min(over, 0.0)
        return over / scale if scale > 0 else over

    def check(self) -> None:
        """Raises ConfigError if the drop allowed is more than the metric itself, so that every model would do."""
        if (
            self.higher_is_better
            and self.drop_type is DropType.ABSOLUTE
            and self.baseline > 0
            and self.max_drop >= self.baseline
        ):
            raise ConfigError(
                f"max_drop = {self.max_drop:g} is not below the metric itself ({self.metric} of the float model: "
                f"{self.baseline:g}), so that every model would do; is it meant in percent? 1 % is 0.01"
            )


def excess(goals: Sequence[Goal], values: Mapping[str, float]) -> float:
    """That of the metric that is furthest from its goal."""
    return max(goal.excess(values[goal.metric]) for goal in goals)
