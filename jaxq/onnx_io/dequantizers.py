"""Puts each DequantizeLinear where ONNX Runtime merges it with its reader; elsewhere it is computed anew at every run.

What merges was tried in ONNX Runtime 1.32 (`tests/onnx_io/test_dequantizers.py` asks the one that is installed):

* with a quantized operator: if the DequantizeLinear stands in the reader's own graph, a branch or a body; its constants may be
  those of an outer graph.
* embeddings: never. But of a table of bytes a Gather can take rows, which are then made floats by plain arithmetic: behind a
  DequantizeLinear of theirs, a product would not be merged with that of its weight.
* weights alone, and those of products of 16 bits, into MatMulNBits: if it makes the matrix [K, N] of a MatMul or Gemm for nobody
  else, with one scale for each of N or blocks along K, and its integers and scales are constants of that graph which nobody else
  reads. With those of an outer graph the file would not even load. With a Relu or Clip behind it that others read, it looks for a
  QuantizeLinear and does not merge: these become Max and Min.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxq.graph.ir import FrozenDict, Graph, Node, map_nodes, unused_name
from jaxq.graph.linear import Linear, is_product
from jaxq.onnx_io.matmul_nbits import takes_block, takes_product
from jaxq.ops import ELEMENT_NUMBERS

WIDE = 2  # bytes of activations with which ONNX Runtime makes a MatMulNBits of a product, as it does with floats


def beside_readers(graph: Graph, params: Mapping[str, Any], taken: set[str]) -> tuple[Graph, dict[str, Any]]:
    """The graph with DequantizeLinear where its readers can be merged with it, and the params that it needs.

    `taken` are the names of all tensors and nodes; new ones are added.
    """
    narrow = narrow_data(graph, params)
    graph, params = _Products(graph, params, taken, narrow).rewrite()
    if any(node.op == "QuantizeLinear" for _, node in graph.walk()):
        graph = without_unread(into_subgraphs(graph, {}, taken))
    return graph, params


def narrow_data(graph: Graph, params: Mapping[str, Any]) -> frozenset[str]:
    """The activations that a DequantizeLinear makes from 8 bits: kernels in integers read them, and no MatMulNBits."""
    return frozenset(
        node.outputs[0]
        for _, node in graph.walk()
        if node.op == "DequantizeLinear"
        and node.inputs[0] not in params
        and (len(node.inputs) < 3 or np.dtype(params[node.inputs[2]].dtype).itemsize < WIDE)
    )


def without_unread(graph: Graph) -> Graph:
    """The graph without the DequantizeLinear nodes that nobody reads any more."""
    uses = graph.wiring.uses
    return map_nodes(graph, lambda _, node: (node,) if node.op != "DequantizeLinear" or uses[node.outputs[0]] else ())


# ------------------------------------------------------------------------------------------------ quantized activations


def into_subgraphs(graph: Graph, outer: Mapping[str, Node], taken: set[str]) -> Graph:
    """Each graph reads what `outer`, the DequantizeLinear nodes around it, make through copies of its own.

    A node whose first input is in float keeps the one outside: it is no integer kernel, and a product of floats with a quantized
    weight would be taken for a MatMulNBits without constants.
    """
    known = {**outer, **{node.outputs[0]: node for node in graph.nodes if node.op == "DequantizeLinear"}}
    copies: dict[str, Node] = {}
    nodes = []
    for node in graph.nodes:
        if node.inputs and node.inputs[0] in known:
            for name in node.inputs:
                if name in outer and name not in copies:
                    copies[name] = copied(outer[name], taken)
            inputs = tuple(copies[name].outputs[0] if name in copies else name for name in node.inputs)
            node = replace(node, inputs=inputs)
        attributes = {
            key: into_subgraphs(value, known, taken) if isinstance(value, Graph) else value
            for key, value in node.attributes.items()
        }
        nodes.append(replace(node, attributes=FrozenDict(attributes)) if node.subgraphs else node)
    return replace(graph, nodes=(*copies.values(), *nodes)) if nodes != list(graph.nodes) else graph


# ---------------------------------------------------------------------------------------------------------- weights alone


@dataclass
class _Weight:
    """A weight that products read: the node that makes it, and who reads it.

    Attributes:
      axis: what the products sum over.
      products: id of a graph -> how many of its nodes are products with the weight.
      others: how many other readers there are.
    """

    dequantize: Node
    axis: int
    products: Counter[int]
    others: int = 0

    def first(self) -> int:
        """The number of the copy that the first product reads; 0 is for the others, if they read [K, N]."""
        return int(self.others > 0 and self.axis == 0)

    def is_shared(self, copy: int) -> bool:
        """Whether several graphs, or others beside the products, read that copy; each product then transposes it for itself."""
        readers = sum(count > copy - self.first() for count in self.products.values())
        return readers + (copy == 0 and self.others > 0) > 1


class _Products:
    """Gives each MatMul and Gemm that can become a MatMulNBits a DequantizeLinear right before it, with constants of its own.

    Integers that several graphs read (the two branches of a merged decoder) are in the file once, as [N, K]: each product has a
    Transpose, which the runtime computes when it loads the file. Of two in one graph it would see that they are the same;
    there each has its own copy.
    """

    def __init__(self, graph: Graph, params: Mapping[str, Any], taken: set[str], narrow: frozenset[str]):
        self.graph, self.params, self.taken, self.narrow = graph, params, taken, narrow
        self.numbers = dict(params)  # of the changed graph
        self.quantized = any(node.op == "QuantizeLinear" for _, node in graph.walk())
        self.made = {
            node.outputs[0]: node
            for node in graph.nodes
            if node.op == "DequantizeLinear" and all(name in params for name in node.inputs)
        }
        self.weights: dict[str, _Weight] = {}
        for each, node in graph.walk():
            linear = self.merged(node)
            if linear is not None:
                found = _Weight(self.made[linear.weight], linear.input_axis, Counter())
                self.weights.setdefault(linear.weight, found).products[id(each)] += 1
        for name, weight in self.weights.items():
            weight.others = graph.wiring.uses[name] - weight.products.total()
        self.served: Counter[tuple[str, int]] = Counter()  # (weight, id of a graph) -> products that have theirs
        self.copies: dict[tuple[str, int], tuple[str, ...]] = {}  # (weight, number) -> integers, scales, zero points

    def merged(self, node: Node) -> Linear | None:
        """The product, if MatMulNBits can stand for it and the DequantizeLinear of its weight."""
        dequantize = self.made.get(node.inputs[1]) if is_product(node) else None
        if dequantize is None or node.inputs[0] in self.narrow:
            return None
        linear = Linear(node, np.shape(self.params[dequantize.inputs[0]]))
        bias = np.shape(self.params[linear.bias]) if linear.bias in self.params else None
        known = self.weights.get(linear.weight)
        if not takes_product(linear, bias) or not (known is None or known.axis == linear.input_axis):
            return None
        return linear if takes_blocks(dequantize, linear.input_axis) else None

    def rewrite(self) -> tuple[Graph, dict[str, Any]]:
        """The graph with all products changed, and its params; what else reads a weight still reads it as before."""
        changed = without_unread(map_nodes(self.graph, self.change))
        read, operands = changed.wiring.uses, {name for node in self.made.values() for name in node.inputs}
        return changed, {name: value for name, value in self.numbers.items() if read[name] or name not in operands}

    def change(self, graph: Graph, node: Node) -> tuple[Node, ...]:
        """The node, behind a DequantizeLinear of its own if the two can be merged."""
        if self.made.get(node.outputs[0]) is node and node.outputs[0] in self.weights:
            return (node,) if self.weights[node.outputs[0]].others else ()
        if self.reads_rows(node):
            return self.rows(node)
        product = self.clamped_product(graph, node)
        if product is not None:
            return self.clamped(node, self.params[self.made[product.inputs[1]].inputs[1]].dtype)
        if self.merged(node) is None:
            return (node,)
        name = node.inputs[1]
        weight, number = self.weights[name], self.weights[name].first() + self.served[name, id(graph)]
        self.served[name, id(graph)] += 1
        operands, before = self.constants(name, number), list[Node]()
        if weight.is_shared(number):
            operands, before = self.transposed(operands)
        attributes = weight.dequantize.attributes
        if weight.axis == 1 and "axis" in attributes:
            attributes = attributes | {"axis": 1 - int(attributes["axis"])}
        first = not number and not weight.is_shared(number)
        own = weight.dequantize if first else copied(weight.dequantize, self.taken)
        own = replace(own, inputs=operands, attributes=attributes)
        attributes = FrozenDict({key: value for key, value in node.attributes.items() if key != "transB"})
        changed = replace(node, inputs=(node.inputs[0], own.outputs[0], *node.inputs[2:]), attributes=attributes)
        return (*before, own, changed)

    def clamped_product(self, graph: Graph, node: Node) -> Node | None:
        """The product, if the node is a Relu or Clip behind one or its bias, which would keep the runtime from merging it."""
        if self.quantized or node.op not in ("Relu", "Clip") or node.domain:
            return None
        before = [graph.producers.get(node.inputs[0])]
        if before[0] is not None and before[0].op == "Add":
            before += [graph.producers.get(name) for name in before[0].inputs]
        return next((each for each in before if each is not None and self.merged(each)), None)

    def clamped(self, node: Node, kind: np.dtype) -> tuple[Node, ...]:
        """The same as Max and Min, which nothing is fused with."""
        lower, upper = (*node.inputs[1:], "", "")[:2]
        if node.op == "Relu":
            lower = unused_name(f"{node.outputs[0]}_zero", self.taken)
            self.numbers[lower] = np.zeros((), kind)
        steps = [(op, bound) for op, bound in (("Max", lower), ("Min", upper)) if bound]
        nodes, value = list[Node](), node.inputs[0]
        for index, (op, bound) in enumerate(steps, 1):
            last = index == len(steps)
            output = node.outputs[0] if last else unused_name(f"{node.outputs[0]}_{op}", self.taken)
            name = node.name if last else unused_name(f"{node.name}_{op}", self.taken)
            nodes.append(
                replace(node, op=op, inputs=(value, bound), outputs=(output,), name=name, attributes=FrozenDict())
            )
            value = output
        return tuple(nodes) or (node,)

    def reads_rows(self, node: Node) -> bool:
        """Whether a Gather takes rows of a table of bytes with a scale for each, which it can before they become floats."""
        dequantize = self.made.get(node.inputs[0]) if node.op == "Gather" and not node.domain else None
        if dequantize is None or node.attributes.get("axis", 0):
            return False
        table, scale = (self.params[name] for name in dequantize.inputs[:2])
        per_row = dequantize.attributes.get("axis") == 0 and np.shape(scale) == np.shape(table)[:1]
        return np.ndim(table) == 2 and table.dtype in ("int8", "uint8") and per_row

    def rows(self, node: Node) -> tuple[Node, ...]:
        """The rows that a Gather takes of a table, and (integers - zero points) * scales of these alone."""
        table, *others = self.made[node.inputs[0]].inputs
        indices, version = node.inputs[1:], node.version
        kind = self.params[others[0]].dtype
        scale, zero_point = (np.asarray(self.params[name], kind)[:, None] for name in others)

        def taken(values: str, of: Node) -> Node:
            name = unused_name(f"{values}_rows", self.taken)
            return replace(
                of, inputs=(values, *indices), outputs=(name,), name=unused_name(f"{name}_Gather", self.taken)
            )

        def then(op: str, *inputs: str, **attributes: Any) -> Node:
            name = unused_name(f"{table}_{op}", self.taken)
            return Node(
                op, inputs, (name,), FrozenDict(attributes), unused_name(f"{name}_{op}", self.taken), version=version
            )

        nodes = [replace(taken(table, node), name=node.name)]
        nodes.append(then("Cast", nodes[-1].outputs[0], to=ELEMENT_NUMBERS[str(kind)]))
        for op, values in (("Sub", zero_point), ("Mul", scale)):
            if op == "Sub" and not values.any():
                continue
            operand = unused_name(f"{others[op == 'Sub']}_column", self.taken)
            self.numbers[operand] = values
            read = taken(operand, node)
            nodes += [read, then(op, nodes[-1].outputs[0], read.outputs[0])]
        return *nodes[:-1], replace(nodes[-1], outputs=node.outputs)

    def constants(self, name: str, number: int) -> tuple[str, ...]:
        """The names of the integers, scales and zero points of that copy of a weight, which are put into the params."""
        if (name, number) not in self.copies:
            weight = self.weights[name]
            given = weight.dequantize.inputs
            self.copies[name, number] = given if not number else tuple(unused_name(each, self.taken) for each in given)
            turn = (weight.axis == 0) == weight.is_shared(number)  # [K, N] for one reader, [N, K] for several
            for source, operand in zip(given, self.copies[name, number], strict=True):
                value = self.params[source]
                self.numbers[operand] = (
                    np.ascontiguousarray(np.transpose(value)) if turn and np.ndim(value) == 2 else value
                )
        return self.copies[name, number]

    def transposed(self, operands: tuple[str, ...]) -> tuple[tuple[str, ...], list[Node]]:
        """The operands behind a Transpose of each matrix, and these nodes; of vectors and scalars, copies."""
        nodes, own = list[Node](), []
        for name in operands:
            own.append(unused_name(name, self.taken))
            if np.ndim(self.numbers[name]) == 2:
                turn, title = FrozenDict({"perm": (1, 0)}), unused_name(f"{own[-1]}_Transpose", self.taken)
                nodes.append(Node("Transpose", (name,), (own[-1],), turn, title, version=self.graph.opsets.get("", 13)))
            else:
                self.numbers[own[-1]] = self.numbers[name]
        return tuple(own), nodes


def local_constants(graph: Graph, constants: Mapping[str, Any]) -> dict[int, tuple[str, ...]]:
    """id of a subgraph -> those `constants` of the outermost graph that must be written into it, to be found by its products.

    They are those of a DequantizeLinear that makes the weight of a product there, and that nothing else reads.
    """
    found: dict[int, tuple[str, ...]] = {}
    for each, node in graph.walk():
        maker = each.producers.get(node.inputs[1]) if each is not graph and is_product(node) else None
        if maker is not None and maker.op == "DequantizeLinear":
            alone = tuple(name for name in maker.inputs if name in constants and graph.wiring.uses[name] == 1)
            found[id(each)] = found.get(id(each), ()) + alone
    return found


def takes_blocks(dequantize: Node, axis: int) -> bool:
    """Whether the scales are in blocks along the summed axis that MatMulNBits takes, or one for each of the other axis."""
    given, size = dequantize.attributes.get("axis"), int(dequantize.attributes.get("block_size", 0))
    if size:
        return given == axis and takes_block(size)
    return given in (None, 1 - axis)


def copied(node: Node, taken: set[str]) -> Node:
    """The same node with a name of its own, and one for its output."""
    return replace(node, name=unused_name(node.name, taken), outputs=(unused_name(node.outputs[0], taken),))
