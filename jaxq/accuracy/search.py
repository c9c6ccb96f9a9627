"""Which of the ranked layers to revert. Knows layers by name and trials by their outcome; models are elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Setting = Mapping[str, str]
Trial = Callable[[Setting, str], float]  # (setting, why) -> how far from the goal; 0 or less: reached
Rank = Callable[[Setting], Sequence[str]]  # layers that the setting leaves quantized, the costliest first

PATIENCE = 8  # layers in a row that could not be put back, after which the others, which cost more, are not tried
SMALL = 4  # so few layers are not worth another ranking


@dataclass(frozen=True)
class Found:
    """The end of a search: the setting to keep, and whether it reaches the goal."""

    setting: Setting
    reached: bool


def changed(start: Setting, steps: Setting) -> Setting:
    """The setting with some layers treated otherwise; these stand behind all others, in their order."""
    return {**{layer: step for layer, step in start.items() if layer not in steps}, **steps}


def bisect(order: Sequence[str], revert: str, trial: Trial, start: Setting, most: int, first: int = 1) -> Found:
    """The shortest beginning of the ranked list that, reverted, reaches the goal.

    The lengths `first`, twice that, ... are tried until one suffices, then the interval below it is halved: 2 log2(k) trials for
    k layers, since mostly few are needed. That longer is better is an assumption; where it fails, the result is still one that
    reaches the goal, but perhaps not the shortest.
    """
    most = min(most, len(order))

    def beginning(length: int) -> Setting:
        return changed(start, dict.fromkeys(order[:length], revert))

    failed, length = 0, first
    while True:
        length = min(length, most)
        if trial(beginning(length), f"the {length} highest ranked") <= 0:
            break
        if length == most:
            return Found(beginning(most), False)
        failed, length = length, 2 * length
    while length - failed > 1:
        middle = (failed + length) // 2
        if trial(beginning(middle), f"the {middle} highest ranked") <= 0:
            length = middle
        else:
            failed = middle
    return Found(beginning(length), True)


def refine(found: Found, rank: Rank, revert: str, trial: Trial, start: Setting) -> Found:
    """Tries to get by with fewer layers: keeps the first half of those reverted, ranks the others anew, and bisects again.

    The first ranking is that of the fully quantized model; what the rest costs once the worst layers are gone is another matter.
    """
    while found.reached:
        reverted = [layer for layer, step in found.setting.items() if step != start.get(layer)]
        if len(reverted) < SMALL:
            break
        half = changed(start, dict.fromkeys(reverted[: len(reverted) // 2], revert))
        better = bisect(rank(half), revert, trial, half, len(reverted) - len(reverted) // 2 - 1)
        if not better.reached:
            break
        found = better
    return found


def put_back(found: Found, order: Sequence[str], trial: Trial, start: Setting) -> Found:
    """Does to fewer layers what was done to them, as long as the goal is reached.

    As many as the goal allows are put back at once, by bisection; then single ones, until PATIENCE in a row miss the goal.

    Args:
      order: the layers, those first that cost least when they are put back.
      start: what is done to a layer that is put back.
    """

    def without(setting: Setting, layers: Sequence[str]) -> Setting:
        kept = {name: step for name, step in setting.items() if name not in layers}
        return {**kept, **{name: start[name] for name in layers if name in start}}

    setting, good, bad = found.setting, 0, len(order) + 1
    count = 1
    while good < len(order) and bad - good > 1:
        if trial(without(setting, order[:count]), f"{count} put back: {', '.join(order[:count])}") <= 0:
            good = count
        else:
            bad = count
        count = min(2 * good, len(order)) if bad > len(order) else (good + bad) // 2
    setting, failures = without(setting, order[:good]), 0
    for layer in order[good:]:
        if failures == PATIENCE:
            break
        if trial(without(setting, [layer]), f"{layer} put back") <= 0:
            setting, failures = without(setting, [layer]), 0
        else:
            failures += 1
    return Found(setting, True)


def repair(found: Found, order: Sequence[str], steps: Sequence[str], trial: Trial) -> Found:
    """Does to each layer the cheapest step with which the goal is still reached, in place of what was done to it.

    Args:
      order: the layers, those first that cost least.
      steps: what can be done to a layer, cheapest first; the last is what was done.
    """
    setting = dict(found.setting)
    for layer in order:
        for step in steps[:-1] if setting.get(layer) == steps[-1] else ():
            if trial({**setting, layer: step}, f"{layer}: {step}") <= 0:
                setting[layer] = step
                break
    return Found(setting, True)


def one_by_one(
    rank: Rank, revert: str, trial: Trial, start: Setting, excess: float, most: int, *, undo: bool = True
) -> Found:
    """OpenVINO POT's and NNCF's loop: revert the highest ranked layer, and the next, until the goal is reached.

    A revert that makes things worse is taken once; the next one that does is undone (if `undo`), and the layers are ranked
    anew from there. Unlike there, a layer that was undone is not tried again before others, the last layer counts, and the
    search ends in the best setting it has seen.

    Args:
      excess: that of `start`.
      most: the largest number of trials.
    """
    setting, best, least = dict(start), dict(start), excess
    order = list(rank(setting))
    undone: set[str] = set()
    may_step_back = True
    for _ in range(most):
        order = [layer for layer in order if layer not in undone] or list(undone)
        if not order:
            break
        layer = order.pop(0)
        undone.discard(layer)
        tried = {**setting, layer: revert}
        now = trial(tried, f"{layer} reverted")
        if now < least or (now == least and len(tried) < len(best)):
            best, least = tried, now
        if now <= 0:
            return Found(tried, True)
        if now <= excess or may_step_back:
            may_step_back = False
            setting, excess = tried, now
            if order or undone:
                continue
            break
        if undo and (order or undone):
            undone.add(layer)
            may_step_back = True
        else:
            setting, excess = tried, now
        order = list(rank(setting))
    return Found(best, False)
