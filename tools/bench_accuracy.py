"""Quantizes real models with the defaults and prints what is left of their accuracy in ONNX Runtime, as a table.

    python tools/bench_accuracy.py [TASK ...] [--data FOLDER] [-n ROWS] [--calibration 100] [--set KEY=VALUE]
        [--json FILE] [--out FOLDER]

DATA is a folder with an `evaluate.py` that defines TASKS: name -> model path, `calib(n)` and `metric(run, n)`. Each task is
quantized in a process of its own, so that seconds (reading and compilation included) and peak memory are its own. The metric
of the written file is taken in ONNX Runtime with all graph optimizations; the simulation is compared with ONNX Runtime
without optimizations on up to 200 samples. Columns: `snr`, signal to noise in dB of the written file's outputs against the float
model's on these samples, that of the worst output (a metric may forgive what this does not); `same class`, the share of these
samples for which both predict the same class; `steps`, the typical difference of the outputs in steps of an 8-bit grid;
`kernels`, integer kernels plus convolutions and products left in float, in the optimized graph.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
ROWS = {  # rows of the metric, as in the published comparison of other tools; -n overrides
    "cifar_resnet20": 2000, "cifar_resnet8": 2000, "vit_cifar_a": 1000, "squeezenet1.1": 400, "mobilenetv1_x0.25": 400,
    "mobilenetv2_1.0": 400, "minilm_stsb": 400, "mnist_cnn": 3000, "kws_dscnn": 900, "dncnn_s25": 6, "fastestdet": 78,
    "silero_vad": 368,
}  # fmt: skip


def evaluate_module(folder: Path) -> Any:
    spec = importlib.util.spec_from_file_location("evaluate", folder / "evaluate.py")
    if spec is None or spec.loader is None or not (folder / "evaluate.py").is_file():
        sys.exit(f"error: no evaluate.py in {folder}; give its folder with --data")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measure(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Quantizes and measures one task, in this process."""
    evaluate = evaluate_module(arguments.data)
    task = evaluate.TASKS[name]
    rows = arguments.rows or ROWS.get(name)
    feeds = calibration(evaluate, task, arguments.calibration)
    start = time.perf_counter()
    import jaxq
    from jaxq.jobs.job import options_of

    quantized = jaxq.quantize(task.model, feeds, **options_of(arguments.set).arguments())
    out = Path(arguments.out or tempfile.mkdtemp()) / f"{name}.onnx"
    jaxq.save(quantized, out)
    seconds = time.perf_counter() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    before = task.metric(evaluate.ort_run(task.model), rows)
    after = task.metric(evaluate.ort_run(str(out)), rows)
    feeds = evaluated(task, rows)
    snr = signal_to_noise(evaluate.ort_run(task.model), evaluate.ort_run(str(out)), feeds)
    report = jaxq.verify(str(out), feeds, samples=200)
    return {
        "task": name,
        "metric": before["metric"],
        "n": before["n"],
        "float": before["value"],
        "int8": after["value"],
        "drop": before["value"] - after["value"],
        "snr": snr,
        "agreement": report.agreement,
        "steps": max(each.typical_steps for each in report.outputs if each.runtime == "plain"),
        "integer": sum(report.integer_kernels.values()),
        "float_kernels": sum(report.float_kernels.values()),
        "float_bytes": size(Path(task.model)),
        "int8_bytes": size(out),
        "seconds": seconds,
        "memory_gb": memory,
    }


def calibration(evaluate: Any, task: Any, count: int) -> list[Any]:
    """The task's calibration feeds; where a recorded state is missing, it is made by running the float model."""
    try:
        return list(task.calib(count))
    except FileNotFoundError:
        run, feeds = evaluate.ort_run(task.model), []

        def record(feed: dict[str, Any]) -> Any:
            feeds.append(
                {
                    key: value[:1] if key == "input" else value[:, :1] if key == "state" else value
                    for key, value in feed.items()
                }
            )
            return run(feed)

        task.metric(record, count)
        return feeds


def evaluated(task: Any, rows: int | None) -> list[Any]:
    """The first 200 feeds on which the metric is taken."""
    import numpy as np

    import jaxq

    model, feeds = jaxq.load(task.model), []

    class Enough(Exception):
        """Ends the metric early."""

    def record(feed: dict[str, Any]) -> Any:
        feeds.append(feed)
        if len(feeds) >= 200:
            raise Enough
        return [np.asarray(value) for value in model(feed).values()]

    with contextlib.suppress(Enough):
        task.metric(record, rows)
    return feeds


def signal_to_noise(expected: Any, found: Any, feeds: list[Any]) -> float:
    """10 log10(sum x^2 / sum (x - y)^2) over all feeds, x the outputs of one run and y of the other; of the worst output."""
    import numpy as np

    sums: dict[int, Any] = {}
    for feed in feeds:
        for position, (x, y) in enumerate(zip(expected(feed), found(feed), strict=True)):
            x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
            sums[position] = sums.get(position, 0.0) + np.array([np.sum(x**2), np.sum((x - y) ** 2)])
    return float(min(10 * np.log10(signal / noise) if noise else np.inf for signal, noise in sums.values()))


def size(path: Path) -> int:
    """Bytes of a model with the data files beside it that bear its name."""
    return sum(each.stat().st_size for each in path.parent.glob(f"{path.stem}*") if each.suffix != ".npz")


def table(results: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    columns = ("task", "metric", "n", "float", "int8", "drop", "snr", "same class", "steps", "kernels", "MB", "s", "GB")
    rows = [columns, ("---",) * len(columns), *map(row, results)]
    lines = [f"| {' | '.join(cells)} |" for cells in rows]
    return "\n".join(lines)


def row(r: dict[str, Any]) -> tuple[str, ...]:
    if "error" in r:
        return (r["task"], f"fails: {r['error']}", *[""] * 11)
    return (
        r["task"],
        r["metric"],
        str(r["n"]),
        f"{r['float']:.4f}",
        f"{r['int8']:.4f}",
        f"{r['drop']:+.4f}",
        f"{r['snr']:.1f}",
        "-" if r["agreement"] is None else f"{r['agreement']:.2%}",
        f"{r['steps']:.2f}",
        f"{r['integer']} + {r['float_kernels']}",
        f"{r['float_bytes'] / 1e6:.2f} to {r['int8_bytes'] / 1e6:.2f}",
        f"{r['seconds']:.1f}",
        f"{r['memory_gb']:.2f}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*")
    parser.add_argument("--data", type=Path, default=REPOSITORY.parent / "shared" / "data")
    parser.add_argument("-n", "--rows", type=int)
    parser.add_argument("--calibration", type=int, default=100)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of jaxq.quantize, e.g. advanced_parameters.activations_range_estimator_params=minmax",
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--out", type=Path, help="folder for the quantized files")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.tasks[0], arguments)))
        return
    results = []
    for name in arguments.tasks or list(evaluate_module(arguments.data).TASKS):
        command = [sys.executable, __file__, name, "--one", *(a for a in sys.argv[1:] if a not in arguments.tasks)]
        done = subprocess.run(command, capture_output=True, text=True)
        last = (done.stdout.strip().splitlines() or [""])[-1]
        error = (done.stderr.strip().splitlines() or ["no output"])[-1]
        results.append(json.loads(last) if done.returncode == 0 else {"task": name, "error": error[:200]})
        print(table(results[-1:]).splitlines()[-1], flush=True)
    print("\n" + table(results))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
