"""NVIDIA TensorRT, with explicit quantization."""

from __future__ import annotations

from jaxq.numerics.quantizer import IntType
from jaxq.placement.targets.table import MOVES, POINTWISE, Rule, Target

# Symmetric only, zero points are 0; no quantized biases. Quantizers stand at inputs: TensorRT moves them up to the kernel before
# by itself. A convolution adds the skip connection in its own kernel if that one is int8 and its own result is not rounded
# in between.
TENSORRT = Target(
    name="tensorrt",
    title="TensorRT 10, explicit quantization",
    evidence="Never run in TensorRT: made from NVIDIA's documentation of explicit quantization.",
    rules={
        "Conv": Rule(activations=(0,), weights=(1,), output=False),
        "ConvTranspose": Rule(activations=(0,), weights=(1,), output=False),
        "MatMul": Rule(activations=(0, 1), weights=(1,), output=False),
        "Gemm": Rule(activations=(0, 1), weights=(1,), output=False),
        "Add": Rule(activations=(0, 1), output=False, skip_only=True, body_only=True),
        "AveragePool": Rule(activations=(0,), output=False),
        "GlobalAveragePool": Rule(activations=(0,), output=False),
    },
    same_scale=MOVES,
    fused=frozenset({"Relu", "Clip", "LeakyRelu", "Sigmoid"}),
    fusing=frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Add"}),
    pointwise=POINTWISE,
    transformer_float=frozenset({"Add", "AveragePool", "GlobalAveragePool"}),
    patterns=("recurrent cell",),
    activation=IntType(8),
    weight=IntType(8, narrow=True),
    activation_types=frozenset({"int8", "float8_e4m3fn"}),
    weight_types=frozenset({"int8", "int4", "float8_e4m3fn"}),
    activation_modes=frozenset({"symmetric"}),
    bias_types=frozenset(),
    centered=True,
    default_preset="performance",
)
