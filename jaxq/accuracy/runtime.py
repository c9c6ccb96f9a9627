"""The written file in ONNX Runtime, in the place of a model."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxq.accuracy.candidates import Candidate, Candidates
from jaxq.accuracy.validation import Validation
from jaxq.errors import JaxqError
from jaxq.model import Model, check_feed
from jaxq.onnx_export import save

CONFIRMED = 6  # candidates that are taken to the runtime at most


class File:
    """A written model in ONNX Runtime, to be called as a `Model` is."""

    def __init__(self, model: Model, path: Path):
        from jaxq.verify import session

        self.inputs, self.outputs, self.graph = model.inputs, model.outputs, model.graph
        self._run = session(path, optimized=path.with_name("optimized.onnx"))

    def feed(self, inputs: Any) -> dict[str, Any]:
        return check_feed(self.inputs, inputs)

    def __call__(self, inputs: Any) -> dict[str, Any]:
        return self._run(self.feed(inputs))


def in_runtime(validation: Validation, model: Model) -> dict[str, float]:
    """The metrics of the model's file in ONNX Runtime, with all graph optimizations."""
    with tempfile.TemporaryDirectory(prefix="jaxq-accuracy-") as folder:
        path = Path(folder) / "model.onnx"
        save(model, path)
        return {name: score.value for name, score in validation.evaluate(File(model, path)).items()}


def confirmed(
    found: Candidates, validation: Validation, note: Callable[[str], None]
) -> tuple[Candidate, dict[str, float]]:
    """The candidate whose written file holds what the simulation promised, and its metrics in ONNX Runtime, if that is installed.

    A search that stops at the edge of what is allowed finds, now and then, a candidate that is within it by luck: sums in
    another order put a few values on the other side of a rounding border, and the metric falls a little below. The next
    best candidates are then taken in turn; if none holds, the best one stays, with a note.
    """
    assert found.best is not None, "a candidate was evaluated"
    values: dict[str, float] = {}
    if importlib.util.find_spec("onnxruntime") is None:
        return found.best, values
    for candidate in sorted(found.good, key=lambda each: each.order)[:CONFIRMED] or [found.best]:
        try:
            there = in_runtime(validation, candidate.model(found.goals))
        except JaxqError as error:
            note(f"the metric could not be taken in ONNX Runtime: {error}")
            break
        values = values or there
        missed = [goal for goal in found.goals if goal.excess(there[goal.metric]) > 0]
        if not missed or not found.good:
            return candidate, there
        goal = missed[0]
        note(
            f"in ONNX Runtime, {goal.metric} of the candidate with {candidate.float_layers} layers in float is "
            f"{there[goal.metric]:.6g}, a drop of {goal.drop(there[goal.metric]):.4g} where {goal.max_drop:g} is allowed; in "
            f"simulation {candidate.values[goal.metric]:.6g}"
        )
    return found.best, values
