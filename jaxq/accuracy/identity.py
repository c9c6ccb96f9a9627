"""What has to be the same for a search to go on: model, options, the validation function, and all that was read of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxq.analysis.metrics import METRICS, find_metric
from jaxq.data.fingerprint import ReadOnce, digest_of, hidden_in, model_digest
from jaxq.data.functions import named_function
from jaxq.data.samples import Samples
from jaxq.pipeline import Prepared
from jaxq.version import __version__

Part = str | list[Any] | None  # as it stands in `state.json`; None where nothing depends on it yet


@dataclass(frozen=True)
class Identity:
    """What the values of a search depend on.

    The data are hashed while they are read for the work itself. Only where an earlier search is found, whose other parts are
    the same, they are read once more, which that search spares the calibration and the evaluation of the float model.

    Attributes:
      fixed: name -> digest, of what is known at once.
      calibration: the calibration samples.
      validation: the validation data.
      hidden: what values may depend on, and is not compared, in words.
    """

    fixed: Mapping[str, str]
    calibration: Samples
    validation: ReadOnce
    hidden: Sequence[str] = ()

    def to_dict(self) -> dict[str, Part]:
        """As far as it is known by now."""
        hashed = self.calibration.hashed
        calibration = None if hashed is None else hashed.hexdigest
        return {**self.fixed, "calibration data": calibration, "validation data": self.validation.read}

    def differences(self, stored: Mapping[str, Part]) -> list[str]:
        """The parts in which what `to_dict` gave once is another one."""
        found = [name for name, value in self.fixed.items() if stored.get(name) != value]
        if found:
            return found
        calibration, validation = stored.get("calibration data"), stored.get("validation data")
        if calibration is not None and self.calibration.hashed is None:
            for _ in self.calibration:  # hashes them
                pass
        if calibration is not None and calibration != self.to_dict()["calibration data"]:
            found.append("calibration data")
        if validation is not None and not self.validation.reads_as(list(validation)):
            found.append("validation data")
        return found


def identity_of(prepared: Prepared, measures: Sequence[Any], transform: Any, read: ReadOnce, *, free: bool) -> Identity:
    """The identity of a search.

    Args:
      measures: functions that evaluate models, or names of metrics.
      transform: makes inputs of an item of the validation data.
      read: the validation data.
      free: whether the float model's outputs stand in for labels.
    """
    named = [each for each in measures if isinstance(each, str) and find_metric(each).name not in METRICS]
    measured = [named_function(each) if each in named else each for each in measures]
    options, advanced = replace(prepared.options, batch_size=None), prepared.options.advanced_parameters
    estimators = (advanced.activations_range_estimator_params, advanced.weights_range_estimator_params)
    fixed = {
        "version of jaxq": __version__,
        "model": model_digest(prepared.graph, prepared.model.params),
        "options": digest_of(options, options.target, sorted(prepared.ignored)),
        "validation function": digest_of(measured, transform, free),
    }
    functions = (*measured, transform, *(getattr(each, "distribution", None) for each in estimators))
    hidden = [words for each in functions if callable(each) for words in hidden_in(each)]
    return Identity(fixed, prepared.data, read, hidden)
