"""What users ask for becomes a scheme, or an error that names the path and what the target takes."""

from dataclasses import replace

import pytest
from models import residual_network

from jaxq.errors import ConfigError
from jaxq.numerics.quantizer import E4M3, IntType, PerAxis, PerTensor, Scheme
from jaxq.onnx_io.load import load
from jaxq.placement.schemes import (
    FP8QuantizationParameters,
    Override,
    QuantizationParameters,
    Wishes,
    common_scheme,
    scheme_for,
    type_name,
)
from jaxq.placement.targets import ASCEND, ONNXRUNTIME, OPENVINO, QNN, TENSORRT

GRAPH = load(residual_network()).graph
P = QuantizationParameters


@pytest.mark.parametrize(
    "target, role, wanted, symmetric, scheme",
    [
        (ONNXRUNTIME, "activations", P(), False, Scheme(IntType(8, signed=False), False)),
        (ONNXRUNTIME, "activations", P(num_bits=16), True, Scheme(IntType(16, signed=False), True)),
        (ONNXRUNTIME, "weights", P(), True, Scheme(IntType(8, narrow=True))),
        (ONNXRUNTIME, "weights", P(num_bits=4), True, Scheme(IntType(4, narrow=True))),
        (ONNXRUNTIME, "weights", P(num_bits=5, narrow_range=False), True, Scheme(IntType(5))),
        (OPENVINO, "weights", P(mode="asymmetric"), True, Scheme(IntType(8, signed=False), False)),
        (TENSORRT, "activations", P(), False, Scheme(IntType(8), True, centered=True)),
        (ASCEND, "activations", P(), False, Scheme(IntType(8), False)),
        (ONNXRUNTIME, "activations", P(signedness_to_force=True), True, Scheme(IntType(8), True, centered=True)),
        (OPENVINO, "activations", P(), False, Scheme(IntType(8, signed=False), False, signed_below_zero=True)),
        (OPENVINO, "activations", P(signedness_to_force=False), True, Scheme(IntType(8, signed=False))),
        (TENSORRT, "activations", FP8QuantizationParameters(), True, Scheme(E4M3, centered=True)),
    ],
    ids=lambda each: getattr(each, "name", str(each)),
)
def test_wishes_become_schemes(target, role, wanted, symmetric, scheme):
    assert scheme_for(target, role, wanted, symmetric=symmetric) == scheme


@pytest.mark.parametrize(
    "target, activations, weights, message",
    [
        (TENSORRT, P(mode="asymmetric"), None, "activations.mode = 'asymmetric'; target 'tensorrt' takes symmetric only"),
        (TENSORRT, P(num_bits=16), None, "activations.num_bits = 16 needs int16, which target 'tensorrt' does not take; "
                                         "it takes int8, float8_e4m3fn"),
        (QNN, None, P(num_bits=16), "weights.num_bits = 16 needs int16"),
        (ASCEND, P(signedness_to_force=False), None, "activations.signedness_to_force = False needs uint8"),
        (ONNXRUNTIME, P(per_channel=True), None, "activations.per_channel = True; target 'onnxruntime' has one scale"),
        (ONNXRUNTIME, None, P(per_channel=True, mode="asymmetric"), "weights.per_channel = True"),
        (TENSORRT, FP8QuantizationParameters(destination_type="f8e5m2"), None, "activations.destination_type = 'f8e5m2'"),
    ],
)  # fmt: skip
def test_what_the_target_does_not_take_is_an_error_with_its_path(target, activations, weights, message):
    with pytest.raises(ConfigError) as raised:
        Wishes.of(GRAPH, target, True, activations, weights, ())
    assert str(raised.value).startswith(message)
    override = Override(types="Conv", activations=activations, weights=weights)
    with pytest.raises(ConfigError) as raised:
        Wishes.of(GRAPH, target, True, None, None, [override])
    assert str(raised.value).startswith(f"overrides[0].{message}")


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: P(num_bits=1), "num_bits = 1; expected an integer from 2 to 16"),
        (lambda: P(num_bits=True), "num_bits = True"),
        (lambda: P(mode="symetric"), "did you mean 'symmetric'?"),
        (lambda: P(per_channel="yes"), "per_channel = 'yes'; expected True, False or None"),
        (lambda: FP8QuantizationParameters(per_channel="no"), "per_channel = 'no'; expected True or False"),
        (lambda: FP8QuantizationParameters(destination_type="f8e4m4"), "did you mean 'f8e4m3'?"),
        (lambda: Override(weights=P()), "selects nothing"),
        (lambda: Override(names="a"), "changes nothing"),
        (lambda: Override(names=[1], weights=P()), "names of an override = [1]; expected a string or a list of strings"),
        (lambda: Override(names="a", weights={"num_bits": 4}),
         "weights = {'num_bits': 4}; expected a QuantizationParameters"),
        (lambda: Override(patterns="(", weights=P()), "is not a regular expression"),
        (lambda: Override(names="Conv_stm", weights=P()).select(GRAPH),
         "names: 'Conv_stm' matches no node; did you mean 'Conv_stem'?"),
    ],
)  # fmt: skip
def test_nonsense_is_refused_where_it_is_said(make, message):
    with pytest.raises(ConfigError) as raised:
        make()
    assert message in str(raised.value)


def test_later_overrides_win_and_keep_what_they_do_not_set():
    overrides = [
        Override(types="Conv", weights=P(num_bits=4)),
        Override(names="Conv_stem", weights=P(per_channel=False)),
    ]
    wishes = Wishes.of(GRAPH, ONNXRUNTIME, True, None, None, overrides)
    assert wishes.weight("Conv_stem", 0) == Scheme(IntType(4, narrow=True))
    assert wishes.weight("Conv_depthwise", 0) == Scheme(IntType(4, narrow=True), granularity=PerAxis(0))
    assert wishes.weight("Gemm_scores", 1).grid.bits == 8


def test_a_common_scheme_is_the_widest_and_symmetric_if_one_must_be():
    narrow = Scheme(IntType(8, signed=False), symmetric=False, granularity=PerAxis(1))
    wide = Scheme(IntType(16, signed=False), symmetric=True)
    assert common_scheme([narrow, wide]) == Scheme(IntType(16, signed=False), True, PerTensor())
    assert common_scheme([narrow, narrow]).granularity == PerAxis(1)
    either = replace(narrow, signed_below_zero=True)
    assert common_scheme([either, either]).signed_below_zero
    assert not common_scheme([either, narrow]).signed_below_zero, "one reader asked for unsigned integers"
    assert common_scheme([narrow, narrow], channels=False).granularity == PerTensor()


def test_grids_between_the_types_are_kept_in_the_wider_one():
    assert [type_name(IntType(bits)) for bits in (3, 4, 5, 7, 8, 9, 16)] == ["int4"] * 2 + ["int8"] * 3 + ["int16"] * 2
    assert type_name(E4M3) == "float8_e4m3fn"
