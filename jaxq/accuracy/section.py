"""The `accuracy` section of a configuration file, and POT's AccuracyAwareQuantization: the keys, as arguments of a call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from jaxq.accuracy.options import AdvancedAccuracyRestorerParameters
from jaxq.errors import ConfigError, did_you_mean

CALL = ("max_drop", "drop_type", "metric", "validation")
POT_NAMES = {"maximal_drop": "max_drop", "max_iter_num": "max_num_iterations"}
POT_METRICS = {"accuracy": "top1", "accuracy@top1": "top1", "accuracy@top5": "top5", "mean_iou": "miou"}
WITHOUT_USE = ("annotation_conf_threshold",)  # POT: of the predictions that stand in for labels


def read_section(given: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """(keyword arguments of `quantize_with_accuracy_control`, the validation data's name or None: the calibration data).

    Names of nncf and of POT are taken. POT's metrics "accuracy", "accuracy@top5" and "mean_iou" are "top1", "top5", "miou" here.

    Raises:
      ConfigError: a key is unknown, its value is wrong, or two keys say the same.
    """
    advanced = {each.name for each in fields(AdvancedAccuracyRestorerParameters)}
    known = {*CALL, *advanced, *POT_NAMES, *WITHOUT_USE}
    for key in given:
        if key not in known:
            raise ConfigError(f"accuracy.{key}: unknown key{did_you_mean(key, known)}")
    for key, name in POT_NAMES.items():
        if given.get(key) is not None and given.get(name) is not None:
            raise ConfigError(f"accuracy.{key} and accuracy.{name} are the same; give one of them")
    values = {POT_NAMES.get(key, key): value for key, value in given.items() if value is not None}
    if "metric" in values and "metrics" in values:
        raise ConfigError("accuracy.metric and accuracy.metrics are two ways to say what is measured; give one of them")
    parameters = AdvancedAccuracyRestorerParameters(**{key: each for key, each in values.items() if key in advanced})
    metrics = [replace(each, name=POT_METRICS.get(each.name, each.name)) for each in parameters.metrics]
    if parameters.annotation_free:  # what was measured with labels is no baseline without them
        metrics = [replace(each, baseline_value=None) for each in metrics]
    parameters = replace(parameters, metrics=tuple(metrics))
    arguments: dict[str, Any] = {key: values[key] for key in ("max_drop", "drop_type") if key in values}
    arguments |= {"validation_fn": values.get("metric"), "advanced_accuracy_restorer_parameters": parameters}
    return arguments, values.get("validation")
