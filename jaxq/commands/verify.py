"""`jaxq verify`: the written file in its runtime against the simulation."""

from __future__ import annotations

from typing import Annotated

import typer

from jaxq.commands.options import (
    LARGEST_COUNT,
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
from jaxq.commands.session import TARGET_MISSED, check_outputs, session, write_json


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
    batch_axis: BatchAxis = "0",
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

        how = reading(resize, crop, mean, std, layout, color, batch_axis)
        opened = open_data(data, load(model), limit=samples, **how)
        found = verify(model, opened, samples=samples)
    write_json(found.to_dict(), json_path)
    if not quiet and json_path != "-":
        print(found.table())
    if not found.ok:
        raise typer.Exit(TARGET_MISSED)
