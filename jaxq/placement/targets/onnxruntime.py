"""ONNX Runtime on CPUs, with and without 8-bit dot products (VNNI, or ARM's)."""

from __future__ import annotations

from dataclasses import replace

from jaxq.numerics.quantizer import IntType
from jaxq.placement.targets.table import MOVES, POINTWISE, Limit, Rule, Target

# Measured with 1.23.2, 1.31.1 and 1.32.0: the old ones merge float8 into kernels in integers, which do not have it
# (INVALID_GRAPH), from ORT_ENABLE_EXTENDED on; and 1.23 moves it across a MaxPool as uint8, from ORT_ENABLE_BASIC on.
FLOAT8 = Limit(
    activations=frozenset({"float8_e4m3fn", "float8_e5m2"}),
    before=(1, 32),
    effect="ONNX Runtime before 1.32 refuses float8, or computes something else",
    remedy="load the file with graph optimizations off (GraphOptimizationLevel.ORT_DISABLE_ALL)",
)
FLOAT8_WEIGHTS = replace(FLOAT8, activations=frozenset({"uint8", "int8"}), weights=FLOAT8.activations)
# As MatMulNBits, from ORT_ENABLE_EXTENDED on: what is computed is then some 50 dB above its error, and not 90.
WIDE_INPUTS = Limit(
    activations=frozenset({"uint16", "int16"}),
    weights=frozenset({"uint8", "int8", "uint4", "int4"}),
    operators=frozenset({"MatMul", "Gemm"}),
    since=(1, 32),
    effect="ONNX Runtime from 1.32 on rounds the inputs of such products to 8 bits",
    remedy='load the file with add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")',
)

# QLinearConv, QGemm, MatMulIntegerToFloat and the com.microsoft QLinear* family, as the QDQ transformers select them. On x86 the
# fast kernels are unsigned activations times signed weights; a symmetric signed range is written as uint8 with zero point
# 128, which is the same grid.
ONNXRUNTIME = Target(
    name="onnxruntime",
    title="ONNX Runtime on CPUs with 8-bit dot products (x86 with VNNI, ARM)",
    evidence="Run by tests/placement/test_runtime_onnxruntime.py in the version that is installed, on whatever CPU there is.",
    rules={
        "Conv": Rule(activations=(0,), weights=(1,), bias=2),
        "ConvTranspose": Rule(activations=(0,), weights=(1,), output=False, stored=True),
        "MatMul": Rule(activations=(0, 1), weights=(1,), output=False),
        "Gemm": Rule(activations=(0, 1), weights=(1,), bias=2, output=False),
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
    limits=(FLOAT8, FLOAT8_WEIGHTS, WIDE_INPUTS),
    packages=("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino"),
    merges_weights=True,
    rounds_biases=True,
    merges_at_zero=True,
    domains=frozenset({"", "com.microsoft"}),
    integer_operators=True,
    loops=True,
    default_preset="mixed",
)

# Without 8-bit dot products the kernels add two products u8 * s8 in 16 bits, which saturates: 255 * 127 * 2 > 32767. Weights of
# 7 bits (at most 64) cannot: 255 * 64 * 2 = 32640.
ONNXRUNTIME_AVX2 = replace(
    ONNXRUNTIME,
    name="onnxruntime-avx2",
    title="ONNX Runtime on x86 processors without VNNI (AVX2, AVX-512 without it)",
    overflow_fix="enable",
)
