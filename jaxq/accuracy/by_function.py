"""Evaluates models by the user's own function."""

from __future__ import annotations

import hashlib
import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from jaxq.accuracy.validation import (
    EXACT,
    MOST_BYTES,
    QUANTIZED,
    Pool,
    Runnable,
    Scores,
    distances,
    filled,
)
from jaxq.collect import split_samples
from jaxq.data import Dataset
from jaxq.errors import CalibrationError, ConfigError, JaxqError, JaxqWarning
from jaxq.metrics import Score, as_score

PROBED = 4  # items on which the user's function is called twice


class Watched:
    """A model that remembers what it was called with, and what it gave."""

    def __init__(self, model: Runnable):
        self._model = model
        self.calls: list[tuple[dict[str, Any], dict[str, np.ndarray]]] = []
        self.bytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, inputs: Any) -> dict[str, Any]:
        outputs = self._model(inputs)
        if self.bytes <= MOST_BYTES:
            feed = {name: np.array(value) for name, value in self._model.feed(inputs).items()}  # type: ignore[attr-defined]
            kept = {name: np.asarray(value) for name, value in outputs.items()}
            self.bytes += sum(value.nbytes for value in (*feed.values(), *kept.values()))
            self.calls.append((feed, kept))
        return outputs


class FunctionValidation:
    """Evaluates models by `validation_fn(model, items)`; higher is better, as in NNCF.

    Args:
      function: gets a compiled callable and the items of the data as they are (labels too); returns a number, or (number,
        one number for each sample).
      dataset: the validation data.
    """

    directions: Mapping[str, bool] = {"validation_fn": True}

    def __init__(self, function: Callable[[Any, Iterable[Any]], Any], dataset: Dataset):
        self.function, self.dataset = function, dataset
        self._count: int | None = None
        self.seen: dict[str, tuple[Watched, Score]] = {}

    def evaluate(self, model: Runnable, role: str = "") -> Scores:
        """See `Validation`.

        Raises:
          ConfigError: the function fails, or what it returns is no number.
          CalibrationError: the data is empty, or can be passed over only once.
        """
        if not role:
            return {"validation_fn": self._call(model, self._items())}
        watched = Watched(model)
        self.seen[role] = (watched, self._call(watched, self._items()))
        return {"validation_fn": self.seen[role][1]}

    def _call(self, model: Runnable, items: Iterable[Any]) -> Score:
        try:
            returned = self.function(model, items)
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
        if count == 0:
            if self._count:
                raise CalibrationError(
                    f"the validation data gave {self._count} items the first time and none now; it can be passed over only once. "
                    "Give a list, or an object whose iter() starts anew"
                )
            raise CalibrationError("the validation data is empty; at least one sample is needed")
        self._count = count

    def pool(self, part: float = 1.0) -> Pool:
        """See `Validation`; found by watching the calls of the model inside of the function."""
        watched, scores = zip(*(self.seen[role] for role in (EXACT, QUANTIZED)), strict=True)
        exact = watched[0]
        rows: list[tuple[float, float, dict[str, Any]]] = []
        for (feed, before), (other, after) in zip(*(each.calls for each in watched), strict=False):
            same = _digest(feed) == _digest(other)
            feeds = list(split_samples(exact.inputs, [feed], exact.graph.static_inputs, self.dataset.batch_axis))
            if same and len(feeds) > 1 and all(value.shape[:1] == (len(feeds),) for value in before.values()):
                moved = distances(after, before)
            else:
                whole = [{name: value[None] for name, value in each.items()} for each in (after, before)]
                moved = np.repeat(distances(*whole) if same else 0.0, len(feeds))
            rows.extend((0.0, float(far), each) for far, each in zip(moved, feeds, strict=True))
        if not rows:
            raise ConfigError("validation_fn never called the model that it was given; it has to evaluate that model")
        lost = [score.samples for score in scores]
        if lost[0] is not None and lost[1] is not None and len(lost[0]) == len(lost[1]) == len(rows):
            rows = [(float(a - b), moved, feed) for a, b, (_, moved, feed) in zip(lost[0], lost[1], rows, strict=True)]
        return filled(rows, part)

    def warn_of_noise(self, model: Runnable) -> None:
        """Warns if the function gives another value when it is called again, on a few items."""
        some = list(itertools.islice(self.dataset.items(), PROBED))
        try:
            values = [self._call(model, list(some)).value for _ in range(2)]
        except (JaxqError, ArithmeticError):
            return  # a metric may need more than a few items
        if values[0] != values[1] and not any(map(math.isnan, values)):
            warnings.warn(
                f"validation_fn gave {values[0]:.6g} and {values[1]:.6g} for the same model and items, a spread of "
                f"{abs(values[0] - values[1]):.3g}: drops of this size mean nothing. Fix its seeds, or its order of samples",
                JaxqWarning,
                stacklevel=2,
            )


def _digest(feed: Mapping[str, np.ndarray]) -> bytes:
    hashed = hashlib.sha256()
    for name in sorted(feed):
        hashed.update(np.ascontiguousarray(feed[name]).tobytes())
    return hashed.digest()
