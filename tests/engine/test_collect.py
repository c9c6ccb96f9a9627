from dataclasses import replace

import jax
import numpy as np
import pytest
from models import (
    branching_network,
    free_size_network,
    residual_network,
    shuffle_network,
    smooth,
    transformer_block,
)

import jaxq.engine.batching
import jaxq.engine.runner
from jaxq.engine.batching import batches
from jaxq.engine.collect import Updating, Watching, collect
from jaxq.engine.execute import execute
from jaxq.engine.model import Model
from jaxq.engine.runner import Folded, run
from jaxq.engine.traced import Signature
from jaxq.errors import CalibrationError
from jaxq.graph.ir import FrozenDict
from jaxq.numerics.observers import both, channel_extremes, extremes, histogram
from jaxq.numerics.quantizer import IntType, QuantParams
from jaxq.onnx_io.load import load

COUNT = 7
WATCHED = both(extremes(COUNT), histogram())
FEEDS = [{"image": row[None]} for row in smooth(COUNT, 3, 8, 8)]


def named(model: Model, name: str) -> Model:
    """The model under a name of its own, so that nothing is compiled for it yet."""
    return model.replace(graph=replace(model.graph, name=name))


@pytest.fixture
def model(request) -> Model:
    return named(load(residual_network()), request.node.name)


@pytest.fixture
def traces(monkeypatch) -> list[str]:
    """Grows by one for each time a model is traced in `collect`."""
    found: list[str] = []

    def counted(graph, *arguments, **options):
        found.append(graph.name)
        return execute(graph, *arguments, **options)

    monkeypatch.setattr(jaxq.engine.runner, "execute", counted)
    return found


def needs_of(model: Model) -> dict:
    """Three tensors of the model: the first, the last, and one between."""
    made = [name for node in model.graph.nodes for name in node.outputs]
    return dict.fromkeys([made[0], made[len(made) // 2], made[-1]], WATCHED)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


NETWORKS = {
    "residual": (residual_network(), FEEDS),
    "fixed batch": (residual_network(batch=1), FEEDS),
    "shuffle": (shuffle_network(), FEEDS),
    "transformer": (transformer_block(), [{"tokens": row[None]} for row in smooth(COUNT, 6, 16)]),
    "free size": (
        free_size_network(),
        [{"image": smooth(1, 1, 8 + 2 * (seed % 2), 8, seed=seed)} for seed in range(COUNT)],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("network, feeds", NETWORKS.values(), ids=NETWORKS)
def test_the_batch_size_does_not_change_what_is_found(network, feeds):
    model = load(network)
    needs = needs_of(model)
    expected = collect(model, [needs], feeds, batch_size=1)[0]
    for size in (3, 8):
        found = collect(model, [needs], feeds, batch_size=size)[0]
        for name in needs:
            (low, high), shape = found[name]
            (low1, high1), shape1 = expected[name]
            np.testing.assert_allclose(low, low1, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(high, high1, rtol=1e-5, atol=1e-6)
            assert shape.exponent == shape1.exponent
            assert np.abs(shape.counts.cumsum() - shape1.counts.cumsum()).max() <= 1 + 0.001 * shape.counts.sum()


def test_the_order_of_the_samples_moves_only_their_places(model):
    order = [3, 0, 6, 1, 5, 2, 4]
    needs = needs_of(model)
    expected = collect(model, [needs], FEEDS, batch_size=1)[0]
    found = collect(model, [needs], [FEEDS[i] for i in order], batch_size=1)[0]
    for name in needs:
        np.testing.assert_array_equal(found[name][0].low, expected[name][0].low[order])
        same(found[name][1], expected[name][1])


def test_statistics_are_those_of_the_tensors_themselves(model):
    found = collect(model, [needs_of(model)], FEEDS, batch_size=4)[0]
    for number, feed in enumerate(FEEDS[:2]):
        values = {}
        execute(model.program.graph, model.program.params, {"image": jax.numpy.asarray(feed["image"])}, carry=None,
                tap=lambda name, value, carry, values=values: (values.update({name: value}) or value, carry))  # fmt: skip
        for name, (seen, shape) in found.items():
            assert shape.counts.sum() <= COUNT * values[name].size
            np.testing.assert_allclose(seen.low[number], values[name].min(), rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(seen.high[number], values[name].max(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_a_ragged_last_batch_compiles_nothing_more(model, traces, size):
    collect(model, [needs_of(model)], FEEDS, batch_size=size)
    collect(model, [needs_of(model)], FEEDS[:1], batch_size=size)
    assert len(traces) == 1


def test_new_weights_and_encodings_compile_nothing_more(model, traces):
    for scale, bits in ((0.1, 8), (0.3, 4)):
        encodings = {"stem.relu": QuantParams.of(np.full((1, 1, 1, 1), scale), 0, IntType(bits))}
        params = {name: value * 1.5 for name, value in model.params.items()}
        collect(model.replace(encodings=encodings, params=params), [needs_of(model)], FEEDS, batch_size=4)
    assert len(traces) == 1


def test_each_shape_compiles_once(traces):
    model = named(load(free_size_network()), "each shape compiles once")
    collect(model, [needs_of(model)], NETWORKS["free size"][1], batch_size=2)
    assert len(traces) == 2


def test_only_the_states_leave_the_device(model, monkeypatch):
    """Neither the compiled step nor the copy to the host has anything but the states, whatever the number of samples."""
    sent = []
    device_get = jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda tree: sent.append(tree) or device_get(tree))
    needs = needs_of(model)
    collect(model, [needs], FEEDS, batch_size=2)
    state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(WATCHED.init(len(needs))))
    assert [sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) for tree in sent] == [state_bytes]

    signature, batch = next(iter(batches(model, FEEDS, 2)))
    graph, params, _ = model.program
    each, into = Watching(frozenset(needs)), Folded(Updating(FrozenDict({WATCHED: tuple(needs)})))
    results = jax.eval_shape(
        lambda states, batch: run(each, into, (graph,), signature.static, batch, (params, {}), states),
        [WATCHED.init(len(needs))], batch,
    )  # fmt: skip
    assert sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(results)) == state_bytes


def test_a_loader_may_refill_its_buffer(model):
    buffer = np.empty_like(FEEDS[0]["image"])

    def feeds():
        for feed in FEEDS:
            buffer[...] = feed["image"]
            yield {"image": buffer}

    needs = {"image": extremes(COUNT)}
    same(collect(model, [needs], feeds(), batch_size=4), collect(model, [needs], FEEDS, batch_size=4))


def test_padding_does_not_count(model):
    found = collect(model, [{"image": WATCHED}], FEEDS[:3], batch_size=64)[0]["image"]
    assert np.isfinite(found[0].low).sum() == 3
    assert found[1].counts.sum() == sum(np.count_nonzero(feed["image"]) for feed in FEEDS[:3])


def test_several_wishes_are_answered_in_one_pass(model, traces):
    first, second = {"sum": extremes(COUNT), "stem.relu": histogram()}, {"sum": channel_extremes(8, 1)}
    passes = []

    def feeds():
        passes.append(1)
        yield from FEEDS

    found = collect(model, [first, second, {}], feeds(), batch_size=4)
    assert [set(each) for each in found] == [{"sum", "stem.relu"}, {"sum"}, set()]
    assert len(passes) == len(traces) == 1
    same(found[0]["sum"].low.min(), found[1]["sum"].low.min())


def test_states_come_back_as_numpy(model):
    found = collect(model, [needs_of(model)], FEEDS[:2], batch_size=2)[0]
    assert all(isinstance(leaf, (np.ndarray, np.generic)) for leaf in jax.tree.leaves(found))


def test_statistics_follow_the_encodings(model):
    coarse = QuantParams.of(np.ones((1, 1, 1, 1)), 0, IntType(8))
    quantized = model.replace(encodings={"stem.relu": coarse})
    low, high = collect(quantized, [{"stem.relu": extremes(1)}], FEEDS[:1])[0]["stem.relu"]
    exact = collect(model, [{"stem.relu": extremes(1)}], FEEDS[:1])[0]["stem.relu"]
    np.testing.assert_array_equal(high, exact.high)  # a tensor is watched before it is rounded, what follows it after
    assert low == 0
    assert not np.array_equal(
        collect(quantized, [{"sum": extremes(1)}], FEEDS[:1])[0]["sum"].high,
        collect(model, [{"sum": extremes(1)}], FEEDS[:1])[0]["sum"].high,
    )


def test_a_branch_that_some_samples_do_not_take_is_seen_for_the_others():
    model = load(branching_network())
    feeds = [{"sound": smooth(1, 1, 16, seed=i), "rate": np.array(rate)} for i, rate in enumerate((8000, 16000, 8000))]
    needs = dict.fromkeys(["sound", "slow.conv", "fast.conv", "features"], both(extremes(3), histogram()))
    found = collect(model, [needs], feeds)[0]
    seen = {name: np.isfinite(state[0].low).tolist() for name, state in found.items()}
    assert seen == {
        "sound": [True] * 3, "features": [True] * 3, "slow.conv": [True, False, True], "fast.conv": [False, True, False]
    }  # fmt: skip
    assert found["slow.conv"][1].counts.sum() == 2 * 4 * 14
    assert np.isnan(collect(model, [needs], feeds[:1])[0]["fast.conv"][0].low).all()


def test_no_samples_are_an_error(model):
    with pytest.raises(CalibrationError, match="at least one sample"):
        collect(model, [needs_of(model)], [])


def test_shapes_are_found_without_running(model):
    shapes = model.traced(Signature.of(FEEDS[0])).tensors
    assert shapes["stem.relu"].shape == (1, 8, 8, 8)
    assert shapes["scores"].shape == (1, 5)
    assert model.traced(Signature.of(FEEDS[0])).largest == 4 * 8 * 8 * 8


def test_the_chosen_batch_gives_what_single_samples_give(model):
    """To the bit, of a tensor that no rounding of another program can change."""
    needs = {"image": WATCHED}
    same(collect(model, [needs], FEEDS), collect(model, [needs], FEEDS, batch_size=1))
