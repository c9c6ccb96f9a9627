"""Which samples are in an item of a data set."""

import numpy as np
import pytest

from jaxq.data.splitting import split_samples
from jaxq.errors import InputError
from jaxq.graph.ir import TensorType


def declared(*shapes) -> dict[str, TensorType]:
    return {f"x{i}": TensorType("float32", shape) for i, shape in enumerate(shapes)}


def test_an_item_with_a_free_first_axis_is_as_many_samples():
    items = [np.zeros((3, 2), np.float32), np.zeros((1, 2), np.float32)]
    found = list(split_samples(declared(("N", 2)), items))
    assert [feed["x0"].shape for feed in found] == [(1, 2)] * 4


def test_an_item_of_a_model_with_a_fixed_batch_is_one_sample():
    assert len(list(split_samples(declared((4, 2)), [np.zeros((4, 2), np.float32)]))) == 1


def test_inputs_that_disagree_on_the_first_axis_are_one_sample():
    item = (np.zeros((3, 2), np.float32), np.zeros((5, 2), np.float32))
    assert len(list(split_samples(declared(("N", 2), ("M", 2)), [item]))) == 1


def test_a_static_input_is_given_to_each_sample():
    types = {"x": TensorType("float32", ("N", 2)), "rate": TensorType("int64", ())}
    found = list(split_samples(types, [{"x": np.zeros((2, 2), np.float32), "rate": np.array(8)}], static=("rate",)))
    assert [int(feed["rate"]) for feed in found] == [8, 8]


def test_an_item_with_a_sequence_is_one_sample():
    types = {"x": TensorType("float32", ("N", 2)), "list": TensorType("float32", ("N", 2), ("sequence",))}
    item = {"x": np.zeros((3, 2), np.float32), "list": [np.zeros((3, 2), np.float32)]}
    assert len(list(split_samples(types, [item]))) == 1


def test_an_item_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match="axis 1 must be 2, not 3"):
        list(split_samples(declared(("N", 2)), [np.zeros((3, 3), np.float32)]))
