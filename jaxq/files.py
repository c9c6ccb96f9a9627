"""Writing files: whether it can be done is known before the work starts, and no file is ever left half written."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from jaxq.errors import ConfigError


def check_writable(path: str | os.PathLike[str]) -> None:
    """Makes sure that a file can be made under that name.

    Raises:
      ConfigError: the folder is missing or cannot be written to, or the path is a folder.
    """
    path = Path(path)
    folder = path.parent
    if path.is_dir():
        raise ConfigError(f"cannot write {str(path)!r}: it is a folder; name a file in it")
    if not folder.is_dir():
        kind = "is a file, not a folder" if folder.exists() else "does not exist; make it first"
        raise ConfigError(f"cannot write {str(path)!r}: {str(folder)!r} {kind}")
    try:  # to try is the only test that read-only disks, quotas and the superuser do not fool
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"cannot write {str(path)!r}: no file can be made in {str(folder)!r} ({error.strerror})"
        ) from None


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file under a temporary name and renames it: it is there as a whole or not at all."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(temporary).chmod(0o666 & ~_umask())  # mkstemp lets nobody else read
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """The same for text, as UTF-8."""
    write_bytes(path, text.encode())


def withdraw(*reports: str | os.PathLike[str] | None) -> None:
    """Removes what an earlier run has said of a file that is about to be replaced: no report stands beside another result."""
    for path in reports:
        if path is not None:
            with contextlib.suppress(OSError):
                Path(path).unlink()


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
