"""Every model that the search may come to, as choices of arrays for one compiled program.

A *layer* is what is treated alike: a node, and the nodes that share its weight. A *setting* says what is done to which layer;
layers that it does not name are quantized as planned. What follows from a setting (which quantizers go with a layer, which stay
because another one needs them) is what placement says when these nodes are ignored, and nothing else: the model that is tried
and the model that is written come from the same plan.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxq.accuracy.base import Base, quantize_once, restored
from jaxq.accuracy.store import Store
from jaxq.accuracy.treatments import AS_PLANNED, Setting, Treatment
from jaxq.algorithms.calibration import with_biases
from jaxq.engine.model import Model
from jaxq.engine.stages import same_numbers
from jaxq.graph.ir import FrozenDict
from jaxq.numerics.quantizer import QuantParams, fake_quantize_array
from jaxq.numerics.ranges import on_grid
from jaxq.pipeline import Prepared, planned
from jaxq.placement.plan import Bias, BiasForm, Plan
from jaxq.placement.switches import Switches, add_switches, layers_of


@dataclass(frozen=True)
class Parts:
    """A setting spelled out: which names are rounded, and with which numbers."""

    plan: Plan
    switches: frozenset[str]  # of activations, that are on
    biases: Mapping[str, Any]  # those that are corrected, in float
    rounded: frozenset[str]  # params that are rounded
    encodings: Mapping[str, QuantParams]  # by tensor of the full plan, or param

    @property
    def changed(self) -> frozenset[str]:
        """Everything that sets the model apart from the float one: switches, and params."""
        return self.switches | self.rounded | self.biases.keys()


class Space:
    """The models that differ from a quantized one in what is done to its layers.

    Attributes:
      layers: name -> layer, in the order of the graph.
      switches: the graph of the program, and where it can be switched.
    """

    def __init__(self, base: Base):
        self.base, self.plan = base, base.prepared.plan
        self.switches: Switches = add_switches(base.prepared.graph, self.plan)
        self.first = next(iter(base.encodings.values()))
        self.layers = {layer.name: layer for layer in layers_of(self.plan)}
        self._owners = {bias: self.plan.owner(bias) for bias in base.corrected}
        # All candidates share with it, and with the model that was given, what is on the device.
        self._model = base.prepared.model.replace(graph=self.switches.graph, params=base.exact, encodings={})
        self._rounded: dict[str, tuple[Any, QuantParams, np.ndarray]] = {}  # param -> value, encoding, rounded value
        self._corrections: dict[frozenset[tuple[str, Treatment]], dict[str, np.ndarray]] = {}
        self._plans: dict[frozenset[str], Plan] = {frozenset(): self.plan}

    # ------------------------------------------------------------------------------------------------- what a setting means

    def parts(self, setting: Setting) -> Parts:
        """What a setting does to every quantizer."""
        base, treated = self.base, [(self.layers[name], each) for name, each in setting.items()]
        of_node = {name: each for layer, each in treated for name in layer.nodes}
        of_weight = {name: each for layer, each in treated for name in layer.weights}
        of_group = {name: each for layer, each in treated if each.own_ranges for name in layer.inputs}
        plan = self._plan(frozenset(node for node, each in of_node.items() if not each.activations))
        integer = {node for node, each in of_node.items() if each.weights_alone}.union(plan.nodes)
        biases = {
            bias: base.corrected[bias]
            for bias, owner in self._owners.items()
            if owner is None or (owner in integer and of_node.get(owner, AS_PLANNED).corrected)
        }
        read = {name: of_group.get(self.plan.activations[name], AS_PLANNED) for name in self.first}
        ranges = {name: base.encodings.get(each.estimator or "", self.first)[name] for name, each in read.items()}
        activations = {name: on_grid(ranges[name], each.activation_bits) for name, each in read.items()}
        rounded = {name for name, each in of_weight.items() if each.weights_alone}
        rounded.update(weight.name for weight in plan.weights)
        weights = {
            name: on_grid(each, of_weight.get(name, AS_PLANNED).weight_bits, signed=True)
            for name, each in base.weights.items()
            if name in rounded
        }
        wide = {name for name, each in read.items() if each.activation_bits}
        params = {**base.exact, **biases}
        encodings = with_biases(activations | weights, params, self._biases(plan, wide))
        # What no sample ever made has no range.
        on = frozenset(name for name in self.switches.on(plan) if self.switches.tensors[name] in activations)
        return Parts(plan, on, biases, frozenset(encodings).intersection(params), encodings)

    def _plan(self, ignored: frozenset[str]) -> Plan:
        if ignored not in self._plans:
            self._plans[ignored] = self.base.prepared.place(ignored)
        return self._plans[ignored]

    def _biases(self, plan: Plan, wide: Collection[str]) -> tuple[Bias, ...]:
        """The biases of a plan in the names of the full one.

        16 bits make the unit of the products so small that int32 would not hold a bias: it gets one of its own.
        """
        own = self.switches.tensors_of(plan)
        biases = (
            replace(each, activation=own.get(each.activation, ""), weight=own.get(each.weight, each.weight))
            for each in plan.biases
        )
        return tuple(replace(each, form=BiasForm.OWN) if each.activation in wide else each for each in biases)

    # ------------------------------------------------------------------------------------------------------------- models

    def candidate(self, setting: Setting, *, corrected: bool = True) -> Model:
        """The model for trying a setting: the same program for every setting, of which only the arrays differ.

        Without `corrected` its biases are those of the float model, rounded.
        """
        parts = self.corrected(setting) if corrected else replace(self.parts(setting), biases={})
        params = {
            name: self._round(name, value, parts.encodings[name]) if name in parts.rounded else value
            for name, value in {**self.base.exact, **parts.biases}.items()
        }
        return self._model.replace(params=params, encodings=self._switched(parts, parts.switches))

    def corrected(self, setting: Setting) -> Parts:
        """The parts of a setting, with biases corrected for what this setting rounds.

        The correction for all quantizers makes up, in late layers, for errors of early ones; where those went back to float it
        does harm.
        """
        parts = self.parts(setting)
        if self.base.correction is None or not parts.biases or not setting:
            return parts
        key = frozenset(setting.items())
        if key not in self._corrections:
            self._corrections[key] = self.correction(parts)
        return replace(parts, biases=self._corrections[key])

    def correction(self, parts: Parts) -> dict[str, np.ndarray]:
        """The biases that may move, corrected for what these parts round; by the same compiled program for all."""
        assert self.base.correction is not None, "the base has a bias correction"
        weights = {name: parts.encodings[name] for name in parts.rounded - parts.biases.keys()}
        found = self.base.correction(self._model.replace(encodings=self._switched(parts, parts.switches) | weights))
        return {name: np.asarray(found[name]) for name in parts.biases}

    def float_model(self) -> Model:
        """The same program with every quantizer off."""
        return self._model.replace(encodings=self._switched(self.parts({}), frozenset()))

    def _switched(self, parts: Parts, on: frozenset[str]) -> dict[str, QuantParams]:
        return {
            switch: replace(parts.encodings[tensor], enabled=np.bool_(switch in on))
            for switch, tensor in self.switches.tensors.items()
            if tensor in parts.encodings
        }

    def _round(self, name: str, value: Any, encoding: QuantParams) -> np.ndarray:
        """The rounded value; that of the last time, where nothing has changed since."""
        last, known, rounded = self._rounded.get(name, (None, None, None))
        if rounded is None or not (same_numbers(value, last) and same_numbers(encoding, known)):
            rounded = fake_quantize_array(np.asarray(value), encoding)
            self._rounded[name] = value, encoding, rounded
        return rounded

    def final(self, setting: Setting, metadata: Mapping[str, str] | None = None) -> Model:
        """The model to keep: traced anew with the layers of the setting in float, and with the very numbers that were tried."""
        parts, base = self.corrected(setting), self.base
        own = self.switches.tensors_of(parts.plan)
        encodings = {name: parts.encodings[tensor] for name, tensor in own.items() if tensor in parts.encodings}
        encodings |= {name: parts.encodings[name] for name in parts.rounded}
        params = {**base.exact, **parts.biases}
        given = {name: value for name, value in params.items() if name not in self.plan.copies}
        plain = Model(base.prepared.graph, given, metadata=FrozenDict({**base.metadata, **(metadata or {})}))
        model = planned(plain, parts.plan)
        copies = {name: params[name] for name in parts.plan.copies if name in params}
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


def open_space(prepared: Prepared, estimators: Sequence[str], store: Store) -> Space:
    """The variants of a model that is taken from the store, or else quantized now and stored.

    Args:
      estimators: names of range estimators that treatments may ask for.
    """
    preset = prepared.options.resolved_preset.value
    stored = store.load_base(preset)
    if stored is not None and {("encoding", each) for each in estimators} <= {name[:2] for name in stored[0]}:
        return Space(restored(prepared, *stored))
    base = quantized(prepared, estimators)
    store.save_base(preset, base.arrays(), base.metadata)
    return Space(base)


def quantized(prepared: Prepared, estimators: Sequence[str] = ()) -> Base:
    """The base, with biases corrected for all quantizers: by the program, and beside the float network, of any candidate."""
    base = quantize_once(prepared, estimators)
    if base.correction is None:
        return base
    space = Space(replace(base, corrected={site.bias: base.exact[site.bias] for site in base.correction.step.sites}))
    found = space.correction(space.parts({}))
    moved = {name: each for name, each in found.items() if not np.array_equal(each, base.exact[name])}
    return replace(base, corrected=moved)
