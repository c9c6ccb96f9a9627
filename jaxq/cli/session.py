"""What every command does around its work: device, compilation cache, warnings, files."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxq import progress
from jaxq.errors import ConfigError, JaxqWarning

BAD_INPUT, TARGET_MISSED, INTERRUPTED = 2, 3, 130  # exit codes


@contextlib.contextmanager
def session(*, device: str | None = None, quiet: bool = False, verbose: bool = False) -> Iterator[None]:
    """What every command does around its work: JAX's device and compilation cache, progress, plain warnings."""
    from jaxq.engine.devices import use_device

    use_compilation_cache()
    platform = use_device(device)
    if verbose:
        print(f"running on {platform}", file=sys.stderr)
    with warnings.catch_warnings(), progress.quiet() if quiet else contextlib.nullcontext():
        warnings.simplefilter("always", JaxqWarning)
        show = warnings.showwarning

        def show_plainly(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, JaxqWarning):
                progress.say(f"warning: {message}")
            elif verbose:
                show(message, category, *place, **more)

        warnings.showwarning = show_plainly
        yield


def use_compilation_cache() -> None:
    """Keeps compiled programs between runs, in the user's cache folder, or in $JAXQ_CACHE_DIR; empty turns it off."""
    import jax

    cache_home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = os.environ.get("JAXQ_CACHE_DIR", str(Path(cache_home) / "jaxq"))
    if not folder or os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # no home, or a read-only one: only slower
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def check_outputs(outputs: Mapping[str, Any], inputs: Mapping[str, Any]) -> None:
    """Makes sure, before the work starts, that the files can be written and that none of them is an input or another output.

    Both map the option's name to a path, or to None or "-" (standard output), which do not count.
    """
    from jaxq.files import check_writable

    taken = {Path(path).resolve(): option for option, path in inputs.items() if path is not None}
    for option, path in outputs.items():
        if path is None or path == "-":
            continue
        check_writable(path)
        if (other := taken.get(Path(path).resolve())) is not None:
            raise ConfigError(f"{option} and {other} are the same file, {str(path)!r}; name another one with {option}")
        taken[Path(path).resolve()] = option


def write_json(result: dict[str, Any], path: str | None) -> None:
    """The result as a file, or on standard output for "-"."""
    from jaxq.files import write_text

    text = json.dumps(result, indent=2)
    if path == "-":
        print(text)
    elif path is not None:
        write_text(path, text + "\n")


def written_files(result: Mapping[str, Any]) -> str:
    """The file that was written, with its data file if it has one, for messages."""
    data = result["data_file"]
    return "{output}".format_map(result) + (f" (weights in {data})" if data else "")


def bytes_of(path: Path, params: Mapping[str, Any]) -> int:
    """The size of a model: of its file, with its weights where these lie outside of the file."""
    from jaxq.analysis.inspect import stored_bytes
    from jaxq.onnx_io.external_data import locations

    size = path.stat().st_size
    return max(size, sum(map(stored_bytes, params.values()))) if locations(path) else size


def in_words(count: int) -> str:
    """Bytes, e.g. 1.9 MB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
