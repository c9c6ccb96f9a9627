"""What tells one search from another."""

import functools
import itertools
import os

import numpy as np
import pytest

from jaxq.accuracy.identity import ReadOnce, digest_of
from jaxq.data import Dataset


def scaled(factor):
    return lambda model, items: factor


def with_default(factor=1.0):
    return factor


def nested(items):
    return [each + 1 for each in items]


class Callable:
    def __init__(self, limit):
        self.limit = limit

    def __call__(self, model, items):
        return self.limit

    def method(self, model, items):
        return 2 * self.limit


def test_the_same_function_made_again_is_the_same():
    assert digest_of(scaled(0.5)) == digest_of(scaled(0.5))
    assert digest_of(functools.partial(scaled, 2)) == digest_of(functools.partial(scaled, 2))
    assert digest_of(Callable(3)) == digest_of(Callable(3))
    assert digest_of(Callable(3).method) == digest_of(Callable(3).method)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda model, items: 1.0, lambda model, items: 2.0),
        (lambda model, items: min(items), lambda model, items: max(items)),
        (lambda items: [each + 1 for each in items], lambda items: [each + 2 for each in items]),
        (scaled(0.5), scaled(0.25)),
        (scaled(np.zeros(3)), scaled(np.ones(3))),
        (functools.partial(scaled, 2), functools.partial(scaled, 3)),
        (Callable(3), Callable(4)),
        (Callable(3).method, Callable(4).method),
        (Callable(3).method, Callable(3)),
    ],
)
def test_functions_that_compute_something_else_differ(one, other):
    assert digest_of(one) != digest_of(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (["ab", "c"], ["a", "bc"]),
        ([[1], 2], [[1, 2]]),
        (np.zeros((2, 3)), np.zeros((3, 2))),
        (np.zeros(2, np.int32), np.zeros(2, np.float32)),
        (np.array(["a", None], object), np.array(["b", None], object)),
        ({"image": 1}, {"label": 1}),
        (b"one", b"two"),
    ],
)
def test_values_that_look_alike_differ(one, other):
    assert digest_of(one) != digest_of(other)


def test_a_value_that_contains_itself_has_a_digest():
    one = [1]
    one.append(one)
    assert digest_of(one) != digest_of([1])


def test_a_file_is_known_by_its_size_and_time(tmp_path):
    file = tmp_path / "picture.png"
    file.write_bytes(b"1234")
    os.utime(file, (1, 1))
    before = digest_of(file)
    assert digest_of(file) == before
    os.utime(file, (2, 2))
    assert digest_of(file) != before


# ---------------------------------------------------------------------------------------------------------------- the data


def read(items, count=None):
    source = ReadOnce(Dataset(items))
    assert list(itertools.islice(source, count)) == list(itertools.islice(items, count))
    return source


def test_data_are_the_same_if_every_item_is():
    stored = read([1, 2, 3]).read
    assert ReadOnce(Dataset([1, 2, 3])).reads_as(stored)
    for others in ([1, 2, 4], [1, 2], [1, 2, 3, 4], []):
        assert not ReadOnce(Dataset(others)).reads_as(stored)


def test_of_data_that_were_read_in_part_only_that_part_counts():
    stored = read([1, 2, 3], 2).read
    assert ReadOnce(Dataset([1, 2, 4])).reads_as(stored)
    assert ReadOnce(Dataset(itertools.count(1))).reads_as(stored)
    assert not ReadOnce(Dataset([1, 3, 3])).reads_as(stored)


def test_the_longest_pass_is_what_was_read():
    source = ReadOnce(Dataset([1, 2, 3]))
    lengths = []
    for count in (2, 1, None, 2):
        for _ in itertools.islice(source, count):
            pass
        lengths.append(source.read[:2])
    assert lengths == [[2, False], [2, False], [3, True], [3, True]]


def test_items_are_read_once_for_each_pass_and_one_that_was_complete_is_not_hashed_again(monkeypatch):
    taken = []

    class Source:
        def __iter__(self):
            for number in range(3):
                taken.append(number)
                yield number

    source = ReadOnce(Dataset(Source()))
    list(source)
    monkeypatch.setattr("jaxq.accuracy.identity.Digest", None)
    list(source)
    assert taken == [0, 1, 2] * 2
