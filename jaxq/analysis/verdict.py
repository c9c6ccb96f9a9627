"""What verifying found, in figures and words: whether a runtime computes what a file says, by which criterion, and where not."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxq.analysis.outputs import OutputComparison, OutputCost
from jaxq.graph.linear import LINEAR

LARGEST_STEPS = 1.0  # of a layer's own quantizer: the other side of a rounding border
TYPICAL_STEPS = 0.1  # root of the mean square: one step in one value of a hundred
TYPICAL_STEPS_OF_CODES = (
    0.3  # of a layer without products: each of its few codes stands in many places, which flip together
)
FEW_VALUES = 3  # that may be a step apart, however few values there are
ROUNDED_STEPS = (
    1.0  # typically, of a result behind roundings that the runtime does not show: steps are carried on there
)
LARGEST_ROUNDED_STEPS = 32.0  # of such a result: an eighth of the range of 8 bits
SAME_ROWS = 0.9  # of a result whose number of rows depends on values
LAYERS_SHOWN = 5
LOST_IN_NOISE = 0.0  # dB of an output against the float model's, up to which its noise is as large as its signal
CRITERION = (
    f"criterion: each layer, fed with what the runtime fed it, comes within {LARGEST_STEPS:g} step of its own quantizer (of 16 "
    f"bits: 4; of a float output: one of 8 bits over its range), and typically within {TYPICAL_STEPS:g} (one value of a hundred, "
    f"or {FEW_VALUES} values; without products {TYPICAL_STEPS_OF_CODES:g}); "
    "where roundings lie inside of a layer that the runtime does not show, typically within "
    f"{ROUNDED_STEPS:g} step, and within {LARGEST_ROUNDED_STEPS:g} at the most; of rows that values select, {SAME_ROWS:.0%} are "
    "the same; nowhere does NaN, infinity or another shape stand for a number"
)


@dataclasses.dataclass(frozen=True)
class LayerComparison:
    """How far one layer in the runtime is from the same layer in simulation, fed with what the runtime fed it, over all samples.

    A layer is what lies between tensors that both sides have: quantized ones, outputs of the model, results of nodes with a body.

    Attributes:
      name, op: of the node that stands for it: the one where the difference arises, where that is known, else the last one with
        weights, else the last one.
      runtime: "plain" or "optimized", as of `OutputComparison`.
      tensor: its result that was compared.
      nodes: the names of all of its nodes that are no quantizers. None, and the operator "output": an output of the session
        against that of the one that was looked into, which has the order of axes of the file.
      steps: the largest difference in steps of the quantizer behind it (of one of 16 bits, in fours of them: sums in float32 are
        no finer); else in those of 8 bits over the runtime's values.
      typical_steps: the root of the mean squared difference, in the same steps.
      count: how many integers were compared; 0 of floats.
      roundings: how many roundings there are inside of it that the runtime does not show: quantizers, and inputs of products
        that the optimized runtime rounds by itself.
      same_rows: of a result whose shape depends on values: share of rows that occur on both sides; else None.
    """

    name: str
    op: str
    runtime: str
    tensor: str
    nodes: tuple[str, ...]
    steps: float
    typical_steps: float
    count: int
    roundings: int = 0
    same_rows: float | None = None

    @property
    def agrees(self) -> bool:
        """Whether the difference is explained by rounding, see `CRITERION`."""
        if self.same_rows is not None:
            return self.same_rows >= SAME_ROWS
        if self.roundings:
            return carried(self.steps, self.typical_steps)
        few = (FEW_VALUES / self.count) ** 0.5 if self.count else 0.0
        usual = TYPICAL_STEPS if self.op in LINEAR or not self.count else TYPICAL_STEPS_OF_CODES
        return self.steps <= LARGEST_STEPS and self.typical_steps <= max(usual, few)

    def __str__(self) -> str:
        if self.same_rows is not None:
            far = f"{self.same_rows:.2%} of the rows are the same"
        else:
            far = f"{self.steps:.3g} steps apart at the most, typically {self.typical_steps:.3g}"
        others = [name for name in self.nodes if name != self.name]
        beside = f" (in one layer with {listed(others)})" if others else ""
        return f"{self.op} {self.name!r} -> {self.tensor!r}, {self.runtime}{beside}: {far}"


@dataclasses.dataclass(frozen=True)
class VerifyReport:
    """The result of `verify`.

    Attributes:
      samples: how many were compared.
      outputs: one entry for each output and way of running, from end to end. A value that falls on the other side of a rounding
        border is carried on there, and a deep network makes much of it: what these figures say is no part of the verdict, unless
        the layers could not be compared.
      integer_kernels: operators that the optimized runtime computes in integers -> how many.
      float_kernels: convolutions and matrix products that it still computes in float -> how many.
      saturation: why integer kernels of this machine can saturate, or "" if they cannot.
      refused: why the runtime does not load the file with its graph optimizations on, or "" if it does.
      layers: one entry for each layer and way of running, in the order of the graph.
      unseen: way of running -> why its layers could not be compared.
      costs: what quantization costs at each output; None if no float model was given.
      rounded: how many products round their inputs to 8 bits in the optimized runtime, though the file does not say so.
    """

    samples: int
    outputs: tuple[OutputComparison, ...]
    integer_kernels: dict[str, int]
    float_kernels: dict[str, int]
    saturation: str
    refused: str = ""
    layers: tuple[LayerComparison, ...] = ()
    unseen: Mapping[str, str] = dataclasses.field(default_factory=dict)
    costs: tuple[OutputCost, ...] | None = None
    rounded: int = 0

    @property
    def agreement(self) -> float | None:
        """The lowest agreement of the predicted class with the plain runtime; None without class scores."""
        found = [each.agreement for each in self.outputs if each.runtime == "plain" and each.agreement is not None]
        return min(found, default=None)

    @property
    def faults(self) -> tuple[LayerComparison, ...]:
        """The layers that differ by more than rounding explains."""
        return tuple(layer for layer in self.layers if not layer.agrees)

    @property
    def lost(self) -> tuple[OutputComparison, ...]:
        """The outputs that are NaN, infinity or of another shape where the simulation gives numbers, from end to end."""
        return tuple(each for each in self.outputs if each.lost)

    @property
    def agrees(self) -> bool:
        """Whether the runtime, plain and optimized, computes what the file says, see `CRITERION`.

        Where the layers of one way of running could not be compared, its outputs decide, from end to end.
        """
        outputs = [each for each in self.outputs if each.runtime in self.unseen]
        return not (self.faults or self.lost) and all(
            carried(each.steps, each.typical_steps) if each.same_rows is None else each.same_rows >= SAME_ROWS
            for each in outputs
        )

    @property
    def useless(self) -> tuple[OutputCost, ...]:
        """The outputs that say nothing of the float model's: of another shape, or with as much noise as signal, or more."""
        return tuple(each for each in self.costs or () if each.snr is None or not each.snr > LOST_IN_NOISE)

    @property
    def ok(self) -> bool:
        """Whether the runtime computes what the file says and, if a float model was given, no output is `useless`."""
        return self.agrees and not self.useless

    @property
    def verdict(self) -> str:
        """What was found, in words, with what was not looked at."""
        return "\n".join([*self._verdict(), CRITERION, *self._notes(), *self._costs()])

    def _verdict(self) -> list[str]:
        ways = [way for way in ("plain", "optimized") if any(each.runtime == way for each in self.outputs)]
        counts = {way: sum(layer.runtime == way and layer.op != "output" for layer in self.layers) for way in ways}
        if self.agrees:
            return [f"agrees: the runtime computes what the file says ({listed_counts(counts)})"]
        lines = [
            f"does not agree: of {listed_counts(counts)}, {len(self.faults)} differ by more than rounding explains"
            if self.faults
            else "does not agree: the outputs differ by more than rounding explains"
        ]
        lines += [
            f"  output {each.name!r}, {each.runtime}: NaN, infinity or another shape where the simulation gives numbers"
            for each in self.lost[:LAYERS_SHOWN]
        ]
        lines += [f"  {layer}" for layer in self.faults[:LAYERS_SHOWN]]
        more = len(self.faults) - LAYERS_SHOWN
        return [*lines, f"  and {more} more"] if more > 0 else lines

    def _notes(self) -> list[str]:
        lines = [
            f"note: {way}, layer by layer: not compared, the outputs from end to end decide: {why}"
            for way, why in self.unseen.items()
        ]
        if self.refused:
            lines.append(f"note: with graph optimizations on: {self.refused} (not compared)")
        if self.rounded:
            lines.append(
                f"note: the optimized runtime rounds the inputs of {self.rounded} products to 8 bits (MatMulNBits), which the "
                'file does not say; add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1") keeps them in float'
            )
        if self.saturation:
            lines.append(f"note: {self.saturation}")
        return lines

    def _costs(self) -> list[str]:
        if self.costs is None:
            return [
                "what quantization costs was not measured (a scale that is wrong in the file is wrong on both sides): give the "
                "float model, --float MODEL"
            ]
        lines = [
            f"USELESS: output {each.name!r} has as much noise as signal against the float model, or more, or another shape; the "
            "file's numbers are wrong, or the float model is not the one that it was made from"
            for each in self.useless
        ]
        for each in self.costs:
            snr = "another shape" if each.snr is None else f"{each.snr:.1f} dB"
            classes = "" if each.agreement is None else f", the same class for {each.agreement:.2%}"
            lines.append(f"quantization costs at {each.name!r}: signal to noise {snr} against the float model{classes}")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data, for JSON: numbers that are not finite are words."""
        found = dataclasses.asdict(self) | {
            "unseen": dict(self.unseen),
            "agreement": self.agreement,
            "agrees": self.agrees,
            "ok": self.ok,
            "faults": [dataclasses.asdict(layer) for layer in self.faults],
            "verdict": self.verdict,
        }
        return {key: _plain(value) for key, value in found.items()}

    def table(self) -> str:
        """The report as text: one line for each output and way of running, the kernels, and the verdict."""
        rows: list[tuple[str, ...]] = [
            ("output", "runtime", "same class", "largest difference", "in 8-bit steps", "typically")
        ]
        for each in self.outputs:
            share = "-" if each.agreement is None else f"{each.agreement:.2%}"
            if each.same_rows is not None:
                share = f"{each.same_rows:.2%} of rows"
            numbers = (each.largest, each.steps, each.typical_steps)
            rows.append((each.name, each.runtime, share, *(f"{number:.3g}" for number in numbers)))
        if all(row[2] == "-" for row in rows[1:]):
            rows = [(*row[:2], *row[3:]) for row in rows]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        kernels = [f"{count} {name}" for name, count in sorted(self.integer_kernels.items())]
        floats = [f"{count} {name}" for name, count in sorted(self.float_kernels.items())]
        lines.append(
            f"integer kernels: {', '.join(kernels) or 'none'}; products left in float: {', '.join(floats) or 'none'}"
        )
        return "\n".join([*lines, self.verdict])


def carried(steps: float, typical_steps: float) -> bool:
    """Whether single steps that were carried on explain a difference."""
    return typical_steps <= ROUNDED_STEPS and steps <= LARGEST_ROUNDED_STEPS


def listed_counts(counts: Mapping[str, int]) -> str:
    """`8 layers plain, 8 layers optimized`."""
    return ", ".join(f"{count} layers {way}" for way, count in counts.items())


def listed(names: Sequence[str]) -> str:
    """Names in quotes, the first of many."""
    shown = ", ".join(map(repr, names[:LAYERS_SHOWN]))
    return f"{shown} and {len(names) - LAYERS_SHOWN} more" if len(names) > LAYERS_SHOWN else shown


def _plain(value: Any) -> Any:
    """The value as JSON has it."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value
