"""The tables of the targets are complete, consistent, and about operators that jaxq knows."""

import importlib.util
from pathlib import Path

import pytest

from jaxq.graph.patterns import DETECTORS, PATTERNS
from jaxq.numerics.quantizer import IntType
from jaxq.ops import table
from jaxq.options import Preset
from jaxq.placement.schemes import OverflowFix, type_name
from jaxq.placement.targets import ASCEND, ONNXRUNTIME, PORTABLE, QNN, TARGETS, named_target

TOOL = Path(__file__).resolve().parents[2] / "tools" / "target_tables.py"
EVERY = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)


@EVERY
def test_a_target_is_found_by_its_name(target):
    assert TARGETS[target.name] is target


@EVERY
def test_a_file_names_the_target_that_it_was_made_for(target):
    assert named_target({"jaxq.target": target.name}) == target.name


@pytest.mark.parametrize("metadata", [{}, {"jaxq.target": "of a later version"}])
def test_a_file_that_names_no_target_is_for_onnx_runtime(metadata):
    assert named_target(metadata) == "onnxruntime"


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


def test_the_page_about_targets_has_the_tables_of_now():
    specification = importlib.util.spec_from_file_location("target_tables", TOOL)
    tool = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(tool)
    page = tool.PAGE.read_text(encoding="utf-8")
    assert tool.put_into(page) == page, "run `python tools/target_tables.py --write`"


@EVERY
def test_the_defaults_are_among_what_is_allowed(target):
    assert type_name(target.activation) in target.activation_types
    assert type_name(target.weight) in target.weight_types
    assert {"performance": "symmetric", "mixed": "asymmetric"}[target.default_preset] in target.activation_modes
    assert target.overflow_fix in list(OverflowFix)
    assert target.storage_types <= target.activation_types | target.weight_types
    assert {*target.patterns, *target.transformer_patterns} <= {*PATTERNS, *DETECTORS}


def test_what_any_runtime_takes_is_taken_by_all():
    for target in TARGETS.values():
        if target is ASCEND:
            continue  # asks for nothing more than the inputs of its layers: no outputs
        assert PORTABLE.rules.keys() <= target.rules.keys()
        assert PORTABLE.weight_types <= target.weight_types
        assert target is QNN or PORTABLE.activation_types <= target.activation_types
