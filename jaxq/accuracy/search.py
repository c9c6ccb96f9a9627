"""Which layers to treat, and how, as generators: each proposes (setting, why) and is told how far from the goal that is.

    excess = yield setting, why        # 0 or less: the goal is reached

They know layers by name and trials by their outcome. Models, time and disks are elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from jaxq.accuracy.options import AdvancedAccuracyRestorerParameters, Ranking, Search

Setting = Mapping[str, Any]  # layer -> treatment; layers that are not there are as planned
Proposal = tuple[Setting, str]
Rank = Callable[[Setting], Sequence[str]]  # layers that the setting leaves quantized, the costliest first

PATIENCE = 8  # layers in a row that could not be put back, after which the others, which cost more, are not tried
SMALL = 4  # so few layers are not worth another ranking


@dataclass(frozen=True)
class Found:
    """The end of a search: the setting to keep, and whether it reaches the goal."""

    setting: Setting
    reached: bool


Proposals = Generator[Proposal, float, Found]


def changed(start: Setting, others: Setting) -> Setting:
    """The setting with some layers treated otherwise; these stand behind all others, in their order."""
    return {**{layer: each for layer, each in start.items() if layer not in others}, **others}


def without(setting: Setting, layers: Sequence[str], start: Setting) -> Setting:
    """The setting with some layers as they are at the start."""
    kept = {layer: each for layer, each in setting.items() if layer not in layers}
    return {**kept, **{layer: start[layer] for layer in layers if layer in start}}


def bisect(order: Sequence[str], revert: Any, start: Setting, most: int, first: int = 1) -> Proposals:
    """The shortest beginning of the ranked list that, reverted, reaches the goal.

    The lengths `first`, twice that, ... are tried until one suffices, then the interval below it is halved: 2 log2(k) trials for
    k layers, since mostly few are needed. That longer is better is an assumption; where it fails, the result is still one that
    reaches the goal, but perhaps not the shortest.
    """
    most = min(most, len(order))

    def beginning(length: int) -> Proposal:
        return changed(start, dict.fromkeys(order[:length], revert)), f"the {length} highest ranked"

    failed, length = 0, min(first, most)
    while (yield beginning(length)) > 0:
        if length == most:
            return Found(beginning(most)[0], False)
        failed, length = length, min(2 * length, most)
    while length - failed > 1:
        middle = (failed + length) // 2
        if (yield beginning(middle)) <= 0:
            length = middle
        else:
            failed = middle
    return Found(beginning(length)[0], True)


def refine(found: Found, rank: Rank, revert: Any, start: Setting) -> Proposals:
    """Tries to get by with fewer layers: keeps the first half of those reverted, ranks the others anew, and bisects again.

    The first ranking is that of the fully quantized model; what the rest costs once the worst layers are gone is another matter.
    """
    while found.reached:
        reverted = [layer for layer, each in found.setting.items() if each != start.get(layer)]
        if len(reverted) < SMALL:
            break
        half = changed(start, dict.fromkeys(reverted[: len(reverted) // 2], revert))
        better = yield from bisect(rank(half), revert, half, len(reverted) - len(reverted) // 2 - 1)
        if not better.reached:
            break
        found = better
    return found


def put_back(found: Found, order: Sequence[str], start: Setting) -> Proposals:
    """Does to fewer layers what was done to them, as long as the goal is reached.

    As many as the goal allows are put back at once, by bisection; then single ones, until PATIENCE in a row miss the goal.

    Args:
      order: the layers, those first that cost least when they are put back.
      start: what is done to a layer that is put back.
    """
    setting, good, bad, count = found.setting, 0, len(order) + 1, 1
    while good < len(order) and bad - good > 1:
        first = order[:count]
        if (yield without(setting, first, start), f"{count} put back: {', '.join(first)}") <= 0:
            good = count
        else:
            bad = count
        count = min(2 * good, len(order)) if bad > len(order) else (good + bad) // 2
    setting, failures = without(setting, order[:good], start), 0
    for layer in order[good:]:
        if failures == PATIENCE:
            break
        fewer = without(setting, [layer], start)
        if (yield fewer, f"{layer} put back") <= 0:
            setting, failures = fewer, 0
        else:
            failures += 1
    return Found(setting, True)


def repair(found: Found, order: Sequence[str], treatments: Sequence[Any]) -> Proposals:
    """Does to each layer the cheapest thing with which the goal is still reached, in place of what was done to it.

    Args:
      order: the layers, those first that cost least.
      treatments: what can be done to a layer, cheapest first; the last is what was done.
    """
    *cheaper, last = treatments
    setting = dict(found.setting)
    for layer in order:
        for treatment in cheaper if setting.get(layer) == last else ():
            if (yield {**setting, layer: treatment}, f"{layer}: {getattr(treatment, 'name', treatment)}") <= 0:
                setting[layer] = treatment
                break
    return Found(setting, True)


def one_by_one(rank: Rank, revert: Any, start: Setting, most: int, *, undo: bool = True) -> Proposals:
    """OpenVINO POT's and NNCF's loop: revert the highest ranked layer, and the next, until the goal is reached.

    A revert that makes things worse is taken once; the next one that does is undone (if `undo`), and the layers are ranked
    anew from there. Unlike there, a layer that was undone is not tried again before others, the last layer counts, and the
    search ends in the best setting it has seen.

    Args:
      most: the largest number of trials behind that of `start`.
    """
    excess = least = yield start, ""
    setting, best = dict(start), dict(start)
    order = list(rank(setting))
    undone: dict[str, None] = {}  # in this order, so that a search is the same every time
    may_step_back = True
    for _ in range(most):
        order = [layer for layer in order if layer not in undone] or list(undone)
        if not order:
            break
        layer = order.pop(0)
        undone.pop(layer, None)
        tried = {**setting, layer: revert}
        now = yield tried, f"{layer} reverted"
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
            undone[layer] = None
            may_step_back = True
        else:
            setting, excess = tried, now
        order = list(rank(setting))
    return Found(best, False)


def best_of(settings: Iterable[Proposal]) -> Proposals:
    """The setting that is nearest to the goal, the first of equals."""
    worths: list[tuple[float, int, Setting]] = []
    for setting, why in settings:
        worths.append(((yield setting, why), len(worths), setting))
    excess, _, best = min(worths, key=lambda each: each[:2])
    return Found(best, excess <= 0)


class Order(Protocol):
    """In which order layers are tried; see `jaxq.accuracy.ranking.Rankings`."""

    def rank(self, setting: Setting) -> Sequence[str]: ...

    def costs(self, setting: Setting, start: Setting) -> Sequence[str]: ...

    def fewest(self) -> int: ...


def restore(
    options: AdvancedAccuracyRestorerParameters, layers: int, order: Order, alike: Sequence[Proposal] = ()
) -> Proposals:
    """The whole search, behind the trial of all layers quantized, which missed the goal.

    Args:
      alike: settings that treat all layers alike, the best of which to start from; (): start from none.
    """
    start: Setting = {}
    revert = options.revert
    if alike:
        start = (yield from best_of(alike)).setting
        if (yield start, "the best of these") <= 0:
            return Found(start, True)
    if options.search is Search.POT:
        most = options.max_num_iterations or 2 * layers  # one that is undone counts, but never two in a row are
        return (yield from one_by_one(order.rank, revert, start, most, undo=options.use_prev_if_drop_increase))
    most = min(options.max_num_iterations or layers, layers)
    found = yield from bisect(order.rank(start), revert, start, most, order.fewest())
    if not found.reached:
        return found
    if options.ranking is not Ranking.ALONE:  # that is the same whatever else is reverted
        found = yield from refine(found, order.rank, revert, start)
    while options.prune:  # until nothing more can be put back: what one layer costs depends on the others
        fewer = yield from put_back(found, order.costs(found.setting, start), start)
        if fewer.setting == found.setting:
            break
        found = fewer
    if options.repairs:
        found = yield from repair(found, order.costs(found.setting, start), options.treatments)
    return found
