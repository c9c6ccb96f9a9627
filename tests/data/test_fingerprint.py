"""What tells one value, function, model or data set from another."""

import functools
import itertools
import os
from dataclasses import dataclass, fields, is_dataclass, replace

import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from models import Network, branching_network, old_network

import jaxq
from jaxq.data import Dataset
from jaxq.data.fingerprint import ReadOnce, digest_of, hidden_in, model_digest
from jaxq.graph.ir import FrozenDict


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


@dataclass(frozen=True)
class Plain:
    limit: int

    def __call__(self, model, items):
        return self.limit


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
        (functools.partial(scaled, 2), functools.partial(scaled, 3)),
        (Plain(3), Plain(4)),
        (Callable(3).method, Callable(3)),
    ],
)
def test_functions_that_compute_something_else_differ(one, other):
    assert digest_of(one) != digest_of(other)


@pytest.mark.parametrize(
    ("function", "hidden"),
    [
        (scaled(0.5), ["'factor' in scaled.<locals>.<lambda>"]),
        (functools.partial(scaled(0.5), 3), ["'factor' in scaled.<locals>.<lambda>"]),
        (Callable(3), ["the attributes of Callable"]),
        (Callable(3).method, ["the attributes of Callable"]),
        (functools.partial(scaled, 2), []),
        (Plain(3), []),
        (with_default, []),
        (min, []),
        (Callable, []),
    ],
)
def test_what_is_not_compared_of_a_function_is_named(function, hidden):
    assert hidden_in(function) == hidden


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


# --------------------------------------------------------------------------------------------------------------- the model


def others(value):
    """(where, value with one thing in it changed), for each thing in a graph: every field of every part."""
    if is_dataclass(value):
        for each in fields(value):
            for where, other in others(getattr(value, each.name)):
                yield f"{type(value).__name__}.{each.name}{where}", replace(value, **{each.name: other})
    elif isinstance(value, FrozenDict):
        yield "+", value | {"another": 1}
        for key, each in value.items():
            rest = {name: kept for name, kept in value.items() if name != key}
            yield f"[{key}] gone", FrozenDict(rest)
            yield f"[{key}] renamed", FrozenDict({**rest, f"{key}'": each})
            for where, other in others(each):
                yield f"[{key}]{where}", value | {key: other}
    elif isinstance(value, tuple):
        yield "+", (*value, "another")
        for place, each in enumerate(value):
            yield f"[{place}] gone", value[:place] + value[place + 1 :]
            for where, other in others(each):
                yield f"[{place}]{where}", (*value[:place], other, *value[place + 1 :])
    elif isinstance(value, bytes):
        yield "", bytes([*value[:-1], value[-1] ^ 1]) if value else b"0"
    elif isinstance(value, str):
        yield "", f"{value}'"
    elif value is None:
        yield "", 0
    else:
        assert isinstance(value, int | float)
        yield "", value + 1
        yield " of another type", float(value) if isinstance(value, int) else str(value)


def in_a_branch(bound):
    """A model whose branches hold constants, an attribute that is a tensor, and weights."""
    net = Network(seed=5)
    x, flag = net.input("x", ["N", 4]), net.input("flag", [], onnx.TensorProto.BOOL)
    bodies = {}
    for name in ("then_branch", "else_branch"):
        branch = Network(seed=1)
        low, high = branch.constant(f"{name}.low", -1.0), branch.constant(f"{name}.high", bound)
        branch.node("Clip", [x, low, high], f"{name}.kept")
        branch.output(f"{name}.kept", ["N", 4])
        initializers = [onnx.numpy_helper.from_array(value, key) for key, value in branch.initializers.items()]
        bodies[name] = onnx.helper.make_graph(branch.nodes, name, [], branch.outputs, initializers)
    net.dense(net.node("If", [flag], "chosen", **bodies), "y", (4, 4))
    net.output("y", ["N", 4])
    return net.proto()


MODELS = {
    "bounds and sizes": lambda: old_network(11),
    "weights in branches": branching_network,
    "constants in branches": lambda: in_a_branch(1.0),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_every_part_of_a_model_counts(make):
    model = jaxq.load(make())
    digest = model_digest(model.graph, model.params)
    assert not [where for where, graph in others(model.graph) if model_digest(graph, model.params) == digest]
    for name, value in model.params.items():
        array = np.array(value)
        rest = {key: each for key, each in model.params.items() if key != name}
        one = array.copy()
        one.flat[-1] = np.nextafter(one.flat[-1], 9, dtype=one.dtype) if one.dtype.kind == "f" else one.flat[-1] + 1
        for what in (one, array.astype(np.float64), array[None]):
            assert model_digest(model.graph, {**rest, name: what}) != digest
        assert model_digest(model.graph, rest) != digest
        assert model_digest(model.graph, {**rest, f"{name}'": array}) != digest


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_the_same_model_read_again_is_the_same_wherever_its_weights_lie(make, tmp_path):
    model = jaxq.load(make())
    digest = model_digest(model.graph, model.params)
    again = jaxq.load(make())
    assert model_digest(again.graph, dict(reversed(again.params.items()))) == digest
    turned = replace(model.graph, opsets=FrozenDict(reversed(model.graph.opsets.items())))
    assert model_digest(turned, {name: jnp.asarray(each) for name, each in model.params.items()}) == digest
    file = tmp_path / "model.onnx"
    onnx.save(make(), file, save_as_external_data=True, size_threshold=0, location="model.data")
    outside = jaxq.load(file)
    assert model_digest(outside.graph, outside.params) == digest
    data = bytearray((tmp_path / "model.data").read_bytes())
    name = next(iter(outside.params))
    place = bytes(data).find(np.asarray(outside.params[name]).tobytes())
    data[place] ^= 1
    (tmp_path / "model.data").write_bytes(data)
    changed = jaxq.load(file)
    assert model_digest(changed.graph, changed.params) != digest


def test_what_the_file_says_about_the_model_does_not_count():
    proto = branching_network()
    plain = jaxq.load(proto)
    proto.metadata_props.add(key="author", value="somebody")
    proto.doc_string = "words"
    noted = jaxq.load(proto)
    assert model_digest(noted.graph, noted.params) == model_digest(plain.graph, plain.params)


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
    monkeypatch.setattr("jaxq.data.fingerprint.parts_of", None)
    list(source)
    assert taken == [0, 1, 2] * 2
