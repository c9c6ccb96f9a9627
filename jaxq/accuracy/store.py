"""What a search knows: trials, rankings, the best model; on disk, too, where it has a folder, so that it survives a kill.

| file | what |
|---|---|
| `state.json` | what the search depends on, rankings, every candidate with its values, which of them `best.onnx` is |
| `base-<preset>.npz` | what calibration found, so that it need not be run again |
| `best.onnx`, `best.onnx.<hash>.data` | the best model so far |
| `report.json` | the report so far |
| `earlier-<number>` | the same of another search that was found in the folder |

All is written after each step, each file as a whole or not at all.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxq.accuracy.identity import Identity
from jaxq.engine.model import Model
from jaxq.errors import ConfigError, JaxqError, JaxqWarning
from jaxq.files import check_writable, withdraw, write_bytes, write_text
from jaxq.numerics.quantizer import Name
from jaxq.onnx_io.external_data import data_files, move_model
from jaxq.onnx_io.load import load
from jaxq.onnx_io.save import save

STATE, REPORT, BEST = "state.json", "report.json", "best.onnx"
FORMAT = 2
KEPT = {
    "baseline": dict,
    "trials": dict,
    "rankings": dict,
    "best": str,
    "finished": bool,
}  # what `state.json` has of a `Store`


class Ranked(NamedTuple):
    """A layer and what reverting it is estimated to gain: the part of the divergence from the float outputs."""

    layer: str
    gain: float
    exact: bool  # measured by itself


class Store:
    """The memory of a search; without a folder it lasts as long as the process.

    Args:
      folder: where it is kept; another search there is moved aside.
      identity: what the search depends on; None without a folder.

    Attributes:
      folder: None, too, once it could not be written.
      notes: what the user should know of the search.
      baseline: metric -> value of the float model.
      trials: setting (`key`) -> {"values", "why", "seconds"}, and "runtime": the values of its file in ONNX Runtime.
      rankings: what was ranked, and how -> [[layer, gain, exact], ...].
      best: the setting (`key`) of the model in `best.onnx`; "" if there is none.
      finished: whether the search has come to its end.
    """

    def __init__(self, folder: Path | None = None, identity: Identity | None = None):
        self.folder, self.identity = folder, identity
        self.notes: list[str] = []
        self.baseline: dict[str, float] = {}
        self.trials: dict[str, dict[str, Any]] = {}
        self.rankings: dict[str, list[list[Any]]] = {}
        self.best, self.finished = "", False
        if folder is not None and identity is not None and (found := self._take_up(folder, identity)):
            self.note(found)

    def note(self, text: str) -> None:
        """Something that the user should know: a warning, and a line of the report."""
        self.notes.append(text)
        warnings.warn(text, JaxqWarning, stacklevel=3)

    def _take_up(self, folder: Path, identity: Identity) -> str:
        """Goes on with the search in the folder, if it is this one; else moves it aside. Returns what to say of it."""
        try:
            stored = json.loads((folder / STATE).read_text())
            known = stored["format"] == FORMAT
            kept = {name: kind(stored[name]) for name, kind in KEPT.items()} if known else {}
            differences = identity.differences(stored["identity"]) if known else ["version of jaxq"]
        except FileNotFoundError:
            if not files_in(folder):
                return ""
            names = ", ".join(path.name for path in files_in(folder))
            return f"the folder holds {names} of something else; moved to {move_aside(folder)}"
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return (
                f"the state of a search in the folder is damaged ({type(error).__name__}: {error}); it was moved to "
                f"{move_aside(folder)}, and the search starts anew"
            )
        if differences:
            return (
                f"the folder holds the state of another search (other {', other '.join(differences)}); it was moved to "
                f"{move_aside(folder)}, and the search starts anew"
            )
        vars(self).update(kept)
        if not self.trials:
            return ""
        count = "1 candidate is" if len(self.trials) == 1 else f"{len(self.trials)} candidates are"
        before = "a search that was finished" if self.finished else "a search that was broken off"
        hidden = ", ".join(identity.hidden)
        unsure = f"; not compared: {hidden} (name another folder if that has changed)" if hidden else ""
        return f"going on with {before}: {count} known already{unsure}"

    def save(self) -> None:
        """Writes `state.json`."""
        if self.identity is not None:
            content = {"format": FORMAT, "identity": self.identity.to_dict()} | {
                name: getattr(self, name) for name in KEPT
            }
            self.write(STATE, lambda path: write_text(path, json.dumps(content, indent=1) + "\n"))

    def write(self, name: str, writer: Callable[[Path], object]) -> bool:
        """Writes a file of the folder, if there is one; returns whether it was written.

        Where that fails (the disk is full), the search goes on without the folder: its result can be written elsewhere.
        """
        if self.folder is None:
            return False
        try:
            writer(self.folder / name)
        except (OSError, ConfigError) as error:
            folder, self.folder = self.folder, None
            why = error.strerror if isinstance(error, OSError) else error
            self.note(
                f"{str(folder / name)!r} cannot be written ({why}); the search goes on, but what it finds from here is not kept "
                "there"
            )
            return False
        return True

    def keep_best(self, place: str, model: Callable[[], Model]) -> None:
        """Writes the best model, where another one is on disk, and the state.

        A kill between the two files must not leave a model under another one's name: until the new one is there, the state names
        none.
        """
        if self.folder is not None and not (self.best == place and (self.folder / BEST).is_file()):
            made = model()
            if self.best:
                self.best = ""
                self.save()
            if self.write(BEST, lambda path: save(made, path)):
                self.best = place
        self.save()

    def ranking(self, place: str, make: Callable[[], Iterable[Ranked]]) -> list[Ranked]:
        """The ranking of that name, made if it is not known."""
        if place not in self.rankings:
            self.rankings[place] = [list(each) for each in make()]
            self.save()
        return [Ranked(*each) for each in self.rankings[place]]

    # ----------------------------------------------------------------------------------------------- what calibration found

    def save_base(self, preset: str, arrays: Mapping[Name, np.ndarray], metadata: Mapping[str, str]) -> None:
        """Writes `base-<preset>.npz`."""
        if self.folder is None:
            return
        content = io.BytesIO()
        members: dict[str, Any] = {json.dumps(name): array for name, array in arrays.items()}
        np.savez(content, metadata=np.array(json.dumps(dict(metadata))), **members)
        if self.write(f"base-{preset}.npz", lambda path: write_bytes(path, content.getvalue())):
            self.save()

    def load_base(self, preset: str) -> tuple[dict[Name, np.ndarray], dict[str, str]] | None:
        """What `save_base` has written, or None."""
        if self.folder is None:
            return None
        try:
            with np.load(self.folder / f"base-{preset}.npz", allow_pickle=False) as stored:
                arrays = {tuple(json.loads(name)): stored[name] for name in stored.files if name != "metadata"}
                return arrays, json.loads(str(stored["metadata"]))
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):  # EOFError: an empty file
            return None


def key(setting: Mapping[str, str], preset: str) -> str:
    """A setting as text."""
    return json.dumps([preset, sorted(setting.items())])


# ------------------------------------------------------------------------------------------------------------- the folder


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
