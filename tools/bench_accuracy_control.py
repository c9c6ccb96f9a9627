"""Runs the accuracy control of jaxq and of nncf on the same models, data and limits, and prints them side by side.

    python tools/bench_accuracy_control.py [TASK ...] [--nncf PYTHON] [--hard] [--max-drop NUMBER] [-n ROWS] [--data FOLDER]
                                           [--search JSON] [--json FILE]

DATA is a folder with an `evaluate.py` that defines TASKS: name -> model path, `calib(n)` and `metric(run, n)`. PYTHON is the
interpreter of an environment with nncf, onnx and onnxruntime; without it only jaxq is run. JSON are search parameters of jaxq.

The metric is top-1; decibels for dncnn_s25, the rank correlation for minilm_stsb, the average precision at IoU 0.5 for
fastestdet, and the area under the ROC curve for silero_vad, of which ROWS counts frames. The limit is 0.01, and 0.03 decibels.

`--per-tensor` gives weights of 8 bits one scale for each tensor. `--hard` gives them 4 bits, too, and runs jaxq alone: nncf
quantizes ONNX models to 8 bits.

Each run is a process of its own. Seconds count the call alone, compilation included and importing not; CPU seconds are those of
all threads, which other work on the machine changes less. The value is that of the written file in ONNX Runtime; layers are
those with weights, in float of all; evaluations are of all the validation data for jaxq, and calls of the validation function
(on subsets too) for nncf.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bench_accuracy import REPOSITORY, calibration, evaluate_module

ROWS = {"kws_dscnn": 500, "cifar_resnet8": 500, "cifar_resnet20": 500, "vit_cifar_a": 300, "mobilenetv1_x0.25": 300,
        "squeezenet1.1": 150, "mobilenetv2_1.0": 150, "dncnn_s25": 4, "minilm_stsb": 200, "mnist_cnn": 1000,
        "fastestdet": 78, "silero_vad": 60}  # fmt: skip
LIMITS = {"dncnn_s25": 0.03}  # decibels
TRANSFORMERS = ("vit_cifar_a", "minilm_stsb")  # nncf has to be told
Run = Callable[[dict[str, np.ndarray]], list[np.ndarray]]
Items = list[tuple[dict[str, np.ndarray], Any]]
Score = Callable[[Run, Iterable[Any]], tuple[float, list[float] | None]]


@dataclass(frozen=True)
class Case:
    """Validation data, and what a model is worth on them.

    Attributes:
      items: (feed, target) of each.
      score: (what runs a model, some of the items) -> (the metric, its part for each item where it has parts).
      metric: the same by name, where jaxq has it.
    """

    items: Items
    score: Score
    metric: str | None = None


def mean_of(each: Callable[[np.ndarray, Any], float]) -> Score:
    def score(run: Run, items: Iterable[Any]) -> tuple[float, list[float]]:
        values = [each(run(feed)[0], target) for feed, target in items]
        return float(np.mean(values)), values

    return score


def rank_correlation(run: Run, items: Iterable[Any]) -> tuple[float, list[float]]:
    """Spearman's, of the cosines between the two embeddings of each feed and the targets."""
    pairs = [(run(feed)[0], target) for feed, target in items]
    cosines = [float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for (a, b), _ in pairs]
    found, wanted = (np.argsort(np.argsort(each, kind="stable")) for each in (cosines, [target for _, target in pairs]))
    each = 1 - 6 * (found - wanted) ** 2.0 / max(len(pairs) ** 2 - 1, 1)
    return float(each.mean()), each.tolist()


def classes(evaluate: Any, task: Any, rows: int) -> Case:
    hit = mean_of(lambda found, label: float(found.reshape(-1).argmax() == label))
    return Case(labelled(evaluate, task, rows), hit, "top1")


def pictures(evaluate: Any, _: Any, rows: int) -> Case:
    clean = [evaluate.noisy(picture, seed) for seed, picture in enumerate(evaluate._s12[:rows])]
    items: Items = [({"noisy": noisy[None, None]}, target) for target, noisy in clean]
    return Case(items, mean_of(lambda found, target: evaluate.psnr(found[0, 0], target)), "psnr")


def sentences(evaluate: Any, _: Any, rows: int) -> Case:
    data = evaluate.load(evaluate.S("stsb", "stsb_en_ids64.npz"))
    some = np.random.RandomState(0).permutation(len(data["test_score"]))[:rows]
    pairs = [evaluate.feed_ids(np.stack([data["test_a"][row], data["test_b"][row]])) for row in some]
    return Case(list(zip(pairs, data["test_score"][some], strict=True)), rank_correlation)


def vehicles(evaluate: Any, _: Any, rows: int) -> Case:
    """The average precision of all pictures together, and of each alone."""
    data = evaluate.load(evaluate.S("traffic98", "traffic98_352_jpeg95.npz"))

    def boxes(picture: int, kind: int) -> np.ndarray:
        return data["box"][(data["box_image"] == picture) & (data["box_class"] == kind)]

    def detected(found: np.ndarray) -> list[tuple[float, np.ndarray]]:
        corners, scores, kinds = evaluate.fastest_decode(found)
        vehicle = np.isin(kinds, (2, 5, 7))
        corners, scores = corners[vehicle], scores[vehicle]
        return [(scores[each], corners[each]) for each in evaluate.nms(corners, scores, 0.45)]

    def precision(parts: list[Any]) -> float:
        found = [(place, *each) for place, (some, _) in enumerate(parts) for each in some]
        return evaluate.average_precision(found, *zip(*(target for _, target in parts), strict=True))

    def score(run: Run, items: Iterable[Any]) -> tuple[float, list[float]]:
        parts = [(detected(run(feed)[0]), target) for feed, target in items]
        return precision(parts), [precision([part]) for part in parts]

    return Case([({"input.1": evaluate.fd_x(each)}, (boxes(each, 0), boxes(each, -1))) for each in range(rows)], score)


def streams(evaluate: Any, task: Any, rows: int) -> Case:
    """Sound with a label for each of its frames; the state that the network gives is its input for the next frame."""

    def score(run: Run, items: Iterable[Any]) -> tuple[float, None]:
        some = [np.stack(each) for each in zip(*items, strict=True)]
        evaluate.vad_audio = lambda: some
        return task.metric(run, rows)["value"], None

    return Case(list(zip(*evaluate.vad_audio(), strict=True)), score)


CASES = {"dncnn_s25": pictures, "minilm_stsb": sentences, "fastestdet": vehicles, "silero_vad": streams}


def case_of(evaluate: Any, name: str, rows: int) -> Case:
    return CASES.get(name, classes)(evaluate, evaluate.TASKS[name], rows)


def labelled(evaluate: Any, task: Any, rows: int) -> Items:
    """(feed of one sample, label) of the first rows, out of the hands of the metric that would count the hits."""
    found: Items = []

    def classify(
        run: Any, name: str, batches: Any, labels: Any, fix: Any = lambda outputs: outputs[0]
    ) -> dict[str, Any]:
        skipped = int(fix([np.arange(2000.0)[None]]).reshape(-1)[0])  # classes in front that have no label
        samples = [row[None] for batch in batches for row in batch]
        found.extend(({name: x}, int(label) + skipped) for x, label in zip(samples, labels, strict=False))
        return {}

    evaluate.classify = classify
    task.metric(None, rows)
    return found


def in_runtime(path: str | bytes) -> Run:
    """Runs a file in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda feed: session.run(None, feed)


class Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def spent(self) -> dict[str, float]:
        return {"seconds": time.perf_counter() - self.wall, "cpu": time.process_time() - self.cpu}


def run_jaxq(task: Any, feeds: list[Any], case: Case, arguments: argparse.Namespace, out: str) -> dict[str, Any]:
    import jaxq
    from jaxq.errors import AccuracyError

    warnings.simplefilter("ignore", jaxq.JaxqWarning)
    weights = None
    if arguments.hard or arguments.per_tensor:
        weights = jaxq.QuantizationParameters(num_bits=4 if arguments.hard else 8, per_channel=False)
    reports: list[Any] = []
    control = jaxq.quantize_with_accuracy_control  # imports what it needs

    def validate(model: Any, items: Any) -> tuple[float, list[float] | None]:
        return case.score(lambda feed: [np.asarray(each) for each in model(feed).values()], items)

    clock = Clock()
    try:
        model = control(
            task.model,
            feeds,
            case.items,
            case.metric or validate,
            max_drop=arguments.max_drop,
            advanced_quantization_parameters=jaxq.AdvancedQuantizationParameters(weights_quantization_params=weights),
            advanced_accuracy_restorer_parameters=jaxq.AdvancedAccuracyRestorerParameters(
                **json.loads(arguments.search)
            ),
            on_step=reports.append,
        )
    except AccuracyError as error:
        model = error.best
    spent = clock.spent()
    jaxq.save(model, out)
    report = reports[-1]
    return {
        **spent,
        "status": report.status,
        "evaluations": len(report.steps),
        "layers": [report.float_layers, report.weight_layers],
        "phases": dict(report.seconds),
        "kept": [each.layer for each in report.kept],
    }


def run_nncf(task: Any, feeds: list[Any], case: Case, arguments: argparse.Namespace, out: str) -> dict[str, Any]:
    import logging

    import nncf
    import onnx

    nncf.set_log_level(logging.ERROR)
    model, calls = onnx.load(task.model), [0]

    def validate(proto: Any, some: Any) -> tuple[float, list[float] | None]:
        calls[0] += 1
        return case.score(in_runtime(proto.SerializeToString()), list(some))

    parameters = nncf.AdvancedQuantizationParameters()
    if arguments.per_tensor:
        parameters.weights_quantization_params = nncf.quantization.advanced_parameters.QuantizationParameters(
            per_channel=False
        )
    clock = Clock()
    quantized = nncf.quantize_with_accuracy_control(
        model,
        nncf.Dataset(feeds),
        nncf.Dataset(case.items),
        validate,
        max_drop=arguments.max_drop,
        model_type=nncf.ModelType.TRANSFORMER if task.name in TRANSFORMERS else None,
        advanced_quantization_parameters=parameters,
    )
    spent = clock.spent()
    onnx.save(quantized, out)
    return {**spent, "evaluations": calls[0], "layers": weights_in_float(quantized)}


def weights_in_float(model: Any) -> list[int]:
    """[layers whose weight is read in float, layers with weights] of a QDQ model."""
    makers = {name: node for node in model.graph.node for name in node.output}
    stored = {each.name for each in model.graph.initializer}
    found = []
    for node in model.graph.node:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            continue
        name = node.input[1]
        if name in stored:
            found.append(True)
            continue
        maker = makers.get(name)
        while maker is not None and maker.op_type in ("DequantizeLinear", "QuantizeLinear", "Transpose", "Identity"):
            name = maker.input[0]
            maker = makers.get(name)
        if name in stored:
            found.append(False)
    return [sum(found), len(found)]


def measure(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One task with one tool, in this process."""
    evaluate = evaluate_module(arguments.data)
    task = evaluate.TASKS[name]
    case = case_of(evaluate, name, arguments.rows or ROWS.get(name, 300))
    feeds = calibration(evaluate, task, 100)
    if arguments.max_drop is None:
        arguments.max_drop = LIMITS.get(name, 0.01)
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "model.onnx")
        baseline = case.score(in_runtime(task.model), case.items)[0]
        found = (run_nncf if arguments.tool == "nncf" else run_jaxq)(task, feeds, case, arguments, out)
        value = case.score(in_runtime(out), case.items)[0]
    return {"task": name, "tool": arguments.tool, "n": len(case.items), "float": baseline, "value": value, **found}


def row(found: dict[str, Any]) -> str:
    if "error" in found:
        return f"| {found['task']} | {found['tool']} | fails: {found['error']} | | | | | | |"
    layers = " of ".join(map(str, found["layers"]))
    cells = (found["task"], found["tool"], found["n"], f"{found['float']:.4f}", f"{found['value']:.4f}", layers,
             found["evaluations"], f"{found['seconds']:.1f}", f"{found['cpu']:.1f}")  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*")
    parser.add_argument("--nncf", help="a Python interpreter that has nncf")
    parser.add_argument("--data", type=Path, default=REPOSITORY.parent / "shared" / "data")
    parser.add_argument("-n", "--rows", type=int)
    parser.add_argument("--max-drop", type=float)
    parser.add_argument("--hard", action="store_true", help="weights of 4 bits, one scale for each tensor")
    parser.add_argument("--per-tensor", action="store_true", help="weights of 8 bits, one scale for each tensor")
    parser.add_argument("--search", default="{}", help="search parameters of jaxq, as JSON")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tool", choices=["jaxq", "nncf"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.tool:
        print(json.dumps(measure(arguments.tasks[0], arguments)))
        return
    tools = [("jaxq", sys.executable), *([("nncf", arguments.nncf)] if arguments.nncf and not arguments.hard else [])]
    options = [each for each in sys.argv[1:] if each not in arguments.tasks]
    results = []
    columns = ("task", "tool", "n", "float", "written file", "layers in float", "evaluations", "s", "CPU s")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for name in arguments.tasks or ROWS:
        for tool, python in tools:
            command = [python, __file__, name, "--tool", tool, *options]
            done = subprocess.run(command, capture_output=True, text=True)
            last = (done.stdout.strip().splitlines() or [""])[-1]
            error = (done.stderr.strip().splitlines() or ["no output"])[-1]
            failed = {"task": name, "tool": tool, "error": error[:200]}
            results.append(json.loads(last) if done.returncode == 0 else failed)
            print(row(results[-1]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
