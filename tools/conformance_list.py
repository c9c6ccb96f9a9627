"""The official ONNX backend suite and what jaxq passes of it.

    python tools/conformance_list.py            runs all cases, rewrites the two lists and counts (some minutes)
    python tools/conformance_list.py --count    counts from the lists

`tests/conformance/suite_pass.txt` and `suite_skip.txt` hold one case a line. A remark after the name says why a case
is no inference of a neural network on arrays (training, strings ...); the second number does not count such cases.
"""

from __future__ import annotations

import argparse
import functools
import os
import tempfile
import unittest
from collections.abc import Callable, Mapping
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "tests" / "conformance"
PASS, SKIP = FOLDER / "suite_pass.txt", FOLDER / "suite_skip.txt"
FAILS = "fails:"  # how the remark begins on a case that jaxq should pass and does not


@functools.cache
def cases() -> dict[str, Callable[[], None]]:
    """Name of each case -> what runs it on the CPU, by ONNX's own runner; a case that skips itself fails."""
    from onnx.backend.test import BackendTest

    from jaxq.onnx_io.backend import JaxqBackend

    runner = BackendTest(JaxqBackend, __name__)
    return {
        name.removesuffix("_cpu"): functools.partial(_run, item.func)
        for items in runner._test_items.values()  # the runner's public properties wrap cases into unittest classes
        for name, item in items.items()
        if name.endswith("_cpu")
    }


def _run(case: Callable[[None], None]) -> None:
    try:
        case(None)
    except unittest.SkipTest as error:
        raise AssertionError(f"the case was skipped: {error}") from error


def read(path: Path) -> dict[str, str]:
    """Case -> its remark ("" for none), in the order of the file."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return {name: remark.strip() for name, _, remark in (line.partition(" ") for line in lines)}


def write(path: Path, title: str, listed: Mapping[str, str]) -> None:
    import onnx

    lines = [f"{name:<70} {remark}".rstrip() for name, remark in sorted(listed.items())]
    path.write_text(
        f"# {title} (onnx {onnx.__version__}); written by tools/conformance_list.py\n" + "\n".join(lines) + "\n"
    )


def rewrite() -> None:
    """Runs every case and writes both lists; remarks stay with their cases."""
    import jax

    jax.config.update("jax_numpy_dtype_promotion", "strict")  # as in the tests
    known = read(PASS) | read(SKIP)
    passing, skipped = {}, {}
    for count, (name, run) in enumerate(cases().items()):
        remark = known.get(name, "")
        try:
            run()
            passing[name] = "" if remark.startswith(FAILS) else remark
        except Exception as error:
            skipped[name] = remark if remark and not remark.startswith(FAILS) else f"{FAILS} {first_line(error)}"
        if count % 200 == 199:
            print(f"{count + 1} of {len(cases())}", flush=True)
            jax.clear_caches()  # JAX would keep the programs of all cases
    write(PASS, "Cases of the official ONNX suite that pass", passing)
    write(SKIP, "Cases of the official ONNX suite that do not pass, and why", skipped)


def first_line(error: Exception) -> str:
    return next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)


def in_scope(listed: Mapping[str, str]) -> set[str]:
    """The cases that are inference of a neural network on arrays."""
    return {name for name, remark in listed.items() if not remark or remark.startswith(FAILS)}


def distinct(names: set[str]) -> set[str]:
    """Without the cases that repeat another one as a function body, and without the many of the two losses."""
    return {name for name in names if "_expanded" not in name and not name.startswith(("test_sce_", "test_nllloss_"))}


def counts() -> dict[str, tuple[int, int]]:
    """What is counted -> (cases that pass, all cases)."""
    passing, skipped = read(PASS), read(SKIP)
    everything = passing | skipped
    scope = in_scope(everything)
    return {
        "all cases": (len(passing), len(everything)),
        "inference on arrays": (len(scope & passing.keys()), len(scope)),
        "distinct ones of these": (len(distinct(scope) & passing.keys()), len(distinct(scope))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", action="store_true", help="count from the lists, run nothing")
    if not parser.parse_args().count:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["ONNX_HOME"] = folder  # where the runner copies the data of larger models
            rewrite()
    print(PASS.read_text().split("\n")[0].removeprefix("# "))
    for title, (passing, total) in counts().items():
        print(f"{title:<24} {passing:>5} of {total:>5}")


if __name__ == "__main__":
    main()
