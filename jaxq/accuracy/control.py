"""One search from the model to the best candidate: what is tried, in which order, and how it ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from jaxq.accuracy.base import open_base
from jaxq.accuracy.by_function import FunctionValidation
from jaxq.accuracy.by_metric import MetricValidation
from jaxq.accuracy.candidates import Candidate, Candidates
from jaxq.accuracy.goals import Goal
from jaxq.accuracy.journal import Journal, Listener
from jaxq.accuracy.open_validation import open_validation
from jaxq.accuracy.options import AdvancedAccuracyRestorerParameters, DropType, Ranking, Search
from jaxq.accuracy.remembered_rankings import Rankings
from jaxq.accuracy.report import BROKEN_OFF, INTERRUPTED, MISSED, REACHED, RUNNING, AccuracyReport, Kept
from jaxq.accuracy.search import bisect, one_by_one, put_back, refine, repair
from jaxq.accuracy.space import ESTIMATORS, HOLDING, NAMED, UNCORRECTED, Setting, Space
from jaxq.accuracy.state import State, encoding_arrays, key
from jaxq.accuracy.validation import EXACT
from jaxq.data import Dataset
from jaxq.engine.model import Model
from jaxq.errors import AccuracyError, ConfigError, JaxqError
from jaxq.numerics.quantizer import QuantParams
from jaxq.options import Preset
from jaxq.pipeline import Prepared


class OutOfTime(Exception):
    """The time budget is used up."""


class Control:
    """One search; see `quantize_with_accuracy_control`.

    Args:
      prepared: the float model and its calibration data.
      advanced: how to search.
      state: what earlier runs have found out.
      started: `time.monotonic()` at the start.
      on_step: gets the report after each candidate.
    """

    def __init__(
        self,
        prepared: Prepared,
        advanced: AdvancedAccuracyRestorerParameters,
        state: State,
        started: float,
        on_step: Listener | None,
    ):
        self.prepared, self.advanced, self.state = prepared, advanced, state
        self.journal = Journal(started, state, on_step)
        state.note = self.journal.note
        self.out_of_budget = False
        self.noise_is_known = bool(state.trials)  # looked at by an earlier run
        if state.found:
            self.journal.note(state.found)

    # -------------------------------------------------------------------------------------------------------- the search

    def run(self, data: Dataset, function: Any, max_drop: float, drop_type: DropType) -> Model:
        """The whole job."""
        names = [metric.name for metric in self.advanced.metrics]
        self.validation = open_validation(
            data, function, names, self.prepared.model, self.prepared.options.batch_size,
            annotation_free=self.advanced.annotation_free,
        )  # fmt: skip
        self.open_space()
        if isinstance(self.validation, MetricValidation) and self.validation.reference is not None:
            self.validation.reference = self.exact  # a candidate: it needs no program of its own
        with self.journal.timed("baseline"):
            self.goals = self.set_goals(max_drop, drop_type)
        self.candidates = Candidates(self.validation, self.goals, self.state, self.journal, self.check_time)
        self.rankings = self.open_rankings()
        try:
            self.search_in_time()
            return self.finish()
        except KeyboardInterrupt as interrupt:
            self.tell(INTERRUPTED)
            if self.state.folder is None:
                interrupt.add_note("nothing is kept of the search: that takes a folder, intermediate_model_dir")
            elif self.state.best:
                interrupt.add_note(
                    f"the best model so far is {self.state.folder / 'best.onnx'}; the same call goes on from here"
                )
            raise
        except AccuracyError:
            raise
        except JaxqError as error:
            if self.candidates.best is None:
                raise
            report = self.tell(BROKEN_OFF)
            so_far = "is within the limit" if self.reached else "misses the limit"
            again = "" if self.state.folder is None else "; the same call goes on from here"
            raise AccuracyError(
                f"the search was broken off: {error}; the best candidate so far {so_far}{again}",
                self.best.model(),
                report,
            ) from error

    def search_in_time(self) -> None:
        """Searches until there is a candidate whose file is within the limit, too, or nothing is left to try, or no time."""
        try:
            self.search()
            if self.reached and not self.candidates.confirm():
                self.journal.note(
                    "no candidate that is within the limit in simulation is so in ONNX Runtime; the search goes on, with the "
                    "files of such candidates in ONNX Runtime"
                )
                self.candidates.in_doubt = True
                self.search()
        except OutOfTime:
            self.out_of_budget = True
            self.candidates.confirm()
            self.journal.note(self.out_of_time())

    def search(self) -> None:
        """Looks for a setting that reaches the goals, and does as little as possible to few layers."""
        advanced = self.advanced
        start: Setting = {}
        revert = advanced.steps[-1]
        if self.trial(start, "all layers quantized") <= 0:
            return
        self.refuse_hopeless()
        self.note_noise()
        if advanced.convert_to_mixed_preset and self.prepared.options.resolved_preset is Preset.PERFORMANCE:
            self.convert_to_mixed()
            if self.trial(start, "asymmetric activations (preset mixed)") <= 0:
                return
        if advanced.tune_hyperparams:
            start = self.tune()
            if self.trial(start, "the best of these") <= 0:
                return
        layers = len(self.space.layers)
        if advanced.search is Search.POT:
            one_by_one(
                self.rankings.rank, revert, self.trial, start, self.trial(start, ""),
                advanced.max_num_iterations or 2 * layers,  # one that is undone counts, but never two in a row are
                undo=advanced.use_prev_if_drop_increase,
            )  # fmt: skip
            return
        most = min(advanced.max_num_iterations or layers, layers)
        found = bisect(self.rankings.rank(start), revert, self.trial, start, most, self.rankings.fewest())
        if not found.reached:
            return
        if advanced.ranking is not Ranking.ALONE:  # that is the same whatever else is reverted
            found = refine(found, self.rankings.rank, revert, self.trial, start)
        while advanced.prune:  # until nothing more can be put back: what one layer costs depends on the others
            fewer = put_back(found, self.rankings.costs(found.setting, start), self.trial, start)
            if fewer.setting == found.setting:
                break
            found = fewer
        if advanced.repairs:
            repair(found, self.rankings.costs(found.setting, start), advanced.steps, self.trial)

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

    def trial(self, setting: Setting, why: str) -> float:
        """Evaluates a candidate, once; returns how far it is from the goals."""
        steps = len(self.journal.steps)
        worth = self.candidates.trial(self.space, self.preset, setting, why)
        if len(self.journal.steps) > steps:
            self.tell(RUNNING)
        return worth

    def check_time(self) -> None:
        """Raises OutOfTime when the time budget is used up, but not before one candidate is known."""
        budget = self.advanced.time_budget
        if budget is not None and self.journal.steps and self.journal.elapsed > budget:
            raise OutOfTime

    # ------------------------------------------------------------------------------------------------------- preparations

    @property
    def preset(self) -> str:
        return self.prepared.options.resolved_preset.value

    def open_space(self) -> None:
        """Quantizes the model, and with it opens the space of its variants."""
        others: tuple[str, ...] = NAMED if "range_estimator" in self.advanced.repairs else ()
        if "int16_activations" in self.advanced.repairs:
            others = tuple(dict.fromkeys((*others, HOLDING)))
        others = tuple(ESTIMATORS.values()) if self.advanced.tune_hyperparams else others
        with self.journal.timed("quantizing"):
            self.space = Space(open_base(self.prepared, others, self.state))
        self.exact = self.space.float_model()

    def open_rankings(self) -> Rankings:
        return Rankings(
            self.space, self.preset, self.advanced, self.validation, self.state, self.journal,
            self.prepared.options.batch_size, self.check_time,
        )  # fmt: skip

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
        self.open_space()
        self.rankings = self.open_rankings()

    def set_goals(self, max_drop: float, drop_type: DropType) -> tuple[Goal, ...]:
        """Measures the float model, unless all of its values are given."""
        given = {metric.name: metric.baseline_value for metric in self.advanced.metrics}
        baseline = {name: value for name, value in given.items() if value is not None} or self.state.baseline
        if not baseline:
            baseline = {name: score.value for name, score in self.validation.evaluate(self.exact, EXACT).items()}
            for name, value in baseline.items():
                if not np.isfinite(value):
                    raise ConfigError(f"{name} of the float model is {value}; there is nothing to compare with")
                if value < 0 and isinstance(self.validation, FunctionValidation):
                    self.journal.note(
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
                self.best.model(),
                self.tell(MISSED),
            )

    def note_noise(self) -> None:
        """Says so if the user's function gives the float model another value when a search begins than it did at first.

        Not below a hundredth of the drop that is allowed: a device may sum in another order each time.
        """
        if not isinstance(self.validation, FunctionValidation) or self.noise_is_known:
            return
        self.check_time()
        self.noise_is_known = True
        (goal,) = self.goals
        with self.journal.timed("baseline"):
            again = self.validation.evaluate(self.exact)[goal.metric].value
        if abs(goal.drop(again)) > goal.max_drop / 100:
            self.journal.note(
                f"validation_fn gave {goal.baseline:.6g} and {again:.6g} for the same model and data, a spread of "
                f"{abs(goal.baseline - again):.3g}: drops of this size mean nothing. Fix its seeds, or its order of samples"
            )

    # ---------------------------------------------------------------------------------------------------------- the end

    @property
    def reached(self) -> bool:
        return self.candidates.best is not None and self.candidates.best.reached

    @property
    def best(self) -> Candidate:
        """The best candidate so far; there is one from the first trial on."""
        assert self.candidates.best is not None, "a candidate was evaluated"
        return self.candidates.best

    def finish(self) -> Model:
        """The best model, its metric in the runtime, and the last report."""
        self.candidates.measure(self.best)
        model = self.best.model()
        self.state.finished = not self.out_of_budget
        if self.reached and self.best.float_layers == self.best.space.weight_layers > 0:
            self.journal.note(
                "the limit is kept with every layer in float only; allow a larger drop, or give more bits or a scale for each "
                "channel"
            )
        report = self.tell(REACHED if self.reached else MISSED)
        if self.reached:
            return model
        found = [(goal, values[goal.metric]) for goal in self.goals for values in self.best.known]
        goal, value = max(found, key=lambda each: each[0].excess(each[1]))
        raise AccuracyError(
            f"the accuracy target was not reached: {goal.metric} is {value:.6g} at best, a drop of "
            f"{goal.drop(value):.4g} from {goal.baseline:.6g} where {goal.max_drop:g} is allowed "
            f"({len(report.steps)} candidates, {report.float_layers} of {report.weight_layers} layers in float). Allow "
            f"{'more time, ' if self.out_of_budget else ''}a larger drop or more layers in "
            "float, or quantize with another preset or range estimator",
            model,
            report,
        )

    def out_of_time(self) -> str:
        """What the end of the time budget means for the user."""
        best = self.best
        found = (
            f"the best so far is within the limit with {best.float_layers} of {best.space.weight_layers} layers in float, "
            "perhaps more than needed"
        )
        if not best.reached:
            found = "none of them is within the limit"
        advice = "the same call with a larger time_budget goes on from here"
        if self.state.folder is None:
            advice = "give a larger time_budget; with intermediate_model_dir the same call then goes on from here"
        count = len(self.journal.steps)
        tried = f"{count} candidate{'' if count == 1 else 's'}"
        return f"the time budget of {self.advanced.time_budget:g} s is used up after {tried}: {found}; {advice}"

    def tell(self, status: str) -> AccuracyReport:
        """The report as of now, to the listener and the folder, which has the best model where the search ends."""
        if status != RUNNING:
            self.candidates.keep_best()
        best = self.candidates.best
        if best is None:
            return self.journal.publish(status, self.goals, {}, {}, (0, self.space.weight_layers), ())
        layers = best.float_layers, best.space.weight_layers
        return self.journal.publish(
            status, self.goals, best.values, best.runtime or {}, layers, tuple(self.kept(best.setting))
        )

    def kept(self, setting: Setting) -> Sequence[Kept]:
        """Each layer that is treated in a way of its own, with the reason."""
        places = {each.layer: (rank, each) for rank, each in enumerate(self.rankings.last, 1)}
        found = []
        for name, step in setting.items():
            rank, ranked = places.get(name, (None, None))
            without = self.candidates.tried.get(key({k: v for k, v in setting.items() if k != name}, self.preset))
            how = "measured" if ranked is not None and ranked.exact else "by gradient"
            if self.advanced.ranking is Ranking.ALONE:
                how = "quantized alone"
            why = "" if ranked is None else f"rank {rank}, gain {ranked.gain:.3g} ({how})"
            if without is not None and not without.reached:
                why += ", and quantizing it misses the target" if why else "quantizing it misses the target"
            gain = None if ranked is None else ranked.gain
            found.append(Kept(name, self.space.layers[name].op, step, rank, gain, why or "reverted with others"))
        return found


def _digest(encodings: Mapping[str, QuantParams]) -> bytes:
    """The same for encodings with the same numbers."""
    arrays = encoding_arrays(encodings)
    return b"".join(repr(name).encode() + array.tobytes() for name, array in arrays.items())
