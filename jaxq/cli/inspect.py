"""`jaxq inspect`: what a model holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxq.cli.options import WORDS, JsonPath, ModelPath, Quiet, TargetOrOwn, Verbose
from jaxq.cli.session import check_outputs, in_words, session, write_json
from jaxq.errors import told

if TYPE_CHECKING:
    from jaxq.analysis.inspect import Summary


@told(WORDS)
def inspect(
    model: ModelPath,
    target: TargetOrOwn = None,
    json_path: JsonPath = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Show what a model holds.

    Its inputs and outputs, operators and weights, and which of its nodes a target would compute in integers; of a quantized
    model, of any tool, what the target would refuse, compute wrongly or leave slow. Without --target, a file that says which
    target it was made for is judged for that one, and any other for onnxruntime.
    """
    check_outputs({"--json": json_path}, {"MODEL": model})
    with session(quiet=quiet, verbose=verbose):
        from jaxq import load
        from jaxq.analysis.inspect import summarize
        from jaxq.placement.targets import named_target

        loaded = load(model)
        target = target or named_target(loaded.metadata)
        summary = summarize(loaded, target)
    write_json({"model": str(model), "target": target} | summary.to_dict(), json_path)
    if not quiet and json_path != "-":
        print_summary(summary, target)


def print_summary(summary: Summary, target: str) -> None:
    """The summary as lines and a table."""
    from rich.console import Console
    from rich.table import Table

    from jaxq.placement.targets import find_target

    console = Console(highlight=False, markup=False, soft_wrap=True)
    for title, types in (("input", summary.inputs), ("output", summary.outputs)):
        for name, each in types.items():
            console.print(f"{title:8s} {name}: {each}")
    console.print(
        "opset    " + ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in summary.opsets.items())
    )
    console.print(f"weights  {summary.parameter_count:,} in {in_words(summary.parameter_bytes)}")
    console.print(f"Q/DQ     {'yes: this model is quantized' if summary.quantized else 'none'}")
    known = find_target(target)
    console.print(f"target   {target}: {known.title}. {known.evidence}")
    for key, value in summary.metadata.items():
        console.print(f"         {key} = {value}")
    table = Table("operator", box=None)
    table.add_column("nodes", justify="right")
    table.add_column("" if summary.quantized else f"for target {target}")
    for op, count in summary.operators.items():
        fates = [f"{many} {fate}" for fate, many in summary.fates.get(op, {}).items()]
        table.add_row(op, str(count), "\n".join(fates))
    console.print(table)
    if summary.quantized:
        from jaxq.analysis.lint import describe

        console.print(f"\nfor target {target}: {len(summary.findings) or 'no'} finding(s)")
        for line in describe(summary.findings):
            console.print(line)
