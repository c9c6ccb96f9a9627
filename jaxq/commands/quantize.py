"""`jaxq quantize`: a model and data in, a quantized file out."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from jaxq.commands import accuracy
from jaxq.commands.options import (
    LARGEST_COUNT,
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
    Resize,
    Std,
    Target,
    Verbose,
    axis_of,
    ignored_scope,
    image_options,
)
from jaxq.commands.session import TARGET_MISSED, bytes_of, check_outputs, session, write_json

if TYPE_CHECKING:
    from jaxq.schemes import QuantizationParameters


def quantize(
    model: ModelPath,
    data: Data,
    output: Output,
    preset: Annotated[
        Literal["performance", "mixed", "accuracy"] | None,
        typer.Option(
            metavar="performance|mixed|accuracy",
            help="Activations symmetric, or asymmetric; or weights too, where the target has that.",
            show_default="what costs the target nothing more",
        ),
    ] = None,
    target: Target = "onnxruntime",
    subset_size: Annotated[
        int, typer.Option(metavar="COUNT", min=1, max=LARGEST_COUNT, help="How many samples to use.")
    ] = 300,
    range_estimator: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="How ranges of activations follow from the samples: mse, minmax, mean_minmax, percentile, entropy, auto, ...",
        ),
    ] = "mse",
    weight_bits: Annotated[
        int | None,
        typer.Option(metavar="BITS", min=2, max=16, help="Width of weights.", show_default="the target's, 8"),
    ] = None,
    activation_bits: Annotated[
        int | None,
        typer.Option(metavar="BITS", min=2, max=16, help="Width of activations.", show_default="the target's, 8"),
    ] = None,
    per_tensor: Annotated[
        bool, typer.Option("--per-tensor", help="One scale for each weight, where the target has one for each channel.")
    ] = False,
    ignore: Ignore = None,
    ignore_pattern: IgnorePattern = None,
    ignore_type: IgnoreType = None,
    model_type: Annotated[
        Literal["transformer"] | None,
        typer.Option(metavar="transformer", help="Kind of network.", show_default="found out"),
    ] = None,
    bias_correction: Annotated[
        Literal["fast", "full", "off"],
        typer.Option(metavar="fast|full|off", help="Correct the mean error that rounding causes."),
    ] = "full",
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
    seed: Annotated[int, typer.Option(metavar="NUMBER", help="Of what is random; written into the file.")] = 0,
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
    save_config: Annotated[
        Path | None, typer.Option(metavar="CONFIG.json", help="Write what was asked for, for `jaxq run`.")
    ] = None,
    report: Annotated[Path | None, typer.Option(metavar="PAGE.html", help="Write a page to look at.")] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Quantize a trained model, to 8 bits unless asked for others.

    It takes a few hundred samples, without labels. With --max-drop, as few layers as the accuracy demands stay in float; the
    exit code is 3 if that is not enough, and the best model is written all the same.
    """
    choices = accuracy.AccuracyChoices(
        max_drop=max_drop, drop_type=drop_type, metric=metric, val=val, ranking=ranking, search=search, repair=repair,
        time_budget=time_budget, max_iter_num=max_iter_num, work=work,
    )  # fmt: skip
    choices.check()
    outputs = {"-o": output, "--json": json_path, "--report": report, "--save-config": save_config}
    check_outputs(outputs, {"MODEL": model, "--data": data, "--val": val})
    if report is not None:
        from jaxq.report import require_extra

        require_extra()
    with session(device=device, quiet=quiet, verbose=verbose):
        from jaxq import config
        from jaxq.data import open_data
        from jaxq.onnx_export import save
        from jaxq.onnx_import import load
        from jaxq.options import AdvancedQuantizationParameters, QuantizeOptions
        from jaxq.quantize import quantize

        started = time.perf_counter()
        options = QuantizeOptions(
            preset=preset,
            target_device=target,
            subset_size=subset_size,
            fast_bias_correction=bias_correction == "fast",
            model_type=model_type,
            ignored_scope=ignored_scope(ignore, ignore_pattern, ignore_type),
            advanced_parameters=AdvancedQuantizationParameters(
                activations_range_estimator_params=None if range_estimator == "mse" else range_estimator,
                disable_bias_correction=bias_correction == "off",
                weights_quantization_params=_grid(weight_bits, per_tensor),
                activations_quantization_params=_grid(activation_bits),
            ),
            seed=seed,
            batch_size=batch_size,
        )
        loaded, axis = load(model), axis_of(batch_axis)
        images = image_options(resize, crop, mean, std, layout, color)
        samples = open_data(data, loaded, limit=subset_size, images=images, batch_axis=axis)
        found = None
        if max_drop is None:
            quantized = quantize(loaded, samples, **options.arguments())
        else:
            validation = open_data(
                val or data, loaded, images=images, batch_axis=axis, label=None if metric is None else "label"
            )
            quantized, found = accuracy.quantize_within(
                choices, loaded, samples, validation, output, options, quiet=quiet
            )
        save(quantized, output)
        if save_config is not None:
            job = config.of_call(model, data, options, images=images, batch_axis=axis, accuracy=choices.section())
            config.write_job(job, save_config)
        seconds = time.perf_counter() - started
    result = {
        "model": str(model),
        "output": str(output),
        "float_bytes": bytes_of(model, loaded.params),
        "quantized_bytes": bytes_of(output, load(output).params),
        "quantized_activations": len(quantized.encodings.keys() - quantized.params.keys()),
        "quantized_params": len(quantized.encodings.keys() & quantized.params.keys()),
        "seconds": round(seconds, 3),
        "metadata": dict(quantized.metadata),
    }
    if found is not None:
        result["accuracy"] = found.to_dict()
    write_json(result, json_path)
    if report is not None:
        from jaxq.files import write_text
        from jaxq.report import quantized_page

        write_text(report, quantized_page(quantized, output.name, result))
    if not quiet and json_path != "-":
        if found is not None:
            print(found.table())
        print("{output}: {float_bytes:,} -> {quantized_bytes:,} bytes, in {seconds:.1f} s".format_map(result))
        print(f"now check it: jaxq verify {shlex.quote(str(output))} --data {shlex.quote(data)}")
    if found is not None and found.status != "reached":
        raise typer.Exit(TARGET_MISSED)


def _grid(bits: int | None, per_tensor: bool = False) -> QuantizationParameters | None:
    """How a class of tensors is quantized; None: nothing was asked for."""
    from jaxq.schemes import QuantizationParameters

    if bits is None and not per_tensor:
        return None
    return QuantizationParameters(num_bits=bits, per_channel=False if per_tensor else None)
