"""Options: nncf's names, checked in one place, and what they become."""

import inspect
from dataclasses import fields

import numpy as np
import pytest

import jaxq
from jaxq.errors import ConfigError
from jaxq.graph.select import IgnoredScope
from jaxq.numerics.estimators import RangeEstimatorParametersSet
from jaxq.options import (
    DEVICES,
    AdvancedBiasCorrectionParameters,
    AdvancedQuantizationParameters,
    AdvancedSmoothQuantParameters,
    Preset,
    QuantizeOptions,
    TargetDevice,
    plain,
)
from jaxq.placement.schemes import OverflowFix, Override, QuantizationParameters
from jaxq.placement.targets import TARGETS


def test_the_options_are_the_keywords_of_quantize():
    signature = inspect.signature(jaxq.quantize).parameters.values()
    keywords = {each.name: each.default for each in signature if each.kind is inspect.Parameter.KEYWORD_ONLY}
    assert set(keywords) == {each.name for each in fields(QuantizeOptions)}
    default = QuantizeOptions()
    for name, value in keywords.items():
        assert value is None or value == getattr(default, name), name


def test_nncfs_keywords_are_all_there():
    keywords = set(inspect.signature(jaxq.quantize).parameters)
    assert {
        "model", "calibration_dataset", "preset", "target_device", "subset_size", "fast_bias_correction", "model_type",
        "ignored_scope", "advanced_parameters",
    } <= keywords  # fmt: skip
    assert {
        "overflow_fix", "quantize_outputs", "inplace_statistics", "disable_channel_alignment", "disable_bias_correction",
        "batchwise_statistics", "activations_quantization_params", "weights_quantization_params", "quantizer_propagation_rule",
        "activations_range_estimator_params", "weights_range_estimator_params", "bias_correction_params", "smooth_quant_alphas",
        "backend_params",
    } <= {each.name for each in fields(AdvancedQuantizationParameters)}  # fmt: skip


def test_enumerations_may_be_strings():
    advanced = AdvancedQuantizationParameters(overflow_fix="enable", activations_range_estimator_params="mean_minmax")
    assert advanced.overflow_fix is OverflowFix.ENABLE
    assert advanced.activations_range_estimator_params == RangeEstimatorParametersSet.MEAN_MINMAX
    options = QuantizeOptions(preset="mixed", target_device="CPU", model_type="transformer")
    assert options == QuantizeOptions(preset=Preset.MIXED, target_device=TargetDevice.CPU, model_type="transformer")
    assert options.transformer is True


@pytest.mark.parametrize("device", TargetDevice)
def test_every_device_stands_for_a_target(device):
    assert QuantizeOptions(target_device=device).target is TARGETS[DEVICES[device]]


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_is_a_device_and_has_a_preset(name):
    options = QuantizeOptions(target_device=name)
    assert options.target is TARGETS[name]
    assert options.resolved_preset == TARGETS[name].default_preset
    assert QuantizeOptions(target_device=name, preset="performance").resolved_preset is Preset.PERFORMANCE


def test_plain_values_hold_what_differs_from_the_defaults():
    assert QuantizeOptions().to_dict() == {}
    options = QuantizeOptions(
        subset_size=np.int64(10),
        ignored_scope=IgnoredScope(names="a"),
        advanced_parameters=AdvancedQuantizationParameters(
            overrides=Override(types="Conv", weights=QuantizationParameters(num_bits=4)),
            weights_range_estimator_params="mse",
        ),
    )
    assert options.to_dict() == {
        "subset_size": 10,
        "ignored_scope": {"names": ["a"]},
        "advanced_parameters": {
            "overrides": [{"types": ["Conv"], "weights": {"num_bits": 4}}],
            "weights_range_estimator_params": "mse",
        },
    }
    assert type(options.to_dict()["subset_size"]) is int
    assert plain(("a", 1.5, None)) == ["a", 1.5, None]


FOUR = QuantizationParameters(num_bits=4)
Advanced, BiasCorrection, SmoothQuant = (
    AdvancedQuantizationParameters,
    AdvancedBiasCorrectionParameters,
    AdvancedSmoothQuantParameters,
)

BAD = {
    "a misspelt fix": (lambda: Advanced(overflow_fix="enabled"), "overflow_fix = 'enabled'; .*did you mean 'enable'"),
    "a number for a switch": (lambda: Advanced(quantize_outputs=1), "quantize_outputs = 1; expected True or False"),
    "an unknown estimator": (
        lambda: Advanced(weights_range_estimator_params="min_max"), "'min_max'; .*did you mean 'minmax'"
    ),
    "an estimator that weights do not take": (
        lambda: Advanced(weights_range_estimator_params="entropy"),
        "weights_range_estimator_params = 'entropy'; weights take extremes, quantiles, 'percentile' or 'mse'",
    ),
    "a dict of parameters": (
        lambda: Advanced(weights_quantization_params={"num_bits": 4}),
        "weights_quantization_params = .*; expected a QuantizationParameters",
    ),
    "an override that is none": (lambda: Advanced(overrides=["x"]), "overrides = 'x'; expected an Override"),
    "advanced parameters of another kind": (
        lambda: QuantizeOptions(advanced_parameters={}), "advanced_parameters = {}; expected an AdvancedQuantizationParameters"
    ),
    "fast or not": (lambda: QuantizeOptions(fast_bias_correction="fast"), "= 'fast'; expected True or False"),
    "a threshold of zero": (lambda: BiasCorrection(threshold=0), "threshold = 0; expected a finite number above 0"),
    "an endless threshold": (lambda: BiasCorrection(threshold=float("inf")), "expected a finite number above 0"),
    "an alpha above one": (lambda: SmoothQuant(matmul=1.5), "matmul = 1.5; expected a number from 0 to 1, or -1"),
    "an alpha of text": (lambda: SmoothQuant(convolution="0.5"), "convolution = '0.5'; expected a finite number"),
    "a device in lower case": (lambda: QuantizeOptions(target_device="cpu"), "target_device = 'cpu'; known: any, .*CPU_SPR"),
    "what the target forbids": (
        lambda: QuantizeOptions(
            target_device="qnn",
            advanced_parameters=Advanced(activations_quantization_params=FOUR),
        ),
        r"advanced_parameters\.activations_quantization_params\.num_bits = 4 needs uint4, which .* takes uint8, uint16",
    ),
    "levels that are none": (lambda: QuantizationParameters(level_low="0"), "level_low = '0'; expected an integer"),
}  # fmt: skip


@pytest.mark.parametrize("make, message", BAD.values(), ids=BAD)
def test_wrong_options_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_wrong_option_is_a_value_error_too():
    with pytest.raises(ValueError, match="expected an integer of at least 1"):
        QuantizeOptions(subset_size=0)
