"""What rounding a tensor does to the layers that read it, each by itself.

Each layer is in the graph twice: as it is, and reading a rounded copy of one of its inputs. So an error does not add up with
those before it, and whatever else reads the tensor stays exact. How the copies are rounded is data: all that is tried is run by
one compiled program.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq.engine.collect import collect
from jaxq.engine.model import Model
from jaxq.graph.ir import FrozenDict, Graph, Node, tensor_names, unused_name
from jaxq.numerics.distance import worst_if_nan
from jaxq.numerics.observers import SampleStatistic, sample_statistics
from jaxq.numerics.quantizer import QuantParams
from jaxq.ops import ELEMENT_NUMBERS


@dataclass(frozen=True)
class LayerErrors:
    """Measures errors of rounding at the outputs of layers.

    Attributes:
      model: with every layer twice.
      copies: tensor -> its copy, which is rounded.
      squares: tensor -> names of (squared error, square) of the tensor itself, then of the output of each layer that reads it.
    """

    model: Model
    copies: Mapping[str, str]
    squares: Mapping[str, tuple[tuple[str, str], ...]]

    @classmethod
    def of(cls, model: Model, groups: Mapping[str, str], sample: Mapping[str, Any]) -> LayerErrors:
        """For the tensors in `groups`, tensor -> group.

        A node from one tensor of a group to another moves values: it is no layer. Left out are layers whose output is not
        float, and all that is inside of subgraphs.
        """
        shapes = model.traced(sample).tensors
        work = _Doubling(model.graph, {*tensor_names(model.graph), *model.params}, shapes)
        there = shapes.keys() & {*model.graph.inputs, *model.graph.producers}
        for tensor, group in groups.items():
            if tensor in there:
                work.double(tensor, {name for name, other in groups.items() if other == group})
        outputs = tuple(name for pairs in work.squares.values() for pair in pairs for name in pair)
        graph = replace(model.graph, nodes=(*model.graph.nodes, *work.nodes), outputs=outputs)
        return cls(model.replace(graph=graph), work.copies, work.squares)

    def measure(
        self, encodings: Mapping[str, QuantParams], samples: Sequence[Mapping[str, Any]], batch_size: int | None = None
    ) -> dict[str, np.ndarray]:
        """Tensor -> sums over the samples of mean (squared error, square), float64 [1 + layers, 2], as in `squares`.

        `batch_size` samples are run at a time; None chooses.
        """
        rounding = {self.copies[name]: each for name, each in encodings.items() if name in self.copies}
        mean = sample_statistics((SampleStatistic("mean"),))
        needs = {name: mean for pairs in self.squares.values() for pair in pairs for name in pair}
        model = self.model.replace(encodings={**self.model.encodings, **rounding})
        found = collect(model, [needs], samples, batch_size=batch_size)[0]
        return {
            name: np.array([sums(found[error], found[exact]) for error, exact in pairs])
            for name, pairs in self.squares.items()
        }


def sums(error: np.ndarray, exact: np.ndarray) -> tuple[float, float]:
    """The sums of both over the samples that made the exact one; infinite where rounding made a number none."""
    error, exact = (np.ravel(each).astype(np.float64) for each in (error, exact))
    seen, error = ~np.isnan(exact), worst_if_nan(error)
    # in an order of their own, so that the samples' order does not matter
    return np.sort(error[seen]).sum(), np.sort(exact[seen]).sum()


class _Doubling:
    """The nodes that are added to a graph."""

    def __init__(self, graph: Graph, taken: set[str], shapes: Mapping[str, jax.ShapeDtypeStruct]):
        self.graph, self.taken, self.shapes = graph, taken, shapes
        self.nodes: list[Node] = []
        self.copies: dict[str, str] = {}
        self.squares: dict[str, tuple[tuple[str, str], ...]] = {}

    def double(self, tensor: str, group: set[str]) -> None:
        copy = self.node("Identity", tensor)
        pairs = [self.compare(copy, tensor)]
        for node in dict.fromkeys(node for node, _ in self.graph.consumers.get(tensor, ()) if not node.subgraphs):
            output = next(filter(None, node.outputs))
            if (
                output in group
                or output not in self.shapes
                or not jnp.issubdtype(self.shapes[output].dtype, jnp.floating)
            ):
                continue
            made = {name: unused_name(f"{name}@tried", self.taken) for name in node.outputs if name}
            inputs = tuple(copy if name == tensor else name for name in node.inputs)
            outputs = tuple(made.get(name, "") for name in node.outputs)
            self.nodes.append(replace(node, inputs=inputs, outputs=outputs, name=made[output]))
            pairs.append(self.compare(made[output], output))
        self.copies[tensor], self.squares[tensor] = copy, tuple(pairs)

    def compare(self, found: str, exact: str) -> tuple[str, str]:
        """Names of the squared difference of two tensors, and of the square of the second."""
        if self.shapes[exact].dtype != jnp.float32:  # squares of numbers of 16 bits have no room in 16 bits
            found, exact = (self.node("Cast", each, to=ELEMENT_NUMBERS["float32"]) for each in (found, exact))
        error = self.node("Sub", found, exact)
        return self.node("Mul", error, error), self.node("Mul", exact, exact)

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        output = unused_name(f"{inputs[-1]}@tried", self.taken)
        self.nodes.append(Node(op, inputs, (output,), FrozenDict(attributes), name=output))
        return output
