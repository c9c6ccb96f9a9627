"""The folder of a search: made, moved out of the way of another search, and removed when the result is safe elsewhere."""

from __future__ import annotations

import contextlib
import itertools
import os
from pathlib import Path

from jaxq.errors import ConfigError, JaxqError
from jaxq.files import check_writable
from jaxq.onnx_export import save
from jaxq.onnx_import import load

STATE, REPORT, BEST = "state.json", "report.json", "best.onnx"


def open_folder(path: str | os.PathLike[str]) -> Path:
    """The folder, made if need be.

    Raises:
      ConfigError: it cannot be made, or nothing can be written into it.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"the folder {str(folder)!r} cannot be made: {error.strerror}") from None
    check_writable(folder / STATE)
    return folder


def files_in(folder: Path) -> list[Path]:
    """The files of a search; what else is in the folder is not its own."""
    named = (folder / name for name in (STATE, REPORT, BEST, f"{BEST}.data"))
    return [*(path for path in named if path.exists()), *sorted(folder.glob("base-*.npz"))]


def move_aside(folder: Path) -> Path:
    """Moves the files of a search into a new folder in the folder, which is returned."""
    aside = next(path for number in itertools.count(1) if not (path := folder / f"earlier-{number}").exists())
    try:
        aside.mkdir()
        for path in files_in(folder):
            path.rename(aside / path.name)
    except OSError as error:
        raise ConfigError(
            f"{str(folder)!r} holds another search, which cannot be moved away ({error.strerror}); name another folder"
        ) from None
    return aside


def remove(folder: Path) -> None:
    """Removes the files of a search, and the folder if nothing else is in it."""
    with contextlib.suppress(OSError):
        for path in files_in(folder):
            path.unlink()
        folder.rmdir()


def copy_best(folder: Path, output: Path) -> bool:
    """Writes the best model of a search that was interrupted, with its weights; returns whether that could be done."""
    try:
        save(load(folder / BEST), output)
    except JaxqError:
        return False
    return True
