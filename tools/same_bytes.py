"""Whether two checkouts of jaxq write the same files: every task is quantized by both, in several ways, and files are compared.

    python tools/same_bytes.py BEFORE [TASK ...] [--data FOLDER] [-n 8] [--ways default,openvino,...] [--keep FILE]

BEFORE is another checkout, or a JSON file that an earlier run wrote with --keep. DATA is a folder with an `evaluate.py` as
`tools/bench_accuracy.py` has it. Only public names are used, so that the checkouts may differ in everything else.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench_accuracy import calibration, evaluate_module

REPOSITORY = Path(__file__).resolve().parent.parent
SEARCHED = "cifar_resnet8"  # small enough for a search


def ways(model: str, feeds: Sequence[Any], task: str) -> dict[str, Callable[[], Any]]:
    """Name -> what makes a model."""
    import jaxq

    found = {
        "default": lambda: jaxq.quantize(model, feeds),
        "openvino": lambda: jaxq.quantize(model, feeds, target_device="openvino", preset="mixed"),
        "smooth": lambda: jaxq.quantize(model, feeds, model_type="transformer", fast_bias_correction=False),
        "int4": lambda: jaxq.compress_weights(model, mode="int4_sym", group_size=32),
    }
    if task == SEARCHED:
        found["search"] = lambda: jaxq.quantize_with_accuracy_control(model, feeds, feeds, max_drop=0.02)
    return found


def written(task: str, data: Path, count: int, chosen: Sequence[str]) -> dict[str, str]:
    """Way -> SHA-256 of the written file and its data, or the first line of what went wrong."""
    import jaxq

    warnings.simplefilter("ignore")
    evaluate = evaluate_module(data)
    entry = evaluate.TASKS[task]
    found = {}
    for way, make in ways(entry.model, calibration(evaluate, entry, count), task).items():
        if chosen and way not in chosen:
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                jaxq.save(make(), Path(folder) / "model.onnx")
            except jaxq.JaxqError as error:
                found[way] = str(error).splitlines()[0]
                continue
            digest = hashlib.sha256()
            for path in sorted(Path(folder).iterdir()):
                digest.update(path.read_bytes())
            found[way] = digest.hexdigest()
    return found


def in_process(task: str, package: Path, rest: Sequence[str]) -> dict[str, str]:
    """`written` by the jaxq of a checkout."""
    command = [sys.executable, __file__, str(package), task, "--child", *rest]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(package)})
    if done.returncode:
        return {"": (done.stderr.strip().splitlines() or ["killed"])[-1]}
    result: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return result


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The ways in which the files differ."""
    return [way for way in (before | now) if before.get(way) != now.get(way)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("tasks", nargs="*")
    parser.add_argument("--data", type=Path, default=REPOSITORY.parent / "shared" / "data")
    parser.add_argument("-n", type=int, default=8, help="calibration samples")
    parser.add_argument("--ways", default="", help="some of default, openvino, smooth, int4, search")
    parser.add_argument("--keep", type=Path, help="write the digests of this checkout to a file")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    chosen = [way for way in given.ways.split(",") if way]
    if given.child:
        print(json.dumps(written(given.tasks[0], given.data, given.n, chosen)))
        return
    rest = ["--data", str(given.data), "-n", str(given.n), "--ways", given.ways]
    kept: dict[str, dict[str, str]] = json.loads(given.before.read_text()) if given.before.is_file() else {}
    all_now, failed = {}, 0
    for task in given.tasks or list(evaluate_module(given.data).TASKS):
        now = all_now[task] = in_process(task, REPOSITORY, rest)
        before = kept.get(task, {}) if given.before.is_file() else in_process(task, given.before, rest)
        if given.before.is_file() and chosen:
            before = {way: each for way, each in before.items() if way in chosen}
        wrong = differences(before, now)
        failed += bool(wrong)
        for way in wrong:
            print(f"{task}, {way}: before {before.get(way, 'nothing')[:80]}, now {now.get(way, 'nothing')[:80]}")
        if not wrong:
            print(f"{task}: the same in {len(now)} ways", flush=True)
    if given.keep:
        given.keep.write_text(json.dumps(all_now, indent=1))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
