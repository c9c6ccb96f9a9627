"""One pass over the data: every statistic that is asked for, measured inside one compiled program.

Each sample runs by itself under `vmap`, so that a statistic is per sample whatever the graph does with its batch axis, and a
model with a fixed batch of one is calibrated in batches all the same. Nothing but the small states leaves the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq.engine.batching import batches
from jaxq.engine.execute import SUMS, chain, quantizing, shared
from jaxq.engine.model import Model
from jaxq.engine.runner import Batch, Folded, Network, run
from jaxq.errors import CalibrationError
from jaxq.graph.ir import FrozenDict
from jaxq.numerics.observers import Observer
from jaxq.ops.cpu_memory import materialized

INT32_MAX = np.iinfo(np.int32).max

Requests = FrozenDict[Observer, tuple[str, ...]]  # observer -> the tensors that it watches, in order


def collect(
    model: Model,
    needs: Sequence[Mapping[str, Observer]],
    samples: Iterable[Mapping[str, Any]],
    *,
    batch_size: int | None = None,
    beside: Sequence[Mapping[str, Observer]] = (),
) -> list[dict[str, Any]]:
    """Runs the model over the samples once and returns, for each mapping in `needs`, {tensor name: state} as numpy.

    A tensor that no sample made, in a branch that was not taken, has the empty state.

    Args:
      model: run with its encodings, if it has any.
      needs: what each algorithm wants to see: tensor name -> observer.
      samples: feeds of one sample each (`jaxq.data.splitting`).
      batch_size: samples run at a time; None chooses by the size of the largest tensor. It does not change the result,
        but for the last bit of sums and products, of which XLA chooses the order.
      beside: what is watched, too, and not returned: the same in several calls, it makes one compiled program serve them.

    Raises:
      CalibrationError: there are no samples.
    """
    requests = _requests([*beside, *needs])
    watching = Watching(frozenset(name for names in requests.values() for name in names))
    _, *numbers = model.program
    states: Any = None
    for signature, batch in batches(model, samples, batch_size):
        if states is None:
            states = [observer.init(len(names)) for observer, names in requests.items()]
        samples_seen = int(batch.number.max()) + 1
        states = [observer.grow(state, samples_seen) for observer, state in zip(requests, states, strict=True)]
        head = model.laid_out(model.traced(signature).head)
        states = run(watching, Folded(Updating(requests)), (head,), signature.static, batch, numbers, states)
    if states is None:
        raise CalibrationError("the calibration data is empty; at least one sample is needed")
    found = jax.device_get(states)
    by_name = {
        (observer, name): jax.tree.map(lambda leaf, row=row: leaf[row], found[position])
        for position, (observer, names) in enumerate(requests.items())
        for row, name in enumerate(names)
    }
    return [{name: by_name[observer, name] for name, observer in need.items()} for need in needs]


def _requests(needs: Sequence[Mapping[str, Observer]]) -> Requests:
    """The same wishes with the observers in front, so that tensors with one observer are handled as one array."""
    names: dict[Observer, dict[str, None]] = {}
    for need in needs:
        for name, observer in need.items():
            names.setdefault(observer, {})[name] = None
    return FrozenDict({observer: tuple(each) for observer, each in names.items()})


@dataclass(frozen=True)
class Watching:
    """The tensors of a sample that are watched, before they are rounded; the numbers are params and encodings.

    [(condition, {name: tensor})]: those in a branch on which the data decide with the boolean that says whether it is taken, all
    others with None.
    """

    watched: frozenset[str]

    def __call__(
        self, networks: tuple[Network, ...], numbers: Any, sample: Batch
    ) -> list[tuple[jax.Array | None, dict[str, jax.Array]]]:
        (network,), (params, encodings) = networks, numbers
        stored = shared(network.graph)
        summed = frozenset(name for node in network.graph.nodes if node.op in SUMS for name in node.inputs)
        conditions: dict[str, jax.Array] = {}

        def watch(name: str, value: jax.Array, carry: Any) -> tuple[jax.Array, Any]:
            if name in self.watched:
                carry[name] = value if name in stored else materialized(value)
                value = value if name in summed else carry[name]
            return value, carry

        tap = chain(watch, quantizing(encodings))
        seen = network(params, sample.inputs, tap=tap, carry={}, conditions=conditions)[1]
        alike: dict[int, tuple[jax.Array | None, dict[str, jax.Array]]] = {}
        for name, value in seen.items():
            condition = conditions.get(name)
            alike.setdefault(id(condition), (condition, {}))[1][name] = value
        return list(alike.values())


@dataclass(frozen=True)
class Updating:
    """The states of all observers after one more batch."""

    requests: Requests

    def __call__(self, states: list[Any], found: Any, batch: Batch) -> list[Any]:
        after = []
        for (observer, names), state in zip(self.requests.items(), states, strict=True):
            for (
                condition,
                tensors,
            ) in found:  # these samples may have taken a branch in which other tensors are not made
                rows = [row for row, name in enumerate(names) if name in tensors]
                if rows:
                    real = batch.real if condition is None else batch.real & condition
                    state = _updated(observer, state, rows, [tensors[names[row]] for row in rows], batch.number, real)
            after.append(state)
        return after


def _updated(
    observer: Observer, state: Any, rows: list[int], tensors: list[jax.Array], number: jax.Array, real: jax.Array
) -> Any:
    """The state after a batch of these tensors, which stand in some of its rows; samples that are not real do not count."""
    index = jnp.where(real, number, INT32_MAX)
    measured = observer.measure(tensors, index if observer.by_number else real)
    some = np.array(rows, np.int32)
    if some.size == len(jax.tree.leaves(state)[0]):
        return observer.update(state, measured, index)
    made = observer.update(jax.tree.map(lambda leaf: leaf[some], state), measured, index)
    return jax.tree.map(lambda leaf, new: leaf.at[some].set(new), state, made)
