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
from jaxq.metrics import find_metric
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
    metric = find_metric("top1" if gives_classes(exact, unlabelled()) else "cosine")
    return MetricValidation(unlabelled, [metric], exact, exact, batch_size)


def gives_classes(model: Model, items: Iterator[tuple[dict[str, Any], Any]]) -> bool:
    """Whether the model's first output is one row of class scores for a sample."""
    for feed, _ in items:
        output = np.asarray(model(feed)[model.graph.outputs[0]])
        return output.dtype.kind == "f" and 1 < output.size == max(output.shape)
    raise CalibrationError("the validation data is empty; at least one sample is needed")
