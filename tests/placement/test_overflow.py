"""Weights are held to 7 bits where the fix says so, and nowhere else."""

import pytest
from models import residual_network
from placement.test_place import plan_of

from jaxq.numerics.quantizer import IntType
from jaxq.placement.overflow import SATURATION_FIX
from jaxq.placement.schemes import OverflowFix, Override, QuantizationParameters
from jaxq.placement.targets import ONNXRUNTIME_AVX2


def held(**options):
    """The names of the weights of 7 bits, for the residual network."""
    plan = plan_of(residual_network(), **options)
    return [weight.name for weight in plan.weights if weight.scheme.grid == IntType(7)]


ALL = ["stem.weight", "depthwise.weight", "pointwise.weight", "scores.weight"]


@pytest.mark.parametrize(
    "fix, names", [("no", []), ("first_layer", ["stem.weight"]), ("all", ALL)], ids=["no", "first_layer", "all"]
)
def test_the_fix_says_which_weights(fix, names):
    assert held(overflow_fix=SATURATION_FIX[fix]) == names


def test_a_target_has_its_own_default():
    assert held() == []
    assert held(target=ONNXRUNTIME_AVX2) == ALL
    assert held(target=ONNXRUNTIME_AVX2, overflow_fix=OverflowFix.DISABLE) == []


def test_only_bytes_times_bytes_saturate():
    wide = QuantizationParameters(num_bits=16)
    assert held(overflow_fix="enable", activations=wide) == []
    narrow = Override(names="Conv_stem", weights=QuantizationParameters(num_bits=4))
    assert held(overflow_fix="enable", overrides=[narrow]) == ALL[1:]


def test_levels_that_are_those_of_a_byte_saturate_too():
    levels = QuantizationParameters(level_low=-127, level_high=127)
    assert held(overflow_fix="enable", weights=levels) == ALL
    few = QuantizationParameters(level_low=-50, level_high=50)
    assert held(overflow_fix="enable", weights=few) == []


def test_two_products_of_seven_bits_fit_sixteen():
    grid = IntType(7)
    assert 2 * 255 * max(grid.qmax, -grid.qmin) <= 2**15 - 1
