"""In which order layers are tried: rankings are made when they are asked for, and remembered in the state."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxq.accuracy.journal import Journal
from jaxq.accuracy.options import AdvancedAccuracyRestorerParameters, Ranking
from jaxq.accuracy.ranking import Ranked, Ranker
from jaxq.accuracy.space import Setting, Space
from jaxq.accuracy.state import State
from jaxq.accuracy.validation import EXACT, QUANTIZED, Pool, Validation
from jaxq.engine.traced import signed

SUBSET = {Ranking.ALONE: 8, Ranking.GRADIENT: 32, Ranking.EXACT: 300}  # samples to rank on
# The order of layers that are quantized alone is settled then: already two samples give nearly the same.
MOST_ALONE = 32
# Samples of so many output numbers together are as good, but for two: an image has as many as many samples of a classifier.
ENOUGH_NUMBERS = 1 << 16


class Rankings:
    """The rankings of the layers of one space.

    Args:
      space: the layers.
      preset: what the space was calibrated for.
      advanced: how to rank, and on how many samples.
      validation: has the samples.
      state, journal: where rankings are remembered, and their times.
      batch_size: samples run at a time; None chooses.
      tick: called before each measurement; it may raise to end the search.

    Attributes:
      last: the ranking that was asked for last.
    """

    def __init__(
        self,
        space: Space,
        preset: str,
        advanced: AdvancedAccuracyRestorerParameters,
        validation: Validation,
        state: State,
        journal: Journal,
        batch_size: int | None,
        tick: Callable[[], None],
    ):
        self.space, self.preset, self.advanced, self.validation = space, preset, advanced, validation
        self.state, self.journal, self.batch_size, self.tick = state, journal, batch_size, tick
        self.last: list[Ranked] = []

    def rank(self, setting: Setting) -> list[str]:
        """The layers that the setting leaves quantized, the costliest first."""

        def measured() -> list[Ranked]:
            if self.advanced.ranking is Ranking.ALONE:
                return self.ranker.alone(setting)
            if self.advanced.ranking is Ranking.EXACT:
                return self.ranker.exactly(setting)
            return self.ranker.by_gradient(setting, self.advanced.confirm)

        self.last = self._remembered("rank", setting, {}, measured)
        return [each.layer for each in self.last]

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
        left = np.cumsum([each.gain for each in reversed(self.last)])[::-1]  # by the layers from each on
        return max(1, int(np.sum(left > 1)))

    def _remembered(
        self, what: str, setting: Setting, start: Setting, measured: Callable[[], list[Ranked]]
    ) -> list[Ranked]:
        place = json.dumps([what, self.preset, sorted(setting.items()), sorted(start.items()), self.manner])
        if place not in self.state.rankings:
            with self.journal.timed("ranking"):
                self.state.rankings[place] = [list(each) for each in measured()]
            self.state.save()
        return [Ranked(*each) for each in self.state.rankings[place]]

    @functools.cached_property
    def manner(self) -> list[Any]:
        """All that the options decide about a ranking: in another manner, it is another ranking."""
        advanced = self.advanced
        confirm = advanced.confirm if advanced.ranking is Ranking.GRADIENT else None
        return [advanced.ranking, confirm, advanced.steps[-1], advanced.ranking_subset_size, self.part]

    @property
    def part(self) -> float:
        """How much of the data the samples to rank on are chosen from."""
        known = self.advanced.metrics and all(metric.baseline_value is not None for metric in self.advanced.metrics)
        return self.advanced.metric_subset_ratio if known else 1.0

    @functools.cached_property
    def ranker(self) -> Ranker:
        """Ranks on the samples that quantization hurts most."""
        for role, model in ((EXACT, self.space.float_model()), (QUANTIZED, self.space.candidate({}))):
            if role not in self.validation.seen:  # an earlier run has evaluated it, or its value was given
                self.validation.evaluate(model, role)
        samples = self.subset(self.validation.pool(self.part))
        return Ranker(self.space, samples, self.advanced.steps[-1], self.batch_size, self.tick)

    def subset(self, pool: Pool) -> list[dict[str, Any]]:
        """The samples to rank on."""
        size = self.advanced.ranking_subset_size
        if self.advanced.ranking is not Ranking.ALONE:
            return pool.worst(size or SUBSET[Ranking(self.advanced.ranking)])
        if size is None:
            model = self.space.float_model()
            shapes = model.traced(signed(model.graph, pool.feeds[0])[0]).tensors
            numbers = sum(shapes[name].size for name in model.graph.outputs if name in shapes)
            size = min(SUBSET[Ranking.ALONE], max(2, ENOUGH_NUMBERS // max(numbers, 1)))
        return pool.worst(min(size, MOST_ALONE))
