"""What was tried, what came of it, and what was kept in float and why; as JSON and as a table."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxq.analysis.validation import Goal

REACHED, MISSED, INTERRUPTED, BROKEN_OFF, RUNNING = "reached", "not reached", "interrupted", "broken off", "running"


@dataclass(frozen=True)
class Step:
    """One candidate.

    Attributes:
      what: why it was tried.
      setting: layer -> what was done to it; layers that are not there were quantized.
      values: metric -> value, `drops`: metric -> drop in the goal's units.
      reached: whether every metric stayed within its limit.
      float_layers: how many layers had their weights in float.
      seconds: for making and evaluating it.
      resumed: whether the values come from an earlier run.
    """

    what: str
    setting: Mapping[str, str]
    values: Mapping[str, float]
    drops: Mapping[str, float]
    reached: bool
    float_layers: int
    seconds: float
    resumed: bool = False


@dataclass(frozen=True)
class Kept:
    """A layer that is not quantized as the others are.

    Attributes:
      layer, op: its node's name and operator.
      step: what was done to it.
      rank: its place in the last ranking, from 1; None if it was not ranked.
      gain: the part of the divergence from the float outputs that reverting it was estimated to take away.
      why: in words.
    """

    layer: str
    op: str
    step: str
    rank: int | None
    gain: float | None
    why: str


@dataclass(frozen=True)
class AccuracyReport:
    """The search so far.

    Attributes:
      status: "reached", "not reached", "interrupted", "broken off" (by an error), or "running".
      goals: each metric with its baseline and limit.
      values: metric -> value of the best model in simulation.
      runtime_values: the same of the written file in ONNX Runtime, where that is installed.
      float_layers: how many of `weight_layers` layers with weights have them in float.
      kept: what is not quantized as usual, and why.
      steps: all candidates in order.
      seconds: phase -> seconds.
      notes: what else the reader should know.
    """

    status: str
    goals: tuple[Goal, ...]
    values: Mapping[str, float] = field(default_factory=dict)
    runtime_values: Mapping[str, float] = field(default_factory=dict)
    float_layers: int = 0
    weight_layers: int = 0
    kept: tuple[Kept, ...] = ()
    steps: tuple[Step, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; numbers that JSON has no word for become text."""
        found: dict[str, Any] = _plain(dataclasses.asdict(self))
        return found

    def table(self) -> str:
        """The report as text."""
        names = [goal.metric for goal in self.goals]
        head = ["", "what was tried", *(f"{name}  drop" for name in names), "in float", "seconds"]
        rows = [head]
        for number, step in enumerate(self.steps):
            cells = [f"{step.values[name]:.5g}  {step.drops[name]:+.4g}" for name in names]
            mark = "ok" if step.reached else ""
            seconds = "before" if step.resumed else f"{step.seconds:.1f}"
            rows.append([f"{number} {mark}".rstrip(), step.what, *cells, str(step.float_layers), seconds])
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        for goal in self.goals:
            kind = "" if goal.drop_type == "absolute" else " of it"
            lines.append(f"{goal.metric}: {goal.baseline:.5g} in float, may drop by {goal.max_drop:g}{kind}")
        for name, value in self.values.items():
            runtime = f", {self.runtime_values[name]:.5g} in ONNX Runtime" if name in self.runtime_values else ""
            lines.append(f"{self.status}: {name} {value:.5g} in simulation{runtime}")
        lines.append(f"layers with weights in float: {self.float_layers} of {self.weight_layers}")
        lines.extend(f"  {each.layer} ({each.op}): {each.step}; {each.why}" for each in self.kept)
        lines.append("seconds: " + ", ".join(f"{name} {value:.1f}" for name, value in self.seconds.items()))
        lines.extend(f"note: {note}" for note in self.notes)
        return "\n".join(lines)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
