"""What a candidate model is worth: by the user's function, by built-in metrics, or by likeness to the float model."""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import numpy as np

from jaxq.collect import Batch, batches, split_samples
from jaxq.data import Dataset
from jaxq.errors import CalibrationError, ConfigError, InputError, JaxqError, JaxqWarning
from jaxq.execute import execute, quantizing
from jaxq.graph import FrozenDict, Graph, Literal, TensorType
from jaxq.metrics import Metric, Score, as_score, find_metric
from jaxq.model import Model
from jaxq.quantizer import QuantParams

LABEL_KEYS = ("label", "labels", "target", "targets")
MOST_BYTES = 1 << 30  # of samples that are kept in memory; more are read again for each evaluation
PROBED = 4  # items on which the user's function is called twice

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

    directions: Mapping[str, bool]
    seen: Mapping[str, Any]

    def evaluate(self, model: Runnable, role: str = "") -> Scores:
        """The metrics of a model on all of the data; what models in the roles EXACT and QUANTIZED gave is remembered."""

    def pool(self, part: float = 1.0) -> Pool:
        """The first part of the samples, with what quantization did to them; both roles have been evaluated before."""


@functools.partial(jax.jit, static_argnums=(0, 1))
def run_samples(
    graph: Graph,
    static: FrozenDict[str, Literal],
    params: Mapping[str, Any],
    encodings: Mapping[str, QuantParams],
    inputs: Mapping[str, Any],
) -> dict[str, Any]:
    """Runs samples [B, ...], each by itself: {output: [B, ...]}."""
    fixed = {name: literal.array for name, literal in static.items()}

    def one(sample: Mapping[str, Any]) -> dict[str, Any]:
        return execute(graph, params, {**sample, **fixed}, tap=quantizing(encodings))[0]

    return jax.vmap(one)(dict(inputs))


def distances(found: Mapping[str, Any], reference: Mapping[str, Any]) -> np.ndarray:
    """How far the outputs of each sample are from the reference: float64 [B].

    sum over float outputs of |found - reference|^2 / |reference|^2
    """
    total: Any = 0.0
    for name, wanted in reference.items():
        wanted = np.asarray(wanted)
        if wanted.dtype.kind != "f":
            continue
        wanted = wanted.reshape(len(wanted), -1).astype(np.float64)
        value = np.asarray(found[name], np.float64).reshape(wanted.shape)
        with np.errstate(all="ignore"):
            part = ((value - wanted) ** 2).sum(1) / np.maximum((wanted**2).sum(1), 1e-30)
        total = total + np.nan_to_num(part, nan=np.inf)
    return np.asarray(total, np.float64).reshape(-1)


# ------------------------------------------------------------------------------------------------- by built-in metrics


@dataclass(frozen=True)
class Labelled:
    """Samples of one shape with their targets."""

    static: FrozenDict[str, Literal]
    batch: Batch
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
    _targets: dict[int, list[Any]] = field(default_factory=dict)  # sample -> what each metric refers to
    _outputs: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)  # sample -> those of the float model
    _moved: dict[int, float] = field(default_factory=dict)  # sample -> how far quantization moves its outputs
    seen: dict[str, Any] = field(default_factory=dict)

    @property
    def directions(self) -> Mapping[str, bool]:
        return {metric.name: metric.higher_is_better for metric in self.metrics}

    def evaluate(self, model: Runnable, role: str = "") -> Scores:
        """See `Validation`.

        Raises:
          InputError: a target does not fit the outputs.
          CalibrationError: there are no samples.
        """
        records: dict[int, list[Any]] = {}
        outputs_of: dict[int, dict[str, np.ndarray]] = {}
        moved: dict[int, float] = {}
        room = MOST_BYTES
        before = self._outputs if role == QUANTIZED else {}
        for labelled in self.batches():
            for number, target, outputs in self.outputs(model, labelled):
                targets = self.targets(number, target, labelled)
                records[number] = [
                    metric.measure(outputs, wanted) for metric, wanted in zip(self.metrics, targets, strict=True)
                ]
                if number in before:
                    moved[number] = float(distances(_stacked(outputs), _stacked(before[number]))[0])
                elif role == EXACT and room > 0:
                    outputs_of[number] = outputs
                    room -= sum(value.nbytes for value in outputs.values())
        ordered = [records[number] for number in sorted(records)]
        scores = {
            metric.name: metric.combine([each[place] for each in ordered]) for place, metric in enumerate(self.metrics)
        }
        if role == EXACT:
            self._outputs = outputs_of
        if role == QUANTIZED:
            self._moved = moved
        if role:
            self.seen[role] = scores[self.metrics[0].name].samples
        return scores

    def targets(self, number: int, target: Any, labelled: Labelled) -> list[Any]:
        """What each metric compares the outputs of a sample with."""
        if self.reference is None:
            return [target] * len(self.metrics)
        if number not in self._targets:
            for each, _, outputs in self.outputs(self.reference, labelled):
                self._targets[each] = [metric.refer(outputs) for metric in self.metrics if metric.refer is not None]
        return self._targets[number]

    def outputs(self, model: Runnable, labelled: Labelled) -> Iterator[tuple[int, Any, dict[str, np.ndarray]]]:
        """(number, target, outputs without their batch axis) of each sample."""
        real = np.flatnonzero(np.asarray(labelled.batch.real))
        numbers = np.asarray(labelled.batch.number)
        if isinstance(model, Model):
            graph, params, encodings = model.program
            found = run_samples(graph, labelled.static, params, encodings, dict(labelled.batch.inputs))
            stacked = jax.device_get(found)
            rows = [{name: stacked[name][row] for name in model.graph.outputs} for row in real]
        else:
            fixed = {name: literal.array for name, literal in labelled.static.items()}
            rows = [
                model({**{name: np.asarray(value[row]) for name, value in labelled.batch.inputs.items()}, **fixed})
                for row in real
            ]
        for row, outputs in zip(real, rows, strict=True):
            plain = {name: _without_batch(np.asarray(value)) for name, value in outputs.items()}
            yield int(numbers[row]), labelled.targets[row], plain

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
            for feed, target in self.items():
                targets.append(target)
                yield feed

        for static, batch in batches(self.model, feeds(), self.batch_size):
            yield Labelled(static, batch, [targets[number] for number in np.asarray(batch.number)])
        if not targets:
            raise CalibrationError("the validation data is empty; at least one sample is needed")

    def pool(self, part: float = 1.0) -> Pool:
        """See `Validation`; hurt most is what loses most of the first metric, and among equals what moves furthest."""
        before, after = self.seen[EXACT], self.seen[QUANTIZED]
        sign = 1 if self.metrics[0].higher_is_better else -1
        comparable = before is not None and after is not None and len(before) == len(after)
        found: dict[int, tuple[float, float, dict[str, Any]]] = {}
        room = MOST_BYTES
        for labelled in self.batches():
            fixed = {name: literal.array for name, literal in labelled.static.items()}
            for row in np.flatnonzero(np.asarray(labelled.batch.real)):
                number = int(np.asarray(labelled.batch.number)[row])
                feed = {name: np.asarray(value[row]) for name, value in labelled.batch.inputs.items()} | fixed
                lost = sign * float(before[number] - after[number]) if comparable else 0.0
                found[number] = (lost, self._moved.get(number, 0.0), feed)
                room -= sum(value.nbytes for value in feed.values())
            if room < 0:
                break
        return _filled([found[number] for number in sorted(found)], part)


def _stacked(outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value[None] for name, value in outputs.items()}


def _filled(rows: Sequence[tuple[float, float, dict[str, Any]]], part: float) -> Pool:
    pool = Pool()
    rows = rows[: max(1, math.ceil(part * len(rows)))]
    pool.feeds = [feed for _, _, feed in rows]
    order = sorted(range(len(rows)), key=lambda number: rows[number][:2])  # least hurt first
    pool.hurt = np.zeros(len(rows))
    pool.hurt[order] = np.arange(len(rows))
    return pool


def _without_batch(value: np.ndarray) -> np.ndarray:
    return value[0] if value.ndim and value.shape[0] == 1 else value


def labelled_items(dataset: Dataset, model: Model, labels: bool) -> Iterator[tuple[dict[str, Any], Any]]:
    """(feed of one sample, its target) from a data set; targets are None without labels.

    An item has its label under the key "label", or is a tuple that ends with it. Where the data set has a transform_fn, that
    makes the inputs of an item and the label is still the item's own. A batch of samples has a batch of labels.

    Raises:
      ConfigError: an item has no label.
      InputError: there are more or fewer labels than samples.
    """
    for number, item in enumerate(dataset.items()):
        label, inputs = _split_item(item, model, number, labels)
        if dataset.transform_fn is not None:
            inputs = dataset.transform_fn(item)
        feeds = list(split_samples(model.inputs, [inputs], model.graph.static_inputs))
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
            "'label', or leave the metric away to compare with the float model's outputs"
        )
    return None, item


def _is_pair(item: Any) -> bool:
    return isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], Mapping)


# ---------------------------------------------------------------------------------------------- by the user's function


class Watched:
    """A model that remembers what it was called with, and what it gave."""

    def __init__(self, model: Runnable):
        self._model = model
        self.calls: list[tuple[dict[str, Any], dict[str, np.ndarray]]] = []
        self.bytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, inputs: Any) -> dict[str, Any]:
        outputs = self._model(inputs)
        if self.bytes <= MOST_BYTES:
            feed = {name: np.array(value) for name, value in self._model.feed(inputs).items()}  # type: ignore[attr-defined]
            kept = {name: np.asarray(value) for name, value in outputs.items()}
            self.bytes += sum(value.nbytes for value in (*feed.values(), *kept.values()))
            self.calls.append((feed, kept))
        return outputs


class FunctionValidation:
    """Evaluates models by `validation_fn(model, items)`; higher is better, as in NNCF.

    Args:
      function: gets a compiled callable and the items of the data as they are (labels too); returns a number, or (number,
        one number for each sample).
      dataset: the validation data.
    """

    directions: Mapping[str, bool] = {"validation_fn": True}

    def __init__(self, function: Callable[[Any, Iterable[Any]], Any], dataset: Dataset):
        self.function, self.dataset = function, dataset
        self._count: int | None = None
        self.seen: dict[str, tuple[Watched, Score]] = {}

    def evaluate(self, model: Runnable, role: str = "") -> Scores:
        """See `Validation`.

        Raises:
          ConfigError: the function fails, or what it returns is no number.
          CalibrationError: the data is empty, or can be passed over only once.
        """
        if not role:
            return {"validation_fn": self._call(model, self._items())}
        watched = Watched(model)
        self.seen[role] = (watched, self._call(watched, self._items()))
        return {"validation_fn": self.seen[role][1]}

    def _call(self, model: Runnable, items: Iterable[Any]) -> Score:
        try:
            returned = self.function(model, items)
        except JaxqError as error:
            error.args = (f"in validation_fn: {error}",)
            raise
        except Exception as error:
            raise ConfigError(f"validation_fn failed: {type(error).__name__}: {error}") from error
        return as_score(returned, "validation_fn")

    def _items(self) -> Iterator[Any]:
        count = 0
        for item in self.dataset.items():
            yield item
            count += 1
        if count == 0:
            if self._count:
                raise CalibrationError(
                    f"the validation data gave {self._count} items the first time and none now; it can be passed over only once. "
                    "Give a list, or an object whose iter() starts anew"
                )
            raise CalibrationError("the validation data is empty; at least one sample is needed")
        self._count = count

    def pool(self, part: float = 1.0) -> Pool:
        """See `Validation`; found by watching the calls of the model inside of the function."""
        watched, scores = zip(*(self.seen[role] for role in (EXACT, QUANTIZED)), strict=True)
        exact = watched[0]
        rows: list[tuple[float, float, dict[str, Any]]] = []
        for (feed, before), (other, after) in zip(*(each.calls for each in watched), strict=False):
            same = _digest(feed) == _digest(other)
            feeds = list(split_samples(exact.inputs, [feed], exact.graph.static_inputs))
            if same and len(feeds) > 1 and all(value.shape[:1] == (len(feeds),) for value in before.values()):
                moved = distances(after, before)
            else:
                whole = [{name: value[None] for name, value in each.items()} for each in (after, before)]
                moved = np.repeat(distances(*whole) if same else 0.0, len(feeds))
            rows.extend((0.0, float(far), each) for far, each in zip(moved, feeds, strict=True))
        if not rows:
            raise ConfigError("validation_fn never called the model that it was given; it has to evaluate that model")
        lost = [score.samples for score in scores]
        if lost[0] is not None and lost[1] is not None and len(lost[0]) == len(lost[1]) == len(rows):
            rows = [(float(a - b), moved, feed) for a, b, (_, moved, feed) in zip(lost[0], lost[1], rows, strict=True)]
        return _filled(rows, part)

    def warn_of_noise(self, model: Runnable) -> None:
        """Warns if the function gives another value when it is called again, on a few items."""
        some = list(itertools.islice(self.dataset.items(), PROBED))
        try:
            values = [self._call(model, list(some)).value for _ in range(2)]
        except (JaxqError, ArithmeticError):
            return  # a metric may need more than a few items
        if values[0] != values[1] and not any(map(math.isnan, values)):
            warnings.warn(
                f"validation_fn gave {values[0]:.6g} and {values[1]:.6g} for the same model and items, a spread of "
                f"{abs(values[0] - values[1]):.3g}: drops of this size mean nothing. Fix its seeds, or its order of samples",
                JaxqWarning,
                stacklevel=2,
            )


def _digest(feed: Mapping[str, np.ndarray]) -> bytes:
    hashed = hashlib.sha256()
    for name in sorted(feed):
        hashed.update(np.ascontiguousarray(feed[name]).tobytes())
    return hashed.digest()


# ------------------------------------------------------------------------------------------------------------- which one


def open_validation(
    dataset: Iterable[Any], function: Any, names: Sequence[str], exact: Model, batch_size: int | None
) -> MetricValidation | FunctionValidation:
    """The validation that was asked for: a function, metrics by name, or the likeness to the float model.

    Raises:
      ConfigError: a name is unknown, or the function cannot be called.
    """
    data = dataset if isinstance(dataset, Dataset) else Dataset(dataset)
    if isinstance(function, str):
        names, function = [function], None
    if function is not None:
        if not callable(function):
            raise ConfigError(
                f"validation_fn = {function!r}; expected a function of (model, data), the name of a metric, or None"
            )
        if names:
            raise ConfigError(
                f"metrics = {list(names)} are measured by jaxq itself; leave validation_fn away with them"
            )
        return FunctionValidation(function, data)
    if names:
        metrics = [find_metric(name) for name in names]
        return MetricValidation(functools.partial(labelled_items, data, exact, True), metrics, exact, None, batch_size)
    unlabelled = functools.partial(labelled_items, data, exact, False)
    metric = find_metric("top1" if gives_classes(exact, unlabelled()) else "cosine")
    return MetricValidation(unlabelled, [metric], exact, exact, batch_size)


def gives_classes(model: Model, items: Iterator[tuple[dict[str, Any], Any]]) -> bool:
    """Whether the model's first output is one row of class scores for a sample."""
    for feed, _ in items:
        output = np.asarray(model(feed)[model.graph.outputs[0]])
        return output.dtype.kind == "f" and 1 < output.size == max(output.shape)
    raise CalibrationError("the validation data is empty; at least one sample is needed")
