"""`jaxq verify`: the written file in its runtime against the simulation, and against the float model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jaxq.cli.options import (
    LARGEST_COUNT,
    WORDS,
    BatchAxis,
    Color,
    Crop,
    Data,
    Device,
    JsonPath,
    Layout,
    Mean,
    QuantizedPath,
    Quiet,
    Resize,
    Std,
    Verbose,
    reading,
)
from jaxq.cli.session import TARGET_MISSED, check_outputs, session, write_json
from jaxq.errors import told


@told(WORDS)
def verify(
    model: QuantizedPath,
    data: Data,
    float_model: Annotated[
        Path | None,
        typer.Option(
            "--float", metavar="MODEL", help="What the file was quantized from: measures what quantization costs."
        ),
    ] = None,
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
    batch_axis: BatchAxis = "0",
    json_path: JsonPath = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Say whether ONNX Runtime computes what a quantized file says.

    It runs with graph optimizations off and on, and is compared with jaxq's simulation layer by layer; with --float also with
    the float model: only that shows a file whose numbers are wrong. The exit code is 3 if runtime and simulation do not agree, or
    if an output is lost in noise against the float model.
    """
    check_outputs({"--json": json_path}, {"QUANTIZED": model, "--data": data, "--float": float_model})
    with session(device=device, quiet=quiet, verbose=verbose):
        from jaxq import load
        from jaxq.analysis.verify import verify
        from jaxq.data import open_data

        how = reading(resize, crop, mean, std, layout, color, batch_axis)
        opened = open_data(data, load(model), limit=samples, place=("dataset",), **how)
        found = verify(model, opened, samples=samples, float_model=float_model)
    write_json(found.to_dict(), json_path)
    if not quiet and json_path != "-":
        print(found.table())
    if not found.ok:
        raise typer.Exit(TARGET_MISSED)
