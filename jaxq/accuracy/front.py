"""Quantizes a model and keeps as few of its layers in float as a limit on the loss of accuracy demands."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from jaxq.accuracy.control import Control
from jaxq.accuracy.journal import Listener
from jaxq.accuracy.options import (
    AdvancedAccuracyRestorerParameters,
    DropType,
    check_drop,
)
from jaxq.accuracy.state import State, fingerprint
from jaxq.checks import member
from jaxq.data import Dataset
from jaxq.errors import ConfigError
from jaxq.model import Model
from jaxq.onnx_import import Source
from jaxq.options import AdvancedQuantizationParameters, ModelType, Preset, QuantizeOptions, TargetDevice
from jaxq.pipeline import prepare
from jaxq.scope import IgnoredScope


def quantize_with_accuracy_control(
    model: Source,
    calibration_dataset: Iterable[Any],
    validation_dataset: Iterable[Any],
    validation_fn: Callable[[Any, Iterable[Any]], Any] | str | None = None,
    *,
    max_drop: float = 0.01,
    drop_type: DropType | str = DropType.ABSOLUTE,
    preset: Preset | str | None = None,
    target_device: TargetDevice | str = "onnxruntime",
    subset_size: int | None = 300,
    fast_bias_correction: bool = False,
    model_type: ModelType | str | None = None,
    ignored_scope: IgnoredScope | None = None,
    advanced_quantization_parameters: AdvancedQuantizationParameters | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    advanced_accuracy_restorer_parameters: AdvancedAccuracyRestorerParameters | None = None,
    on_step: Listener | None = None,
) -> Model:
    """Quantizes a trained model so that a metric falls by no more than `max_drop`; layers that cost too much stay in float.

    Args:
      model, preset, target_device, subset_size, fast_bias_correction, model_type, ignored_scope, seed, batch_size: as for
        `quantize`.
      advanced_quantization_parameters: its `advanced_parameters`.
      calibration_dataset: as for `quantize`; it may be the same as the next.
      validation_dataset: the data on which the metric is taken. An iterable that can be passed over again, or a `Dataset`, whose
        `transform_func` makes the inputs while labels come from the item itself.
      validation_fn: `validation_fn(model, items)` gets a compiled callable and the items as they are, and returns a number, or
        (number, one number for each sample); higher is better. Or the name of a metric of `jaxq.metrics`, or
        "package.module:function"; then items are (inputs, label) or mappings with the key "label". None: no labels; the
        predicted class (cosine similarity, where outputs are no class scores) is compared with the float model's.
      max_drop: the largest drop allowed.
      drop_type: "absolute", or "relative" to the float model's value.
      advanced_accuracy_restorer_parameters: how to search.
      on_step: gets the `AccuracyReport` after every step; its last call has the final one.

    Returns:
      The quantized `Model`, in which the layers that had to be kept in float are.

    Raises:
      AccuracyError: no model within the drop was found, or the validation failed on a candidate; it has `.best` and `.report`.
      ConfigError: an option is wrong, or the validation function fails on the float model or returns no number.
      CalibrationError: the validation data is empty. And what `quantize` raises.
    """
    kind = member(DropType, "drop_type", drop_type)
    allowed = check_drop(max_drop, kind)
    advanced = advanced_accuracy_restorer_parameters or AdvancedAccuracyRestorerParameters()
    if not isinstance(advanced, AdvancedAccuracyRestorerParameters):
        raise ConfigError(f"{advanced!r} is not an AdvancedAccuracyRestorerParameters")
    options = QuantizeOptions(
        preset=preset,
        target_device=target_device,
        subset_size=subset_size,
        fast_bias_correction=fast_bias_correction,
        model_type=model_type,
        ignored_scope=IgnoredScope() if ignored_scope is None else ignored_scope,
        advanced_parameters=advanced_quantization_parameters or AdvancedQuantizationParameters(),
        seed=seed,
        batch_size=batch_size,
    )
    started = time.monotonic()
    prepared = prepare(model, calibration_dataset, options)
    data = validation_dataset if isinstance(validation_dataset, Dataset) else Dataset(validation_dataset)
    described = (options.to_dict(), sorted(prepared.ignored), advanced_key(advanced), _name(validation_fn))
    first = (prepared.data.first(), *itertools.islice(data.items(), 1))
    state = State(advanced.intermediate_model_dir, fingerprint(prepared.graph, prepared.model.params, described, first))
    control = Control(prepared, advanced, state, started, on_step)
    return control.run(data, validation_fn, allowed, kind)


def advanced_key(advanced: AdvancedAccuracyRestorerParameters) -> AdvancedAccuracyRestorerParameters:
    """What of the parameters decides what a candidate is worth; a search may go on with others changed."""
    plain = AdvancedAccuracyRestorerParameters()
    return replace(
        plain, metrics=advanced.metrics, annotation_free=advanced.annotation_free,
        ranking_subset_size=advanced.ranking_subset_size, ranking=advanced.ranking,
    )  # fmt: skip


def _name(function: Any) -> str:
    return function if isinstance(function, str) else f"{getattr(function, '__qualname__', type(function).__name__)}"
