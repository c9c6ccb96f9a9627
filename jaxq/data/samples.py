"""The calibration samples of one run: how many are used, whether they can be what they are meant to be, and their fingerprint."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jaxq.data.check import DataCheck
from jaxq.data.dataset import Dataset
from jaxq.data.hashed import Hashed
from jaxq.engine.model import Model
from jaxq.errors import CalibrationError, InputError, JaxqWarning, about
from jaxq.numerics.outliers import Outliers, may_be_left_out
from jaxq.progress import track

FEW_SAMPLES = 10  # fewer are warned of


class Samples:
    """The first `limit` calibration samples, as often as they are asked for; checked and hashed on the first full pass.

    Samples that reach values far beyond those of the others (`jaxq.numerics.outliers`) are named, and if they are few, left
    out of the passes that follow.

    Args:
      model: its inputs say what a sample looks like.
      items: a `Dataset`, or any iterable of batches.
      limit: at most so many samples are used; None: all.
      whole_items: each item is one sample, whatever the batch axis of the data set.
      keep_all: outlying samples are named, and stay.
      argument: of the call that was given the items, which errors in them are about.
    """

    def __init__(
        self,
        model: Model,
        items: Iterable[Any],
        limit: int | None,
        *,
        whole_items: bool = False,
        keep_all: bool = False,
        argument: str = "calibration_dataset",
    ):
        self.model, self.limit, self.keep_all, self.argument = model, limit, keep_all, argument
        items = items if isinstance(items, Dataset) else Dataset(items)
        self.items = Dataset(items, batch_axis=None) if whole_items else items
        self.hashed: Hashed | None = None
        self.check: DataCheck | None = None
        self.left_out: set[int] = set()  # numbers of samples
        self._outlying: dict[str, tuple[frozenset[int], str]] = {}  # tensor -> samples, and what to say of them

    def _samples(self) -> Iterator[Mapping[str, Any]]:
        return self._read(itertools.islice(self.items.feeds(self.model), self.limit))

    def _read(self, feeds: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        with about(self.argument, kinds=(CalibrationError, InputError)):
            yield from feeds

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        if self.hashed is None:
            return track(self._first_pass(), "calibrating")  # how many there are is not known yet
        return track(self._kept(self._samples()), "calibrating", self.hashed.count - len(self.left_out))

    def _kept(self, samples: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        return (feed for number, feed in enumerate(samples) if number not in self.left_out)

    def _first_pass(self) -> Iterator[Mapping[str, Any]]:
        self.check = DataCheck(self._samples(), self.model.masks)
        hashed = Hashed(self.check)
        yield from self._kept(self._read(hashed))
        self.hashed = hashed  # a pass that was broken off has not seen them all

    def leave_out(self, made: Mapping[str, Outliers]) -> bool:
        """Leaves out the samples that are outlying in an input or in a tensor of `made`; whether there were any new ones.

        Positions in `made` are those among the samples that were not left out before.
        """
        assert self.check is not None, "a pass has begun"
        count = self.check.count
        used = [number for number in range(count) if number not in self.left_out]
        found = [(name, each, [used[place] for place in each.samples]) for name, each in made.items()]
        found += [(name, each, list(each.samples)) for name, each in self.check.outlying().items()]
        new: set[int] = set()
        for name, each, numbers in found:
            few = not self.keep_all and may_be_left_out(len({*numbers} | self.left_out), count)
            new |= {*numbers} - self.left_out if few else set()
            self._outlying.setdefault(name, (frozenset(numbers), _sentence(name, numbers, each, few)))
        self.left_out |= new
        return bool(new)

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
        assert self.check is not None, "the samples have been passed over"
        doubts = [*self.check.warnings(), *self.outlier_warnings()]
        if self.hashed.count < FEW_SAMPLES and (self.limit is None or self.limit >= FEW_SAMPLES):
            doubts.append(f"{self.hashed.count} calibration sample(s) are few; some hundred are usual")
        for doubt in doubts:
            warnings.warn(doubt, JaxqWarning, stacklevel=stacklevel + 1)
        left = {"jaxq.left_out_samples": " ".join(map(str, sorted(self.left_out)))} if self.left_out else {}
        count = self.hashed.count - len(self.left_out)
        return {"jaxq.calibration_samples": str(count), "jaxq.calibration_sha256": self.hashed.hexdigest} | left

    def outlier_warnings(self) -> list[str]:
        """One sentence for each set of samples: inputs come first, and what follows from them in the network is not repeated."""
        said: set[int] = set()
        found = []
        ordered = sorted(self._outlying.items(), key=lambda each: each[0] not in self.model.graph.inputs)
        for _, (numbers, sentence) in ordered:
            if not numbers <= said:
                found.append(sentence)
                said |= numbers
        return found


def _sentence(name: str, numbers: list[int], found: Outliers, left_out: bool) -> str:
    """What to say of samples that are outlying in a tensor."""
    listed = ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
    done = "left out of the calibration" if left_out else "used all the same"
    return (
        f"calibration sample(s) {listed} (counted from 0) reach {max(found.values):.4g} in tensor {name!r}, where the others "
        f"stay within {found.others:.4g}; they are {done}: repair the data, or take them out"
    )
