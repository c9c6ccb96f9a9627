"""Evaluates models by metrics of their outputs, against labels or against the float model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxq.accuracy.validation import (
    EXACT,
    MOST_BYTES,
    QUANTIZED,
    Pool,
    Runnable,
    Scores,
    check_count,
    filled,
    run_samples,
    single_feeds,
)
from jaxq.analysis.metrics import Metric, Outputs
from jaxq.data import Dataset
from jaxq.data.check import refuse_not_finite
from jaxq.engine.collect import Batch, batches, split_samples
from jaxq.engine.model import Model
from jaxq.engine.traced import Signature
from jaxq.errors import ConfigError, InputError
from jaxq.graph.indices import refuse_out_of_range
from jaxq.numerics.distance import output_distances

LABEL_KEYS = ("label", "labels", "target", "targets")


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

    @property
    def directions(self) -> Mapping[str, bool]:
        return {metric.name: metric.higher_is_better for metric in self.metrics}

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

    def outputs(self, model: Runnable, labelled: Labelled) -> dict[int, Outputs]:
        """The outputs of each sample, without their batch axis."""
        static, batch = labelled.static, labelled.batch
        if isinstance(model, Model):
            rows = run_samples(model, static, batch)
        else:
            rows = [model(feed) for feed in single_feeds(model, static, batch)]
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
                for name, value in feed.items():
                    refuse_not_finite(name, np.asarray(value), number, "validation", mask=name in self.model.masks)
                refuse_out_of_range(self.model.index_bounds, feed, f" of validation sample {number} (counted from 0)")
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
        return filled([found[number] for number in sorted(found)], part)


def _measured(metric: Metric, outputs: Mapping[str, np.ndarray], target: Any, number: int) -> Any:
    """The metric's record of a sample."""
    try:
        return metric.measure(outputs, target)
    except InputError as error:
        raise InputError(f"{metric.name} of sample {number} of the validation data: {error}") from error


def _stacked(outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value[None] for name, value in outputs.items()}


def _without_batch(value: np.ndarray) -> np.ndarray:
    return value[0] if value.ndim and value.shape[0] == 1 else value


def labelled_items(dataset: Dataset, model: Model, labels: bool) -> Iterator[tuple[dict[str, Any], Any]]:
    """(feed of one sample, its target) from a data set; targets are None without labels.

    An item has its label under the key "label", or is a tuple that ends with it. Where the data set has a transform_func, that
    makes the inputs of an item and the label is still the item's own. A batch of samples has a batch of labels.

    Raises:
      ConfigError: an item has no label.
      InputError: there are more or fewer labels than samples.
    """
    for number, item in enumerate(dataset.items()):
        label, inputs = _split_item(item, model, number, labels)
        if dataset.transform_func is not None:
            inputs = dataset.transform_func(item)
        feeds = list(split_samples(model.inputs, [inputs], model.graph.static_inputs, dataset.batch_axis))
        if label is None:
            yield from ((feed, None) for feed in feeds)
            continue
        values: Any = label if isinstance(label, Mapping | list | tuple) else np.asarray(label)
        count = len(values) if isinstance(values, list | tuple) or np.ndim(values) else None
        if count == len(feeds) and not isinstance(values, Mapping):
            yield from zip(feeds, values, strict=True)
        elif len(feeds) == 1:
            yield feeds[0], values
        else:
            raise InputError(f"item {number} of the validation data holds {len(feeds)} samples and {count or 1} labels")


def _split_item(item: Any, model: Model, number: int, labels: bool) -> tuple[Any, Any]:
    """(label or None, what is left of the item)."""
    if isinstance(item, Mapping):
        key = next((key for key in LABEL_KEYS if key in item and key not in model.inputs), None)
        if key is not None:
            return (item[key] if labels else None), {name: value for name, value in item.items() if name != key}
        found = f"its keys: {', '.join(map(repr, item))}"
    elif (isinstance(item, tuple | list) and len(item) > len(model.inputs)) or _is_pair(item):
        rest = item[0] if len(item) == 2 else tuple(item[:-1])
        return (item[-1] if labels else None), rest
    else:
        found = f"it is {type(item).__name__}"
    if labels:
        raise ConfigError(
            f"item {number} of the validation data has no label ({found}); give (inputs, label) or a mapping with the key "
            "'label', or set annotation_free (or leave the metric away) to compare with the float model's outputs"
        )
    return None, item


def _is_pair(item: Any) -> bool:
    return isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], Mapping)
