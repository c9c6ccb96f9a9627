"""Control flow: If, Loop and Scan. What is decided while tracing is inlined or unrolled; the rest goes to `jax.lax`.

The operands that are named static here may be traced as well; static ones are asked for because they serve better.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq.errors import DynamicShapeError, ModelError, UnsupportedOpError
from jaxq.numerics.turns import Keeper, Seen, joined
from jaxq.ops import array_namespace, is_static, op
from jaxq.ops.bodies import Body

# Loops with more turns are compiled once, if they can be: the program and its compile time would grow with every turn.
MOST_UNROLLED = 16
MOST_TURNS = 4096  # that are followed one by one while compiling, where that can be avoided
INT32_MAX = np.iinfo(np.int32).max  # exporters write the largest int64 for a loop that only its condition ends


@op("If", since=1, static=("cond",))
def if_(cond, *, then_branch, else_branch):
    """One of two bodies: inlined when the condition is known while tracing, else `lax.cond`, with equal shapes.

    Where somebody looks at tensors, both are inlined; under `vmap` both run in any case.
    """
    if is_static(cond):
        return (then_branch if np.reshape(cond, ()) else else_branch)(inlined=True)
    taken = cond.reshape(())
    try:
        if not then_branch.tapped:
            return jax.lax.cond(taken, lambda: traced(then_branch()), lambda: traced(else_branch()))
        results = [traced(each(inlined=True, condition=c)) for each, c in ((then_branch, taken), (else_branch, ~taken))]
        if _types(results[0]) != _types(results[1]):
            raise TypeError(f"{_types(results[0])[1]} and {_types(results[1])[1]}")
        return jax.tree.map(functools.partial(jax.lax.select, taken), *results)
    except TypeError as error:
        raise DynamicShapeError(
            "the branches differ in the shapes or types of their results, so the condition must be known before the "
            f"data is, but it depends on the data ({error})"
        ) from None


def traced(values: Any) -> tuple[Any, ...]:
    """Arrays, and sequences of arrays, as JAX arrays."""
    return jax.tree.map(jnp.asarray, tuple(values))


# ----------------------------------------------------------------------------------------------------------------- Loop


@op("Loop", since=1, static=("max_trip_count", "cond"))
def loop(max_trip_count=None, cond=None, *initial, body):
    """Runs the body until `max_trip_count` turns are done or its condition is false; gives the last state and the rows.

    body(turn, condition, *state) -> (condition, *state, *rows); the rows of all turns are stacked. Without `cond` the
    condition that the body gives is ignored.

    The number of turns is known when `max_trip_count` and the conditions are. Then few turns are unrolled and many
    become a `lax.scan`, unless the state changes its shape or a turn's shapes depend on its number. Otherwise it is a
    `lax.while_loop`, which has no rows, for their number would depend on the data.
    """
    if len(body.outputs) <= len(initial):
        raise ModelError(
            f"the body gives {len(body.outputs)} outputs; a condition and {len(initial)} states are needed at least"
        )
    counted = max_trip_count is None or is_static(max_trip_count)
    if counted and (cond is None or is_static(cond)):
        turns = None if max_trip_count is None else int(np.reshape(max_trip_count, ()))
        if cond is not None and not np.reshape(cond, ()):
            turns = 0
        if turns is not None and MOST_UNROLLED < turns < INT32_MAX and not body.concrete:
            try:
                return _scanned(body, turns, initial, cond is not None)
            except (_Unsuitable, DynamicShapeError, ModelError):
                pass
        try:
            return _unrolled(body, turns, initial, cond is not None)
        except _Unsuitable:
            pass
    return _while(body, max_trip_count, cond, initial)


class _Unsuitable(Exception):
    """This way of running a loop does not fit its body."""


def _unrolled(body: Body, turns: int | None, initial: tuple[Any, ...], conditional: bool) -> tuple[Any, ...]:
    """One turn after the other, while the condition is known.

    Raises:
      _Unsuitable: the condition depends on the data, or the loop has too many turns.
    """
    state, rows, shown, turn = initial, [], [], 0
    while turns is None or turn < turns:
        if turn == MOST_TURNS and not body.concrete:
            raise _Unsuitable
        (condition, *results), seen = body.turn(np.array(turn, np.int64), np.array(True), *state)
        state, row = tuple(results[: len(initial)]), results[len(initial) :]
        rows.append(row)
        shown.append(seen)
        turn += 1
        if turn == turns:
            break
        if conditional and not is_static(condition):
            raise _Unsuitable
        if conditional and not np.reshape(condition, ()):
            break
        if not conditional and turns is None:
            raise ModelError("the loop has neither a trip count nor a condition, so it would never end")
    if not rows:
        return *state, *_no_rows(body, 1 + len(state), np.array(0, np.int64), np.array(True), *initial)
    all_turns, differing = joined(shown)
    body.leave(all_turns)
    body.refuse(differing)
    return *state, *(array_namespace(*column).stack(column) for column in zip(*rows, strict=True))


def _no_rows(body: Body, first: int, *arguments: Any) -> tuple[np.ndarray, ...]:
    """The stacked rows of a loop that makes no turn: of the shapes that a turn on such arguments would make.

    They are the body's outputs from `first` on. A body that cannot run without a turn to
    make gives what the file declares, with 0 for an unknown size (ONNX Runtime).
    """
    try:
        made = jax.eval_shape(lambda: traced(body.turn(*arguments)[0]))
        rows = [(each.shape, each.dtype) for each in made[first:]]
    except ModelError:
        rows = []
        for each in body.types[first:]:
            if each is None or each.shape is None:
                raise
            rows.append((tuple(size if isinstance(size, int) else 0 for size in each.shape), np.dtype(each.dtype)))
    return tuple(np.zeros((0, *shape), dtype) for shape, dtype in rows)


def _scanned(body: Body, turns: int, initial: tuple[Any, ...], conditional: bool) -> tuple[jax.Array, ...]:
    """All turns as one `lax.scan`.

    Raises:
      _Unsuitable: all is static, the state changes its shape or type, or the condition may end the loop early.
    """

    def step(carry: tuple[Any, ...], turn: jax.Array) -> tuple[tuple[Any, ...], tuple[jax.Array, ...]]:
        state, kept = carry
        (condition, *results), seen = body.turn(turn, np.array(True), *state)
        if conditional and not (is_static(condition) and np.reshape(condition, ())):
            raise _Unsuitable
        return (_like(state, results[: len(state)]), keeper.add(kept, seen)), traced(results[len(state) :])

    start = traced(initial)
    keeper = _keeper(body, turns, lambda: (jnp.zeros((), jnp.int32), np.array(True), *start))
    (state, kept), rows = jax.lax.scan(step, (start, keeper.start), jnp.arange(turns))
    body.leave(keeper.seen(kept))
    return *state, *rows


def _keeper(body: Body, turns: int | None, arguments: Callable[[], tuple[Any, ...]]) -> Keeper:
    """Keeps what is seen in a loop's turns, each of which gets such arguments."""
    shapes = jax.eval_shape(lambda: body.turn(*arguments())[1]) if body.tapped else Seen({}, {})
    return Keeper(shapes, turns)


def _like(state: tuple[jax.Array, ...], results: Any) -> tuple[jax.Array, ...]:
    """Results as the next state.

    Raises:
      _Unsuitable: the shape or type has changed.
    """
    values = traced(results)
    if _types(values) != _types(state):
        raise _Unsuitable
    return values


def _types(state: tuple[Any, ...]) -> Any:
    return jax.tree.structure(state), [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(state)]


def _while(body: Body, max_trip_count: Any, cond: Any, initial: tuple[Any, ...]) -> tuple[jax.Array, ...]:
    """As many turns as the data asks for."""

    def goes_on(carry: tuple[Any, ...]) -> jax.Array:
        turn, condition, *_ = carry
        return condition if max_trip_count is None else condition & (turn < jnp.asarray(limit, turn.dtype))

    def step(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        turn, condition, state, kept = carry
        (after, *results), seen = body.turn(turn, condition, *state)
        if len(results) > len(state):
            raise DynamicShapeError(
                "the number of turns of the loop depends on the data, and with it the shape of its stacked outputs"
            )
        if max_trip_count is None and (cond is None or (is_static(after) and np.reshape(after, ()))):
            raise ModelError("the loop has no trip count, and its condition stays true: it would never end")
        after = condition if cond is None else jnp.asarray(after).reshape(())
        return turn + 1, after, _like(state, results), keeper.add(kept, seen)

    if is_static(max_trip_count):
        max_trip_count = np.minimum(max_trip_count, INT32_MAX).astype(np.int32)
    limit = None if max_trip_count is None else jnp.asarray(max_trip_count).reshape(())
    start = jnp.asarray(True if cond is None else cond).reshape(())
    turn, first = jnp.zeros((), jax.dtypes.canonicalize_dtype(np.int64)), traced(initial)
    keeper = _keeper(body, None, lambda: (turn, start, *first))
    try:
        *_, state, kept = jax.lax.while_loop(goes_on, step, (turn, start, first, keeper.start))
    except _Unsuitable:
        raise DynamicShapeError(
            f"the loop has more than {MOST_TURNS} turns, or their number depends on the data; its state must keep its "
            "shape and type then"
        ) from None
    body.leave(keeper.seen(kept))
    return state


# ----------------------------------------------------------------------------------------------------------------- Scan


@op("Scan", since=9)
def scan(
    *initial_state_and_scan_inputs,
    body,
    num_scan_inputs,
    scan_input_axes=(),
    scan_input_directions=(),
    scan_output_axes=(),
    scan_output_directions=(),
):
    """Runs the body over slices of the scan inputs: body(*state, *slices) -> (*state, *rows); the rows are stacked.

    Axes default to 0; a direction of 1 walks (or stacks) from the end.
    """
    state_count = len(initial_state_and_scan_inputs) - num_scan_inputs
    row_count = len(body.outputs) - state_count
    if state_count < 0 or row_count < 0 or num_scan_inputs < 1:
        raise ModelError(
            f"num_scan_inputs = {num_scan_inputs} does not fit {len(initial_state_and_scan_inputs)} inputs and a body with "
            f"{len(body.outputs)} outputs"
        )

    def walked(sequences: Any) -> Any:
        places = zip(sequences, *_places(scan_input_axes, scan_input_directions, num_scan_inputs), strict=True)
        return [_directed(jnp.moveaxis(each, axis, 0), backward) for each, axis, backward in places]

    def stacked(rows: Any) -> Any:
        places = zip(rows, *_places(scan_output_axes, scan_output_directions, row_count), strict=True)
        return [jnp.moveaxis(_directed(each, backward), 0, axis) for each, axis, backward in places]

    def step(carry: Any, slices: Any) -> Any:
        state, kept = carry
        results, seen = body.turn(*state, *slices)
        results = traced(results)
        return (results[:state_count], keeper.add(kept, seen)), results[state_count:]

    initial, sequences = initial_state_and_scan_inputs[:state_count], initial_state_and_scan_inputs[state_count:]
    if body.concrete:
        return _scanned_now(body, initial, walked(sequences), stacked)
    start, slices = traced(initial), walked(sequences)
    keeper = _keeper(
        body, len(slices[0]), lambda: (*start, *(jnp.zeros(each.shape[1:], each.dtype) for each in slices))
    )
    (final, kept), rows = jax.lax.scan(step, (start, keeper.start), slices)
    body.leave(keeper.seen(kept))
    return *final, *stacked(rows)


def _scanned_now(body: Body, state: Any, sequences: Any, stacked: Any) -> tuple[Any, ...]:
    """Turn by turn, on values that are there, so that the body may do what cannot be compiled."""
    rows = []
    for turn in range(len(sequences[0])):
        results = body(*state, *(np.asarray(each[turn]) for each in sequences))
        state, row = results[: len(state)], results[len(state) :]
        rows.append(row)
    if not rows:
        return *state, *stacked(
            _no_rows(body, len(state), *state, *(np.zeros(s.shape[1:], s.dtype) for s in sequences))
        )
    return *state, *stacked([jnp.stack(column) for column in zip(*rows, strict=True)])


def _places(axes: Any, directions: Any, count: int) -> tuple[Any, Any]:
    """Axis and direction of each sequence; both are 0 where they are not given."""
    return axes or (0,) * count, directions or (0,) * count


def _directed(sequence: jax.Array, backward: int) -> jax.Array:
    return jnp.flip(sequence, 0) if backward else sequence


@op("Scan", since=8)
def batched_scan(sequence_lens, *initial_state_and_scan_inputs, body, num_scan_inputs, directions=()):
    """Before opset 9: axis 0 of everything is a batch of independent scans, axis 1 of the scan inputs is walked."""
    if sequence_lens is not None:
        raise UnsupportedOpError("Scan-8 with sequence_lens is not supported; convert the model to opset 9 or newer")

    def one(*values: jax.Array) -> tuple[jax.Array, ...]:
        return scan(*values, body=body.unwatched(), num_scan_inputs=num_scan_inputs, scan_input_directions=directions)

    return jax.vmap(one)(*traced(initial_state_and_scan_inputs))
