"""`jaxq quantize`: a model and data in, a quantized file out."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from jaxq.cli import accuracy
from jaxq.cli.options import (
    WORDS,
    BatchAxis,
    BatchSize,
    Color,
    Crop,
    Data,
    Device,
    Ignore,
    IgnorePattern,
    IgnoreType,
    JsonPath,
    Layout,
    Mean,
    ModelPath,
    Output,
    Quiet,
    Reading,
    Resize,
    Std,
    SubsetSize,
    Target,
    Verbose,
    ignored_scope,
    reading,
)
from jaxq.cli.session import TARGET_MISSED, bytes_of, check_outputs, session, write_json, written_files
from jaxq.errors import OptionPath, Words, inside, told, worded

if TYPE_CHECKING:
    from jaxq.accuracy.options import AccuracySection
    from jaxq.accuracy.report import AccuracyReport
    from jaxq.engine.model import Model
    from jaxq.options import AdvancedQuantizationParameters, QuantizeOptions
    from jaxq.placement.schemes import QuantizationParameters

PresetName = Annotated[
    Literal["performance", "mixed", "accuracy"] | None,
    typer.Option(
        metavar="performance|mixed|accuracy",
        help="Activations symmetric, or asymmetric; or weights too, where the target has that.",
        show_default="what costs the target nothing more",
    ),
]
EstimatorName = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="How ranges of activations follow from the samples: mse, minmax, mean_minmax, percentile, entropy, auto, ...",
    ),
]
WeightBits = Annotated[
    int | None,
    typer.Option(metavar="BITS", min=2, max=16, help="Width of weights.", show_default="the target's, 8"),
]
ActivationBits = Annotated[
    int | None,
    typer.Option(metavar="BITS", min=2, max=16, help="Width of activations.", show_default="the target's, 8"),
]
PerTensor = Annotated[
    bool, typer.Option("--per-tensor", help="One scale for each weight, where the target has one for each channel.")
]
NetworkKind = Annotated[
    Literal["transformer"] | None,
    typer.Option(metavar="transformer", help="Kind of network.", show_default="found out"),
]
CorrectionKind = Annotated[
    Literal["fast", "full", "off"],
    typer.Option(metavar="fast|full|off", help="Correct the mean error that rounding causes."),
]
Seed = Annotated[int, typer.Option(metavar="NUMBER", help="Of what is random; written into the file.")]
ConfigPath = Annotated[
    Path | None, typer.Option(metavar="CONFIG.json", help="Write what was asked for, for `jaxq run`.")
]
ReportPath = Annotated[Path | None, typer.Option(metavar="PAGE.html", help="Write a page to look at.")]


@told(WORDS)
def quantize(
    model: ModelPath,
    data: Data,
    output: Output,
    preset: PresetName = None,
    target: Target = "onnxruntime",
    subset_size: SubsetSize = 300,
    range_estimator: EstimatorName = "mse",
    weight_bits: WeightBits = None,
    activation_bits: ActivationBits = None,
    per_tensor: PerTensor = False,
    ignore: Ignore = None,
    ignore_pattern: IgnorePattern = None,
    ignore_type: IgnoreType = None,
    model_type: NetworkKind = None,
    bias_correction: CorrectionKind = "full",
    max_drop: accuracy.MaxDrop = None,
    drop_type: accuracy.DropKind = "absolute",
    metric: accuracy.MetricName = None,
    val: accuracy.ValidationData = None,
    ranking: accuracy.RankingKind = "alone",
    search: accuracy.SearchKind = "bisect",
    repair: accuracy.Repairs = None,
    time_budget: accuracy.TimeBudget = None,
    max_iter_num: accuracy.MaxReverts = None,
    work: accuracy.Work = None,
    seed: Seed = 0,
    batch_size: BatchSize = None,
    device: Device = None,
    resize: Resize = None,
    crop: Crop = None,
    mean: Mean = None,
    std: Std = None,
    layout: Layout = None,
    color: Color = None,
    batch_axis: BatchAxis = "0",
    json_path: JsonPath = None,
    save_config: ConfigPath = None,
    report: ReportPath = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Quantize a trained model, to 8 bits unless asked for others.

    It takes a few hundred samples, without labels. With --max-drop, as few layers as the accuracy demands stay in float; the
    exit code is 3 if that is not enough, and the best model is written all the same.
    """
    section = accuracy.limits(
        max_drop, metric=metric, validation=val, repairs=repair, time_budget=time_budget, max_num_iterations=max_iter_num,
        intermediate_model_dir=work, drop_type=drop_type, ranking=ranking, search=search,
    )  # fmt: skip
    outputs = {"-o": output, "--json": json_path, "--report": report, "--save-config": save_config}
    check_outputs(outputs, {"MODEL": model, "--data": data, "--val": val})
    if report is not None:
        from jaxq.analysis.html import require_extra

        require_extra()
    reports = (report, None if json_path == "-" else json_path)
    with session(device=device, quiet=quiet, verbose=verbose):
        from jaxq.files import withdraw
        from jaxq.jobs import job as config
        from jaxq.onnx_io.external_data import data_file
        from jaxq.onnx_io.load import load
        from jaxq.onnx_io.save import save
        from jaxq.options import QuantizeOptions

        started = time.perf_counter()
        options = QuantizeOptions(
            preset=preset,
            target_device=target,
            subset_size=subset_size,
            fast_bias_correction=bias_correction == "fast",
            model_type=model_type,
            ignored_scope=ignored_scope(ignore, ignore_pattern, ignore_type),
            advanced_parameters=advanced(range_estimator, bias_correction, weight_bits, activation_bits, per_tensor),
            seed=seed,
            batch_size=batch_size,
        )
        loaded = load(model)
        how = reading(resize, crop, mean, std, layout, color, batch_axis)
        quantized, found = quantized_model(loaded, data, how, options, section, output, reports, quiet=quiet)
        withdraw(*reports)
        written = save(quantized, output)
        if save_config is not None:
            job = config.of_call(model, data, options, accuracy=accuracy.without_folder(section), **how)
            config.write_job(job, save_config)
        seconds = time.perf_counter() - started
    result = described(model, loaded, output, quantized, found, seconds, target) | {"data_file": data_file(written)}
    write_json(result, json_path)
    if report is not None:
        from jaxq.analysis.html import quantized_page
        from jaxq.files import write_text

        write_text(report, quantized_page(quantized, output.name, result))
    if not quiet and json_path != "-":
        show(result, found, data)
    if found is not None:
        if found.status != "reached":
            raise typer.Exit(TARGET_MISSED)
        accuracy.remove_work(work, output)


def advanced(
    range_estimator: str,
    bias_correction: str,
    weight_bits: int | None,
    activation_bits: int | None,
    per_tensor: bool,
) -> AdvancedQuantizationParameters:
    """What options of that name say, as advanced parameters: those that are not asked for have their defaults."""
    from jaxq.options import AdvancedQuantizationParameters

    with inside("advanced_parameters"):
        return AdvancedQuantizationParameters(
            activations_range_estimator_params=None if range_estimator == "mse" else range_estimator,
            disable_bias_correction=bias_correction == "off",
            weights_quantization_params=grid(weight_bits, per_tensor),
            activations_quantization_params=grid(activation_bits),
        )


def grid(bits: int | None, per_tensor: bool = False) -> QuantizationParameters | None:
    """How a class of tensors is quantized; None: nothing was asked for."""
    from jaxq.placement.schemes import QuantizationParameters

    if bits is None and not per_tensor:
        return None
    return QuantizationParameters(num_bits=bits, per_channel=False if per_tensor else None)


def quantized_model(
    model: Model,
    data: str,
    how: Reading,
    options: QuantizeOptions,
    section: AccuracySection | None,
    output: Path,
    reports: tuple[str | Path | None, ...],
    *,
    quiet: bool,
) -> tuple[Model, AccuracyReport | None]:
    """The quantized model and, where there is a limit on the loss of accuracy, what was found on the way."""
    from jaxq.data import open_data
    from jaxq.pipeline import quantize

    samples = open_data(data, model, limit=options.subset_size, place=("calibration_dataset",), **how)
    if section is None:
        return quantize(model, samples, **options.arguments()), None
    label = None if section.metric is None else "label"
    place: OptionPath = ("calibration_dataset",) if section.validation is None else ("validation_dataset",)
    validation = open_data(section.validation or data, model, label=label, place=place, **how)
    with worded(Words({("validation_dataset",): place})):
        return accuracy.quantize_within(section, model, samples, validation, output, reports, options, quiet=quiet)


def described(
    path: Path, model: Model, output: Path, quantized: Model, found: AccuracyReport | None, seconds: float, target: str
) -> dict[str, Any]:
    """What was done, for people and for JSON."""
    from jaxq.analysis.inspect import summarize
    from jaxq.onnx_io.load import load

    result = {
        "model": str(path),
        "output": str(output),
        "float_bytes": bytes_of(path, model.params),
        "quantized_bytes": bytes_of(output, load(output).params),
        "quantized_activations": len(quantized.encodings.keys() - quantized.params.keys()),
        "quantized_params": len(quantized.encodings.keys() & quantized.params.keys()),
        "seconds": round(seconds, 3),
        "metadata": dict(quantized.metadata),
        "fates": summarize(quantized, target).fates,
    }
    correction = quantized.metadata.get("jaxq.bias_correction")
    if correction is not None:
        result["bias_correction"] = json.loads(correction)
    return result if found is None else result | {"accuracy": found.to_dict()}


def show(result: dict[str, Any], found: AccuracyReport | None, data: str) -> None:
    """Says what was done, and what comes next."""
    if found is not None:
        print(found.table())
    sizes = "{float_bytes:,} -> {quantized_bytes:,} bytes, in {seconds:.1f} s".format_map(result)
    print(f"{written_files(result)}: {sizes}")
    if "bias_correction" in result:
        print("bias correction moved {moved} of {of} layers".format_map(result["bias_correction"]))
    from jaxq.analysis.inspect import layers_in_words

    print(f"layers: {layers_in_words(result['fates'])}")
    words = map(shlex.quote, (result["output"], data, result["model"]))
    print("now check it, in ONNX Runtime: jaxq verify {} --data {} --float {}".format(*words))
