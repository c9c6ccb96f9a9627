"""Quantizes a model and keeps as few of its layers in float as a limit on the loss of accuracy demands."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from jaxq.accuracy.control import Control
from jaxq.accuracy.folder import open_folder
from jaxq.accuracy.identity import Identity, ReadOnce, digest_of, model_digest
from jaxq.accuracy.journal import Listener
from jaxq.accuracy.options import (
    AdvancedAccuracyRestorerParameters,
    DropType,
    check_drop,
)
from jaxq.accuracy.state import State
from jaxq.analysis.metrics import find_metric
from jaxq.checks import member
from jaxq.data import Dataset
from jaxq.engine.model import Model
from jaxq.engine.programs import holding
from jaxq.errors import ConfigError
from jaxq.graph.select import IgnoredScope
from jaxq.onnx_io.load import Source
from jaxq.options import AdvancedQuantizationParameters, ModelType, Preset, QuantizeOptions, TargetDevice
from jaxq.pipeline import Prepared, prepare
from jaxq.version import __version__


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
        (number, one number for each sample); higher is better. Or the name of a metric of `jaxq.analysis.metrics`, or
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
    folder = None if advanced.intermediate_model_dir is None else open_folder(advanced.intermediate_model_dir)
    with holding():
        prepared = prepare(model, calibration_dataset, options)
        data = validation_dataset if isinstance(validation_dataset, Dataset) else Dataset(validation_dataset)
        identity = None
        if folder is not None:
            read = ReadOnce(data)
            data = Dataset(read, data.transform_func, batch_axis=data.batch_axis)
            measure = [metric.name for metric in advanced.metrics] if validation_fn is None else validation_fn
            identity = Identity(known_parts(prepared, measure, data, advanced.annotation_free), prepared.data, read)
        control = Control(prepared, advanced, State(folder, identity), started, on_step)
        return control.run(data, validation_fn, allowed, kind)


def known_parts(prepared: Prepared, measure: Any, data: Dataset, annotation_free: bool) -> dict[str, str]:
    """What decides the values of a candidate, beside the data; a search may go on with all else changed.

    Args:
      measure: the validation function, or the names of metrics.
      annotation_free: whether these refer to the float model's outputs.
    """
    names = [measure] if isinstance(measure, str) else measure
    if isinstance(names, list):
        measure = [find_metric(name) for name in names]
    options = replace(prepared.options, batch_size=None).to_dict()
    return {
        "version of jaxq": __version__,
        "model": model_digest(prepared.graph, prepared.model.params),
        "options": digest_of(options, sorted(prepared.ignored)),
        "validation function": digest_of(measure, data.transform_func, annotation_free),
    }
