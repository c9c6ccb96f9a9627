"""Times the float forward pass of jaxq against ONNX Runtime's, both on the same cores in one process, as a table.

    python tools/bench_forward.py [NAME ...] [--data ../shared/data] [--batch 1 8] [--gradient]

DATA holds ONNX files anywhere below it, and graphs without weights (`*.onnx.xz`) that `../tools/skeleton.py` fills. NAME
selects models whose file name contains it. Each model is measured in a process of its own, in turns of a few calls each, so
that other load on the machine meets both alike. Times are medians in milliseconds; `ratio` is that of the medians of jaxq and
ONNX Runtime, `of least` that of the least times, `of work` that of the processor time of all threads (of a session of ONNX
Runtime whose threads wait asleep), which other load hardly changes. `error` is the largest difference of an output by its
largest value. A model whose file fixes the batch is measured at that one.

`--gradient` adds the processor time of all derivatives by weights and inputs, as a multiple of the forward pass's. XLA's flags
are read from XLA_FLAGS. Large tensors cost page faults on every call unless the memory allocator keeps what is freed; with
glibc, set MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=8589934592 in the environment to see by how much.
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
SHAPES = {  # part of a file's name -> shapes of inputs that leave more than the batch (None) free
    "dncnn": {"noisy": (None, 1, 128, 128)},
    "silero": {"input": (None, 576), "state": (2, None, 128)},
    "wav2vec2": {"x": (None, 16000)},
    "lstm": {"x": (None, 64, 8)},
    "gru": {"x": (None, 64, 8)},
}
TOKENS = 128  # the size of other free axes
PAUSE = 0.01  # seconds, between turns: threads of the other side that wait for work keep a core busy for a while
VALUES = {"sr": 16000}  # inputs that decide branches
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
    known = next((shapes for part, shapes in SHAPES.items() if part in name), {})
    feed = {}
    for each in proto.graph.input:
        if each.name in given:
            continue
        declared = each.type.tensor_type
        sizes = [axis.dim_value if axis.HasField("dim_value") else None for axis in declared.shape.dim]
        free = [batch, *[TOKENS] * len(sizes)] if each.name not in known else [batch] * len(sizes)
        shape = [free[i] if size is None else size for i, size in enumerate(known.get(each.name, sizes))]
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


def gradient_of(model: Any, feed: dict[str, np.ndarray]) -> Callable[[], Any]:
    """The derivatives of the sum of squared outputs by all weights and float inputs."""
    import jax
    import jax.numpy as jnp

    from jaxq.engine.execute import execute
    from jaxq.engine.traced import signed

    signature, traced = signed(model.graph, feed)
    fixed = {key: literal.array for key, literal in signature.static.items()}
    graph, params, _ = model.program
    values = {**params, **{key: jnp.asarray(value) for key, value in traced.items()}}
    floats = {key: value for key, value in values.items() if jnp.issubdtype(value.dtype, jnp.floating)}
    others = {key: value for key, value in values.items() if key not in floats}

    def total(floats: dict[str, jax.Array], others: dict[str, jax.Array]) -> jax.Array:
        outputs = execute(graph, {}, {**floats, **others, **fixed})[0].values()
        return sum(jnp.sum(each * each) for each in outputs if jnp.issubdtype(each.dtype, jnp.floating))

    compiled = jax.jit(jax.grad(total))
    return lambda: jax.block_until_ready(compiled(floats, others))


def largest_error(got: dict[str, Any], wanted: list[np.ndarray]) -> float:
    """The largest difference of a float output, by its largest value."""
    pairs = [(np.asarray(ours), theirs) for ours, theirs in zip(got.values(), wanted, strict=True)]
    errors = [
        np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-30)
        for ours, theirs in pairs
        if theirs.size and np.issubdtype(theirs.dtype, np.floating)
    ]
    return float(max(errors, default=0.0))


def measure(path: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each batch."""
    import jax

    import jaxq

    name, proto = path.name.removesuffix(".xz").removesuffix(".onnx"), read(path, arguments.data)
    filled = path.suffix == ".xz"  # without a file that other programs could read
    source = proto.SerializeToString() if filled else str(path)
    session, patient = (runtime(source, spinning) for spinning in (True, False))
    model = jaxq.load(proto if filled else path)
    rows: dict[int, dict[str, Any]] = {}
    for wanted in arguments.batch:
        feed = feed_of(name, proto, wanted)
        batch = next(iter(feed.values())).shape[0]
        if batch in rows:
            continue
        outputs = jax.block_until_ready(model(feed))
        error = largest_error(outputs, session.run(list(outputs), feed))
        runs = {
            "jaxq": lambda feed=feed: jax.block_until_ready(model(feed)),
            "onnxruntime": lambda feed=feed: session.run(None, feed),
            "patient": lambda feed=feed: patient.run(None, feed),
        }
        if arguments.gradient:
            runs["gradient"] = gradient_of(model, feed)
        rows[batch] = {"model": name, "batch": batch, "error": error, **times_of(runs, arguments.seconds)}
    return list(rows.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--data", type=Path, default=REPOSITORY.parent / "shared" / "data")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--seconds", type=float, default=4, help="for each row")
    parser.add_argument("--gradient", action="store_true")
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
