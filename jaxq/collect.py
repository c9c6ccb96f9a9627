"""One pass over the data: every statistic that is asked for, measured inside one compiled program.

Each sample runs by itself under `vmap`, so that a statistic is per sample whatever the graph does with its batch axis, and a
model with a fixed batch of one is calibrated in batches all the same. Nothing but the small states leaves the device.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxq.engine.runner import Batch as Batch
from jaxq.errors import CalibrationError
from jaxq.execute import SUMS, chain, execute, quantizing, runs_in_32_bit, shared
from jaxq.graph import FrozenDict, Graph, Literal, TensorType
from jaxq.model import Model, check_feed, split_static, warn_of_many_shapes
from jaxq.observers import Observer
from jaxq.ops import platform
from jaxq.ops.cpu_memory import materialized
from jaxq.programs import compiled
from jaxq.quantizer import QuantParams
from jaxq.split import Split, split

# Bytes that the largest tensor of a batch may take. On CPU the fast batch is the one whose tensors stay in the cache.
LARGEST_TENSOR = {"cpu": 4 << 20, "gpu": 256 << 20, "tpu": 256 << 20}
LARGEST_BATCH = 64
INT32_MAX = np.iinfo(np.int32).max

Requests = FrozenDict[Observer, tuple[str, ...]]  # observer -> the tensors that it watches, in order


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
      samples: feeds of one sample each (`split_samples`).
      batch_size: samples run at a time; None chooses by the size of the largest tensor. It does not change the result,
        but for the last bit of sums and products, of which XLA chooses the order.
      beside: what is watched, too, and not returned: the same in several calls, it makes one compiled program serve them.

    Raises:
      CalibrationError: there are no samples.
    """
    requests = _requests([*beside, *needs])
    graph, params, encodings = model.program
    states: Any = None
    for static, batch in batches(model, samples, batch_size):
        if states is None:
            states = [observer.init(len(names)) for observer, names in requests.items()]
        samples_seen = int(batch.number.max()) + 1
        states = [observer.grow(state, samples_seen) for observer, state in zip(requests, states, strict=True)]
        head = compiled_part(graph, params, static, batch)
        states = _step(head, static, requests, states, params, encodings, batch)
    if states is None:
        raise CalibrationError("the calibration data is empty; at least one sample is needed")
    found = jax.device_get(states)
    by_name = {
        (observer, name): jax.tree.map(lambda leaf, row=row: leaf[row], found[position])
        for position, (observer, names) in enumerate(requests.items())
        for row, name in enumerate(names)
    }
    return [{name: by_name[observer, name] for name, observer in need.items()} for need in needs]


def split_batch(graph: Graph, params: Mapping[str, Any], static: FrozenDict[str, Literal], batch: Batch) -> Split:
    """The parts of a graph for the samples of such a batch."""
    one = {name: jax.ShapeDtypeStruct(value.shape[1:], value.dtype) for name, value in batch.inputs.items()}
    return split(graph, params, static, one)


def compiled_part(graph: Graph, params: Mapping[str, Any], static: FrozenDict[str, Literal], batch: Batch) -> Graph:
    """The graph that is run on such a batch: without what the host does behind the compiled part (`jaxq.split`)."""
    return split_batch(graph, params, static, batch).head


def _requests(needs: Sequence[Mapping[str, Observer]]) -> Requests:
    """The same wishes with the observers in front, so that tensors with one observer are handled as one array."""
    names: dict[Observer, dict[str, None]] = {}
    for need in needs:
        for name, observer in need.items():
            names.setdefault(observer, {})[name] = None
    return FrozenDict({observer: tuple(each) for observer, each in names.items()})


@compiled(static=3, donated=[0])
def _step(
    graph: Graph,
    static: FrozenDict[str, Literal],
    requests: Requests,
    states: list[Any],
    params: Mapping[str, jax.Array],
    encodings: Mapping[str, QuantParams],
    batch: Batch,
) -> list[Any]:
    """The states after one more batch."""
    fixed = {name: literal.array for name, literal in static.items()}

    watched = frozenset(name for names in requests.values() for name in names)
    stored = shared(graph)
    summed = frozenset(name for node in graph.nodes if node.op in SUMS for name in node.inputs)

    branches: dict[str, int] = {}  # tensor of a branch on which the data decide -> its condition's place

    def forward(sample: Mapping[str, Any]) -> tuple[dict[str, jax.Array], list[jax.Array]]:
        conditions: dict[str, jax.Array] = {}

        def watch(name: str, value: jax.Array, carry: Any) -> tuple[jax.Array, Any]:
            if name in watched:
                carry[name] = value if name in stored else materialized(value)
                value = value if name in summed else carry[name]
            return value, carry

        tap = chain(watch, quantizing(encodings))
        seen = execute(graph, params, {**sample, **fixed}, tap=tap, carry={}, conditions=conditions)[1]
        distinct = {id(taken): taken for name, taken in conditions.items() if name in seen}
        places = {each: place for place, each in enumerate(distinct)}
        branches.update({name: places[id(taken)] for name, taken in conditions.items() if name in seen})
        return seen, list(distinct.values())

    tensors, conditions = jax.vmap(forward)(dict(batch.inputs))
    after = []
    for (observer, names), state in zip(requests.items(), states, strict=True):
        alike: dict[
            int | None, list[int]
        ] = {}  # these samples may have taken a branch in which other tensors are not made
        for row, name in enumerate(names):
            if name in tensors:
                alike.setdefault(branches.get(name), []).append(row)
        for branch, rows in alike.items():
            real = batch.real if branch is None else batch.real & conditions[branch]
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


def batches(
    model: Model,
    samples: Iterable[Mapping[str, Any]],
    batch_size: int | None,
    beside: Iterable[Any] | None = None,
) -> Iterator[tuple[FrozenDict[str, Literal], Batch]]:
    """The samples in batches of one shape each, with their static inputs; a short last batch is padded, not recompiled.

    `beside` are arrays that go with each sample, of shapes that follow from those of the sample.
    """
    pending: dict[Any, list[_Row]] = {}
    sizes: dict[Any, int] = {}
    others = itertools.repeat(None) if beside is None else iter(beside)
    for number, feed in enumerate(samples):
        static, inputs = split_static(model.graph, feed)
        arrays = {name: np.array(value) for name, value in inputs.items()}  # copies: a loader may refill its buffer
        key = (static, tuple((name, value.shape, value.dtype) for name, value in arrays.items()))
        if key not in sizes:
            sizes[key] = batch_size or fitting_batch(largest_tensor(model, static, arrays))
            warn_of_many_shapes(len(sizes), "the calibration")
        pending.setdefault(key, []).append(_Row(number, arrays, next(others)))
        if len(pending[key]) == sizes[key]:
            yield static, _batch(pending.pop(key), sizes[key])
        elif sum(map(len, pending.values())) >= 4 * max(
            LARGEST_BATCH, *sizes.values()
        ):  # many shapes: bound what is held back
            key = max(pending, key=lambda each: len(pending[each]))
            yield key[0], _batch(pending.pop(key), sizes[key])
    for key, rows in pending.items():
        yield key[0], _batch(rows, sizes[key])


class _Row(NamedTuple):
    number: int
    inputs: dict[str, Any]
    beside: Any


def _batch(rows: list[_Row], size: int) -> Batch:
    padded = rows + [rows[0]] * (size - len(rows))
    inputs, beside = (
        jax.tree.map(lambda *arrays: np.stack(arrays), *column)
        for column in ([row.inputs for row in padded], [row.beside for row in padded])
    )
    return Batch(inputs, np.array([row.number for row in padded], np.int32), np.arange(size) < len(rows), beside)


def fitting_batch(largest: int, room: Mapping[str, int] = LARGEST_TENSOR, most: int = LARGEST_BATCH) -> int:
    """The number of samples to run at a time when the largest tensor of one sample has that many bytes: a power of two.

    `room` is what that tensor may take of a batch, on each platform.
    """
    fitting = room.get(platform(), room["gpu"]) // max(largest, 1)
    return min(most, 1 << max(fitting, 1).bit_length() - 1)


def tensor_shapes(
    model: Model, static: FrozenDict[str, Literal], inputs: Mapping[str, Any]
) -> Mapping[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of every traced tensor (inputs and params too) when the compiled part runs on such inputs."""
    return traced_tensors(model, static, inputs).shapes


class Traced(NamedTuple):
    """What running a graph makes.

    Attributes:
      shapes: shape and dtype of every traced tensor; of one in a loop, those of a turn.
      hidden: names of the tensors that are made where no tap sees them, or that differ from turn to turn.
      largest: bytes of the largest one that is no param, with all turns that are kept of a loop.
    """

    shapes: FrozenDict[str, jax.ShapeDtypeStruct]
    hidden: frozenset[str]
    largest: int


def traced_tensors(model: Model, static: FrozenDict[str, Literal], inputs: Mapping[str, Any]) -> Traced:
    """What the compiled part makes when it runs on such inputs."""
    head = split(model.graph, model.params, static, inputs).head
    given = [
        {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in each.items()}
        for each in (model.params, inputs)
    ]
    leaves, structure = jax.tree.flatten(given)
    return _traced_tensors(head, static, structure, tuple(leaves), runs_in_32_bit())


@functools.lru_cache(maxsize=64)  # every pass over the data asks
def _traced_tensors(
    head: Graph, static: FrozenDict[str, Literal], structure: Any, leaves: tuple[Any, ...], narrow: bool
) -> Traced:
    """The same for inputs [params, inputs]; `narrow` says which mode of JAX it is for."""
    params, inputs = jax.tree.unflatten(structure, leaves)
    shapes: dict[str, jax.ShapeDtypeStruct] = {}
    hidden: set[str] = set()
    fixed = {name: literal.array for name, literal in static.items()}

    def watch(name: str, value: jax.Array, carry: Any) -> tuple[jax.Array, Any]:
        shapes[name] = jax.ShapeDtypeStruct(value.shape, value.dtype)
        carry[name] = value
        return value, carry

    def run(params: Mapping[str, Any], inputs: Mapping[str, Any]) -> Any:  # outputs may be strings, which JAX has not
        return execute(head, params, {**inputs, **fixed}, tap=watch, carry={}, hidden=hidden)[1]

    kept = jax.eval_shape(run, params, inputs)
    sizes = (each.size * each.dtype.itemsize for name, each in kept.items() if name not in params)
    return Traced(FrozenDict(shapes), frozenset(hidden), max(sizes, default=1))


def largest_tensor(model: Model, static: FrozenDict[str, Literal], inputs: Mapping[str, Any]) -> int:
    """Bytes of the largest activation of one sample."""
    return traced_tensors(model, static, inputs).largest
