"""What each runtime computes in integers, as data: one table a target, no conditions elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jaxq.quantizer import IntType


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How a runtime's integer kernel takes one operator.

    Attributes:
      activations: positions of the inputs that must be quantized.
      weight: position of the weight, or None. It must be a param, except where `activations` holds the same position.
      weight_axis: the axis of the weight with one scale each (output channels); for Gemm, without transB.
      bias: position of the bias, which the kernel wants as int32 with scale input_scale * weight_scale.
      output: the kernel is used only if the output is quantized too.
      body_only: worth quantizing only where something quantized follows (a Sigmoid inside of a network, not one that ends it).
    """

    activations: tuple[int, ...]
    weight: int | None = None
    weight_axis: int = 0
    bias: int | None = None
    output: bool = True
    body_only: bool = False


@dataclass(frozen=True, kw_only=True)
class Target:
    """A runtime: its integer operators, and how it wants its numbers.

    Attributes:
      name: as in `target=...`.
      rules: operator -> how its integer kernel takes it.
      same_scale: operators that move or select values: input and output share one quantizer.
      fused: operators that the runtime merges into the integer kernel before them: no quantizer in between.
      fusing: the operators whose kernels take up a fused one.
      pointwise: float operators which an integer kernel may stand before and after; an integer kernel before one of them gets
        an output quantizer when something quantized follows.
      transformer_float: operators that stay in float in transformers, where their ranges are wide and their cost is small.
      activation: the integer grid of activations.
      weight: the integer grid of weights, which are symmetric.
      default_preset: what `preset=None` means: "mixed" where asymmetric activations cost the runtime nothing.
      opset: the lowest opset in which per-channel QDQ can be written.
    """

    name: str
    rules: Mapping[str, Rule]
    same_scale: frozenset[str]
    fused: frozenset[str]
    fusing: frozenset[str]
    pointwise: frozenset[str]
    transformer_float: frozenset[str]
    activation: IntType
    weight: IntType
    default_preset: str
    opset: int


# ONNX Runtime's CPU kernels: QLinearConv, QGemm, MatMulIntegerToFloat and the com.microsoft QLinear* family, as its QDQ
# transformers select them (onnxruntime 1.31). On x86 the fast kernels are unsigned activations times signed weights; a
# symmetric signed range is written as uint8 with zero point 128, which is the same grid.
ONNXRUNTIME = Target(
    name="onnxruntime",
    rules={
        "Conv": Rule(activations=(0,), weight=1, weight_axis=0, bias=2),
        "ConvTranspose": Rule(
            activations=(0,), weight=1, weight_axis=1, output=False
        ),  # no integer kernel: smaller file
        "MatMul": Rule(activations=(0, 1), weight=1, weight_axis=-1, output=False),
        "Gemm": Rule(activations=(0, 1), weight=1, weight_axis=1, bias=2, output=False),
        "Add": Rule(activations=(0, 1)),
        "Mul": Rule(activations=(0, 1), body_only=True),
        "AveragePool": Rule(activations=(0,)),
        "GlobalAveragePool": Rule(activations=(0,)),
        "LeakyRelu": Rule(activations=(0,), body_only=True),
        "Sigmoid": Rule(activations=(0,), body_only=True),
    },
    same_scale=frozenset(
        [
            "MaxPool",
            "Reshape",
            "Transpose",
            "Flatten",
            "Squeeze",
            "Unsqueeze",
            "Slice",
            "Split",
            "Gather",
            "Concat",
            "Resize",
            "Upsample",
            "Pad",
            "Expand",
            "Tile",
            "DepthToSpace",
            "SpaceToDepth",
        ]
    ),
    fused=frozenset({"Relu", "Clip"}),
    fusing=frozenset({"Conv", "ConvTranspose", "Gemm", "Add", "MatMul"}),
    pointwise=frozenset(
        [
            "LeakyRelu",
            "Sigmoid",
            "HardSigmoid",
            "HardSwish",
            "Tanh",
            "Elu",
            "Selu",
            "Gelu",
            "Swish",
            "Mish",
            "Softplus",
            "PRelu",
            "Relu",
            "Clip",
            "Mul",
            "Add",
            "Div",
            "Sub",
        ]
    ),
    transformer_float=frozenset(["Add", "Mul", "Sigmoid", "LeakyRelu", "AveragePool", "GlobalAveragePool"]),
    activation=IntType(8, signed=False),
    weight=IntType(8, narrow=True),
    default_preset="mixed",
    opset=13,
)

TARGETS: Mapping[str, Target] = {ONNXRUNTIME.name: ONNXRUNTIME}
