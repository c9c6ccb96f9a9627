"""A model: structure (`Graph`) and numbers (`params`, `encodings`), which never mix."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxq.errors import InputError, did_you_mean
from jaxq.execute import as_int32, execute, quantizing, runs_in_32_bit, traced_params
from jaxq.graph import FrozenDict, Graph, Literal, TensorType
from jaxq.ops.layout import lay_out
from jaxq.quantizer import QuantParams, transposed


class Program(NamedTuple):
    """What runs for a model: all numbers as JAX arrays, each weight in the order of axes in which this platform reads it.

    The order is a matter of speed between the three alone (`jaxq.ops.layout`): what `Model` says is in ONNX's order.
    """

    graph: Graph
    params: dict[str, jax.Array]
    encodings: dict[str, QuantParams]


@dataclass(frozen=True, eq=False)
class Model:
    """A graph, its weights, and what has been decided about quantizing it so far.

    Calling it runs it, compiled: `model(inputs) -> {output name: array}`. With encodings it simulates the integers: each
    tensor that has an encoding is rounded to its grid as it is made.

    Attributes:
      graph: the structure.
      params: tensor name -> array (numpy, possibly memory-mapped, or JAX), of the graph and its subgraphs.
      encodings: tensor name -> QuantParams; empty for a float model.
      metadata: text that travels with the file (ONNX metadata_props).
    """

    graph: Graph
    params: Mapping[str, Any]
    encodings: Mapping[str, QuantParams] = field(default_factory=dict)
    metadata: FrozenDict[str, str] = field(default_factory=FrozenDict)

    @property
    def inputs(self) -> dict[str, TensorType]:
        """Input name -> declared type, in the order of the file."""
        return {name: self.graph.types.get(name, TensorType("float32")) for name in self.graph.inputs}

    @property
    def outputs(self) -> dict[str, TensorType]:
        """Output name -> declared type, in the order of the file."""
        return {name: self.graph.types.get(name, TensorType("float32")) for name in self.graph.outputs}

    @functools.cached_property
    def program(self) -> Program:
        """What runs when the model is called, made on first use."""
        graph, order = lay_out(self.graph, self.params)
        params = {
            name: np.transpose(value, order[name]) if name in order else value for name, value in self.params.items()
        }
        encodings = {
            name: transposed(each, order[name]) if name in order else each for name, each in self.encodings.items()
        }
        with jax.ensure_compile_time_eval():  # first used inside of someone's jit, they must outlive its trace
            return Program(graph, traced_params(params), encodings)

    def __call__(self, inputs: Any) -> dict[str, Any]:
        """Runs the model on one batch: {input name: array}, or the arrays alone, in the order of the inputs.

        Returns:
          {output name: array}, dtypes as the file declares them (64-bit ones as numpy arrays).

        Raises:
          InputError: names, ranks, shapes or dtypes do not fit.
        """
        static, traced = split_static(self.graph, self.feed(inputs))
        graph, params, encodings = self.program
        outputs = run(graph, static, params, encodings, traced)
        return {name: self._declared(name, outputs[name]) for name in self.graph.outputs}  # jit sorts the keys

    def _declared(self, name: str, value: Any) -> Any:
        wanted = self.graph.types.get(name)
        if wanted is None or isinstance(value, jax.core.Tracer) or value.dtype.name == wanted.dtype:
            return value
        return np.asarray(value).astype(wanted.dtype) if wanted.dtype in ("int64", "uint64", "float64") else value

    def feed(self, inputs: Any) -> dict[str, Any]:
        """One batch as {input name: array}, checked against the declared inputs.

        Raises:
          InputError: see `__call__`.
        """
        return check_feed(self.inputs, inputs)

    def replace(self, **changes: Any) -> Model:
        """A copy with some attributes changed."""
        return replace(self, **changes)


@functools.partial(jax.jit, static_argnums=(0, 1))
def run(
    graph: Graph,
    static: FrozenDict[str, Literal],
    params: Mapping[str, Any],
    encodings: Mapping[str, QuantParams],
    inputs: Mapping[str, Any],
) -> dict[str, Any]:
    """The compiled forward pass; `static` holds the inputs whose values decide shapes or branches."""
    fixed = {name: literal.array for name, literal in static.items()}
    return execute(graph, params, {**inputs, **fixed}, tap=quantizing(encodings))[0]


def split_static(graph: Graph, feed: Mapping[str, Any]) -> tuple[FrozenDict[str, Literal], dict[str, Any]]:
    """The feed as (static inputs, traced inputs); traced 64-bit integers are narrowed after a range check."""
    static = FrozenDict({name: Literal.of(np.asarray(feed[name])) for name in graph.static_inputs if name in feed})
    traced = {name: value for name, value in feed.items() if name not in static}
    if runs_in_32_bit():
        for name, value in traced.items():
            if isinstance(value, np.ndarray) and value.dtype in (np.int64, np.uint64):
                traced[name] = as_int32(value, f"input {name!r}", InputError)
    return static, traced


def check_feed(declared: Mapping[str, TensorType], inputs: Any) -> dict[str, Any]:
    """One batch as {input name: array} that fits the declared inputs.

    Raises:
      InputError: a name is unknown or missing, or a rank, size or dtype differs; the message shows both sides.
    """
    if isinstance(inputs, Mapping):
        feed = dict(inputs)
    else:
        values: Sequence[Any] = inputs if isinstance(inputs, (tuple, list)) else (inputs,)
        if len(values) != len(declared):
            raise InputError(
                f"the model has {len(declared)} inputs ({_listing(declared)}), but {len(values)} arrays were given"
            )
        feed = dict(zip(declared, values, strict=True))
    for name in feed:
        if name not in declared:
            raise InputError(
                f"the model has no input {name!r}{did_you_mean(name, declared)}; its inputs: {_listing(declared)}"
            )
    for name, wanted in declared.items():
        if name not in feed:
            raise InputError(f"input {name!r} ({wanted}) is missing; given were {sorted(feed)}")
        if not isinstance(feed[name], jax.Array):
            feed[name] = np.asarray(feed[name])
        _check_value(name, wanted, feed[name])
    return {name: feed[name] for name in declared}


def _check_value(name: str, wanted: TensorType, value: Any) -> None:
    got = f"{value.dtype}[{', '.join(map(str, value.shape))}]"
    narrowed = {"int64": "int32", "uint64": "uint32", "float64": "float32"}.get(wanted.dtype)
    if value.dtype.name != wanted.dtype and not (isinstance(value, jax.Array) and value.dtype.name == narrowed):
        raise InputError(f"input {name!r} is {wanted}, but {got} was given; convert it with .astype({wanted.dtype!r})")
    if wanted.shape is None:
        return
    if len(wanted.shape) != value.ndim:
        raise InputError(
            f"input {name!r} is {wanted}, but {got} was given: its rank is {value.ndim}, not {len(wanted.shape)}"
        )
    for axis, (size, given) in enumerate(zip(wanted.shape, value.shape, strict=True)):
        if isinstance(size, int) and size != given:
            raise InputError(
                f"input {name!r} is {wanted}, but {got} was given: axis {axis} must be {size}, not {given}"
            )


def _listing(declared: Mapping[str, TensorType]) -> str:
    return ", ".join(f"{name!r}: {each}" for name, each in declared.items())
