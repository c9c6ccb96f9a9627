"""Weight-only quantization: the weights of matrix products in few bits, in groups with scales of their own.

Activations stay in float. Rounding needs no data; with data, GPTQ lets the weights that are not rounded yet make up for the error
of those that are.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxq.engine.model import Model
from jaxq.errors import CalibrationError
from jaxq.numerics.distance import TINY, worst_if_nan
from jaxq.numerics.observers import Observer
from jaxq.numerics.quantizer import PerBlock, QuantParams, Scheme, fake_quantize_array
from jaxq.numerics.weights import scale_rows

MOMENT_BYTES = 1 << 30  # of second moments that are kept at once; beyond it the samples are gone through once more
COLUMNS = 128  # rounded by GPTQ before the rest of a weight that has no groups is updated


class CompressionSite(NamedTuple):
    """A weight that can be compressed.

    Attributes:
      param: its name.
      axis: the axis that is summed over in the product (of an embedding: its width).
      data: the tensor that it is multiplied with; "" for an embedding.
    """

    param: str
    axis: int
    data: str


@dataclass(frozen=True)
class WeightRounding:
    """Rounds each weight to the nearest number on its grid.

    Args:
      schemes: param -> how it is quantized.
    """

    schemes: Mapping[str, Scheme]

    def needs(self, model: Model) -> Mapping[str, Observer]:
        return {}

    def apply(self, model: Model, stats: Mapping[str, Any], samples: object = None) -> Model:
        encodings = dict(model.encodings)
        for name, scheme in self.schemes.items():
            encodings[name] = rounding_params(np.asarray(model.params[name]), scheme)
        return model.replace(encodings=encodings)


@dataclass(frozen=True)
class GPTQ:
    """Rounds a weight row by row along the summed axis; the rows that are left take up the error made at the layer's output.

    With H the second moment of the layer's inputs, row i of W [K, N] is rounded, and every later row j becomes

        W_j  <-  W_j - (W_i - Q_i) * C_ij / C_ii,        C the upper Cholesky factor of (H + damp * mean(diag H) * I)^-1

    Source: Frantar et al., arXiv:2210.17323, algorithm 1. Scales of a group are taken when its first row comes, from the
    weights as they are then. Inputs that are always zero leave their weights rounded to nearest, where the paper sets them to
    zero. Memory: 4 K^2 bytes for each input of the sites; `moment_groups` makes several steps of many.

    Args:
      sites: the weights; embeddings, which have no input, are not among them.
      schemes: param -> how it is quantized.
      damp: part of the mean of H's diagonal that is added to it.
    """

    sites: tuple[CompressionSite, ...]
    schemes: Mapping[str, Scheme]
    damp: float = 0.1

    def needs(self, model: Model) -> Mapping[str, Observer]:
        return {site.data: second_moment(model.params[site.param].shape[site.axis]) for site in self.sites}

    def apply(self, model: Model, stats: Mapping[str, Any], samples: object = None) -> Model:
        params, encodings = dict(model.params), dict(model.encodings)
        for site in self.sites:
            value = np.asarray(model.params[site.param])
            moment = np.asarray(stats[site.data], np.float64)
            if not np.isfinite(moment).all():
                raise CalibrationError(
                    f"tensor {site.data!r} is NaN or infinite (or its square is) in the calibration samples; run the float "
                    "model on them, and leave such samples out"
                )
            rows = np.moveaxis(value, site.axis, 0)
            done, each = self.rounded(rows, moment, self.schemes[site.param])
            params[site.param] = np.moveaxis(done, 0, site.axis)
            turned = {key: np.moveaxis(np.asarray(getattr(each, key)), 0, site.axis) for key in ("scale", "zero_point")}
            encodings[site.param] = QuantParams(
                turned["scale"], turned["zero_point"], each.qmin, each.qmax, each.enabled
            )
        return model.replace(params=params, encodings=encodings)

    def rounded(self, weight: np.ndarray, moment: np.ndarray, scheme: Scheme) -> tuple[np.ndarray, QuantParams]:
        """The rounded weight [K, N], in its own type, and its parameters with scale [K / group, N], or [1, N] without groups."""
        w = weight.astype(np.float64)
        factor = inverse_factor(moment, self.damp)
        grouped = isinstance(scheme.granularity, PerBlock)
        step = scheme.granularity.size if isinstance(scheme.granularity, PerBlock) else COLUMNS
        parameters = [] if grouped else [column_params(weight, scheme)]
        done = np.empty_like(weight)
        for start in range(0, len(w), step):
            rows = slice(start, min(start + step, len(w)))
            if grouped:
                parameters.append(column_params(w[rows].astype(weight.dtype), scheme))
            done[rows], errors = self.block(w[rows], factor[rows, rows], parameters[-1])
            w[rows.stop :] -= factor[rows, rows.stop :].T @ errors
        scale, zero_point = (
            np.concatenate([np.asarray(getattr(p, key)) for p in parameters]) for key in ("scale", "zero_point")
        )
        return done, QuantParams(scale, zero_point, parameters[0].qmin, parameters[0].qmax)

    def block(self, w: np.ndarray, factor: np.ndarray, each: QuantParams) -> tuple[np.ndarray, np.ndarray]:
        """Rounds the rows of one block w [rows, N], and gives each row's error over its diagonal entry."""
        w, errors = w.copy(), np.empty_like(w)
        done = np.empty(w.shape, np.float32)
        scale, zero_point = np.asarray(each.scale, np.float64)[0], np.asarray(each.zero_point, np.float64)[0]
        for row in range(len(w)):
            q = np.clip(np.rint(w[row] / scale) + zero_point, each.qmin, each.qmax)
            done[row] = (q - zero_point) * scale
            errors[row] = (w[row] - done[row]) / factor[row, row]
            w[row + 1 :] -= factor[row, row + 1 :, None] * errors[row]
        return done, errors


def inverse_factor(moment: np.ndarray, damp: float) -> np.ndarray:
    """The upper Cholesky factor C of the inverse of the damped second moment: C.T @ C = (H + damp * mean(diag H) I)^-1."""
    h = moment.copy()
    diagonal = np.einsum("ii->i", h)
    mean = float(diagonal.mean()) or 1.0
    diagonal[diagonal == 0] = mean
    diagonal += damp * mean
    return np.linalg.cholesky(np.linalg.inv(h)).T


def moment_groups(params: Mapping[str, Any], sites: Iterable[CompressionSite]) -> list[tuple[CompressionSite, ...]]:
    """The sites in order, in groups whose second moments take at most `MOMENT_BYTES` together, or are a single one.

    Sites that read the same tensor share its moment and stay together.
    """
    by_data: dict[str, list[CompressionSite]] = {}
    for site in sites:
        by_data.setdefault(site.data, []).append(site)
    groups: list[tuple[CompressionSite, ...]] = []
    room = 0
    for together in by_data.values():
        first = together[0]
        size = 4 * params[first.param].shape[first.axis] ** 2 if first.data else 0
        if size <= room:
            groups[-1] += tuple(together)
        else:
            groups.append(tuple(together))
            room = MOMENT_BYTES
        room -= size
    return groups


@functools.cache
def second_moment(size: int) -> Observer:
    """The sum of x x^T over all vectors on the last axis, which has that size: float32 [T, size, size]."""

    def measure(tensors: Sequence[jax.Array], real: jax.Array) -> jax.Array:
        def of(x: jax.Array) -> jax.Array:
            rows = jnp.where(real.reshape(-1, *[1] * (x.ndim - 1)), x.astype(jnp.float32), 0).reshape(-1, size)
            return jnp.matmul(rows.T, rows, precision=jax.lax.Precision.HIGHEST)

        return jnp.stack([of(x) for x in tensors])

    return Observer(
        lambda count: jnp.zeros((count, size, size), jnp.float32),
        measure,
        lambda state, measured, index: state + measured,
        lambda a, b: a + b,
    )


def column_params(weight: np.ndarray, scheme: Scheme) -> QuantParams:
    """One scale for each column of a weight [K, N]: [1, N]."""
    low, high = weight.min(0, initial=0.0)[None], weight.max(0, initial=0.0)[None]
    return params_of_extremes(low, high, scheme)


def rounding_params(weight: np.ndarray, scheme: Scheme) -> QuantParams:
    """The parameters of a weight of any rank, from its extremes within each block, each index of the axis, or all of it."""
    rows, shape = scale_rows(weight, scheme.granularity)
    low, high = (getattr(rows, end)(1, initial=0.0).reshape(shape) for end in ("min", "max"))
    return params_of_extremes(low, high, scheme)


def params_of_extremes(low: np.ndarray, high: np.ndarray, scheme: Scheme) -> QuantParams:
    """Scale and zero point so that the grid just covers [low, high], which hold zero.

        symmetric:   scale = 2 * max(-low, high) / (levels - 1),  zero_point = 0
        asymmetric:  scale = (high - low) / (levels - 1),         zero_point = qmin + round(-low / scale)

    Unlike ranges of activations they are not widened: there is no int32 bias behind them, and groups are small. Scales are
    numbers of the type of the ends, which is the weight's: a runtime has them in no other.
    """
    grid, kind = scheme.grid, low.dtype
    low, high = low.astype(np.float32), high.astype(np.float32)
    levels = np.float32(grid.qmax - grid.qmin)
    if scheme.symmetric:
        scale = not_below(2 * np.maximum(-low, high) / levels, kind)
        return QuantParams.of(scale, (grid.qmin + grid.qmax + 1) // 2, grid)
    scale = not_below(np.maximum((high - low) / levels, np.finfo(np.float32).tiny), kind)
    return QuantParams.of(scale, grid.qmin + np.rint(-low / scale), grid)


def not_below(scale: np.ndarray, kind: np.dtype) -> np.ndarray:
    """The least numbers of a float type that are not below `scale`, as float32: the grid still covers all."""
    nearest = scale.astype(kind)
    above = np.nextafter(nearest, np.asarray(np.inf, kind))
    return np.where(nearest.astype(np.float32) < scale, above, nearest).astype(np.float32)


def output_error(weight: np.ndarray, scheme: Scheme, axis: int, moment: np.ndarray | None = None) -> float:
    """The squared error that rounding makes at the layer's output, as a part of the output's square.

    tr(D^T H D) / tr(W^T H W) with D the rounding error of W [K, N];  H = identity without data
    """
    rounded = fake_quantize_array(np.asarray(weight, np.float32), rounding_params(weight, scheme))
    weight = np.asarray(weight, np.float32)
    exact, wrong = (np.moveaxis(value, axis, 0).reshape(weight.shape[axis], -1) for value in (weight, weight - rounded))
    with np.errstate(all="ignore"):  # of moments that no float32 holds
        parts = [each if moment is None else moment @ each for each in (wrong, exact)]
        found = (wrong * parts[0]).sum() / np.maximum((exact * parts[1]).sum(), TINY)
    return float(worst_if_nan(found))
