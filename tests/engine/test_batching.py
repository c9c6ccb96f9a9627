"""How samples become batches of one shape each, and single samples again."""

import jax
import numpy as np
import pytest
from models import branching_network, free_size_network, residual_network, smooth

from jaxq.engine.batching import LARGEST_BATCH, batches, fitting_batch, single_feeds
from jaxq.engine.model import Model
from jaxq.engine.runner import Batch
from jaxq.errors import JaxqWarning
from jaxq.onnx_io.load import load

COUNT = 7
FEEDS = [{"image": row[None]} for row in smooth(COUNT, 3, 8, 8)]


@pytest.fixture(scope="module")
def model() -> Model:
    return load(residual_network())


def test_samples_are_taken_one_batch_at_a_time(model):
    """So that the data need not fit into memory."""
    taken = []

    def feeds():
        for number in range(20):
            taken.append(number)
            yield FEEDS[number % COUNT]

    for seen, (_, batch) in enumerate(batches(model, feeds(), 4), start=1):
        assert len(taken) == 4 * seen
        assert batch.number.tolist() == list(range(4 * seen - 4, 4 * seen))


def test_what_is_held_back_is_bounded_with_many_shapes():
    model = load(free_size_network())
    taken = 0

    def feeds():
        nonlocal taken
        for number in range(600):
            taken += 1
            yield {"image": np.zeros((1, 1, 2 + 2 * (number % 150), 2), np.float32)}

    def consume() -> int:
        given = 0
        for _, batch in batches(model, feeds(), LARGEST_BATCH):
            given += int(batch.real.sum())
            assert taken - given <= 4 * LARGEST_BATCH
        return given

    with pytest.warns(JaxqWarning, match="the calibration has now seen 9 distinct input shapes") as warned:
        assert consume() == 600
    assert len(warned) == 1


def test_a_large_batch_is_full(model):
    found = [batch.real for _, batch in batches(model, FEEDS * 50, 300)]
    assert [(len(real), int(real.sum())) for real in found] == [(300, 300), (300, 50 * len(FEEDS) - 300)]


def test_a_batch_is_data_to_jax():
    assert len(jax.tree.leaves(Batch({"x": np.zeros(1)}, np.zeros(1), np.zeros(1)))) == 3


@pytest.mark.parametrize("largest", [0, 1, 1000, 1 << 20, 3 << 20, 1 << 40])
def test_a_fitting_batch_is_a_power_of_two_within_bounds(largest):
    size = fitting_batch(largest)
    assert 1 <= size <= LARGEST_BATCH
    assert size & (size - 1) == 0


def test_what_is_beside_a_sample_goes_with_it_whatever_the_order_of_batches():
    model = load(free_size_network())
    sizes = [2, 4, 2, 6, 4, 2]
    feeds = [{"image": np.full((1, 1, size, 2), number, np.float32)} for number, size in enumerate(sizes)]
    beside = ({"wanted": np.full(size, number)} for number, size in enumerate(sizes))
    seen = []
    for signature, batch in batches(model, feeds, 2, beside):
        assert signature.inputs["image"].shape == batch.inputs["image"].shape[1:]
        assert (batch.beside["wanted"] == batch.number[:, None]).all()
        assert (batch.inputs["image"][:, 0, 0, 0, 0] == batch.number).all()
        seen += batch.number[batch.real].tolist()
    assert sorted(seen) == list(range(6))
    assert seen != sorted(seen)


def test_single_samples_come_out_as_they_went_in():
    model = load(branching_network())
    feeds = [
        {"sound": smooth(1, 1, 16, seed=seed), "rate": np.array(rate)} for seed, rate in enumerate([8000, 16000, 8000])
    ]
    found = {}
    for signature, batch in batches(model, feeds, 2):
        found |= dict(zip(batch.number[batch.real], single_feeds(model, signature, batch), strict=True))
    for number, feed in enumerate(feeds):
        for name, value in feed.items():
            np.testing.assert_array_equal(found[number][name], value)
            assert found[number][name].dtype.name == model.inputs[name].dtype
