"""What `jaxq.quantize` does, step by step: load, fuse, place, then the list of algorithms, each a switch."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxq.algorithms import Algorithm, models_on_the_way, run_pipeline
from jaxq.algorithms.bias_correction import BiasCorrection, bias_sites
from jaxq.algorithms.calibration import Calibration, IntegerBiases
from jaxq.algorithms.channel_alignment import ChannelAlignment
from jaxq.algorithms.equalization import Equalization
from jaxq.algorithms.fast_bias_correction import FastBiasCorrection
from jaxq.algorithms.float_types import as_declared, in_float32, to_replace, without_needless_casts
from jaxq.algorithms.smooth_quant import OFF, SmoothQuant
from jaxq.data.samples import Samples
from jaxq.engine.model import Model
from jaxq.engine.programs import holding
from jaxq.engine.traced import Signature, Traces, signatures, untaken_nodes
from jaxq.errors import CalibrationError, InputError, JaxqWarning, ModelError, about, inside, worded
from jaxq.graph.fusion import add_missing_biases, fuse
from jaxq.graph.ir import Graph, Node, in_loops
from jaxq.graph.passes import keep_outputs_exact
from jaxq.graph.select import IgnoredScope, stand_ins
from jaxq.numerics.estimators import RangeEstimatorParameters, RangeEstimatorParametersSet
from jaxq.numerics.quantizer import PerTensor
from jaxq.numerics.weights import refuse_not_finite
from jaxq.onnx_io.load import Source, load
from jaxq.options import (
    ADVANCED,
    AdvancedQuantizationParameters,
    ModelType,
    Preset,
    QuantizeOptions,
    TargetDevice,
)
from jaxq.placement.choose import DOUBLES, IN_LOOP
from jaxq.placement.own_biases import own_biases
from jaxq.placement.place import Plan, is_transformer, place_quantizers, quantized_nodes
from jaxq.placement.schemes import QuantizationParameters, type_name, updated
from jaxq.placement.targets import Target
from jaxq.placement.targets.installed import in_words, installed_version, limits_of

ACTIVATIONS = RangeEstimatorParametersSet.MSE  # the default estimators
WEIGHTS = RangeEstimatorParametersSet.MINMAX
IN_FLOAT32 = "jaxq.in_float32"  # in the metadata: the types in whose place the model computes in float32

OF_THE_DATA = about("calibration_dataset", kinds=(CalibrationError, InputError))


@dataclass(frozen=True)
class Prepared:
    """A float model with the plan of its quantizers, and the data to calibrate them with.

    Attributes:
      model: in float, rewritten for quantization; its graph is that of the plan.
      graph: the same before any tensor got a second name for quantized readers.
      dtypes: of every tensor that is made when it runs.
      ignored: names of the nodes that the user keeps in float.
      on_host: names of the nodes that no compiled program runs: those behind it (`jaxq.engine.partition`), and in branches
        that no sample takes. They stay in float.
      untaken: names of the layers in branches that no sample takes, which stay in float.
    """

    model: Model
    graph: Graph
    plan: Plan
    dtypes: Mapping[str, str]
    data: Samples
    options: QuantizeOptions
    ignored: frozenset[str]
    on_host: frozenset[str]
    untaken: tuple[str, ...]

    def place(self, ignored: Iterable[str] = ()) -> Plan:
        """The plan when more nodes stay in float."""
        return place(
            self.graph, self.model.params, self.dtypes, self.options, self.ignored.union(self.on_host, ignored)
        )

    def preserving(self) -> list[Algorithm]:
        """The steps that leave the function of the float model as it is, given where its quantizers are."""
        if self.options.advanced_parameters.disable_equalization:
            return []
        activations = frozenset(self.plan.activations)
        weights = self.plan.weights
        single = frozenset(weight.name for weight in weights if isinstance(weight.scheme.granularity, PerTensor))
        # Behind a Clip it is worth its seconds where all channels of a weight have one scale: there it saves MobileNetV2.
        return [Equalization(quantized=activations, one_scale=single, clips=bool(single))]

    def calibration(self, estimator: RangeEstimatorParameters | None = None) -> Calibration:
        """The step that sets the quantizers of activations and weights; `estimator` replaces that of the options."""
        advanced = self.options.advanced_parameters
        return Calibration(
            plan=self.plan,
            activations=RangeEstimatorParametersSet.of(
                estimator or advanced.activations_range_estimator_params or ACTIVATIONS
            ),
            weights=RangeEstimatorParametersSet.of(advanced.weights_range_estimator_params or WEIGHTS),
            batch_size=self.options.batch_size,
        )

    def correction(self) -> list[Algorithm]:
        """The steps that move biases."""
        advanced, nodes = self.options.advanced_parameters, self.plan.nodes
        if advanced.disable_bias_correction:
            return []
        chosen = advanced.bias_correction_params
        if chosen.apply_for_all_nodes:
            nodes = tuple(node.name for _, node in self.plan.graph.walk())
        if self.options.fast_bias_correction:
            return [FastBiasCorrection(nodes=nodes, **given(threshold=chosen.threshold))]
        sites = bias_sites(self.plan.graph, self.model.params, nodes)
        return [BiasCorrection(sites=sites, **given(threshold=chosen.threshold))]

    @OF_THE_DATA
    def run(self, watch: Callable[[Model], object] | None = None) -> Model:
        """The quantized model; `watch` is given the one whose biases are not corrected."""
        last, preserving = IntegerBiases(self.plan), self.preserving()
        # One pass over the data from calibration on: bias correction looks at the float model, too.
        together = (self.calibration(), *self.correction(), last)
        steps: list[Algorithm | tuple[Algorithm, ...]] = [*preserving, together]
        models, _ = models_on_the_way(steps, self.model, self.data, self.options.batch_size, one_program=True)
        if watch is not None:
            watch(last.apply(models[len(preserving) + 1], {}))
        return models[-1]

    def record(self, quantized: Model, stacklevel: int) -> dict[str, str]:
        """What the file says about how it was made; warns of what is suspicious about the data, `stacklevel` calls up."""
        unseen = self.unseen_layers(quantized)
        if unseen:
            warnings.warn(
                f"no calibration sample takes the branches of {len(unseen)} layer(s), which stay in float: {first(unseen)}; "
                "calibrate with samples that take every branch",
                JaxqWarning,
                stacklevel=stacklevel + 1,
            )
        for why, names in self.looped_layers(quantized).items():
            warnings.warn(
                f"{len(names)} layer(s) in bodies of loops stay in float, since {why}: {first(names)}",
                JaxqWarning,
                stacklevel=stacklevel + 1,
            )
        return self.data.record(stacklevel + 1) | {
            # without the batch size, which changes nothing of the result
            "jaxq.options": json.dumps(replace(self.options, batch_size=None).to_dict(), sort_keys=True),
            "jaxq.preset": str(self.options.resolved_preset),
            "jaxq.target": self.options.target.name,
            "jaxq.ignored": " ".join(sorted(self.ignored)),
        }

    def unseen_layers(self, quantized: Model) -> list[str]:
        """Names of the layers that stay in float because no sample runs them: where the data decide, it is known only now."""
        unseen = self.plan.unseen(quantized.encodings)
        late = [
            node.name for _, node in self.plan.graph.walk() if node.name in unseen and has_weights(node, self.options)
        ]
        looped = {node.name for node in in_loops(self.plan.graph)}
        return sorted({*self.untaken, *late} - looped)

    def looped_layers(self, quantized: Model) -> dict[str, list[str]]:
        """Why layers in bodies of loops stay in float that could run in integers elsewhere -> their names."""
        found: dict[str, list[str]] = {}
        unseen = self.plan.unseen(quantized.encodings)
        for node in in_loops(self.plan.graph):
            quantized_here = node.name in self.plan.nodes and node.name not in unseen
            if quantized_here or node.name in self.ignored or not has_weights(node, self.options):
                continue
            if node.name in self.on_host:
                why = "the host runs them, or no sample does"
            elif self.plan.left.get(node.name) == IN_LOOP:
                why = IN_LOOP
            elif node.name in unseen:
                why = "no calibration sample runs them"
            elif self.dtypes.keys().isdisjoint(node.inputs[:1]) or self.dtypes.keys().isdisjoint(node.outputs):
                why = "their tensors do not keep shape and type from turn to turn"
            else:
                continue
            found.setdefault(why, []).append(node.name)
        return {why: sorted(names) for why, names in found.items()}


def first(names: Sequence[str], many: int = 5) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - many} more" if len(names) > many else ""
    return ", ".join(map(repr, names[:many])) + more


def given(**options: Any) -> dict[str, Any]:
    """The options that are not None: for the others the algorithm has its own default."""
    return {key: value for key, value in options.items() if value is not None}


@OF_THE_DATA
def prepare(source: Source, data: Iterable[Any], options: QuantizeOptions) -> Prepared:
    """Everything of `quantize` up to the places of the quantizers; raises what `quantize` does."""
    model = load(source)
    refuse_quantized(model)
    scope = options.ignored_scope
    with inside("ignored_scope"):
        ignored = scope.select(model.graph, model.folded)
    advanced = options.advanced_parameters
    model = float32_inside(model)
    samples = Samples(
        model,
        data,
        options.subset_size,
        whole_items=advanced.batchwise_statistics is False,
        keep_all=advanced.activations_range_estimator_params not in (None, ACTIVATIONS),
    )
    if IN_FLOAT32 in model.metadata:
        model = model.replace(graph=without_needless_casts(model.graph, traced(model, samples)[1].dtypes))
    graph, params = fuse(*keep_outputs_exact(model.graph, model.params))
    scope.warn_of_folded(ignored, {**model.folded, **stand_ins(model.graph, graph)})
    if not (advanced.disable_bias_correction and advanced.disable_channel_alignment):
        graph, params = add_missing_biases(graph, params)
    graph, params = own_biases(graph, params)
    model = model.replace(graph=graph, params=params)
    kinds, found = traced(model, samples)  # before any work
    on_host = found.on_host
    model = run_pipeline(rewriting(model.graph, options, ignored | on_host), model, samples, options.batch_size)
    with as_declared(model):
        found = Traces.over(map(model.traced, kinds))
    untaken = untaken_nodes(model.graph, found)
    on_host |= {node.name for node in untaken}
    plan = place(model.graph, model.params, found.dtypes, options, ignored | on_host)
    refuse_empty(plan, model.graph, options, ignored)
    warn_of_double(plan)
    warn_of_limits(plan, options.target)
    prepared = planned(model, plan)
    for weight in plan.weights:  # before the pass over the data, in which it would look like bad samples
        refuse_not_finite(weight.name, np.asarray(prepared.params[weight.name]))
    layers = tuple(node.name for node in untaken if has_weights(node, options) and node.name not in ignored)
    return Prepared(prepared, model.graph, plan, found.dtypes, samples, options, ignored, on_host, layers)


def float32_inside(model: Model) -> Model:
    """The model in float32, as far as that is as good (`to_replace`), with a warning that says so; else the model itself."""
    types = " and ".join(sorted(to_replace(model)))
    if not types:
        return model
    warnings.warn(
        f"the model computes in {types}, and integer kernels take and give float32: it is quantized and written in float32; its "
        "inputs and outputs keep their types",
        JaxqWarning,
        stacklevel=4,
    )
    done = in_float32(model, to_replace(model))
    return done.replace(metadata=done.metadata | {IN_FLOAT32: types})


def traced(model: Model, samples: Samples) -> tuple[tuple[Signature, ...], Traces]:
    """The signatures of the samples, and what the model makes of these, with the types of the file."""
    with as_declared(model):
        kinds = signatures(model.graph, samples.unseen())
        return kinds, Traces.over(map(model.traced, kinds))


def warn_of_double(plan: Plan) -> None:
    """Warns of nodes that would be quantized if they did not compute in float64."""
    names = [name for name, why in plan.left.items() if why == DOUBLES]
    if names:
        warnings.warn(
            f"{len(names)} node(s) compute in float64, which nothing quantizes, and stay in float, first {names[0]!r}; convert "
            "them to float32 to have them quantized",
            JaxqWarning,
            stacklevel=4,
        )


def rewriting(graph: Graph, options: QuantizeOptions, ignored: frozenset[str]) -> list[Algorithm]:
    """The steps that leave the function of the float model as it is, and may change its graph: they come before placement."""
    advanced, steps = options.advanced_parameters, list[Algorithm]()
    alphas = advanced.smooth_quant_alphas
    transformer = is_transformer(graph) if options.transformer is None else options.transformer
    if transformer and (alphas.matmul, alphas.convolution) != (OFF, OFF):
        steps.append(SmoothQuant(matmul=alphas.matmul, convolution=alphas.convolution, ignored=ignored))
    if not advanced.disable_channel_alignment:
        steps.append(ChannelAlignment())
    return steps


def refuse_quantized(model: Model) -> None:
    """Refuses a model that holds quantization operators or encodings: its float weights are gone."""
    found = quantized_nodes(model.graph)
    if found or model.encodings:
        where = f"{found[0]} and {len(found) - 1} more" if found else "it has encodings"
        raise ModelError(f"the model is already quantized ({where}); give the float model that it was made from")


def has_weights(node: Node, options: QuantizeOptions) -> bool:
    """Whether the node is of a kind that the target computes in integers with weights."""
    rule = None if node.domain else options.target.rules.get(node.op)
    return rule is not None and bool(rule.weights)


def place(
    graph: Graph, params: Mapping[str, Any], dtypes: Mapping[str, str], options: QuantizeOptions, ignored: Iterable[str]
) -> Plan:
    """Where the quantizers go, by the options."""
    advanced, target, preset = options.advanced_parameters, options.target, options.resolved_preset
    weights = advanced.weights_quantization_params
    if preset is Preset.ACCURACY and target.asymmetric_per_channel:
        weights = updated(QuantizationParameters(mode="asymmetric"), weights)
    with inside("advanced_parameters"), worded(ADVANCED):
        return place_quantizers(
            graph,
            params,
            dtypes,
            target,
            symmetric=preset is Preset.PERFORMANCE,
            ignored=ignored,
            transformer=options.transformer,
            activations=advanced.activations_quantization_params,
            weights=weights,
            overrides=advanced.overrides,
            overflow_fix=advanced.overflow_fix,
            quantize_outputs=advanced.quantize_outputs,
            propagation=advanced.quantizer_propagation_rule,
        )


def refuse_empty(plan: Plan, graph: Graph, options: QuantizeOptions, ignored: Iterable[str]) -> None:
    """Raises ModelError if the plan quantizes nothing."""
    if not plan.nodes:
        kinds = ", ".join(sorted({node.op for _, node in graph.walk()}))
        doubles = sum(why == DOUBLES for why in plan.left.values())
        other = f"; in float64: {doubles}, which nothing quantizes" if doubles else ""
        raise ModelError(
            f"the model has nothing that target {options.target.name!r} computes in integers (its operators: {kinds}; "
            f"ignored nodes: {len(set(ignored))}{other}); `jaxq inspect` says why for each operator"
        )


def warn_of_limits(plan: Plan, target: Target) -> None:
    """Warns of types that the runtime, in the version that is installed, does not take as they will be written."""
    version = installed_version(target)
    activations = {name: type_name(plan.schemes[group].grid) for name, group in plan.activations.items()}
    weights = {weight.name: type_name(weight.scheme.grid) for weight in plan.weights}
    nodes = [node for _, node in plan.graph.walk() if node.name in plan.nodes]
    for limit in limits_of(target, version):
        for node in nodes:
            kinds, others = ([types[name] for name in node.inputs if name in types] for types in (activations, weights))
            if limit.meets(node.op, kinds, others):
                problem = f"{node} has inputs in {kinds[0]}{f' and weights in {others[0]}' if others else ''}"
                warnings.warn(f"{problem}: {in_words(limit, version)}", JaxqWarning, stacklevel=4)
                break  # once is enough


def quantize(
    model: Source,
    calibration_dataset: Iterable[Any],
    *,
    preset: Preset | str | None = None,
    target_device: TargetDevice | str = "onnxruntime",
    subset_size: int | None = 300,
    fast_bias_correction: bool = False,
    model_type: ModelType | str | None = None,
    ignored_scope: IgnoredScope | None = None,
    advanced_parameters: AdvancedQuantizationParameters | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> Model:
    """Quantizes a trained model to 8 bits, from samples without labels. The names are nncf's.

    Args:
      model: path, `onnx.ModelProto` or `Model`, in float.
      calibration_dataset: a `Dataset` or any iterable of batches: array, tuple of arrays, or {input name: array}. A batch
        along a free first axis counts as that many samples (another axis, or none: `Dataset(..., batch_axis=...)`).
      preset: "performance" (symmetric activations), "mixed" (asymmetric), "accuracy" (weights too, where the target has that), or
        None: what costs the target nothing more.
      target_device: the runtime that will execute the file, by its name in `jaxq.placement.targets`, or a `TargetDevice`.
      subset_size: the number of samples used, the first ones; None uses all.
      fast_bias_correction: how to correct the biases for the mean error that rounding causes: each layer by itself, for the
        rounding of its weights (True, nncf's default), or all together, each seeing what is left of the errors before it
        (False): a few seconds more, and more accurate. `advanced_parameters` can switch it off.
      model_type: "transformer" keeps additions, normalizations and the like in float; None finds out.
      ignored_scope: what stays in float.
      advanced_parameters: everything else.
      seed: written into the file; no step of this function draws random numbers yet.
      batch_size: samples run at a time, None to choose; changes nothing but, in small matrix products, the last bit of a sum.

    Returns:
      A `Model` whose calls simulate the integers; `jaxq.save` writes it as QDQ ONNX.

    Raises:
      ModelError: the model is already quantized, or has nothing to quantize.
      CalibrationError: no samples, or NaN or infinity in the data or in a tensor.
      InputError: the samples do not fit the model's inputs.
      ConfigError: an option is wrong, the target cannot do what is asked for, or something ignored matches nothing.
    """
    options = QuantizeOptions(
        preset=preset,
        target_device=target_device,
        subset_size=subset_size,
        fast_bias_correction=fast_bias_correction,
        model_type=model_type,
        ignored_scope=IgnoredScope() if ignored_scope is None else ignored_scope,
        advanced_parameters=AdvancedQuantizationParameters() if advanced_parameters is None else advanced_parameters,
        seed=seed,
        batch_size=batch_size,
    )
    with holding():
        prepared = prepare(model, calibration_dataset, options)
        quantized = prepared.run()
    return quantized.replace(metadata=quantized.metadata | prepared.record(quantized, stacklevel=2))


def planned(model: Model, plan: Plan) -> Model:
    """The model in the form that a plan gives it, for the algorithms to work on."""
    graph, params = plan.prepare(model.graph, model.params)
    return model.replace(graph=graph, params=params)
