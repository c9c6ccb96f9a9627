"""Which outputs of a model are scores of classes, read off its graph and its names.

Only of such outputs does it mean anything that the largest entry stays the largest. An output of [rows, n] floats may as well be
an embedding or the corners of a box, and nothing in a file says for certain which. So the rule would rather miss than claim. The
output is declared as float [rows, n], n > 1, apart from trailing axes of size one; and its values, before operators that only
pass them on, are

* made by a Softmax or LogSoftmax over the n entries;
* or read by an ArgMax or TopK;
* or made by a linear layer (pooling and a bias may follow), and the name of the output or of the layer's node says so (logits,
  scores, prob, class ...), or says nothing else (embedding, boxes ...) where it is the model's only output and n is at least ten
  and no multiple of 64, as the widths of embeddings are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from jaxq.graph.ir import Graph, Node, TensorType
from jaxq.graph.linear import LINEAR
from jaxq.ops.carriers import QUANTIZERS, SHAPING

PASSING = SHAPING | QUANTIZERS
POOLING = frozenset(["GlobalAveragePool", "AveragePool", "ReduceMean"])
CHOOSING = frozenset(["ArgMax", "TopK"])
SAYS_CLASSES = re.compile(r"logit|score|prob|class|cls|softmax|label|categor|predictions?\b", re.I)
SAYS_OTHER = re.compile(
    r"embed|feat|box|landmark|loc|coord|regress|offset|delta|pose|angle|hidden|state|latent|vec|point|depth", re.I
)
FEWEST_CLASSES = 10  # of an output whose name says nothing
EMBEDDING_WIDTH = 64  # widths of embeddings are multiples of this


def class_scores(graph: Graph, params: Mapping[str, Any]) -> frozenset[str]:
    """The outputs of the graph that are scores of classes, by the rule above."""
    return frozenset(name for name in graph.outputs if _is_scores(graph, params, name))


def _is_scores(graph: Graph, params: Mapping[str, Any], output: str) -> bool:
    count = _count(graph.types.get(output))
    if count == 1 or output not in graph.producers:
        return False
    node = _behind(graph, output, PASSING)
    if node is None:
        return False
    if node.op in ("Softmax", "LogSoftmax") and not node.domain:
        return _axis(node) in (1, -1)
    if any(reader.op in CHOOSING for name in _passed(graph, output) for reader, _ in graph.consumers.get(name, ())):
        return True
    layer = _linear(graph, params, node)
    if layer is None:
        return False
    words = f"{output} {layer.name}"
    if SAYS_OTHER.search(output) or (SAYS_OTHER.search(words) and not SAYS_CLASSES.search(output)):
        return False
    if SAYS_CLASSES.search(words):
        return True
    return len(graph.outputs) == 1 and count is not None and count >= FEWEST_CLASSES and count % EMBEDDING_WIDTH != 0


def _count(declared: TensorType | None) -> int | None:
    """The number of classes that a type leaves possible: 1 if it is not of the form, None where the file does not say."""
    if declared is None or declared.within or not declared.dtype.startswith(("float", "bfloat")):
        return 1
    if declared.shape is None:
        return None
    if len(declared.shape) < 2 or any(size != 1 for size in declared.shape[2:]):
        return 1
    return declared.shape[1] if isinstance(declared.shape[1], int) else None


def _behind(graph: Graph, name: str, passing: frozenset[str]) -> Node | None:
    """The node that makes a tensor's values, before those that pass them on."""
    node = graph.producers.get(name)
    while node is not None and node.op in passing:
        node = graph.producers.get(node.inputs[0])
    return node


def _passed(graph: Graph, output: str) -> list[str]:
    """The names that the values of an output have had, the output's first."""
    names = [output]
    while (node := graph.producers.get(names[-1])) is not None and node.op in PASSING:
        names.append(node.inputs[0])
    return names


def _axis(node: Node) -> int:
    """The axis of a Softmax, whose default changed with opset 13."""
    return int(node.attributes.get("axis", -1 if node.version >= 13 else 1))


def _linear(graph: Graph, params: Mapping[str, Any], node: Node | None) -> Node | None:
    """The linear layer with weights of its own that makes a node's result, pooled or with a bias added, if one does."""
    while node is not None and (node.op in POOLING or node.op == "Add"):
        varying = [name for name in node.inputs if name in graph.producers and not _is_constant(graph, params, name)]
        if node.op == "Add" and len(varying) != 1:
            return None
        node = _behind(graph, varying[0], PASSING) if varying else None
    if node is None or node.op not in LINEAR or len(node.inputs) < 2:
        return None
    return node if _is_constant(graph, params, node.inputs[1]) else None


def _is_constant(graph: Graph, params: Mapping[str, Any], name: str) -> bool:
    """Whether a tensor is a weight, quantized or not."""
    while name in graph.producers:
        node = graph.producers[name]
        if node.op not in ("QuantizeLinear", "DequantizeLinear", "Transpose", "Reshape"):
            return False
        name = node.inputs[0]
    return name in params or name in graph.constants
