"""Every option of `jaxq.quantize`, checked in one place. The names are nncf's where it has the same thing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from jaxq.checks import check_booleans, check_integer, check_kind, check_number, member
from jaxq.data.functions import named_function, names_function
from jaxq.errors import ConfigError, Option, Words, did_you_mean, inside, worded
from jaxq.graph.select import IgnoredScope
from jaxq.numerics.estimators import (
    AggregatorType,
    RangeEstimatorParameters,
    RangeEstimatorParametersSet,
    RangeFunction,
)
from jaxq.placement.schemes import (
    FP8QuantizationParameters,
    OverflowFix,
    Override,
    Parameters,
    QuantizationParameters,
    QuantizerPropagationRule,
    Role,
    scheme_for,
)
from jaxq.placement.targets import TARGETS, Target


def _put(owner: object, key: str, value: object) -> None:
    """Sets an attribute of a frozen class, in its `__post_init__`."""
    object.__setattr__(owner, key, value)


class Preset(StrEnum):
    """Which tensors may have a zero point of their own: none (performance), activations (mixed), or weights too (accuracy).

    Weights are asymmetric only where the target takes a zero point for each channel; elsewhere "accuracy" is "mixed".
    """

    PERFORMANCE = "performance"
    MIXED = "mixed"
    ACCURACY = "accuracy"


class ModelType(StrEnum):
    """What kind of network it is, where that changes what is quantized."""

    TRANSFORMER = "transformer"


class TargetDevice(StrEnum):
    """The devices of nncf and POT, as `target_device` takes them beside the names of `jaxq.placement.targets`.

    ANY and CPU stand for "onnxruntime"; GPU, NPU and CPU_SPR, which are Intel's, for "openvino". The target "any", in lower case,
    is another one: what every runtime takes.
    """

    ANY = "ANY"
    CPU = "CPU"
    GPU = "GPU"
    NPU = "NPU"
    CPU_SPR = "CPU_SPR"


DEVICES: Mapping[str, str] = {
    "ANY": "onnxruntime",
    "CPU": "onnxruntime",
    "GPU": "openvino",
    "NPU": "openvino",
    "CPU_SPR": "openvino",
}


@dataclass(frozen=True, kw_only=True)
class AdvancedBiasCorrectionParameters:
    """How biases are corrected.

    Attributes:
      apply_for_all_nodes: correct the biases of nodes that stay in float, too.
      threshold: a correction larger than this many times the bias and the spread of the output is not made; None: 2 for the fast
        algorithm, 1000 for the other one.

    Raises:
      ConfigError: a value is wrong; the message shows it and what was expected.
    """

    apply_for_all_nodes: bool = False
    threshold: float | None = None

    def __post_init__(self) -> None:
        check_booleans(self, "apply_for_all_nodes")
        if self.threshold is not None:
            check_number("threshold", self.threshold, above=0)


@dataclass(frozen=True, kw_only=True)
class AdvancedSmoothQuantParameters:
    """How much of the difficulty of activations SmoothQuant moves into weights: alpha from 0 (none) to 1 (all); -1: it is off.

    Attributes:
      convolution: alpha of convolutions.
      matmul: alpha of matrix products. None chooses for each tensor by the error predicted, "off" included; nncf's fixed 0.95 can
        cost accuracy.

    Raises:
      ConfigError: an alpha is not from 0 to 1, and not -1.
    """

    convolution: float = -1
    matmul: float | None = None

    def __post_init__(self) -> None:
        for key, value in (("convolution", self.convolution), ("matmul", self.matmul)):
            if value is None and key == "matmul":
                continue
            check_number(key, value)
            if value is not None and value != -1 and not 0 <= value <= 1:
                raise ConfigError(Option((key,), value), "; expected a number from 0 to 1, or -1 to leave it out")


@dataclass(frozen=True, kw_only=True)
class AdvancedQuantizationParameters:
    """What only experts need to set.

    Attributes:
      overflow_fix: hold weights to 7 bits against saturation: "enable" (all), "first_layer_only", "disable"; None: what the
        target needs.
      quantize_outputs: quantize the outputs of the model.
      inplace_statistics: accepted for nncf's sake. Statistics are always gathered inside the compiled program.
      disable_channel_alignment: leave the channel ranges of neighbouring convolutions as they are.
      disable_equalization: leave the scales of channels as they are.
      disable_bias_correction: leave the biases as they are.
      batchwise_statistics: False: each item of the data set makes one statistic, as a whole; True and None: each sample in it.
      activations_quantization_params, weights_quantization_params: how these tensors are quantized.
      overrides: the same for some nodes only.
      quantizer_propagation_rule: what becomes of the quantizers of a tensor whose readers want different ones.
      activations_range_estimator_params: from statistics to the ranges of activations; parameters, a name of
        `RangeEstimatorParametersSet` in lower case, or a function (distributions, grid, symmetric) -> (low, high), itself or as
        package.module:function. None: "mse".
      weights_range_estimator_params: the same for weights. None: "minmax".
      bias_correction_params: how biases are corrected.
      smooth_quant_alphas: how strong SmoothQuant is, in transformers.
      backend_params: accepted for nncf's sake and not read: weights are always written as integers, external data as `save` says.

    Raises:
      ConfigError: a value is wrong; the message shows it and what was expected, or the nearest name.
    """

    overflow_fix: OverflowFix | str | None = None
    quantize_outputs: bool = False
    inplace_statistics: bool = True
    disable_channel_alignment: bool = True
    disable_equalization: bool = False
    disable_bias_correction: bool = False
    batchwise_statistics: bool | None = None
    activations_quantization_params: Parameters | None = None
    weights_quantization_params: Parameters | None = None
    overrides: tuple[Override, ...] = ()
    quantizer_propagation_rule: QuantizerPropagationRule | str = QuantizerPropagationRule.MERGE_ALL_IN_ONE
    activations_range_estimator_params: RangeEstimatorParameters | str | RangeFunction | None = None
    weights_range_estimator_params: RangeEstimatorParameters | str | None = None
    bias_correction_params: AdvancedBiasCorrectionParameters = AdvancedBiasCorrectionParameters()
    smooth_quant_alphas: AdvancedSmoothQuantParameters = AdvancedSmoothQuantParameters()
    backend_params: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        flags = ("quantize_outputs", "inplace_statistics", "disable_channel_alignment", "disable_equalization")
        check_booleans(self, *flags, "disable_bias_correction")
        if self.batchwise_statistics is not None:
            check_booleans(self, "batchwise_statistics")
        if self.overflow_fix is not None:
            _put(self, "overflow_fix", member(OverflowFix, "overflow_fix", self.overflow_fix))
        rule = member(QuantizerPropagationRule, "quantizer_propagation_rule", self.quantizer_propagation_rule)
        _put(self, "quantizer_propagation_rule", rule)
        for key in ("activations_range_estimator_params", "weights_range_estimator_params"):
            value = getattr(self, key)
            if isinstance(value, str) and names_function(value):
                with inside(key):
                    value = named_function(value)
            if value is not None:
                _put(self, key, RangeEstimatorParametersSet.of(value, key))
        chosen = self.weights_range_estimator_params
        if isinstance(chosen, RangeEstimatorParameters) and chosen.distribution not in OF_WEIGHTS:
            raise ConfigError(
                Option(("weights_range_estimator_params",), plain(chosen)),
                "; weights take extremes, quantiles, 'percentile' or 'mse'",
            )
        overrides = self.overrides
        _put(self, "overrides", (overrides,) if isinstance(overrides, Override) else tuple(overrides))
        kinds = {
            "activations_quantization_params": (QuantizationParameters, FP8QuantizationParameters, type(None)),
            "weights_quantization_params": (QuantizationParameters, FP8QuantizationParameters, type(None)),
            "bias_correction_params": AdvancedBiasCorrectionParameters,
            "smooth_quant_alphas": AdvancedSmoothQuantParameters,
            "backend_params": Mapping,
        }
        for key, kind in kinds.items():
            check_kind(key, getattr(self, key), kind)
        for override in self.overrides:
            check_kind("overrides", override, Override)


OF_WEIGHTS = (None, AggregatorType.PERCENTILE, AggregatorType.MSE)  # what finds ranges of weights

# What the placement of quantizers calls the advanced parameters that it gets.
ADVANCED = Words(
    {("activations",): ("activations_quantization_params",), ("weights",): ("weights_quantization_params",)}
)


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions:
    """The keyword arguments of `jaxq.quantize`, checked.

    Attributes:
      preset: "performance" (symmetric activations), "mixed" (asymmetric), "accuracy" (weights too, where the target has that);
        None: what costs the target nothing more.
      target_device: the runtime that will execute the file: a name of `jaxq.placement.targets`, or a `TargetDevice`.
      subset_size: the number of samples used; None: all.
      fast_bias_correction: correct each bias by itself, for the rounding of its weights (nncf's default); or, more
        accurately, all together, each seeing what is left of the errors before it.
      model_type: "transformer" keeps additions, normalizations and the like in float; None: found out.
      ignored_scope: what stays in float.
      advanced_parameters: everything else.
      seed: of what is random.
      batch_size: samples run at a time; None: chosen. A matter of speed.

    Raises:
      ConfigError: an option is wrong, or the target does not take what is asked for; its `path` leads to the option.
    """

    preset: Preset | str | None = None
    target_device: TargetDevice | str = "onnxruntime"
    subset_size: int | None = 300
    fast_bias_correction: bool = False
    model_type: ModelType | str | None = None
    ignored_scope: IgnoredScope = field(default_factory=IgnoredScope)
    advanced_parameters: AdvancedQuantizationParameters = AdvancedQuantizationParameters()
    seed: int = 0
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.preset is not None:
            _put(self, "preset", member(Preset, "preset", self.preset))
        if self.model_type is not None:
            _put(self, "model_type", member(ModelType, "model_type", self.model_type))
        _put(
            self,
            "target_device",
            str(self.target_device) if isinstance(self.target_device, str) else self.target_device,
        )
        check_target("target_device", self.target_device)
        for key, least in (("subset_size", 1), ("batch_size", 1), ("seed", 0)):
            value = getattr(self, key)
            if value is not None or key == "seed":
                check_integer(key, value, at_least=least)
        check_booleans(self, "fast_bias_correction")
        check_kind("ignored_scope", self.ignored_scope, IgnoredScope, "e.g. IgnoredScope(names=['conv1'])")
        check_kind("advanced_parameters", self.advanced_parameters, AdvancedQuantizationParameters)
        advanced, symmetric = self.advanced_parameters, self.resolved_preset is Preset.PERFORMANCE
        wanted: tuple[tuple[Role, Parameters | None, bool], ...] = (
            ("activations", advanced.activations_quantization_params, symmetric),
            ("weights", advanced.weights_quantization_params, True),
        )
        for role, parameters, usual in wanted:
            with inside("advanced_parameters"), worded(ADVANCED), inside(role):
                scheme_for(self.target, role, parameters or QuantizationParameters(), symmetric=usual)

    @property
    def target(self) -> Target:
        """The table of the runtime that will execute the file."""
        return TARGETS[DEVICES.get(self.target_device, self.target_device)]

    @property
    def transformer(self) -> bool | None:
        """Whether it is a transformer; None: look."""
        return None if self.model_type is None else self.model_type == ModelType.TRANSFORMER

    @property
    def resolved_preset(self) -> Preset:
        """The preset; that of the target where none is given."""
        return Preset(self.preset or self.target.default_preset)

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of `jaxq.quantize` that give these options."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def to_dict(self) -> dict[str, Any]:
        """What differs from the defaults, as plain values for JSON."""
        return plain(self)


def plain(value: Any) -> Any:
    """Options as values for JSON: enumerations by value, estimators and functions by name, of classes what is not the default."""
    if isinstance(value, RangeEstimatorParameters):
        named = {each: name for name, each in RangeEstimatorParametersSet.items()}
        if value in named:
            return named[value]
        if callable(value.distribution) and value == RangeEstimatorParametersSet.of(value.distribution):
            return plain(value.distribution)
    if is_dataclass(value):
        found = {each.name: getattr(value, each.name) for each in fields(value)}
        defaults = {each.name: _default(each) for each in fields(value)}
        return {key: plain(each) for key, each in found.items() if each != defaults[key]}
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return [plain(each) for each in value]
    if callable(value):
        return f"{value.__module__}:{getattr(value, '__qualname__', type(value).__qualname__)}"
    return value.item() if isinstance(value, np.generic) else value


def _default(each: Field[Any]) -> Any:
    return each.default_factory() if each.default_factory is not MISSING else each.default


def check_target(key: str, value: object) -> None:
    """Refuses what is neither a device of nncf nor a target.

    Raises:
      ConfigError: the message gives the nearest name.
    """
    known = [*sorted(TARGETS), *DEVICES]
    if not isinstance(value, str) or value not in known:
        raise ConfigError(Option((key,), value), f"; known: {', '.join(known)}{did_you_mean(str(value), known)}")
