"""A small classifier whose labels are what it says itself, and the pieces of a search over its layers."""

from __future__ import annotations

import functools
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from models import Network, smooth

import jaxq
from jaxq.accuracy.base import Base
from jaxq.accuracy.space import Space, quantized
from jaxq.errors import JaxqWarning
from jaxq.options import AdvancedQuantizationParameters, QuantizeOptions
from jaxq.pipeline import Prepared, prepare

BAD = "Conv_conv1"  # the layer that is spoilt, of `chain`


def chain(length: int = 3) -> onnx.ModelProto:
    """image [N, 4, 6, 6] -> scores [N, 5]: convolutions of equal shape, one after the other."""
    net = Network(seed=3)
    x = net.input("image", ["N", 4, 6, 6])
    for number in range(length):
        x = net.node("Relu", [net.convolution(x, f"conv{number}", (4, 4))], f"relu{number}")
    net.dense(net.node("Flatten", [x], "features"), "scores", (144, 5))
    net.output("scores", ["N", 5])
    return net.proto()


def picking() -> onnx.ModelProto:
    """image [1, 4, 6, 6] -> the positive ones of 50 scores: how many there are depends on the data."""
    net = Network(seed=3)
    x = net.input("image", [1, 4, 6, 6])
    for number in range(3):
        x = net.node("Relu", [net.convolution(x, f"conv{number}", (4, 4))], f"relu{number}")
    net.dense(net.node("Flatten", [x], "features"), "scores", (144, 50))
    flat = net.node("Reshape", ["scores", net.constant("flat.shape", [50], np.int64)], "flat")
    net.node("NonZero", [net.node("Greater", [flat, net.constant("zero", 0.0)], "positive")], "where")
    net.node("Reshape", ["where", net.constant("all", [-1], np.int64)], "classes")
    net.node("Gather", [flat, "classes"], "values")
    net.output("values", ["K"])
    net.output("classes", ["K"], onnx.TensorProto.INT64)
    return net.proto()


def images(count: int, first: int = 0) -> list[np.ndarray]:
    return [smooth(1, 4, 6, 6, seed=seed) for seed in range(first, first + count)]


@functools.cache
def labelled(count: int = 24) -> tuple[tuple[dict[str, np.ndarray], int], ...]:
    """(feed, the class that the float model sees in it)."""
    model = jaxq.load(chain())
    return tuple(({"image": x}, int(np.asarray(model(x)["scores"]).argmax())) for x in images(count, 100))


def accuracy(model: Any, items: Any) -> tuple[float, list[float]]:
    """A validation function of the usual kind."""
    right = [float(np.asarray(model(feed)["scores"]).argmax() == label) for feed, label in items]
    return float(np.mean(right)), right


MINMAX = AdvancedQuantizationParameters(activations_range_estimator_params="minmax")


def prepared(model: onnx.ModelProto, feeds: list[Any]) -> Prepared:
    return prepare(model, feeds, QuantizeOptions(advanced_parameters=MINMAX))


def base_of(model: onnx.ModelProto, feeds: list[Any], *others: str) -> Base:
    return quantized(prepared(model, feeds), others)


@functools.cache
def chain_space() -> Space:
    return Space(base_of(chain(), images(12), "mse"))


def ruined(base: Base, node: str) -> Base:
    """The base with absurd ranges for the weight of one node."""
    weight = next(each.inputs[1] for _, each in base.prepared.graph.walk() if each.name == node)
    spoilt = replace(base.weights[weight], scale=base.weights[weight].scale * np.float32(90))
    return replace(base, weights={**base.weights, weight: spoilt})


def run(validation=None, function=accuracy, *, model=None, reports=None, **options):
    data = list(labelled()) if validation is None else validation
    keep = reports.append if reports is not None else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", JaxqWarning)
        return jaxq.quantize_with_accuracy_control(
            chain() if model is None else model,
            images(12),
            data,
            function,
            on_step=keep,
            advanced_quantization_parameters=MINMAX,
            **options,
        )
