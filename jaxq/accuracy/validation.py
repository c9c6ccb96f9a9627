"""What evaluating a candidate model means, whoever does it: scores, and which samples quantization hurts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from jaxq.analysis.metrics import Score
from jaxq.engine.stages import run_batch as run_batch
from jaxq.engine.stages import run_samples as run_samples
from jaxq.engine.stages import single_feeds as single_feeds
from jaxq.errors import CalibrationError
from jaxq.graph.ir import TensorType

MOST_BYTES = 1 << 30  # of samples that are kept in memory; more are read again for each evaluation

EMPTY = "the validation data is empty; at least one sample is needed"

EXACT, QUANTIZED = "exact", "quantized"  # roles of models whose outputs are compared

Scores = dict[str, Score]


class Runnable(Protocol):
    """What can be evaluated: a `Model`, or a file in a runtime."""

    @property
    def inputs(self) -> Mapping[str, TensorType]: ...

    def __call__(self, inputs: Any) -> dict[str, Any]: ...


class Pool:
    """Single samples of the validation data, each with a number: how much quantization hurts it."""

    def __init__(self) -> None:
        self.feeds: list[dict[str, Any]] = []
        self.hurt: np.ndarray = np.zeros(0)

    def worst(self, count: int) -> list[dict[str, Any]]:
        """The samples that quantization hurts most, worst first."""
        return [self.feeds[number] for number in np.argsort(-self.hurt, kind="stable")[:count]]


class Validation(Protocol):
    """A way to evaluate models.

    Attributes:
      directions: metric -> whether higher is better.
      seen: the roles that have been evaluated.
    """

    @property
    def directions(self) -> Mapping[str, bool]: ...

    @property
    def seen(self) -> Mapping[str, Any]: ...

    def evaluate(self, model: Runnable, role: str = "") -> Scores:
        """The metrics of a model on all of the data; what models in the roles EXACT and QUANTIZED gave is remembered."""

    def pool(self, part: float = 1.0) -> Pool:
        """The first part of the samples, with what quantization did to them; both roles have been evaluated before."""


def check_count(first: int | None, count: int, what: str) -> int:
    """The number of items or samples in a pass over the data, which is that of the first pass.

    Raises:
      CalibrationError: it is another one, or zero.
    """
    if count == 0 and not first:
        raise CalibrationError(EMPTY)
    if first is not None and count != first:
        raise CalibrationError(
            f"the validation data gave {first} {what} the first time and {count or 'none'} now; a metric of other data cannot be "
            "compared. Give a list, or an object whose iter() starts anew and gives the same each time"
        )
    return count


def filled(rows: Sequence[tuple[float, float, dict[str, Any]]], part: float) -> Pool:
    pool = Pool()
    rows = rows[: max(1, math.ceil(part * len(rows)))]
    pool.feeds = [feed for _, _, feed in rows]
    order = sorted(range(len(rows)), key=lambda number: rows[number][:2])  # least hurt first
    pool.hurt = np.zeros(len(rows))
    pool.hurt[order] = np.arange(len(rows))
    return pool
