"""OpenVINO on CPUs and GPUs: the operators that NNCF and POT quantize for it."""

from __future__ import annotations

from jaxq.quantizer import IntType
from jaxq.targets.table import MOVES, POINTWISE, Rule, Target

# Quantizers stand at inputs, as FakeQuantize does: the runtime's low-precision passes move them to the kernel before. Biases stay
# float. Comparisons, which NNCF's table has too, are left out: rounding both sides of one changes its result and saves nothing.
OPENVINO = Target(
    name="openvino",
    title="OpenVINO 2024 and newer, CPU and GPU",
    rules={
        "Conv": Rule(activations=(0,), weights=(1,), weight_axis=0, output=False),
        "DepthwiseConv": Rule(activations=(0,), activation_axis=1, weights=(1,), weight_axis=0, output=False),
        "ConvTranspose": Rule(activations=(0,), weights=(1,), weight_axis=1, output=False),
        "DeformConv": Rule(activations=(0,), weights=(1,), weight_axis=0, output=False),
        "MatMul": Rule(activations=(0, 1), centered=(1,), weights=(1,), weight_axis=-1, output=False),
        "Gemm": Rule(activations=(0, 1), centered=(1,), weights=(1,), weight_axis=1, output=False),
        "Gather": Rule(activations=(), weights=(0,), weight_axis=0, output=False),  # a table of embeddings
        "LSTM": Rule(activations=(0, 5), weights=(1, 2), weight_axis=1, output=False),
        "GRU": Rule(activations=(0, 5), weights=(1, 2), weight_axis=1, output=False),
        **{name: Rule(activations=(0, 1), output=False) for name in ("Add", "Sub", "Mul", "Div")},
        **{name: Rule(activations=None, output=False) for name in ("Sum", "Max", "Min")},
        **{
            name: Rule(activations=(0,), output=False)
            for name in (
                "AveragePool",
                "GlobalAveragePool",
                "BatchNormalization",
                "MeanVarianceNormalization",
                "LpNormalization",
                "HardSigmoid",
                "Pow",
                "Reciprocal",
                "ReduceMean",
                "Resize",
                "Upsample",
            )
        },
    },
    same_scale=MOVES - {"Resize", "Upsample"} | {"GlobalMaxPool", "ReduceMax", "GatherND", "GatherElements"},
    fused=frozenset({"Relu", "Clip", "LeakyRelu", "PRelu", "Sigmoid", "HardSigmoid", "Elu", "Tanh"}),
    fusing=frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Add"}),
    pointwise=POINTWISE,
    transformer_float=frozenset(
        [
            "Add",
            "Sum",
            "Sub",
            "Mul",
            "Div",
            "Max",
            "Pow",
            "Reciprocal",
            "AveragePool",
            "GlobalAveragePool",
            "ReduceMean",
            "BatchNormalization",
            "MeanVarianceNormalization",
        ]
    ),
    patterns=(
        "squeeze and excitation",
        "swish",
        "hard swish",
        "GELU",
        "softmax",
        "layer normalization",
        "L2 normalization",
        "input preprocessing",
    ),
    transformer_patterns=("attention output", "rotary embedding"),
    anywhere=True,
    activation=IntType(8, signed=False),
    signed_below_zero=True,
    weight=IntType(8, narrow=True),
    activation_types=frozenset({"uint8", "int8", "uint16", "int16", "float8_e4m3fn", "float8_e5m2"}),
    weight_types=frozenset({"int8", "uint8", "int4", "uint4", "int16", "float8_e4m3fn", "float8_e5m2"}),
    storage_types=frozenset({"uint16", "int16", "float8_e4m3fn", "float8_e5m2"}),
    weight_modes=frozenset({"symmetric", "asymmetric"}),
    asymmetric_per_channel=True,
    integer_products_symmetric=True,
    default_preset="performance",
    overflow_fix="first_layer_only",
)
