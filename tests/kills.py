"""A process that is killed while it changes files, at each moment in turn."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

CHANGES = ("replace", "rename", "unlink", "link", "remove")  # what changes a folder


class Killed(BaseException):
    """What a process does not outlive."""


@contextmanager
def killed_at(number: int, monkeypatch) -> Iterator[None]:
    """Kills at that change of a folder, counted from 0: it does not happen, and nor does any other."""
    done: list[str] = []
    with monkeypatch.context() as patch:
        for name, real in [(each, getattr(os, each)) for each in CHANGES]:

            def change(*args, _real=real, _name=name, **options):
                if len(done) >= number:
                    raise Killed
                done.append(_name)
                return _real(*args, **options)

            patch.setattr(os, name, change)
        yield


def every_kill(monkeypatch, action: Callable[[], Callable[[], object]], check: Callable[[], object]) -> int:
    """Does what `action` prepares, again and again, killed one change later each time; checks what is left.

    Returns:
      How many changes it takes.
    """
    for number in range(100):
        start = action()
        try:
            with killed_at(number, monkeypatch):
                start()
        except Killed:
            check()
        else:
            check()
            return number
    raise AssertionError("it never came to its end")
