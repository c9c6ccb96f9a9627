"""Samples with their labels, from items of a data set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxq.data.dataset import Dataset
from jaxq.data.splitting import split_samples
from jaxq.engine.model import Model
from jaxq.errors import ConfigError, InputError

LABEL_KEYS = ("label", "labels", "target", "targets")


def labelled_items(dataset: Dataset, model: Model, labels: bool) -> Iterator[tuple[dict[str, Any], Any]]:
    """(feed of one sample, its target) from a data set; targets are None without labels.

    An item has its label under the key "label", or is a tuple that ends with it. Where the data set has a transform_func, that
    makes the inputs of an item and the label is still the item's own. A batch of samples has a batch of labels.

    Raises:
      ConfigError: an item has no label.
      InputError: there are more or fewer labels than samples.
    """
    for number, item in enumerate(dataset.items()):
        label, inputs = _split_item(item, model, number, labels)
        if dataset.transform_func is not None:
            inputs = dataset.transform_func(item)
        feeds = list(split_samples(model.inputs, [inputs], model.graph.static_inputs, dataset.batch_axis))
        if label is None:
            yield from ((feed, None) for feed in feeds)
            continue
        values: Any = label if isinstance(label, Mapping | list | tuple) else np.asarray(label)
        count = len(values) if isinstance(values, list | tuple) or np.ndim(values) else None
        if count == len(feeds) and not isinstance(values, Mapping):
            yield from zip(feeds, values, strict=True)
        elif len(feeds) == 1:
            yield feeds[0], values
        else:
            raise InputError(
                f"item {number} of the validation data holds {len(feeds)} samples and {count or 1} labels",
                path=("validation_dataset",),
            )


def _split_item(item: Any, model: Model, number: int, labels: bool) -> tuple[Any, Any]:
    """(label or None, what is left of the item)."""
    if isinstance(item, Mapping):
        key = next((key for key in LABEL_KEYS if key in item and key not in model.inputs), None)
        if key is not None:
            return (item[key] if labels else None), {name: value for name, value in item.items() if name != key}
        found = f"its keys: {', '.join(map(repr, item))}"
    elif (isinstance(item, tuple | list) and len(item) > len(model.inputs)) or _is_pair(item):
        rest = item[0] if len(item) == 2 else tuple(item[:-1])
        return (item[-1] if labels else None), rest
    else:
        found = f"it is {type(item).__name__}"
    if labels:
        raise ConfigError(
            f"item {number} of the validation data has no label ({found}); give (inputs, label) or a mapping with the key "
            "'label', or set annotation_free (or leave the metric away) to compare with the float model's outputs",
            path=("validation_dataset",),
        )
    return None, item


def _is_pair(item: Any) -> bool:
    return isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], Mapping)
