"""The form of a target's table: what a runtime computes in integers, and how it wants its numbers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from jaxq.numerics.quantizer import IntType
from jaxq.ops.carriers import CARRYING, KEEPING


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How a runtime's integer kernel takes one operator.

    Attributes:
      activations: positions of the inputs that must be quantized; None for all that are made when the graph runs.
      weights: positions of the weights. The first must be a param, except where `activations` holds the same position.
      per_channel: a weight has one scale for each output channel, a table of embeddings for each row (`weight_axis`); else one.
      activation_axis: the axis of the inputs with one scale each, where the runtime has such a kernel; None for none.
      only: attribute -> the value, which is also the standard's default, that a node must have: the kernel is for these alone.
      centered: positions of the inputs that the kernel takes with zero in the middle only, as it takes its weights.
      bias: position of the bias, which the kernel wants as int32 with scale input_scale * weight_scale.
      output: the kernel is used only if the output is quantized too.
      body_only: worth quantizing only where something quantized follows (a Sigmoid inside of a network, not one that ends it).
      skip_only: of an addition, the summand that a kernel with weights makes last stays as it is: that kernel adds the others,
        which are quantized.
      stored: the runtime has no such kernel: it makes floats of the integers, and the file gets smaller all the same.
    """

    activations: tuple[int, ...] | None
    weights: tuple[int, ...] = ()
    per_channel: bool = True
    activation_axis: int | None = None
    centered: tuple[int, ...] = ()
    only: Mapping[str, str | int] = field(default_factory=dict)
    bias: int | None = None
    output: bool = True
    body_only: bool = False
    stored: bool = False
    skip_only: bool = False


@dataclass(frozen=True, kw_only=True)
class Limit:
    """What some versions of a runtime do to what is quantized to certain types, unless they are told not to.

    Attributes:
      activations, weights, operators: types by name, and kinds of nodes, that it is about; None for any.
      since, before: versions, as in (1, 32): from the first one on, below the second one.
      effect: which versions do what, in words.
      remedy: the option of the runtime with which they do not.
    """

    activations: frozenset[str]
    weights: frozenset[str] | None = None
    operators: frozenset[str] | None = None
    since: tuple[int, ...] = ()
    before: tuple[int, ...] | None = None
    effect: str
    remedy: str

    def meets(self, op: str, activations: Collection[str], weights: Collection[str]) -> bool:
        """Whether it is about a node of that kind, whose inputs and weights have these types."""
        return (
            not self.activations.isdisjoint(activations)
            and (self.weights is None or not self.weights.isdisjoint(weights))
            and (self.operators is None or op in self.operators)
        )


@dataclass(frozen=True, kw_only=True)
class Target:
    """A runtime: its integer operators, and how it wants its numbers.

    Types are ONNX's, by name (int8, uint16, float8_e4m3fn ...). Whether something is allowed is asked of the table; nothing else
    knows the name of a target.

    Attributes:
      name: as in `target=...`.
      title: the runtime, in words.
      evidence: how it is known that the runtime does what the table says: by which tests, or from which documents alone.
      rules: operator -> how its integer kernel takes it. `DepthwiseConv` is a Conv with one filter for each channel, where
        that differs from other convolutions.
      other: the rule for operators on floats that stand in no table; None leaves them in float.
      same_scale: operators that move or select values: input and output share one quantizer.
      fused: operators that the runtime merges into the integer kernel before them: no quantizer in between.
      fusing: the operators whose kernels take up a fused one.
      pointwise: float operators which an integer kernel may stand before and after; an integer kernel before one of them gets
        an output quantizer when something quantized follows.
      transformer_float: operators that stay in float in transformers, where their ranges are wide and their cost is small.
      patterns: groups of nodes that stay in float, by their names in `jaxq.graph.patterns`; `transformer_patterns`: the same, in
        transformers only.
      anywhere: operators without weights are quantized wherever they stand; otherwise only behind an integer kernel.
      outputs: whether the outputs of the model are quantized.
      activation: the integer grid of activations, if nothing else is asked for.
      weight: the integer grid of weights, if nothing else is asked for.
      activation_types, weight_types: what the kernels read, by name.
      activation_modes, weight_modes: "symmetric" (zero point 0, or the middle of an unsigned type) and "asymmetric".
      storage_types: of these, the ones that are read but turned into floats before anything is computed: smaller, not faster.
      float_weights: types of weights, beside `storage_types`, that make even a kernel with quantized activations one in floats.
      limits: what some versions of the runtime do not take as it is written.
      packages: what the runtime is called where Python packages come from; its version is asked there.
      bias_types: what biases may be kept in beside float.
      merges_weights: whether a kernel of MatMul and Gemm unpacks weights alone, where it can (`jaxq.onnx_io.dequantizers`);
        where it does not, they are turned into floats at every run.
      rounds_biases: whether the runtime makes int32 of a bias in float by itself, in units of the products, and clips it.
      centered: symmetric activations have zero in the middle even if none of them is negative: the zero point must be 0.
      signed_below_zero: integers of activations that go below zero are signed (zero point 0 where the range is symmetric), others
        unsigned; where a type is asked for, that counts.
      per_channel, asymmetric_per_channel: whether symmetric, and asymmetric, weights may have one scale for each channel.
      chained_width: weights of products on matrices, without a bias, whose result another product alone takes, have one scale
        where they have at most so many rows and columns: the runtime merges such a chain, and loses the scales of its channels.
      integer_products_symmetric: both factors of a product of two activations are symmetric.
      merges_at_zero: an activation function is merged into the kernel only if the quantizer behind it ends where the function
        clips: its zero point must be the lowest integer.
      domains: of the operators that the runtime has.
      integer_operators: whether the runtime has ONNX's operators on integers (QLinearConv, MatMulInteger) too.
      default_preset: what `preset=None` means: "mixed" where asymmetric activations cost the runtime nothing.
      overflow_fix: which weights are held to 7 bits by default: "disable", "first_layer_only" or "enable" (all of them).
      loops: whether the bodies of Loop and Scan are computed in integers.
      opset: the lowest opset in which per-channel QDQ can be written.
      opset_of: type -> the lowest opset with it in QuantizeLinear and DequantizeLinear.
    """

    name: str
    title: str
    evidence: str
    rules: Mapping[str, Rule]
    other: Rule | None = None
    same_scale: frozenset[str]
    fused: frozenset[str]
    fusing: frozenset[str]
    pointwise: frozenset[str]
    transformer_float: frozenset[str] = frozenset()
    patterns: tuple[str, ...] = ()
    transformer_patterns: tuple[str, ...] = ()
    anywhere: bool = False
    outputs: bool = False
    activation: IntType
    weight: IntType
    activation_types: frozenset[str]
    weight_types: frozenset[str]
    activation_modes: frozenset[str] = frozenset({"symmetric", "asymmetric"})
    weight_modes: frozenset[str] = frozenset({"symmetric"})
    storage_types: frozenset[str] = frozenset()
    float_weights: frozenset[str] = frozenset()
    limits: tuple[Limit, ...] = ()
    packages: tuple[str, ...] = ()
    bias_types: frozenset[str] = frozenset({"int32"})
    merges_weights: bool = False
    rounds_biases: bool = False
    centered: bool = False
    signed_below_zero: bool = False
    per_channel: bool = True
    asymmetric_per_channel: bool = False
    chained_width: int = 0
    integer_products_symmetric: bool = False
    merges_at_zero: bool = False
    domains: frozenset[str] = frozenset({""})
    integer_operators: bool = False
    loops: bool = False
    default_preset: str
    overflow_fix: str = "disable"
    opset: int = 13
    opset_of: Mapping[str, int] = field(default_factory=lambda: OPSET_OF)


# The opset that brought each type to QuantizeLinear and DequantizeLinear.
OPSET_OF: Mapping[str, int] = {
    "int8": 10,
    "uint8": 10,
    "int32": 10,
    "float8_e4m3fn": 19,
    "float8_e5m2": 19,
    "int16": 21,
    "uint16": 21,
    "int4": 21,
    "uint4": 21,
}

# What moves or selects values and never makes new ones, whatever the runtime.
MOVES = (CARRYING - KEEPING) | {
    "MaxPool", "Concat", "Resize", "Upsample", "Pad", "DepthToSpace", "SpaceToDepth"
}  # fmt: skip

# Not among them: what changes how far apart values lie (Exp, Log, Pow, Sqrt, Reciprocal), and what normalizes. Rounding to 256
# even steps before it costs small values everything (a spectrum before its logarithm): the kernel in front of it stays in float.
POINTWISE = frozenset(
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
        "Max",
        "Min",
        "Sum",
        "Mean",
        "Where",
        "Abs",
        "Neg",
        "Erf",
        "Celu",
        "Softsign",
        "ThresholdedRelu",
        "Sin",
        "Cos",
        "Atan",
        "Floor",
        "Ceil",
        "Round",
    ]
)
