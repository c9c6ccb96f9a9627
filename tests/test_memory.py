"""What `quantize` holds at a time does not depend on the number of samples: bytes are counted, not looked at from outside."""

import gc
import tracemalloc
from collections.abc import Iterator

import jax
import numpy as np
import pytest
from models import Network

import jaxq

SIZE = 64
SAMPLE = 3 * SIZE * SIZE * 4  # bytes
BATCH = 16  # samples at a time: a few batches in 64 already


class Stream:
    """So many samples, each made when it is asked for; with the most bytes that were there when one was."""

    def __init__(self, count: int):
        self.count, self.peak, self.passes = count, 0, 0

    def __iter__(self) -> Iterator[np.ndarray]:
        self.passes += 1
        random = np.random.default_rng(0)
        coarse = random.standard_normal((1, 3, 8, 8), dtype=np.float32)
        for number in range(self.count):
            shift = np.roll(np.kron(coarse, np.ones((1, 1, 8, 8), np.float32)), number % SIZE, axis=3)
            yield shift + random.standard_normal((1, 3, SIZE, SIZE), dtype=np.float32) * np.float32(0.1)
            if number % 16 == 0:
                self.peak = max(self.peak, sum(each.nbytes for each in jax.live_arrays()))


def network() -> jaxq.Model:
    net = Network()
    x = net.input("x", ["N", 3, SIZE, SIZE])
    x = net.node("Relu", [net.convolution(x, "first", (3, 8), strides=[2, 2])], "relu")
    x = net.node("Relu", [net.convolution(x, "second", (8, 8))], "relu2")
    x = net.node("Flatten", [net.node("GlobalAveragePool", [x], "mean")], "flat")
    net.output(net.node("MatMul", [x, net.weight("w", 8, 4)], "y"), ["N", 4])
    return jaxq.load(net.proto())


def peaks(model: jaxq.Model, count: int, estimator: str) -> tuple[int, int]:
    """The most bytes of JAX arrays, and of everything that Python and numpy allocated, while `count` samples are used."""
    stream = Stream(count)
    advanced = jaxq.AdvancedQuantizationParameters(activations_range_estimator_params=estimator)
    gc.collect()
    tracemalloc.start()
    try:
        jaxq.quantize(model, stream, subset_size=None, advanced_parameters=advanced, batch_size=BATCH)
        held = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert stream.passes > 1  # also those after the first
    return stream.peak, held


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["mse", "mean_quantile", "auto"])
def test_sixteen_times_the_samples_take_no_more_memory(estimator):
    model = network()
    peaks(model, 64, estimator)  # compiles, and fills caches
    few, many = peaks(model, 64, estimator), peaks(model, 1024, estimator)
    allowed = 4 * BATCH * SAMPLE  # batches that wait for the device; all samples would be sixty more
    assert many[0] - few[0] < allowed
    assert many[1] - few[1] < allowed


@pytest.mark.slow
def test_the_count_sees_samples_that_are_kept():
    """Of a one-shot iterator the items are kept, as its documentation says: that must show, or the test above proves nothing."""
    model = network()
    gc.collect()
    tracemalloc.start()
    try:
        jaxq.quantize(model, iter(Stream(256)), subset_size=None)
        held = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert held > 256 * SAMPLE
