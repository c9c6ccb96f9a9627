"""The loop of a search: evaluates what is proposed, once, keeps the best, honours the time budget, reports, and ends."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from jaxq.accuracy.options import AdvancedAccuracyRestorerParameters, Ranking
from jaxq.accuracy.report import (
    BROKEN_OFF,
    INTERRUPTED,
    MISSED,
    REACHED,
    RUNNING,
    AccuracyReport,
    Kept,
    Step,
)
from jaxq.accuracy.search import Found, Proposals
from jaxq.accuracy.space import Space
from jaxq.accuracy.store import BEST, REPORT, Ranked, Store, key
from jaxq.accuracy.treatments import Setting, named
from jaxq.analysis.validation import QUANTIZED, Goal, Validation, excess, in_runtime
from jaxq.engine.model import Model
from jaxq.errors import AccuracyError, JaxqError
from jaxq.files import write_text

Listener = Callable[[AccuracyReport], None]
Made = TypeVar("Made")


class OutOfTime(Exception):
    """The time budget is used up."""


@dataclass(eq=False)
class Candidate:
    """A setting with what it is worth.

    Attributes:
      place: where the store has it.
      space: what the setting is one of.
      setting: layer -> what is done to it.
      goals: what it is compared with.
      step: what the report says of it, with the values in simulation.
      runtime: the values of its file in ONNX Runtime; None where that has not been run.
    """

    place: str
    space: Space
    setting: Setting
    goals: tuple[Goal, ...]
    step: Step
    runtime: Mapping[str, float] | None = None

    @property
    def worst(self) -> tuple[float, Goal, float]:
        """(excess, goal, value) of what is furthest from its goal, in simulation or in the runtime where that is known."""
        known = [self.step.values, *([] if self.runtime is None else [self.runtime])]
        found = [(goal, values[goal.metric]) for goal in self.goals for values in known]
        return max(((goal.excess(value), goal, value) for goal, value in found), key=lambda each: each[0])

    @property
    def reached(self) -> bool:
        return self.worst[0] <= 0

    @property
    def order(self) -> tuple[float, ...]:
        """The less the better: few layers in float and cheap treatments, where the goals are reached; else what is nearest."""
        layers, cost = self.step.float_layers, sum(each.cost for each in self.setting.values())
        if self.reached:
            return (0, layers, cost, excess(self.goals, self.step.values))
        return (1, self.worst[0], layers, cost)

    def model(self) -> Model:
        """The model, traced anew, with what the file says of the search."""
        values = {goal.metric: [goal.baseline, self.step.values[goal.metric]] for goal in self.goals}
        record = {"jaxq.accuracy": json.dumps(values), "jaxq.kept": json.dumps(self.step.setting)}
        return self.space.final(self.setting, record)


class Trials:
    """What was tried so far; the best of it is known, and on disk, at every moment.

    Args:
      validation: evaluates a candidate.
      store: remembers the values for the next run.
      advanced: how long to search, and how layers are ranked.
      started: `time.monotonic()` at the start.
      on_step: gets the report after each candidate.

    Attributes:
      space: what is searched now.
      goals: what candidates are compared with.
      ranked: the layers, as they were ranked last.
      tried: setting (`key`) -> the candidate.
      in_doubt: whether what reaches the goals in simulation has to do so in ONNX Runtime at once.
    """

    space: Space
    goals: tuple[Goal, ...]

    def __init__(
        self,
        validation: Validation,
        store: Store,
        advanced: AdvancedAccuracyRestorerParameters,
        started: float,
        on_step: Listener | None,
    ):
        self.validation, self.store, self.advanced = validation, store, advanced
        self.started, self.on_step = started, on_step
        self.ranked: list[Ranked] = []
        self.tried: dict[str, Candidate] = {}
        self.seconds: dict[str, float] = {}
        self.in_doubt = self.out_of_time = False
        self._has_runtime = importlib.util.find_spec("onnxruntime") is not None

    # ----------------------------------------------------------------------------------------------------------- the loop

    def run(self, proposals: Proposals) -> Found:
        """Tries what is proposed, until nothing more is."""
        told = None
        while True:
            try:
                proposal = proposals.send(told)  # type: ignore[arg-type]  # None starts a generator
            except StopIteration as end:
                return end.value
            told = self.trial(*proposal)

    def trial(self, setting: Setting, why: str) -> float:
        """Evaluates a candidate, once; returns how far it is from the goals, 0 or less where it reaches them."""
        place = key(named(setting), self.space.base.preset)
        known = self.tried.get(place)
        candidate = known or self._evaluated(place, setting, why)
        if self.in_doubt and candidate.reached:
            self.measure(candidate)
        if known is None:
            self.tell(RUNNING)
        return candidate.worst[0]

    def _evaluated(self, place: str, setting: Setting, why: str) -> Candidate:
        resumed = place in self.store.trials
        if not resumed:
            self.check_time()
            began = time.monotonic()
            scores = self.validation.evaluate(self.space.candidate(setting), "" if setting else QUANTIZED)
            values = {name: score.value for name, score in scores.items()}
            seconds = round(time.monotonic() - began, 3)
            self.store.trials[place] = {"values": values, "why": why, "seconds": seconds}
        trial = self.store.trials[place]
        values, layers = trial["values"], self.space.float_layers(setting)
        drops = {goal.metric: goal.drop(values[goal.metric]) for goal in self.goals}
        enough = excess(self.goals, values) <= 0
        step = Step(why, named(setting), values, drops, enough, layers, trial["seconds"], resumed)
        found = self.tried[place] = Candidate(place, self.space, dict(setting), self.goals, step)
        if not resumed:
            self.store.finished = False
            self.keep_best()
        return found

    @property
    def best(self) -> Candidate:
        """The best of all; there is one from the first trial on."""
        return min(self.tried.values(), key=lambda each: each.order)

    @property
    def reached(self) -> bool:
        return any(each.reached for each in self.tried.values())

    def keep_best(self) -> None:
        """Writes the best model, where another one is on disk, and the state."""
        self.store.keep_best(self.best.place, self.best.model)

    def check_time(self) -> None:
        """Raises OutOfTime when the time budget is used up, but not before one candidate is known."""
        budget = self.advanced.time_budget
        if budget is not None and self.tried and time.monotonic() - self.started > budget:
            raise OutOfTime

    def timed(self, phase: str, make: Callable[[], Made]) -> Made:
        """What is made, in a time that counts for the phase."""
        began = time.monotonic()
        try:
            return make()
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.monotonic() - began

    # -------------------------------------------------------------------------------------------------------- the runtime

    def confirm(self) -> bool:
        """Takes those that reach the goals to ONNX Runtime, the best first, until one does so there; returns whether one does.

        A search that stops at the edge of what is allowed finds, now and then, a candidate that is within it by luck: sums in
        another order put a few values on the other side of a rounding border, and the metric falls a little below.
        """
        while self.reached:
            best = self.best
            self.measure(best)
            if best.reached:
                return True
        return False

    def measure(self, candidate: Candidate) -> None:
        """Takes the metrics of a candidate's file in ONNX Runtime, once, where that is installed."""
        if candidate.runtime is not None or not self._has_runtime:
            return
        promised = candidate.reached
        remembered = self.store.trials[candidate.place]
        if "runtime" not in remembered:
            try:
                found = self.timed("runtime", lambda: in_runtime(self.validation, candidate.model()))
            except JaxqError as error:
                self._has_runtime = False
                self.store.note(f"the metric could not be taken in ONNX Runtime: {error}")
                return
            remembered["runtime"] = found
            self.store.save()
        candidate.runtime = remembered["runtime"]
        if not promised or candidate.reached:
            return
        self.keep_best()  # that is another one now
        if not self.in_doubt:
            _, goal, there = candidate.worst
            self.store.note(
                f"in ONNX Runtime, {goal.metric} of the candidate with {candidate.step.float_layers} layers in float is "
                f"{there:.6g}, a drop of {goal.drop(there):.4g} where {goal.max_drop:g} is allowed; in "
                f"simulation {candidate.step.values[goal.metric]:.6g}"
            )

    # ------------------------------------------------------------------------------------------------------------ the end

    def until_the_end(self, search: Callable[[], object]) -> Model:
        """The best model of a search, in whichever way that ends.

        Raises:
          AccuracyError: it misses the goals, or the search was broken off by an error.
        """
        try:
            self._search(search)
            return self._finish()
        except KeyboardInterrupt as interrupt:
            self.tell(INTERRUPTED)
            if self.store.folder is None:
                interrupt.add_note("nothing is kept of the search: that takes a folder, intermediate_model_dir")
            elif self.store.best:
                best = self.store.folder / BEST
                interrupt.add_note(f"the best model so far is {best}; the same call goes on from here")
            raise
        except AccuracyError:
            raise
        except JaxqError as error:
            if not self.tried:
                raise
            report = self.tell(BROKEN_OFF)
            so_far = "is within the limit" if self.reached else "misses the limit"
            again = "" if self.store.folder is None else "; the same call goes on from here"
            raise AccuracyError(
                f"the search was broken off: {error}; the best candidate so far {so_far}{again}",
                self.best.model(),
                report,
            ) from error

    def _search(self, search: Callable[[], object]) -> None:
        """Searches until there is a candidate whose file is within the limit, too, or nothing is left to try, or no time."""
        try:
            search()
            if self.reached and not self.confirm():
                self.store.note(
                    "no candidate that is within the limit in simulation is so in ONNX Runtime; the search goes on, with the "
                    "files of such candidates in ONNX Runtime"
                )
                self.in_doubt = True
                search()
        except OutOfTime:
            self.out_of_time = True
            self.confirm()
            self.store.note(self._time_is_up())

    def _finish(self) -> Model:
        """The best model, its metric in the runtime, and the last report."""
        self.measure(self.best)
        best = self.best
        model = best.model()
        self.store.finished = not self.out_of_time
        if best.reached and best.step.float_layers == best.space.weight_layers > 0:
            self.store.note(
                "the limit is kept with every layer in float only; allow a larger drop, or give more bits or a scale for each "
                "channel"
            )
        report = self.tell(REACHED if best.reached else MISSED)
        if best.reached:
            return model
        _, goal, value = best.worst
        raise AccuracyError(
            f"the accuracy target was not reached: {goal.metric} is {value:.6g} at best, a drop of "
            f"{goal.drop(value):.4g} from {goal.baseline:.6g} where {goal.max_drop:g} is allowed "
            f"({len(report.steps)} candidates, {report.float_layers} of {report.weight_layers} layers in float). Allow "
            f"{'more time, ' if self.out_of_time else ''}a larger drop or more layers in "
            "float, or quantize with another preset or range estimator",
            model,
            report,
        )

    def _time_is_up(self) -> str:
        """What the end of the time budget means for the user."""
        found = "none of them is within the limit"
        if self.reached:
            layers = f"{self.best.step.float_layers} of {self.best.space.weight_layers} layers in float"
            found = f"the best so far is within the limit with {layers}, perhaps more than needed"
        advice = "the same call with a larger time_budget goes on from here"
        if self.store.folder is None:
            advice = "give a larger time_budget; with intermediate_model_dir the same call then goes on from here"
        tried = f"{len(self.tried)} candidate{'' if len(self.tried) == 1 else 's'}"
        return f"the time budget of {self.advanced.time_budget:g} s is used up after {tried}: {found}; {advice}"

    # --------------------------------------------------------------------------------------------------------- the report

    def tell(self, status: str) -> AccuracyReport:
        """The report as of now, to the listener and the folder, which has the best model where the search ends."""
        if status != RUNNING and self.tried:
            self.keep_best()
        steps = tuple(each.step for each in self.tried.values())
        spent = {**self.seconds, "candidates": sum(step.seconds for step in steps if not step.resumed)}
        spent["all"] = time.monotonic() - self.started
        seconds = {name: round(value, 2) for name, value in spent.items()}
        layers, notes = self.space.weight_layers, tuple(self.store.notes)
        report = AccuracyReport(status, self.goals, weight_layers=layers, steps=steps, seconds=seconds, notes=notes)
        if self.tried:
            best = self.best
            report = replace(
                report,
                values=best.step.values,
                runtime_values=best.runtime or {},
                float_layers=best.step.float_layers,
                weight_layers=best.space.weight_layers,
                kept=tuple(self._kept(layer, best) for layer in best.setting),
            )
        self.store.write(REPORT, lambda path: write_text(path, json.dumps(report.to_dict(), indent=1) + "\n"))
        if self.on_step is not None:
            self.on_step(report)
        return report

    def _kept(self, layer: str, best: Candidate) -> Kept:
        """A layer that is treated in a way of its own, with the reason."""
        rank, ranked = next(((n, each) for n, each in enumerate(self.ranked, 1) if each.layer == layer), (None, None))
        fewer = named({name: each for name, each in best.setting.items() if name != layer})
        without = self.tried.get(key(fewer, self.space.base.preset))
        how = "measured" if ranked is not None and ranked.exact else "by gradient"
        if self.advanced.ranking is Ranking.ALONE:
            how = "quantized alone"
        reasons = [] if ranked is None else [f"rank {rank}, gain {ranked.gain:.3g} ({how})"]
        if without is not None and not without.reached:
            reasons.append("quantizing it misses the target")
        why = ", and ".join(reasons) or "reverted with others"
        gain = None if ranked is None else ranked.gain
        return Kept(layer, self.space.layers[layer].op, best.setting[layer].name, rank, gain, why)
