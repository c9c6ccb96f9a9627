"""The part of `jaxq quantize` that keeps within a limit on the loss of accuracy: its options, and what it does with them."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from jaxq import progress
from jaxq.errors import AccuracyError, ConfigError

if TYPE_CHECKING:
    from jaxq.accuracy.report import AccuracyReport
    from jaxq.model import Model
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


@dataclass(frozen=True, kw_only=True)
class AccuracyChoices:
    """The options as given."""

    max_drop: float | None
    drop_type: str
    metric: str | None
    val: str | None
    ranking: str
    search: str
    repair: list[str] | None
    time_budget: float | None
    max_iter_num: int | None
    work: Path | None

    def folder(self, output: Path) -> Path:
        """Where the state of the search is kept."""
        return self.work or output.with_name(f"{output.name}.search")

    def clear(self, output: Path) -> None:
        """Removes the state of a search that has reached its goal, unless the user has named a folder for it."""
        from jaxq.accuracy.store import remove

        if self.work is None:
            remove(self.folder(output))

    def check(self) -> None:
        """Raises ConfigError for options that mean nothing without a limit, and for an unknown metric."""
        if self.max_drop is not None:
            from jaxq.metrics import find_metric

            if self.metric is not None:
                find_metric(self.metric)
            return
        plain = {"--metric": self.metric, "--val": self.val, "--repair": self.repair, "--time-budget": self.time_budget,
                 "--max-iter-num": self.max_iter_num, "--work": self.work}  # fmt: skip
        for option, value in plain.items():
            if value:
                raise ConfigError(f"{option} is for --max-drop, which is not given; e.g. --max-drop 0.01")

    def section(self) -> dict[str, Any] | None:
        """The same as the `accuracy` section of a configuration file; None without a limit."""
        if self.max_drop is None:
            return None
        said = {"max_drop": self.max_drop, "drop_type": self.drop_type, "metric": self.metric, "validation": self.val,
                "ranking": self.ranking, "search": self.search, "repairs": self.repair, "time_budget": self.time_budget,
                "max_num_iterations": self.max_iter_num}  # fmt: skip
        return {key: value for key, value in said.items() if value is not None}


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
    choices: AccuracyChoices,
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
    from jaxq.accuracy.options import AdvancedAccuracyRestorerParameters
    from jaxq.accuracy.store import REPORT, copy_best

    assert choices.max_drop is not None
    folder = choices.folder(output)
    parameters = AdvancedAccuracyRestorerParameters(
        max_num_iterations=choices.max_iter_num,
        ranking=choices.ranking,  # type: ignore[arg-type]
        search=choices.search,  # type: ignore[arg-type]
        repairs=tuple(choices.repair or ()),
        time_budget=choices.time_budget,
        intermediate_model_dir=folder,
    )
    arguments = options.arguments()
    arguments["advanced_quantization_parameters"] = arguments.pop("advanced_parameters")
    steps = Steps(quiet)
    try:
        found = quantize_with_accuracy_control(
            model,
            data,
            validation,
            choices.metric,
            max_drop=choices.max_drop,
            drop_type=choices.drop_type,
            advanced_accuracy_restorer_parameters=parameters,
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
