"""Which layers cost most accuracy: by quantizing each alone, by one backward pass for all of them, or by reverting each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxq.accuracy.space import Setting, Space
from jaxq.accuracy.validation import MOST_BYTES
from jaxq.engine.batching import batches, fitting_batch
from jaxq.engine.runner import Batch, Network, Slopes, run
from jaxq.engine.stages import Walk, run_batch, walk
from jaxq.engine.traced import Signature, signed
from jaxq.errors import ConfigError
from jaxq.numerics.distance import TINY, difference, output_distances
from jaxq.numerics.quantizer import QuantParams, fake_quantize
from jaxq.progress import track

# Bytes for what a backward pass keeps: all activations of a batch.
BACKWARD_BYTES = {"cpu": 256 << 20, "gpu": 8 << 30, "tpu": 4 << 30}
LARGEST_BATCH = 16


class Ranked(NamedTuple):
    """A layer and what reverting it is estimated to gain: the part of the divergence from the float outputs."""

    layer: str
    gain: float
    exact: bool  # measured by itself


Batches = list[tuple[Signature, Batch, dict[str, Any]]]


class Ranker:
    """Ranks the layers of a space on a few samples.

    The divergence is the squared distance of the outputs from those of the float model, over the squared size of these. It is
    finer than a metric that counts hits: with a few hundred samples most layers change no hit, or the same number of them.

    Measuring runs the program that evaluates candidates, in batches of the same size, so that it compiles nothing.

    Args:
      space: the layers.
      feeds: one sample each.
      step: what reverting a layer means.
      batch_size: samples run at a time; None chooses.
      tick: called before each measurement; it may raise to end the ranking.
    """

    def __init__(
        self,
        space: Space,
        feeds: Sequence[Mapping[str, Any]],
        step: str,
        batch_size: int | None = None,
        tick: Callable[[], None] = lambda: None,
    ):
        self.space, self.feeds, self.step, self.batch_size, self.tick = space, feeds, step, batch_size, tick
        self.float_model = space.float_model()
        self._alone: dict[tuple[tuple[str, str], ...], list[Ranked]] = {}
        self._walks: list[Walk] = []  # of the first batches

    def alone(self, setting: Setting) -> list[Ranked]:
        """The layers that a setting leaves quantized, the one first that moves the outputs furthest when it alone is quantized.

        The float end is where errors of single layers can be told apart: they add up nearly as independent noise does, and are
        not hidden by those of the others, which in a model that quantization has broken they are, for any way of measuring there.
        What else is reverted plays no part, so that one ranking serves a whole search.
        """
        start = {layer: step for layer, step in setting.items() if step != self.step}
        key = tuple(sorted(start.items()))
        if key not in self._alone:
            self._alone[key] = self.costs(dict.fromkeys(self.space.layers, self.step), start)[::-1]
        return [each for each in self._alone[key] if setting.get(each.layer) != self.step]

    def by_gradient(self, setting: Setting, confirm: int = 0) -> list[Ranked]:
        """The layers that a setting leaves quantized, the one with the largest gain first.

        Let alpha_s blend the exact and the rounded value of quantizer s, x + alpha_s (x^ - x), with rounding differentiated
        straight through. Then d divergence / d alpha_s at alpha = 1 estimates what taking s away gains; a layer's gain is the sum
        over the quantizers that go with it. The first `confirm` layers are then measured by themselves, and put in order.
        """
        slopes = self._slopes(setting)
        if not np.isfinite(list(slopes.values())).all():  # the outputs are no numbers there, and no slope tells why
            return self.alone(setting)
        now = self.space.parts(setting).changed
        gains = {
            layer: sum(slopes[name] for name in now - self.space.parts({**setting, layer: self.step}).changed)
            for layer in self._left(setting)
        }
        order = sorted(gains, key=lambda layer: -gains[layer])
        ranked = [Ranked(layer, gains[layer], False) for layer in order]
        sure = self._measured(setting, order[:confirm])
        return [*sure, *ranked[len(sure) :]]

    def exactly(self, setting: Setting) -> list[Ranked]:
        """The same by reverting each of these layers alone."""
        return self._measured(setting, self._left(setting))

    def costs(self, setting: Setting, start: Setting) -> list[Ranked]:
        """What each layer of a setting adds to the divergence when it is put back alone; the smallest first.

        Biases are not corrected, which would move them all for each layer: it is the rounding of the layer that counts.
        """
        before = self.divergence(setting, corrected=False, remember=True)
        found = []
        layers = [name for name in setting if setting[name] != start.get(name)]
        for layer in track(layers, "ranking", len(layers)):
            less = {name: step for name, step in setting.items() if name != layer}
            less |= {layer: start[layer]} if layer in start else {}
            found.append(Ranked(layer, difference(self.divergence(less, corrected=False), before), True))
        return sorted(found, key=lambda each: each.gain)

    def _left(self, setting: Setting) -> list[str]:
        return [layer for layer in self.space.layers if setting.get(layer) != self.step]

    def _measured(self, setting: Setting, layers: Sequence[str]) -> list[Ranked]:
        """What reverting each of these layers gains; as in `costs`, biases are not corrected."""
        if not layers:
            return []
        before = self.divergence(setting, corrected=False, remember=True)
        gains = [
            difference(before, self.divergence({**setting, layer: self.step}, corrected=False))
            for layer in track(layers, "ranking", len(layers))
        ]
        order = np.argsort(-np.asarray(gains), kind="stable")
        return [Ranked(layers[place], gains[place], True) for place in order]

    def divergence(self, setting: Setting, *, corrected: bool = True, remember: bool = False) -> float:
        """The mean divergence of a setting over the samples.

        What the setting has in common with the one that was last to be remembered is not computed again.
        """
        self.tick()
        model = self.space.candidate(setting, corrected=corrected)
        total, count, room = 0.0, 0, MOST_BYTES if remember else 0
        before, self._walks = self._walks, [] if remember else self._walks
        for number, (signature, batch, reference) in enumerate(self.batches):
            done = walk(model, signature, batch, before[number] if number < len(before) else None)
            room -= done.nbytes
            if room > 0:
                self._walks.append(done)
            real = np.asarray(batch.real)
            total += float(output_distances(reference, jax.device_get(done.outputs))[real].sum())
            count += int(real.sum())
        return total / count

    @functools.cached_property
    def batches(self) -> Batches:
        """The samples in batches, with the outputs of the float model."""
        made = batches(self.float_model, self.feeds, self.batch_size)
        return [(signature, batch, run_batch(self.float_model, signature, batch)) for signature, batch in made]

    # ----------------------------------------------------------------------------------------------------- the gradient

    def _slopes(self, setting: Setting) -> dict[str, float]:
        """d divergence / d alpha of every quantizer that is on; the same program for every setting."""
        now, most = self.space.parts(setting).changed, self.space.parts({}).changed
        candidate = self.space.candidate(setting)
        _, params, encodings = candidate.program
        exact = self.float_model.program.params
        names = sorted(encodings.keys() | most)
        blended = {name: params[name] for name in names if name in params}
        alpha = {name: np.float32(name in now) for name in names}
        total: dict[str, float] = dict.fromkeys(names, 0.0)
        count = 0
        for signature, batch in track(self._smaller_batches, "ranking"):
            head = candidate.laid_out(candidate.traced(signature).head)
            try:
                _, slopes = run(
                    _blended, Slopes(), (head,), signature.static, batch, (alpha, exact, blended, encodings)
                )
            except ValueError as error:
                if "Reverse-mode" not in str(error):
                    raise
                raise ConfigError(
                    "ranking 'gradient' does not go through a loop of which only the data know how often it turns; take "
                    "'alone' or 'exact'"
                ) from None
            for name, slope in jax.device_get(slopes).items():
                total[name] += float(slope)
            count += int(np.asarray(batch.real).sum())
        return {name: slope / count for name, slope in total.items()}

    @functools.cached_property
    def _smaller_batches(self) -> list[tuple[Signature, Batch]]:
        """The same samples in batches whose activations a backward pass can keep, with the float model's outputs beside them."""
        wanted = {
            int(number): {name: value[row] for name, value in reference.items()}
            for _, batch, reference in self.batches
            for row, number in enumerate(np.asarray(batch.number))
        }
        outputs = [wanted[number] for number in range(len(self.feeds))]
        return list(batches(self.float_model, self.feeds, self.batch_size or self._fitting, outputs))

    @property
    def _fitting(self) -> int:
        """Samples whose activations a backward pass can keep; estimated by the largest tensor."""
        signature, _ = signed(self.float_model.graph, self.feeds[0])
        largest = self.float_model.traced(signature).largest
        return fitting_batch(largest * 16, BACKWARD_BYTES, min(LARGEST_BATCH, len(self.feeds)))


def _blended(networks: tuple[Network, ...], numbers: Any, sample: Batch) -> jax.Array:
    """The divergence of a sample from the outputs beside it, when tensors and params are rounded by parts alpha.

    The numbers: alpha, the exact params, the rounded ones, and encodings.
    """
    alpha, exact, rounded, encodings = numbers

    def blend(name: str, value: Any, other: Any) -> Any:
        return value + alpha[name].astype(value.dtype) * (other - value)

    params = {name: blend(name, value, rounded[name]) if name in rounded else value for name, value in exact.items()}

    def tap(name: str, value: Any, carry: Any) -> tuple[Any, Any]:
        return (blend(name, value, _always(value, encodings[name])) if name in encodings else value), carry

    outputs = networks[0](params, sample.inputs, tap=tap)[0]
    floats = {name: value for name, value in sample.beside.items() if jnp.issubdtype(value.dtype, jnp.floating)}
    return jnp.asarray(sum(_distance(value, outputs[name]) for name, value in floats.items()), jnp.float32)


def _distance(expected: Any, found: Any) -> Any:
    """`jaxq.numerics.distance`, with a gradient; NaN or infinity that is found where a number was expected makes it none."""
    known = jnp.isfinite(expected)
    expected, found = (jnp.where(known, each, 0) for each in (expected, found))
    return jnp.sum((found - expected) ** 2) / jnp.maximum(jnp.sum(expected**2), TINY)


def _always(value: Any, encoding: QuantParams) -> Any:
    """The rounded value, whether the quantizer is on or off."""
    return fake_quantize(value, replace(encoding, enabled=jnp.bool_(True)))
