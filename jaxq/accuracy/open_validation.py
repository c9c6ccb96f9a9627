"""Chooses the way of evaluating that was asked for."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxq.accuracy.by_function import FunctionValidation
from jaxq.accuracy.by_metric import MetricValidation, labelled_items
from jaxq.accuracy.validation import EMPTY
from jaxq.analysis.classes import class_scores
from jaxq.analysis.metrics import COSINE_OF_LISTS, METRICS, Metric, find_metric
from jaxq.data import Dataset
from jaxq.engine.model import Model
from jaxq.errors import CalibrationError, ConfigError


def open_validation(
    dataset: Iterable[Any],
    function: Any,
    names: Sequence[str],
    exact: Model,
    batch_size: int | None,
    *,
    annotation_free: bool = False,
) -> MetricValidation | FunctionValidation:
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
    """What compares a model with itself: top1, if its first output is one row of class scores (`classes`), else cosine."""
    for feed, _ in items:
        name = model.graph.outputs[0]
        if name in model.made_on_host(feed):
            return COSINE_OF_LISTS
        if name not in class_scores(model.graph, model.params):
            return METRICS["cosine"]
        scores = np.asarray(model(feed)[name])
        return METRICS["top1" if scores.size == max(scores.shape) else "cosine"]
    raise CalibrationError(EMPTY)


def look_at_first(items: Iterator[Any]) -> None:
    """Raises what making the first item raises, and CalibrationError if there is none."""
    for _ in items:
        return
    raise CalibrationError(EMPTY)
