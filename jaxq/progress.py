"""Progress bars for what takes long: on standard error, on a terminal, and only after two seconds."""

from __future__ import annotations

import contextlib
import operator
import os
import sys
import weakref
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

Item = TypeVar("Item")

DELAY = 2.0  # seconds before a bar appears: what is done by then needs none

_QUIET: ContextVar[bool] = ContextVar("quiet", default=False)
_BARS: weakref.WeakSet[Any] = weakref.WeakSet()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars inside of this `with`, in this thread or task."""
    token = _QUIET.set(True)
    try:
        yield
    finally:
        _QUIET.reset(token)


def track(iterable: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """The items of `iterable`, while a bar shows how many have been worked off.

    Nothing is shown in the first two seconds, inside `quiet()`, on continuous integration (`CI` is set), and where standard error
    is not a terminal.

    Args:
      iterable: what is worked off.
      description: what the bar says, a word or two.
      total: the number of items; None asks the iterable, and where it does not know, the bar only counts.
    """
    from tqdm import tqdm

    unwanted = _QUIET.get() or bool(os.environ.get("CI")) or os.environ.get("TERM") == "dumb"
    bar = tqdm(
        iterable,
        description,
        total if total is not None else operator.length_hint(iterable) or None,
        leave=False,
        delay=DELAY,
        disable=unwanted or None,  # None: where standard error is no terminal
        dynamic_ncols=True,
    )
    _BARS.add(bar)
    return iter(bar)


def say(text: str) -> None:
    """Prints a line on standard error, above the bars that are there."""
    from tqdm import tqdm

    tqdm.write(text, file=sys.stderr)


def clear() -> None:
    """Takes away the bars that are still there because the loops under them were broken off."""
    for bar in list(_BARS):
        bar.close()
