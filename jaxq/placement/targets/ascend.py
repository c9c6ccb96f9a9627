"""Huawei's Ascend processors: the layers that AMCT quantizes."""

from __future__ import annotations

from jaxq.numerics.quantizer import IntType
from jaxq.placement.targets.table import POINTWISE, Rule, Target

# Each quantizable layer quantizes its own input, and nothing else: quantizers are not moved, outputs stay float. Products of two
# activations are left out (some chips only), as is global pooling.
ASCEND = Target(
    name="ascend",
    title="Ascend 310 and 910, CANN 7 to 9",
    evidence="Never run on such a processor: made from Huawei's documentation of AMCT, its quantizer.",
    rules={
        "Conv": Rule(activations=(0,), weights=(1,), bias=2, output=False),
        "ConvTranspose": Rule(activations=(0,), weights=(1,), output=False),
        "MatMul": Rule(activations=(0,), weights=(1,), output=False),
        "Gemm": Rule(activations=(0,), weights=(1,), bias=2, output=False),
        "AveragePool": Rule(activations=(0,), output=False),
        "LSTM": Rule(activations=(0, 5), weights=(1, 2), output=False),
        "GRU": Rule(activations=(0, 5), weights=(1, 2), output=False),
    },
    same_scale=frozenset(),
    fused=frozenset({"Relu", "Clip"}),
    fusing=frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"}),
    pointwise=POINTWISE,
    anywhere=True,
    activation=IntType(8),
    weight=IntType(8, narrow=True),
    activation_types=frozenset({"int8", "int16"}),
    weight_types=frozenset({"int8", "int4"}),
    default_preset="mixed",
)
