"""Which of the ranked layers to revert. Knows layers by name and trials by their outcome; models are elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Setting = Mapping[str, str]
Trial = Callable[[Setting, str], float]  # (setting, why) -> how far from the goal; 0 or less: reached
Rank = Callable[[Setting], Sequence[str]]  # layers that the setting leaves quantized, the costliest first


@dataclass(frozen=True)
class Found:
    """The end of a search: the setting to keep, and whether it reaches the goal."""

    setting: Setting
    reached: bool


def bisect(order: Sequence[str], revert: str, trial: Trial, start: Setting, most: int) -> Found:
    """The shortest beginning of the ranked list that, reverted, reaches the goal.

    The lengths 1, 2, 4, ... are tried until one suffices, then the interval below it is halved: 2 log2(k) trials for k layers,
    since mostly few are needed. That longer is better is an assumption; where it fails, the result is still one that reaches
    the goal, but perhaps not the shortest.
    """
    most = min(most, len(order))

    def beginning(length: int) -> Setting:
        return {**start, **dict.fromkeys(order[:length], revert)}

    failed, length = 0, 1
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


def relax(found: Found, candidates: Sequence[str], steps: Sequence[str], trial: Trial) -> Found:
    """Does less to each of the candidates in turn, as long as the goal is reached: nothing at all, or the cheapest step that
    suffices.

    Args:
      candidates: layers, the one whose revert is estimated to gain least first.
      steps: what can be done to a layer, cheapest first; the last is what was done.
    """
    setting = dict(found.setting)
    for layer in candidates:
        less: dict[str, str] = {name: step for name, step in setting.items() if name != layer}
        for step in ("", *steps[: steps.index(setting[layer])]):
            tried = {**less, layer: step} if step else less
            why = f"{layer}: {step}" if step else f"{layer} put back"
            if trial(tried, why) <= 0:
                setting = tried
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
