"""The folder of a search: made, moved out of the way of another search, and removed when the result is safe elsewhere."""

from __future__ import annotations

import contextlib
import itertools
import os
from pathlib import Path

from jaxq.errors import ConfigError, JaxqError
from jaxq.files import check_writable, withdraw
from jaxq.onnx_io.external_data import data_files, move_model
from jaxq.onnx_io.load import load
from jaxq.onnx_io.save import save

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
    named = (folder / name for name in (STATE, REPORT, BEST))
    data = data_files(folder / BEST) if folder.is_dir() else ()
    return [*(path for path in named if path.exists()), *sorted(data), *sorted(folder.glob("base-*.npz"))]


def move_aside(folder: Path) -> Path:
    """Moves the files of a search into a new folder in the folder, which is returned."""
    aside = next(path for number in itertools.count(1) if not (path := folder / f"earlier-{number}").exists())
    try:
        aside.mkdir()
        for path in files_in(folder):
            if path.name == BEST:
                move_model(path, aside)
            elif path.exists():
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


def copy_best(folder: Path, output: Path, *reports: str | os.PathLike[str] | None) -> tuple[Path, ...]:
    """Writes the best model of a search that was interrupted, with its weights; returns its files, if that could be done.

    `reports` are those of an earlier run about the file that is replaced.
    """
    try:
        best = load(folder / BEST)
        withdraw(*reports)
        return save(best, output)
    except JaxqError:
        return ()
