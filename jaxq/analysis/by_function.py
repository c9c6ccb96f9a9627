"""Evaluates models by the user's own function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxq.analysis.metrics import Score, as_score
from jaxq.analysis.validation import EXACT, MOST_BYTES, QUANTIZED, Pool, Runnable, Scores, check_count
from jaxq.data import Dataset
from jaxq.data.fingerprint import digest_of
from jaxq.data.splitting import split_samples
from jaxq.engine.model import Model
from jaxq.errors import ConfigError, JaxqError
from jaxq.numerics.distance import output_distances


class Watched:
    """A model that remembers what it was called with, and what it gave.

    Attributes:
      calls: (feed, outputs) of each call, up to MOST_BYTES in all.
      counts: how many samples each call had.
    """

    def __init__(self, model: Runnable, axis: int | None):
        self._model, self._axis = model, axis
        self.calls: list[tuple[dict[str, Any], dict[str, np.ndarray]]] = []
        self.counts: list[int] = []
        self.bytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, inputs: Any) -> dict[str, Any]:
        outputs = self._model(inputs)
        given = self._model.feed(inputs)  # type: ignore[attr-defined]
        self.counts.append(len(self.samples(given)))
        if self.bytes <= MOST_BYTES:
            feed = {name: np.array(value) for name, value in given.items()}
            kept = {name: np.asarray(value) for name, value in outputs.items()}
            self.bytes += sum(value.nbytes for value in (*feed.values(), *kept.values()))
            self.calls.append((feed, kept))
        return outputs

    def samples(self, feed: Mapping[str, Any]) -> list[dict[str, Any]]:
        """A feed as feeds of one sample each."""
        static = self._model.graph.static_inputs  # type: ignore[attr-defined]
        return list(split_samples(self._model.inputs, [feed], static, self._axis))


class FunctionValidation:
    """Evaluates models by `validation_fn(model, items)`; higher is better, as in NNCF.

    Args:
      function: gets a compiled callable and the items of the data as they are (labels too); returns a number, or (number,
        one number for each sample), or for each item: those that lose most are the samples that layers are ranked on.
      dataset: the validation data.
    """

    directions: Mapping[str, bool] = {"validation_fn": True}
    known = False

    def __init__(self, function: Callable[[Any, Iterable[Any]], Any], dataset: Dataset):
        self.function, self.dataset = function, dataset
        self._count: int | None = None
        self.seen: dict[str, tuple[Watched, Score]] = {}

    def refer_to(self, exact: Model) -> None:
        """The function says itself what it compares with."""

    def evaluate(self, model: Runnable, role: str = "") -> Scores:
        """See `Validation`.

        Raises:
          ConfigError: the function fails, or what it returns is no number, or not one for each sample or item.
          CalibrationError: the data is empty, or gives another number of items than before.
        """
        if not role:
            return {"validation_fn": self._call(model)}
        watched = Watched(model, self.dataset.batch_axis)
        score = self._call(watched)
        self._check_count(score, watched)
        self.seen[role] = (watched, score)
        return {"validation_fn": score}

    def _check_count(self, score: Score, watched: Watched) -> None:
        """Refuses numbers that belong neither to the samples, nor to the calls, nor to the items."""
        samples, calls = sum(watched.counts), len(watched.counts)
        if score.samples is None or not calls or len(score.samples) in (samples, calls, self._count):
            return
        items = "" if self._count is None else f" from {self._count} items"
        raise ConfigError(
            f"validation_fn returned (number, {len(score.samples)} numbers) after {calls} calls of the model with {samples} "
            f"samples{items}; the second must have one number for each sample (or each item), in the order of the data, or be "
            "left out"
        )

    def _call(self, model: Runnable) -> Score:
        try:
            returned = self.function(model, self._items())
        except JaxqError as error:
            error.args = (f"in validation_fn: {error}",)
            raise
        except Exception as error:
            raise ConfigError(f"validation_fn failed: {type(error).__name__}: {error}") from error
        return as_score(returned, "validation_fn")

    def _items(self) -> Iterator[Any]:
        count = 0
        for item in self.dataset.items():
            yield item
            count += 1
        self._count = check_count(self._count, count, "items")

    def pool(self, part: float = 1.0) -> Pool:
        """See `Validation`; found by watching the calls of the model inside of the function."""
        watched, scores = zip(*(self.seen[role] for role in (EXACT, QUANTIZED)), strict=True)
        moved: list[float] = []
        feeds: list[dict[str, Any]] = []
        for (feed, before), (other, after) in zip(*(each.calls for each in watched), strict=False):
            same = digest_of(feed) == digest_of(other)
            rows = watched[0].samples(feed)
            if same and len(rows) > 1 and all(value.shape[:1] == (len(rows),) for value in before.values()):
                moved.extend(output_distances(before, after))
            else:
                whole = [{name: value[None] for name, value in each.items()} for each in (before, after)]
                moved.extend(np.repeat(output_distances(*whole) if same else 0.0, len(rows)))
            feeds.extend(rows)
        if not feeds:
            raise ConfigError("validation_fn never called the model that it was given; it has to evaluate that model")
        lost = _lost(scores, watched)
        return Pool(list(zip(lost[: len(feeds)].tolist(), map(float, moved), feeds, strict=True)), part)


def _lost(scores: Sequence[Score], watched: Sequence[Watched]) -> np.ndarray:
    """What each sample loses of the metric, as far as that is known (float64 [samples]); else zeros."""
    before, after = (score.samples for score in scores)
    counts = watched[0].counts
    nothing = np.zeros(sum(counts))
    if before is None or after is None or len(before) != len(after) or counts != watched[1].counts:
        return nothing
    if len(before) == len(nothing):
        return before - after
    return np.repeat(before - after, counts) if len(before) == len(counts) else nothing
