"""`jaxq demo`: the whole job on a small model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jaxq.cli.options import Device, Quiet, Verbose
from jaxq.cli.session import session


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
