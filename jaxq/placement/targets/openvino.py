"""OpenVINO on CPUs and GPUs: the operators that NNCF and POT quantize for it."""

from __future__ import annotations

from jaxq.numerics.quantizer import IntType
from jaxq.placement.targets.table import MOVES, POINTWISE, Limit, Rule, Target

SHIFTED_WEIGHTS = Limit(
    activations=frozenset({"uint8", "int8"}),
    weights=frozenset({"uint8"}),
    operators=frozenset({"ConvTranspose"}),
    effect="OpenVINO computes something else where the weights of a transposed convolution have a zero point",
    remedy="quantize the weights symmetrically",
)

# Quantizers stand at inputs, as FakeQuantize does: the runtime's low-precision passes move them to the kernel before. Biases stay
# float. Of NNCF's table are left out: comparisons, whose result rounding changes; what the CPU plugin of 2026.4 computes in float
# with quantizers around it (Div, Max, Min, Pow, Reciprocal, HardSigmoid, MeanVarianceNormalization, a BatchNormalization that
# cannot be folded, SpaceToDepth, Tile, GatherElements, GatherND, resizing that interpolates, transposed convolutions in groups);
# and LSTM and GRU, of which it refuses the file or computes something else.
OPENVINO = Target(
    name="openvino",
    title="OpenVINO on CPUs and GPUs",
    evidence="Run by tests/placement/test_runtime_openvino.py in the version that is installed, on the CPU; never run on a GPU.",
    rules={
        "Conv": Rule(activations=(0,), weights=(1,), output=False),
        "DepthwiseConv": Rule(activations=(0,), activation_axis=1, weights=(1,), output=False),
        "ConvTranspose": Rule(activations=(0,), weights=(1,), output=False, only={"group": 1}),
        "MatMul": Rule(activations=(0, 1), centered=(1,), weights=(1,), output=False),
        "Gemm": Rule(activations=(0, 1), centered=(1,), weights=(1,), output=False),
        "Gather": Rule(activations=(), weights=(0,), output=False, stored=True),  # embeddings
        **{name: Rule(activations=(0, 1), output=False) for name in ("Add", "Sub", "Mul")},
        "Sum": Rule(activations=None, output=False),
        **{
            name: Rule(activations=(0,), output=False)
            for name in ("AveragePool", "GlobalAveragePool", "LpNormalization", "ReduceMean")
        },
        **{name: Rule(activations=(0,), output=False, only={"mode": "nearest"}) for name in ("Resize", "Upsample")},
    },
    same_scale=MOVES - {"Resize", "Upsample", "SpaceToDepth", "Tile"} | {"GlobalMaxPool", "ReduceMax"},
    fused=frozenset({"Relu", "Clip", "LeakyRelu", "PRelu", "Sigmoid", "Elu", "Tanh"}),
    fusing=frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Add"}),
    pointwise=POINTWISE,
    transformer_float=frozenset(
        [
            "Add",
            "Sum",
            "Sub",
            "Mul",
            "AveragePool",
            "GlobalAveragePool",
            "ReduceMean",
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
        "recurrent cell",
    ),
    transformer_patterns=("attention output", "rotary embedding"),
    anywhere=True,
    activation=IntType(8, signed=False),
    signed_below_zero=True,
    weight=IntType(8, narrow=True),
    activation_types=frozenset({"uint8", "int8", "uint16", "int16", "float8_e4m3fn", "float8_e5m2"}),
    weight_types=frozenset({"int8", "uint8", "int4", "uint4", "int16", "float8_e4m3fn", "float8_e5m2"}),
    storage_types=frozenset({"uint16", "int16", "float8_e4m3fn", "float8_e5m2"}),
    float_weights=frozenset({"uint8", "int4", "uint4"}),
    limits=(SHIFTED_WEIGHTS,),
    packages=("openvino",),
    weight_modes=frozenset({"symmetric", "asymmetric"}),
    asymmetric_per_channel=True,
    chained_width=256,  # measured with 2026.4.1: wider ones are not merged
    integer_products_symmetric=True,
    default_preset="performance",
    overflow_fix="first_layer_only",
)
