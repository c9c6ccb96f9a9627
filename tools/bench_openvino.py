"""Quantizes real models for OpenVINO and prints what its CPU plugin makes of them: products in integers, time, and the metric.

    python tools/bench_openvino.py [TASK ...] [--data ../shared/data] [-n ROWS] [--calibration 64]

DATA as in `bench_accuracy.py`. Each task is quantized twice: as the table says, and with all activations unsigned (zero point 128
where a range is symmetric), as it said before. "In OpenVINO" and "simulated" are the metric on the same ROWS samples. The time is
that of one sample on one thread, the best of 20.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from bench_accuracy import evaluate_module

import jaxq

TASKS = ("cifar_resnet20", "mobilenetv2_1.0", "vit_cifar_a", "minilm_stsb")
PRODUCTS = frozenset({"Convolution", "GroupConvolution", "ConvolutionBackpropData", "MatMul"})
OPTIONS = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=TASKS)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("-n", "--rows", type=int, default=200)
    parser.add_argument("--calibration", type=int, default=64)
    arguments = parser.parse_args()
    evaluate = evaluate_module(arguments.data)
    print(f"openvino {openvino.__version__}, n = {arguments.rows}")
    print("| task | activations | products in integers | other nodes | ms | float | simulated | in OpenVINO |")
    print("|---|---|---|---|---|---|---|---|")
    for name in arguments.tasks:
        task = evaluate.TASKS[name]
        feeds = list(task.calib(arguments.calibration))
        before = task.metric(evaluate.ort_run(task.model), arguments.rows)["value"]
        for title, signed in (("int8 or uint8", None), ("uint8", False)):
            asked = jaxq.QuantizationParameters(signedness_to_force=signed)
            options = jaxq.AdvancedQuantizationParameters(activations_quantization_params=asked)
            quantized = jaxq.quantize(
                task.model, jaxq.Dataset(feeds), target_device="openvino", advanced_parameters=options
            )
            with tempfile.TemporaryDirectory() as folder:
                jaxq.save(quantized, f"{folder}/model.onnx")
                runtime = InOpenVino(f"{folder}/model.onnx", feeds[0])
                simulated = task.metric(as_run(quantized), arguments.rows)["value"]
                found = task.metric(runtime, arguments.rows)["value"]
            print(
                f"| {name} | {title} | {runtime.integer} of {runtime.products} | {runtime.others} | {runtime.best:.2f} "
                f"| {before:.4f} | {simulated:.4f} | {found:.4f} |",
                flush=True,
            )


def as_run(model: jaxq.Model) -> Any:
    """The model as the function that the tasks call: feed -> list of outputs."""
    return lambda feed: [np.asarray(value) for value in model(feed).values()]


class InOpenVino:
    """A file in the CPU plugin: its time for one sample, and which products run in integers."""

    def __init__(self, path: str, feed: Mapping[str, np.ndarray]):
        core = openvino.Core()
        network = core.read_model(path)
        network.reshape({name: list(np.shape(value)) for name, value in feed.items()})
        compiled = core.compile_model(network, "CPU", OPTIONS)
        # Attention is one node of several products, of which each is named.
        products = {op.get_friendly_name() for op in network.get_ops() if op.get_type_name() in PRODUCTS}
        kinds: Counter[str] = Counter()
        found: dict[str, bool] = {}
        for op in compiled.get_runtime_model().get_ops():
            info = {key: str(getattr(value, "value", value)) for key, value in op.get_rt_info().items()}
            kinds[info["layerType"]] += 1
            whole = f",{info['originalLayersNames']},"
            mine = [name for name in products if f",{name}," in whole or f",{name}/" in whole]
            found |= dict.fromkeys(mine, info["runtimePrecision"] in ("i8", "u8"))
        self.integer, self.products = sum(found.values()), len(products)
        self.others = sum(kinds[each] for each in ("Convert", "FakeQuantize", "Subgraph"))
        request, self.best = compiled.create_infer_request(), float("inf")
        for _ in range(20):
            start = time.perf_counter()
            request.infer(dict(feed))
            self.best = min(self.best, 1000 * (time.perf_counter() - start))
        self.request = core.compile_model(path, "CPU", OPTIONS).create_infer_request()  # of any batch

    def __call__(self, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return [np.array(value) for value in self.request.infer(dict(feed)).values()]


if __name__ == "__main__":
    main()
