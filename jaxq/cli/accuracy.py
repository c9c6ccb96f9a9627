"""The part of `jaxq quantize` that keeps within a limit on the loss of accuracy: its options, and what it does with them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from jaxq import progress
from jaxq.errors import AccuracyError, ConfigError, Option

if TYPE_CHECKING:
    from jaxq.accuracy.options import AccuracySection
    from jaxq.accuracy.report import AccuracyReport
    from jaxq.engine.model import Model
    from jaxq.options import QuantizeOptions

MaxDrop = Annotated[
    float | None,
    typer.Option(metavar="NUMBER", help="The metric's largest drop; what costs more stays in float.", show_default="any"),
]  # fmt: skip
DropKind = Annotated[
    Literal["absolute", "relative"],
    typer.Option("--drop-type", metavar="absolute|relative", help="As a difference, or as a part of the float model's value."),
]  # fmt: skip
MetricName = Annotated[
    str | None,
    typer.Option(
        "--metric",
        metavar="NAME",
        help="top1, top5, mse, psnr, cosine, spearman, map, miou, perplexity, or package.module:function.",
        show_default="likeness to the float model, without labels",
    ),
]
ValidationData = Annotated[
    str | None,
    typer.Option("--val", metavar="DATA", help="Where the metric is taken; labels under the key `label`.", show_default="--data"),
]  # fmt: skip
RankingKind = Annotated[
    Literal["alone", "gradient", "exact"],
    typer.Option(
        "--ranking",
        metavar="alone|gradient|exact",
        help="Order layers by quantizing each alone, by one backward pass, or by reverting each alone.",
    ),
]  # fmt: skip
SearchKind = Annotated[
    Literal["bisect", "pot"],
    typer.Option("--search", metavar="bisect|pot", help="Find the layers by bisection, or one by one as OpenVINO POT does."),
]  # fmt: skip
Repairs = Annotated[
    list[str] | None,
    typer.Option(
        "--repair",
        metavar="NAME",
        help="Try this before float: range_estimator, bias_correction, int16_activations, int8_weights; may be repeated.",
    ),
]
TimeBudget = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", help="End the search then, with the best so far.", show_default="none"),
]
MaxReverts = Annotated[
    int | None,
    typer.Option("--max-iter-num", metavar="COUNT", min=1, help="Revert at most so many layers.", show_default="all"),
]
Work = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="The best so far; the same command goes on from it.", show_default="OUT.search"),
]  # fmt: skip


def limits(max_drop: float | None, **said: Any) -> AccuracySection | None:
    """What the options say, as the section of a configuration file; None without a limit.

    Raises:
      ConfigError: an option is wrong, or means nothing without a limit; the metric is unknown.
    """
    given = {key: value for key, value in said.items() if value not in (None, [])}
    if max_drop is None:
        idle = [key for key in given if key not in ("drop_type", "ranking", "search")]  # these have defaults
        if idle:
            raise ConfigError(
                Option((idle[0],)), " is for ", Option(("max_drop",)), ", which is not given; e.g. --max-drop 0.01"
            )
        return None
    from jaxq.accuracy.options import AccuracySection
    from jaxq.analysis.metrics import find_metric

    if "metric" in given:
        find_metric(given["metric"])
    if "repairs" in given:
        given["repairs"] = tuple(given["repairs"])
    return AccuracySection(max_drop=max_drop, **given)


def without_folder(section: AccuracySection | None) -> AccuracySection | None:
    """The section as it is written: where a search is kept is a matter of each run."""
    return None if section is None else replace(section, intermediate_model_dir=None)


def work_folder(work: str | os.PathLike[str] | None, output: Path) -> Path:
    """Where the state of a search is kept."""
    return Path(work) if work is not None else output.with_name(f"{output.name}.search")


def remove_work(work: Path | None, output: Path) -> None:
    """Removes the state of a search that has reached its goal, unless the user has named a folder for it."""
    from jaxq.accuracy.store import remove

    if work is None:
        remove(work_folder(None, output))


class Steps:
    """Prints each candidate of a search on standard error as it is done, and keeps the last report."""

    def __init__(self, quiet: bool = False):
        self.quiet = quiet
        self.last: AccuracyReport | None = None

    def __call__(self, report: AccuracyReport) -> None:
        new = len(report.steps) > (0 if self.last is None else len(self.last.steps))
        self.last = report
        if new and not self.quiet:
            step = report.steps[-1]
            values = ", ".join(f"{name} {value:.5g} ({step.drops[name]:+.4g})" for name, value in step.values.items())
            progress.say(f"{len(report.steps) - 1:4d}  {step.what}: {values}")


def quantize_within(
    section: AccuracySection,
    model: Model,
    data: Iterable[Any],
    validation: Iterable[Any],
    output: Path,
    reports: tuple[str | Path | None, ...],
    options: QuantizeOptions,
    *,
    quiet: bool,
) -> tuple[Model, AccuracyReport]:
    """The most quantized model within the limit and the report; a step is printed as it is done.

    Where the limit cannot be kept, the report says so and the model is the best there is. When the user interrupts, the best so
    far is written to `output`.
    """
    from jaxq.accuracy.front import quantize_with_accuracy_control
    from jaxq.accuracy.store import REPORT, copy_best

    folder = work_folder(section.intermediate_model_dir, output)
    arguments = options.arguments() | replace(section, intermediate_model_dir=folder).arguments()
    arguments["advanced_quantization_parameters"] = arguments.pop("advanced_parameters")
    steps = Steps(quiet)
    try:
        found = quantize_with_accuracy_control(
            model,
            data,
            validation,
            on_step=steps,
            **arguments,
        )
    except AccuracyError as error:
        if error.best is None or error.report is None:
            raise
        print(f"error: {error}", file=sys.stderr)
        return error.best, error.report
    except KeyboardInterrupt:
        if steps.last is not None and steps.last.steps and (files := copy_best(folder, output, *reports)):
            limit = "within the limit" if any(step.reached for step in steps.last.steps) else "not within the limit"
            names = " with ".join(map(str, files))
            print(
                f"interrupted: the best model so far is {names}, {limit}; the same command goes on. The report so far: "
                f"{folder / REPORT}",
                file=sys.stderr,
            )
        raise
    assert steps.last is not None
    return found, steps.last
