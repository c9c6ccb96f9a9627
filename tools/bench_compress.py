"""Compresses the weights of a real model in several ways and prints what is left of its accuracy, and its time, in ONNX Runtime.

    python tools/bench_compress.py [TASK] [--data ../shared/data] [-n ROWS] [--calibration 64]

DATA as in `bench_accuracy.py`. The time is that of one sample on one thread, the best of 20; merged are the products that the
runtime computes with MatMulNBits, of all with constant weights.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
from bench_accuracy import ROWS, evaluate_module, size

import jaxq

WAYS: tuple[dict[str, Any], ...] = (
    {"mode": "int8_sym"},
    {"mode": "int4_sym", "group_size": 128},
    {"mode": "int4_sym", "group_size": 32},
    {"mode": "int4_asym", "group_size": 32},
    {"mode": "int4_asym", "group_size": 32, "gptq": True},
    {"mode": "int4_asym", "group_size": 32, "gptq": True, "all_layers": True},
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", nargs="?", default="minilm_stsb")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("-n", "--rows", type=int)
    parser.add_argument("--calibration", type=int, default=64)
    arguments = parser.parse_args()
    evaluate = evaluate_module(arguments.data)
    task = evaluate.TASKS[arguments.task]
    rows = arguments.rows or ROWS.get(arguments.task)
    feeds = list(task.calib(arguments.calibration))
    float_value = task.metric(evaluate.ort_run(task.model), rows)
    print(f"{float_value['metric']} of {arguments.task}, n = {float_value['n']}, onnxruntime {onnxruntime.__version__}")
    print("| weights | metric | bytes | ms | merged | seconds |\n|---|---|---|---|---|---|")
    fast, _, products = executed(task.model, feeds[0])
    print(f"| float32 | {float_value['value']:.4f} | {size(Path(task.model)):,} | {fast:.2f} | | |")
    with tempfile.TemporaryDirectory() as folder:
        for number, options in enumerate(WAYS):
            start, out = time.perf_counter(), Path(folder) / f"{number}.onnx"
            compressed = jaxq.compress_weights(task.model, dataset=feeds if options.get("gptq") else None, **options)
            jaxq.save(compressed, out)
            seconds = time.perf_counter() - start
            value = task.metric(evaluate.ort_run(str(out)), rows)["value"]
            title = ", ".join(f"{key}={each}" for key, each in options.items())
            fast, merged, _ = executed(str(out), feeds[0])
            print(
                f"| {title} | {value:.4f} | {size(out):,} | {fast:.2f} | {merged} of {products} | {seconds:.1f} |",
                flush=True,
            )


def executed(path: str, feed: dict[str, Any]) -> tuple[float, int, int]:
    """Milliseconds of a run, and in the optimized graph the MatMulNBits and the float products with constant weights."""
    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads, session_options.log_severity_level = 1, 3
    with tempfile.TemporaryDirectory() as folder:
        session_options.optimized_model_filepath = f"{folder}/optimized.onnx"
        session = onnxruntime.InferenceSession(path, session_options, providers=["CPUExecutionProvider"])
        graph = onnx.load(session_options.optimized_model_filepath).graph
    weights = {each.name for each in graph.initializer}
    merged = sum(node.op_type == "MatMulNBits" for node in graph.node)
    floats = sum(
        "MatMul" in node.op_type or "Gemm" in node.op_type for node in graph.node if weights & {*node.input[1:2]}
    )
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        session.run(None, feed)
        best = min(best, time.perf_counter() - start)
    return best * 1e3, merged, floats - merged


if __name__ == "__main__":
    main()
