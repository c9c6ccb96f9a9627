"""The candidates of a search: each is evaluated once, and the best so far is known, and on disk, at every moment."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from jaxq.accuracy.goals import Goal, excess
from jaxq.accuracy.journal import Journal
from jaxq.accuracy.report import Step
from jaxq.accuracy.space import STEPS, Setting, Space
from jaxq.accuracy.state import State, key
from jaxq.accuracy.validation import QUANTIZED, Validation
from jaxq.model import Model
from jaxq.onnx_export import save


class Candidate(NamedTuple):
    """A setting with what it is worth.

    Attributes:
      order: the less the better; those that reach the goals begin with 0, the others with 1.
      space: what the setting is one of.
      setting: layer -> what is done to it.
      values: metric -> value in simulation.
    """

    order: tuple[float, ...]
    space: Space
    setting: dict[str, str]
    values: Mapping[str, float]

    @property
    def reached(self) -> bool:
        return self.order[0] == 0

    @property
    def float_layers(self) -> int:
        return self.space.float_layers(self.setting)

    def model(self, goals: tuple[Goal, ...]) -> Model:
        """The model, traced anew, with what the file says of the search."""
        record = {
            "jaxq.accuracy": json.dumps({goal.metric: [goal.baseline, self.values[goal.metric]] for goal in goals}),
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
      tried: setting (`key`) -> how far it is from the goals.
      best: the best of all, if there is any.
      good: those that reach the goals.
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
        self.tried: dict[str, float] = {}
        self.best: Candidate | None = None
        self.good: list[Candidate] = []

    def trial(self, space: Space, preset: str, setting: Setting, why: str) -> float:
        """Evaluates a candidate, once; returns how far it is from the goals, 0 or less where it reaches them."""
        place = key(setting, preset)
        if place in self.tried:
            return self.tried[place]
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
        worth = self.tried[place] = excess(self.goals, values)
        drops = {goal.metric: goal.drop(values[goal.metric]) for goal in self.goals}
        floats = space.float_layers(setting)
        step = Step(why, dict(setting), values, drops, worth <= 0, floats, seconds, known is not None)
        self.journal.steps.append(step)
        cost = sum(1 + STEPS.index(each) for each in setting.values())
        order: tuple[float, ...] = (0, floats, cost, worth) if worth <= 0 else (1, worth, floats, cost)
        self.add(Candidate(order, space, dict(setting), values), new=known is None)
        return worth

    def add(self, candidate: Candidate, *, new: bool) -> None:
        """Remembers a candidate; what is `new` is not on disk yet."""
        if candidate.reached:
            self.good.append(candidate)
        if self.best is None or candidate.order < self.best.order:
            self.best = candidate
            if self.state.folder is not None and new:
                save(candidate.model(self.goals), self.state.folder / "best.onnx")
        if new:
            self.state.save()
