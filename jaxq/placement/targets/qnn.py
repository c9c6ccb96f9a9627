"""Qualcomm's Hexagon processors, through QNN (QAIRT) or ONNX Runtime's QNN provider."""

from __future__ import annotations

from jaxq.numerics.quantizer import IntType
from jaxq.placement.targets.table import MOVES, POINTWISE, Rule, Target

# The processor has no float path that is worth its name: every operator is quantized, inputs, outputs and constants, and so are
# the inputs and outputs of the model.
QNN = Target(
    name="qnn",
    title="Qualcomm HTP: QNN (QAIRT 2.2x), ONNX Runtime's QNN provider",
    evidence="Never run on such a processor: made from Qualcomm's and ONNX Runtime's documentation of the QNN provider.",
    rules={
        "Conv": Rule(activations=(0,), weights=(1,), bias=2),
        "ConvTranspose": Rule(activations=(0,), weights=(1,)),
        "MatMul": Rule(activations=(0, 1), weights=(1,)),
        "Gemm": Rule(activations=(0, 1), weights=(1,), bias=2),
        "LayerNormalization": Rule(activations=(0,), weights=(1,), per_channel=False),
        "InstanceNormalization": Rule(activations=(0,), weights=(1,), per_channel=False),
        "BatchNormalization": Rule(activations=(0,), weights=(1,), per_channel=False),
        "PRelu": Rule(activations=(0,), weights=(1,), per_channel=False),
    },
    other=Rule(activations=None),
    same_scale=MOVES - {"Resize", "Upsample"},
    fused=frozenset({"Relu", "Clip"}),
    fusing=frozenset({"Conv", "ConvTranspose", "Gemm", "Add", "MatMul"}),
    pointwise=POINTWISE,
    anywhere=True,
    outputs=True,
    activation=IntType(8, signed=False),
    weight=IntType(8, narrow=True),
    activation_types=frozenset({"uint8", "uint16"}),
    weight_types=frozenset({"int8", "uint8", "int4"}),
    weight_modes=frozenset({"symmetric", "asymmetric"}),
    merges_at_zero=True,
    domains=frozenset({"", "com.microsoft"}),
    default_preset="mixed",
)
