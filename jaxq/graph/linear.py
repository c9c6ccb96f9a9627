"""Linear layers: where the channels of a Conv, ConvTranspose, Gemm or MatMul lie, and how its numbers are changed along them.

                     weight              axis of output channels   of input channels   in data and result
    Conv             [O, I / g, taps]    0                         1, of each group    1
    ConvTranspose    [I, O / g, taps]    1, of each group          0                   1
    Gemm             [I, O]              1                         0                   -1
    Gemm, transB     [O, I]              0                         1                   -1
    MatMul           [..., I, O]         -1                        -2                  -1

O output and I input channels, g groups, and `taps` the axes of a kernel's positions. Whoever has to know this asks here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxq.graph.ir import Graph, Node

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
PRODUCTS = frozenset({"MatMul", "Gemm"})  # of matrices
LINEAR = CONVOLUTIONS | PRODUCTS
BIASED = CONVOLUTIONS | {"Gemm"}  # whose third input is a bias


def is_linear(node: Node) -> bool:
    """Whether the node is one of these operators, with weights of its own or not."""
    return node.op in LINEAR and not node.domain


def is_product(node: Node) -> bool:
    """Whether the node is a MatMul or Gemm."""
    return node.op in PRODUCTS and not node.domain


def transposes_data(node: Node) -> bool:
    """Whether a product takes its data with the axes swapped."""
    return node.op == "Gemm" and not node.domain and bool(node.attributes.get("transA", 0))


def channel_axis(node: Node) -> int:
    """The axis of the output channels in a linear layer's result."""
    return 1 if node.op in CONVOLUTIONS else -1


@dataclass(frozen=True)
class Linear:
    """A linear layer: a node and the shape of its weight, which is its second input."""

    node: Node
    shape: tuple[int, ...]

    @classmethod
    def of(cls, node: Node, params: Mapping[str, Any]) -> Linear | None:
        """The layer that the node is; None for another operator, and where its weight is no param or no matrix."""
        if not is_linear(node) or len(node.inputs) < 2 or node.inputs[1] not in params:
            return None
        shape = tuple(np.shape(params[node.inputs[1]]))
        return cls(node, shape) if len(shape) > 1 else None

    @property
    def weight(self) -> str:
        return self.node.inputs[1]

    @property
    def bias(self) -> str:
        """The name of the third input; "" where there is none."""
        return self.node.inputs[2] if len(self.node.inputs) > 2 else ""

    @property
    def groups(self) -> int:
        return int(self.node.attributes.get("group", 1)) if self.node.op in CONVOLUTIONS else 1

    @property
    def is_depthwise(self) -> bool:
        """Whether it is a convolution with one filter for each channel."""
        return self.node.op == "Conv" and self.shape[1] == 1 < self.shape[0] == self.groups

    @property
    def alpha(self) -> float:
        """What the product is multiplied with."""
        return float(self.node.attributes.get("alpha", 1.0)) if self.node.op == "Gemm" else 1.0

    @property
    def beta(self) -> float:
        """What the bias is multiplied with; 1 where there is none."""
        return float(self.node.attributes.get("beta", 1.0)) if self.node.op == "Gemm" and self.bias else 1.0

    @property
    def is_unscaled(self) -> bool:
        """Whether neither the product nor the bias is multiplied with another number than one."""
        return self.alpha == self.beta == 1.0

    @property
    def transposes_data(self) -> bool:
        return transposes_data(self.node)

    @property
    def is_plain(self) -> bool:
        """Whether it computes the product of data as they are with the weight, turned or not, plus the bias."""
        return self.is_unscaled and not self.transposes_data

    @property
    def output_axis(self) -> int:
        """The axis of the weight's output channels."""
        if self.node.op in CONVOLUTIONS:
            return int(self.node.op == "ConvTranspose")
        return 0 if self._is_turned else len(self.shape) - 1

    @property
    def input_axis(self) -> int:
        """The axis of the weight's input channels: what a product sums over."""
        if self.node.op in CONVOLUTIONS:
            return int(self.node.op == "Conv")
        return 1 if self._is_turned else len(self.shape) - 2

    @property
    def _is_turned(self) -> bool:
        return self.node.op == "Gemm" and bool(self.node.attributes.get("transB", 0))

    @property
    def outputs(self) -> int:
        """How many output channels it has."""
        return self._count(self.output_axis)

    @property
    def inputs(self) -> int:
        """How many input channels it has."""
        return self._count(self.input_axis)

    def _count(self, axis: int) -> int:
        return self.shape[axis] * (self.groups if self._is_within_groups(axis) else 1)

    def _is_within_groups(self, axis: int) -> bool:
        """Whether the channels on that axis are those of one group, and not of all."""
        return axis == 1 and self.node.op in CONVOLUTIONS

    @property
    def channel_axis(self) -> int:
        """The axis of the channels in the data, unless they are transposed, and in the result."""
        return channel_axis(self.node)

    def along_output(self, values: np.ndarray) -> np.ndarray:
        """values [O] in a shape that multiplies each output channel of the weight."""
        return self._along(self.output_axis, values)

    def along_input(self, values: np.ndarray) -> np.ndarray:
        """values [I] in a shape that multiplies each input channel of the weight."""
        return self._along(self.input_axis, values)

    def _along(self, axis: int, values: np.ndarray) -> np.ndarray:
        shape = [1] * len(self.shape)
        if self.groups == 1 or not self._is_within_groups(axis):
            shape[axis] = -1
            return values.reshape(shape)
        shape[:2] = self.shape[:2]
        each = values.reshape(self.groups, 1, -1)  # every row of a group has the values of that group
        return np.repeat(each, self.shape[0] // self.groups, axis=1).reshape(shape)

    def rows(self, weight: np.ndarray) -> np.ndarray:
        """The weight as [O, I / g, taps]: what each output channel is made of; of a stack of matrices each is a tap."""
        if self.node.op == "Conv":
            return weight.reshape(*weight.shape[:2], -1)
        first, second = self.output_axis, self.input_axis
        if self.node.op in PRODUCTS or self.groups == 1:
            return np.moveaxis(weight, (first, second), (0, 1)).reshape(weight.shape[first], weight.shape[second], -1)
        apart = weight.reshape(self.groups, -1, weight.shape[1], math.prod(weight.shape[2:]))
        return apart.swapaxes(1, 2).reshape(self.outputs, -1, apart.shape[3])

    def connections(self, weight: np.ndarray) -> np.ndarray:
        """The weight as [O, I, taps], with zeros where an output channel is not made of an input channel."""
        rows = self.rows(weight)
        if self.groups == 1:
            return rows
        spread = np.zeros((self.groups, self.outputs // self.groups, self.groups, *rows.shape[1:]), rows.dtype)
        each = np.arange(self.groups)
        spread[each, :, each] = rows.reshape(self.groups, -1, *rows.shape[1:])
        return spread.reshape(self.outputs, self.inputs, -1)

    def response(self, weight: np.ndarray, data: np.ndarray) -> np.ndarray:
        """What the layer makes, bias aside, of data with the same values [I] at every position: [O], away from borders."""
        sums = self.rows(weight).sum(axis=2).reshape(self.groups, -1, self.inputs // self.groups)
        made = (sums @ data.reshape(self.groups, -1, 1)).reshape(-1)
        strides = self.node.attributes.get("strides", ()) if self.node.op == "ConvTranspose" else ()
        return self.alpha * made / np.prod(strides)  # each output of a transposed one sees one in so many taps

    def scale_output(self, numbers: dict[str, Any], factor: np.ndarray) -> None:
        """Multiplies each output channel by its factor [O], in the weight and the bias. Writes into `numbers`."""
        scale(numbers, self.weight, self.along_output(factor))
        if self.bias:
            scale(numbers, self.bias, factor)

    def scale_input(self, numbers: dict[str, Any], factor: np.ndarray) -> None:
        """Multiplies what reads each input channel by its factor [I]. Writes into `numbers`."""
        scale(numbers, self.weight, self.along_input(factor))


def scale(numbers: dict[str, Any], name: str, factor: np.ndarray) -> None:
    """Multiplies an array in `numbers`, in float64 and back."""
    numbers[name] = (np.asarray(numbers[name], np.float64) * factor).astype(numbers[name].dtype)


def is_depthwise(node: Node, params: Mapping[str, Any]) -> bool:
    """Whether the node is a convolution with one filter, of constant weights, for each channel."""
    linear = Linear.of(node, params)
    return linear is not None and linear.is_depthwise


def owned(graph: Graph, params: Mapping[str, Any], name: str) -> bool:
    """Whether the tensor is a param that one node alone reads, so that it may be changed with this node."""
    return name in params and graph.wiring.uses[name] == 1


class OwnBias(NamedTuple):
    """A param [O] that is added to the products of one layer alone, the tensor that holds the sums, and the axis of O there."""

    name: str
    output: str
    axis: int


def own_bias(graph: Graph, params: Mapping[str, Any], node: Node) -> OwnBias | None:
    """The bias of a linear layer of the graph: its third input, or what an Add behind a MatMul adds; None if it is not its own.

    One that is multiplied by a beta does not count.
    """
    if node.op in BIASED and not node.domain:
        names, output = node.inputs[2:], node.outputs[0]
        if node.attributes.get("beta", 1.0) != 1.0:
            return None
    else:
        readers = graph.consumers.get(node.outputs[0], ()) if node.op == "MatMul" and not node.domain else ()
        if len(readers) != 1 or readers[0][0].op != "Add":
            return None
        names, output = readers[0][0].inputs, readers[0][0].outputs[0]
    linear = Linear.of(node, params)
    if linear is None and node.op not in BIASED:
        return None  # it may be a product of two computed matrices, and what is added no bias
    for name in names:
        fits = owned(graph, params, name) and np.ndim(params[name]) == 1
        if fits and (linear is None or len(params[name]) == linear.outputs):
            return OwnBias(name, output, channel_axis(node))
    return None
