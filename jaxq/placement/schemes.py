"""How tensors are to be quantized, as users say it, and what of it a target takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, Literal

from jaxq.checks import check_booleans, check_kind, member
from jaxq.errors import ConfigError, Option, inside
from jaxq.graph.clamps import clip_bounds
from jaxq.graph.ir import Graph, Node
from jaxq.graph.linear import Linear, is_linear
from jaxq.graph.select import as_tuple, by_name, check_pattern
from jaxq.numerics.quantizer import E4M3, E5M2, FloatType, Grid, IntType, PerAxis, PerTensor, Scheme
from jaxq.placement.targets import Rule, Target

GATES = {"LSTM": 1, "GRU": 1}  # the axis of all gates in W and R [directions, gates * hidden, inputs]
STORAGE_BITS = (4, 8, 16)  # of ONNX's integer types

Role = Literal["activations", "weights"]


class QuantizationScheme(StrEnum):
    """Where zero is: in the middle of the range, or wherever the values want it."""

    SYMMETRIC = "symmetric"
    ASYMMETRIC = "asymmetric"


class OverflowFix(StrEnum):
    """Which weights are held to 7 bits, against saturation where the processor adds two products in 16 bits."""

    ENABLE = "enable"
    FIRST_LAYER = "first_layer_only"
    DISABLE = "disable"


class FP8Type(StrEnum):
    """The floating-point formats of 8 bits."""

    E4M3 = "f8e4m3"
    E5M2 = "f8e5m2"


class QuantizerPropagationRule(StrEnum):
    """What becomes of the quantizers of one tensor whose readers want different ones."""

    DO_NOT_MERGE_BRANCHES = "do_not_merge_branches"  # each reader has its own
    MERGE_IF_ALL_BRANCHES_SAME = "merge_if_all_branches_same"  # readers that want the same share it
    MERGE_WITH_POTENTIAL_REQUANTIZATION = "merge_with_potential_requantization"  # as above, behind a common one
    MERGE_ALL_IN_ONE = "merge_all_in_one"  # one that suits all


@dataclass(frozen=True, kw_only=True)
class QuantizationParameters:
    """How a class of tensors is quantized; None leaves it to the preset and the target.

    Attributes:
      num_bits: width of the integers, 2 to 16; those between ONNX's types are kept in the next wider one.
      mode: "symmetric" or "asymmetric".
      signedness_to_force: whether the integers are signed. A symmetric range of signed integers has zero in the middle, even if
        nothing is negative.
      per_channel: one scale for each channel, or one for the tensor.
      narrow_range: whether the lowest level is left out (-128 of int8).
      level_low, level_high: the lowest and highest integer, as POT takes them: from -2**(bits-1) to 2**(bits-1) - 1, or from 0 to
        2**bits - 1. What counts is how many there are: where the target's integers have the other sign, they are shifted.

    Raises:
      ConfigError: a value is wrong, or the levels are none for that many bits.
    """

    num_bits: int | None = None
    mode: QuantizationScheme | str | None = None
    signedness_to_force: bool | None = None
    per_channel: bool | None = None
    narrow_range: bool | None = None
    level_low: int | None = None
    level_high: int | None = None

    def __post_init__(self) -> None:
        bits = self.num_bits
        if bits is not None and (isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 16):
            raise ConfigError(Option(("num_bits",), bits), "; expected an integer from 2 to 16")
        if self.mode is not None:
            object.__setattr__(self, "mode", member(QuantizationScheme, "mode", self.mode))
        for key in ("signedness_to_force", "per_channel", "narrow_range"):
            value = getattr(self, key)
            if value is not None and not isinstance(value, bool):
                raise ConfigError(Option((key,), value), "; expected True, False or None")
        for key in ("level_low", "level_high"):
            value = getattr(self, key)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise ConfigError(Option((key,), value), "; expected an integer")
        if self.level_low is not None or self.level_high is not None:
            self.levels(bits or 8, signed=True)

    def levels(self, bits: int, signed: bool) -> tuple[int, int] | None:
        """The lowest and highest integer on a grid of that kind; None: all of its own.

        Raises:
          ConfigError: there are none, too many, or 0 is not among them.
        """
        if self.level_low is None and self.level_high is None:
            return None
        half = 1 << (bits - 1)
        given_signed = self.level_low < 0 if self.level_low is not None else signed
        low = self.level_low if self.level_low is not None else -half if given_signed else 0
        high = self.level_high if self.level_high is not None else half - 1 if given_signed else 2 * half - 1
        if low >= high:
            raise ConfigError(
                Option(("level_low",), low),
                " is not below ",
                Option(("level_high",), high),
                "; 8 bits have -128 to 127, or 0 to 255",
            )
        least, most = (-half, half - 1) if given_signed else (0, 2 * half - 1)
        for key, value in (("level_low", low), ("level_high", high)):
            if not least <= value <= most:
                raise ConfigError(Option((key,), value), f" does not fit {bits} bits, which go from {least} to {most}")
        if high <= 0 or (self.mode == "symmetric" and low not in (0, -high, -high - 1)):
            raise ConfigError(
                Option(("level_low",), low),
                " and ",
                Option(("level_high",), high),
                " have no zero in their middle, as symmetric integers do; expected ",
                Option(("level_low",)),
                f" {-high} or {-high - 1}, or 0 for what is never negative",
            )
        shift = half * (given_signed - signed)
        return low + shift, high + shift


@dataclass(frozen=True, kw_only=True)
class FP8QuantizationParameters:
    """A class of tensors is rounded to floating-point numbers of 8 bits.

    Attributes:
      destination_type: "f8e4m3" (448 at most, 3 bits of mantissa) or "f8e5m2" (57344 at most, 2 bits).
      per_channel: one scale for each channel, or one for the tensor; None leaves it to the target.

    Raises:
      ConfigError: a value is wrong; the message gives the nearest name.
    """

    destination_type: FP8Type | str = FP8Type.E4M3
    per_channel: bool | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "destination_type", member(FP8Type, "destination_type", self.destination_type))
        if self.per_channel is not None:
            check_booleans(self, "per_channel")


Parameters = QuantizationParameters | FP8QuantizationParameters


def updated(common: Parameters, own: Parameters | None) -> Parameters:
    """What is asked for in general, with what a node's own wishes set set."""
    if own is None:
        return common
    if isinstance(own, FP8QuantizationParameters) or isinstance(common, FP8QuantizationParameters):
        return own
    given = {each.name: getattr(own, each.name) for each in fields(own)}
    return replace(common, **{key: value for key, value in given.items() if value is not None})


@dataclass(frozen=True, kw_only=True)
class Override:
    """How the nodes that an entry selects are quantized, where that differs from the others.

    Attributes:
      names, patterns, types: which nodes, as in `IgnoredScope`.
      weights, activations: how their weights, and their inputs that are made when the model runs.

    Raises:
      ConfigError: it selects nothing, changes nothing, or holds what is no name, pattern or parameters.
    """

    names: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    weights: Parameters | None = None
    activations: Parameters | None = None

    def __post_init__(self) -> None:
        for key in ("names", "patterns", "types"):
            object.__setattr__(self, key, as_tuple(self, key, f"{key} of an override"))
        kinds = (QuantizationParameters, FP8QuantizationParameters, type(None))
        for key in ("weights", "activations"):
            check_kind(key, getattr(self, key), kinds)
        for pattern in self.patterns:
            check_pattern(pattern, "override pattern")
        if not (self.names or self.patterns or self.types):
            raise ConfigError("an override selects nothing; give it names, patterns or types")
        if self.weights is None and self.activations is None:
            raise ConfigError("an override changes nothing; give it weights or activations")

    def select(self, graph: Graph) -> frozenset[str]:
        """The names of the nodes that it is about.

        Raises:
          ConfigError: an entry matches no node.
        """
        nodes = [node for _, node in graph.walk()]
        hits: set[str] = set()
        for key, what, found in by_name(nodes, self.names, self.patterns, self.types):
            if found is None:
                raise ConfigError(Option((key,)), f": {what}")
            hits |= found
        return frozenset(hits)


def type_name(grid: Grid) -> str:
    """The type that the numbers are kept in: int8 for 5 to 8 bits."""
    if isinstance(grid, FloatType):
        return grid.name
    bits = next(each for each in STORAGE_BITS if grid.bits <= each)
    return f"{'' if grid.signed else 'u'}int{bits}"


def scheme_for(target: Target, role: Role, wanted: Parameters, *, symmetric: bool = True) -> Scheme:
    """The scheme of activations or weights of a target, per tensor; the axis is a matter of the operator.

    Args:
      target: whose table gives the defaults and says what is allowed.
      role: "activations" or "weights".
      wanted: what was asked for.
      symmetric: what a mode of None means.

    Raises:
      ConfigError: the target does not take it.
    """
    allowed = target.weight_types if role == "weights" else target.activation_types
    if isinstance(wanted, FP8QuantizationParameters):
        real = E4M3 if wanted.destination_type is FP8Type.E4M3 else E5M2
        check_type(target, "destination_type", str(wanted.destination_type), real, allowed)
        check_channels(target, role, wanted, "symmetric")
        return Scheme(real, centered=True)
    modes = target.weight_modes if role == "weights" else target.activation_modes
    usual = "symmetric" if symmetric or "asymmetric" not in modes else "asymmetric"
    mode = str(wanted.mode or usual)
    if mode not in modes:
        raise ConfigError(Option(("mode",), mode), f"; target {target.name!r} takes {', '.join(sorted(modes))} only")
    check_channels(target, role, wanted, mode)
    grid = target.weight if role == "weights" else target.activation
    signed = grid.signed if wanted.signedness_to_force is None else wanted.signedness_to_force
    if role == "weights" and mode == "asymmetric" and wanted.signedness_to_force is None:
        signed = "uint8" not in allowed
    narrow = grid.narrow and mode == "symmetric" if wanted.narrow_range is None else wanted.narrow_range
    bits = wanted.num_bits or grid.bits
    chosen = IntType(bits, signed, narrow, wanted.levels(bits, signed))
    if wanted.num_bits:
        check_type(target, "num_bits", wanted.num_bits, chosen, allowed)
    check_type(target, "signedness_to_force", wanted.signedness_to_force, chosen, allowed)
    activations, forced = role == "activations", wanted.signedness_to_force
    return Scheme(
        chosen,
        mode == "symmetric",
        centered=mode == "symmetric" and (target.centered or (activations and forced is True)),
        signed_below_zero=activations and target.signed_below_zero and forced is None,
    )


def check_type(target: Target, key: str, value: object, grid: Grid, allowed: frozenset[str]) -> None:
    """Refuses a grid whose type the target does not read."""
    if type_name(grid) not in allowed:
        known = ", ".join(sorted(allowed, key=lambda name: ("float" in name, len(name), name)))
        raise ConfigError(
            Option((key,), value),
            f" needs {type_name(grid)}, which target {target.name!r} does not take; it takes {known}",
        )


def check_channels(target: Target, role: Role, wanted: Parameters, mode: str) -> None:
    """Refuses one scale for each channel where no kernel of the target has that."""
    if wanted.per_channel and not takes_channels(target, role, mode):
        raise ConfigError(
            Option(("per_channel",), True),
            f"; target {target.name!r} has one scale for each tensor only, for {mode} {role}",
        )


def takes_channels(target: Target, role: Role, mode: str) -> bool:
    """Whether the target has any kernel with one scale for each channel of such tensors."""
    if role == "activations":
        return any(rule.activation_axis is not None for rule in target.rules.values())
    return target.per_channel if mode == "symmetric" else target.asymmetric_per_channel


def rule_for(target: Target, node: Node, *, depthwise: bool = False) -> Rule | None:
    """The target's rule for a node; that of depthwise convolutions where they have one of their own."""
    own = depthwise and "DepthwiseConv" in target.rules
    rule = target.rules.get("DepthwiseConv" if own else node.op)
    if rule is None or any(node.attributes.get(key, value) != value for key, value in rule.only.items()):
        return None
    return rule


def merges(node: Node, target: Target, values: Mapping[str, Any]) -> bool:
    """Whether the target merges a pointwise function, such as a Relu, into a kernel before it.

    `values` are the constants of the model. A quantizer stands in for a Clip exactly only at zero, which is on its grid; another
    lowest value lies between two steps.
    """
    if node.op not in target.fused or node.domain:
        return False
    if node.op != "Clip" or not target.merges_at_zero:
        return True
    bounds = clip_bounds(node, values)
    return bounds is not None and bounds[0] == 0


def weight_axis(node: Node, rule: Rule, rank: int) -> int | None:
    """The axis of a weight of that rank with one scale for each index; None where the kernel takes one scale only."""
    if not rule.per_channel or rank < 2 or (node.op == "MatMul" and rank > 2):
        return None
    return Linear(node, (1,) * rank).output_axis if is_linear(node) else GATES.get(node.op, 0)


@dataclass(frozen=True)
class Wishes:
    """What is asked for, node by node, checked against the target."""

    target: Target
    symmetric: bool
    activations: Parameters
    weights: Parameters
    nodes: Mapping[str, tuple[Parameters, Parameters]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        graph: Graph,
        target: Target,
        symmetric: bool,
        activations: Parameters | None,
        weights: Parameters | None,
        overrides: Sequence[Override],
    ) -> Wishes:
        """The wishes for the nodes of a graph; later overrides win.

        Raises:
          ConfigError: the target does not take one of them, or an override selects nothing; its path begins with "activations",
            "weights" or ("overrides", number).
        """
        common: tuple[Parameters, Parameters] = (
            activations or QuantizationParameters(),
            weights or QuantizationParameters(),
        )
        nodes: dict[str, tuple[Parameters, Parameters]] = {}
        wishes = cls(target, symmetric, *common)
        wishes.check(*common)
        for number, override in enumerate(overrides):
            with inside("overrides", number):
                for name in override.select(graph):
                    before = nodes.get(name, common)
                    nodes[name] = (updated(before[0], override.activations), updated(before[1], override.weights))
                    wishes.check(*nodes[name])
        return replace(wishes, nodes=nodes)

    def check(self, activations: Parameters, weights: Parameters) -> None:
        """Refuses what the target does not take."""
        with inside("activations"):
            scheme_for(self.target, "activations", activations, symmetric=self.symmetric)
        with inside("weights"):
            scheme_for(self.target, "weights", weights)

    def default(self) -> Scheme:
        """The scheme of activations that nobody has a wish for."""
        return scheme_for(self.target, "activations", self.activations, symmetric=self.symmetric)

    def activation(self, name: str, axis: int | None, *, symmetric: bool = False, centered: bool = False) -> Scheme:
        """How a node wants an activation; `axis` is that of its channels if it takes one scale for each.

        `symmetric` and `centered`: what its kernel asks for, whatever was wished.
        """
        wanted = self.nodes.get(name, (self.activations, self.weights))[0]
        scheme = scheme_for(self.target, "activations", wanted, symmetric=self.symmetric)
        per_channel = axis is not None and wanted.per_channel is not False
        granularity = PerAxis(axis) if per_channel and axis is not None else PerTensor()
        return replace(
            scheme,
            granularity=granularity,
            symmetric=scheme.symmetric or symmetric or centered,
            centered=scheme.centered or centered,
        )

    def weight(self, name: str, axis: int | None) -> Scheme:
        """How a node wants a weight; `axis` is that of its channels if it has any."""
        wanted = self.nodes.get(name, (self.activations, self.weights))[1]
        scheme = scheme_for(self.target, "weights", wanted)
        mode = "symmetric" if scheme.symmetric else "asymmetric"
        per_channel = wanted.per_channel is not False and takes_channels(self.target, "weights", mode)
        return replace(scheme, granularity=PerAxis(axis) if per_channel and axis is not None else PerTensor())


def common_scheme(schemes: Sequence[Scheme], *, channels: bool = True) -> Scheme:
    """The scheme that suits all: the widest grid; symmetric if one must be; one scale unless all have the same axis."""
    grid = max((scheme.grid for scheme in schemes), key=width)
    if isinstance(grid, IntType):
        narrow = all(isinstance(each.grid, IntType) and each.grid.narrow for each in schemes)
        grid = replace(grid, narrow=narrow)
    axes = {scheme.granularity for scheme in schemes}
    return Scheme(
        grid,
        any(scheme.symmetric for scheme in schemes),
        axes.pop() if len(axes) == 1 and channels else PerTensor(),
        any(scheme.centered for scheme in schemes),
        all(scheme.signed_below_zero for scheme in schemes),
    )


def width(grid: Grid) -> int:
    """How many bits a number takes."""
    return grid.bits if isinstance(grid, IntType) else 8
