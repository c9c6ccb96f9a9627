"""The one walk over a graph: running it in float, watching it and fake-quantizing it differ only in the tap.

The walk is pure Python over pure functions. Under `jax.jit` it disappears and XLA sees the operations only.
"""

from __future__ import annotations

import functools
import operator
import zlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxq.engine.mapped import forget_pages, is_mapped
from jaxq.errors import DynamicShapeError, JaxqError, ModelError
from jaxq.graph.ir import Graph, Node, captures
from jaxq.numerics.quantizer import QuantParams, fake_quantize, transposed
from jaxq.numerics.turns import Seen
from jaxq.ops import Op, find, is_static
from jaxq.ops.bodies import Body
from jaxq.ops.budget import Budget, check_traced
from jaxq.ops.cpu_memory import channels_last, is_image, materialized
from jaxq.ops.evaluate import (
    UNKNOWN_TO_XLA,
    as_int32,
    describe,
    refuse_unknown,
    run_static,
    run_traced,
    runs_in_32_bit,
)

Carry = TypeVar("Carry")
Tap = Callable[[str, jax.Array, Any], tuple[jax.Array, Any]]

# What XLA sums on CPU must not be stored first: the order of the sum then depends on the batch, and results must not.
SUMS = frozenset({"GlobalAveragePool", "ReduceMean", "ReduceSum"})


def execute(
    graph: Graph,
    params: Mapping[str, Any],
    inputs: Mapping[str, Any],
    *,
    tap: Tap | None = None,
    carry: Any = None,
    postponed: dict[str, str] | None = None,
    hidden: set[str] | None = None,
    conditions: dict[str, jax.Array] | None = None,
    concrete: bool = False,
) -> tuple[dict[str, Any], Any]:
    """Runs `graph` and returns its outputs by name, and the carry after the last tap.

    Args:
      graph: what to run.
      params: weights by tensor name, of the graph and all of its subgraphs.
      inputs: values by input name. Numpy arrays are static: they may decide shapes and branches. JAX arrays are traced.
      tap: `tap(name, value, carry) -> (value, carry)` sees every traced tensor as it is made, params and inputs too,
        and may replace it. Where the data decide on a branch, it sees both. What it sees in a loop it sees in each turn.
      carry: what the first tap gets: a dict of arrays, if anything. In the body of a loop it begins empty; what the tap puts in
        comes out with the values of all turns in it (`jaxq.numerics.turns`).
      postponed: if given, a node that cannot be compiled is no error: its name and the reason are put in here, and so are all
        nodes that depend on it. Outputs that they would make are left out.
      hidden: if given, the names of tensors that are made where no tap sees them, or whose shapes or types differ from turn to
        turn of a loop, are put in here.
      conditions: if given, the name of each tensor that the tap sees in a branch on which the data decide is put in here, and the
        boolean that says whether this branch is taken.
      concrete: whether every value is there and stays so: outside of any trace, all in numpy.

    Raises:
      ModelError: a node cannot run; the message names it with the shapes of its inputs.
      DynamicShapeError: a value that must be known while tracing depends on the data.
    """
    budget = Budget() if not concrete else Budget(1 << 62, 1 << 62)  # values that are there may be as many as there are
    for name, value in inputs.items():
        refuse_unknown(value, f"input {name!r}")
    walk = _Walk(graph, params, tap, carry, budget, concrete, hidden, conditions)
    values = walk.tapped({**params, **inputs})
    return walk.run(graph, values, postponed), walk.carry


def observing(update: Mapping[str, Callable[[Any, jax.Array], Any]]) -> Tap:
    """A tap that leaves the values alone and updates the state of each name in the carry (a dict)."""

    def tap(name: str, value: jax.Array, states: Any) -> tuple[jax.Array, Any]:
        if name in update:
            states = {**states, name: update[name](states[name], value)}
        return value, states

    return tap


def quantizing(encodings: Mapping[str, QuantParams]) -> Tap:
    """A tap that replaces each tensor named in `encodings` by its fake-quantized self."""

    def tap(name: str, value: jax.Array, carry: Any) -> tuple[jax.Array, Any]:
        return (quantized(value, encodings[name]) if name in encodings else value), carry

    return tap


def quantized(value: jax.Array, params: QuantParams) -> jax.Array:
    """`fake_quantize`, in the order of convolutions."""
    if is_image(value) and np.size(params.scale) > 1:
        params = transposed(params, (0, *range(2, value.ndim), 1))
    return channels_last(fake_quantize)(value, params)


def chain(*taps: Tap | None) -> Tap | None:
    """One tap that applies `taps` in order; all share the carry."""
    present = [tap for tap in taps if tap is not None]

    def tap(name: str, value: jax.Array, carry: Any) -> tuple[jax.Array, Any]:
        for each in present:
            value, carry = each(name, value, carry)
        return value, carry

    return tap if present else None


def shared(graph: Graph) -> frozenset[str]:
    """The tensors that several nodes read, or a node and whoever wants the outputs; the tap gets them stored (`materialized`).

    Where readers are quantizers, XLA on CPU would compute such a tensor anew in each, and with it what it is the sum of: along
    a chain of residual additions programs grew with the third power of its length.
    """
    summed = {name for node in graph.nodes if node.op in SUMS for name in node.inputs}
    return frozenset(
        name
        for name in graph.producers
        if len({id(node) for node, _ in graph.consumers.get(name, ())}) + (name in graph.outputs) > 1
        and name not in summed
    )


class _Walk:
    """The state of one call of `execute`: the tap, its carry, and where each traced value came from."""

    def __init__(
        self,
        graph: Graph,
        params: Mapping[str, Any],
        tap: Tap | None,
        carry: Any,
        budget: Budget,
        concrete: bool,
        hidden: set[str] | None = None,
        conditions: dict[str, jax.Array] | None = None,
    ):
        self.graph, self.params, self.tap, self.carry = graph, params, tap, carry
        self.budget, self.concrete, self.hidden = budget, concrete, hidden
        self.conditions = {} if conditions is None else conditions
        self.condition: jax.Array | None = None  # under which the branch is taken that is being run
        self.shared = frozenset() if tap is None else shared(graph)

    def tapped(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: self.see(name, value) for name, value in values.items()}

    def see(self, name: str, value: Any) -> Any:
        if self.tap is None or not isinstance(value, jax.Array):
            return value
        if name in self.shared:
            value = materialized(value)
        value, self.carry = self.tap(name, value, self.carry)
        if self.condition is not None:
            self.conditions[name] = self.condition
        return value

    def run(self, graph: Graph, outer: Mapping[str, Any], postponed: dict[str, str] | None = None) -> dict[str, Any]:
        """The outputs of `graph`; `outer` holds its inputs, the params, and for a subgraph all that it captures."""
        values = {**outer, **{name: literal.array for name, literal in graph.constants.items()}}
        late: set[str] = set()  # tensors that postponed nodes would make
        for node in graph.nodes:
            try:
                if postponed is not None and (waits := late.intersection(node.inputs) or captures(node) & late):
                    raise DynamicShapeError(f"{node}: it needs {min(waits)!r}, which comes later")
                results = self.step(node, values)
            except DynamicShapeError as error:
                if postponed is None:
                    raise
                postponed[node.name] = str(error)
                late.update(filter(None, node.outputs))
                continue
            for name, value in zip(node.outputs, results, strict=False):
                if name:
                    values[name] = self.see(name, value)
        missing = [name for name in graph.outputs if name not in values and name not in late]
        if missing:
            raise ModelError(f"graph {graph.name!r}: no node makes its outputs {missing}")
        return {name: values[name] for name in graph.outputs if name not in late}

    def step(self, node: Node, values: Mapping[str, Any]) -> tuple[Any, ...]:
        """The outputs of one node."""
        self.budget.visit()
        entry = find(node.op, node.domain, node.version)
        try:
            arguments = [values[name] if name else None for name in node.inputs]
        except KeyError as error:
            raise ModelError(f"{node}: its input {error.args[0]!r} is made by no earlier node") from None
        attributes = dict(node.attributes)
        for key, value in attributes.items():
            if isinstance(value, Graph):
                attributes[key] = self.subgraph(value, values)
        if "output_count" in entry.attributes:
            attributes["output_count"] = len(node.outputs)
        if "seed" in entry.attributes:
            attributes.setdefault("seed", zlib.crc32(node.name.encode()))
        static = all(value is None or is_static(value) for value in arguments) and not node.subgraphs
        try:
            if static:
                results = run_static(entry, arguments, attributes, self.budget)
            else:
                results = run_traced(entry, arguments, attributes)
                check_traced(results)
        except DynamicShapeError as error:
            raise DynamicShapeError(f"{node}: {error}{self.why_dynamic(entry, node, values)}") from None
        except JaxqError as error:
            if not error.located:  # if it comes from a subgraph, the inner node has said where
                error.args, error.located = (f"{node}: {error}",), True
            raise
        except Exception as error:
            shapes = [describe(value) for value in arguments]
            failed = ModelError(f"{node} cannot run on inputs {shapes}: {error or type(error).__name__}")
            failed.located = True
            raise failed from error
        if self.concrete:
            results = jax.tree.map(now, results)
        results = results if isinstance(results, tuple) else (results,)
        if len(results) < len(node.outputs):
            raise ModelError(
                f"{node} gives {len(results)} outputs, but names {len(node.outputs)}: {list(node.outputs)}"
            )
        return results

    def subgraph(self, graph: Graph, values: Mapping[str, Any]) -> Body:
        def given(arguments: tuple[Any, ...]) -> dict[str, Any]:
            if len(arguments) != len(graph.inputs):
                raise ModelError(
                    f"graph {graph.name!r} has {len(graph.inputs)} inputs {list(graph.inputs)}, but {len(arguments)} values"
                )
            return dict(zip(graph.inputs, arguments, strict=True))

        def outputs(walk: _Walk, inputs: Mapping[str, Any]) -> tuple[Any, ...]:
            results = walk.run(graph, {**values, **inputs})
            return tuple(results[name] for name in graph.outputs)  # one tensor may be several outputs

        def run(arguments: tuple[Any, ...], inlined: bool, condition: Any) -> tuple[Any, ...]:
            inputs, walk, outside = given(arguments), self, self.condition
            if not inlined:
                walk = self.within(None)
            if walk.tap is None:
                self.hide(graph)
            if condition is not None:
                self.condition = condition if outside is None else outside & condition
            results = outputs(walk, inputs)
            self.condition = outside
            return results

        def turn(*arguments: Any) -> tuple[tuple[Any, ...], Seen]:
            if self.tap is None:
                return run(arguments, False, None), Seen({}, {})
            walk = self.within(self.tap)
            results = outputs(walk, walk.tapped({name: as_data(value) for name, value in given(arguments).items()}))
            return results, Seen(walk.carry, walk.conditions)

        def refuse(names: set[str]) -> None:
            if self.hidden is not None:
                self.hidden.update(names)

        types = tuple(map(graph.types.get, graph.outputs))
        tapped = self.tap is not None
        return Body(run, turn, self.leave, refuse, graph.inputs, graph.outputs, types, self.concrete, tapped)

    def within(self, tap: Tap | None) -> _Walk:
        """A walk over a body that lax.cond, scan or while_loop runs, out of which nothing may leave but as a result of theirs."""
        return _Walk(self.graph, self.params, tap, {}, self.budget, self.concrete, self.hidden)

    def hide(self, graph: Graph) -> None:
        if self.hidden is not None:
            self.hidden.update(name for node in graph.nodes for name in node.outputs if name)

    def leave(self, seen: Seen) -> None:
        """Takes over what was seen in the turns of a loop."""
        if seen.values:
            self.carry = {**self.carry, **seen.values}
        for name in seen.values:
            conditions = [each for each in (self.condition, seen.taken.get(name)) if each is not None]
            if conditions:
                self.conditions[name] = functools.reduce(operator.and_, conditions)

    def why_dynamic(self, entry: Op, node: Node, values: Mapping[str, Any]) -> str:
        """The chain of tensors from the operand that should be static back to where it became traced."""
        producers = self.graph.wiring.producers
        for index, name in enumerate(node.inputs):
            if name and entry.needs_static(index) and not is_static(values[name]):
                chain = [name]
                while name in producers and len(chain) < 8:
                    traced = [source for source in producers[name].inputs if not is_static(values.get(source, 0))]
                    if not traced:
                        break
                    name = traced[0]
                    chain.append(name)
                return f" It comes from: {' <- '.join(map(repr, chain))}."
        return ""


def as_data(value: Any) -> Any:
    """A float array that a loop begins with as one that depends on the data, as those of later turns do."""
    return jnp.asarray(value) if is_static(value) and np.ndim(value) and value.dtype == np.float32 else value


def now(value: Any) -> Any:
    """A value that is there as a numpy array; one that is traced (in the body of a compiled loop) as it is."""
    return value if isinstance(value, jax.core.Tracer) else np.asarray(value)


def traced_params(params: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Params as JAX arrays, 64-bit integers range-checked and narrowed when JAX runs in 32 bit.

    Params that lie in a mapped file are read one at a time: at no moment are they in memory twice.
    """
    return {name: traced_param(name, value) for name, value in params.items()}


def traced_param(name: str, value: Any) -> jax.Array:
    """The same of one param."""
    if runs_in_32_bit() and value.dtype in (np.int64, np.uint64):
        value = as_int32(np.asarray(value), f"initializer {name!r}")
    if value.dtype.name in UNKNOWN_TO_XLA:
        raise ModelError(
            f"initializer {name!r} is of type {value.dtype.name}, with which XLA does not compute; convert it to float32"
        )
    # jnp.asarray would compile a program for each shape; device_put alone may go on reading memory that others write to.
    placed = value if isinstance(value, jax.Array) else jax.device_put(np.array(value))
    if is_mapped(value):
        placed.block_until_ready()
        forget_pages(value)
    return placed
