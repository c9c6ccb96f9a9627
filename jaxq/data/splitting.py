"""The single samples in the items of a data set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from jaxq.engine.model import check_feed
from jaxq.graph.ir import TensorType


def split_samples(
    declared: Mapping[str, TensorType], items: Iterable[Any], static: Sequence[str] = (), axis: int | None = 0
) -> Iterator[dict[str, Any]]:
    """The samples in the items of a data set, as feeds of batch one.

    An item is split along `axis` if every (traced) input declares that axis as free and all of them agree on its size;
    otherwise, or with an axis of None, the item is one sample.
    """
    free = [name for name, wanted in declared.items() if name not in static]
    splittable = axis is not None and all(_is_free(declared[name], axis) for name in free)
    before = (slice(None),) * (axis or 0)
    for item in items:
        feed = check_feed(declared, item)
        sizes = {feed[name].shape[axis] for name in free} if splittable else set()
        if len(sizes) != 1:
            yield feed
            continue
        for row in range(sizes.pop()):
            part = (*before, slice(row, row + 1))
            yield {name: value if name in static else value[part] for name, value in feed.items()}


def _is_free(wanted: TensorType, axis: int) -> bool:
    return (
        not wanted.within
        and wanted.shape is not None
        and len(wanted.shape) > axis
        and not isinstance(wanted.shape[axis], int)
    )
