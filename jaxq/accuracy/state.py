"""What survives a kill: a folder with all that was found out so far, written after each step, each file as a whole or not at all.

| file | what |
|---|---|
| `state.json` | what the search depends on, rankings, every candidate with its values, which of them `best.onnx` is |
| `base-<preset>.npz` | what calibration found, so that it need not be run again |
| `best.onnx`, `best.onnx.<hash>.data` | the best model so far |
| `report.json` | the report so far |
| `earlier-<number>` | the same of another search that was found in the folder |
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxq.accuracy.folder import BEST, STATE, files_in, move_aside
from jaxq.accuracy.identity import Identity
from jaxq.errors import ConfigError
from jaxq.files import write_bytes, write_text
from jaxq.numerics.quantizer import QuantParams

FORMAT = 2
FIELDS = ("scale", "zero_point", "qmin", "qmax", "mantissa", "smallest_exponent", "lowest")


class State:
    """The memory of a search; without a folder it lasts as long as the process.

    Args:
      folder: where it is kept; another search there is moved aside.
      identity: what the search depends on; None without a folder.

    Attributes:
      folder: None, too, once it could not be written.
      found: what was in the folder, in words; "" if nothing.
      baseline: metric -> value of the float model.
      trials: setting (`key`) -> {"values", "why", "seconds"}, and "runtime": the values of its file in ONNX Runtime.
      rankings: what was ranked, and how -> [[layer, gain, exact], ...].
      best: the setting (`key`) of the model in `best.onnx`; "" if there is none.
      finished: whether the search has come to its end.
      note: told what the user should know.
    """

    def __init__(self, folder: Path | None, identity: Identity | None):
        self.folder, self.identity = folder, identity
        self.baseline: dict[str, float] = {}
        self.trials: dict[str, dict[str, Any]] = {}
        self.rankings: dict[str, list[list[Any]]] = {}
        self.base: dict[str, Any] = {}
        self.best, self.finished = "", False
        self.note: Callable[[str], None] = lambda text: None
        self.found = self._take_up()

    def _take_up(self) -> str:
        """Goes on with the search in the folder, if it is this one; else moves it aside. Returns what to say of it."""
        if self.folder is None or self.identity is None:
            return ""
        try:
            stored = _parsed((self.folder / STATE).read_text())
        except FileNotFoundError:
            if not files_in(self.folder):
                return ""
            names = ", ".join(path.name for path in files_in(self.folder))
            return f"the folder holds {names} of something else; moved to {move_aside(self.folder)}"
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            aside = move_aside(self.folder)
            return (
                f"the state of a search in the folder is damaged ({type(error).__name__}: {error}); it was moved to {aside}, and "
                "the search starts anew"
            )
        differences = ["version of jaxq"] if stored is None else self.identity.differences(stored["identity"])
        if stored is None or differences:
            aside = move_aside(self.folder)
            return (
                f"the folder holds the state of another search (other {', other '.join(differences)}); it was moved to {aside}, "
                "and the search starts anew"
            )
        self.baseline, self.trials, self.rankings = stored["baseline"], stored["trials"], stored["rankings"]
        self.base, self.best, self.finished = stored["base"], stored["best"], stored["finished"]
        if not self.trials:
            return ""
        known = "1 candidate is" if len(self.trials) == 1 else f"{len(self.trials)} candidates are"
        before = "a search that was finished" if self.finished else "a search that was broken off"
        return f"going on with {before}: {known} known already"

    def save(self) -> None:
        """Writes `state.json`."""
        if self.identity is None:
            return
        content = {
            "format": FORMAT,
            "identity": self.identity.to_dict(),
            "baseline": _texts(self.baseline),
            "trials": {
                key: trial | {name: _texts(trial[name]) for name in ("values", "runtime") if name in trial}
                for key, trial in self.trials.items()
            },
            "rankings": {
                key: [[layer, _text(gain), sure] for layer, gain, sure in each] for key, each in self.rankings.items()
            },
            "base": self.base,
            "best": self.best,
            "finished": self.finished,
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

    def holds(self, setting: str) -> bool:
        """Whether `best.onnx` is the model of that setting (`key`)."""
        return self.folder is not None and self.best == setting and (self.folder / BEST).is_file()

    # ----------------------------------------------------------------------------------------------- what calibration found

    def save_base(self, preset: str, arrays: Mapping[tuple[str, ...], np.ndarray], metadata: Mapping[str, str]) -> None:
        """Writes `base-<preset>.npz`; the names stand in `state.json`."""
        if self.folder is None:
            return
        content = io.BytesIO()
        np.savez(content, **{str(number): array for number, array in enumerate(arrays.values())})  # type: ignore[arg-type]
        self.base[preset] = {"names": [list(name) for name in arrays], "metadata": dict(metadata)}
        if self.write(f"base-{preset}.npz", lambda path: write_bytes(path, content.getvalue())):
            self.save()

    def load_base(self, preset: str) -> tuple[dict[tuple[str, ...], np.ndarray], dict[str, str]] | None:
        """What `save_base` has written, or None."""
        if self.folder is None or preset not in self.base:
            return None
        try:
            with np.load(self.folder / f"base-{preset}.npz", allow_pickle=False) as stored:
                names = self.base[preset]["names"]
                arrays = {tuple(name): stored[str(number)] for number, name in enumerate(names)}
        except (OSError, KeyError, ValueError, zipfile.BadZipFile):
            return None
        return arrays, dict(self.base[preset]["metadata"])


def key(setting: Mapping[str, str], preset: str) -> str:
    """A setting as text."""
    return json.dumps([preset, sorted(setting.items())])


def encoding_arrays(encodings: Mapping[str, QuantParams], *prefix: str) -> dict[tuple[str, ...], np.ndarray]:
    """Encodings as arrays with names: (*prefix, tensor, field)."""
    return {
        (*prefix, name, part): np.asarray(getattr(each, part))
        for name, each in encodings.items()
        for part in FIELDS
        if getattr(each, part) is not None
    }


def encodings_from(arrays: Mapping[tuple[str, ...], np.ndarray], *prefix: str) -> dict[str, QuantParams]:
    """The encodings that `encoding_arrays` has taken apart."""
    names = dict.fromkeys(name[-2] for name in arrays if name[: len(prefix)] == prefix and len(name) == len(prefix) + 2)
    return {
        name: QuantParams(
            **{part: arrays[*prefix, name, part] for part in FIELDS if (*prefix, name, part) in arrays},
            enabled=np.bool_(True),
        )
        for name in names
    }


def _parsed(text: str) -> dict[str, Any] | None:
    """The content of `state.json`, with its numbers; None if another version of jaxq has written it."""
    stored: dict[str, Any] = json.loads(text)
    if stored["format"] != FORMAT:
        return None
    if (read := stored["identity"]["validation data"]) is not None:
        count, complete, digest = read
        stored["identity"]["validation data"] = [int(count), bool(complete), str(digest)]
    stored["baseline"] = _numbers(stored["baseline"])
    for trial in stored["trials"].values():
        trial |= {name: _numbers(trial[name]) for name in ("values", "runtime") if name in trial}
    for ranking in stored["rankings"].values():
        ranking[:] = [[layer, float(gain), sure] for layer, gain, sure in ranking]
    return stored


def _texts(values: Mapping[str, float]) -> dict[str, float | str]:
    return {name: _text(value) for name, value in values.items()}


def _text(value: float) -> float | str:
    """JSON has no word for numbers that are not finite."""
    return value if math.isfinite(value) else str(value)


def _numbers(values: Mapping[str, float | str]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}
