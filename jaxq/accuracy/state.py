"""What survives a kill: a folder with all that was found out so far, written after each step, each file as a whole or not at all.

| file | what |
|---|---|
| `state.json` | goals, rankings, every candidate with its values |
| `base.npz` | what calibration found, so that it need not be run again |
| `best.onnx` | the best model so far |
| `report.json` | the report so far |
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxq.errors import ConfigError
from jaxq.files import write_bytes, write_text
from jaxq.graph import Graph
from jaxq.quantizer import QuantParams
from jaxq.version import __version__

FORMAT = 1
FIELDS = ("scale", "zero_point", "qmin", "qmax", "mantissa", "smallest_exponent")


class State:
    """The memory of a search; without a folder it lasts as long as the process.

    Attributes:
      resumed: how many candidates an earlier run has evaluated.
      baseline: metric -> value of the float model.
      trials: setting (`key`) -> {"values", "why", "seconds"}.
      rankings: setting -> [[layer, gain, exact], ...].
    """

    def __init__(self, folder: str | os.PathLike[str] | None, fingerprint: str):
        self.folder = None if folder is None else Path(folder)
        self.fingerprint, self.foreign = fingerprint, False
        self.baseline: dict[str, float] = {}
        self.trials: dict[str, dict[str, Any]] = {}
        self.rankings: dict[str, list[list[Any]]] = {}
        self.base: dict[str, Any] = {}
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"the folder {str(folder)!r} cannot be made: {error.strerror}") from None
        self._load()

    def _load(self) -> None:
        assert self.folder is not None
        try:
            found = json.loads((self.folder / "state.json").read_text())
            known = found["format"] == FORMAT and found["fingerprint"] == self.fingerprint
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError, OSError):
            known, found = False, {}
        if not known:
            self.foreign = True
            return
        self.baseline = {name: _number(value) for name, value in found["baseline"].items()}
        self.trials = {
            key: {**trial, "values": {name: _number(value) for name, value in trial["values"].items()}}
            for key, trial in found["trials"].items()
        }
        self.rankings = {
            key: [[layer, _number(gain), sure] for layer, gain, sure in each] for key, each in found["rankings"].items()
        }
        self.base = found["base"]

    @property
    def resumed(self) -> int:
        return len(self.trials)

    def save(self) -> None:
        """Writes `state.json`."""
        if self.folder is None:
            return
        content = {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "baseline": {name: _text(value) for name, value in self.baseline.items()},
            "trials": {
                key: {**trial, "values": {name: _text(value) for name, value in trial["values"].items()}}
                for key, trial in self.trials.items()
            },
            "rankings": {
                key: [[layer, _text(gain), sure] for layer, gain, sure in each] for key, each in self.rankings.items()
            },
            "base": self.base,
        }
        write_text(self.folder / "state.json", json.dumps(content, indent=1) + "\n")

    # ----------------------------------------------------------------------------------------------- what calibration found

    def save_base(self, preset: str, arrays: Mapping[tuple[str, ...], np.ndarray], metadata: Mapping[str, str]) -> None:
        """Writes `base.npz` for one preset; the names stand in `state.json`."""
        if self.folder is None:
            return
        content = io.BytesIO()
        np.savez(content, **{str(number): array for number, array in enumerate(arrays.values())})  # type: ignore[arg-type]
        write_bytes(self.folder / f"base-{preset}.npz", content.getvalue())
        self.base[preset] = {"names": [list(name) for name in arrays], "metadata": dict(metadata)}
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


def fingerprint(graph: Graph, params: Mapping[str, Any], options: Iterable[Any], samples: Iterable[Any]) -> str:
    """What has to be the same for a search to go on: model, options, and the first samples."""
    hashed = hashlib.sha256(__version__.encode())
    for node in graph.nodes:
        hashed.update(repr(node).encode())
    for name in sorted(params):
        _add(hashed, (name, params[name]))
    for each in options:
        hashed.update(repr(each).encode())
    for sample in samples:
        _add(hashed, sample)
    return hashed.hexdigest()


def _add(hashed: Any, value: Any) -> None:
    """Takes arrays in by their bytes, containers by their parts, anything else by its type."""
    if isinstance(value, Mapping):
        value = tuple(value.items())
    if isinstance(value, tuple | list):
        for part in value:
            _add(hashed, part)
    elif isinstance(value, str | int | float):
        hashed.update(repr(value).encode())
    elif hasattr(value, "dtype"):
        array = np.asarray(value)
        hashed.update(f"{array.dtype}{array.shape}".encode())
        hashed.update(np.ascontiguousarray(array).tobytes() if array.dtype != object else b"")
    else:
        hashed.update(type(value).__name__.encode())


def _text(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _number(value: float | str) -> float:
    return float(value)
