"""Sequences and optionals: a sequence is a Python list of arrays, an optional is its content or None.

Lists are structure, known while tracing, and their arrays may be traced: a graph that splits a tensor into a sequence and
picks from it compiles like one that slices. Only a position that depends on the data does not.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxq.errors import ModelError
from jaxq.ops import array_namespace, op, static_array, static_ints


@op("SequenceEmpty", since=11)
def sequence_empty(*, dtype=None):
    return []


@op("SequenceConstruct", since=11)
def sequence_construct(*inputs):
    return list(inputs)


@op("SequenceLength", since=11)
def sequence_length(sequence):
    return np.array(len(sequence), np.int64)


@op("SequenceAt", since=11, static=("position",))
def sequence_at(sequence, position):
    return sequence[_place(position, len(sequence), len(sequence) - 1, "SequenceAt.position")]


@op("SequenceInsert", since=11, static=("position",))
def sequence_insert(sequence, tensor, position=None):
    """The sequence with `tensor` before `position`, or at its end."""
    count = len(sequence)
    place = count if position is None else _place(position, count, count, "SequenceInsert.position")
    return [*sequence[:place], tensor, *sequence[place:]]


@op("SequenceErase", since=11, static=("position",))
def sequence_erase(sequence, position=None):
    """The sequence without the element at `position`, or without the last."""
    place = _place(-1 if position is None else position, len(sequence), len(sequence) - 1, "SequenceErase.position")
    return [*sequence[:place], *sequence[place + 1 :]]


def _place(position: Any, count: int, last: int, what: str) -> int:
    """A position as 0..last; negative ones count from the end of a sequence of `count`."""
    (place,) = static_ints(position, what)
    if not -count <= place <= last:
        raise ModelError(f"{what} is {place}, outside of a sequence of {count}")
    return place + count if place < 0 else place


@op("SplitToSequence", since=11, static=("split",))
def split_to_sequence(x, split=None, *, axis=0, keepdims=1):
    """x cut along `axis`: into slices of one, into parts of the size `split` (a smaller one last), or of many given sizes.

    `keepdims` = 0 takes the axis away, where no sizes are given.
    """
    xp, length = array_namespace(x), x.shape[axis]
    if split is None:
        parts = xp.split(x, np.arange(1, length), axis) if length else []
        return [part if keepdims else xp.squeeze(part, axis) for part in parts]
    sizes = static_array(split, "SplitToSequence.split")
    if sizes.ndim == 0:
        part = int(sizes)
        if part <= 0:
            raise ModelError(f"SplitToSequence.split is {part}; a part needs at least one element")
        return list(xp.split(x, np.arange(part, length, part), axis))
    if sizes.sum() != length or sizes.min(initial=0) < 0:
        raise ModelError(f"axis {axis} of length {length} cannot be split into {sizes.tolist()}")
    return list(xp.split(x, np.cumsum(sizes)[:-1], axis))


@op("ConcatFromSequence", since=11)
def concat_from_sequence(sequence, *, axis, new_axis=0):
    """The elements joined along `axis`, or stacked along a new one."""
    if not sequence:
        raise ModelError("the sequence is empty, so that the shape of its elements is unknown")
    xp = array_namespace(*sequence)
    return xp.stack(sequence, axis) if new_axis else xp.concatenate(sequence, axis)


@op("SequenceMap", since=17)
def sequence_map(sequence, *additional, body):
    """The body for each element; those of further sequences go along, tensors are given to every turn."""
    rows = [
        body(element, *(other[turn] if isinstance(other, list) else other for other in additional))
        for turn, element in enumerate(sequence)
    ]
    return tuple([row[index] for row in rows] for index in range(len(body.outputs)))


@op("Optional", since=15)
def optional(x=None, *, type=None):
    return x


@op("OptionalHasElement", since=15)
def optional_has_element(x=None):
    return np.array(x is not None)


@op("OptionalGetElement", since=15)
def optional_get_element(x):
    if x is None:
        raise ModelError("the optional is empty")
    return x
