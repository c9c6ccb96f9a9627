"""The calibration samples of one run: how many are used, whether they can be what they are meant to be, and their fingerprint."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jaxq.data.check import DataCheck
from jaxq.data.dataset import Dataset
from jaxq.data.hashed import Hashed
from jaxq.errors import CalibrationError, JaxqWarning
from jaxq.model import Model
from jaxq.progress import track

FEW_SAMPLES = 10  # fewer are warned of


class Samples:
    """The first `limit` calibration samples, as often as they are asked for; checked and hashed on the first full pass.

    Args:
      model: its inputs say what a sample looks like.
      items: a `Dataset`, or any iterable of batches.
      limit: at most so many samples are used; None: all.
      whole_items: each item is one sample, whatever the batch axis of the data set.
    """

    def __init__(self, model: Model, items: Iterable[Any], limit: int | None, *, whole_items: bool = False):
        self.model, self.limit = model, limit
        items = items if isinstance(items, Dataset) else Dataset(items)
        self.items = Dataset(items, batch_axis=None) if whole_items else items
        self.hashed: Hashed | None = None

    def _samples(self) -> Iterator[Mapping[str, Any]]:
        return itertools.islice(self.items.feeds(self.model), self.limit)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        if self.hashed is None:
            return track(self._first_pass(), "calibrating")  # how many there are is not known yet
        return track(self._samples(), "calibrating", self.hashed.count)

    def _first_pass(self) -> Iterator[Mapping[str, Any]]:
        check = DataCheck(self._samples())
        hashed = Hashed(check)
        yield from hashed
        self.check, self.hashed = check, hashed  # a pass that was broken off has not seen them all

    def unseen(self) -> Iterator[Mapping[str, Any]]:
        """The samples, for a look at their shapes that is no pass over the data: neither checked, hashed nor shown.

        Raises:
          CalibrationError: there are none.
        """
        empty = True
        for feed in self._samples():
            empty = False
            yield feed
        if empty:
            raise CalibrationError("the calibration data is empty; at least one sample is needed")

    def record(self, stacklevel: int) -> dict[str, str]:
        """What the file says about the data; warns of what is suspicious about it, `stacklevel` calls up."""
        assert self.hashed is not None, "the samples have been passed over"
        doubts = self.check.warnings()
        if self.hashed.count < FEW_SAMPLES and (self.limit is None or self.limit >= FEW_SAMPLES):
            doubts.append(f"{self.hashed.count} calibration sample(s) are few; some hundred are usual")
        for doubt in doubts:
            warnings.warn(doubt, JaxqWarning, stacklevel=stacklevel + 1)
        return {"jaxq.calibration_samples": str(self.hashed.count), "jaxq.calibration_sha256": self.hashed.hexdigest}
