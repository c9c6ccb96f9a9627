"""The model that the search starts from: quantized once, with everything that its variants are made of."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxq.accuracy.treatments import ESTIMATORS
from jaxq.algorithms import Algorithm, models_on_the_way
from jaxq.algorithms.bias_correction import BiasCorrection, FloatNetwork
from jaxq.engine.model import Model
from jaxq.numerics.quantizer import Name, QuantParams, from_arrays, to_arrays
from jaxq.pipeline import Prepared

ASKED_FOR = "as asked for"  # the name of the range estimator that the options give


@dataclass(frozen=True)
class Correction:
    """Bias correction for any variant of a model; samples, program and float network are those of all of them."""

    step: BiasCorrection
    data: Iterable[Mapping[str, Any]]
    known: FloatNetwork = field(default_factory=FloatNetwork)

    @functools.cached_property
    def samples(self) -> list[Mapping[str, Any]]:
        return list(itertools.islice(self.data, self.step.samples + self.step.checks))

    def __call__(self, model: Model) -> Mapping[str, Any]:
        """The params, with biases corrected for the rounding of this model."""
        return self.step.apply(model, {}, self.samples, self.known).params


@dataclass(frozen=True)
class Base:
    """Attributes:
    prepared: the float model, its plan of all quantizers, and the data.
    exact: params of the float model.
    corrected: those of its biases that bias correction has moved.
    encodings: name of a range estimator -> encodings of all activations; the first is the one asked for.
    weights: encodings of the weights.
    metadata: of the file.
    correction: corrects biases anew for each variant; None: they stay as they were corrected for all quantizers.
    """

    prepared: Prepared
    exact: Mapping[str, Any]
    corrected: Mapping[str, Any]
    encodings: Mapping[str, Mapping[str, QuantParams]]
    weights: Mapping[str, QuantParams]
    metadata: Mapping[str, str]
    correction: Correction | None

    @property
    def preset(self) -> str:
        """What it was calibrated for."""
        return self.prepared.options.resolved_preset.value

    def arrays(self) -> dict[Name, np.ndarray]:
        """Everything that is not in the prepared model."""
        given = self.prepared.model.params
        exact = {("exact", name): each for name, each in self.exact.items() if each is not given.get(name)}
        params = exact | {("corrected", name): each for name, each in self.corrected.items()}
        arrays: dict[Name, np.ndarray] = {name: np.asarray(value) for name, value in params.items()}
        for estimator, encodings in self.encodings.items():
            arrays |= to_arrays(encodings, "encoding", estimator)
        return arrays | to_arrays(self.weights, "weight")


def restored(prepared: Prepared, arrays: Mapping[Name, np.ndarray], metadata: Mapping[str, str]) -> Base:
    """The base that `Base.arrays` has taken apart."""

    def part(kind: str) -> dict[str, np.ndarray]:
        return {name[1]: value for name, value in arrays.items() if name[0] == kind and len(name) == 2}

    names = dict.fromkeys(name[1] for name in arrays if name[0] == "encoding")
    encodings = {name: from_arrays(arrays, "encoding", name) for name in names}
    exact = {**prepared.model.params, **part("exact")}
    weights = from_arrays(arrays, "weight")
    return Base(prepared, exact, part("corrected"), encodings, weights, metadata, correction_of(prepared))


def quantize_once(prepared: Prepared, estimators: Sequence[str] = ()) -> Base:
    """Calibrates in one pass over the data, whatever the number of estimators.

    Biases that are corrected anew for each variant are still exact.
    """
    others = [prepared.calibration(ESTIMATORS[name]) for name in estimators]
    fast = [each for each in prepared.correction() if not isinstance(each, BiasCorrection)]
    preserving, size = prepared.preserving(), prepared.options.batch_size
    steps: list[Algorithm | tuple[Algorithm, ...]] = [*preserving, (prepared.calibration(), *fast)]
    models, aside = models_on_the_way(steps, prepared.model, prepared.data, size, one_program=True, aside=others)
    exact, calibrated, corrected = (models[place] for place in (len(preserving), len(preserving) + 1, -1))

    def some(names: Iterable[str], encodings: Mapping[str, QuantParams]) -> dict[str, QuantParams]:
        return {name: encodings[name] for name in names if name in encodings}

    plan, moved = prepared.plan, corrected.params
    return Base(
        prepared,
        exact.params,
        {name: value for name, value in moved.items() if value is not exact.params[name]},
        {
            name: some(plan.activations, each.encodings)
            for name, each in zip((ASKED_FOR, *estimators), (calibrated, *aside), strict=True)
        },
        some([weight.name for weight in plan.weights], calibrated.encodings),
        dict(corrected.metadata) | prepared.record(corrected, stacklevel=4),
        correction_of(prepared),
    )


def correction_of(prepared: Prepared) -> Correction | None:
    """The bias correction that the options ask for, if it can be done for each variant."""
    steps = [each for each in prepared.correction() if isinstance(each, BiasCorrection)]
    return Correction(steps[0], prepared.data) if steps else None
