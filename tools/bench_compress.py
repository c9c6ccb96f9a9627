"""Compresses the weights of a real model in several ways and prints what is left of its accuracy in ONNX Runtime.

    python tools/bench_compress.py [TASK] [--data ../shared/data] [-n ROWS] [--calibration 64]

DATA as in `bench_accuracy.py`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

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
    print(f"{float_value['metric']} of {arguments.task}, n = {float_value['n']}")
    print("| weights | metric | bytes | seconds |\n|---|---|---|---|")
    print(f"| float32 | {float_value['value']:.4f} | {size(Path(task.model)):,} | |")
    with tempfile.TemporaryDirectory() as folder:
        for number, options in enumerate(WAYS):
            start, out = time.perf_counter(), Path(folder) / f"{number}.onnx"
            compressed = jaxq.compress_weights(task.model, dataset=feeds if options.get("gptq") else None, **options)
            jaxq.save(compressed, out)
            seconds = time.perf_counter() - start
            value = task.metric(evaluate.ort_run(str(out)), rows)["value"]
            print(
                f"| {', '.join(f'{k}={v}' for k, v in options.items())} | {value:.4f} | {size(out):,} | {seconds:.1f} |"
            )


if __name__ == "__main__":
    main()
