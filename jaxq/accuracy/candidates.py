"""The candidates of a search: each is evaluated once, and the best so far is known, and on disk, at every moment."""

from __future__ import annotations

import functools
import importlib.util
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from jaxq.accuracy.folder import BEST
from jaxq.accuracy.goals import Goal, excess
from jaxq.accuracy.journal import Journal
from jaxq.accuracy.report import Step
from jaxq.accuracy.runtime import in_runtime
from jaxq.accuracy.space import STEPS, Setting, Space
from jaxq.accuracy.state import State, key
from jaxq.accuracy.validation import QUANTIZED, Validation
from jaxq.engine.model import Model
from jaxq.errors import JaxqError
from jaxq.onnx_io.save import save


@dataclass(eq=False)
class Candidate:
    """A setting with what it is worth.

    Attributes:
      place: the setting as text (`key`).
      space: what the setting is one of.
      setting: layer -> what is done to it.
      goals: what it is compared with.
      values: metric -> value in simulation.
      runtime: the same of its file in ONNX Runtime; None where that has not been run.
    """

    place: str
    space: Space
    setting: dict[str, str]
    goals: tuple[Goal, ...]
    values: Mapping[str, float]
    runtime: Mapping[str, float] | None = None

    @functools.cached_property
    def float_layers(self) -> int:
        return self.space.float_layers(self.setting)

    @property
    def known(self) -> list[Mapping[str, float]]:
        """The values in simulation, and those in the runtime where they are known."""
        return [self.values] if self.runtime is None else [self.values, self.runtime]

    @property
    def excess(self) -> float:
        """How far it is from the goals, in simulation or in the runtime, whichever is further."""
        return max(excess(self.goals, values) for values in self.known)

    @property
    def reached(self) -> bool:
        return self.excess <= 0

    @property
    def order(self) -> tuple[float, ...]:
        """The less the better: few layers in float and cheap steps, where the goals are reached; else what is nearest to them."""
        cost = sum(1 + STEPS.index(each) for each in self.setting.values())
        if self.reached:
            return (0, self.float_layers, cost, excess(self.goals, self.values))
        return (1, self.excess, self.float_layers, cost)

    def model(self) -> Model:
        """The model, traced anew, with what the file says of the search."""
        record = {
            "jaxq.accuracy": json.dumps(
                {goal.metric: [goal.baseline, self.values[goal.metric]] for goal in self.goals}
            ),
            "jaxq.kept": json.dumps(self.setting),
        }
        return self.space.final(self.setting, record)


class Candidates:
    """What was tried so far.

    Args:
      validation: evaluates a candidate.
      goals: what it is compared with.
      state: remembers the values for the next run.
      journal: gets a step for each candidate.
      tick: called before each evaluation; it may raise to end the search.

    Attributes:
      tried: setting (`key`) -> the candidate.
      in_doubt: whether what reaches the goals in simulation has to do so in ONNX Runtime at once.
    """

    def __init__(
        self,
        validation: Validation,
        goals: tuple[Goal, ...],
        state: State,
        journal: Journal,
        tick: Callable[[], None],
    ):
        self.validation, self.goals, self.state, self.journal, self.tick = validation, goals, state, journal, tick
        self.tried: dict[str, Candidate] = {}
        self.in_doubt = False
        self._has_runtime = importlib.util.find_spec("onnxruntime") is not None

    @property
    def best(self) -> Candidate | None:
        """The best of all, if there is any."""
        return min(self.tried.values(), key=lambda each: each.order, default=None)

    def trial(self, space: Space, preset: str, setting: Setting, why: str) -> float:
        """Evaluates a candidate, once; returns how far it is from the goals, 0 or less where it reaches them."""
        place = key(setting, preset)
        if place not in self.tried:
            self._evaluate(place, space, setting, why)
        candidate = self.tried[place]
        if self.in_doubt and candidate.reached:
            self.measure(candidate)
        return candidate.excess

    def _evaluate(self, place: str, space: Space, setting: Setting, why: str) -> None:
        known = self.state.trials.get(place)
        if known is None:
            self.tick()
            began = time.monotonic()
            scores = self.validation.evaluate(space.candidate(setting), "" if setting else QUANTIZED)
            seconds = round(time.monotonic() - began, 3)
            values = {name: score.value for name, score in scores.items()}
            self.state.trials[place] = {"values": values, "why": why, "seconds": seconds}
        else:
            values, seconds = known["values"], known["seconds"]
        found = self.tried[place] = Candidate(place, space, dict(setting), self.goals, values)
        drops = {goal.metric: goal.drop(values[goal.metric]) for goal in self.goals}
        step = Step(why, dict(setting), values, drops, found.reached, found.float_layers, seconds, known is not None)
        self.journal.steps.append(step)
        if known is None:
            self.state.finished = False
            self.keep_best()

    def keep_best(self) -> None:
        """Writes the best model, where another one is on disk, and the state."""
        best = self.best
        if best is not None and self.state.folder is not None and not self.state.holds(best.place):
            model = best.model()
            if self.state.best:  # a kill between the two files must not leave a model under another one's name
                self.state.best = ""
                self.state.save()
            if self.state.write(BEST, lambda path: save(model, path)):
                self.state.best = best.place
        self.state.save()

    def confirm(self) -> bool:
        """Takes those that reach the goals to ONNX Runtime, the best first, until one does so there; returns whether one does.

        A search that stops at the edge of what is allowed finds, now and then, a candidate that is within it by luck: sums in
        another order put a few values on the other side of a rounding border, and the metric falls a little below.
        """
        while (best := self.best) is not None and best.reached:
            self.measure(best)
            if best.reached:
                return True
        return False

    def measure(self, candidate: Candidate) -> None:
        """Takes the metrics of a candidate's file in ONNX Runtime, once, where that is installed."""
        if candidate.runtime is not None or not self._has_runtime:
            return
        promised = candidate.reached
        remembered = self.state.trials[candidate.place]
        if "runtime" not in remembered:
            try:
                with self.journal.timed("runtime"):
                    remembered["runtime"] = in_runtime(self.validation, candidate.model())
            except JaxqError as error:
                self._has_runtime = False
                self.journal.note(f"the metric could not be taken in ONNX Runtime: {error}")
                return
            self.state.save()
        there = candidate.runtime = remembered["runtime"]
        if not promised or candidate.reached:
            return
        self.keep_best()  # that is another one now
        if not self.in_doubt:
            goal = max(self.goals, key=lambda each: each.excess(there[each.metric]))
            self.journal.note(
                f"in ONNX Runtime, {goal.metric} of the candidate with {candidate.float_layers} layers in float is "
                f"{there[goal.metric]:.6g}, a drop of {goal.drop(there[goal.metric]):.4g} where {goal.max_drop:g} is allowed; in "
                f"simulation {candidate.values[goal.metric]:.6g}"
            )
