"""Groups of nodes that compute one thing together: attention, a softmax written out, a gate; and where predictions are read out.

A pattern is a small tree, matched from its last node upwards. What stands in float as a whole is a matter of the targets' tables,
which name patterns of `PATTERNS`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jaxq.graph.ir import Graph, Node, constants
from jaxq.graph.linear import LINEAR
from jaxq.graph.recurrent import Cells

WEIGHTED = LINEAR | {"DeformConv", "LSTM", "GRU", "RNN", "Einsum"}
COMMUTATIVE = frozenset({"Add", "Mul", "Max", "Min"})
SELECTIONS = frozenset({"NonMaxSuppression", "TopK"})  # of the best candidates, by their scores


@dataclass(frozen=True)
class Is:
    """A tensor made by one of these operators from such inputs; fewer inputs than it has leave the others free."""

    ops: str  # separated by |
    inputs: tuple[Pattern, ...] = ()

    def __call__(self, *inputs: Pattern) -> Is:
        return Is(self.ops, inputs)


@dataclass(frozen=True)
class Same:
    """Any tensor, the same one wherever this name stands in the pattern."""

    name: str


@dataclass(frozen=True)
class Constant:
    """A param or a constant."""


@dataclass(frozen=True)
class Maybe:
    """`tree`, applied to the pattern or not: an operator that some exports have in between."""

    ops: str
    below: Pattern


@dataclass(frozen=True)
class Anything:
    """Any tensor."""


Pattern = Is | Same | Constant | Maybe | Anything
Found = tuple[Mapping[str, str], frozenset[str]]  # what each `Same` stands for; names of the nodes


def linear(x: Pattern) -> Pattern:
    """A layer with constant weights, with its bias as a node of its own or not."""
    product = Is("Conv|Gemm|MatMul")(x, CONST)
    return Maybe("Add", product)


X, CONST, ANY = Same("x"), Constant(), Anything()
GATE = Is("Sigmoid|HardSigmoid")
ACTIVATION = "Relu|PRelu|LeakyRelu|Clip|HardSwish|Swish|Gelu"

_CENTERED = Is("Sub")(X, Is("ReduceMean")(X))
_SQUARE = (Is("Pow")(_CENTERED, CONST), Is("Mul")(_CENTERED, _CENTERED))
_SUM_OF_SQUARES = (Is("ReduceSum")(Is("Pow")(X, CONST)), Is("ReduceSum")(Is("Mul")(X, X)), Is("ReduceSumSquare")(X))
_NORMS = (*(Is("Sqrt")(each) for each in _SUM_OF_SQUARES), Is("ReduceL2")(X))
_HARD_GATE = Is("Clip")(Is("Add")(X, CONST))


def _squeeze(hidden: Pattern) -> Pattern:
    """A gate for each channel, computed from the mean over space through two small layers."""
    return Is("Mul")(X, Maybe("Reshape|Unsqueeze", GATE(linear(hidden))))


_MEAN = Maybe("Reshape|Flatten|Squeeze", Is("GlobalAveragePool|ReduceMean|AveragePool")(X))
_NARROW = Maybe("Add", Is("Conv|Gemm|MatMul")(_MEAN, CONST))

# Name -> trees, any of which is it.
PATTERNS: Mapping[str, tuple[Pattern, ...]] = {
    "squeeze and excitation": (
        _squeeze(Is(ACTIVATION)(_NARROW)),
        _squeeze(Is("Mul")(_NARROW, Is("Sigmoid")(_NARROW))),
        _squeeze(_NARROW),
    ),
    "swish": (Is("Mul")(X, GATE(X)),),
    "hard swish": (
        Is("Div")(Is("Mul")(X, _HARD_GATE), CONST),
        Is("Mul")(Is("Mul")(X, _HARD_GATE), CONST),
        Is("Mul")(X, Is("Div|Mul")(_HARD_GATE, CONST)),
    ),
    "GELU": (
        Is("Mul")(Is("Mul")(X, Is("Add")(Is("Erf")(Is("Div|Mul")(X, CONST)), CONST)), CONST),
        Is("Mul")(Is("Mul")(X, CONST), Is("Add")(Is("Erf")(Is("Div|Mul")(X, CONST)), CONST)),
        Is("Mul")(X, Is("Mul")(Is("Add")(Is("Erf")(Is("Div|Mul")(X, CONST)), CONST), CONST)),
    ),
    "softmax": (
        Is("Div")(Same("e"), Is("ReduceSum")(Same("e"))),
        Is("Mul")(Same("e"), Is("Reciprocal|Pow")(Is("ReduceSum")(Same("e")))),
    ),
    "layer normalization": tuple(
        Maybe("Add", Maybe("Mul", Is("Div")(_CENTERED, Is("Sqrt")(Is("Add")(Is("ReduceMean")(square), CONST)))))
        for square in _SQUARE
    ),
    "L2 normalization": tuple(
        Is("Div")(X, tail)
        for norm in _NORMS
        for tail in (norm, Is("Clip|Max|Expand|Add")(norm), Is("Expand")(Is("Clip|Max|Add")(norm)))
    ),
    "attention output": tuple(
        Is("MatMul")(Maybe("Reshape|Cast|Dropout|Where", Is("Softmax")), value) for value in (ANY,)
    ),
    "rotary embedding": (
        Is("Add")(
            Is("Mul")(X, ANY),
            Is("Mul")(Is("Concat")(Is("Neg")(Is("Slice|Split")(X)), Is("Slice|Split")(X)), ANY),
        ),
    ),
}


class Matcher:
    """Finds patterns in a graph, its branches and loops included."""

    def __init__(self, graph: Graph, params: Mapping[str, Any]):
        self.nodes, self.producer = graph.wiring.nodes, graph.wiring.producers
        self.graph, self.values = graph, {**params, **constants(graph)}
        self.constants = self.values.keys()

    def find(self, name: str) -> frozenset[str]:
        """The names of all nodes in groups of that name."""
        if name in DETECTORS:
            return DETECTORS[name](self)
        found: set[str] = set()
        for tree in PATTERNS[name]:
            ops = roots(tree)
            for node in self.nodes:
                if node.op in ops and node.outputs and node.outputs[0]:
                    for _, nodes in self.match(tree, node.outputs[0], {}):
                        found |= nodes
                        break
        return frozenset(found)

    def match(self, tree: Pattern, tensor: str, known: Mapping[str, str]) -> Iterator[Found]:
        """Every way in which the tensor is what the tree describes, given what is known of its names."""
        match tree:
            case Anything():
                yield known, frozenset()
            case Constant():
                if tensor in self.constants:
                    yield known, frozenset()
            case Same(name):
                if known.get(name, tensor) == tensor:
                    yield {**known, name: tensor}, frozenset()
            case Maybe(ops, below):
                node = self.producer.get(tensor)
                if node is not None and node.op in ops.split("|"):
                    for source in node.inputs:
                        if source and source not in self.constants:
                            for names, nodes in self.match(below, source, known):
                                yield names, nodes | {node.name}
                yield from self.match(below, tensor, known)
            case Is(ops, inputs):
                node = self.producer.get(tensor)
                if node is None or node.domain or node.op not in ops.split("|") or len(node.inputs) < len(inputs):
                    return
                orders = [node.inputs]
                if node.op in COMMUTATIVE and len(inputs) == 2:
                    orders.append(node.inputs[::-1])
                for order in orders:
                    yield from self._inputs(tuple(zip(inputs, order, strict=False)), node, known)

    def _inputs(self, pairs: tuple[tuple[Pattern, str], ...], node: Node, known: Mapping[str, str]) -> Iterator[Found]:
        if not pairs:
            yield known, frozenset({node.name})
            return
        (tree, tensor), *rest = pairs
        for names, nodes in self.match(tree, tensor, known):
            for more, others in self._inputs(tuple(rest), node, names):
                yield more, nodes | others

    def preprocessing(self) -> Iterator[str]:
        """Arithmetic with constants, and what moves values, between an input and the first layer with weights."""
        made: set[str] = set()
        for node in self.nodes:
            sources = [name for name in node.inputs if name and name not in self.constants]
            if len(sources) != 1 or (sources[0] in self.producer and sources[0] not in made):
                continue
            if node.op in ("Add", "Sub", "Mul", "Div", "Cast", "Transpose"):
                made.update(node.outputs)
                if node.op in ("Add", "Sub", "Mul", "Div"):
                    yield node.name


# Groups that no tree describes.
DETECTORS: Mapping[str, Callable[[Matcher], frozenset[str]]] = {
    "input preprocessing": lambda matcher: frozenset(matcher.preprocessing()),
    "recurrent cell": lambda matcher: Cells(matcher.graph, matcher.values).nodes(),
}


def roots(tree: Pattern) -> frozenset[str]:
    """The operators that the last node of a match can have."""
    if isinstance(tree, Maybe):
        return frozenset(tree.ops.split("|")) | roots(tree.below)
    return frozenset(tree.ops.split("|")) if isinstance(tree, Is) else frozenset()


def is_transformer(graph: Graph) -> bool:
    """Whether the graph has attention: a MatMul of a Softmax's output, or an attention operator."""
    softmax = {name for _, node in graph.walk() if node.op == "Softmax" for name in node.outputs}
    return any(
        node.op in ("Attention", "MultiHeadAttention") or (node.op == "MatMul" and softmax & set(node.inputs))
        for _, node in graph.walk()
    )


def post_processing(graph: Graph, tail: Collection[str]) -> frozenset[str]:
    """The names of the nodes that prepare what TopK or NonMaxSuppression selects from, up to layers with weights.

    Args:
      graph: of the model.
      tail: names of the nodes behind which no layer with weights comes. Such a node is post-processing if its results go
        nowhere but into a selection, or into what works on the selected (boxes that are gathered by the indices found).
    """
    nodes, readers = graph.wiring.nodes, graph.wiring.readers
    selected = {name for node in nodes if node.op in SELECTIONS for name in node.outputs}
    behind = {node.name for node in nodes if node.op in SELECTIONS}
    for node in nodes:
        if node.name in tail and selected.intersection(node.inputs):
            behind.add(node.name)
            selected.update(node.outputs)
    found = set(behind)
    for node in reversed(nodes):
        after = [reader.name for name in node.outputs for reader, _ in readers.get(name, ())]
        if node.name not in found and node.op not in WEIGHTED and after and found.issuperset(after):
            found.add(node.name)
    return frozenset(found)


def tail_nodes(graph: Graph, weighted: Collection[str]) -> frozenset[str]:
    """The names of the nodes from which none of the nodes `weighted` can be reached."""
    ahead: set[str] = set()  # tensors from which one can be reached
    tail: set[str] = set()

    def visit(graph: Graph) -> bool:
        """Goes over the nodes from the last to the first; whether one of them is live."""
        some = False
        for node in reversed(graph.nodes):
            live = node.name in weighted or not ahead.isdisjoint(node.outputs)
            for sub in node.subgraphs:
                again = node.op != "If" and any(each.name in weighted for _, each in sub.walk())
                if live or again:  # what a branch gives goes where the node's outputs go, or once more around a loop
                    ahead.update(sub.outputs)
                live = visit(sub) or live
            if live:
                ahead.update(node.inputs)
            else:
                tail.add(node.name)
            some = some or live
        return some

    visit(graph)
    return frozenset(tail)
