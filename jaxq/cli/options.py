"""Options that several commands have, said once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict

import typer

from jaxq.errors import Words, inside

if TYPE_CHECKING:
    from jaxq.data import ImageOptions
    from jaxq.graph.select import IgnoredScope

LARGEST_COUNT = 10**6  # of samples

# What arguments of calls are here.
WORDS = Words(
    {
        ("model",): ("MODEL",),
        ("calibration_dataset",): ("--data",),
        ("dataset",): ("--data",),
        ("validation_dataset",): ("--val",),
        ("validation",): ("--val",),
        ("target_device",): ("--target",),
        ("target",): ("--target",),
        ("ignored_scope", "names"): ("--ignore",),
        ("ignored_scope", "patterns"): ("--ignore-pattern",),
        ("ignored_scope", "types"): ("--ignore-type",),
        ("advanced_parameters", "activations_range_estimator_params"): ("--range-estimator",),
        ("advanced_parameters", "activations_quantization_params", "num_bits"): ("--activation-bits",),
        ("advanced_parameters", "weights_quantization_params", "num_bits"): ("--weight-bits",),
        ("repairs",): ("--repair",),
        ("max_num_iterations",): ("--max-iter-num",),
        ("intermediate_model_dir",): ("--work",),
        ("group_size_fallback_mode",): ("--group-size-fallback",),
        **{("images", key): (f"--{key}",) for key in ("resize", "crop", "mean", "std", "layout", "color")},
        **{
            (key,): (f"--{key.replace('_', '-')}",)
            for key in (
                *(
                    "preset",
                    "subset_size",
                    "model_type",
                    "seed",
                    "batch_size",
                    "batch_axis",
                    "max_drop",
                    "drop_type",
                    "metric",
                ),
                *("ranking", "search", "time_budget", "mode", "group_size", "backup_mode", "ratio", "gptq"),
            )
        },
    }
)


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
        help=".npz (keys are input names, first axis samples), .npy, a folder, pattern or .txt list of images or of "
        ".npy/.npz files, or package.module:function, which returns an iterable.",
        show_default=False,
    ),
]
OptionalData = Annotated[
    str | None, typer.Option(metavar="DATA", help="Samples, in the forms that `jaxq quantize --data` takes.")
]
Output = Annotated[
    Path, typer.Option("--output", "-o", metavar="OUT.onnx", help="The file to write.", show_default=False)
]
SubsetSize = Annotated[int, typer.Option(metavar="COUNT", min=1, max=LARGEST_COUNT, help="How many samples to use.")]
Ignore = Annotated[list[str] | None, typer.Option(metavar="NAME", help="A node that stays in float; may be repeated.")]
IgnorePattern = Annotated[
    list[str] | None, typer.Option(metavar="REGEX", help="The same for all nodes whose whole name matches.")
]
IgnoreType = Annotated[
    list[str] | None, typer.Option(metavar="OPERATOR", help="The same for all nodes of an operator.")
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        metavar="COUNT",
        min=1,
        max=LARGEST_COUNT,
        help="Samples run at a time; a matter of speed.",
        show_default="chosen",
    ),
]
Target = Annotated[str, typer.Option(metavar="NAME", help="The runtime that executes the file.")]
TargetOrOwn = Annotated[
    str | None,
    typer.Option(
        "--target",
        metavar="NAME",
        help="The runtime that executes the file.",
        show_default="the one that the file names, else onnxruntime",
    ),
]
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
BatchAxis = Annotated[
    str, typer.Option(metavar="NUMBER|none", help="The axis along which an item of the data holds samples.")
]


class Reading(TypedDict):
    """How data become samples: keywords of `open_data` and of a configuration."""

    images: ImageOptions
    batch_axis: int | None


def reading(
    resize: Any, crop: Any, mean: Any, std: Any, layout: str | None, color: str | None, batch_axis: str
) -> Reading:
    """What the options for images, and --batch-axis, say."""
    from jaxq.data import ImageOptions

    images = ImageOptions(resize=resize, crop=crop, mean=mean, std=std, layout=layout, color=color)
    return Reading(images=images, batch_axis=axis_of(batch_axis))


def axis_of(text: str) -> int | None:
    """The axis that --batch-axis names."""
    if text != "none" and not text.isdecimal():
        raise typer.BadParameter(f"{text!r} is neither the number of an axis nor none", param_hint="'--batch-axis'")
    return None if text == "none" else int(text)


def ignored_scope(names: list[str] | None, patterns: list[str] | None, types: list[str] | None) -> IgnoredScope:
    """What --ignore, --ignore-pattern and --ignore-type leave in float."""
    from jaxq.graph.select import IgnoredScope

    with inside("ignored_scope"):
        return IgnoredScope(tuple(names or ()), tuple(patterns or ()), tuple(types or ()))
