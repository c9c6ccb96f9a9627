"""ONNX Runtime on CPUs, with and without 8-bit dot products (VNNI, or ARM's)."""

from __future__ import annotations

from dataclasses import replace

from jaxq.quantizer import IntType
from jaxq.targets.table import MOVES, POINTWISE, Rule, Target

# QLinearConv, QGemm, MatMulIntegerToFloat and the com.microsoft QLinear* family, as the QDQ transformers select them. On x86 the
# fast kernels are unsigned activations times signed weights; a symmetric signed range is written as uint8 with zero point
# 128, which is the same grid.
ONNXRUNTIME = Target(
    name="onnxruntime",
    title="ONNX Runtime 1.31 on CPUs with 8-bit dot products (x86 with VNNI, ARM)",
    rules={
        "Conv": Rule(activations=(0,), weights=(1,), weight_axis=0, bias=2),
        "ConvTranspose": Rule(activations=(0,), weights=(1,), weight_axis=1, output=False, stored=True),
        "MatMul": Rule(activations=(0, 1), weights=(1,), weight_axis=-1, output=False),
        "Gemm": Rule(activations=(0, 1), weights=(1,), weight_axis=1, bias=2, output=False),
        "Add": Rule(activations=(0, 1), body_only=True),
        "Mul": Rule(activations=(0, 1), body_only=True),
        "AveragePool": Rule(activations=(0,)),
        "GlobalAveragePool": Rule(activations=(0,)),
        "LeakyRelu": Rule(activations=(0,), body_only=True),
        "Sigmoid": Rule(activations=(0,), body_only=True),
    },
    same_scale=MOVES,
    fused=frozenset({"Relu", "Clip"}),
    fusing=frozenset({"Conv", "ConvTranspose", "Gemm", "Add", "MatMul"}),
    pointwise=POINTWISE,
    transformer_float=frozenset({"Add", "Mul", "Sigmoid", "LeakyRelu", "AveragePool", "GlobalAveragePool"}),
    patterns=("recurrent cell",),
    activation=IntType(8, signed=False),
    weight=IntType(8, narrow=True),
    activation_types=frozenset({"uint8", "int8", "uint16", "int16", "float8_e4m3fn", "float8_e5m2"}),
    weight_types=frozenset({"int8", "uint8", "int4", "uint4", "int16", "uint16", "float8_e4m3fn", "float8_e5m2"}),
    weight_modes=frozenset({"symmetric", "asymmetric"}),
    storage_types=frozenset({"uint16", "int16", "float8_e4m3fn", "float8_e5m2"}),
    # merged into integer kernels from ORT_ENABLE_EXTENDED on, which do not have these types: INVALID_GRAPH
    unoptimized=frozenset({"float8_e4m3fn", "float8_e5m2"}),
    merges_at_zero=True,
    domains=frozenset({"", "com.microsoft"}),
    integer_operators=True,
    default_preset="mixed",
)

# Without 8-bit dot products the kernels add two products u8 * s8 in 16 bits, which saturates: 255 * 127 * 2 > 32767. Weights of
# 7 bits (at most 64) cannot: 255 * 64 * 2 = 32640.
ONNXRUNTIME_AVX2 = replace(
    ONNXRUNTIME,
    name="onnxruntime-avx2",
    title="ONNX Runtime 1.31 on x86 processors without VNNI (AVX2, AVX-512 without it)",
    overflow_fix="enable",
)
