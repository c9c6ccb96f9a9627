"""A model: structure (`Graph`) and numbers (`params`, `encodings`), which never mix."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxq.engine.devices import Placed, mesh
from jaxq.engine.layout import Axes, arranged, lay_out
from jaxq.engine.partition import run_tail
from jaxq.engine.programs import Held, holding
from jaxq.engine.runner import Batch, outputs, run, whole
from jaxq.engine.traced import Signature, Traced, signed
from jaxq.errors import InputError, JaxqWarning, did_you_mean
from jaxq.graph.indices import IndexBound, index_bounds, refuse_out_of_range
from jaxq.graph.ir import FrozenDict, Graph, TensorType
from jaxq.graph.masks import mask_inputs
from jaxq.numerics.quantizer import QuantParams, transposed
from jaxq.ops.evaluate import runs_in_32_bit

MOST_TRACED = 64  # signatures of which a model remembers what follows from them
MANY_SHAPES = 9  # distinct ones, from which on the user hears that each is compiled anew


class Program(NamedTuple):
    """What runs for a model: all numbers as JAX arrays, each weight in the order of axes in which this platform reads it.

    The order is a matter of speed between the three alone (`jaxq.engine.layout`): what `Model` says is in ONNX's order.
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
      folded: name of a node of the file that is not in the graph -> the node that makes its result now, or "".
    """

    graph: Graph
    params: Mapping[str, Any]
    encodings: Mapping[str, QuantParams] = field(default_factory=dict)
    metadata: FrozenDict[str, str] = field(default_factory=FrozenDict)
    folded: Mapping[str, str] = field(default_factory=dict)

    @property
    def inputs(self) -> dict[str, TensorType]:
        """Input name -> declared type, in the order of the file."""
        return {name: self.graph.types.get(name, TensorType("float32")) for name in self.graph.inputs}

    @property
    def outputs(self) -> dict[str, TensorType]:
        """Output name -> declared type, in the order of the file."""
        return {name: self.graph.types.get(name, TensorType("float32")) for name in self.graph.outputs}

    @functools.cached_property
    def masks(self) -> frozenset[str]:
        """The inputs that are attention masks, in which minus infinity is no mistake."""
        return mask_inputs(self.graph, self.params)

    @property
    def program(self) -> Program:
        """What runs when the model is called, made on first use, with 64-bit numbers and without, for each set of devices."""
        key = (runs_in_32_bit(), mesh())
        if key not in self._programs:
            self._programs[key] = self._make_program()
        return self._programs[key]

    @functools.cached_property
    def _programs(self) -> dict[Any, Program]:
        return {}

    def _make_program(self) -> Program:
        graph, order = self._layout
        encodings = {
            name: transposed(each, order[name]) if name in order else each for name, each in self.encodings.items()
        }
        with jax.ensure_compile_time_eval():  # first used inside of someone's jit, they must outlive its trace
            params = {name: self._placed.put(name, value, order.get(name)) for name, value in self.params.items()}
        return Program(graph, params, encodings)

    @functools.cached_property
    def _layout(self) -> tuple[Graph, FrozenDict[str, Axes]]:
        graph, order = lay_out(self.graph, self.params)
        return graph, FrozenDict(order)

    def laid_out(self, part: Graph) -> Graph:
        """A part of the graph, or the whole of it, that reads weights in the order in which the program has them."""
        graph, order = self._layout
        return graph if part is self.graph else arranged(part, order)

    @functools.cached_property
    def _placed(self) -> Placed:
        return Placed()

    def __call__(self, inputs: Any) -> dict[str, Any]:
        """Runs the model on one batch: {input name: array}, or the arrays alone, in the order of the inputs.

        Returns:
          {output name: array}, dtypes as the file declares them (64-bit ones as numpy arrays, and all of a model with a tail,
          see `jaxq.engine.partition`); a sequence is a list, an empty optional None.

        Raises:
          InputError: names, ranks, shapes or dtypes do not fit.
        """
        feed = self.feed(inputs)
        signature, arrays = signed(self.graph, feed)
        self._note(signature)
        traced = self.traced(signature)
        _, params, encodings = self.program
        head = self.laid_out(traced.head)
        with holding(self._compiled):
            found = run(outputs, whole, (head,), traced.static, Batch(arrays), (params, encodings))
        if traced.parts.tail is not None:
            found = run_tail(traced.parts, self.params, self.encodings, feed, found)
        return {name: self._declared(name, found[name]) for name in self.graph.outputs}  # jit sorts the keys

    @functools.cached_property
    def _compiled(self) -> Held:
        """The programs that its calls need, which go with it."""
        return Held()

    def traced(self, inputs: Signature | Mapping[str, Any]) -> Traced:
        """What follows from the shapes of a feed, or of all with a signature; found once."""
        signature = inputs if isinstance(inputs, Signature) else signed(self.graph, inputs)[0]
        key = (signature, runs_in_32_bit())
        found = self._traced.get(key)
        if found is None:
            if len(self._traced) >= MOST_TRACED:
                self._traced.pop(next(iter(self._traced)), None)
            found = self._traced[key] = Traced(self.graph, self.params, signature)
        return found

    @functools.cached_property
    def _traced(self) -> dict[tuple[Signature, bool], Traced]:
        return {}

    @functools.cached_property
    def _seen(self) -> set[Signature]:
        return set()

    def _note(self, signature: Signature) -> None:
        if signature not in self._seen:
            self._seen.add(signature)
            warn_of_many_shapes(len(self._seen), "this model")

    def _declared(self, name: str, value: Any) -> Any:
        wanted = self.graph.types.get(name)
        if wanted is None or not hasattr(value, "dtype") or isinstance(value, jax.core.Tracer):
            return value  # a sequence, an optional, or inside of someone's trace
        if value.dtype.name == wanted.dtype:
            return value
        return np.asarray(value).astype(wanted.dtype) if wanted.dtype in ("int64", "uint64", "float64") else value

    def head(self, inputs: Any) -> Model:
        """The part that is compiled, for inputs like these: the whole model, unless it has results whose shapes depend on values.

        Its outputs are the outputs of the model that it makes and the tensors that the rest of the model reads.
        """
        return self.replace(graph=self.traced(self.feed(inputs)).head)

    def made_on_host(self, inputs: Any) -> frozenset[str]:
        """The outputs whose shapes depend on values, for inputs like these: made behind the compiled part."""
        return self.traced(self.feed(inputs)).on_host

    def feed(self, inputs: Any) -> dict[str, Any]:
        """One batch as {input name: array}, checked against the declared inputs.

        Raises:
          InputError: see `__call__`.
        """
        feed = check_feed(self.inputs, inputs)
        refuse_out_of_range(self.index_bounds, feed)
        return feed

    @functools.cached_property
    def index_bounds(self) -> dict[str, tuple[IndexBound, ...]]:
        """Input -> the values that it may have, because it picks rows of tables."""
        return index_bounds(self.graph, self.params)

    def replace(self, **changes: Any) -> Model:
        """A copy with some attributes changed. The weights that both have are on the device once."""
        changed = replace(self, **changes)
        vars(changed)["_placed"] = self._placed
        return changed


def warn_of_many_shapes(count: int, where: str) -> None:
    """Warns once, when the number of distinct input shapes (or values of static inputs) grows past what is usual."""
    if count == MANY_SHAPES:
        message = (
            f"{where} has now seen {count} distinct input shapes (or values of inputs that decide shapes), and each is compiled "
            "anew; pad, crop or resize the inputs to a few sizes, e.g. lengths to multiples of 64"
        )
        warnings.warn(message, JaxqWarning, stacklevel=4)


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
        if wanted.within and (feed[name] is None or isinstance(feed[name], (list, tuple))):
            feed[name] = None if feed[name] is None else [np.asarray(each) for each in feed[name]]
            continue
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
                f"{layout_hint(wanted.shape, value.shape)}"
            )


def layout_hint(wanted: Sequence[Any] | None, given: Sequence[Any]) -> str:
    """What to do if an array of rank 4 fits an input with its channel axis at the other place; else ""."""
    if wanted is None or len(wanted) != 4 or len(given) != 4:
        return ""
    for name, model, permutation in (("NHWC", "NCHW", (0, 3, 1, 2)), ("NCHW", "NHWC", (0, 2, 3, 1))):
        sizes = [given[axis] for axis in permutation]
        if all(not isinstance(size, int) or size == here for size, here in zip(wanted[1:], sizes[1:], strict=True)):
            return f"; it looks like {name} where the model takes {model}: give array.transpose{permutation}"
    return ""


def _listing(declared: Mapping[str, TensorType]) -> str:
    return ", ".join(f"{name!r}: {each}" for name, each in declared.items())
