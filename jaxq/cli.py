"""The command line: a thin shell around the public functions.

It reads options, opens data, prints tables, and turns errors into one message and an exit code: 0 done, 2 bad use or
bad input, 3 an accuracy target was not reached, 130 interrupted. Nothing heavy is imported until a command runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from jaxq import cli_accuracy as accuracy
from jaxq import progress
from jaxq.errors import ConfigError, JaxqError, JaxqWarning

if TYPE_CHECKING:
    from jaxq.data import ImageOptions
    from jaxq.summary import Summary

BAD_INPUT, TARGET_MISSED, INTERRUPTED = 2, 3, 130
LARGEST_COUNT = 10**6  # of samples

app = typer.Typer(
    name="jaxq",
    help="Quantizes trained ONNX models on JAX: ONNX in, calibrated on the device, verified QDQ ONNX out.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog="Compiled programs are kept in the user's cache folder. JAXQ_CACHE_DIR names another one; empty keeps none.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; `arguments` are those of the process if None."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    verbose = not {"-v", "--verbose"}.isdisjoint(given)
    if not verbose:
        # Before JAX is imported. XLA logs every entry of the compilation cache that it will not load on this processor
        # as an error, compiles anew, and all is well (jax-ml/jax#38445). What matters comes as an exception.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    message = ""
    try:
        code = app(args=given, prog_name="jaxq", standalone_mode=False) or 0
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        code, message = BAD_INPUT, explain(error)
        if not message:
            raise  # a defect of jaxq, which shows itself as it is
        if verbose:
            message = traceback.format_exc() + message
    finally:
        progress.clear()
    if message:
        print(message, file=sys.stderr)
    if code == INTERRUPTED and arguments is None:
        sys.stdout.flush()
        os._exit(code)  # JAX's threads are still at work; taking the interpreter down under them can crash
    return code


def explain(error: Exception) -> str:
    """What to tell the user, or "" for what is not the user's doing."""
    if isinstance(error, JaxqError):
        return f"error: {error}"
    if isinstance(error, OSError):
        place = f": {error.filename!r}" if error.filename else ""
        return f"error: {error.strerror or error}{place}"
    if hasattr(error, "format_message"):  # a usage error of typer, or of click under it; they share no public base
        context = getattr(error, "ctx", None)
        return f"error: {error.format_message()}" + (f"\nsee `{context.command_path} --help`" if context else "")
    return ""


# ------------------------------------------------------------------------------------------------------------- options


def _size(text: str) -> int | tuple[int, int]:
    """One side in pixels, or HEIGHTxWIDTH."""
    try:
        sides = [int(side) for side in text.lower().split("x")]
    except ValueError:
        sides = []
    if len(sides) == 1:
        return sides[0]
    if len(sides) == 2:
        return sides[0], sides[1]
    raise typer.BadParameter(f"{text!r} is neither a number of pixels nor HEIGHTxWIDTH")


def _numbers(text: str) -> tuple[float, ...]:
    """Numbers separated by commas."""
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of numbers separated by commas") from None


ModelPath = Annotated[Path, typer.Argument(metavar="MODEL", help="The ONNX file.", show_default=False)]
QuantizedPath = Annotated[Path, typer.Argument(metavar="QUANTIZED", help="A file that jaxq wrote.", show_default=False)]
Data = Annotated[
    str,
    typer.Option(
        metavar="DATA",
        help=".npz (keys are input names, first axis samples), .npy, a folder of images or of .npy/.npz files, or "
        "package.module:function, which returns an iterable.",
        show_default=False,
    ),
]
Target = Annotated[str, typer.Option(metavar="NAME", help="The runtime that executes the file.")]
Device = Annotated[
    Literal["cpu", "gpu", "tpu"] | None,
    typer.Option(metavar="cpu|gpu|tpu", help="Where JAX runs.", show_default="its own choice"),
]
JsonPath = Annotated[str | None, typer.Option("--json", metavar="PATH", help="Write the result as JSON; - prints it.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print warnings and errors only.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more; show where an error comes from.")]

Resize = Annotated[
    Any,
    typer.Option(parser=_size, metavar="PIXELS", help="Images: their shorter side, or HEIGHTxWIDTH, before the crop."),
]
Crop = Annotated[
    Any,
    typer.Option(parser=_size, metavar="PIXELS", help="Images: the centre that is kept.", show_default="model's size"),
]
Mean = Annotated[
    Any, typer.Option(parser=_numbers, metavar="R,G,B", help="Images: subtracted from pixels of 0 to 255.")
]
Std = Annotated[Any, typer.Option(parser=_numbers, metavar="R,G,B", help="Images: what pixels are then divided by.")]
Layout = Annotated[
    Literal["NCHW", "NHWC"] | None,
    typer.Option(metavar="NCHW|NHWC", help="Images: order of axes.", show_default="the model's"),
]
Color = Annotated[
    Literal["rgb", "bgr", "gray"] | None,
    typer.Option(metavar="rgb|bgr|gray", help="Images: order of colours.", show_default="rgb or gray"),
]


def image_options(resize: Any, crop: Any, mean: Any, std: Any, layout: str | None, color: str | None) -> ImageOptions:
    from jaxq.data import ImageOptions

    return ImageOptions(resize=resize, crop=crop, mean=mean, std=std, layout=layout, color=color)


# ------------------------------------------------------------------------------------------------------- what all share


@contextlib.contextmanager
def session(*, device: str | None = None, quiet: bool = False, verbose: bool = False) -> Iterator[None]:
    """What every command does around its work: JAX's device and compilation cache, progress, plain warnings."""
    from jaxq.devices import use_device

    use_compilation_cache()
    platform = use_device(device)
    if verbose:
        print(f"running on {platform}", file=sys.stderr)
    with warnings.catch_warnings(), progress.quiet() if quiet else contextlib.nullcontext():
        warnings.simplefilter("always", JaxqWarning)
        show = warnings.showwarning

        def show_plainly(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, JaxqWarning):
                print(f"warning: {message}", file=sys.stderr)
            elif verbose:
                show(message, category, *place, **more)

        warnings.showwarning = show_plainly
        yield


def use_compilation_cache() -> None:
    """Keeps compiled programs between runs, in the user's cache folder, or in $JAXQ_CACHE_DIR; empty turns it off."""
    import jax

    cache_home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = os.environ.get("JAXQ_CACHE_DIR", str(Path(cache_home) / "jaxq"))
    if not folder or os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # no home, or a read-only one: only slower
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def check_outputs(outputs: Mapping[str, Any], inputs: Mapping[str, Any]) -> None:
    """Makes sure, before the work starts, that the files can be written and that none of them is an input or another output.

    Both map the option's name to a path, or to None or "-" (standard output), which do not count.
    """
    from jaxq.files import check_writable

    taken = {Path(path).resolve(): option for option, path in inputs.items() if path is not None}
    for option, path in outputs.items():
        if path is None or path == "-":
            continue
        check_writable(path)
        if (other := taken.get(Path(path).resolve())) is not None:
            raise ConfigError(f"{option} and {other} are the same file, {str(path)!r}; name another one with {option}")
        taken[Path(path).resolve()] = option


def write_json(result: dict[str, Any], path: str | None) -> None:
    """The result as a file, or on standard output for "-"."""
    from jaxq.files import write_text

    text = json.dumps(result, indent=2)
    if path == "-":
        print(text)
    elif path is not None:
        write_text(path, text + "\n")


def bytes_of(path: Path, params: Mapping[str, Any]) -> int:
    """The size of a model: of its file, or of its weights where these lie outside of the file."""
    return max(path.stat().st_size, sum(int(value.nbytes) for value in params.values()))


def in_words(count: int) -> str:
    """Bytes, e.g. 1.9 MB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


# ------------------------------------------------------------------------------------------------------------ commands


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
) -> None:
    """Quantizes trained ONNX models on JAX: ONNX in, calibrated on the device, verified QDQ ONNX out."""
    if version:
        from jaxq import __version__

        print(f"jaxq {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def quantize(
    model: ModelPath,
    data: Data,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT.onnx", help="The file to write.", show_default=False)
    ],
    preset: Annotated[
        Literal["performance", "mixed"] | None,
        typer.Option(
            metavar="performance|mixed",
            help="Activations symmetric, or asymmetric.",
            show_default="what costs the target nothing more",
        ),
    ] = None,
    target: Target = "onnxruntime",
    subset_size: Annotated[
        int, typer.Option(metavar="COUNT", min=1, max=LARGEST_COUNT, help="How many samples to use.")
    ] = 300,
    range_estimator: Annotated[
        Literal["mse", "mean_minmax", "minmax"],
        typer.Option(metavar="mse|mean_minmax|minmax", help="How ranges of activations follow from the samples."),
    ] = "mse",
    ignore: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A node that stays in float; may be repeated.")
    ] = None,
    ignore_pattern: Annotated[
        list[str] | None, typer.Option(metavar="REGEX", help="The same for all nodes whose whole name matches.")
    ] = None,
    ignore_type: Annotated[
        list[str] | None, typer.Option(metavar="OPERATOR", help="The same for all nodes of an operator.")
    ] = None,
    model_type: Annotated[
        Literal["transformer"] | None,
        typer.Option(metavar="transformer", help="Kind of network.", show_default="found out"),
    ] = None,
    bias_correction: Annotated[
        bool,
        typer.Option("--bias-correction/--no-bias-correction", help="Correct the mean error that rounding causes."),
    ] = True,
    max_drop: accuracy.MaxDrop = None,
    drop_type: accuracy.DropKind = "absolute",
    metric: accuracy.MetricName = None,
    val: accuracy.ValidationData = None,
    ranking: accuracy.RankingKind = "gradient",
    search: accuracy.SearchKind = "bisect",
    repair: accuracy.Repairs = None,
    time_budget: accuracy.TimeBudget = None,
    max_iter_num: accuracy.MaxReverts = None,
    work: accuracy.Work = None,
    seed: Annotated[int, typer.Option(metavar="NUMBER", help="Of what is random; written into the file.")] = 0,
    batch_size: Annotated[
        int | None,
        typer.Option(
            metavar="COUNT",
            min=1,
            max=LARGEST_COUNT,
            help="Samples run at a time; a matter of speed.",
            show_default="chosen",
        ),
    ] = None,
    device: Device = None,
    resize: Resize = None,
    crop: Crop = None,
    mean: Mean = None,
    std: Std = None,
    layout: Layout = None,
    color: Color = None,
    json_path: JsonPath = None,
    report: Annotated[Path | None, typer.Option(metavar="PAGE.html", help="Write a page to look at.")] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Quantize a trained model to 8 bits.

    It takes a few hundred samples, without labels. With --max-drop, as few layers as the accuracy demands stay in float; the exit
    code is 3 if that is not enough, and the best model is written all the same.
    """
    choices = accuracy.AccuracyChoices(
        max_drop=max_drop, drop_type=drop_type, metric=metric, val=val, ranking=ranking, search=search, repair=repair,
        time_budget=time_budget, max_iter_num=max_iter_num, work=work,
    )  # fmt: skip
    if max_drop is None:
        choices.refuse_unused()
    check_outputs(
        {"-o": output, "--json": json_path, "--report": report}, {"MODEL": model, "--data": data, "--val": val}
    )
    if report is not None:
        from jaxq.report import require_extra

        require_extra()
    with session(device=device, quiet=quiet, verbose=verbose):
        from jaxq import IgnoredScope, load, save
        from jaxq.data import open_data
        from jaxq.quantize import quantize

        started = time.perf_counter()
        loaded = load(model)
        images = image_options(resize, crop, mean, std, layout, color)
        calibration = open_data(data, loaded, limit=subset_size, images=images)
        options: dict[str, Any] = {
            "preset": preset,
            "target": target,
            "subset_size": subset_size,
            "range_estimator": range_estimator,
            "bias_correction": bias_correction,
            "model_type": model_type,
            "ignored_scope": IgnoredScope(tuple(ignore or ()), tuple(ignore_pattern or ()), tuple(ignore_type or ())),
            "seed": seed,
            "batch_size": batch_size,
        }
        found = None
        if max_drop is None:
            quantized = quantize(loaded, calibration, **options)
        else:
            validation = open_data(val or data, loaded, images=images, label=metric and "label")
            quantized, found = accuracy.quantize_within(
                choices, loaded, calibration, validation, output, options, quiet=quiet
            )
        save(quantized, output)
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


@app.command()
def inspect(
    model: ModelPath,
    target: Target = "onnxruntime",
    json_path: JsonPath = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Show what a model holds.

    Its inputs and outputs, operators and weights, and which of its nodes a target would compute in integers.
    """
    check_outputs({"--json": json_path}, {"MODEL": model})
    with session(quiet=quiet, verbose=verbose):
        from jaxq import load
        from jaxq.summary import summarize

        summary = summarize(load(model), target)
    write_json({"model": str(model), "target": target} | summary.to_dict(), json_path)
    if not quiet and json_path != "-":
        print_summary(summary, target)


def print_summary(summary: Summary, target: str) -> None:
    """The summary as lines and a table."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False, soft_wrap=True)
    for title, types in (("input", summary.inputs), ("output", summary.outputs)):
        for name, each in types.items():
            console.print(f"{title:8s} {name}: {each}")
    console.print(
        "opset    " + ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in summary.opsets.items())
    )
    console.print(f"weights  {summary.parameter_count:,} in {in_words(summary.parameter_bytes)}")
    console.print(f"Q/DQ     {'yes: this model is quantized' if summary.quantized else 'none'}")
    for key, value in summary.metadata.items():
        console.print(f"         {key} = {value}")
    table = Table("operator", box=None)
    table.add_column("nodes", justify="right")
    table.add_column("" if summary.quantized else f"for target {target}")
    for op, count in summary.operators.items():
        fates = [f"{many} {fate}" for fate, many in summary.fates.get(op, {}).items()]
        table.add_row(op, str(count), "\n".join(fates))
    console.print(table)


@app.command()
def verify(
    model: QuantizedPath,
    data: Data,
    samples: Annotated[
        int, typer.Option(metavar="COUNT", min=1, max=LARGEST_COUNT, help="How many samples to compare.")
    ] = 100,
    device: Device = None,
    resize: Resize = None,
    crop: Crop = None,
    mean: Mean = None,
    std: Std = None,
    layout: Layout = None,
    color: Color = None,
    json_path: JsonPath = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compare a quantized file with jaxq's simulation.

    It runs in ONNX Runtime, with graph optimizations off and on. The exit code is 3 if the two do not agree.
    """
    check_outputs({"--json": json_path}, {"QUANTIZED": model, "--data": data})
    with session(device=device, quiet=quiet, verbose=verbose):
        from jaxq import load
        from jaxq.data import open_data
        from jaxq.verify import verify

        images = image_options(resize, crop, mean, std, layout, color)
        found = verify(model, open_data(data, load(model), limit=samples, images=images), samples=samples)
    write_json(found.to_dict(), json_path)
    if not quiet and json_path != "-":
        print(found.table())
    if not found.ok:
        raise typer.Exit(TARGET_MISSED)


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where to write.")] = Path(
        "jaxq-demo"
    ),
    device: Device = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Run the whole job on a small model.

    It classifies handwritten digits and comes with jaxq. The table shows what 8 bits cost and gain.
    """
    from jaxq import demo

    with session(device=device, quiet=quiet, verbose=verbose):
        shown = demo.run(output)
    if not quiet:
        print(shown)


if __name__ == "__main__":
    sys.exit(main())
