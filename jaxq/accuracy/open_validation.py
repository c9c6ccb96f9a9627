"""Chooses the way of evaluating that was asked for."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxq.accuracy.by_function import FunctionValidation
from jaxq.accuracy.by_metric import MetricValidation, labelled_items
from jaxq.data import Dataset
from jaxq.errors import CalibrationError, ConfigError
from jaxq.metrics import COSINE_OF_LISTS, METRICS, Metric, find_metric
from jaxq.model import Model


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
    return MetricValidation(unlabelled, [likeness(exact, unlabelled())], exact, exact, batch_size)


def likeness(model: Model, items: Iterator[tuple[dict[str, Any], Any]]) -> Metric:
    """What compares a model with itself: top1, if its first output is one row of class scores for a sample, else cosine."""
    for feed, _ in items:
        name = model.graph.outputs[0]
        if name in model.made_on_host(feed):
            return COSINE_OF_LISTS
        output = np.asarray(model(feed)[name])
        return METRICS["top1" if output.dtype.kind == "f" and 1 < output.size == max(output.shape) else "cosine"]
    raise CalibrationError("the validation data is empty; at least one sample is needed")
