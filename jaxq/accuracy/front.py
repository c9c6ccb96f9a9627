"""Quantizes a model and keeps as few of its layers in float as a limit on the loss of accuracy demands."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from jaxq.accuracy.identity import identity_of
from jaxq.accuracy.options import AdvancedAccuracyRestorerParameters
from jaxq.accuracy.ranking import Rankings
from jaxq.accuracy.report import MISSED
from jaxq.accuracy.search import Proposal, restore
from jaxq.accuracy.space import Space, open_space
from jaxq.accuracy.store import Store, open_folder
from jaxq.accuracy.treatments import AS_PLANNED, RANGES, UNCORRECTED, Treatment
from jaxq.accuracy.trials import Listener, Trials
from jaxq.analysis.by_metric import open_validation
from jaxq.analysis.validation import EXACT, DropType, Goal, check_drop
from jaxq.checks import check_kind, member
from jaxq.data import Dataset
from jaxq.data.fingerprint import ReadOnce, digest_of
from jaxq.engine.model import Model
from jaxq.engine.programs import holding
from jaxq.errors import AccuracyError, ConfigError, Words, worded
from jaxq.graph.select import IgnoredScope
from jaxq.numerics.quantizer import to_arrays
from jaxq.onnx_io.load import Source
from jaxq.options import AdvancedQuantizationParameters, ModelType, Preset, QuantizeOptions, TargetDevice
from jaxq.pipeline import Prepared, planned, prepare

# What an option of `quantize` is called here.
ARGUMENTS = Words({("advanced_parameters",): ("advanced_quantization_parameters",)})


def quantize_with_accuracy_control(
    model: Source,
    calibration_dataset: Iterable[Any],
    validation_dataset: Iterable[Any],
    validation_fn: Callable[[Any, Iterable[Any]], Any] | str | None = None,
    *,
    max_drop: float = 0.01,
    drop_type: DropType | str = DropType.ABSOLUTE,
    preset: Preset | str | None = None,
    target_device: TargetDevice | str = "onnxruntime",
    subset_size: int | None = 300,
    fast_bias_correction: bool = False,
    model_type: ModelType | str | None = None,
    ignored_scope: IgnoredScope | None = None,
    advanced_quantization_parameters: AdvancedQuantizationParameters | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    advanced_accuracy_restorer_parameters: AdvancedAccuracyRestorerParameters | None = None,
    on_step: Listener | None = None,
) -> Model:
    """Quantizes a trained model so that a metric falls by no more than `max_drop`; layers that cost too much stay in float.

    Args:
      model, preset, target_device, subset_size, fast_bias_correction, model_type, ignored_scope, seed, batch_size: as for
        `quantize`.
      advanced_quantization_parameters: its `advanced_parameters`.
      calibration_dataset: as for `quantize`; it may be the same as the next.
      validation_dataset: the data on which the metric is taken. An iterable that can be passed over again, or a `Dataset`, whose
        `transform_func` makes the inputs while labels come from the item itself.
      validation_fn: `validation_fn(model, items)` gets a compiled callable and the items as they are, and returns a number, or
        (number, one number for each sample); higher is better. Or the name of a metric of `jaxq.analysis.metrics`, or
        "package.module:function"; then items are (inputs, label) or mappings with the key "label". None: no labels; the
        predicted class (cosine similarity, where outputs are no class scores) is compared with the float model's.
      max_drop: the largest drop allowed.
      drop_type: "absolute", or "relative" to the float model's value.
      advanced_accuracy_restorer_parameters: how to search.
      on_step: gets the `AccuracyReport` after every step; its last call has the final one.

    Returns:
      The quantized `Model`, in which the layers that had to be kept in float are.

    Raises:
      AccuracyError: no model within the drop was found, or the validation failed on a candidate; it has `.best` and `.report`.
      ConfigError: an option is wrong, or the validation function fails on the float model or returns no number.
      CalibrationError: the validation data is empty. And what `quantize` raises.
    """
    kind = member(DropType, "drop_type", drop_type)
    allowed = check_drop(max_drop, kind)
    advanced = advanced_accuracy_restorer_parameters or AdvancedAccuracyRestorerParameters()
    check_kind("advanced_accuracy_restorer_parameters", advanced, AdvancedAccuracyRestorerParameters)
    with worded(ARGUMENTS):
        options = QuantizeOptions(
            preset=preset,
            target_device=target_device,
            subset_size=subset_size,
            fast_bias_correction=fast_bias_correction,
            model_type=model_type,
            ignored_scope=IgnoredScope() if ignored_scope is None else ignored_scope,
            advanced_parameters=advanced_quantization_parameters or AdvancedQuantizationParameters(),
            seed=seed,
            batch_size=batch_size,
        )
    started = time.monotonic()
    folder = None if advanced.intermediate_model_dir is None else open_folder(advanced.intermediate_model_dir)
    with holding():
        with worded(ARGUMENTS):
            prepared = prepare(model, calibration_dataset, options)
        data = validation_dataset if isinstance(validation_dataset, Dataset) else Dataset(validation_dataset)
        names, free = [metric.name for metric in advanced.metrics], advanced.annotation_free
        store = Store()
        if folder is not None:
            read = ReadOnce(data)
            data = Dataset(read, data.transform_func, batch_axis=data.batch_axis)
            measures = names if validation_fn is None else [validation_fn]
            store = Store(folder, identity_of(prepared, measures, data.transform_func, read, free=free))
        validation = open_validation(data, validation_fn, names, prepared.model, batch_size, annotation_free=free)
        trials = Trials(validation, store, advanced, started, on_step)
        open_quantized(trials, prepared)
        exact = trials.space.float_model()
        validation.refer_to(exact)
        trials.goals = trials.timed("baseline", lambda: goals_of(trials, exact, allowed, kind))
        return trials.until_the_end(lambda: search(trials, prepared, exact))


def open_quantized(trials: Trials, prepared: Prepared) -> None:
    """Quantizes the model, and makes the space of its variants the one that is searched."""
    open_it = functools.partial(open_space, prepared, trials.advanced.estimators, trials.store)
    trials.space, trials.ranked = trials.timed("quantizing", open_it), []


def goals_of(trials: Trials, exact: Model, max_drop: float, drop_type: DropType) -> tuple[Goal, ...]:
    """Measures the float model, unless all of its values are given."""
    given = {metric.name: metric.baseline_value for metric in trials.advanced.metrics}
    baseline = {name: value for name, value in given.items() if value is not None} or trials.store.baseline
    if not baseline:
        baseline = {name: score.value for name, score in trials.validation.evaluate(exact, EXACT).items()}
        for name, value in baseline.items():
            if not math.isfinite(value):
                raise ConfigError(f"{name} of the float model is {value}; there is nothing to compare with")
            if value < 0 and not trials.validation.known:
                trials.store.note(
                    f"{name} of the float model is negative ({value:g}): higher still counts as better, and a relative drop "
                    "is taken of its absolute value"
                )
        trials.store.baseline = baseline
        trials.store.save()
    directions = trials.validation.directions
    goals = tuple(Goal(name, directions[name], value, max_drop, drop_type) for name, value in baseline.items())
    for goal in goals:
        goal.check()
    return goals


def search(trials: Trials, prepared: Prepared, exact: Model) -> None:
    """Looks for a setting that reaches the goals, and does as little as possible to few layers."""
    if trials.trial({}, "all layers quantized") <= 0:
        return
    refuse_hopeless(trials, exact)
    note_noise(trials, exact)
    advanced = trials.advanced
    if advanced.convert_to_mixed_preset and trials.space.base.preset == Preset.PERFORMANCE:
        open_quantized(trials, asymmetric(prepared))
        if trials.trial({}, "asymmetric activations (preset mixed)") <= 0:
            return
    space = trials.space
    alike = settings_alike(space) if advanced.tune_hyperparams else ()
    trials.run(restore(advanced, len(space.layers), Rankings(space, advanced, trials), alike))


def asymmetric(prepared: Prepared) -> Prepared:
    """The same with asymmetric activations."""
    mixed = replace(prepared, options=replace(prepared.options, preset=Preset.MIXED))
    plan, copies = mixed.place(), prepared.plan.copies
    params = {name: value for name, value in prepared.model.params.items() if name not in copies}
    return replace(mixed, plan=plan, model=planned(prepared.model.replace(graph=prepared.graph, params=params), plan))


def settings_alike(space: Space) -> list[Proposal]:
    """The treatments of all layers alike: as planned, each range estimator that makes a difference, and no bias correction."""
    found: dict[str, Treatment] = {}
    for treatment in (AS_PLANNED, *RANGES):  # where ranges are symmetric, an estimator's lower end is left alone
        encodings = space.base.encodings.get(treatment.estimator or "", space.first)
        found.setdefault(digest_of(to_arrays(encodings)), treatment)
    chosen = (*found.values(), UNCORRECTED)
    settings = [{} if each is AS_PLANNED else dict.fromkeys(space.layers, each) for each in chosen]
    return [(setting, f"all layers: {each.name}") for setting, each in zip(settings, chosen, strict=True)]


def refuse_hopeless(trials: Trials, exact: Model) -> None:
    """Raises AccuracyError if the float model itself misses the goals, which given baselines make possible."""
    if not trials.advanced.has_baseline:
        return
    values = {name: score.value for name, score in trials.validation.evaluate(exact, EXACT).items()}
    missed = [goal for goal in trials.goals if goal.excess(values[goal.metric]) > 0]
    if missed:
        goal = missed[0]
        raise AccuracyError(
            f"the float model itself is below the target: its {goal.metric} is {values[goal.metric]:.6g} on this data, while "
            f"baseline_value {goal.baseline:g} and max_drop {goal.max_drop:g} ask for more; check the data, or give the "
            "baseline that was measured on it",
            trials.best.model(),
            trials.tell(MISSED),
        )


def note_noise(trials: Trials, exact: Model) -> None:
    """Says so if the user's function gives the float model another value when a search begins than it did at first.

    Not below a hundredth of the drop that is allowed: a device may sum in another order each time.
    """
    (first, *others) = trials.tried.values()
    if trials.validation.known or others or first.step.resumed:  # then it was looked at already
        return
    trials.check_time()
    (goal,) = trials.goals
    again = trials.timed("baseline", lambda: trials.validation.evaluate(exact))[goal.metric].value
    if abs(goal.drop(again)) > goal.max_drop / 100:
        trials.store.note(
            f"validation_fn gave {goal.baseline:.6g} and {again:.6g} for the same model and data, a spread of "
            f"{abs(goal.baseline - again):.3g}: drops of this size mean nothing. Fix its seeds, or its order of samples"
        )
