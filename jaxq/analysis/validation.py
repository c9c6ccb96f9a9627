"""What a model is worth, whoever evaluates it: scores, what is enough, and which samples quantization hurts."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jaxq.analysis.metrics import Score
from jaxq.checks import check_number
from jaxq.engine.batching import single_feeds
from jaxq.engine.model import Model, check_feed
from jaxq.engine.runner import Batch
from jaxq.engine.traced import Signature
from jaxq.errors import CalibrationError, ConfigError, Option
from jaxq.graph.ir import TensorType
from jaxq.onnx_io.save import save

MOST_BYTES = 1 << 30  # of samples that are kept in memory; more are read again for each evaluation

OF_VALIDATION = ("validation_dataset",)  # the argument that errors in the data are about
EMPTY = "the validation data is empty; at least one sample is needed"

EXACT, QUANTIZED = "exact", "quantized"  # roles of models whose outputs are compared

Scores = dict[str, Score]


class Runnable(Protocol):
    """What can be evaluated: a `Model`, which the engine runs in batches, or what has an `each(static, batch)` of its own."""

    @property
    def inputs(self) -> Mapping[str, TensorType]: ...

    def __call__(self, inputs: Any) -> dict[str, Any]: ...


class Pool:
    """Single samples of the validation data, each with a number: how much quantization hurts it.

    Args:
      rows: (what it loses of the metric, how far its outputs move, the sample), of which the former counts first.
      part: of the rows, from the first one on, that is taken.
    """

    def __init__(self, rows: Sequence[tuple[float, float, dict[str, Any]]], part: float):
        rows = rows[: max(1, math.ceil(part * len(rows)))]
        self.feeds = [feed for _, _, feed in rows]
        order = sorted(range(len(rows)), key=lambda number: rows[number][:2])  # least hurt first
        self.hurt = np.zeros(len(rows))
        self.hurt[order] = np.arange(len(rows))

    def worst(self, count: int) -> list[dict[str, Any]]:
        """The samples that quantization hurts most, worst first."""
        return [self.feeds[number] for number in np.argsort(-self.hurt, kind="stable")[:count]]


def check_count(first: int | None, count: int, what: str) -> int:
    """The number of items or samples in a pass over the data, which is that of the first pass.

    Raises:
      CalibrationError: it is another one, or zero.
    """
    if count == 0 and not first:
        raise CalibrationError(EMPTY, path=OF_VALIDATION)
    if first is not None and count != first:
        raise CalibrationError(
            f"the validation data gave {first} {what} the first time and {count or 'none'} now; a metric of other data cannot be "
            "compared. Give a list, or an object whose iter() starts anew and gives the same each time",
            path=OF_VALIDATION,
        )
    return count


class Validation(Protocol):
    """A way to evaluate models.

    Attributes:
      directions: metric -> whether higher is better.
      seen: the roles that have been evaluated.
      known: whether the metrics are jaxq's, which give the same for the same and say what they mean.
    """

    seen: dict[str, Any]
    known: bool

    @property
    def directions(self) -> Mapping[str, bool]: ...

    def refer_to(self, exact: Model) -> None:
        """Takes this float model, which needs no program of its own, where outputs of one stand in for labels."""

    def evaluate(self, model: Runnable, role: str = "") -> Scores:
        """The metrics of a model on all of the data; what models in the roles EXACT and QUANTIZED gave is remembered."""

    def pool(self, part: float = 1.0) -> Pool:
        """The first part of the samples, with what quantization did to them; both roles have been evaluated before."""


class File:
    """A written model in ONNX Runtime, with all graph optimizations, to be called as a `Model` is."""

    def __init__(self, model: Model, path: Path):
        from jaxq.onnx_io.runtime import session

        self.inputs, self.outputs, self.graph = model.inputs, model.outputs, model.graph
        self._run = session(path, optimized=path.with_name("optimized.onnx"))

    def feed(self, inputs: Any) -> dict[str, Any]:
        return check_feed(self.inputs, inputs)

    def __call__(self, inputs: Any) -> dict[str, Any]:
        return self._run(self.feed(inputs))

    def each(self, signature: Signature, batch: Batch) -> list[dict[str, Any]]:
        """The outputs of each sample of a batch."""
        return [self(feed) for feed in single_feeds(self, signature, batch)]


def in_runtime(validation: Validation, model: Model) -> dict[str, float]:
    """The metrics of the model's file in ONNX Runtime."""
    with tempfile.TemporaryDirectory(prefix="jaxq-accuracy-") as folder:
        path = Path(folder) / "model.onnx"
        save(model, path)
        return {name: score.value for name, score in validation.evaluate(File(model, path)).items()}


# -------------------------------------------------------------------------------------------------------- what is enough

ROUNDING = 1e-9  # of the metric: 0.93 - 0.92 is a little more than 0.01 in floats


class DropType(StrEnum):
    """How the drop of a metric is measured: as a difference, or as a part of the float model's value."""

    ABSOLUTE = "absolute"
    RELATIVE = "relative"


def check_drop(max_drop: Any, drop_type: DropType) -> float:
    """The largest drop allowed, as a float.

    Raises:
      ConfigError: it is negative, no number, or as a relative drop allows everything.
    """
    check_number("max_drop", max_drop)
    value = float(max_drop)
    if value < 0:
        raise ConfigError(Option(("max_drop",), max_drop), "; a drop that is allowed is 0 or more")
    if drop_type is DropType.RELATIVE and value >= 1:
        raise ConfigError(
            Option(("max_drop",), max_drop),
            " with ",
            Option(("drop_type",), "relative"),
            " allows to lose all of the metric; expected a part of it, as 0.01",
        )
    return value


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
