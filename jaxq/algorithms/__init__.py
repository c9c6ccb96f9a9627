"""What changes a model's numbers, one algorithm a file: a frozen dataclass (its fields are its options) with two methods.

No algorithm imports another one, reads files, or changes a model in place.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from jaxq.engine.collect import collect
from jaxq.engine.model import Model
from jaxq.numerics.observers import Observer
from jaxq.numerics.outliers import Outliers


class Algorithm(Protocol):
    """One step of quantizing a model.

    One that looks at the first so many samples only says so in a field `samples`; one that can tell samples that reach values far
    beyond those of the others has a method `outlying(stats) -> {tensor name: Outliers}`.
    """

    def needs(self, model: Model) -> Mapping[str, Observer]:
        """The statistics that this algorithm wants: tensor name -> observer. Empty: it does without data."""

    def apply(self, model: Model, stats: Mapping[str, Any], samples: Iterable[Mapping[str, Any]]) -> Model:
        """The model after this algorithm; `stats` has exactly the names in `needs`.

        `samples` are the calibration samples, for an algorithm that must run the model in a way of its own.
        """


def run_pipeline(
    steps: Iterable[Algorithm | tuple[Algorithm, ...]],
    model: Model,
    samples: Iterable[Mapping[str, Any]],
    batch_size: int | None = None,
    *,
    one_program: bool = False,
) -> Model:
    """The model after all steps; see `models_on_the_way`."""
    return models_on_the_way(steps, model, samples, batch_size, one_program=one_program)[0][-1]


def models_on_the_way(
    steps: Iterable[Algorithm | tuple[Algorithm, ...]],
    model: Model,
    samples: Iterable[Mapping[str, Any]],
    batch_size: int | None = None,
    *,
    one_program: bool = False,
    aside: Sequence[Algorithm] = (),
) -> tuple[list[Model], list[Model]]:
    """Runs each step in turn; what a step needs is gathered in one pass over the samples.

    A tuple of algorithms is one step: what all of them need is gathered in the same pass, on the model as it is before the first.
    With `one_program` each pass watches what any of the steps needs, so that one compiled program serves all passes; that is for
    steps that leave the graph as it is.

    Where samples turn out to be outlying, and can be left out (`jaxq.data.samples`), all steps begin anew without them.

    Args:
      aside: algorithms that share the pass of the last step, and whose results are no part of the way.

    Returns:
      ([the model, and what it is after each algorithm], what each of `aside` makes of the model before the last step).
    """
    models, others = [model], list[Model]()
    groups = [step if isinstance(step, tuple) else (step,) for step in steps]
    passes = [*(((), group) for group in groups[:-1]), *((tuple(aside), group) for group in groups[-1:])]
    everything = [each.needs(model) for both in passes for group in both for each in group] if one_program else []
    for beside, group in passes:
        sharing = (*beside, *group)
        needs = [algorithm.needs(model) for algorithm in sharing]
        watched = [need for need in needs if need]
        limits = [getattr(algorithm, "samples", None) for algorithm, need in zip(sharing, needs, strict=True) if need]
        known = [limit for limit in limits if limit is not None]
        first = itertools.islice(samples, max(known)) if known and len(known) == len(limits) else samples
        found = iter(collect(model, watched, first, batch_size=batch_size, beside=everything) if watched else [])
        stats = [next(found) if need else {} for need in needs]
        own = stats[len(beside) :]
        if watched and _left_out(group, own, samples):
            return models_on_the_way(groups, models[0], samples, batch_size, one_program=one_program, aside=aside)
        others += [algorithm.apply(model, each, samples) for algorithm, each in zip(beside, stats, strict=False)]
        for algorithm, each in zip(group, own, strict=True):
            model = algorithm.apply(model, each, samples)
            models.append(model)
    return models, others


def _left_out(group: Iterable[Algorithm], stats: Iterable[Mapping[str, Any]], samples: object) -> bool:
    """Whether samples are left out from now on, for what they hold or for what the network makes of them."""
    leave_out = getattr(samples, "leave_out", None)
    if leave_out is None:
        return False
    found: dict[str, Outliers] = {}
    for algorithm, each in zip(group, stats, strict=True):
        found |= algorithm.outlying(each) if hasattr(algorithm, "outlying") else {}
    left: bool = leave_out(found)
    return left
