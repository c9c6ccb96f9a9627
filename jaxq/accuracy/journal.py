"""What the user is told of a search: while it runs, and in its folder."""

from __future__ import annotations

import contextlib
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping

from jaxq.accuracy.folder import REPORT
from jaxq.accuracy.goals import Goal
from jaxq.accuracy.report import AccuracyReport, Kept, Step
from jaxq.accuracy.state import State
from jaxq.errors import JaxqWarning
from jaxq.files import write_text

Listener = Callable[[AccuracyReport], None]


class Journal:
    """The steps, notes and times of a search, and the report of them.

    Args:
      started: `time.monotonic()` at the start of the search.
      state: its folder gets the report.
      on_step: gets each report.
    """

    def __init__(self, started: float, state: State, on_step: Listener | None):
        self.started, self.state, self.on_step = started, state, on_step
        self.steps: list[Step] = []
        self.notes: list[str] = []
        self.seconds: dict[str, float] = {}

    def note(self, text: str) -> None:
        """Something that the user should know: a warning, and a line of the report."""
        self.notes.append(text)
        warnings.warn(text, JaxqWarning, stacklevel=3)

    @contextlib.contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Adds the time of the block to that of the phase."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.monotonic() - began

    @property
    def elapsed(self) -> float:
        """Seconds since the search was started."""
        return time.monotonic() - self.started

    def publish(
        self,
        status: str,
        goals: tuple[Goal, ...],
        values: Mapping[str, float],
        runtime: Mapping[str, float],
        layers: tuple[int, int],
        kept: tuple[Kept, ...],
    ) -> AccuracyReport:
        """The report as of now, to the listener and the folder; `layers` are those in float and all of them."""
        spent = {**self.seconds, "candidates": sum(step.seconds for step in self.steps if not step.resumed)}
        spent["all"] = self.elapsed
        report = AccuracyReport(
            status, goals, values, runtime, *layers, kept, tuple(self.steps),
            {name: round(value, 2) for name, value in spent.items()}, tuple(self.notes),
        )  # fmt: skip
        self.state.write(REPORT, lambda path: write_text(path, json.dumps(report.to_dict(), indent=1) + "\n"))
        if self.on_step is not None:
            self.on_step(report)
        return report
