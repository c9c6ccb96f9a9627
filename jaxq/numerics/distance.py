"""How far what was found is from what was expected: the one distance by which everything in jaxq is compared.

    distance = sum of (found - expected)^2 / sum of expected^2

NaN or infinity that is found where a number was expected is infinitely far. What is the same on both sides is no distance, be it
infinity (a masked score) or NaN. A number that is found where none was expected

* does not count in an error that is summed to rank or to choose (`squared_differences`): nothing tells how far it is, and it
  is the same for all candidates;
* is infinitely far where two sides are to be the same (`differences`): one of them computes something else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

TINY = 1e-30  # stands in for the square of what is zero everywhere


def differences(a: Any, b: Any) -> np.ndarray:
    """|a - b| of each element, float64: infinite where only one side is a number, whichever it is."""
    with np.errstate(invalid="ignore"):  # infinity less infinity
        return np.asarray(apart(np.asarray(a, np.float64), np.asarray(b, np.float64), np))


def apart(a: Any, b: Any, xp: Any) -> Any:
    """`differences` of arrays of `xp`, numpy or jax.numpy, in their own type."""
    same = (a == b) | (xp.isnan(a) & xp.isnan(b))
    found = xp.where(same, 0.0, xp.abs(a - b))
    return xp.where(xp.isnan(found), xp.inf, found)


def squared_differences(expected: Any, found: Any) -> np.ndarray:
    """(found - expected)^2 of each element, float64: of `differences`, without those from what is no number."""
    unknown = np.isnan(expected) | (np.isinf(expected) & np.isfinite(found))
    return np.where(unknown, 0.0, differences(expected, found) ** 2)


def squares(expected: Any) -> np.ndarray:
    """expected^2 of each element, float64; 0 where it is not finite."""
    x = np.asarray(expected, np.float64)
    return np.square(x, out=np.zeros(x.shape), where=np.isfinite(x))


def distances(expected: Any, found: Any) -> np.ndarray:
    """The distance of each row, float64 [B]; infinite where the shapes differ."""
    expected, found = np.asarray(expected), np.asarray(found)
    if expected.shape != found.shape:
        return np.full(len(expected), np.inf)
    rows = [each(*given).reshape(len(expected), -1).sum(1) for each, given in
            ((squared_differences, (expected, found)), (squares, (expected,)))]  # fmt: skip
    return np.asarray(rows[0] / np.maximum(rows[1], TINY), np.float64)


def distance(expected: Any, found: Any) -> float:
    """The distance over all elements."""
    return float(distances(np.asarray(expected)[None], np.asarray(found)[None])[0])


def output_distances(expected: Mapping[str, Any], found: Mapping[str, Any]) -> np.ndarray:
    """The distance of each sample, summed over the outputs in floating point [B, ...]: float64 [B]."""
    pairs = [(np.asarray(each), found[name]) for name, each in expected.items() if is_float(np.asarray(each))]
    return np.asarray(sum((distances(*pair) for pair in pairs), start=np.zeros(1)), np.float64).reshape(-1)


def is_float(array: np.ndarray) -> bool:
    """Whether it holds floating-point numbers, of any width."""
    return array.dtype.kind == "f" or "float" in array.dtype.name  # bfloat16 and the like are of kind "V"


def worst_if_nan(value: Any) -> np.ndarray:
    """An error or a distance in which NaN stands for what no number could be found for: infinite then."""
    value = np.asarray(value, np.float64)
    return np.where(np.isnan(value), np.inf, value)


def difference(after: float, before: float) -> float:
    """How much larger a distance has become; 0 between two that are infinite."""
    return 0.0 if after == before else after - before
