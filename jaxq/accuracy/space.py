"""Every model that the search may come to, as choices of arrays for one compiled program.

A *layer* is what goes back to float together: a node, and the nodes that share its weight. A *setting* says what is done to
which layer; layers that it does not name stay quantized. What follows from a setting (which quantizers go with a layer,
which stay because another one needs them) is what placement says when these nodes are ignored, and nothing else: the model
that is tried and the model that is written come from the same plan.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np

from jaxq.accuracy.switches import Switches, add_switches
from jaxq.algorithms.calibration import with_biases
from jaxq.engine.model import Model
from jaxq.graph.ir import FrozenDict, Graph
from jaxq.numerics.estimators import (
    AggregatorType,
    RangeEstimatorParameters,
    StatisticsCollectorParameters,
    StatisticsType,
)
from jaxq.numerics.quantizer import IntType, QuantParams, fake_quantize_array
from jaxq.numerics.ranges import Range, asymmetric_params
from jaxq.placement.plan import BiasForm, Plan

FLOAT = "float"  # the layer is as it was
WEIGHTS = "int8 weights"  # its weights stay rounded, for a smaller file; what it reads and adds is float
WIDE = "16-bit activations"  # what it reads is rounded to 16 bits
UNCORRECTED = "no bias correction"
HOLDING = "minmax"  # the estimator whose ranges hold what was seen, as those of 16 bits should
NAMED = ("mse", "mean_minmax", "minmax", "percentile")  # of `RangeEstimatorParametersSet`


def _quantiles() -> Iterator[tuple[str, RangeEstimatorParameters]]:
    """POT's grid for the ranges of activations: each end the extreme of all samples, or the mean of their quantiles."""
    mean = AggregatorType.MEAN
    lows = {"min": StatisticsCollectorParameters(StatisticsType.MIN, AggregatorType.MIN)}
    highs = {"max": StatisticsCollectorParameters(StatisticsType.MAX, AggregatorType.MAX)}
    for part in (1e-3, 1e-4):
        end = StatisticsCollectorParameters(StatisticsType.QUANTILE, mean, quantile_outlier_prob=part)
        lows[f"quantile {part:g}"], highs[f"quantile {1 - part:g}"] = end, end
    for low, high in itertools.product(lows, highs):
        if (low, high) != ("min", "max"):  # that is minmax
            yield f"{low} to {high}", RangeEstimatorParameters(lows[low], highs[high])


QUANTILES = dict(_quantiles())
ESTIMATORS = {f"range estimator {name}": name for name in (*NAMED, *QUANTILES)}
STEPS = (*ESTIMATORS, UNCORRECTED, WIDE, WEIGHTS, FLOAT)  # in the order of what they cost at run time

Setting = Mapping[str, str]  # layer -> one of STEPS


@dataclass(frozen=True)
class Base:
    """A model that has been quantized once, with all that its variants are made of.

    Attributes:
      graph: the float graph.
      plan: of all quantizers.
      place: ignored nodes -> the plan without them.
      exact: params of the float model.
      corrected: those of its biases that bias correction has moved.
      encodings: name of a range estimator -> encodings of all activations; the first is the one asked for.
      weights: encodings of the weights.
      metadata: of the file.
      correct: a model -> its params with the biases corrected for the rounding of this model; None: the search leaves the
        biases as they were corrected for all quantizers.
    """

    graph: Graph
    plan: Plan
    place: Callable[[frozenset[str]], Plan]
    exact: Mapping[str, Any]
    corrected: Mapping[str, Any]
    encodings: Mapping[str, Mapping[str, QuantParams]]
    weights: Mapping[str, QuantParams]
    metadata: Mapping[str, str] = field(default_factory=dict)
    correct: Callable[[Model], Mapping[str, Any]] | None = None


@dataclass(frozen=True)
class Layer:
    """Nodes that are treated alike, because they share a weight; mostly one."""

    name: str
    op: str
    nodes: tuple[str, ...]
    weights: tuple[str, ...]
    inputs: frozenset[str]  # quantizer groups of the plan that its nodes read


@dataclass(frozen=True)
class Parts:
    """A setting spelled out: which names are rounded, and with which numbers."""

    plan: Plan
    switches: frozenset[str]  # of activations, that are on
    params: Mapping[str, Any]  # in float
    rounded: frozenset[str]  # params that are rounded
    moved: frozenset[str]  # biases that are corrected
    encodings: Mapping[str, QuantParams]  # by tensor of the full plan, or param

    @property
    def changed(self) -> frozenset[str]:
        """Everything that sets the model apart from the float one: switches, and params."""
        return self.switches | self.rounded | self.moved


class Space:
    """The models that differ from a quantized one in what is done to its layers.

    Attributes:
      layers: name -> layer, in the order of the graph.
      switches: the graph of the program, and where it can be switched.
    """

    def __init__(self, base: Base):
        self.base = base
        self.switches: Switches = add_switches(base.graph, base.plan)
        self.first = next(iter(base.encodings))
        self.layers = {layer.name: layer for layer in _layers(base)}
        self._biases = {bias: node for bias in base.corrected if (node := _owner(base.plan, bias)) is not None}
        self._model = Model(self.switches.graph, base.exact)  # all candidates share with it what is on the device
        self._rounded: dict[str, tuple[Any, QuantParams, np.ndarray]] = {}  # param -> value, encoding, rounded value
        self._corrections: dict[tuple[tuple[str, str], ...], dict[str, np.ndarray]] = {}
        self._plans: dict[frozenset[str], Plan] = {}

    # ------------------------------------------------------------------------------------------------- what a setting means

    def parts(self, setting: Setting) -> Parts:
        """What a setting does to every quantizer."""
        done = {node: step for name, step in setting.items() for node in self.layers[name].nodes}
        plan = self._plan(node for node, step in done.items() if step in (FLOAT, WEIGHTS))
        kept = {name for name, step in setting.items() if step == WEIGHTS for name in self.layers[name].weights}
        integer = set(plan.nodes)
        moved = {
            bias
            for bias in self.base.corrected
            if (node := self._biases.get(bias)) is None
            or ((node in integer or done.get(node) == WEIGHTS) and done.get(node) != UNCORRECTED)
        }
        params = {name: self.base.corrected[name] if name in moved else each for name, each in self.base.exact.items()}
        activations, wide = self._activations(setting)
        weights = {weight.name for weight in plan.weights} | kept
        encodings = {**activations, **{name: self.base.weights[name] for name in weights if name in self.base.weights}}
        own = self.switches.tensors_of(plan)
        biases = [
            replace(bias, activation=own.get(bias.activation, ""), weight=own.get(bias.weight, bias.weight))
            for bias in plan.biases
        ]
        # 16 bits make the unit of the products so small that int32 would not hold a bias: it gets one of its own.
        biases = [replace(bias, form=BiasForm.OWN) if bias.activation in wide else bias for bias in biases]
        encodings = with_biases(encodings, params, tuple(biases))
        rounded = frozenset(name for name in encodings if name in params)
        # What no sample ever made has no range.
        on = frozenset(name for name in self.switches.on(plan) if self.switches.tensors[name] in activations)
        return Parts(plan, on, params, rounded, frozenset(moved), encodings)

    def _plan(self, ignored: Iterable[str]) -> Plan:
        key = frozenset(ignored)
        if key not in self._plans:
            self._plans[key] = self.base.place(key) if key else self.base.plan
        return self._plans[key]

    def _activations(self, setting: Setting) -> tuple[dict[str, QuantParams], set[str]]:
        """Encodings by tensor of the full plan, and the tensors that have 16 bits."""
        variant: dict[str, str] = {}  # quantizer group -> estimator, or WIDE
        for name, step in setting.items():
            if step in ESTIMATORS or step == WIDE:
                variant.update(dict.fromkeys(self.layers[name].inputs, ESTIMATORS.get(step, step)))
        first = self.base.encodings[self.first]
        holding = self.base.encodings.get(HOLDING, first)
        found = dict(first)
        for name, group in self.base.plan.activations.items():
            if group in variant and name in first:
                chosen = variant[group]
                found[name] = widened(holding[name]) if chosen == WIDE else self.base.encodings[chosen][name]
        return found, {name for name, group in self.base.plan.activations.items() if variant.get(group) == WIDE}

    # ------------------------------------------------------------------------------------------------------------- models

    def candidate(self, setting: Setting, *, corrected: bool = True) -> Model:
        """The model for trying a setting: the same program for every setting, of which only the arrays differ.

        Without `corrected` its biases are those of the float model, rounded.
        """
        parts = self.corrected(setting) if corrected else self.uncorrected(setting)
        params = {
            name: self._round(name, value, parts.encodings[name]) if name in parts.rounded else value
            for name, value in parts.params.items()
        }
        return self._model.replace(params=params, encodings=self._switched(parts, parts.switches))

    def corrected(self, setting: Setting) -> Parts:
        """The parts of a setting, with biases corrected for what this setting rounds.

        The correction for all quantizers makes up, in late layers, for errors of early ones; where those went back to float it
        does harm.
        """
        parts = self.parts(setting)
        if self.base.correct is None or not parts.moved or not setting:
            return parts
        key = tuple(sorted(setting.items()))
        if key not in self._corrections:
            self._corrections[key] = self.correction(parts)
        return replace(parts, params={**parts.params, **self._corrections[key]})

    def correction(self, parts: Parts) -> dict[str, np.ndarray]:
        """The biases that may move, corrected for what these parts round; by the same compiled program for all."""
        assert self.base.correct is not None, "the base has a bias correction"
        exact = {**parts.params, **{name: self.base.exact[name] for name in parts.moved}}
        weights = {name: parts.encodings[name] for name in parts.rounded - parts.moved}
        model = self._model.replace(params=exact, encodings={**self._switched(parts, parts.switches), **weights})
        found = self.base.correct(model)
        return {name: np.asarray(found[name]) for name in parts.moved}

    def uncorrected(self, setting: Setting) -> Parts:
        """The parts of a setting, with the biases of the float model."""
        parts = self.parts(setting)
        return replace(parts, params={**parts.params, **{name: self.base.exact[name] for name in parts.moved}})

    def float_model(self) -> Model:
        """The same program with every quantizer off."""
        parts = self.parts({})
        return self._model.replace(encodings=self._switched(parts, frozenset()))

    def _switched(self, parts: Parts, on: frozenset[str]) -> dict[str, QuantParams]:
        return {
            switch: replace(parts.encodings[tensor], enabled=np.bool_(switch in on))
            for switch, tensor in self.switches.tensors.items()
            if tensor in parts.encodings
        }

    def _round(self, name: str, value: Any, encoding: QuantParams) -> np.ndarray:
        """The rounded value; that of the last time, where nothing has changed since."""
        last, known, rounded = self._rounded.get(name, (None, None, None))
        if rounded is None or not (same(value, last) and same(encoding, known)):
            rounded = fake_quantize_array(np.asarray(value), encoding)
            self._rounded[name] = value, encoding, rounded
        return rounded

    def final(self, setting: Setting, metadata: Mapping[str, str] | None = None) -> Model:
        """The model to keep: traced anew with the layers of the setting in float, and with the very numbers that were tried."""
        parts = self.corrected(setting)
        own = self.switches.tensors_of(parts.plan)
        encodings = {name: parts.encodings[tensor] for name, tensor in own.items() if tensor in parts.encodings}
        encodings |= {name: parts.encodings[name] for name in parts.rounded}
        params = {name: value for name, value in parts.params.items() if name not in self.base.plan.copies}
        plain = Model(self.base.graph, params, metadata=FrozenDict({**self.base.metadata, **(metadata or {})}))
        model = parts.plan.prepare(plain)
        copies = {name: parts.params[name] for name in parts.plan.copies if name in parts.params}
        return model.replace(params={**model.params, **copies}, encodings=encodings)

    # ---------------------------------------------------------------------------------------------------------- counting

    def float_layers(self, setting: Setting) -> int:
        """How many layers with weights have them in float, of those that the full plan quantizes."""
        rounded = self.parts(setting).rounded
        return sum(bool(layer.weights) and rounded.isdisjoint(layer.weights) for layer in self.layers.values())

    @property
    def weight_layers(self) -> int:
        """How many layers with weights there are."""
        return sum(bool(layer.weights) for layer in self.layers.values())


def same(one: Any, other: Any) -> bool:
    """Whether two arrays, or trees of them, hold the same."""
    return one is other or all(
        np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


def widened(encoding: QuantParams) -> QuantParams:
    """The quantizer of the same range on the unsigned 16-bit grid."""
    scale, zero_point = np.asarray(encoding.scale, np.float64), np.asarray(encoding.zero_point, np.float64)
    low, high = ((end - zero_point) * scale for end in (float(encoding.qmin), float(encoding.qmax)))
    return asymmetric_params(Range(low, high), IntType(16, signed=False))


def _layers(base: Base) -> Iterable[Layer]:
    """The layers of the full plan, in the order of the graph."""
    nodes = {node.name: node for _, node in base.plan.graph.walk()}
    quantized = {weight.name for weight in base.plan.weights}
    leader: dict[str, str] = {}  # weight -> first node that reads it
    members: dict[str, list[str]] = {}
    for name in base.plan.nodes:
        weights = [tensor for tensor in nodes[name].inputs if tensor in quantized]
        first = next((leader[weight] for weight in weights if weight in leader), name)
        leader.update(dict.fromkeys(weights, first))
        members.setdefault(first, []).append(name)
    groups = base.plan.activations
    for first, names in members.items():
        reads = [tensor for name in names for tensor in nodes[name].inputs]
        yield Layer(
            first,
            nodes[first].op,
            tuple(names),
            tuple(dict.fromkeys(tensor for tensor in reads if tensor in quantized)),
            frozenset(groups[tensor] for tensor in reads if tensor in groups),
        )


def _owner(plan: Plan, bias: str) -> str | None:
    """The quantized node that a bias belongs to: it reads the bias, or makes what an Add adds it to."""
    for node, _ in plan.graph.consumers.get(bias, ()):
        if node.op == "Add":
            for name in node.inputs:
                maker = plan.graph.producers.get(name)
                while maker is not None and maker.op == "Identity":
                    maker = plan.graph.producers.get(maker.inputs[0])
                if maker is not None and maker.name in plan.nodes:
                    return maker.name
        if node.name in plan.nodes:
            return node.name
    return None
