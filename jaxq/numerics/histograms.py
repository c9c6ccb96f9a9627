"""Ranges from histograms, for all tensors at once: percentile, least squares, least divergence, NNCF search.

Every function takes tables with one row a tensor and works on all rows and all candidates in a few numpy operations: what
falls into a cell of a quantizer comes from running sums over the bins, so that a candidate costs one look-up a level, not one
operation a bin. Within a bin, values are taken as evenly spread; the resolution is 1/1024 of the tensor's largest value or
finer.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxq.numerics.estimators import AggregatorType, RangeFunction
from jaxq.numerics.quantizer import Grid, IntType
from jaxq.numerics.ranges import Range, asymmetric_borders, symmetric_borders

CLIPPING = np.linspace(1.0, 0.3, 36)  # candidates for a range, as parts of each end of the full range
CELLS = 1024  # a grid with more levels than this is finer than the bins: its rounding error is step**2 / 12
THRESHOLDS = 128  # candidates of the entropy search
CHUNK = 1 << 21  # table entries worked on at a time: a bound on memory
HISTOGRAM_STEP = 1e-5  # part of the values by which NNCF's search moves a border


class Distributions(NamedTuple):
    """What is known of T tensors that are quantized alike."""

    counts: np.ndarray  # float64 [T, bins] over [-2**exponent, 2**exponent); zeros are not among them
    exponent: np.ndarray  # int [T]
    zeros: np.ndarray  # float64 [T], how many values are exactly zero
    low: np.ndarray  # float64 [T], the least value of all
    high: np.ndarray  # float64 [T], the greatest

    @property
    def width(self) -> np.ndarray:
        """The width of a bin, float64 [T]."""
        return np.ldexp(1.0, self.exponent) / (self.counts.shape[1] // 2)


class Moments(NamedTuple):
    """Running sums over the bins of count * x**n, float64 [T, bins + 1]; the bins' width, and the values' ends, [T]."""

    zeroth: np.ndarray
    first: np.ndarray
    second: np.ndarray
    width: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, seen: Distributions) -> Moments:
        bins, width = seen.counts.shape[1], seen.width[:, None]
        centre = (np.arange(bins) - bins // 2 + 0.5) * width
        terms = (seen.counts, seen.counts * centre, seen.counts * (centre**2 + width**2 / 12))
        zeroth, first, second = (np.pad(np.cumsum(each, axis=1), ((0, 0), (1, 0))) for each in terms)
        return cls(zeroth, first, second, seen.width, seen.low, seen.high)

    def below(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The three sums over all values below x [T, n], with bins that x cuts taken in part."""
        bins = self.zeroth.shape[1] - 1
        place = np.clip(x / self.width[:, None] + bins // 2, 0, bins)
        place = np.where(x <= self.low[:, None], 0, np.where(x >= self.high[:, None], bins, place))
        left = np.minimum(place.astype(np.int64), bins - 1)
        rows = np.arange(len(x))[:, None]
        start, end = (left - bins // 2) * self.width[:, None], (place - bins // 2) * self.width[:, None]
        part = (place - left) * (self.zeroth[rows, left + 1] - self.zeroth[rows, left])
        return (
            self.zeroth[rows, left] + part,
            self.first[rows, left] + part * (start + end) / 2,
            self.second[rows, left] + part * (start**2 + start * end + end**2) / 3,
        )


def squared_errors(moments: Moments, low: np.ndarray, high: np.ndarray, grid: Grid, symmetric: bool) -> np.ndarray:
    """The summed squared error of rounding and clipping, for ranges low, high [T, candidates] -> [T, candidates].

        sum over cells of  S2 - 2 v S1 + v^2 S0,   v the cell's value, Sn its sum of x^n

    A grid of more than CELLS levels is taken as evenly fine: step^2 / 12 for each value inside.
    """
    scale, zero_point = (symmetric_borders if symmetric else asymmetric_borders)(low, high, grid)
    bottom, top = (grid.qmin - zero_point) * scale, (grid.qmax - zero_point) * scale
    if grid.qmax - grid.qmin > CELLS:
        return _fine_errors(moments, scale, bottom, top)
    levels = grid.qmax - grid.qmin + 1
    found = np.empty(low.shape)
    rows = max(1, CHUNK // (levels * low.shape[1]))
    for start in range(0, len(low), rows):
        part = slice(start, start + rows)
        values = bottom[part, :, None] + np.arange(levels) * scale[part, :, None]
        borders = (values[..., 1:] - scale[part, :, None] / 2).reshape(len(values), -1)
        mine = Moments(*(each[part] for each in moments))
        ends = ((np.zeros((*values.shape[:2], 1)), np.broadcast_to(each[:, -1:, None], (*values.shape[:2], 1)))
                for each in mine[:3])  # fmt: skip
        cells = [
            np.diff(np.concatenate([first, each.reshape(*values.shape[:2], -1), last], axis=-1), axis=-1)
            for each, (first, last) in zip(mine.below(borders), ends, strict=True)
        ]
        found[part] = (cells[2] - 2 * values * cells[1] + values**2 * cells[0]).sum(-1)
    return found


def _fine_errors(moments: Moments, scale: np.ndarray, bottom: np.ndarray, top: np.ndarray) -> np.ndarray:
    """The error of clipping to [bottom, top], and of rounding inside with a step of `scale`."""
    below, above = moments.below(bottom), moments.below(top)
    under = below[2] - 2 * bottom * below[1] + bottom**2 * below[0]
    total = [each[:, -1:] for each in moments[:3]]
    over = [whole - each for whole, each in zip(total, above, strict=True)]
    clipped = under + over[2] - 2 * top * over[1] + top**2 * over[0]
    inside = above[0] - below[0]
    return clipped + inside * scale**2 / 12


def percentile_ranges(seen: Distributions, outlier: tuple[float, float]) -> Range:
    """The range that leaves out a part `outlier` of all values (zeros too) at its lower and its upper end."""
    total = seen.counts.sum(1) + seen.zeros
    middle = seen.counts.shape[1] // 2
    running = np.cumsum(seen.counts, axis=1)
    running[:, middle:] += seen.zeros[:, None]
    edges = np.ldexp(np.arange(-middle, middle + 1) / middle, seen.exponent[:, None])

    def quantile(probability: float) -> np.ndarray:
        wanted = np.minimum(probability * total, total)
        found = np.empty(len(total))
        for row, target in enumerate(wanted):
            place = min(int(np.searchsorted(running[row], target)), 2 * middle - 1)
            before = running[row, place - 1] if place else 0.0
            inside = seen.counts[row, place]
            part = (target - before) / inside if inside else 0.0
            found[row] = edges[row, place] + np.clip(part, 0, 1) * (edges[row, place + 1] - edges[row, place])
        return found

    low, high = quantile(outlier[0]), quantile(1 - outlier[1])
    low, high = np.where(total == 0, seen.low, low), np.where(total == 0, seen.high, high)
    return Range(np.clip(np.minimum(low, high), seen.low, seen.high), np.clip(high, seen.low, seen.high))


def least_squares_ranges(seen: Distributions, grid: Grid, symmetric: bool) -> Range:
    """The range, within the full one, with the least mean squared error of rounding and clipping.

    The ends are searched in turn, each over `CLIPPING` parts of its full size, twice; symmetric ranges have one end. The full
    range is among the candidates, so the error is never above that of min-max.

    Source: the criterion of Banner et al., arXiv:1810.05723, by search in place of a model of the distribution.
    """
    moments = Moments.of(seen)

    def best(low: np.ndarray, high: np.ndarray) -> np.ndarray:
        low, high = np.broadcast_arrays(low, high)
        return np.asarray(CLIPPING[squared_errors(moments, low, high, grid, symmetric).argmin(1)])

    low, high = seen.low, seen.high
    if symmetric:
        end = np.maximum(high, -low)
        tried = end[:, None] * CLIPPING
        found = end * best(np.maximum(low[:, None], -tried), tried)
        return Range(np.maximum(low, -found), found)
    for _ in range(2):
        high = seen.high * best(low[:, None], seen.high[:, None] * CLIPPING)
        low = seen.low * best(seen.low[:, None] * CLIPPING, high[:, None])
    return Range(low, high)


def entropy_ranges(seen: Distributions, grid: Grid, symmetric: bool) -> Range:
    """The range [max(low, -t), min(high, t)] whose quantized distribution diverges least from the seen one, over thresholds t.

        argmin over t of  KL(P || Q) = sum over bins of p log(p / q)

    P has what lies beyond t added to its last bins; Q is P without that, spread evenly over the occupied bins of each of its
    cells, 2**bits of them over [-t, t]. Three traps of the method: zeros are left out, or the zeros behind a Relu would
    decide alone; a bin of P that is empty in Q (nothing but what was clipped) counts with a part of a value, not as infinite;
    and a t without a value inside is never chosen.

    Source: Migacz, 8-bit Inference with TensorRT, GTC 2017.
    """
    bins = seen.counts.shape[1]
    middle, cells = bins // 2, min(grid.qmax - grid.qmin + 1, bins // 4)
    reach = (np.floor(np.maximum(seen.high, -seen.low) / seen.width) + 1).clip(1, middle).astype(np.int64)  # in bins
    first = np.minimum(cells // 2, reach)
    steps = np.round(first[:, None] + (reach - first)[:, None] * np.linspace(0, 1, THRESHOLDS)).astype(np.int64)
    used = seen.counts > 0
    logs = seen.counts * np.log(np.where(used, seen.counts, 1))
    mass, occupied, weighted = (
        np.pad(np.cumsum(each, axis=1, dtype=np.float64), ((0, 0), (1, 0))) for each in (seen.counts, used, logs)
    )
    total, rows = mass[:, -1:], np.arange(len(reach))[:, None]
    start, end = middle - steps, middle + steps  # the bins inside are [start, end)
    borders = start[..., None] + (2 * steps[..., None] * np.arange(cells + 1)) // cells
    held = np.diff(mass[rows[..., None], borders], axis=-1)
    spread = np.diff(occupied[rows[..., None], borders], axis=-1)
    entropy = weighted[rows, end] - weighted[rows, start]
    crossed = (held * np.log(np.where(held > 0, held / np.maximum(spread, 1), 1))).sum(-1)
    inside = mass[rows, end] - mass[rows, start]
    for edge, outside, cell in ((start, mass[rows, start], 0), (end - 1, total - mass[rows, end], -1)):
        count = seen.counts[rows, edge]
        both = count + outside
        in_cell = np.where(held[..., cell] > 0, held[..., cell] / np.maximum(spread[..., cell], 1), count)
        q = np.where(count > 0, in_cell, 0.5)
        entropy += both * np.log(np.where(both > 0, both, 1)) - count * np.log(np.where(count > 0, count, 1))
        crossed += outside * np.log(q)
    with np.errstate(divide="ignore", invalid="ignore"):
        divergence = (entropy - crossed) / total - np.log(total) + np.log(inside)
    divergence = np.where(inside > 0, divergence, np.inf)
    best = np.take_along_axis(steps, divergence.argmin(1)[:, None], 1)[:, 0] * seen.width
    return Range(np.maximum(seen.low, -best), np.minimum(seen.high, best))


def searched_ranges(seen: Distributions, grid: Grid, symmetric: bool) -> Range:
    """NNCF's HISTOGRAM: borders moved inwards from the full range until the squared error rises.

    In each step the border that passes more bins is moved, such that another 1e-5 of the values lies beyond it. Departures:
    zeros are exact, not part of a bin; the error is that of the quantizer that is really used (NNCF's leaves 0 off the grid);
    in symmetric mode the larger of both ends counts (NNCF takes the upper one and cuts off the negative side); and the bins
    are those of `observers.histogram`, which do not depend on the order of the samples.
    """
    bins, middle = seen.counts.shape[1], seen.counts.shape[1] // 2
    moments, width = Moments.of(seen), seen.width
    running = np.cumsum(seen.counts, axis=1)
    running[:, middle:] += seen.zeros[:, None]
    total = running[:, -1]
    rows = np.arange(len(total))
    left = np.clip(np.floor(seen.low / width) + middle, 0, bins - 1).astype(np.int64)
    right = np.clip(np.ceil(seen.high / width) + middle - 1, 0, bins - 1).astype(np.int64)
    right = np.maximum(left, right)
    beyond = [np.zeros(len(total)), np.ones(len(total))]

    def ends(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        low = np.maximum((left - middle) * width, seen.low)
        high = np.minimum((right + 1 - middle) * width, seen.high)
        if symmetric:
            end = np.maximum(high, -low)
            low, high = np.maximum(seen.low, -end), end
        return np.minimum(low, 0), np.maximum(high, 0)

    def error(left: np.ndarray, right: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        low, high = ends(left, right)
        some = Moments(*(each[chosen] for each in moments))
        return squared_errors(some, low[chosen, None], high[chosen, None], grid, symmetric)[:, 0]

    least = error(left, right, rows)
    active = total > 0
    while active.any():
        chosen = np.flatnonzero(active)
        lower, upper = beyond[0] + HISTOGRAM_STEP, beyond[1] - HISTOGRAM_STEP
        next_left, next_right = left.copy(), right.copy()
        for row in chosen:
            next_left[row] = min(max(np.searchsorted(running[row], lower[row] * total[row]), left[row]), right[row])
            place = np.searchsorted(running[row], upper[row] * total[row], side="right")
            next_right[row] = max(min(place, right[row]), left[row])
        from_left = next_left - left > right - next_right
        beyond = [np.where(from_left, lower, beyond[0]), np.where(from_left, beyond[1], upper)]
        next_left, next_right = np.where(from_left, next_left, left), np.where(from_left, right, next_right)
        moved = active & ((next_left != left) | (next_right != right))
        # Where nothing moved, the steps up to the next one that moves the upper border are taken at once.
        passed = np.where(right > 0, running[rows, np.maximum(right - 1, 0)] / np.maximum(total, 1), 0)
        jump = 1 - np.floor((1 - passed) / HISTOGRAM_STEP) * HISTOGRAM_STEP
        beyond[1] = np.where(moved, beyond[1], np.minimum(beyond[1], jump))
        if moved.any():
            tried = np.flatnonzero(moved)
            errors = error(next_left, next_right, tried)
            better = errors <= least[tried]
            active[tried[~better]] = False
            kept = tried[better]
            least[kept], left[kept], right[kept] = errors[better], next_left[kept], next_right[kept]
        active &= (beyond[0] < beyond[1]) & (left < right)
    return Range(*ends(left, right))


def ranges_of(
    aggregator: AggregatorType | RangeFunction,
    seen: Distributions,
    grid: Grid,
    symmetric: bool,
    outlier: tuple[float, float],
) -> Range:
    """The ranges [T] of an estimator that reads distributions. All of them hold zero.

    A floating-point grid has relative steps; MSE, ENTROPY and HISTOGRAM leave it the full range, and functions are not asked.
    """
    search: dict[AggregatorType, RangeFunction] = {
        AggregatorType.MSE: least_squares_ranges,
        AggregatorType.ENTROPY: entropy_ranges,
        AggregatorType.HISTOGRAM: searched_ranges,
    }
    if aggregator is AggregatorType.PERCENTILE:
        found = percentile_ranges(seen, outlier)
    elif not isinstance(grid, IntType):
        found = Range(seen.low, seen.high)
    else:
        find = search[aggregator] if isinstance(aggregator, AggregatorType) else aggregator
        found = Range(*map(np.asarray, find(seen, grid, symmetric)))
    return Range(np.minimum(found.low, 0), np.maximum(found.high, 0))
