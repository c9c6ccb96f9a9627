"""What a configuration file of POT means here: the same defaults as documented there, translated into a `Job`.

Departures from POT, all of them deliberate:

* `preset` "accuracy" is "mixed" where the target has no asymmetric weights per channel, as for POT's CPU.
* `granularity` is that of the target's table where it is not given (weights per channel), as POT does, whatever its
  documentation says.
* types of operators are OpenVINO's or ONNX's.
* statistics are per sample whatever `stat_batch_size` and `inplace_statistics`; samples of several shapes are no error.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jaxq.accuracy.options import AccuracySection
from jaxq.data import ImageOptions
from jaxq.errors import ConfigError, JaxqWarning, Option, OptionPath, Words, did_you_mean, inside, told
from jaxq.graph.select import IgnoredScope, Operation
from jaxq.jobs.job import DataOptions, Job, LayerwiseTuning, in_full
from jaxq.jobs.json_text import parse_json
from jaxq.jobs.pot import (
    AccuracyParams,
    Bound,
    DefaultParams,
    Engine,
    Ignored,
    PotFile,
    RangeEstimator,
    Tensors,
    TuningParams,
)
from jaxq.jobs.validation import validated
from jaxq.numerics.estimators import (
    RangeEstimatorParameters,
    RangeEstimatorParametersSet,
    RangeEstimatorPreset,
    StatisticsCollectorParameters,
)
from jaxq.options import (
    AdvancedBiasCorrectionParameters,
    AdvancedQuantizationParameters,
    AdvancedSmoothQuantParameters,
    QuantizeOptions,
    check_target,
)
from jaxq.placement.overflow import SATURATION_FIX
from jaxq.placement.schemes import QuantizationParameters

PARAMS = "compression.algorithms[0].params"
PRESETS = {"symmetric": "performance", "asymmetric": "accuracy"}  # aliases
DEVICES = {"VPU": "NPU"}  # the older name
UNKNOWN_DEVICES = ("GNA", "GNA3", "GNA3.5")
TYPOS = {"inplase_statistics": "inplace_statistics"}  # in POT's own template, where it had no effect

# OpenVINO's operators that have another name in ONNX. Those of the same name are not listed.
OPERATORS: Mapping[str, tuple[str, ...]] = {
    "Convolution": ("Conv",),
    "GroupConvolution": ("Conv",),
    "DepthWiseConvolution": ("Conv",),
    "ConvolutionBackpropData": ("ConvTranspose",),
    "GroupConvolutionBackpropData": ("ConvTranspose",),
    "MatMul": ("MatMul", "Gemm"),
    "FullyConnected": ("Gemm", "MatMul"),
    "Multiply": ("Mul",),
    "Subtract": ("Sub",),
    "Divide": ("Div",),
    "Power": ("Pow",),
    "Maximum": ("Max",),
    "Minimum": ("Min",),
    "AvgPool": ("AveragePool", "GlobalAveragePool"),
    "MaxPool": ("MaxPool", "GlobalMaxPool"),
    "ReLU": ("Relu",),
    "PReLU": ("PRelu",),
    "SoftMax": ("Softmax",),
    "Swish": ("Swish",),
    "HSwish": ("HardSwish",),
    "Clamp": ("Clip",),
    "Interpolate": ("Resize", "Upsample"),
    "StridedSlice": ("Slice",),
    "VariadicSplit": ("Split",),
    "Broadcast": ("Expand",),
    "MVN": ("MeanVarianceNormalization", "LayerNormalization", "InstanceNormalization"),
    "NormalizeL2": ("LpNormalization",),
    "LSTMSequence": ("LSTM",),
    "GRUSequence": ("GRU",),
}


PARAMS_PATH = ("compression", "algorithms", 0, "params")

# What a job calls an option -> what the file calls it.
WORDS = Words(
    {
        ("model",): ("model", "model"),
        ("cascade",): ("model", "cascade"),
        ("data", "source"): ("engine", "data_source"),
        ("data", "images"): ("engine",),
        ("quantize",): PARAMS_PATH,
        ("quantize", "subset_size"): (*PARAMS_PATH, "stat_subset_size"),
        ("quantize", "batch_size"): (*PARAMS_PATH, "stat_batch_size"),
        ("quantize", "ignored_scope", "names"): (*PARAMS_PATH, "ignored", "scope"),
        ("quantize", "ignored_scope", "operations"): (*PARAMS_PATH, "ignored", "operations"),
        ("quantize", "advanced_parameters"): PARAMS_PATH,
        ("quantize", "advanced_parameters", "bias_correction_params"): PARAMS_PATH,
        **{
            ("quantize", "advanced_parameters", f"{role}_{kind}_params"): (*PARAMS_PATH, role, *place)
            for role in ("activations", "weights")
            for kind, place in (("quantization", ()), ("range_estimator", ("range_estimator",)))
        },
        ("accuracy",): PARAMS_PATH,
        ("accuracy", "max_drop"): (*PARAMS_PATH, "maximal_drop"),
        ("accuracy", "max_num_iterations"): (*PARAMS_PATH, "max_iter_num"),
        ("accuracy", "validation"): ("engine", "data_source"),
    },
    keys={
        "num_bits": "bits",
        "per_channel": "granularity",
        "statistics_type": "type",
        "aggregator_type": "aggregator",
        "quantile_outlier_prob": "outlier_prob",
    },
    values={("granularity", True): "perchannel", ("granularity", False): "pertensor"},
)


def is_pot(content: Mapping[str, Any]) -> bool:
    """Whether the content of a file is a configuration of POT."""
    return "compression" in content or "engine" in content


def job_of_pot(content: Mapping[str, Any], where: str) -> tuple[Job, Words]:
    """The job, and what the file calls its options; `where` is the file's name.

    Raises:
      ConfigError: the file is wrong, or asks for what is not there; the message gives the path in it.
    """
    file = validated(PotFile, _without_typos(content, where), where)
    words = _words(file)
    with told(words, where):
        return _job(file), words


def _words(file: PotFile) -> Words:
    """`WORDS`, but for what may stand in two places."""
    if len(file.compression.algorithms) != 1:
        return WORDS
    params, moved = _params(file), dict[OptionPath, OptionPath]()
    for role in ("activations", "weights"):
        if getattr(params, role).range_estimator is None:
            moved["quantize", "advanced_parameters", f"{role}_range_estimator_params"] = (
                *PARAMS_PATH,
                "range_estimator",
            )
    if isinstance(params, AccuracyParams) and not params.metrics:
        moved["accuracy", "metrics"] = ("engine", "metrics")
    return replace(WORDS, starts={**WORDS.starts, **moved})


def _without_typos(content: Any, where: str) -> Any:
    if isinstance(content, list):
        return [_without_typos(each, where) for each in content]
    if not isinstance(content, Mapping):
        return content
    for key in TYPOS.keys() & content.keys():
        warnings.warn(f"{where}: {key!r} is read as {TYPOS[key]!r}", JaxqWarning, stacklevel=2)
    return {TYPOS.get(key, key): _without_typos(each, where) for key, each in content.items()}


def _params(file: PotFile) -> DefaultParams:
    return file.compression.algorithms[0].params


def _job(file: PotFile) -> Job:
    if len(file.compression.algorithms) != 1:
        raise ConfigError(
            Option(PARAMS_PATH[:2]),
            f" has {len(file.compression.algorithms)} entries; expected one: DefaultQuantization or AccuracyAwareQuantization",
        )
    params = _params(file)
    tuning = params.model_dump(include=set(TuningParams.model_fields), exclude_none=True)
    if tuning and not params.use_layerwise_tuning:
        warnings.warn(
            f"{PARAMS}.{next(iter(tuning))} has no effect without use_layerwise_tuning", JaxqWarning, stacklevel=2
        )
    dump = params.dump_intermediate_model or file.compression.dump_intermediate_model
    return Job(
        model=_model(file),
        name=file.model.model_name,
        data=_data(file.engine, params),
        quantize=None if params.ignored.skip_model else _options(file, params),
        dump_intermediate_model=bool(dump),
        accuracy=_accuracy(params, file.engine) if isinstance(params, AccuracyParams) else None,
        layerwise_tuning=LayerwiseTuning(**tuning) if params.use_layerwise_tuning else None,
    )


def _model(file: PotFile) -> str:
    if file.model.cascade is not None:
        raise ConfigError(Option(("cascade",)), ": jaxq quantizes one model at a time; write a configuration for each")
    if file.model.model is None:
        raise ConfigError(Option(("model",)), " is missing; give the path of an ONNX file")
    if file.model.model.lower().endswith((".xml", ".bin")):
        raise ConfigError(
            Option(("model",), file.model.model),
            " is in OpenVINO's own format; jaxq reads ONNX: give the ONNX file that it was converted from (OpenVINO converts the "
            "quantized ONNX file in turn)",
        )
    if file.model.weights is not None:
        warnings.warn("model.weights is not read: an ONNX file names its weights itself", JaxqWarning, stacklevel=2)
    return file.model.model


def _data(engine: Engine, params: DefaultParams) -> DataOptions:
    checker = [key for key in ("config", "launchers", "datasets") if getattr(engine, key) is not None]
    if engine.type == "simplified" and engine.data_source is None and not checker:
        raise ConfigError(
            Option(("data", "source")),
            " is missing; give a folder or pattern of images, an .npz file, or package.module:function",
        )
    if engine.type == "accuracy_checker" or checker or engine.data_source is None:
        if engine.type == "data_free":
            raise ConfigError(Option(("engine", "type"), engine.type), ": jaxq never makes data up; give data_source")
        key = (checker[0],) if checker else ("type",) if engine.type else ()
        raise ConfigError(
            Option(("engine", *key)),
            ": the accuracy checker of OpenVINO is no part of jaxq; write "
            '"engine": {"type": "simplified", "data_source": ...} with a folder or pattern of images, an .npz file, or '
            "package.module:function",
        )
    return DataOptions(source=engine.data_source, images=_images(engine), shuffle=params.shuffle_data)


def _images(engine: Engine) -> ImageOptions | None:
    """Simplified mode stretches the central part of each picture to the model's size."""
    last = engine.data_source or ""
    if last.lower().endswith((".npz", ".npy")) or (":" in last and "/" not in last):
        if engine.central_fraction is not None or engine.layout is not None:
            raise ConfigError(
                "engine.central_fraction and engine.layout are for images, and engine.data_source names none",
                path=("engine", "central_fraction" if engine.layout is None else "layout"),
            )
        return None
    layouts = {"CHW": "NCHW", "HWC": "NHWC", "NCHW": "NCHW", "NHWC": "NHWC"}
    layout = None if engine.layout is None else layouts.get(engine.layout.upper())
    if engine.layout is not None and layout is None:
        raise ConfigError(
            Option(("engine", "layout"), engine.layout),
            f"; expected one of {', '.join(layouts)}{did_you_mean(engine.layout, layouts)}",
        )

    def numbers(value: list[float] | float | None) -> tuple[float, ...] | None:
        return None if value is None else tuple(value) if isinstance(value, list) else (value,)

    return ImageOptions(
        central_fraction=1.0 if engine.central_fraction is None else engine.central_fraction,
        layout=layout,
        color=engine.color,
        mean=numbers(engine.mean),
        std=numbers(engine.std),
    )


def _options(file: PotFile, params: DefaultParams) -> QuantizeOptions:
    common = file.compression
    model_type = params.model_type or common.model_type
    device = _device(params.target_device or common.target_device or "ANY")
    with inside("compression", *([] if params.target_device is None else PARAMS_PATH[1:])):
        check_target("target_device", device)
    if model_type is not None and model_type.lower() not in ("none", "transformer"):
        place: OptionPath = ("compression",) if params.model_type is None else PARAMS_PATH
        hint = did_you_mean(model_type, ("transformer", "None"))
        raise ConfigError(Option((*place, "model_type"), model_type), f"; expected 'transformer' or 'None'{hint}")
    preset = PRESETS.get(params.preset, params.preset)
    with_paths: dict[str, Any] = {}
    for role in ("weights", "activations"):
        tensors: Tensors = getattr(params, role)
        scheme, estimator = f"{role}_quantization_params", f"{role}_range_estimator_params"
        with inside("quantize", "advanced_parameters", scheme):
            with_paths[scheme] = _scheme(tensors)
        with inside("quantize", "advanced_parameters", estimator):
            with_paths[estimator] = _estimator(tensors.range_estimator or params.range_estimator or RangeEstimator())
    inplace = params.inplace_statistics if params.inplace_statistics is not None else common.inplace_statistics
    with inside("quantize"):
        return QuantizeOptions(
            preset=preset,
            target_device=device,
            subset_size=params.stat_subset_size,
            fast_bias_correction=params.use_fast_bias,
            model_type=None if model_type is None or model_type.lower() == "none" else model_type.lower(),
            ignored_scope=_ignored(params.ignored),
            advanced_parameters=AdvancedQuantizationParameters(
                overflow_fix=SATURATION_FIX[params.saturation_fix],
                disable_channel_alignment=False,
                smooth_quant_alphas=AdvancedSmoothQuantParameters(matmul=-1),  # which POT does not have
                inplace_statistics=True if inplace is None else inplace,
                bias_correction_params=AdvancedBiasCorrectionParameters(
                    threshold=params.threshold, apply_for_all_nodes=params.apply_for_all_nodes
                ),
                **with_paths,
            ),
            seed=params.seed,
            batch_size=params.stat_batch_size,
        )


def _device(name: str) -> str:
    known = ("ANY", "CPU", "GPU", "NPU", "VPU", "CPU_SPR")
    if name in UNKNOWN_DEVICES:
        raise ConfigError(
            Option(("compression", "target_device"), name),
            f": the GNA has no runtime for ONNX files; known: {', '.join(known)}",
        )
    return DEVICES.get(name, name)


def _scheme(tensors: Tensors) -> QuantizationParameters | None:
    if not tensors.model_dump(exclude_none=True, exclude={"range_estimator"}):
        return None
    return QuantizationParameters(
        num_bits=tensors.bits,
        mode=tensors.mode,
        per_channel=None if tensors.granularity is None else tensors.granularity == "perchannel",
        level_low=tensors.level_low,
        level_high=tensors.level_high,
    )


def _estimator(given: RangeEstimator) -> RangeEstimatorParameters:
    preset = given.preset or "default"
    if preset not in [each.value for each in RangeEstimatorPreset]:
        if given.min is not None or given.max is not None:
            raise ConfigError(Option(("preset",), preset), " says how both ends are found; leave out min and max")
        named, known = dict(RangeEstimatorParametersSet.items()), ["default", "quantile"]
        if preset not in named:
            known += named
            hint = did_you_mean(preset, known)
            raise ConfigError(Option(("preset",), preset), f"; expected one of {', '.join(known)}{hint}")
        return named[preset]
    with inside("min"):
        low = _bound(given.min or Bound(), preset)
    with inside("max"):
        high = _bound(given.max or Bound(), preset)
    return RangeEstimatorParameters(low, high, preset)


def _bound(given: Bound, preset: str) -> StatisticsCollectorParameters:
    if given.outlier_prob is None and given.type in ("quantile", "abs_quantile"):
        raise ConfigError(Option(("outlier_prob",)), f" is missing; type {given.type!r} needs it, e.g. 0.0001")
    quantile = given.type in ("quantile", "abs_quantile") or (given.type is None and preset == "quantile")
    if given.outlier_prob is not None and not quantile:
        outlier_prob = Option(("outlier_prob",), given.outlier_prob)
        raise ConfigError(outlier_prob, f"; it is for type 'quantile', and type is {given.type!r}")
    made = StatisticsCollectorParameters(given.type, given.aggregator, given.clipping_value)
    return made if given.outlier_prob is None else replace(made, quantile_outlier_prob=given.outlier_prob)


def _ignored(given: Ignored) -> IgnoredScope:
    """Types in OpenVINO's words stand for one or several operators of ONNX, of which one has to be there."""
    names = tuple("|".join(each) if isinstance(each, list) else each for each in given.scope)
    operations = tuple(
        Operation("|".join(OPERATORS.get(each.type, (each.type,))), _attributes(each.attributes or {}))
        for each in given.operations
    )
    return IgnoredScope(names=names, operations=operations)


def _attributes(given: Mapping[str, Any]) -> dict[str, Any]:
    """OpenVINO's files hold all attributes as text: "2,2" becomes [2, 2]."""
    numbers = r"-?\d+(\.\d+)?"
    return {
        key: parse_json(f"[{value}]" if "," in value else value, key)
        if isinstance(value, str) and re.fullmatch(rf"{numbers}(,\s*{numbers})*", value)
        else value
        for key, value in given.items()
    }


def _accuracy(params: AccuracyParams, engine: Engine) -> AccuracySection:
    """The parameters of the search."""
    own = set(AccuracyParams.model_fields) - set(DefaultParams.model_fields)
    found = params.model_dump(include=own, exclude_none=True)
    if "use_prev_if_drop_increase" in params.model_fields_set and params.search != "pot":
        warnings.warn(
            f'{PARAMS}.use_prev_if_drop_increase has no effect on the bisection that jaxq searches with; "search": "pot" runs '
            "the loop that it belongs to",
            JaxqWarning,
            stacklevel=2,
        )
    if metrics := params.metrics or engine.metrics:
        found["metrics"] = [each.model_dump(exclude_none=True) for each in metrics]
    with inside("accuracy"):
        return AccuracySection(**in_full(found))
