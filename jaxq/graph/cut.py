"""Parts of a graph: what makes some tensors from others, whose values are handed in.

So a graph can start and stop anywhere: in stages, one behind the other, of which candidates share the first; in blocks that are
tuned; between the tensors that a runtime shows.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import NamedTuple

from jaxq.graph.ir import Graph, captures, tensor_names


def between(graph: Graph, sources: Collection[str], targets: Iterable[str]) -> Graph:
    """The part of a graph that makes the targets from the sources, and from its inputs and params where no source is in between.

    Args:
      graph: the whole.
      sources: tensors whose values are handed in. One that is a target, too, is made.
      targets: outputs of the part, in order.

    Returns:
      A graph whose inputs are those of the whole and the sources that it reads, in the order of the whole.
    """
    targets = tuple(dict.fromkeys(targets))
    stops = frozenset(sources).difference(targets)
    made, read, pending = set[str](), set[str](), list(targets)
    while pending:
        name = pending.pop()
        node = None if name in stops else graph.producers.get(name)
        if node is None:
            read.add(name)
        elif node.name not in made:
            made.add(node.name)
            pending += [*node.inputs, *captures(node)]
    nodes = tuple(node for node in graph.nodes if node.name in made)
    handed_in = (name for node in graph.nodes for name in node.outputs if name in stops)
    inputs = tuple(name for name in (*graph.inputs, *handed_in) if name in read)
    return replace(graph, nodes=nodes, inputs=inputs, outputs=targets)


class Stage(NamedTuple):
    """Some consecutive nodes of a graph.

    Attributes:
      graph: they, and what makes the values that are known while tracing. Its inputs are inputs of the whole, and what stages
        before handed on.
      outputs: of the whole, that it makes.
      handed_on: what it makes for later stages.
      names: of all tensors in it.
    """

    graph: Graph
    outputs: tuple[str, ...]
    handed_on: tuple[str, ...]
    names: frozenset[str]


@functools.lru_cache(maxsize=16)
def stages(graph: Graph, traced: frozenset[str], params: frozenset[str], count: int) -> tuple[Stage, ...]:
    """Stages with about the same number of nodes that read params.

    Args:
      graph: the whole.
      traced: the tensors that are computed. All others are known while tracing, and made again in each stage that reads them.
      params: names of the params.
      count: of stages; there are fewer if there are fewer such nodes.
    """
    layers = [place for place, node in enumerate(graph.nodes) if params.intersection(node.inputs)]
    count = min(count, max(len(layers), 1))
    # Right behind a layer: what rounds the input of the next one then belongs to the stage of the next one.
    ends = (layers[len(layers) * stage // count - 1] + 1 for stage in range(1, count))
    places = sorted({0, *ends, len(graph.nodes)})
    found: list[Stage] = []
    needed: set[str] = set()  # by later stages
    for start, end in reversed(list(itertools.pairwise(places))):
        made = [name for node in graph.nodes[start:end] for name in node.outputs if name in traced]
        earlier = {name for node in graph.nodes[:start] for name in node.outputs if name in traced}
        # the last stage also gives what is an input, or known
        last = end == len(graph.nodes)
        outputs = tuple(name for name in graph.outputs if (name not in earlier if last else name in made))
        handed_on = tuple(name for name in made if name in needed)
        part = between(graph, earlier, (*outputs, *handed_on))
        needed.update(part.inputs)
        found.append(Stage(part, outputs, handed_on, frozenset(tensor_names(part))))
    return tuple(reversed(found))
