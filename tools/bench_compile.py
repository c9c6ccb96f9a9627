"""How long `jaxq.pipeline` takes where compiling is nearly all of it: each model in a process of its own, on a few samples.

    python tools/bench_compile.py MODEL.onnx ... [--skeleton skeleton.py] [-n 4] [--before FOLDER]

A MODEL may be a skeleton whose weights are seeds (`*.onnx.xz`), built by the script given with --skeleton. FOLDER is another
checkout of jaxq, measured in turns with this one. Samples are random numbers. *CPU* counts the processor time of all threads,
which other work on the machine changes little; *candidate* is one model of a search over the layers, compiled and run once.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

FIXED = {"s": 4000, "sequence": 576}  # sizes of free dimensions of numbers by name; others are 16, and 1 for the batch
LARGEST_TOKEN = 100


def built(path: Path, skeleton: Path, folder: str) -> Path:
    """The model's path; a skeleton is built into the folder first."""
    if path.suffix != ".xz":
        return path
    import onnx

    spec = importlib.util.spec_from_file_location("skeleton", skeleton)
    if spec is None or spec.loader is None:
        sys.exit(f"error: no Python module in {skeleton}; give the script with --skeleton")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    target = Path(folder) / path.name.removesuffix(".xz")
    onnx.save(module.build(str(path)), target)
    return target


def sample(inputs: Any, seed: int) -> dict[str, Any]:
    """Random numbers that fit: images are normal, tokens small integers, masks ones."""
    import numpy as np

    random, feed = np.random.default_rng(seed), {}
    for name, wanted in inputs.items():
        sizes, usual = list(wanted.shape or ()), FIXED if wanted.dtype.startswith("float") else {}
        shape = [
            size if isinstance(size, int) else usual.get(str(size), 1 if axis == 0 else 16)
            for axis, size in enumerate(sizes)
        ]
        if wanted.dtype.startswith("float"):
            feed[name] = random.standard_normal(shape).astype(wanted.dtype)
        elif name == "sr":
            feed[name] = np.array(16000, wanted.dtype)
        else:
            feed[name] = np.ones(shape, wanted.dtype) if "mask" in name else random.integers(1, LARGEST_TOKEN, shape)
    return feed


def measure(path: str, count: int) -> dict[str, float]:
    """Seconds and CPU seconds of `quantize`, CPU seconds of a candidate, and GB of the process."""
    import jax

    import jaxq
    from jaxq.accuracy.space import Space, quantized
    from jaxq.engine.batching import batches
    from jaxq.engine.stages import run_batch
    from jaxq.options import QuantizeOptions
    from jaxq.pipeline import prepare

    warnings.simplefilter("ignore")
    model = jaxq.load(path)
    samples = [sample(model.inputs, seed) for seed in range(count)]
    began, used = time.perf_counter(), time.process_time()
    jaxq.quantize(model, samples)
    found = {"s": time.perf_counter() - began, "CPU": time.process_time() - used}
    space = Space(quantized(prepare(model, samples, QuantizeOptions())))
    candidate = space.candidate({})
    used = time.process_time()
    for signature, batch in batches(candidate, samples[:1], 1):
        jax.block_until_ready(run_batch(candidate, signature, batch))
    found["candidate"] = time.process_time() - used
    return found | {"GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)}


def in_process(path: Path, count: int, package: Path) -> dict[str, float]:
    command = [sys.executable, __file__, str(path), "-n", str(count), "--child"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(package)})
    if done.returncode:
        return {"error": float("nan"), "why": done.stderr.strip().splitlines()[-1:] or ["killed"]}  # type: ignore[dict-item]
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--skeleton", type=Path, default=Path("skeleton.py"))
    parser.add_argument("-n", type=int, default=4, help="samples")
    parser.add_argument("--before", type=Path, help="another checkout of jaxq")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(measure(str(given.models[0]), given.n)))
        return
    packages = {"before": given.before} if given.before else {}
    packages["now"] = Path(__file__).resolve().parent.parent
    columns = ("s", "CPU", "candidate", "GB")
    print("| model | " + " | ".join(f"{each}, {which}" for each in columns for which in packages) + " |")
    print("|---" * (1 + len(columns) * len(packages)) + "|")
    for path in given.models:
        with tempfile.TemporaryDirectory() as folder:
            model = built(path, given.skeleton, folder)
            found = {which: in_process(model, given.n, package) for which, package in packages.items()}
        if failed := [str(each["why"]) for each in found.values() if "error" in each]:
            print(f"| {path.name} | {failed[0]} |", flush=True)
            continue
        cells = [f"{found[which][each]:.1f}" for each in columns for which in packages]
        print(f"| {path.name.split('.onnx')[0]} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
