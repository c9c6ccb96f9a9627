"""The main job: a float model and calibration data in, a model with encodings out."""

from __future__ import annotations

import itertools
import numbers
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from jaxq.algorithms import Algorithm, run_pipeline
from jaxq.algorithms.bias_correction import BiasCorrection, bias_sites
from jaxq.algorithms.calibration import Calibration, IntegerBiases, RangeEstimator
from jaxq.algorithms.equalization import Equalization
from jaxq.collect import split_samples, tensor_shapes
from jaxq.data import DataCheck, Dataset
from jaxq.data.hashed import Hashed
from jaxq.errors import CalibrationError, ConfigError, JaxqWarning, ModelError, did_you_mean
from jaxq.fusion import add_missing_biases, fuse
from jaxq.model import Model, split_static
from jaxq.onnx_import import Source, load
from jaxq.placement import IgnoredScope, Plan, place_quantizers, quantized_nodes
from jaxq.progress import track
from jaxq.quantizer import PerTensor
from jaxq.split import split
from jaxq.targets import TARGETS, Target

FEW_SAMPLES = 10  # fewer are warned of


class Preset(StrEnum):
    """How activations are quantized: symmetric (performance) or asymmetric (mixed). Weights are symmetric in both."""

    PERFORMANCE = "performance"
    MIXED = "mixed"


class ModelType(StrEnum):
    """What kind of network it is, where that changes what is quantized."""

    TRANSFORMER = "transformer"


def quantize(
    model: Source,
    calibration_dataset: Iterable[Any],
    *,
    preset: Preset | str | None = None,
    target: str = "onnxruntime",
    subset_size: int = 300,
    range_estimator: RangeEstimator | str = RangeEstimator.MSE,
    bias_correction: bool = True,
    model_type: ModelType | str | None = None,
    ignored_scope: IgnoredScope | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> Model:
    """Quantizes a trained model to 8 bits, from samples without labels.

    Args:
      model: path, `onnx.ModelProto` or `Model`, in float.
      calibration_dataset: a `Dataset` or any iterable of batches: array, tuple of arrays, or {input name: array}. A batch
        along a free first axis counts as that many samples.
      preset: "performance" (symmetric activations), "mixed" (asymmetric), or None: what costs the target nothing more.
      target: the runtime that will execute the file; see `jaxq.targets`.
      subset_size: the number of samples used, the first ones.
      range_estimator: from statistics to the ranges of activations: "mse", "mean_minmax" (NNCF's default) or "minmax".
      bias_correction: whether to correct the biases for the mean error that rounding causes.
      model_type: "transformer" keeps additions, normalizations and the like in float; None finds out.
      ignored_scope: what stays in float.
      seed: written into the file; no step of this function draws random numbers yet.
      batch_size: samples run at a time, None to choose; changes nothing but, in small matrix products, the last bit of a sum.

    Returns:
      A `Model` whose calls simulate the integers; `jaxq.save` writes it as QDQ ONNX.

    Raises:
      ModelError: the model is already quantized, or has nothing to quantize.
      CalibrationError: no samples, or NaN or infinity in the data or in a tensor.
      InputError: the samples do not fit the model's inputs.
      ConfigError: an option is wrong, or something ignored matches nothing.
    """
    options = Options.of(
        preset=preset,
        target=target,
        subset_size=subset_size,
        range_estimator=range_estimator,
        bias_correction=bias_correction,
        model_type=model_type,
    )
    check_integer("seed", seed, at_least=0)
    if batch_size is not None:
        check_integer("batch_size", batch_size, at_least=1)
    scope = IgnoredScope() if ignored_scope is None else ignored_scope
    if not isinstance(scope, IgnoredScope):
        raise ConfigError(f"ignored_scope = {scope!r}; expected an IgnoredScope, e.g. IgnoredScope(names=['conv1'])")
    model = load(model)
    refuse_quantized(model)
    ignored = scope.select(model.graph)
    graph, params = fuse(model.graph, model.params)
    if bias_correction:
        graph, params = add_missing_biases(graph, params)
    model = model.replace(graph=graph, params=params)
    data = Samples(model, calibration_dataset, options.subset_size)
    plan = plan_for(model, data.first(), options, ignored)
    model = model.replace(graph=plan.graph)
    steps: list[Algorithm] = [
        Equalization(
            quantized=frozenset(plan.activations),
            one_scale=frozenset(w.name for w in plan.weights if isinstance(w.scheme.granularity, PerTensor)),
        ),
        Calibration(
            plan=plan,
            capacity=options.subset_size,
            estimator=options.estimator,
        ),
    ]
    if bias_correction:
        steps.append(BiasCorrection(sites=bias_sites(plan.graph, model.params, plan.nodes)))
    steps.append(IntegerBiases(plan))
    quantized = run_pipeline(steps, model, data, batch_size)
    return quantized.replace(metadata=quantized.metadata | data.record() | options.record(seed, ignored))


@dataclass(frozen=True)
class Options:
    """The checked options of `quantize`."""

    preset: Preset
    target: Target
    transformer: bool | None
    subset_size: int
    estimator: RangeEstimator
    bias_correction: bool

    @classmethod
    def of(
        cls,
        *,
        preset: str | None,
        target: str,
        subset_size: int,
        range_estimator: str,
        bias_correction: bool,
        model_type: str | None,
    ) -> Options:
        if not isinstance(target, str) or target not in TARGETS:
            known = f"known: {', '.join(sorted(TARGETS))}{did_you_mean(str(target), TARGETS)}"
            raise ConfigError(f"target = {target!r}; {known}")
        check_integer("subset_size", subset_size, at_least=1)
        chosen = TARGETS[target]
        preset_found = member(Preset, "preset", preset or chosen.default_preset)
        kind = None if model_type is None else member(ModelType, "model_type", model_type) is ModelType.TRANSFORMER
        estimator = member(RangeEstimator, "range_estimator", range_estimator)
        return cls(preset_found, chosen, kind, int(subset_size), estimator, bias_correction)

    def record(self, seed: int, ignored: Iterable[str]) -> dict[str, str]:
        """What the file says about how it was made."""
        return {
            "jaxq.preset": self.preset.value,
            "jaxq.target": self.target.name,
            "jaxq.range_estimator": self.estimator.value,
            "jaxq.bias_correction": str(self.bias_correction).lower(),
            "jaxq.model_type": ModelType.TRANSFORMER.value if self.transformer else "",
            "jaxq.subset_size": str(self.subset_size),
            "jaxq.ignored": " ".join(sorted(ignored)),
            "jaxq.seed": str(seed),
        }


def check_integer(key: str, value: object, *, at_least: int) -> None:
    """Refuses an option that is no integer (numpy's count too, booleans do not) or too small.

    Raises:
      ConfigError: the message shows the value and what was expected.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < at_least:
        raise ConfigError(f"{key} = {value!r}; expected an integer of at least {at_least}")


def member(kind: Any, key: str, value: str) -> Any:
    """The member of an enumeration that `value` is, or names.

    Raises:
      ConfigError: there is none; the message lists them, and names the nearest.
    """
    try:
        return kind(value)
    except ValueError:
        known = [each.value for each in kind]
        raise ConfigError(f"{key} = {value!r}; expected one of {known}{did_you_mean(str(value), known)}") from None


def refuse_quantized(model: Model) -> None:
    """Refuses a model that holds quantization operators or encodings: its float weights are gone."""
    found = quantized_nodes(model.graph)
    if found or model.encodings:
        where = f"{found[0]} and {len(found) - 1} more" if found else "it has encodings"
        raise ModelError(f"the model is already quantized ({where}); give the float model that it was made from")


class Samples:
    """The first `limit` calibration samples, as often as they are asked for; checked and hashed on the first full pass."""

    def __init__(self, model: Model, items: Iterable[Any], limit: int):
        self.model, self.limit = model, limit
        self.items = items if isinstance(items, Dataset) else Dataset(items)
        self.hashed: Hashed | None = None

    def _samples(self) -> Iterator[Mapping[str, Any]]:
        return itertools.islice(
            split_samples(self.model.inputs, self.items, self.model.graph.static_inputs), self.limit
        )

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        if self.hashed is None:
            return track(self._first_pass(), "calibrating")  # how many there are is not known yet
        return track(self._samples(), "calibrating", self.hashed.count)

    def _first_pass(self) -> Iterator[Mapping[str, Any]]:
        check = DataCheck(self._samples())
        hashed = Hashed(check)
        yield from hashed
        self.check, self.hashed = check, hashed  # a pass that was broken off has not seen them all

    def first(self) -> Mapping[str, Any]:
        """The first sample, without a pass over the others."""
        for feed in self._samples():
            return feed
        raise CalibrationError("the calibration data is empty; at least one sample is needed")

    def record(self) -> dict[str, str]:
        """What the file says about the data; warns of what is suspicious about it."""
        assert self.hashed is not None, "the samples have been passed over"
        doubts = self.check.warnings()
        if self.hashed.count < FEW_SAMPLES <= self.limit:
            doubts.append(f"{self.hashed.count} calibration sample(s) are few; some hundred are usual")
        for doubt in doubts:
            warnings.warn(doubt, JaxqWarning, stacklevel=3)
        return {"jaxq.calibration_samples": str(self.hashed.count), "jaxq.calibration_sha256": self.hashed.hexdigest}


def plan_for(model: Model, sample: Mapping[str, Any], options: Options, ignored: Iterable[str]) -> Plan:
    """Where the quantizers go, given what the tensors look like for one sample.

    Raises:
      ModelError: nothing can be quantized.
    """
    static, inputs = split_static(model.graph, sample)
    shapes = tensor_shapes(model, static, {name: np.asarray(value) for name, value in inputs.items()})
    dtypes = {name: shape.dtype.name for name, shape in shapes.items()}
    on_host = split(model.graph, model.params, static, inputs).host_nodes  # stay in float
    plan = place_quantizers(
        model.graph,
        model.params,
        dtypes,
        options.target,
        symmetric=options.preset is Preset.PERFORMANCE,
        ignored={*ignored, *on_host},
        transformer=options.transformer,
    )
    if not plan.nodes:
        kinds = ", ".join(sorted({node.op for _, node in model.graph.walk()}))
        raise ModelError(
            f"the model has nothing that target {options.target.name!r} computes in integers (its operators: {kinds}; "
            f"ignored nodes: {len(set(ignored))}); `jaxq inspect` says why for each operator"
        )
    return plan


__all__ = ["ModelType", "Preset", "quantize"]
