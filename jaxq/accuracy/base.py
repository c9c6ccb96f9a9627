"""The model that the search starts from: quantized once, with everything that its variants need."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from jaxq.accuracy.space import QUANTILES, Base, Space
from jaxq.accuracy.state import State, encoding_arrays, encodings_from
from jaxq.algorithms import Algorithm, run_pipeline
from jaxq.algorithms.bias_correction import BiasCorrection, FloatNetwork
from jaxq.algorithms.calibration import Calibration
from jaxq.engine.model import Model
from jaxq.numerics.estimators import RangeEstimatorParametersSet
from jaxq.numerics.observers import Observer
from jaxq.numerics.quantizer import QuantParams
from jaxq.pipeline import Prepared

ASKED_FOR = "as asked for"  # the name of the range estimator that the options give


@dataclass
class Aside:
    """A step that leaves the model alone and keeps what a calibration would make of it; all of them share one pass."""

    calibration: Calibration
    found: dict[str, QuantParams] = field(default_factory=dict)

    def needs(self, model: Model) -> Mapping[str, Observer]:
        return self.calibration.needs(model)

    def apply(self, model: Model, stats: Mapping[str, Any], samples: Iterable[Mapping[str, Any]]) -> Model:
        self.found = dict(self.calibration.apply(model, stats).encodings)
        return model


@dataclass
class Keep:
    """A step that leaves the model alone and keeps it."""

    model: Model | None = None

    def needs(self, model: Model) -> Mapping[str, Observer]:
        return {}

    def apply(self, model: Model, stats: Mapping[str, Any], samples: Iterable[Mapping[str, Any]]) -> Model:
        self.model = model
        return model


def open_base(prepared: Prepared, estimators: tuple[str, ...], state: State) -> Base:
    """The base from the state's folder, or else by calibration; then it is written there.

    Args:
      estimators: names of range estimators that the search may use beside the one asked for.
    """
    preset = prepared.options.resolved_preset.value
    stored = state.load_base(preset)
    if stored is not None and all(("encoding", each) in {name[:2] for name in stored[0]} for each in estimators):
        return _restored(prepared, *stored)
    base = quantize_once(prepared, estimators)
    state.save_base(preset, _arrays(prepared, base), base.metadata)
    return base


def quantize_once(prepared: Prepared, estimators: tuple[str, ...] = ()) -> Base:
    """Calibrates, in one pass over the data whatever the number of estimators, and corrects biases."""
    chosen = {name: QUANTILES.get(name) or RangeEstimatorParametersSet.of(name) for name in estimators}
    others = {name: Aside(prepared.calibration(each)) for name, each in chosen.items()}
    before, calibrated = Keep(), Keep()
    fast = [each for each in prepared.correction() if not isinstance(each, BiasCorrection)]
    together: tuple[Algorithm, ...] = (before, *others.values(), prepared.calibration(), calibrated, *fast)
    steps: list[Algorithm | tuple[Algorithm, ...]] = [*prepared.preserving(), together]
    corrected = run_pipeline(steps, prepared.model, prepared.data, prepared.options.batch_size, one_program=True)
    assert before.model is not None and calibrated.model is not None, "every step has been applied"  # noqa: PT018
    exact, encodings = before.model.params, calibrated.model.encodings
    found: dict[str, Mapping[str, QuantParams]] = {ASKED_FOR: encodings}
    found |= {name: each.found for name, each in others.items()}
    base = _base(
        prepared,
        exact,
        {name: value for name, value in corrected.params.items() if value is not exact[name]},
        {name: {t: each[t] for t in prepared.plan.activations if t in each} for name, each in found.items()},
        {each.name: encodings[each.name] for each in prepared.plan.weights if each.name in encodings},
        dict(corrected.metadata) | prepared.record(corrected, stacklevel=4),
    )
    return base if base.correct is None else with_corrected_biases(prepared, base)


def with_corrected_biases(prepared: Prepared, base: Base) -> Base:
    """The base after bias correction for all quantizers: by the program, and beside the float network, of any candidate."""
    (correction,) = _corrections(prepared)
    space = Space(replace(base, corrected={site.bias: base.exact[site.bias] for site in correction.sites}))
    found = space.correction(space.parts({}))
    return replace(
        base, corrected={name: each for name, each in found.items() if not np.array_equal(each, base.exact[name])}
    )


def _corrections(prepared: Prepared) -> list[BiasCorrection]:
    return [each for each in prepared.correction() if isinstance(each, BiasCorrection)]


def _base(prepared: Prepared, exact: Any, moved: Any, encodings: Any, weights: Any, metadata: Any) -> Base:
    corrections = _corrections(prepared)
    feeds: list[Mapping[str, Any]] = []
    known = FloatNetwork()  # that of every candidate

    def correct(model: Model) -> Mapping[str, Any]:
        if not feeds:
            feeds.extend(itertools.islice(prepared.data, corrections[0].samples + corrections[0].checks))
        return corrections[0].apply(model, {}, feeds, known).params

    return Base(
        prepared.graph,
        prepared.plan,
        lambda ignored: prepared.place(ignored),
        exact,
        moved,
        encodings,
        weights,
        metadata,
        correct if corrections else None,
    )


def _arrays(prepared: Prepared, base: Base) -> dict[tuple[str, ...], np.ndarray]:
    """Everything in the base that is not in the model itself."""
    given = prepared.model.params
    arrays: dict[Any, np.ndarray] = {
        ("exact", name): np.asarray(value) for name, value in base.exact.items() if value is not given.get(name)
    }
    arrays |= {("corrected", name): np.asarray(value) for name, value in base.corrected.items()}
    for estimator, encodings in base.encodings.items():
        arrays |= encoding_arrays(encodings, "encoding", estimator)
    return arrays | encoding_arrays(base.weights, "weight")


def _restored(prepared: Prepared, arrays: dict[tuple[str, ...], np.ndarray], metadata: Any) -> Base:
    def part(kind: str) -> dict[str, np.ndarray]:
        return {name[1]: value for name, value in arrays.items() if name[0] == kind and len(name) == 2}

    names = dict.fromkeys(name[1] for name in arrays if name[0] == "encoding")
    return _base(
        prepared,
        {**prepared.model.params, **part("exact")},
        part("corrected"),
        {name: encodings_from(arrays, "encoding", name) for name in names},
        encodings_from(arrays, "weight"),
        metadata,
    )
