"""Times the float forward pass of jaxq against ONNX Runtime's, both on the same cores in one process, as a table.

    python tools/bench_forward.py [NAME ...] [--data ../shared/data] [--batch 1 8] [--gradient] [--keep-memory]

DATA holds ONNX files anywhere below it, and graphs without weights (`*.onnx.xz`) that `../tools/skeleton.py` fills. NAME
selects models whose file name contains it. Each model is measured in a process of its own, in turns of a few calls each, so
that other load on the machine meets both alike. Times are medians in milliseconds; `ratio` is that of the medians of jaxq and
ONNX Runtime, `of least` that of the least times, `of work` that of the processor time of all threads (of a session of ONNX
Runtime whose threads wait asleep), which other load hardly changes. `error` is the largest difference of an output by its
largest value. A model whose file fixes the batch is measured at that one.

`--gradient` adds the time of all derivatives by weights and inputs, as a multiple of the forward pass; `--keep-memory`
keeps freed memory in the process (`jaxq.devices.keep_memory`), as the command line does. XLA's flags are read from XLA_FLAGS.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

REPOSITORY = Path(__file__).resolve().parent.parent
SIZES = {  # (model, input) -> sizes where the file leaves more than the batch free
    "dncnn": {"noisy": (1, 128, 128)},
    "silero": {"input": (576,), "state": (8, 128)},
    "wav2vec2": {"x": (16000,)},
    "lstm": {"x": (64, 8)},
    "gru": {"x": (64, 8)},
}
TOKENS = 128
PAUSE = 0.01  # seconds, between turns: threads of the other side that wait for work keep a core busy for a while
VALUES = {"sr": 16000}  # what decides branches
SKIP = ("clip",)  # two batches that differ


def read(path: Path, data: Path) -> onnx.ModelProto:
    """The model; a graph without weights gets them from seeds."""
    if path.suffix != ".xz":
        return onnx.load(path)
    spec = importlib.util.spec_from_file_location("skeleton", data.parent / "tools" / "skeleton.py")
    if spec is None or spec.loader is None:
        sys.exit(f"error: no tools/skeleton.py beside {data}")
    skeleton = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(skeleton)
    return skeleton.build(str(path))


def feed_of(name: str, proto: onnx.ModelProto, batch: int) -> dict[str, np.ndarray]:
    """Random inputs for a batch: token ids, masks of ones, normal numbers."""
    random = np.random.default_rng(0)
    given = {tensor.name for tensor in proto.graph.initializer}
    sizes: dict[str, tuple[int, ...]] = next((each for part, each in SIZES.items() if part in name), {})
    feed = {}
    for each in proto.graph.input:
        if each.name in given:
            continue
        declared = each.type.tensor_type
        shape = [d.dim_value if d.HasField("dim_value") else None for d in declared.shape.dim]
        if each.name in sizes:
            inner = sizes[each.name]
            shape = [2, batch, 128] if each.name == "state" else [batch, *inner]
        shape = [size if size is not None else batch if axis == 0 else TOKENS for axis, size in enumerate(shape)]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(declared.elem_type)
        if each.name in VALUES:
            feed[each.name] = np.array(VALUES[each.name], dtype)
        elif np.issubdtype(dtype, np.floating):
            feed[each.name] = random.normal(size=shape).astype(dtype)
        else:
            feed[each.name] = np.ones(shape, dtype) if "mask" in each.name else random.integers(1, 90, shape, dtype)
    return feed


def times_of(runs: dict[str, Callable[[], Any]], seconds: float) -> dict[str, list[float]]:
    """For each the median time, the least time, and the median processor time of all threads together, in milliseconds.

    They take turns, and the first call of a turn does not count.
    """
    for run in runs.values():
        run()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, times.values())) < 6:
        for name, run in runs.items():
            time.sleep(PAUSE)
            run()
            for _ in range(3):
                start, work = time.perf_counter(), time.process_time()
                run()
                times[name].append((time.perf_counter() - start, time.process_time() - work))
    found = {name: np.array(each).T * 1e3 for name, each in times.items()}
    return {name: [np.median(wall), wall.min(), np.median(work)] for name, (wall, work) in found.items()}


def runtime(source: bytes | str, spinning: bool) -> Any:
    """A session of ONNX Runtime on the cores of this process; its threads wait for work at full speed, or asleep."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    return onnxruntime.InferenceSession(source, options, ["CPUExecutionProvider"])


def measure(path: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each batch."""
    import jax
    import jax.numpy as jnp

    import jaxq
    from jaxq.devices import keep_memory
    from jaxq.execute import execute
    from jaxq.model import split_static

    if arguments.keep_memory:
        keep_memory()
    name, proto = path.name.removesuffix(".xz").removesuffix(".onnx"), read(path, arguments.data)
    source = proto.SerializeToString() if path.suffix == ".xz" else str(path)
    session, patient = (runtime(source, spinning) for spinning in (True, False))
    model, rows = jaxq.load(proto if path.suffix == ".xz" else path), []
    seen = set()
    for batch in arguments.batch:
        feed = feed_of(name, proto, batch)
        shapes = tuple(value.shape for value in feed.values())
        if shapes in seen:
            continue
        seen.add(shapes)
        start = time.perf_counter()
        outputs = jax.block_until_ready(model(feed))
        compiled = time.perf_counter() - start
        wanted = session.run(list(outputs), feed)
        error = max(
            float(np.abs(np.asarray(got) - want).max() / max(np.abs(want).max(), 1e-30))
            for got, want in zip(outputs.values(), wanted, strict=True)
            if np.asarray(want).size and np.issubdtype(np.asarray(want).dtype, np.floating)
        )
        runs = {
            "jaxq": lambda feed=feed: jax.block_until_ready(model(feed)),
            "onnxruntime": lambda feed=feed: session.run(None, feed),
            "patient": lambda feed=feed: patient.run(None, feed),
        }
        row = {"model": name, "batch": next(iter(feed.values())).shape[0], "compile": compiled, "error": error}
        if arguments.gradient:
            static, traced = split_static(model.graph, feed)
            fixed = {key: literal.array for key, literal in static.items()}
            graph, params, _ = model.program

            def total(floats: Any, others: Any, graph: Any = graph, fixed: Any = fixed) -> jax.Array:
                outputs = execute(graph, {}, {**floats, **others, **fixed})[0].values()
                return sum(jnp.sum(each * each) for each in outputs if jnp.issubdtype(each.dtype, jnp.floating))

            everything = {**params, **{key: jnp.asarray(value) for key, value in traced.items()}}
            floats = {key: value for key, value in everything.items() if jnp.issubdtype(value.dtype, jnp.floating)}
            others = {key: value for key, value in everything.items() if key not in floats}
            gradient = jax.jit(jax.grad(total))
            runs["gradient"] = lambda floats=floats, others=others, f=gradient: jax.block_until_ready(f(floats, others))
        rows.append(row | times_of(runs, arguments.seconds))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--data", type=Path, default=REPOSITORY.parent / "shared" / "data")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--seconds", type=float, default=4, help="for each row")
    parser.add_argument("--gradient", action="store_true")
    parser.add_argument("--keep-memory", action="store_true")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one, arguments)))
        return
    paths = sorted([*arguments.data.rglob("*.onnx"), *arguments.data.rglob("*.onnx.xz")])
    columns = ["model", "batch", "jaxq ms", "ONNX Runtime ms", "ratio", "of least", "of work", "error"]
    columns += ["gradient"] if arguments.gradient else []
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for path in paths:
        wanted = not arguments.names or any(name in path.name for name in arguments.names)
        if not wanted or any(name in path.name for name in SKIP):
            continue
        done = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--one", str(path)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            print(f"| {path.name} | {(done.stderr.strip().splitlines() or ['failed'])[-1]} |", flush=True)
            continue
        for row in json.loads(done.stdout.splitlines()[-1]):
            ours, theirs = row["jaxq"], [*row["onnxruntime"][:2], row["patient"][2]]
            cells = [row["model"], str(row["batch"]), f"{ours[0]:.2f}", f"{theirs[0]:.2f}"]
            cells += [f"{mine / other:.2f}" for mine, other in zip(ours, theirs, strict=True)]
            cells += [f"{row['error']:.0e}"]
            cells += [f"{row['gradient'][2] / ours[2]:.1f}"] if arguments.gradient else []
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
