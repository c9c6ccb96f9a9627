"""Which layers cost most accuracy: by quantizing each alone, by one backward pass for all of them, or by reverting each.

Rankings are made when they are asked for, on the samples that quantization hurts most, and remembered in the store.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxq.accuracy.options import AdvancedAccuracyRestorerParameters, Ranking
from jaxq.accuracy.search import without
from jaxq.accuracy.space import Space
from jaxq.accuracy.store import Ranked
from jaxq.accuracy.treatments import Setting, Treatment, named
from jaxq.accuracy.trials import Trials
from jaxq.analysis.sensitivity import Batches, slopes, smaller_batches
from jaxq.analysis.validation import EXACT, MOST_BYTES, QUANTIZED, Pool
from jaxq.engine.batching import batches
from jaxq.engine.model import Model
from jaxq.engine.runner import Batch
from jaxq.engine.stages import StagesRun, run_batch, run_stages
from jaxq.engine.traced import Signature
from jaxq.numerics.distance import difference, output_distances
from jaxq.progress import track

SUBSET = {Ranking.ALONE: 8, Ranking.GRADIENT: 32, Ranking.EXACT: 300}  # samples to rank on
# The order of layers that are quantized alone is settled then: already two samples give nearly the same.
MOST_ALONE = 32
# Samples of so many output numbers together are as good, but for two: an image has as many as many samples of a classifier.
ENOUGH_NUMBERS = 1 << 16


class Ranker:
    """Ranks the layers of a space on a few samples.

    The divergence is the squared distance of the outputs from those of the float model, over the squared size of these. It is
    finer than a metric that counts hits: with a few hundred samples most layers change no hit, or the same number of them.

    Measuring runs the program that evaluates candidates, in batches of the same size, so that it compiles nothing.

    Args:
      space: the layers.
      feeds: one sample each.
      revert: what reverting a layer means.
      batch_size: samples run at a time; None chooses.
      tick: called before each measurement; it may raise to end the ranking.
    """

    def __init__(
        self,
        space: Space,
        feeds: Sequence[Mapping[str, Any]],
        revert: Treatment,
        batch_size: int | None = None,
        tick: Callable[[], None] = lambda: None,
    ):
        self.space, self.feeds, self.revert, self.batch_size, self.tick = space, feeds, revert, batch_size, tick
        self.float_model = space.float_model()
        self._alone: dict[frozenset[tuple[str, Treatment]], list[Ranked]] = {}
        self._walks: list[StagesRun] = []  # of the first batches

    def alone(self, setting: Setting) -> list[Ranked]:
        """The layers that a setting leaves quantized, the one first that moves the outputs furthest when it alone is quantized.

        The float end is where errors of single layers can be told apart: they add up nearly as independent noise does, and are
        not hidden by those of the others, which in a model that quantization has broken they are, for any way of measuring there.
        What else is reverted plays no part, so that one ranking serves a whole search.
        """
        start = {layer: each for layer, each in setting.items() if each != self.revert}
        key = frozenset(start.items())
        if key not in self._alone:
            self._alone[key] = self.costs(dict.fromkeys(self.space.layers, self.revert), start)[::-1]
        return [each for each in self._alone[key] if setting.get(each.layer) != self.revert]

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
            layer: sum(slopes[name] for name in sorted(now - self.space.parts({**setting, layer: self.revert}).changed))
            for layer in self._left(setting)
        }
        order = sorted(gains, key=lambda layer: -gains[layer])
        sure = self._measured(setting, order[:confirm])
        return [*sure, *(Ranked(layer, gains[layer], False) for layer in order[len(sure) :])]

    def exactly(self, setting: Setting) -> list[Ranked]:
        """The same by reverting each of these layers alone."""
        return self._measured(setting, self._left(setting))

    def costs(self, setting: Setting, start: Setting) -> list[Ranked]:
        """What each layer of a setting adds to the divergence when it is put back alone; the smallest first.

        Biases are not corrected, which would move them all for each layer: it is the rounding of the layer that counts.
        """
        others = {layer: without(setting, [layer], start) for layer in setting if setting[layer] != start.get(layer)}
        before, after = self._divergences(setting, others)
        found = [Ranked(layer, difference(each, before), True) for layer, each in after.items()]
        return sorted(found, key=lambda each: each.gain)

    def _left(self, setting: Setting) -> list[str]:
        return [layer for layer in self.space.layers if setting.get(layer) != self.revert]

    def _measured(self, setting: Setting, layers: Sequence[str]) -> list[Ranked]:
        """What reverting each of these layers gains; as in `costs`, biases are not corrected."""
        if not layers:
            return []
        before, after = self._divergences(setting, {layer: {**setting, layer: self.revert} for layer in layers})
        gains = [difference(before, each) for each in after.values()]
        return [Ranked(layers[place], gains[place], True) for place in np.argsort(-np.asarray(gains), kind="stable")]

    def _divergences(self, setting: Setting, others: Mapping[str, Setting]) -> tuple[float, dict[str, float]]:
        """Those of a setting, and of others that have much in common with it; without correction of biases."""
        before = self.divergence(setting, corrected=False, remember=True)
        each = track(others.items(), "ranking", len(others))
        return before, {name: self.divergence(other, corrected=False) for name, other in each}

    def divergence(self, setting: Setting, *, corrected: bool = True, remember: bool = False) -> float:
        """The mean divergence of a setting over the samples.

        What the setting has in common with the one that was last to be remembered is not computed again.
        """
        self.tick()
        model = self.space.candidate(setting, corrected=corrected)
        total, count, room = 0.0, 0, MOST_BYTES if remember else 0
        before, self._walks = self._walks, [] if remember else self._walks
        for number, (signature, batch, reference) in enumerate(self.batches):
            done = run_stages(model, signature, batch, before[number] if number < len(before) else None)
            room -= done.nbytes
            if room > 0:
                self._walks.append(done)
            real = np.asarray(batch.real)
            total += float(output_distances(reference, jax.device_get(done.outputs))[real].sum())
            count += int(real.sum())
        return total / count

    @functools.cached_property
    def batches(self) -> list[tuple[Signature, Batch, dict[str, Any]]]:
        """The samples in batches, with the outputs of the float model."""
        made = batches(self.float_model, self.feeds, self.batch_size)
        return [(signature, batch, run_batch(self.float_model, signature, batch)) for signature, batch in made]

    def _slopes(self, setting: Setting) -> dict[str, float]:
        """d divergence / d alpha of every quantizer that is on; the same program for every setting."""
        now, most = self.space.parts(setting).changed, self.space.parts({}).changed
        model = self.space.candidate(setting)
        names = sorted(model.program.encodings.keys() | most)
        return slopes(self.float_model, model, names, now, self._smaller_batches)

    @functools.cached_property
    def _smaller_batches(self) -> Batches:
        wanted = {
            int(number): {name: value[row] for name, value in reference.items()}
            for _, batch, reference in self.batches
            for row, number in enumerate(np.asarray(batch.number))
        }
        outputs = [wanted[number] for number in range(len(self.feeds))]
        return smaller_batches(self.float_model, self.feeds, outputs, self.batch_size)


@dataclass
class Rankings:
    """The rankings of one space, as the options say.

    Args:
      space: the layers.
      advanced: how to rank, and on how many samples.
      trials: has the validation, whose samples they are, the store and the clock; is told of each ranking.
    """

    space: Space
    advanced: AdvancedAccuracyRestorerParameters
    trials: Trials

    def rank(self, setting: Setting) -> list[str]:
        """The layers that the setting leaves quantized, the costliest first."""
        make = {
            Ranking.ALONE: lambda: self.ranker.alone(setting),
            Ranking.EXACT: lambda: self.ranker.exactly(setting),
            Ranking.GRADIENT: lambda: self.ranker.by_gradient(setting, self.advanced.confirm),
        }
        self.trials.ranked = self._remembered("rank", setting, {}, make[Ranking(self.advanced.ranking)])
        return [each.layer for each in self.trials.ranked]

    def costs(self, setting: Setting, start: Setting) -> list[str]:
        """The layers that a setting changes, the one that costs least when it is put back first."""
        found = self._remembered("costs", setting, start, lambda: self.ranker.costs(setting, start))
        return [each.layer for each in found]

    def fewest(self) -> int:
        """How many layers of the last ranking have to be reverted at least.

        What layers do alone adds up, about. Where that is more than 1, the outputs have as little to do with those of the float
        model as zeros would have: of no use in any metric, and no trial is spent on it.
        """
        if self.advanced.ranking is not Ranking.ALONE:
            return 1
        left = np.cumsum([each.gain for each in reversed(self.trials.ranked)])[::-1]  # by the layers from each on
        return max(1, int(np.sum(left > 1)))

    def _remembered(
        self, what: str, setting: Setting, start: Setting, measured: Callable[[], list[Ranked]]
    ) -> list[Ranked]:
        """In another manner (all that the options decide about a ranking), it is another ranking."""
        advanced = self.advanced
        confirm = advanced.confirm if advanced.ranking is Ranking.GRADIENT else None
        manner = [advanced.ranking, confirm, advanced.revert.name, advanced.ranking_subset_size, self.part]
        settings = [sorted(named(each).items()) for each in (setting, start)]
        place = json.dumps([what, self.space.base.preset, *settings, manner])
        return self.trials.store.ranking(place, lambda: self.trials.timed("ranking", measured))

    @property
    def part(self) -> float:
        """How much of the data the samples to rank on are chosen from."""
        return self.advanced.metric_subset_ratio if self.advanced.has_baseline else 1.0

    @functools.cached_property
    def ranker(self) -> Ranker:
        """Ranks on the samples that quantization hurts most."""
        validation, exact = self.trials.validation, self.space.float_model()
        for role, model in ((EXACT, exact), (QUANTIZED, self.space.candidate({}))):
            if role not in validation.seen:  # an earlier run has evaluated it, or its value was given
                validation.evaluate(model, role)
        samples = self.subset(validation.pool(self.part), exact)
        size = self.space.base.prepared.options.batch_size
        return Ranker(self.space, samples, self.advanced.revert, size, self.trials.check_time)

    def subset(self, pool: Pool, model: Model) -> list[dict[str, Any]]:
        """The samples to rank on."""
        size = self.advanced.ranking_subset_size
        if self.advanced.ranking is not Ranking.ALONE:
            return pool.worst(size or SUBSET[Ranking(self.advanced.ranking)])
        if size is None:
            shapes = model.traced(pool.feeds[0]).tensors
            numbers = sum(shapes[name].size for name in model.graph.outputs if name in shapes)
            size = min(SUBSET[Ranking.ALONE], max(2, ENOUGH_NUMBERS // max(numbers, 1)))
        return pool.worst(min(size, MOST_ALONE))
