"""Progress bars, and when there are none."""

import contextlib
import io
import re
import time

import pytest

from jaxq import progress
from jaxq.progress import clear, quiet, say, track


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


def visible(text: str) -> str:
    """What a terminal shows of the text at its end: a carriage return goes back to the start of the line, `ESC [ A` up."""
    lines, row = [""], 0
    for piece in re.findall(r"\r|\n|\x1b\[A|[^\r\n\x1b]+", text):
        if piece == "\n":
            row += 1
            lines += [""] * (row >= len(lines))
        elif piece == "\x1b[A":
            row -= 1
        elif piece != "\r":
            lines[row] = piece + lines[row][len(piece) :]
    return "\n".join(map(str.rstrip, lines)).rstrip()


def slowly(items):
    """The items, each so late that a bar is drawn anew."""
    for item in items:
        time.sleep(0.11)
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
            time.sleep(0.11)
    assert "/4" in screen.getvalue()


def test_what_is_done_before_the_delay_shows_nothing(terminal, monkeypatch):
    monkeypatch.setattr(progress, "DELAY", 60.0)
    with terminal() as screen:
        list(track(slowly("a"), "work"))
    assert screen.getvalue() == ""


def test_every_bar_is_taken_away_at_its_end(terminal):
    with terminal() as screen:
        for _ in track(slowly(range(2)), "outer"):
            list(track(slowly(range(2)), "inner"))
    assert {"outer", "inner"} <= set(re.findall(r"outer|inner", screen.getvalue()))
    assert not visible(screen.getvalue())


def test_a_loop_that_is_broken_off_takes_its_bar_away(terminal):
    with terminal() as screen:
        for _ in track(slowly(range(3)), "first"):
            break
        assert not visible(screen.getvalue())
        broken = track(slowly(range(2)), "second")
        next(broken)
        assert "second" in visible(screen.getvalue())
        clear()
        assert not visible(screen.getvalue())


def test_a_line_is_printed_above_a_bar(terminal):
    with terminal() as screen:
        for _ in track(slowly(range(2)), "work"):
            say("warning: something")
    assert visible(screen.getvalue()).splitlines() == ["warning: something"] * 2


def test_quiet_ends_with_its_with(terminal):
    with terminal() as screen:
        with quiet():
            list(track(slowly("ab"), "work"))
        assert screen.getvalue() == ""
        list(track(slowly("ab"), "work"))
        assert "work" in screen.getvalue()


@pytest.mark.parametrize("name, value", [("CI", "true"), ("TERM", "dumb")])
def test_there_are_no_bars_for_machines(terminal, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with terminal() as screen:
        list(track(slowly("ab"), "work"))
    assert screen.getvalue() == ""


def test_there_are_no_bars_in_a_file(terminal):
    with contextlib.redirect_stderr(io.StringIO()) as file:
        list(track(slowly("ab"), "work"))
    assert file.getvalue() == ""
