"""The model that the search starts from: quantized once, with everything that its variants need."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxq.accuracy.space import Base
from jaxq.accuracy.state import State, encoding_arrays, encodings_from
from jaxq.algorithms import run_pipeline
from jaxq.algorithms.calibration import RangeEstimator
from jaxq.collect import collect
from jaxq.model import Model
from jaxq.quantize import Prepared


def open_base(
    prepared: Prepared, estimators: tuple[RangeEstimator, ...], seed: int, batch_size: int | None, state: State
) -> Base:
    """The base from the state's folder, or else by calibration; then it is written there."""
    preset = prepared.options.preset.value
    stored = state.load_base(preset)
    if stored is not None and all(("encoding", each.value) in {name[:2] for name in stored[0]} for each in estimators):
        return _restored(prepared, estimators, *stored)
    base = quantize_once(prepared, estimators, seed, batch_size)
    state.save_base(preset, _arrays(prepared, base), base.metadata)
    return base


def quantize_once(
    prepared: Prepared, estimators: tuple[RangeEstimator, ...], seed: int, batch_size: int | None
) -> Base:
    """Calibrates; several range estimators share one pass over the data.

    Args:
      estimators: the one asked for, then others whose ranges the search may use.
    """
    exact = run_pipeline(prepared.preserving(), prepared.model, prepared.data, batch_size)
    together = prepared.calibration(RangeEstimator.MSE if len(estimators) > 1 else estimators[0])
    stats = collect(exact, [together.needs(exact)], prepared.data, batch_size=batch_size)[0]
    calibrated: dict[str, Model] = {}
    for each in estimators:
        simple = together.estimator is RangeEstimator.MSE and each is not RangeEstimator.MSE
        own = {name: state[0] for name, state in stats.items()} if simple else stats
        calibrated[each.value] = prepared.calibration(each).apply(exact, own)
    first = calibrated[estimators[0].value]
    corrected = run_pipeline(prepared.correction(), first, prepared.data, batch_size)
    moved = {name: value for name, value in corrected.params.items() if value is not exact.params[name]}
    return _base(
        prepared,
        exact.params,
        moved,
        {
            name: {tensor: model.encodings[tensor] for tensor in prepared.plan.activations if tensor in model.encodings}
            for name, model in calibrated.items()
        },
        {weight.name: first.encodings[weight.name] for weight in prepared.plan.weights},
        dict(first.metadata) | prepared.record(seed),
    )


def _base(prepared: Prepared, exact: Any, moved: Any, encodings: Any, weights: Any, metadata: Any) -> Base:
    return Base(
        prepared.graph,
        prepared.plan,
        lambda ignored: prepared.place(ignored),
        exact,
        moved,
        encodings,
        weights,
        metadata,
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


def _restored(
    prepared: Prepared, estimators: tuple[RangeEstimator, ...], arrays: dict[tuple[str, ...], np.ndarray], metadata: Any
) -> Base:
    def part(kind: str) -> dict[str, np.ndarray]:
        return {name[1]: value for name, value in arrays.items() if name[0] == kind and len(name) == 2}

    return _base(
        prepared,
        {**prepared.model.params, **part("exact")},
        part("corrected"),
        {each.value: encodings_from(arrays, "encoding", each.value) for each in estimators},
        encodings_from(arrays, "weight"),
        metadata,
    )
