"""One search: what is tried, what is the best so far, what is written and told of it."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from jaxq.accuracy.base import open_base
from jaxq.accuracy.by_function import FunctionValidation
from jaxq.accuracy.goals import Goal, excess
from jaxq.accuracy.open_validation import open_validation
from jaxq.accuracy.options import (
    AdvancedAccuracyRestorerParameters,
    DropType,
    Ranking,
    Search,
)
from jaxq.accuracy.ranking import Ranked, Ranker
from jaxq.accuracy.report import INTERRUPTED, MISSED, REACHED, RUNNING, AccuracyReport, Kept, Step
from jaxq.accuracy.runtime import in_runtime
from jaxq.accuracy.search import bisect, one_by_one, refine, relax
from jaxq.accuracy.space import ESTIMATORS, NAMED, STEPS, UNCORRECTED, Setting, Space
from jaxq.accuracy.state import State, encoding_arrays, key
from jaxq.accuracy.validation import EXACT, QUANTIZED, Pool
from jaxq.collect import tensor_shapes
from jaxq.data import Dataset
from jaxq.errors import AccuracyError, ConfigError, JaxqError, JaxqWarning
from jaxq.model import Model, split_static
from jaxq.onnx_export import save
from jaxq.options import Preset
from jaxq.pipeline import Prepared
from jaxq.quantizer import QuantParams

SUBSET = {Ranking.ALONE: 8, Ranking.GRADIENT: 32, Ranking.EXACT: 300}  # samples to rank on
# The order of layers that are quantized alone is settled then: already two samples give nearly the same.
MOST_ALONE = 32
# Samples of so many output numbers together are as good, but for two: an image has as many as many samples of a classifier.
ENOUGH_NUMBERS = 1 << 16

CONFIRMED = 6  # candidates that are taken to the runtime at most

Candidate = tuple[tuple[float, ...], Space, dict[str, str], Mapping[str, float]]  # order, space, setting, values
Listener = Callable[[AccuracyReport], None]


class OutOfTime(Exception):
    """The time budget is used up."""


class Control:
    """One search: the candidates tried so far, the best of them, and what is written of them."""

    def __init__(
        self,
        prepared: Prepared,
        advanced: AdvancedAccuracyRestorerParameters,
        state: State,
        started: float,
        on_step: Listener | None,
    ):
        self.prepared, self.advanced, self.state = prepared, advanced, state
        self.started, self.on_step = started, on_step
        self.goals: tuple[Goal, ...] = ()
        self.steps: list[Step] = []
        self.tried: dict[str, float] = {}
        self.best: Candidate | None = None
        self.good: list[Candidate] = []  # those that reach the goals
        self.ranked: list[Ranked] = []
        self.seconds: dict[str, float] = {}
        self.runtime: dict[str, float] = {}
        self.notes: list[str] = []
        self.out_of_budget = False
        self._ranker: Ranker | None = None
        if state.foreign:
            self.note("the folder holds the state of another search (other model, data or options); starting anew")
        if state.resumed:
            known = "1 candidate is" if state.resumed == 1 else f"{state.resumed} candidates are"
            self.note(f"going on with a search that was broken off: {known} known already")

    # -------------------------------------------------------------------------------------------------------- the search

    def run(self, data: Dataset, function: Any, max_drop: float, drop_type: DropType) -> Model:
        """The whole job; see `quantize_with_accuracy_control`."""
        with self.timed("quantizing"):
            self.space = self.make_space(self.prepared)
        self.exact = self.space.float_model()
        names = [metric.name for metric in self.advanced.metrics]
        self.validation = open_validation(data, function, names, self.exact, self.prepared.options.batch_size)
        with self.timed("baseline"):
            self.goals = self.set_goals(max_drop, drop_type)
        status = MISSED
        try:
            if self.search():
                status = REACHED
        except OutOfTime:
            status = REACHED if self.reached else MISSED
            self.note(self.out_of_time())
        except KeyboardInterrupt as interrupt:
            self.tell(INTERRUPTED)
            if self.state.folder is not None:
                interrupt.add_note(
                    f"the best model so far is {self.state.folder / 'best.onnx'}; the same call goes on from here"
                )
            raise
        except JaxqError as error:
            if self.best is None:
                raise
            report = self.tell(MISSED)
            raise AccuracyError(f"the search was broken off: {error}", self.best_model(), report) from error
        return self.finish(status)

    def search(self) -> bool:
        """Looks for a setting that reaches the goals; returns whether there is one."""
        advanced = self.advanced
        start: Setting = {}
        revert = advanced.steps[-1]
        if self.trial(start, "all layers quantized") <= 0:
            return True
        self.refuse_hopeless()
        if advanced.convert_to_mixed_preset and self.prepared.options.resolved_preset is Preset.PERFORMANCE:
            self.convert_to_mixed()
            if self.trial(start, "asymmetric activations (preset mixed)") <= 0:
                return True
        if advanced.tune_hyperparams:
            start = self.tune()
            if self.trial(start, "the best of these") <= 0:
                return True
        most = min(advanced.max_num_iterations or len(self.space.layers), len(self.space.layers))
        if advanced.search is Search.POT:
            found = one_by_one(
                self.rank, revert, self.trial, start, self.trial(start, ""), most,
                undo=advanced.use_prev_if_drop_increase,
            )  # fmt: skip
            return found.reached
        found = bisect(self.rank(start), revert, self.trial, start, most, self.fewest())
        if not found.reached:
            return self.reached
        if advanced.ranking is not Ranking.ALONE:  # that is the same whatever else is reverted
            found = refine(found, self.rank, revert, self.trial, start)
        while (
            advanced.prune or advanced.repairs
        ):  # until nothing more can be put back: what one layer costs depends on the others
            relaxed = relax(found, self.costs(found.setting, start), advanced.steps, self.trial, start)
            if relaxed.setting == found.setting:
                break
            found = relaxed
        return True

    def costs(self, setting: Setting, start: Setting) -> list[str]:
        """The layers that a setting changes, the one that costs least when it is put back first."""
        place = "costs " + key(setting, self.preset)
        if place not in self.state.rankings:
            with self.timed("ranking"):
                self.state.rankings[place] = [list(each) for each in self.ranker().costs(setting, start)]
            self.state.save()
        return [layer for layer, _, _ in self.state.rankings[place]]

    def tune(self) -> Setting:
        """The best treatment of all layers alike: each range estimator that makes a difference, and no bias correction."""
        candidates: list[dict[str, str]] = [{}]
        seen = {_digest(self.space.base.encodings[self.space.first])}
        for step, name in ESTIMATORS.items():
            found = self.space.base.encodings.get(name)
            if found is not None and _digest(found) not in seen:  # symmetric ranges leave the lower end alone
                seen.add(_digest(found))
                candidates.append(dict.fromkeys(self.space.layers, step))
        candidates.append(dict.fromkeys(self.space.layers, UNCORRECTED))
        worths = [self.trial(each, f"all layers: {next(iter(each.values()), 'as they are')}") for each in candidates]
        return candidates[int(np.argmin(worths))]

    def rank(self, setting: Setting) -> list[str]:
        """The layers that the setting leaves quantized, the costliest first."""
        place = key(setting, self.preset)
        if place in self.state.rankings:
            self.ranked = [Ranked(*each) for each in self.state.rankings[place]]
        else:
            with self.timed("ranking"):
                ranker = self.ranker()
                if self.advanced.ranking is Ranking.ALONE:
                    self.ranked = ranker.alone(setting)
                elif self.advanced.ranking is Ranking.EXACT:
                    self.ranked = ranker.exactly(setting)
                else:
                    self.ranked = ranker.by_gradient(setting, self.advanced.confirm)
            self.state.rankings[place] = [list(each) for each in self.ranked]
            self.state.save()
        return [each.layer for each in self.ranked]

    def fewest(self) -> int:
        """How many of the ranked layers have to be reverted at least.

        What layers do alone adds up, about. Where that is more than 1, the outputs have as little to do with those of the float
        model as zeros would have: of no use in any metric, and no trial is spent on it.
        """
        if self.advanced.ranking is not Ranking.ALONE:
            return 1
        left = np.cumsum([each.gain for each in reversed(self.ranked)])[::-1]  # by the layers from each on
        return max(1, int(np.sum(left > 1)))

    def ranker(self) -> Ranker:
        """Ranks on the samples that quantization hurts most; made once for each preset."""
        if self._ranker is None:
            known = all(metric.baseline_value is not None for metric in self.advanced.metrics) and self.advanced.metrics
            part = self.advanced.metric_subset_ratio if known else 1.0
            for role, model in ((EXACT, self.exact), (QUANTIZED, self.space.candidate({}))):
                if role not in self.validation.seen:  # an earlier run has evaluated it, or its value was given
                    self.validation.evaluate(model, role)
            self._ranker = Ranker(
                self.space,
                self.ranking_subset(self.validation.pool(part)),
                self.advanced.steps[-1],
                self.prepared.options.batch_size,
                self.check_time,
            )
        return self._ranker

    def ranking_subset(self, pool: Pool) -> list[dict[str, Any]]:
        """The samples to rank on, those that quantization hurts most."""
        size = self.advanced.ranking_subset_size
        if self.advanced.ranking is not Ranking.ALONE:
            return pool.worst(size or SUBSET[self.advanced.ranking])
        if size is None:
            static, inputs = split_static(self.exact.graph, pool.feeds[0])
            shapes = tensor_shapes(self.exact, static, inputs)
            numbers = sum(shapes[name].size for name in self.exact.graph.outputs if name in shapes)
            size = min(SUBSET[Ranking.ALONE], max(2, ENOUGH_NUMBERS // max(numbers, 1)))
        return pool.worst(min(size, MOST_ALONE))

    # ------------------------------------------------------------------------------------------------------- preparations

    @property
    def preset(self) -> str:
        return self.prepared.options.resolved_preset.value

    def make_space(self, prepared: Prepared) -> Space:
        others: tuple[str, ...] = NAMED if "range_estimator" in self.advanced.repairs else ()
        others = tuple(ESTIMATORS.values()) if self.advanced.tune_hyperparams else others
        return Space(open_base(prepared, others, self.state))

    def convert_to_mixed(self) -> None:
        """Starts over with asymmetric activations."""
        options = replace(self.prepared.options, preset=Preset.MIXED)
        mixed = replace(self.prepared, options=options)
        plan = mixed.place()
        before = {
            name: value for name, value in self.prepared.model.params.items() if name not in self.prepared.plan.copies
        }
        plain = self.prepared.model.replace(graph=self.prepared.graph, params=before)
        self.prepared = replace(mixed, plan=plan, model=plan.prepare(plain))
        with self.timed("quantizing"):
            self.space = self.make_space(self.prepared)
        self.exact = self.space.float_model()
        self._ranker = None

    def set_goals(self, max_drop: float, drop_type: DropType) -> tuple[Goal, ...]:
        """Measures the float model, unless all of its values are given."""
        given = {metric.name: metric.baseline_value for metric in self.advanced.metrics}
        baseline = {name: value for name, value in given.items() if value is not None} or self.state.baseline
        if not baseline:
            if isinstance(self.validation, FunctionValidation):
                self.validation.warn_of_noise(self.exact)
            baseline = {name: score.value for name, score in self.validation.evaluate(self.exact, EXACT).items()}
            for name, value in baseline.items():
                if not np.isfinite(value):
                    raise ConfigError(f"{name} of the float model is {value}; there is nothing to compare with")
                if value < 0 and isinstance(self.validation, FunctionValidation):
                    self.note(
                        f"{name} of the float model is negative ({value:g}): higher still counts as better, and a relative drop "
                        "is taken of its absolute value"
                    )
            self.state.baseline = baseline
            self.state.save()
        directions = self.validation.directions
        goals = tuple(Goal(name, directions[name], value, max_drop, drop_type) for name, value in baseline.items())
        for goal in goals:
            goal.check()
        return goals

    def refuse_hopeless(self) -> None:
        """Raises AccuracyError if the float model itself misses the goals, which given baselines make possible."""
        if not any(metric.baseline_value is not None for metric in self.advanced.metrics):
            return
        values = {name: score.value for name, score in self.validation.evaluate(self.exact, EXACT).items()}
        missed = [goal for goal in self.goals if goal.excess(values[goal.metric]) > 0]
        if missed:
            goal = missed[0]
            raise AccuracyError(
                f"the float model itself is below the target: its {goal.metric} is {values[goal.metric]:.6g} on this data, while "
                f"baseline_value {goal.baseline:g} and max_drop {goal.max_drop:g} ask for more; check the data, or give the "
                "baseline that was measured on it",
                self.best_model(),
                self.tell(MISSED),
            )

    # --------------------------------------------------------------------------------------------------------- candidates

    def trial(self, setting: Setting, why: str) -> float:
        """Evaluates a candidate, once; returns how far it is from the goals."""
        place = key(setting, self.preset)
        if place in self.tried:
            return self.tried[place]
        known = self.state.trials.get(place)
        if known is None:
            self.check_time()
            began = time.monotonic()
            scores = self.validation.evaluate(self.space.candidate(setting), "" if setting else QUANTIZED)
            values = {name: score.value for name, score in scores.items()}
            seconds = time.monotonic() - began
            self.state.trials[place] = {"values": values, "why": why, "seconds": round(seconds, 3)}
        else:
            values, seconds = known["values"], known["seconds"]
        worth = excess(self.goals, values)
        self.tried[place] = worth
        drops = {goal.metric: goal.drop(values[goal.metric]) for goal in self.goals}
        floats = self.space.float_layers(setting)
        step = Step(why, dict(setting), values, drops, worth <= 0, floats, round(seconds, 3), known is not None)
        self.steps.append(step)
        cost = sum(1 + STEPS.index(each) for each in setting.values())
        order: tuple[float, ...] = (0, floats, cost, worth) if worth <= 0 else (1, worth, floats, cost)
        candidate = (order, self.space, dict(setting), values)
        if worth <= 0:
            self.good.append(candidate)
        if self.best is None or order < self.best[0]:
            self.best = candidate
            if self.state.folder is not None and known is None:
                save(self.best_model(), self.state.folder / "best.onnx")
        if known is None:
            self.state.save()
        self.tell(RUNNING)
        return worth

    def check_time(self) -> None:
        budget = self.advanced.time_budget
        if budget is not None and self.steps and time.monotonic() - self.started > budget:
            self.out_of_budget = True
            raise OutOfTime

    def out_of_time(self) -> str:
        """What the end of the time budget means for the user."""
        assert self.best is not None
        _, space, setting, _ = self.best
        found = (
            f"the best so far is within the limit with {space.float_layers(setting)} of {space.weight_layers} layers in float, "
            "perhaps more than needed"
        )
        if not self.reached:
            found = "none of them is within the limit"
        advice = "the same call with a larger time_budget goes on from here"
        if self.state.folder is None:
            advice = "give a larger time_budget; with intermediate_model_dir the same call then goes on from here"
        tried = f"{len(self.steps)} candidate{'' if len(self.steps) == 1 else 's'}"
        return f"the time budget of {self.advanced.time_budget:g} s is used up after {tried}: {found}; {advice}"

    @property
    def reached(self) -> bool:
        return self.best is not None and self.best[0][0] == 0

    def best_model(self) -> Model:
        """The best candidate, traced anew."""
        assert self.best is not None
        _, space, setting, values = self.best
        kept = dict(setting)
        record = {
            "jaxq.accuracy": json.dumps({goal.metric: [goal.baseline, values[goal.metric]] for goal in self.goals}),
            "jaxq.kept": json.dumps(kept),
        }
        return space.final(setting, record)

    # ---------------------------------------------------------------------------------------------------------- the end

    def finish(self, status: str) -> Model:
        """The best model, its metric in the runtime, and the last report."""
        with self.timed("runtime"):
            self.confirm()
        model = self.best_model()
        report = self.tell(status)
        if status == REACHED:
            return model
        goal = max(self.goals, key=lambda each: each.excess(report.values[each.metric]))
        raise AccuracyError(
            f"the accuracy target was not reached: {goal.metric} is {report.values[goal.metric]:.6g} at best, a drop of "
            f"{goal.drop(report.values[goal.metric]):.4g} from {goal.baseline:.6g} where {goal.max_drop:g} is allowed "
            f"({len(self.steps)} candidates, {report.float_layers} of {report.weight_layers} layers in float). Allow "
            f"{'more time, ' if self.out_of_budget else ''}a larger drop or more layers in float, or quantize with another "
            "preset or range estimator",
            model,
            report,
        )

    def confirm(self) -> None:
        """Takes the metric of the written file in ONNX Runtime, where that is installed.

        A search that stops at the edge of what is allowed finds, now and then, a candidate that is within it by luck: sums in
        another order put a few values on the other side of a rounding border, and the metric falls a little below. The next
        best candidates are then taken in turn; if none holds, the best one stays, with a note.
        """
        if importlib.util.find_spec("onnxruntime") is None:
            return
        chosen = self.best
        assert chosen is not None
        ordered = sorted(self.good, key=lambda each: each[0])[:CONFIRMED] or [chosen]
        for order, space, setting, values in ordered:
            self.best = (order, space, setting, values)
            try:
                found = in_runtime(self.validation, self.best_model())
            except JaxqError as error:
                self.note(f"the metric could not be taken in ONNX Runtime: {error}")
                break
            self.runtime = self.runtime or found
            missed = [goal for goal in self.goals if goal.excess(found[goal.metric]) > 0]
            if not missed or not self.good:
                self.runtime = found
                return
            goal = missed[0]
            self.note(
                f"in ONNX Runtime, {goal.metric} of the candidate with {space.float_layers(setting)} layers in float is "
                f"{found[goal.metric]:.6g}, a drop of {goal.drop(found[goal.metric]):.4g} where {goal.max_drop:g} is allowed; in "
                f"simulation {values[goal.metric]:.6g}"
            )
        self.best = chosen

    def note(self, text: str) -> None:
        """Something that the user should know: a warning, and a line of the report."""
        self.notes.append(text)
        warnings.warn(text, JaxqWarning, stacklevel=3)

    @contextlib.contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.monotonic() - began

    def tell(self, status: str) -> AccuracyReport:
        """The report as of now, to the listener and the folder."""
        kept: tuple[Kept, ...] = ()
        values: Mapping[str, float] = {}
        floats = 0
        if self.best is not None:
            _, space, setting, values = self.best
            kept, floats = tuple(self.kept(setting)), space.float_layers(setting)
        spent = {**self.seconds, "candidates": sum(step.seconds for step in self.steps if not step.resumed)}
        spent["all"] = time.monotonic() - self.started
        report = AccuracyReport(
            status, self.goals, values, self.runtime, floats, self.space.weight_layers, kept, tuple(self.steps),
            {name: round(value, 2) for name, value in spent.items()}, tuple(self.notes),
        )  # fmt: skip
        if self.state.folder is not None:
            from jaxq.files import write_text

            write_text(self.state.folder / "report.json", json.dumps(report.to_dict(), indent=1) + "\n")
        if self.on_step is not None:
            self.on_step(report)
        return report

    def kept(self, setting: Setting) -> Sequence[Kept]:
        """Each layer that is treated in a way of its own, with the reason."""
        places = {each.layer: (rank, each) for rank, each in enumerate(self.ranked, 1)}
        found = []
        for name, step in setting.items():
            rank, ranked = places.get(name, (None, None))
            without = self.tried.get(key({k: v for k, v in setting.items() if k != name}, self.preset))
            how = "measured" if ranked is not None and ranked.exact else "by gradient"
            if self.advanced.ranking is Ranking.ALONE:
                how = "quantized alone"
            why = "" if ranked is None else f"rank {rank}, gain {ranked.gain:.3g} ({how})"
            if without is not None and without > 0:
                why += ", and quantizing it misses the target" if why else "quantizing it misses the target"
            gain = None if ranked is None else ranked.gain
            found.append(Kept(name, self.space.layers[name].op, step, rank, gain, why or "reverted with others"))
        return found


def _digest(encodings: Mapping[str, QuantParams]) -> bytes:
    """The same for encodings with the same numbers."""
    arrays = encoding_arrays(encodings)
    return b"".join(repr(name).encode() + array.tobytes() for name, array in arrays.items())
