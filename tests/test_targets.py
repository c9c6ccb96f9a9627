"""The tables of the targets are complete, consistent, and about operators that jaxq knows."""

import pytest

from jaxq.ops import table
from jaxq.options import Preset
from jaxq.quantizer import IntType
from jaxq.targets import ONNXRUNTIME, TARGETS

EVERY = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)


@EVERY
def test_a_target_is_found_by_its_name(target):
    assert TARGETS[target.name] is target


@EVERY
def test_every_operator_is_one_that_jaxq_runs(target):
    named = {
        *(target.rules.keys() - {"DepthwiseConv"}),  # a Conv
        *target.same_scale,
        *target.fused,
        *target.fusing,
        *target.pointwise,
        *target.transformer_float,
    }
    assert {name for name in named if ("", name) not in table()} == set()


@EVERY
def test_what_stays_in_float_in_transformers_would_be_quantized_elsewhere(target):
    assert target.transformer_float <= target.rules.keys()


@EVERY
def test_moving_values_is_no_arithmetic(target):
    tables = {"Gather"}  # of a constant: its weights are rounded, and nothing is moved
    assert not target.same_scale & ((target.rules.keys() - tables) | target.pointwise | target.fused)


@EVERY
def test_biases_are_those_of_operators_with_weights(target):
    for name, rule in target.rules.items():
        assert rule.bias is None or rule.weights, name
        assert rule.activations != () or rule.weights, name


@EVERY
def test_the_default_preset_is_one_of_the_presets(target):
    assert target.default_preset in list(Preset)


def test_onnx_runtime_takes_unsigned_activations_and_needs_an_axis_for_weights():
    assert ONNXRUNTIME.activation == IntType(8, signed=False)
    assert ONNXRUNTIME.opset == 13
