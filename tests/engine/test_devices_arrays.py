"""That weights are uploaded once, whatever number of models read them, and only as long as they are there."""

import copy
import gc
import weakref

import jax
import numpy as np
import pytest
from models import residual_network, smooth

import jaxq
from jaxq.engine import devices
from jaxq.engine.devices import Placed


@pytest.fixture
def uploads(monkeypatch):
    """The names of the params that were laid out and uploaded."""
    found, put = [], devices.traced_param
    monkeypatch.setattr(devices, "traced_param", lambda name, value: found.append(name) or put(name, value))
    return found


def test_an_array_is_uploaded_once_for_each_order_of_its_axes(uploads):
    there, value = Placed(), np.arange(6, dtype=np.float32).reshape(2, 3)
    plain, turned = there.put("w", value), there.put("w", value, (1, 0))
    np.testing.assert_array_equal(plain, value)
    np.testing.assert_array_equal(turned, value.T)
    assert there.put("w", value) is plain
    assert there.put("other", value, (1, 0)) is turned
    assert uploads == ["w", "w"]


def test_equal_arrays_are_two_and_jax_arrays_are_there_already(uploads):
    there, value = Placed(), np.ones(3, np.float32)
    assert there.put("a", value) is not there.put("b", value.copy())
    array = jax.device_put(value)
    assert there.put("c", array) is array


def test_whole_numbers_are_uploaded_for_both_widths():
    there, value = Placed(), np.array([2**31 - 1])
    assert there.put("w", value).dtype == np.int32
    with jax.enable_x64(True):
        assert there.put("w", value).dtype == np.int64
    assert there.put("w", value).dtype == np.int32


def test_what_is_gone_is_forgotten():
    there = Placed()
    for number in range(50):  # a new array may lie where the last one was
        np.testing.assert_array_equal(there.put("w", np.full(4, number, np.float32)), np.full(4, number))
    gc.collect()
    assert there._there == {}


def test_what_was_placed_goes_at_once_with_whoever_remembered_it():
    source = np.ones(3, np.float32)
    placed = Placed()
    there = weakref.ref(placed.put("x", source))
    gc.disable()
    try:
        del placed
        assert there() is None
    finally:
        gc.enable()


def test_a_replaced_model_uploads_what_was_replaced(uploads):
    model, x = jaxq.load(residual_network()), smooth(1, 3, 8, 8)
    before = model(x)
    assert sorted(uploads) == sorted(model.params)
    uploads.clear()
    name = next(name for name, value in model.params.items() if value.ndim == 4)
    changed = model.replace(params={**model.params, name: model.params[name] * 2})
    found = changed(x)
    assert uploads == [name]
    fresh = jaxq.Model(model.graph, changed.params)(x)
    for key, value in found.items():
        np.testing.assert_array_equal(value, fresh[key])
        assert not np.array_equal(value, before[key])
    for key, value in copy.deepcopy(model)(x).items():
        np.testing.assert_array_equal(value, before[key])
