"""Samples from any iterable, as often as they are asked for."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxq.data.splitting import split_samples
from jaxq.engine.model import Model
from jaxq.errors import ConfigError, InputError, JaxqError, Option, OptionPath, about
from jaxq.graph.indices import refuse_out_of_range


class Dataset:
    """Samples for calibration or evaluation, from any iterable.

    Each item, after `transform_func`, is a batch for the model: {input name: array}, a tuple of arrays in the order of
    the inputs, or the array alone.

    Args:
      data_source: an iterable that can be passed over more than once (a list, a torch DataLoader, ...). A one-shot iterator
        is taken too: the items that it gave are kept in memory, so that the next pass sees them again.
      transform_func: turns an item of the source into what the model takes; e.g. drops the label.
      batch_axis: the axis along which an item holds samples, where all inputs declare that axis as free. None: an item is one
        sample, for a model whose free axis is something else (the length of a text or a sound).

    Raises:
      ConfigError: the source is not an iterable of batches, or the axis is none.
    """

    def __init__(
        self,
        data_source: Iterable[Any],
        transform_func: Callable[[Any], Any] | None = None,
        *,
        batch_axis: int | None = 0,
    ):
        loader = data_source
        if isinstance(loader, str | bytes | os.PathLike):
            raise ConfigError(
                f"a Dataset takes an iterable of batches, not the path {loader!r}; "
                "open that with jaxq.data.open_data(path, model)"
            )
        if isinstance(loader, Mapping):
            raise ConfigError(
                "a Dataset takes an iterable of batches, but a mapping is one batch; put it in a list: [{name: array}]"
            )
        if not isinstance(loader, Iterable) and not hasattr(loader, "__getitem__"):
            raise ConfigError(f"a Dataset takes an iterable of batches; {type(loader).__name__} is not iterable")
        if transform_func is not None and not callable(transform_func):
            raise ConfigError(f"transform_func is a function of one item; {transform_func!r} cannot be called")
        if batch_axis is not None and (
            isinstance(batch_axis, bool) or not isinstance(batch_axis, int) or batch_axis < 0
        ):
            raise ConfigError(
                Option(("batch_axis",), batch_axis), "; expected the number of an axis, counted from 0, or None"
            )
        self._loader = _Replayed(loader) if isinstance(loader, Iterator) else loader
        self._transform = transform_func
        self.batch_axis = batch_axis
        self.place: OptionPath = ()  # the argument that errors in reading the data are about, if that is known

    def __iter__(self) -> Iterator[Any]:
        if self._transform is None:
            yield from self.items()
            return
        for number, item in enumerate(self.items()):
            try:
                value = self._transform(item)
            except Exception as error:
                error.add_note(f"in transform_func, for item {number} of the data set")
                raise
            yield value

    @property
    def transform_func(self) -> Callable[[Any], Any] | None:
        """What turns an item of the source into what the model takes; None: items are that already."""
        return self._transform

    def items(self) -> Iterator[Any]:
        """The items as the source gives them, with their labels."""
        with about(*self.place, kinds=(JaxqError,)):
            yield from self._loader

    def __len__(self) -> int:
        """The number of items, where the loader knows it; TypeError otherwise, as for a generator."""
        return len(self._loader)  # type: ignore[arg-type]

    def __bool__(self) -> bool:
        return True  # without this, `if dataset:` would ask for the length

    def sample(self, count: int, seed: int) -> Dataset:
        """At most `count` of the items, drawn without replacement, in the order in which they stand.

        The same seed draws the same items. A source that does not know its length is passed over once, to count it.
        """
        length = len(self) if hasattr(self._loader, "__len__") else sum(1 for _ in self._loader)
        drawn = np.random.default_rng(seed).permutation(length)[:count]
        sample = Dataset(_Drawn(self._loader, frozenset(drawn.tolist())), self._transform, batch_axis=self.batch_axis)
        sample.place = self.place
        return sample

    def feeds(self, model: Model) -> Iterator[dict[str, Any]]:
        """The samples as feeds of `model`, {input name: array}: each item split along the batch axis.

        Raises:
          InputError: an item does not fit the model's inputs, or picks rows that a table of the model does not have.
        """
        try:
            samples = split_samples(model.inputs, self, model.graph.static_inputs, self.batch_axis)
            for number, feed in enumerate(samples):
                refuse_out_of_range(model.index_bounds, feed, f" of sample {number} (counted from 0)")
                yield feed
        except InputError as error:
            error.path = error.path or self.place
            error.args = (*error.args, self._hint())
            raise

    def _hint(self) -> str:
        """What the user may have meant where an item does not fit the model; "" if nothing is likely."""
        if self._transform is not None or not hasattr(self._loader, "shape"):
            return ""
        return (
            f". The data set is one array, {list(self._loader.shape)}, whose {len(self)} rows are taken as batches; "
            "if it is one batch, put it in a list: [array]"
        )


@dataclass(frozen=True)
class _Drawn:
    """Some items of a source, by their numbers."""

    source: Iterable[Any]
    numbers: frozenset[int]

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[Any]:
        if isinstance(self.source, Sequence):  # without making the others
            yield from (self.source[number] for number in sorted(self.numbers))
            return
        last = max(self.numbers, default=-1)
        for number, item in enumerate(itertools.islice(self.source, last + 1)):
            if number in self.numbers:
                yield item


class _Replayed:
    """A one-shot iterator that can be passed over more than once, because what it gave is kept."""

    def __init__(self, source: Iterator[Any]):
        self._source, self._seen = source, list[Any]()

    def __iter__(self) -> Iterator[Any]:
        for position in itertools.count():
            if position == len(self._seen):
                try:
                    self._seen.append(next(self._source))
                except StopIteration:
                    return
            yield self._seen[position]
