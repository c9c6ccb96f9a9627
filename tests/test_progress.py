"""Progress bars, and when there are none."""

import contextlib
import io
import time

import pytest

from jaxq import progress
from jaxq.progress import is_wanted, quiet, track


class Terminal(io.StringIO):
    """A standard error that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch):
    """A context manager: inside of it a person sits in front of a terminal, for whom bars appear at once.

    It is entered in the test, because pytest sets its own standard error between fixture and test.
    """
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress, "DELAY", 0.0)
    return lambda: contextlib.redirect_stderr(Terminal())


def slowly(items):
    """The items, once a bar has had the time to come up."""
    for item in items:
        time.sleep(0.3)
        yield item


def test_items_pass_through_unchanged_with_a_bar_and_without(terminal):
    with terminal():
        assert list(track(slowly("ab"), "work")) == ["a", "b"]
        with quiet():
            assert list(track("ab", "work")) == ["a", "b"]


def test_a_bar_shows_what_is_done_of_how_many(terminal):
    with terminal() as screen:
        list(track(slowly(range(3)), "calibrating", total=3))
    assert "calibrating" in screen.getvalue()
    assert "/3" in screen.getvalue()


def test_the_total_is_asked_of_the_iterable(terminal):
    with terminal() as screen:
        for _ in track([1, 2, 3, 4], "work"):
            time.sleep(0.1)
    assert "/4" in screen.getvalue()


def test_what_is_done_before_the_delay_shows_nothing(terminal, monkeypatch):
    monkeypatch.setattr(progress, "DELAY", 60.0)
    with terminal() as screen:
        list(track(slowly("a"), "work"))
    assert screen.getvalue() == ""


def test_a_bar_inside_of_another_shows_nothing(terminal):
    with terminal() as screen:
        for _ in track(slowly(range(2)), "outer"):
            list(track(slowly(range(2)), "inner"))
    assert "outer" in screen.getvalue()
    assert "inner" not in screen.getvalue()


def test_a_loop_that_is_left_early_takes_its_bar_away(terminal):
    with terminal() as screen:
        for _ in track(slowly(range(3)), "first"):
            break
        list(track(slowly(range(2)), "second"))
    assert "second" in screen.getvalue()


def test_quiet_ends_with_its_with(terminal):
    with terminal():
        with quiet():
            assert not is_wanted()
        assert is_wanted()


@pytest.mark.parametrize("name, value", [("CI", "true"), ("TERM", "dumb")])
def test_there_are_no_bars_for_machines(terminal, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with terminal():
        assert not is_wanted()


def test_there_are_no_bars_in_a_file(terminal):
    with contextlib.redirect_stderr(io.StringIO()):
        assert not is_wanted()
