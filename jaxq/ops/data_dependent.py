"""Operators whose output shape depends on the values: NonZero, Unique, Compress, NonMaxSuppression.

They cannot be compiled, so they run in numpy: on values that are known while tracing, or in the tail (`jaxq.engine.partition`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxq.ops import op, refuse_huge, static_array


@op("NonZero", since=9, static=("x",), data_dependent=True)
def non_zero(x):
    """The indices [rank, count] of the elements that are not zero, in row-major order."""
    values = static_array(x, "NonZero.X")
    refuse_huge((np.count_nonzero(values), values.ndim), np.int64)
    return np.argwhere(values).T.astype(np.int64)


@op("Compress", since=9, static=("condition",), data_dependent=True)
def compress(x, condition, *, axis=None):
    """The slices of x along `axis` (default: elements of x, flattened) where the condition holds."""
    kept = np.flatnonzero(static_array(condition, "Compress.condition"))
    return x.reshape(-1)[kept] if axis is None else x[(slice(None),) * (axis % x.ndim) + (kept,)]


@op("Unique", since=11, static=("x",), data_dependent=True)
def unique(x, *, axis=None, sorted=1):
    """Distinct elements (or slices along `axis`), where each first occurs, which one each is, and how often it is."""
    values = static_array(x, "Unique.X")
    result, first, inverse, counts = np.unique(values, True, True, True, axis=axis)
    inverse = inverse.reshape(-1)
    if not sorted:
        order = np.argsort(first)
        result, first, counts = np.take(result, order, axis or 0), first[order], counts[order]
        inverse = np.argsort(order)[inverse]
    return result, first, inverse, counts


@op(
    "NonMaxSuppression",
    since=10,
    static=("boxes", "scores", "max_output_boxes_per_class", "iou_threshold", "score_threshold"),
    data_dependent=True,
)
def non_max_suppression(
    boxes, scores, max_output_boxes_per_class=None, iou_threshold=None, score_threshold=None, *, center_point_box=0
):
    """For each sample and class the best boxes that overlap no better one: rows of (sample, class, box).

    Args:
      boxes: [batch, boxes, 4], two opposite corners (y, x, y, x), or centre and size (x, y, width, height).
      scores: [batch, classes, boxes]; only those above `score_threshold` take part.
      iou_threshold: a box goes when its intersection with a better one is more than this share of their union.
    """
    corners = _corners(static_array(boxes, "NonMaxSuppression.boxes"), bool(center_point_box))
    limit = int(_scalar(max_output_boxes_per_class, 0, "NonMaxSuppression.max_output_boxes_per_class"))
    overlap = _scalar(iou_threshold, 0, "NonMaxSuppression.iou_threshold")
    least = _scalar(score_threshold, -np.inf, "NonMaxSuppression.score_threshold")
    rows = [
        (sample, group, box)
        for sample, by_class in enumerate(static_array(scores, "NonMaxSuppression.scores"))
        for group, values in enumerate(by_class)
        for box in _best_boxes(corners[sample], values, limit, overlap, least)
    ]
    return np.array(rows, np.int64).reshape(-1, 3)


def _scalar(value: Any, default: float, what: str) -> float:
    """An optional operand of one element."""
    return default if value is None or np.size(value) == 0 else static_array(value, what).item()


def _corners(boxes: np.ndarray, centered: bool) -> np.ndarray:
    """Boxes [..., 4] as lower and upper corner [..., 2, 2]."""
    first, second = boxes[..., :2], boxes[..., 2:]
    if centered:
        first, second = first - second / 2, first + second / 2
    return np.stack([np.minimum(first, second), np.maximum(first, second)], -2)


def _best_boxes(corners: np.ndarray, scores: np.ndarray, limit: int, overlap: float, least: float) -> list[int]:
    """Indices of the boxes [n, 2, 2] that remain, best first."""
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] > least]
    kept: list[int] = []
    while order.size and len(kept) < limit:
        best, order = order[0], order[1:]
        kept.append(int(best))
        order = order[_intersection_over_union(corners[best], corners[order]) <= overlap]
    return kept


def _intersection_over_union(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Shared area divided by covered area of one box [2, 2] with each of the others [n, 2, 2]; 0 for empty boxes."""
    sides = np.minimum(box[1], others[:, 1]) - np.maximum(box[0], others[:, 0])
    shared = np.prod(np.maximum(sides, 0), -1)
    covered = np.prod(box[1] - box[0]) + np.prod(others[:, 1] - others[:, 0], -1) - shared
    return np.divide(shared, covered, out=np.zeros_like(shared), where=covered > 0)
