"""Progress bars for what takes long: on standard error, on a terminal, and only after two seconds."""

from __future__ import annotations

import contextlib
import operator
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

Item = TypeVar("Item")

DELAY = 2.0  # seconds before a bar appears: what is done by then needs none

_QUIET: ContextVar[bool] = ContextVar("quiet", default=False)
_LOCK = threading.Lock()
_SHOWN: list[_Bar] = []  # at most one: a loop inside of another one shows nothing of its own


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

    Nothing is shown in the first two seconds, inside `quiet()`, on continuous integration (`CI` is set), where standard
    error is not a terminal, without `rich`, and inside of another bar.

    Args:
      iterable: what is worked off.
      description: what the bar says, a word or two.
      total: the number of items; None asks the iterable, and where it does not know, the bar only counts.
    """
    if not is_wanted():
        yield from iterable
        return
    bar = _Bar(description, total if total is not None else operator.length_hint(iterable) or None)
    try:
        for item in iterable:
            yield item
            bar.advance()
    finally:
        bar.stop()


def clear() -> None:
    """Takes away a bar that is still there because the loop under it was broken off."""
    for bar in list(_SHOWN):
        bar.stop()


def is_wanted() -> bool:
    """Whether a person is there to see a bar."""
    return not _QUIET.get() and not os.environ.get("CI") and os.environ.get("TERM") != "dumb" and sys.stderr.isatty()


class _Bar:
    """A bar that starts by itself after `DELAY`, from another thread: the first item may take long (it compiles)."""

    def __init__(self, description: str, total: int | None):
        self._description, self._total, self._done = description, total, 0
        self._progress: Any = None
        self._task: Any = None
        self._ended = False
        self._timer = threading.Timer(DELAY, self._start)
        self._timer.daemon = True
        self._timer.start()

    def _start(self) -> None:
        try:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
        except ImportError:
            return
        with _LOCK:
            if self._ended or _SHOWN:
                return
            _SHOWN.append(self)
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._progress = Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False)
            self._task = self._progress.add_task(self._description, total=self._total, completed=self._done)
            self._progress.start()

    def advance(self) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress.update(self._task, completed=self._done)

    def stop(self) -> None:
        """Takes the bar away; after this it will not appear any more."""
        self._timer.cancel()
        with _LOCK:
            self._ended = True
            if self._progress is not None:
                self._progress.stop()
                self._progress = None
                _SHOWN.remove(self)
