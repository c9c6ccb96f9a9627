"""Which range estimator leaves most of the signal: every one on real models, from one pass over the data each, as a table.

    python tools/bench_estimators.py [TASK ...] [--data FOLDER] [--estimators mse,auto] [--calibration 100] [--rows 200]
        [--set KEY=VALUE]

DATA is a folder as `tools/bench_accuracy.py` takes it. A cell is the signal to noise in dB of the simulated outputs against the
float model's, of the worst output, on rows that calibration did not see. Biases are not corrected, so that nothing but the ranges
differs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from bench_accuracy import REPOSITORY, calibration, evaluate_module, evaluated, signal_to_noise

import jaxq
from jaxq.algorithms import run_pipeline
from jaxq.algorithms.calibration import IntegerBiases
from jaxq.jobs.job import options_of
from jaxq.numerics.estimators import RangeEstimatorParametersSet
from jaxq.pipeline import prepare

ESTIMATORS = ("minmax", "mean_minmax", "percentile", "mse", "entropy", "histogram", "auto")


def measured(name: str, arguments: argparse.Namespace) -> list[float]:
    """Signal to noise in dB for each estimator."""
    evaluate = evaluate_module(arguments.data)
    task = evaluate.TASKS[name]
    feeds = calibration(evaluate, task, arguments.calibration)
    prepared = prepare(task.model, feeds, options_of(arguments.set))
    prepared = replace(prepared, model=run_pipeline(prepared.preserving(), prepared.model, prepared.data))
    unseen = list(first(evaluated(task, arguments.rows), arguments.rows))
    wanted = [outputs(prepared.model, feed) for feed in unseen]
    found = []
    for estimator in arguments.estimators.split(","):
        start = time.perf_counter()
        parameters = RangeEstimatorParametersSet.of(estimator)
        steps = (prepared.calibration(parameters), IntegerBiases(prepared.plan))
        model = run_pipeline([steps], prepared.model, prepared.data)
        found.append(signal_to_noise(wanted.__getitem__, lambda i, m=model: outputs(m, unseen[i]), range(len(unseen))))
        print(
            f"{name} {estimator}: {found[-1]:.2f} dB, {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True
        )
    return found


def outputs(model: jaxq.Model, feed: Any) -> list[Any]:
    return [np.asarray(value) for value in model(feed).values()]


def first(feeds: Iterable[Any], rows: int) -> Iterable[Any]:
    """So many of the feeds that they have that many rows."""
    for feed in feeds:
        if rows <= 0:
            return
        yield feed
        rows -= len(next(iter(feed.values())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*")
    parser.add_argument("--data", type=Path, default=REPOSITORY.parent / "shared" / "data")
    parser.add_argument("--estimators", default=",".join(ESTIMATORS))
    parser.add_argument("--calibration", type=int, default=100)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an option of jaxq.quantize")
    arguments = parser.parse_args()
    names = arguments.estimators.split(",")
    print(f"| task | {' | '.join(names)} |\n{'|---' * (len(names) + 1)}|")
    for task in arguments.tasks or list(evaluate_module(arguments.data).TASKS):
        cells = (f"{each:.1f}" for each in measured(task, arguments))
        print(f"| {task} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
