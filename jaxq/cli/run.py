"""`jaxq run`: what a configuration file says."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from jaxq.cli.options import Device, JsonPath, Quiet, Verbose
from jaxq.cli.session import check_outputs, session, write_json, written_files
from jaxq.errors import ConfigError


def run(
    config: Annotated[
        Path | None,
        typer.Argument(metavar="CONFIG", help="A JSON file: jaxq's own format, or POT's.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="Where to write.", show_default=False)
    ] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of jaxq's own format and end.")
    ] = False,
    device: Device = None,
    json_path: JsonPath = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Do what a configuration file says.

    The format is recognised. The folder gets NAME.onnx, and NAME.json with what was done. Where the file limits the loss of
    accuracy, the exit code is 3 if that is not reached, and the best model is written all the same.
    """
    if schema:
        from jaxq.jobs.schema import schema as schema_of

        print(json.dumps(schema_of(), indent=2))
        return
    if config is None or output is None:
        missing = "CONFIG" if config is None else "-o"
        raise ConfigError(f"{missing} is missing; write `jaxq run CONFIG.json -o FOLDER`")
    check_outputs({"--json": json_path}, {"CONFIG": config})
    with session(device=device, quiet=quiet, verbose=verbose):
        from jaxq.cli.accuracy import Steps
        from jaxq.jobs.run import run_file

        steps = Steps(quiet)
        sys.path.append(str(config.resolve().parent))  # modules that the file names may lie beside it
        try:
            result, missed = run_file(config, output, steps)
        except KeyboardInterrupt as interrupt:
            for note in getattr(interrupt, "__notes__", ()):
                print(f"interrupted: {note}", file=sys.stderr)
            raise
    write_json(result.report, json_path)
    if not quiet and json_path != "-":
        if steps.last is not None:
            print(steps.last.table())
        print(written_files(result.report) + ": {quantized_params} weights and biases, {quantized_activations} activations "
              "quantized, in {seconds:.1f} s".format_map(result.report))  # fmt: skip
    if missed is not None:
        raise missed
