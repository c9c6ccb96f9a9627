"""What every runtime takes that has floats to fall back on (QNN has not)."""

from __future__ import annotations

from jaxq.numerics.quantizer import IntType
from jaxq.placement.targets.table import MOVES, POINTWISE, Rule, Target

# Products with constant weights only, whose kernels all runtimes have; int8 with zero point 0, which all of them read; float
# biases, which no runtime refuses and ONNX Runtime rounds by itself; weights of 8 bits on the narrow grid.
PORTABLE = Target(
    name="any",
    title="Any runtime that reads QDQ ONNX and computes in float what is not quantized",
    evidence="What all other tables have in common; run in ONNX Runtime only.",
    rules={
        "Conv": Rule(activations=(0,), weights=(1,)),
        "ConvTranspose": Rule(activations=(0,), weights=(1,), output=False),
        "MatMul": Rule(activations=(0,), weights=(1,), output=False),
        "Gemm": Rule(activations=(0,), weights=(1,), output=False),
    },
    same_scale=MOVES,
    fused=frozenset({"Relu", "Clip"}),
    fusing=frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"}),
    pointwise=POINTWISE,
    activation=IntType(8),
    weight=IntType(8, narrow=True),
    activation_types=frozenset({"int8"}),
    weight_types=frozenset({"int8"}),
    activation_modes=frozenset({"symmetric"}),
    bias_types=frozenset(),
    centered=True,
    loops=True,
    default_preset="performance",
)
