"""Moving biases by the mean of what rounding does, which the algorithms find in different ways."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np


def moved_biases(
    params: Mapping[str, Any], shifts: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray], threshold: float
) -> dict[str, Any]:
    """The params, each bias moved by its shift where that is `accepted`.

    Args:
      shifts: name of a bias -> what is to be added, in its shape.
      outputs: name of a bias -> the mean of the output that it is part of, in its shape.
    """
    moved = dict(params)
    for name, shift in shifts.items():
        bias = np.asarray(params[name], np.float64)
        if accepted(shift, bias, outputs[name], threshold):
            moved[name] = (bias + shift).astype(params[name].dtype)
    return moved


def accepted(shift: np.ndarray, bias: np.ndarray, output: np.ndarray, threshold: float) -> bool:
    """Whether a shift is finite and at most `threshold` times the largest bias or the largest mean of the output.

    POT and NNCF divide element by element, so that one zero in a bias keeps the layer from ever being corrected.
    """
    size = max(np.abs(bias).max(initial=0.0), np.abs(output).max(initial=0.0))
    return bool(np.isfinite(shift).all() and np.abs(shift).max(initial=0.0) <= threshold * size)


def record(moved: Collection[str], names: Sequence[str]) -> dict[str, str]:
    """What the file says of it: how many biases were moved, and the names of the others."""
    left = [name for name in names if name not in moved]
    said = {"moved": len(names) - len(left), "of": len(names), "left": left}
    return {"jaxq.bias_correction": json.dumps(said)}
