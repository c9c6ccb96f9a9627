"""A model as a `flax.nnx.Module`, to be trained, and back again.

The module is a thin cover over `Model`: the same compiled program, with the numbers held by flax. Where flax's
bookkeeping costs too much, split the module once and work on plain functions of `params`:

    graphdef, params, rest = nnx.split(module, nnx.Param, ...)
    outputs = nnx.merge(graphdef, params, rest)(x)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxq.checks import check_kind
from jaxq.engine.execute import traced_params
from jaxq.engine.model import Model
from jaxq.engine.programs import Held, holding
from jaxq.errors import InputError
from jaxq.graph.ir import FrozenDict, Graph
from jaxq.onnx_io.load import Source, load


class Constant(nnx.Variable[Any]):
    """An integer or boolean tensor of the file: data, but not trained."""


class Encoding(nnx.Variable[Any]):
    """The `QuantParams` of one tensor: data, but not trained."""


@dataclass(frozen=True)
class Structure:
    """What of a model is not numbers. Flax hashes it on every call, and a `Graph` keeps its hash."""

    graph: Graph
    params: tuple[tuple[str, str], ...]  # names and dtypes, in the order of the file; JAX may hold narrower dtypes
    encodings: tuple[str, ...]
    metadata: FrozenDict[str, str]
    compiled: Held = field(default_factory=Held, compare=False)  # programs that go with the module

    def __hash__(self) -> int:
        return hash(self.graph)

    def __repr__(self) -> str:
        return f"<{self.graph.name}: {len(self.graph.nodes)} nodes>"


class OnnxModule(nnx.Module):
    """An ONNX model as a flax module; made by `to_flax`.

    `module(x)`, `module(x, y)` or `module({"x": x, "y": y})` gives {output name: array}, also inside of `jax.jit`,
    `jax.vmap`, `nnx.jit`, `nnx.value_and_grad` and the like. The graph is the one for inference: BatchNormalization
    uses its stored statistics and Dropout does nothing. With encodings, tensors are rounded to their grids as they are
    made, and gradients pass straight through the rounding.

    The class of a variable says what it is, so flax's filters select by it:
      * `nnx.Param`: a float tensor; trained.
      * `nnx.BatchStat`: a stored mean or variance of BatchNormalization.
      * `Constant`: an integer or boolean tensor.
      * `Encoding`: the `QuantParams` of a tensor.
    `nnx.grad` takes `nnx.Param` alone; plain `jax.grad` over a module that holds integers needs `allow_int=True`.

    Attributes:
      params: tensor name, as it stands in the file -> variable. `module.params["conv1/weight:0"][...]` is the array,
        and can be assigned. A name that is a method of `nnx.Dict`, like `items`, has a `#` behind it.
      encodings: tensor name -> `Encoding`; `get_value()` and `set_value()` take the `QuantParams` out and in.
      structure: the graph, and what else is not numbers.
    """

    def __init__(self, model: Model):
        statistics = batch_statistics(model.graph)
        self.structure = Structure(
            model.graph,
            tuple((name, value.dtype.name) for name, value in model.params.items()),
            tuple(model.encodings),
            model.metadata,
        )
        self.params = nnx.Dict(
            {
                key(name): variable_type(name, value, statistics)(value)
                for name, value in traced_params(model.params).items()
            }
        )
        self.encodings = nnx.Dict(
            {key(name): Encoding(jax.tree.map(jnp.asarray, each)) for name, each in model.encodings.items()}
        )

    def __call__(self, *inputs: Any) -> dict[str, Any]:
        """Runs the model on one batch; see `Model.__call__` for inputs, outputs and errors."""
        params = {name: self.params[key(name)][...] for name, _ in self.structure.params}
        encodings = {name: self.encodings[key(name)].get_value() for name in self.structure.encodings}
        model = Model(self.structure.graph, params, encodings)
        feed = model.feed(inputs[0] if len(inputs) == 1 and isinstance(inputs[0], Mapping) else inputs)
        for name in model.graph.static_inputs:
            if isinstance(feed[name], jax.core.Tracer):
                raise InputError(
                    f"input {name!r} decides shapes or branches, so it cannot be an argument of a compiled function; "
                    "make it a numpy array outside of that function, and use it inside"
                )
        with holding(self.structure.compiled):
            return model(feed)


def key(name: str) -> str:
    """The key of a tensor in an `nnx.Dict`, which keeps its entries as attributes: they must not hide its methods."""
    return f"{name}#" if hasattr(nnx.Dict, name) else name


def batch_statistics(graph: Graph) -> frozenset[str]:
    """The names of the means and variances that BatchNormalization reads."""
    nodes = (node for _, node in graph.walk() if node.op == "BatchNormalization" and node.domain == "")
    return frozenset(name for node in nodes for name in node.inputs[3:5])


def variable_type(name: str, value: jax.Array, statistics: frozenset[str]) -> type[nnx.Variable[Any]]:
    """The class of variable that holds a param."""
    if not jnp.issubdtype(value.dtype, jnp.floating):
        return Constant
    return nnx.BatchStat if name in statistics else nnx.Param


def to_flax(source: Source) -> OnnxModule:
    """The model of a file, an `onnx.ModelProto` or a `Model` as a flax module: jit, grad, vmap and optax as usual.

    Raises:
      ModelError: see `jaxq.load`.
    """
    return OnnxModule(load(source))


def from_flax(module: OnnxModule) -> Model:
    """The model of a module, with the numbers as they are now in the dtypes and the order of the file.

    `jaxq.save` writes it, and ONNX Runtime computes from the file what the module computes.

    Raises:
      ConfigError: it is no module that `to_flax` made.
    """
    check_kind("module", module, OnnxModule, "as jaxq.to_flax makes it")
    structure = module.structure
    params = {name: np.asarray(module.params[key(name)][...]).astype(dtype) for name, dtype in structure.params}
    encodings = {name: jax.device_get(module.encodings[key(name)].get_value()) for name in structure.encodings}
    return Model(structure.graph, params, encodings, structure.metadata)
