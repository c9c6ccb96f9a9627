"""The command line: a thin shell around the public functions.

It reads options, opens data, prints tables, and turns errors into one message and an exit code: 0 done, 2 bad use or
bad input, 3 an accuracy target was not reached, 130 interrupted. Nothing heavy is imported until a command runs.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from jaxq import progress
from jaxq.cli.compress import compress
from jaxq.cli.demo import demo
from jaxq.cli.inspect import inspect
from jaxq.cli.quantize import quantize
from jaxq.cli.run import run
from jaxq.cli.session import BAD_INPUT, INTERRUPTED, TARGET_MISSED
from jaxq.cli.verify import verify
from jaxq.errors import AccuracyError, JaxqError, did_you_mean

COMMANDS = (quantize, compress, run, inspect, verify, demo)  # in the order of `jaxq --help`

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
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m`: modules that options name may lie in the current folder
    message = ""
    try:
        code = app(args=given, prog_name="jaxq", standalone_mode=False) or 0
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED  # typer's own handling returns the same number
    except Exception as error:
        code, message = TARGET_MISSED if isinstance(error, AccuracyError) else BAD_INPUT, explain(error)
        if not message:
            raise  # a defect of jaxq, which shows itself as it is
        if verbose:
            message = traceback.format_exc() + message
    finally:
        progress.clear()
    if code == INTERRUPTED:
        message = "interrupted: the command was stopped before its end"
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
        message = error.format_message().replace("Value error, ", "")
        said, sign, known = message.partition(" is not one of ")
        if sign:
            message = message.rstrip(".") + did_you_mean(said.split("'")[-2], known.split("'")[1::2])
        return f"error: {message}" + (f"\nsee `{context.command_path} --help`" if context else "")
    return ""


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


for command in COMMANDS:
    app.command()(command)
