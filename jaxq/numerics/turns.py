"""What a tap has seen in the turns of a loop, made one tensor of each name.

Turns that are unrolled are kept as they are. Of a compiled loop with many, or with a number that only the data know, a fair
sample is kept, and the smallest and the largest value that each element ever had: memory does not grow with the turns, and no
range misses a value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

MOST_KEPT = 16  # turns of a loop
MATRIX = 2  # axes


class Seen(NamedTuple):
    """What a tap left in its carry, and of what is in a branch on which the data decide, whether that was taken."""

    values: dict[str, jax.Array]
    taken: dict[str, jax.Array]


def joined(turns: Sequence[Seen]) -> tuple[Seen, set[str]]:
    """What was seen in all of some turns, and the names of tensors whose shapes or types differ too much to be joined."""
    result, refused = Seen({}, {}), set[str]()
    for name in dict.fromkeys(name for each in turns for name in each.values):
        there = [each for each in turns if name in each.values]
        values = [each.values[name] for each in there]
        conditional = any(name in each.taken for each in there)
        if len({(each.shape, each.dtype) for each in values}) == 1:
            taken = jnp.stack([jnp.asarray(each.taken.get(name, True)) for each in there]) if conditional else None
            result.values[name] = _flat(jnp.stack(values), taken)
            if taken is not None:
                result.taken[name] = taken.any()
        elif len({(each.ndim >= MATRIX, each.shape[1:], each.dtype) for each in values}) == 1 and not conditional:
            result.values[name] = jnp.concatenate(values)
        else:
            refused.add(name)
    return result, refused


def _flat(turns: jax.Array, taken: jax.Array | None = None) -> jax.Array:
    """The turns [T, ...] one behind the other along the first axis; vectors and numbers have none to spare, and get one more.

    A turn that did not take the branch shows one that did, so that nothing counts that was not there.
    """
    if taken is not None:
        turns = turns[jnp.where(taken, jnp.arange(len(turns)), jnp.argmax(taken))]
    return turns.reshape(-1, *turns.shape[2:]) if turns.ndim > MATRIX and turns.size else turns


class _Kept(NamedTuple):
    """Turns [places, ...] of a tensor, the smallest and the largest value of each element, and how many turns made it."""

    turns: Any
    low: Any
    high: Any
    count: Any


class Keeper:
    """Keeps what a tap sees in a compiled loop, in an array of fixed shape that goes from turn to turn.

    Args:
      shapes: what it sees in one turn, as shapes.
      turns: how many there are; None if only the data know.
    """

    def __init__(self, shapes: Seen, turns: int | None):
        self.turns, self.conditional = turns, frozenset(shapes.taken)
        self.places = MOST_KEPT if turns is None else max(1, min(turns, MOST_KEPT))
        self.start: dict[str, Any] = {}
        for name, each in shapes.values.items():
            one, all_ = (jnp.zeros(shape, each.dtype) for shape in (each.shape, (self.places, *each.shape)))
            self.start[name] = _Kept(all_, one, one, jnp.zeros((), jnp.int32))

    def add(self, kept: dict[str, Any], seen: Seen) -> dict[str, Any]:
        """What is kept after one more turn."""
        return {name: self._added(each, seen.values[name], seen.taken.get(name, True)) for name, each in kept.items()}

    def _added(self, kept: _Kept, value: jax.Array, taken: Any) -> _Kept:
        turns, low, high, count = kept
        chance = (count.astype(jnp.uint32) * jnp.uint32(2654435761)) >> 8  # a hash: the same turns every time
        drawn = (chance % (count + 1).astype(jnp.uint32)).astype(jnp.int32)  # a reservoir: each turn is as likely in it
        place = jnp.where(taken, jnp.where(count < self.places, count, drawn), self.places)
        least, most = (
            jnp.where(count == 0, value, each(end, value)) for each, end in zip(_ENDS, (low, high), strict=True)
        )
        return _Kept(
            turns.at[place].set(value, mode="drop"),
            jnp.where(taken, least, low),
            jnp.where(taken, most, high),
            count + jnp.where(taken, 1, 0),
        )

    def seen(self, kept: dict[str, Any]) -> Seen:
        """What was seen in all turns."""
        result = Seen({}, {})
        for name, (turns, low, high, count) in kept.items():
            there = turns[jnp.arange(self.places) % jnp.clip(count, 1, self.places)]
            if self.turns is None or self.turns > self.places:
                there = jnp.concatenate([there, low[None], high[None]])
            result.values[name] = _flat(there)
            if not self.turns or name in self.conditional:
                result.taken[name] = count > 0
        return result


_ENDS = (jnp.minimum, jnp.maximum)
