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
from jaxq.graph import Graph
from jaxq.model import Model, split_static
from jaxq.onnx_import import Source, load
from jaxq.placement import IgnoredScope, Plan, place_quantizers, quantized_nodes
from jaxq.progress import track
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
    prepared = prepare(model, calibration_dataset, options, scope)
    quantized = run_pipeline(prepared.steps(), prepared.model, prepared.data, batch_size)
    return quantized.replace(metadata=quantized.metadata | prepared.record(seed))


@dataclass(frozen=True)
class Prepared:
    """A float model with the plan of its quantizers, and the data to calibrate them with.

    Attributes:
      model: in float, rewritten for quantization; its graph is that of the plan.
      graph: the same before any tensor got a second name for quantized readers.
      dtypes: of every tensor that is made when it runs.
      ignored: names of the nodes that the user keeps in float.
    """

    model: Model
    graph: Graph
    plan: Plan
    dtypes: Mapping[str, str]
    data: Samples
    options: Options
    ignored: frozenset[str]

    def place(self, ignored: Iterable[str] = ()) -> Plan:
        """The plan when more nodes stay in float."""
        return place(self.graph, self.model.params, self.dtypes, self.options, self.ignored.union(ignored))

    def preserving(self) -> list[Algorithm]:
        """The steps that leave the function of the float model as it is."""
        return [Equalization(quantized=frozenset(self.plan.activations))]

    def calibration(self, estimator: RangeEstimator) -> Calibration:
        """The step that sets the quantizers of activations and weights."""
        return Calibration(plan=self.plan, capacity=self.options.subset_size, estimator=estimator)

    def correction(self) -> list[Algorithm]:
        """The steps that move biases."""
        if not self.options.bias_correction:
            return []
        return [BiasCorrection(sites=bias_sites(self.plan.graph, self.model.params, self.plan.nodes))]

    def steps(self) -> list[Algorithm]:
        """All steps, in order."""
        calibration = self.calibration(self.options.estimator)
        return [*self.preserving(), calibration, *self.correction(), IntegerBiases(self.plan)]

    def record(self, seed: int) -> dict[str, str]:
        """What the file says about how it was made; warns of what is suspicious about the data."""
        return self.data.record(stacklevel=4) | self.options.record(seed, self.ignored)


def prepare(source: Source, data: Iterable[Any], options: Options, scope: IgnoredScope) -> Prepared:
    """Everything of `quantize` that comes before the first pass over the data; raises what `quantize` does."""
    model = load(source)
    refuse_quantized(model)
    ignored = scope.select(model.graph)
    graph, params = fuse(model.graph, model.params)
    if options.bias_correction:
        graph, params = add_missing_biases(graph, params)
    model = model.replace(graph=graph, params=params)
    samples = Samples(model, data, options.subset_size)
    dtypes = tensor_dtypes(model, samples.first())
    plan = place(graph, params, dtypes, options, ignored)
    refuse_empty(plan, graph, options, ignored)
    return Prepared(model.replace(graph=plan.graph), graph, plan, dtypes, samples, options, ignored)


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
    """The first `limit` calibration samples, as often as they are asked for; checked and hashed on the first pass."""

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
            self.check = DataCheck(self._samples())
            self.hashed = Hashed(self.check)
            return track(self.hashed, "calibrating")  # how many there are is not known yet
        return track(self._samples(), "calibrating", self.hashed.count)

    def first(self) -> Mapping[str, Any]:
        """The first sample, without a pass over the others."""
        for feed in self._samples():
            return feed
        raise CalibrationError("the calibration data is empty; at least one sample is needed")

    def record(self, stacklevel: int = 3) -> dict[str, str]:
        """What the file says about the data; warns of what is suspicious about it."""
        assert self.hashed is not None, "the samples have been passed over"
        doubts = self.check.warnings()
        if self.hashed.count < FEW_SAMPLES <= self.limit:
            doubts.append(f"{self.hashed.count} calibration sample(s) are few; some hundred are usual")
        for doubt in doubts:
            warnings.warn(doubt, JaxqWarning, stacklevel=stacklevel)
        return {"jaxq.calibration_samples": str(self.hashed.count), "jaxq.calibration_sha256": self.hashed.hexdigest}


def tensor_dtypes(model: Model, sample: Mapping[str, Any]) -> dict[str, str]:
    """The dtype name of every tensor that is made when the model runs on the sample."""
    static, inputs = split_static(model.graph, sample)
    shapes = tensor_shapes(model, static, {name: np.asarray(value) for name, value in inputs.items()})
    return {name: shape.dtype.name for name, shape in shapes.items()}


def place(
    graph: Graph, params: Mapping[str, Any], dtypes: Mapping[str, str], options: Options, ignored: Iterable[str]
) -> Plan:
    """Where the quantizers go, by the options."""
    return place_quantizers(
        graph,
        params,
        dtypes,
        options.target,
        symmetric=options.preset is Preset.PERFORMANCE,
        ignored=ignored,
        transformer=options.transformer,
    )


def refuse_empty(plan: Plan, graph: Graph, options: Options, ignored: Iterable[str]) -> None:
    """Raises ModelError if the plan quantizes nothing."""
    if not plan.nodes:
        kinds = ", ".join(sorted({node.op for _, node in graph.walk()}))
        raise ModelError(
            f"the model has nothing that target {options.target.name!r} computes in integers (its operators: {kinds}; "
            f"ignored nodes: {len(set(ignored))}); `jaxq inspect` says why for each operator"
        )


__all__ = ["ModelType", "Preset", "quantize"]
