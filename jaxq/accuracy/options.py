"""What the search for an accurate model can be told, in a call or in the `accuracy` section of a configuration file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

from jaxq.accuracy.treatments import FLOAT, TREATMENTS, WEIGHTS, Treatment
from jaxq.analysis.validation import DropType, check_drop
from jaxq.checks import check_integer, check_number, member
from jaxq.errors import ConfigError, Option, did_you_mean


class Ranking(StrEnum):
    """How layers are ordered by what they cost in accuracy."""

    ALONE = "alone"  # each layer alone quantized, all others in float
    GRADIENT = "gradient"  # one backward pass for all layers
    EXACT = "exact"  # each layer alone reverted


class Search(StrEnum):
    """How the layers to revert are found."""

    BISECT = "bisect"  # how many of the ranked layers are needed, then put back what is not
    POT = "pot"  # one layer after the other, ranked anew when that does not help: OpenVINO POT's and NNCF's loop


class RestoreMode(StrEnum):
    """What goes back to float with a layer."""

    ACTIVATIONS_AND_WEIGHTS = "activations_and_weights"
    ONLY_ACTIVATIONS = "only_activations"


REPAIRS = tuple(dict.fromkeys(each.repair for each in TREATMENTS if each.repair))


@dataclass(frozen=True)
class MetricOptions:
    """One metric of several (POT's `metrics`).

    Attributes:
      name: as in `jaxq.analysis.metrics`, or package.module:function.
      baseline_value: its value for the float model, where that is known.
    """

    name: str
    baseline_value: float | None = None

    @classmethod
    def of(cls, given: Any) -> MetricOptions:
        """From a name, a mapping with `name` and `baseline_value`, or itself."""
        if isinstance(given, cls):
            return given
        if isinstance(given, str):
            return cls(given)
        if not isinstance(given, Mapping) or "name" not in given:
            raise ConfigError(
                Option(("metrics",)),
                f": {given!r} is not a metric; expected a name or {{'name': ..., 'baseline_value': ...}}",
            )
        unknown = set(given) - {"name", "baseline_value", "type"}
        if unknown:
            name = sorted(unknown)[0]
            hint = did_you_mean(name, ["name", "baseline_value"])
            raise ConfigError(Option(("metrics",)), f": unknown key {name!r}{hint}")
        baseline = given.get("baseline_value")
        return cls(str(given["name"]), None if baseline is None else _number("baseline_value", baseline))


@dataclass(frozen=True, kw_only=True)
class AdvancedAccuracyRestorerParameters:
    """How the layers that stay in float are searched for; names as in NNCF and POT.

    Attributes:
      max_num_iterations: at most so many layers are reverted (POT: `max_iter_num`), with search="pot" in so many trials; None:
        all, if need be.
      ranking_subset_size: the samples that layers are ranked on, those that quantization hurts most; None: 8 where the ranking
        is "alone", which takes 32 at most, 32 where it is by gradient, 300 where it is exact.
      ranking: "alone", "gradient" or "exact".
      confirm: how many of the highest ranked layers are measured exactly after a gradient, and put in order.
      search: "bisect" or "pot".
      use_prev_if_drop_increase: search="pot": undo a revert that made the drop larger.
      tune_hyperparams: first try for the whole model: other range estimators, POT's grid of quantiles among them, and no bias
        correction.
      convert_to_mixed_preset: where the target is missed with symmetric activations, try asymmetric ones first.
      base_algorithm: what quantizes the model at the beginning; "DefaultQuantization" is the only one.
      metrics: several metrics, each of which has to stay within the drop: names, or {"name", "baseline_value"}. With a baseline
        value for each, the float model is evaluated only where the quantized one misses a limit.
      annotation_free: measure metrics by name without labels; the outputs of the float model stand in for them.
      metric_subset_ratio: with baseline values: the first part of the data, from which the samples for rankings are chosen.
      restore_mode: "only_activations" keeps the weights of reverted layers rounded.
      prune: at the end, try to put back reverted layers.
      repairs: search="bisect": what to try at the end for a layer in place of float, of "range_estimator", "bias_correction",
        "int16_activations" and "int8_weights". Tried in the order of their cost; the first that suffices is kept.
      time_budget: seconds after which the search ends with the best model so far.
      intermediate_model_dir: a folder for the best model so far and the state of the search; with it, the same call goes on
        after it was broken off.

    Raises:
      ConfigError: a value is wrong, or options contradict each other; the message says which.
    """

    max_num_iterations: int | None = None
    ranking_subset_size: int | None = None
    ranking: Ranking | str = Ranking.ALONE
    confirm: int = 4
    search: Search | str = Search.BISECT
    use_prev_if_drop_increase: bool = True
    tune_hyperparams: bool = False
    convert_to_mixed_preset: bool = False
    base_algorithm: str = "DefaultQuantization"
    metrics: tuple[MetricOptions, ...] = ()
    annotation_free: bool = False
    metric_subset_ratio: float = 0.5
    restore_mode: RestoreMode | str = RestoreMode.ACTIVATIONS_AND_WEIGHTS
    prune: bool = True
    repairs: tuple[str, ...] = ()
    time_budget: float | None = None
    intermediate_model_dir: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        """Raises ConfigError for a value that is wrong."""

        def put(key: str, value: Any) -> None:
            object.__setattr__(self, key, value)

        for key, kind in (("ranking", Ranking), ("search", Search), ("restore_mode", RestoreMode)):
            put(key, member(kind, key, getattr(self, key)))
        for key, least in (("max_num_iterations", 1), ("ranking_subset_size", 1), ("confirm", 0)):
            if getattr(self, key) is not None:
                check_integer(key, getattr(self, key), at_least=least)
        if self.base_algorithm != "DefaultQuantization":
            raise ConfigError(Option(("base_algorithm",), self.base_algorithm), "; expected 'DefaultQuantization'")
        if not 0 < _number("metric_subset_ratio", self.metric_subset_ratio) <= 1:
            ratio = Option(("metric_subset_ratio",), self.metric_subset_ratio)
            raise ConfigError(ratio, "; expected a number above 0, at most 1")
        if self.time_budget is not None and not _number("time_budget", self.time_budget) > 0:
            raise ConfigError(Option(("time_budget",), self.time_budget), "; expected a number of seconds above 0")
        repairs = (self.repairs,) if isinstance(self.repairs, str) else tuple(self.repairs)
        for name in repairs:
            if name not in REPAIRS:
                hint = did_you_mean(str(name), REPAIRS)
                known = ", ".join(REPAIRS)
                raise ConfigError(Option(("repairs",)), f": {name!r} is not known; expected some of {known}{hint}")
        if repairs and self.search is Search.POT:
            raise ConfigError(
                Option(("repairs",)),
                ": ",
                Option(("search",), "pot"),
                " takes layers back to float only; leave repairs away, or take ",
                Option(("search",), "bisect"),
            )
        put("repairs", repairs)
        metrics: Any = self.metrics
        metrics = (metrics,) if isinstance(metrics, str | Mapping | MetricOptions) else tuple(metrics)
        put("metrics", tuple(map(MetricOptions.of, metrics)))
        self._check_metrics()

    def _check_metrics(self) -> None:
        names = [metric.name for metric in self.metrics]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(Option(("metrics",)), f": {twice[0]!r} is there twice")
        without = [metric.name for metric in self.metrics if metric.baseline_value is None]
        if without and len(without) < len(names):
            raise ConfigError(
                Option(("metrics",)),
                f": baseline_value is given for some metrics and not for {', '.join(map(repr, without))}; give it for all of "
                "them, or for none",
            )

    @property
    def has_baseline(self) -> bool:
        """Whether the float model's values are given."""
        return any(metric.baseline_value is not None for metric in self.metrics)

    @property
    def revert(self) -> Treatment:
        """What counts as reverting a layer."""
        return FLOAT if self.restore_mode is RestoreMode.ACTIVATIONS_AND_WEIGHTS else WEIGHTS

    @property
    def treatments(self) -> tuple[Treatment, ...]:
        """What may be done to a layer, cheapest first; the last is `revert`."""
        return (*(each for each in TREATMENTS if each.repair in self.repairs and each != self.revert), self.revert)

    @property
    def estimators(self) -> tuple[str, ...]:
        """Names of the range estimators that treatments may ask for."""
        chosen = TREATMENTS if self.tune_hyperparams else self.treatments
        return tuple(dict.fromkeys(each.estimator for each in chosen if each.estimator is not None))


@dataclass(frozen=True, kw_only=True)
class AccuracySection(AdvancedAccuracyRestorerParameters):
    """The `accuracy` section of a configuration file: limits of the loss of accuracy, and how to search for what keeps them.

    Attributes:
      max_drop: the largest drop allowed.
      drop_type: "absolute", or "relative" to the float model's value.
      metric: the name of a metric, or package.module:function; None compares with the float model, without labels.
      validation: the data on which the metric is taken, as `data`; None: the calibration data.
    """

    max_drop: float = 0.01
    drop_type: DropType | str = DropType.ABSOLUTE
    metric: str | None = None
    validation: str | None = None

    def __post_init__(self) -> None:
        """Raises ConfigError for a value that is wrong."""
        super().__post_init__()
        object.__setattr__(self, "drop_type", member(DropType, "drop_type", self.drop_type))
        check_drop(self.max_drop, DropType(self.drop_type))
        if self.metric is not None and self.metrics:
            raise ConfigError(
                Option(("metric",)),
                " and ",
                Option(("metrics",)),
                " are two ways to say what is measured; give one of them",
            )

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of `quantize_with_accuracy_control` that say the same."""
        values = {each.name: getattr(self, each.name) for each in fields(AdvancedAccuracyRestorerParameters)}
        return {
            "max_drop": self.max_drop,
            "drop_type": self.drop_type,
            "validation_fn": self.metric,
            "advanced_accuracy_restorer_parameters": AdvancedAccuracyRestorerParameters(**values),
        }


def _number(key: str, value: Any) -> float:
    check_number(key, value)
    return float(value)
