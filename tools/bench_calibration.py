"""What calibration costs, in time and memory: every range estimator, a plain forward pass, ONNX Runtime's calibrators.

    python tools/bench_calibration.py MODEL.onnx [--shape 3,224,224] [-n 64] [--estimators mse,entropy] [--runtime]

Each line is measured in a process of its own. Seconds are after compilation; `forward` runs the same samples in the same batches
and keeps nothing; `ranges` is what follows the pass (of `auto`, a second one over 16 samples, with its compilation); memory is
the process's peak. CPU seconds count where other work shares the machine. MODEL may be a skeleton whose weights are seeds
(`*.onnx.xz`), built by the script given with --skeleton. With --memory 64,1024 the peak is compared for these numbers of samples,
of the pass with each estimator and of the whole of `jaxq.quantize`. Data are random numbers, made anew on each pass.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ESTIMATORS = ("minmax", "mean_minmax", "mean_quantile", "histogram", "percentile", "mse", "entropy", "auto")
QUANTIZE = "quantize"  # the whole of `jaxq.quantize`, as by default
RUNTIME = ("MinMax", "Percentile", "Entropy")


class Images:
    """`count` random samples, the same on each pass."""

    def __init__(self, name: str, shape: tuple[int, ...], count: int):
        self.name, self.shape, self.count = name, shape, count

    def __iter__(self) -> Iterator[dict[str, Any]]:
        import numpy as np

        random = np.random.default_rng(0)
        for _ in range(self.count):
            yield {self.name: random.standard_normal((1, *self.shape), dtype=np.float32)}


def built(path: Path, skeleton: Path) -> Path:
    """The model's path; a skeleton is built into a temporary file first."""
    if path.suffix != ".xz":
        return path
    import onnx

    spec = importlib.util.spec_from_file_location("skeleton", skeleton)
    if spec is None or spec.loader is None:
        sys.exit(f"error: no Python module in {skeleton}; give the script with --skeleton")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    target = Path(tempfile.mkdtemp()) / path.name.removesuffix(".xz")
    onnx.save(module.build(str(path)), target)
    return target


def plan_of(model: Any) -> Any:
    """Every float input of a convolution, a product or a sum, asymmetric."""
    from jaxq.numerics.quantizer import IntType, Scheme
    from jaxq.placement.place import Plan

    readers = [node for _, node in model.graph.walk() if node.op in ("Conv", "Gemm", "MatMul", "Add")]
    names = dict.fromkeys(name for node in readers for name in node.inputs[:2] if name and name not in model.params)
    scheme = Scheme(IntType(8, signed=False), symmetric=False)
    return Plan(model.graph, {name: name for name in names}, dict.fromkeys(names, scheme), (), (), ())


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """One line of the table, in this process."""
    kind, name = arguments.one.split(":")
    if name == QUANTIZE:
        found = measure_quantize(arguments)
    else:
        found = measure_runtime(arguments, name) if kind == "runtime" else measure_jaxq(arguments, name)
    return {"name": arguments.one, **found, "gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def measure_jaxq(arguments: argparse.Namespace, name: str) -> dict[str, float]:
    import jax

    from jaxq.algorithms.calibration import Calibration
    from jaxq.engine.collect import collect
    from jaxq.graph.fusion import fuse
    from jaxq.numerics.estimators import RangeEstimatorParametersSet
    from jaxq.onnx_io.load import load

    model = load(arguments.model)
    graph, params = fuse(model.graph, model.params)
    model = model.replace(graph=graph, params=params)
    shape = tuple(map(int, arguments.shape.split(",")))
    data = Images(model.graph.inputs[0], shape, arguments.n)
    warm = Images(model.graph.inputs[0], shape, min(arguments.n, 64))
    step = None
    needs: dict[str, Any] = {graph.outputs[0]: nothing()}
    if name != "forward":
        step = Calibration(plan=plan_of(model), capacity=arguments.n, activations=RangeEstimatorParametersSet.of(name))
        needs = dict(step.needs(model))
    start = time.perf_counter()
    jax.block_until_ready(collect(model, [needs], warm))
    first = time.perf_counter() - start
    start, cpu = time.perf_counter(), time.process_time()
    stats = collect(model, [needs], data)[0]
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    start = time.perf_counter()
    ranges = step.apply(model, stats, data).encodings if step else {}
    return {"first": first, "pass": seconds, "cpu": cpu, "ranges": time.perf_counter() - start, "tensors": len(ranges)}


def measure_quantize(arguments: argparse.Namespace) -> dict[str, float]:
    import jaxq

    model = jaxq.load(arguments.model)
    data = Images(model.graph.inputs[0], tuple(map(int, arguments.shape.split(","))), arguments.n)
    start = time.perf_counter()
    jaxq.quantize(model, data, subset_size=None)
    return {"pass": time.perf_counter() - start}


def nothing() -> Any:
    """An observer that keeps nothing but the sum of an output, so that the output is computed."""
    import jax.numpy as jnp

    from jaxq.numerics.observers import Observer

    return Observer(
        lambda count: jnp.zeros((count,), jnp.float32),
        lambda tensors, real: jnp.stack([x.sum() for x in tensors]),
        lambda state, seen, index: state + seen,
        lambda a, b: a + b,
    )


def measure_runtime(arguments: argparse.Namespace, name: str) -> dict[str, float]:
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """The same samples, one at a time."""

        def __init__(self) -> None:
            self.rest = iter(
                Images(input_name(arguments.model), tuple(map(int, arguments.shape.split(","))), arguments.n)
            )

        def get_next(self) -> dict[str, Any] | None:
            return next(self.rest, None)

    augmented = Path(tempfile.mkdtemp()) / "augmented.onnx"
    calibrator = create_calibrator(
        arguments.model, ["Conv", "Gemm", "MatMul", "Add"], str(augmented), getattr(CalibrationMethod, name)
    )
    start, cpu = time.perf_counter(), time.process_time()
    calibrator.collect_data(Reader())
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    start = time.perf_counter()
    data = calibrator.compute_data()
    return {
        "first": 0.0,
        "pass": seconds,
        "cpu": cpu,
        "ranges": time.perf_counter() - start,
        "tensors": len(list(data.items())),
    }


def input_name(path: str) -> str:
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    constants = {each.name for each in graph.initializer}
    return next(each.name for each in graph.input if each.name not in constants)


def run(arguments: argparse.Namespace, what: str, count: int) -> dict[str, Any]:
    """One measurement in a process of its own."""
    command = [
        sys.executable,
        __file__,
        str(arguments.model),
        "--shape",
        arguments.shape,
        "-n",
        str(count),
        "--one",
        what,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: {what} failed: {done.stderr.strip()[-800:]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--skeleton", type=Path, help="the script that builds models whose weights are seeds")
    parser.add_argument("--shape", default="3,224,224", help="of one sample, without the batch axis")
    parser.add_argument("-n", type=int, default=64)
    parser.add_argument("--estimators", default=",".join(ESTIMATORS))
    parser.add_argument("--runtime", action="store_true", help="ONNX Runtime's calibrators too")
    parser.add_argument("--memory", help="two numbers of samples, for each estimator's peak memory")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments)))
        return
    arguments.model = built(Path(arguments.model), arguments.skeleton)
    names = [f"jaxq:{each}" for each in arguments.estimators.split(",") if each]
    if arguments.memory:
        counts = [int(each) for each in arguments.memory.split(",")]
        print(f"| estimator | {' | '.join(f'GB, {each} samples' for each in counts)} |\n|---|{'---|' * len(counts)}")
        for name in (*names, f"jaxq:{QUANTIZE}"):
            peaks = [run(arguments, name, each)["gb"] for each in counts]
            print(f"| {name} | {' | '.join(f'{peak:.2f}' for peak in peaks)} |", flush=True)
        return
    names = ["jaxq:forward", *names, *(f"runtime:{each}" for each in RUNTIME if arguments.runtime)]
    columns = ("calibrator", "tensors", "first pass, s", "pass, s", "CPU, s", "ranges, s", "CPU of forward", "GB")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    forward = 0.0
    for name in names:
        found = run(arguments, name, arguments.n)
        forward = forward or found["cpu"]
        both = found["cpu"] + found["ranges"]
        print(
            f"| {name} | {found['tensors']} | {found['first']:.1f} | {found['pass']:.2f} | {found['cpu']:.2f} | "
            f"{found['ranges']:.2f} | {both / forward:.2f} | {found['gb']:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
