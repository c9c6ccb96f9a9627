"""What every algorithm is: a frozen dataclass (its fields are its options) with two methods, and lists of them are methods.

No algorithm imports another one, reads files, or changes a model in place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from jaxq.collect import collect
from jaxq.model import Model
from jaxq.observers import Observer


class Algorithm(Protocol):
    """One step of quantizing a model."""

    def needs(self, model: Model) -> Mapping[str, Observer]:
        """The statistics that this algorithm wants: tensor name -> observer. Empty: it does without data."""

    def apply(self, model: Model, stats: Mapping[str, Any], samples: Iterable[Mapping[str, Any]]) -> Model:
        """The model after this algorithm; `stats` has exactly the names in `needs`.

        `samples` are the calibration samples, for an algorithm that must run the model in a way of its own.
        """


def run_pipeline(
    steps: Iterable[Algorithm], model: Model, samples: Iterable[Mapping[str, Any]], batch_size: int | None = None
) -> Model:
    """Runs each step in turn; what a step needs is gathered in one pass over the samples."""
    for step in steps:
        needs = step.needs(model)
        stats = collect(model, [needs], samples, batch_size=batch_size)[0] if needs else {}
        model = step.apply(model, stats, samples)
    return model
