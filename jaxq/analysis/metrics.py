"""Built-in accuracy metrics, in plain numpy: a small record from each sample, and one number from all records.

    found = metric.combine([metric.measure(outputs, target) for outputs, target in samples])
    found.value, found.samples        # the metric, and one number for each sample: which samples suffered

A record is small whatever the outputs are, so that memory does not grow with the size of the outputs. Arithmetic is float64.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from jaxq.data.functions import named_function
from jaxq.errors import ConfigError, InputError, Option, did_you_mean, inside
from jaxq.numerics.distance import squared_differences

Outputs = Mapping[str, np.ndarray]  # of one sample, without its batch axis where that has size one

MOST_DECIBELS = 100.0  # peak signal-to-noise of equal pictures
IGNORED_LABEL = 255  # a pixel that does not count, in mean IoU
IGNORED_TOKEN = -100  # a position that does not count, in perplexity


class Score(NamedTuple):
    """A metric over a data set, and the contribution of each sample in the same direction (float64 [samples]), if known."""

    value: float
    samples: np.ndarray | None = None


@dataclass(frozen=True)
class Metric:
    """How good a model's outputs are.

    Attributes:
      name: as in `metric=...`.
      higher_is_better: its direction.
      measure: (outputs of one sample, its target) -> record.
      combine: all records -> `Score`.
      refer: outputs of the float model for a sample -> the target that stands in for a label; None if there is no such thing.
    """

    name: str
    higher_is_better: bool
    measure: Callable[[Outputs, Any], Any]
    combine: Callable[[Sequence[Any]], Score]
    refer: Callable[[Outputs], Any] | None = None


def find_metric(name: str) -> Metric:
    """The built-in metric of that name, or the one that `package.module:function` makes.

    Such a function takes (outputs, targets), two lists with one entry for each sample, an entry of outputs being {output name:
    array}, and returns a number, or (number, one number for each sample). Its attribute `higher_is_better` (True if absent)
    gives the direction.

    Raises:
      ConfigError: there is no such metric; the message gives the nearest name.
    """
    if not isinstance(name, str):
        raise ConfigError(Option(("metric",), name), f"; expected a name, one of {', '.join(sorted(METRICS))}")
    if name in METRICS:
        return METRICS[name]
    if ":" in name:
        return _imported(name)
    raise ConfigError(
        Option(("metric",), name),
        f"; expected one of {', '.join(sorted(METRICS))}, or package.module:function{did_you_mean(name, METRICS)}",
    )


def _imported(name: str) -> Metric:
    with inside("metric"):
        function = named_function(name)

    def combine(records: Sequence[Any]) -> Score:
        try:
            returned = function([outputs for outputs, _ in records], [target for _, target in records])
        except Exception as error:
            raise ConfigError(
                f"metric {name!r} failed: {type(error).__name__}: {error} (it was given (outputs, targets): for each sample "
                "{output name: array}, and the label)"
            ) from error
        return as_score(returned, name)

    return Metric(name, bool(getattr(function, "higher_is_better", True)), lambda *record: record, combine)


def as_score(returned: Any, what: str) -> Score:
    """What a metric function returned, a number or (number, numbers), as a `Score`.

    Raises:
      ConfigError: it is neither; the message shows what came.
    """
    value, samples = returned if isinstance(returned, tuple) and len(returned) == 2 else (returned, None)
    array = None if isinstance(value, str | bytes) or value is None else _numbers(value)
    if array is None or array.size != 1:
        shown = f"an array of shape {array.shape}" if array is not None else f"{value!r} ({type(value).__name__})"
        raise ConfigError(f"{what} returned {shown}; expected a number, or (number, one number for each sample)")
    each = None
    if samples is not None:
        each = _numbers(samples)
        if each is None or each.ndim > 1:
            raise ConfigError(
                f"{what} returned (number, {type(samples).__name__}); the second must be one number for each sample"
            )
        each = each.reshape(-1)
    return Score(float(array.reshape(())), each)


def _numbers(value: Any) -> np.ndarray | None:
    """The value as float64, or None if it is not numeric."""
    try:
        array = np.asarray(value)
        return array.astype(np.float64) if array.dtype.kind in "biuf" or array.dtype.name == "bfloat16" else None
    except (TypeError, ValueError):
        return None


def first_output(outputs: Outputs) -> np.ndarray:
    """The output that metrics of one tensor look at: the first one of the model."""
    return np.asarray(next(iter(outputs.values())))


def _mean(records: Sequence[Any]) -> Score:
    samples = np.asarray(records, np.float64)
    return Score(float(samples.mean()), samples)


# ------------------------------------------------------------------------------------------------------------- classes


def _class_label(target: Any, scores: np.ndarray) -> int:
    """The class that a target stands for: a number, or the largest of as many numbers as there are classes."""
    values = np.asarray(target)
    if values.size == scores.size and values.size > 1:
        return int(values.reshape(-1).argmax())
    if values.size != 1 or values.dtype.kind not in "iuf":
        raise InputError(
            f"a label is one class number (or {scores.size} scores), but {values.dtype}{list(values.shape)} was given"
        )
    return int(values.reshape(()))


def _is_among_top(count: int, outputs: Outputs, target: Any) -> float:
    scores = first_output(outputs).reshape(-1)
    label = _class_label(target, scores)
    if not 0 <= label < scores.size:
        raise InputError(f"label {label} is not a class: the model's first output has {scores.size} scores")
    # Counted, not sorted: ties go to the lower class, as with a stable sort; NaN scores are never right.
    own = scores[label]
    better = int((scores > own).sum()) + int((scores[:label] == own).sum())
    return float(better < count and not np.isnan(scores).any())


# ------------------------------------------------------------------------------------------------- distances and angles


def _pair(outputs: Outputs, target: Any) -> tuple[np.ndarray, np.ndarray]:
    """Output and target, flat, in float64."""
    value, wanted = first_output(outputs), np.asarray(target)
    if value.size != wanted.size:
        hint = "; for one class number a sample take 'top1'" if wanted.size == 1 else ""
        raise InputError(
            f"the target has shape {list(wanted.shape)}, the model's first output {list(value.shape)}{hint}"
        )
    return value.astype(np.float64).reshape(-1), wanted.astype(np.float64).reshape(-1)


def _squares(outputs: Outputs, target: Any) -> tuple[float, int]:
    value, wanted = _pair(outputs, target)
    return float(squared_differences(wanted, value).sum()), value.size


def _mean_squares(records: Sequence[tuple[float, int]]) -> Score:
    sums, counts = np.asarray(records, np.float64).T
    return Score(float(sums.sum() / max(counts.sum(), 1.0)), sums / np.maximum(counts, 1.0))


def _decibels(outputs: Outputs, target: Any) -> float:
    """10 log10(1 / mean squared error), for values from 0 to 1; what lies outside of them is clipped, as when shown."""
    value, wanted = _pair(outputs, target)
    error = float(((np.clip(value, 0.0, 1.0) - wanted) ** 2).mean())
    return MOST_DECIBELS if error <= 10 ** (-MOST_DECIBELS / 10) else float(-10 * np.log10(error))


def _cosine(outputs: Outputs, target: Any) -> float:
    value, wanted = _pair(outputs, target)
    with np.errstate(all="ignore"):
        value, wanted = (each / max(np.abs(each).max(initial=0.0), 1e-300) for each in (value, wanted))
        norms = float(np.linalg.norm(value) * np.linalg.norm(wanted))
        if norms == 0:  # a zero vector has no direction: it is like another zero vector only
            return float(not value.any() and not wanted.any())
        return float(np.clip(value @ wanted / norms, -1.0, 1.0))


def _cosine_of_lists(outputs: Outputs, target: Any) -> float:
    """The same of arrays that may differ in size: the shorter one is filled with zeros."""
    values = [np.ravel(each) for each in (first_output(outputs), target)]
    size = max(each.size for each in values)
    value, wanted = (np.pad(each, (0, size - each.size)) for each in values)
    return _cosine({"filled": value}, wanted)


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values get the mean of theirs. Float64, the shape of `values` (1-D)."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rho: the correlation of the ranks; 0 where one side is constant."""
    if np.isnan(a).any() or np.isnan(b).any():
        return float("nan")
    a, b = ranks(a) - (a.size + 1) / 2, ranks(b) - (b.size + 1) / 2
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b / norms) if norms else 0.0


def _spearman(records: Sequence[tuple[np.ndarray, np.ndarray]]) -> Score:
    """Over the samples where each gives one number; else the mean of each sample's own correlation."""
    if all(value.size == 1 for value, _ in records):
        values, wanted = (np.concatenate(side) for side in zip(*records, strict=True))
        distance = ranks(values) - ranks(wanted)
        count = max(values.size, 2)
        return Score(rank_correlation(values, wanted), 1 - 6 * distance**2 / (count**2 - 1.0))
    return _mean([rank_correlation(value, wanted) for value, wanted in records])


# -------------------------------------------------------------------------------------------------- pixels and tokens


def _class_map(outputs: Outputs) -> np.ndarray:
    """The class of each pixel [H, W]: the largest of its scores, or its class number."""
    value = first_output(outputs)
    if value.ndim == 3 and value.shape[0] > 1:
        return value.argmax(0)
    return _class_numbers(value, "the model's first output")


def _class_numbers(values: np.ndarray, what: str) -> np.ndarray:
    """Class numbers [H, W] as int64."""
    with np.errstate(invalid="ignore"):
        numbers = values.astype(np.int64)
    if any(size != 1 for size in values.shape[:-2]) or (numbers != values).any() or (numbers < 0).any():
        raise InputError(
            f"class numbers [H, W] or scores [C, H, W] of each class are expected, but {what} is {values.dtype}"
            f"{list(values.shape)}, {np.ravel(values)[:3].tolist()}, ...; for the scores of one class write a function "
            "that compares them with a threshold, and name it as package.module:function"
        )
    return numbers.reshape(values.shape[-2:])


def _confusion(outputs: Outputs, target: Any) -> tuple[np.ndarray, np.ndarray]:
    """(intersections, unions), each [classes], of predicted and true regions in one picture."""
    value, wanted = _class_map(outputs), _class_numbers(np.asarray(target), "the target")
    if value.shape != wanted.shape:
        raise InputError(f"the target has shape {list(wanted.shape)}, the predicted classes {list(value.shape)}")
    counts = wanted != IGNORED_LABEL
    predicted, true = value[counts], wanted[counts]
    classes = int(max(predicted.max(initial=0), true.max(initial=0))) + 1
    both = np.bincount(true[predicted == true], minlength=classes)
    either = np.bincount(predicted, minlength=classes) + np.bincount(true, minlength=classes) - both
    return both.astype(np.float64), either.astype(np.float64)


def _mean_iou(records: Sequence[tuple[np.ndarray, np.ndarray]]) -> Score:
    """The mean, over the classes that occur, of intersection over union, both summed over all pictures."""
    classes = max(both.size for both, _ in records)
    totals = np.zeros((2, classes))
    for both, either in records:
        totals[0, : both.size] += both
        totals[1, : either.size] += either

    def mean(both: np.ndarray, either: np.ndarray) -> float:
        seen = either > 0
        return float((both[seen] / either[seen]).mean()) if seen.any() else 1.0

    return Score(mean(*totals), np.array([mean(*record) for record in records]))


def _token_loss(outputs: Outputs, target: Any) -> tuple[float, int]:
    """(sum of negative log-likelihoods, tokens) of logits [..., T, V] against token numbers [..., T]."""
    logits, tokens = first_output(outputs).astype(np.float64), np.asarray(target)
    logits, tokens = logits.reshape(-1, logits.shape[-1]), tokens.reshape(-1)
    if logits.shape[0] != tokens.size or tokens.dtype.kind not in "iu":
        raise InputError(
            f"perplexity takes logits [tokens, words] and one word number a token, but {list(logits.shape)} logits and "
            f"{tokens.dtype}{list(np.shape(target))} were given"
        )
    kept = tokens != IGNORED_TOKEN
    logits, tokens = logits[kept], tokens[kept]
    if tokens.size and not (tokens.min() >= 0 and tokens.max() < logits.shape[1]):
        raise InputError(f"a word number lies outside of 0 to {logits.shape[1] - 1}")
    if np.all(logits >= 0) and np.allclose(logits.sum(axis=1), 1.0, atol=1e-3):  # the model ends in a softmax
        logits = np.log(np.maximum(logits, np.finfo(np.float32).tiny))
    top = logits.max(axis=1, keepdims=True, initial=-np.inf)
    loss = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0] - logits[np.arange(tokens.size), tokens]
    return float(loss.sum()), int(tokens.size)


def _perplexity(records: Sequence[tuple[float, int]]) -> Score:
    """exp of the mean negative log-likelihood of all tokens."""
    sums, counts = np.asarray(records, np.float64).T
    with np.errstate(over="ignore"):
        return Score(
            float(np.exp(sums.sum() / max(counts.sum(), 1.0))), np.exp(np.minimum(sums / np.maximum(counts, 1.0), 700))
        )


# ------------------------------------------------------------------------------------------------------------- boxes


class Boxes(NamedTuple):
    """What was found, or is there, in one picture: corners x1, y1, x2, y2 [N, 4], scores [N], classes [N]."""

    corners: np.ndarray
    scores: np.ndarray
    classes: np.ndarray


def intersection_over_union(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[N, 4] and [M, 4] corners -> [N, M]; empty boxes overlap with nothing."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    both = np.clip(high - low, 0, None).prod(-1)
    areas = [np.clip(each[:, 2:] - each[:, :2], 0, None).prod(-1) for each in (a, b)]
    union = areas[0][:, None] + areas[1][None] - both
    return np.divide(both, union, out=np.zeros_like(both), where=union > 0)


def _detected(outputs: Outputs) -> Boxes:
    """Boxes from the outputs of a detector: one [N, 6] of corners, score, class, or corners, scores[, classes] apart."""
    values = [np.asarray(value, np.float64) for value in outputs.values()]
    values = [value.reshape(value.shape[1:]) if value.ndim > 2 and value.shape[0] == 1 else value for value in values]
    if max(value.ndim for value in values) < 2:  # of a single box, whose axis was taken for that of a batch
        values = [value[None] for value in values]
    for value in values:
        if value.ndim == 2 and value.shape[1] in (5, 6):
            classes = value[:, 5] if value.shape[1] == 6 else np.zeros(len(value))
            return Boxes(value[:, :4], value[:, 4], classes.astype(np.int64))
    corners = next((value for value in values if value.ndim == 2 and value.shape[1] == 4), None)
    flat = [] if corners is None else [value.reshape(-1) for value in values if value.size == len(corners)]
    if corners is None or not flat:
        shapes = {name: list(np.shape(value)) for name, value in outputs.items()}
        raise InputError(
            f"map takes boxes [N, 6] (corners, score, class), or [N, 4] with scores [N], but the outputs are {shapes}; "
            "write a function that decodes them and name it as package.module:function"
        )
    whole = [bool(np.array_equal(value, np.round(value))) for value in flat]
    scores = flat[whole.index(False)] if False in whole else flat[0]
    classes = next((value for value in flat if value is not scores), np.zeros(len(corners)))
    return Boxes(corners, scores, classes.astype(np.int64))


def _true_boxes(target: Any) -> Boxes:
    """Labels: [M, 5] of corners and class, [M, 4], or a mapping with boxes and labels."""
    if isinstance(target, Mapping):
        corners = np.asarray(target.get("boxes", ()), np.float64).reshape(-1, 4)
        classes = np.asarray(target.get("labels", np.zeros(len(corners))), np.int64).reshape(-1)
    else:
        table = np.asarray(target, np.float64)
        table = table.reshape(-1, table.shape[-1]) if table.size else np.zeros((0, 5))
        if table.shape[1] not in (4, 5):
            raise InputError(f"map takes boxes [M, 5] (corners, class) as a label, but {list(table.shape)} was given")
        corners, classes = table[:, :4], table[:, 4:].reshape(-1).astype(np.int64)
        classes = classes if classes.size else np.zeros(len(corners), np.int64)
    return Boxes(corners, np.ones(len(corners)), classes)


Matches = dict[int, tuple[np.ndarray, np.ndarray, int]]  # class -> scores, whether each is right, boxes that are there


def _matched(outputs: Outputs, target: Any, threshold: float = 0.5) -> Matches:
    """Which detections are right: in the order of scores, each true box counts once."""
    found, true = _detected(outputs), _true_boxes(target)
    result: Matches = {}
    for label in sorted({*found.classes.tolist(), *true.classes.tolist()}):
        mine, wanted = found.classes == label, true.corners[true.classes == label]
        order = np.argsort(-found.scores[mine], kind="stable")
        corners, scores = found.corners[mine][order], found.scores[mine][order]
        overlaps = intersection_over_union(corners, wanted)
        right, taken = np.zeros(len(scores), bool), np.zeros(len(wanted), bool)
        for number in range(len(scores) if len(wanted) else 0):
            best = int(np.where(taken, -1.0, overlaps[number]).argmax())
            if not taken[best] and overlaps[number, best] >= threshold:
                right[number] = taken[best] = True
        result[label] = (scores, right, len(wanted))
    return result


def average_precision(scores: np.ndarray, right: np.ndarray, count: int) -> float:
    """The area under precision over recall, all points, precision made falling (PASCAL VOC since 2010)."""
    right = right[np.argsort(-scores, kind="stable")]
    precision = np.cumsum(right) / (np.arange(len(right)) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float((precision * right).sum() / max(count, 1))


def _mean_average_precision(records: Sequence[Matches]) -> Score:
    """The mean over the classes that are there; a picture's own number is the same over this picture."""

    def mean(some: Sequence[Matches]) -> float:
        labels = sorted({label for record in some for label, (_, _, count) in record.items() if count})
        each = []
        for label in labels:
            parts = [record[label] for record in some if label in record]
            scores, right, counts = zip(*parts, strict=True)
            each.append(average_precision(np.concatenate(scores), np.concatenate(right), sum(counts)))
        nothing = not any(len(scores) for record in some for scores, _, _ in record.values())
        return float(np.mean(each)) if each else float(nothing)

    return Score(mean(records), np.array([mean([record]) for record in records]))


# ---------------------------------------------------------------------------------------------------------- the table


def _label_of(outputs: Outputs) -> int:
    return int(first_output(outputs).argmax())


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("top1", True, functools.partial(_is_among_top, 1), _mean, _label_of),
        Metric("top5", True, functools.partial(_is_among_top, 5), _mean, _label_of),
        Metric("mse", False, _squares, _mean_squares, first_output),
        Metric("psnr", True, _decibels, _mean, lambda outputs: np.clip(first_output(outputs), 0.0, 1.0)),
        Metric("cosine", True, _cosine, _mean, first_output),
        Metric("spearman", True, _pair, _spearman, first_output),
        Metric("map", True, _matched, _mean_average_precision),
        Metric("miou", True, _confusion, _mean_iou, _class_map),
        Metric("perplexity", False, _token_loss, _perplexity),
    )
}

# For outputs whose size depends on the data, as the boxes that a detector finds.
COSINE_OF_LISTS = replace(METRICS["cosine"], measure=_cosine_of_lists)
