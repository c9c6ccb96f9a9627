"""Evaluates models by metrics of their outputs, against labels or against the float model; chooses what was asked for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxq.analysis.by_function import FunctionValidation
from jaxq.analysis.classes import class_scores
from jaxq.analysis.metrics import COSINE_OF_LISTS, METRICS, Metric, Outputs, find_metric
from jaxq.analysis.validation import (
    EMPTY,
    EXACT,
    MOST_BYTES,
    OF_VALIDATION,
    QUANTIZED,
    Pool,
    Runnable,
    Scores,
    Validation,
    check_count,
)
from jaxq.data import Dataset
from jaxq.data.check import refuse_not_finite
from jaxq.data.labelled import labelled_items
from jaxq.engine.batching import batches, single_feeds
from jaxq.engine.model import Model
from jaxq.engine.runner import Batch
from jaxq.engine.stages import run_samples
from jaxq.engine.traced import Signature
from jaxq.errors import CalibrationError, ConfigError, InputError, about
from jaxq.graph.indices import refuse_out_of_range
from jaxq.numerics.distance import output_distances


@dataclass(frozen=True)
class Labelled:
    """Samples of one shape with their targets."""

    static: Signature
    batch: Batch
    numbers: list[int]  # which samples of the data they are
    targets: list[Any]


@dataclass
class MetricValidation:
    """Evaluates models by metrics of their outputs.

    Args:
      items: yields (feed, target) for each sample.
      metrics: what to measure, all in one pass.
      model: any candidate, for its inputs.
      reference: the float model, whose outputs stand in for targets, or None where there are labels.
    """

    items: Callable[[], Iterator[tuple[dict[str, Any], Any]]]
    metrics: Sequence[Metric]
    model: Model
    reference: Model | None = None
    batch_size: int | None = None
    _kept: list[Labelled] | None = None
    _count: int | None = None  # samples in the first pass over the data
    _room: int = MOST_BYTES  # for `_exact`
    _exact: dict[int, Outputs] = field(default_factory=dict)  # sample -> what the float model gives, up to MOST_BYTES
    _moved: dict[int, float] = field(default_factory=dict)  # sample -> how far quantization moves its outputs
    seen: dict[str, Any] = field(default_factory=dict)
    known: bool = True

    @property
    def directions(self) -> Mapping[str, bool]:
        return {metric.name: metric.higher_is_better for metric in self.metrics}

    def refer_to(self, exact: Model) -> None:
        """See `Validation`."""
        if self.reference is not None:
            self.reference = exact

    def evaluate(self, model: Runnable, role: str = "") -> Scores:
        """See `Validation`.

        Raises:
          InputError: a target does not fit the outputs.
          CalibrationError: an input holds NaN or infinity, or there are no samples, or another number of them than before.
        """
        records: dict[int, list[Any]] = {}
        for labelled in self.batches():
            found = self.outputs(model, labelled)
            if role == EXACT:
                self._keep(found)
            targets = self.targets(labelled, found if role == EXACT else None)
            for number, outputs in found.items():
                records[number] = [
                    _measured(metric, outputs, wanted, number)
                    for metric, wanted in zip(self.metrics, targets[number], strict=True)
                ]
                if role == QUANTIZED and number in self._exact:
                    self._moved[number] = float(output_distances(_stacked(self._exact[number]), _stacked(outputs))[0])
        ordered = [records[number] for number in sorted(records)]
        scores = {
            metric.name: metric.combine([each[place] for each in ordered]) for place, metric in enumerate(self.metrics)
        }
        if role:
            self.seen[role] = scores[self.metrics[0].name].samples
        return scores

    def targets(self, labelled: Labelled, exact: dict[int, Outputs] | None) -> dict[int, list[Any]]:
        """What each metric compares the outputs of each sample with.

        Args:
          labelled: the samples.
          exact: what the float model gives, where it was run just now.
        """
        if self.reference is None:
            given = zip(labelled.numbers, labelled.targets, strict=True)
            return {number: [target] * len(self.metrics) for number, target in given}
        if exact is None and self._exact.keys() >= set(labelled.numbers):
            exact = {number: self._exact[number] for number in labelled.numbers}
        if exact is None:
            exact = self.outputs(self.reference, labelled)
            self._keep(exact)
        refer = [metric.refer for metric in self.metrics if metric.refer is not None]
        return {number: [each(outputs) for each in refer] for number, outputs in exact.items()}

    def _keep(self, exact: Mapping[int, Outputs]) -> None:
        """Remembers what the float model gives, as far as there is room."""
        for number, outputs in exact.items():
            size = sum(value.nbytes for value in outputs.values())
            if number not in self._exact and size <= self._room:
                self._exact[number] = outputs
                self._room -= size

    def outputs(self, model: Any, labelled: Labelled) -> dict[int, Outputs]:
        """The outputs of each sample, without their batch axis."""
        run = getattr(model, "each", functools.partial(run_samples, model))
        rows = run(labelled.static, labelled.batch)
        names = tuple(self.model.graph.outputs)
        plain = [{name: _without_batch(np.asarray(row[name])) for name in names} for row in rows]
        return dict(zip(labelled.numbers, plain, strict=True))

    def batches(self) -> Iterator[Labelled]:
        """The samples in batches, from memory where they fit."""
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[Labelled] | None = []
        size = 0
        for labelled in self._read():
            yield labelled
            size += sum(value.nbytes for value in labelled.batch.inputs.values())
            if kept is not None:
                kept.append(labelled)
            if size > MOST_BYTES:
                kept = None
        self._kept = kept

    def _read(self) -> Iterator[Labelled]:
        targets: list[Any] = []

        def feeds() -> Iterator[dict[str, Any]]:
            for number, (feed, target) in enumerate(self.items()):
                with about(*OF_VALIDATION, kinds=(CalibrationError, InputError)):
                    for name, value in feed.items():
                        refuse_not_finite(name, np.asarray(value), number, "validation", mask=name in self.model.masks)
                    refuse_out_of_range(
                        self.model.index_bounds, feed, f" of validation sample {number} (counted from 0)"
                    )
                targets.append(target)
                yield feed

        for static, batch in batches(self.model, feeds(), self.batch_size):
            numbers = batch.number[batch.real].tolist()
            yield Labelled(static, batch, numbers, [targets[number] for number in numbers])
        self._count = check_count(self._count, len(targets), "samples")

    def pool(self, part: float = 1.0) -> Pool:
        """See `Validation`; hurt most is what loses most of the first metric, and among equals what moves furthest."""
        before, after = self.seen[EXACT], self.seen[QUANTIZED]
        sign = 1 if self.metrics[0].higher_is_better else -1
        comparable = before is not None and after is not None and len(before) == len(after)
        found: dict[int, tuple[float, float, dict[str, Any]]] = {}
        room = MOST_BYTES
        for labelled in self.batches():
            feeds = single_feeds(self.model, labelled.static, labelled.batch)
            for number, feed in zip(labelled.numbers, feeds, strict=True):
                lost = sign * float(before[number] - after[number]) if comparable else 0.0
                found[number] = (lost, self._moved.get(number, 0.0), feed)
                room -= sum(value.nbytes for value in feed.values())
            if room < 0:
                break
        return Pool([found[number] for number in sorted(found)], part)


def _measured(metric: Metric, outputs: Mapping[str, np.ndarray], target: Any, number: int) -> Any:
    """The metric's record of a sample."""
    try:
        return metric.measure(outputs, target)
    except InputError as error:
        message = f"{metric.name} of sample {number} of the validation data: {error}"
        raise InputError(message, path=OF_VALIDATION) from error


def _stacked(outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value[None] for name, value in outputs.items()}


def _without_batch(value: np.ndarray) -> np.ndarray:
    return value[0] if value.ndim and value.shape[0] == 1 else value


def open_validation(
    dataset: Iterable[Any],
    function: Any,
    names: Sequence[str],
    exact: Model,
    batch_size: int | None,
    *,
    annotation_free: bool = False,
) -> Validation:
    """The validation that was asked for: a function, metrics by name, or the likeness to the float model.

    Looks at the first item, so that what is wrong with the data is said before anything is computed.

    Args:
      exact: the float model.

    Raises:
      ConfigError: a name is unknown or needs labels where there are none, the function cannot be called, or two ways are given.
      CalibrationError: the data is empty.
    """
    data = dataset if isinstance(dataset, Dataset) else Dataset(dataset)
    if function is not None and names:
        raise ConfigError(
            f"validation_fn = {function!r} and metrics = {list(names)} are two ways to say what is measured; give "
            "validation_fn or metrics, not both"
        )
    if isinstance(function, str):
        names, function = [function], None
    if function is not None:
        if not callable(function):
            raise ConfigError(
                f"validation_fn = {function!r}; expected a function of (model, data), the name of a metric, or None"
            )
        if annotation_free:
            raise ConfigError(
                "annotation_free is for metrics by name; a function says itself what it compares outputs with"
            )
        look_at_first(data.items())
        return FunctionValidation(function, data)
    metrics = [find_metric(name) for name in names]
    if metrics and not annotation_free:
        labelled = functools.partial(labelled_items, data, exact, True)
        look_at_first(labelled())
        return MetricValidation(labelled, metrics, exact, None, batch_size)
    unlabelled = functools.partial(labelled_items, data, exact, False)
    for metric in metrics:
        if metric.refer is None:
            able = ", ".join(sorted(name for name, each in METRICS.items() if each.refer is not None))
            raise ConfigError(
                f"metric = {metric.name!r} with annotation_free: outputs of the float model cannot stand in for its labels; they "
                f"can for those of {able}"
            )
    return MetricValidation(unlabelled, metrics or [likeness(exact, unlabelled())], exact, exact, batch_size)


def likeness(model: Model, items: Iterator[tuple[dict[str, Any], Any]]) -> Metric:
    """What compares a model with itself: top1, if its first output is a row of class scores (`analysis.classes`), or cosine."""
    for feed, _ in items:
        name = model.graph.outputs[0]
        if name in model.made_on_host(feed):
            return COSINE_OF_LISTS
        if name not in class_scores(model.graph, model.params):
            return METRICS["cosine"]
        scores = np.asarray(model(feed)[name])
        return METRICS["top1" if scores.size == max(scores.shape) else "cosine"]
    raise CalibrationError(EMPTY, path=OF_VALIDATION)


def look_at_first(items: Iterator[Any]) -> None:
    """Raises what making the first item raises, and CalibrationError if there is none."""
    for _ in items:
        return
    raise CalibrationError(EMPTY, path=OF_VALIDATION)
