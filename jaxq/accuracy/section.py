"""The `accuracy` section of a configuration file, and POT's AccuracyAwareQuantization: the keys, as arguments of a call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from jaxq.accuracy.options import AdvancedAccuracyRestorerParameters, MetricOptions
from jaxq.errors import ConfigError, did_you_mean

CALL = ("max_drop", "drop_type", "metric", "validation")
POT_NAMES = {"maximal_drop": "max_drop", "max_iter_num": "max_num_iterations"}
POT_METRICS = {"accuracy": "top1", "accuracy@top1": "top1", "accuracy@top5": "top5", "mean_iou": "miou"}
# POT: predictions of the float model stand in for labels.
ANNOTATIONS = ("annotation_free", "annotation_conf_threshold")


def read_section(given: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """(keyword arguments of `quantize_with_accuracy_control`, the validation data's name or None: the calibration data).

    Names of nncf and of POT are taken. POT's metrics "accuracy", "accuracy@top5" and "mean_iou" are "top1", "top5", "miou" here.

    Raises:
      ConfigError: a key is unknown, or its value is wrong.
    """
    advanced = {each.name for each in fields(AdvancedAccuracyRestorerParameters)}
    known = {*CALL, *advanced, *POT_NAMES, *ANNOTATIONS}
    for key in given:
        if key not in known:
            raise ConfigError(f"accuracy.{key}: unknown key{did_you_mean(key, known)}")
    values = {POT_NAMES.get(key, key): value for key, value in given.items() if value is not None}
    if values.get("annotation_free"):
        values.pop("metrics", None)
    metrics = [MetricOptions.of(each) for each in values.pop("metrics", ())]
    values["metrics"] = tuple(
        MetricOptions(POT_METRICS.get(each.name, each.name), each.baseline_value) for each in metrics
    )
    parameters = AdvancedAccuracyRestorerParameters(**{key: each for key, each in values.items() if key in advanced})
    arguments: dict[str, Any] = {key: values[key] for key in ("max_drop", "drop_type") if key in values}
    arguments |= {"validation_fn": values.get("metric"), "advanced_accuracy_restorer_parameters": parameters}
    return arguments, values.get("validation")
