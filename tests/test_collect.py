"""One pass, one program: statistics are per sample, independent of batches, and all that leaves the device."""

import jax
import numpy as np
import pytest
from models import branching_network, free_size_network, residual_network, smooth, transformer_block, written

from jaxq import collect as collect_module
from jaxq.collect import LARGEST_BATCH, batches, collect, fitting_batch, largest_tensor, split_samples, tensor_shapes
from jaxq.errors import CalibrationError, InputError
from jaxq.observers import both, channel_extremes, extremes, histogram
from jaxq.onnx_import import load
from jaxq.quantizer import IntType, QuantParams

COUNT = 7  # samples: no multiple of the batch sizes below
IMAGES = smooth(COUNT, 3, 8, 8)
BOTH = both(extremes(COUNT), histogram())


def samples(name: str = "image", rows: np.ndarray = IMAGES) -> list[dict[str, np.ndarray]]:
    return [{name: row[None]} for row in rows]


def assert_equal(a, b) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture
def traces(monkeypatch):
    """Counts how often the calibration step is traced: its Python runs only then."""
    counted = []

    def execute(*arguments, **options):
        counted.append(1)
        return plain(*arguments, **options)

    plain = collect_module.execute
    monkeypatch.setattr(collect_module, "execute", execute)
    return counted


# ----------------------------------------------------------------------------------------------------- what is collected


def test_statistics_are_those_of_each_sample_run_by_itself():
    model = load(residual_network())
    names = ("image", "sum.relu", "scores")
    (found,) = collect(model, [{name: BOTH for name in names}], samples(), batch_size=3)
    seen = {name: [] for name in names}
    for feed in samples():
        with_all = model.replace(graph=dataclasses_replace(model.graph, outputs=names))
        for name, value in with_all(feed).items():
            seen[name].append(np.asarray(value))
    for name in names:
        low, high = found[name][0]
        np.testing.assert_allclose(low, [value.min() for value in seen[name]], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(high, [value.max() for value in seen[name]], rtol=1e-5, atol=1e-6)
        assert found[name][1].counts.sum() == np.count_nonzero(seen[name])


def dataclasses_replace(graph, **changes):
    import dataclasses

    return dataclasses.replace(graph, **changes)


@pytest.mark.parametrize("batch", ["N", 1])
def test_batches_do_not_change_the_result(batch):
    model = load(residual_network(batch))
    needs = [{"image": BOTH, "sum.relu": BOTH}, {"sum": channel_extremes(8, 0), "image": extremes(COUNT)}]
    expected = collect(model, needs, samples(), batch_size=1)
    for size in (4, None):
        assert_equal(collect(model, needs, samples(), batch_size=size), expected)


def test_the_order_of_samples_changes_only_the_order_of_their_extremes():
    model = load(residual_network())
    (forward,), (back,) = (collect(model, [{"sum": BOTH}], each, batch_size=4) for each in (samples(), samples()[::-1]))
    assert_equal(forward["sum"][0], tuple(leaf[::-1] for leaf in back["sum"][0]))
    assert_equal(forward["sum"][1], back["sum"][1])


def test_each_need_gets_its_own_names():
    model = load(residual_network())
    found = collect(model, [{"sum": extremes(2)}, {}, {"image": extremes(2), "sum": extremes(2)}], samples()[:2])
    assert [set(each) for each in found] == [{"sum"}, set(), {"image", "sum"}]
    assert_equal(found[0]["sum"], found[2]["sum"])


def test_the_encodings_of_the_model_are_in_force():
    model = load(residual_network())
    params = QuantParams.of(np.full((1, 1, 1, 1), 0.25), 0, IntType(8))
    (found,) = collect(model.replace(encodings={"image": params}), [{"image": extremes(1)}], samples()[:1])
    # The statistic is that of the tensor before its own quantizer, but everything behind works on the rounded one.
    np.testing.assert_array_equal(found["image"].low, IMAGES[0].min())
    (behind,) = collect(model.replace(encodings={"image": params}), [{"stem": extremes(1)}], samples()[:1])
    rounded = (np.round(IMAGES[:1] / 0.25) * 0.25).astype(np.float32)
    (expected,) = collect(model, [{"stem": extremes(1)}], samples(rows=rounded))
    assert_equal(behind, expected)


def test_samples_of_several_sizes_are_collected_together():
    model = load(free_size_network())
    rows = [smooth(1, 1, *size, seed=seed) for seed, size in enumerate([(8, 8), (8, 12), (8, 8), (12, 8)])]
    feeds = [{"image": row} for row in rows]
    (found,) = collect(model, [{"image": BOTH}], feeds, batch_size=2)
    np.testing.assert_array_equal(found["image"][0].low[:4], [row.min() for row in rows])
    assert_equal(collect(model, [{"image": BOTH}], feeds, batch_size=1)[0], found)


def test_tensors_of_branches_that_only_some_samples_take_are_collected():
    model = load(branching_network())
    feeds = [{"sound": smooth(1, 1, 16, seed=seed), "rate": np.array(rate)} for seed, rate in enumerate((8000, 16000, 8000))]
    (found,) = collect(model, [{name: extremes(3) for name in ("slow.relu", "fast.relu", "features")}], feeds)
    seen = {name: (~np.isnan(each.low)).tolist() for name, each in found.items()}
    assert seen == {"slow.relu": [True, False, True], "fast.relu": [False, True, False], "features": [True] * 3}


def test_no_samples_is_an_error():
    with pytest.raises(CalibrationError, match="calibration data is empty; at least one sample is needed"):
        collect(load(residual_network()), [{"sum": extremes(1)}], [])


# ------------------------------------------------------------------------------------------- what it costs: once, little


def test_calibration_compiles_once_whatever_the_last_batch(traces):
    model = load(residual_network())
    for count in (7, 6, 5, 1):
        collect(model, [{"sum": BOTH}], samples()[:count], batch_size=2)
    assert len(traces) == 1


def test_changed_encodings_and_weights_do_not_compile_again(traces):
    model = load(residual_network(1))
    for scale in (0.5, 0.25):
        params = QuantParams.of(np.full((1, 1, 1, 1), scale), 0, IntType(8))
        weights = {name: value * scale for name, value in model.params.items()}
        collect(model.replace(params=weights, encodings={"image": params}), [{"sum": BOTH}], samples(), batch_size=2)
    assert len(traces) == 1


def test_only_the_states_leave_the_device(monkeypatch):
    left = []

    def device_get(tree):
        left.extend(jax.tree.leaves(tree))
        return plain(tree)

    plain = jax.device_get
    monkeypatch.setattr(jax, "device_get", device_get)
    model = load(residual_network())
    needs = [{"sum": BOTH, "image": BOTH}]
    with jax.transfer_guard_device_to_host("disallow_explicit"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(collect_module.jax, "device_get", lambda tree: left.extend(jax.tree.leaves(tree)) or tree)
        collect(model, needs, samples(), batch_size=4)
    assert sum(leaf.nbytes for leaf in left) == 2 * (2 * 4 * COUNT + 4 * 4096 + 4)


def test_memory_does_not_grow_with_the_number_of_samples():
    """A batch is let go before the next but one is asked for: the data may be larger than the memory."""
    import weakref

    alive, most = weakref.WeakSet(), 0

    class Row(np.ndarray):
        pass

    def feeds():
        nonlocal most
        for seed in range(24):
            row = smooth(1, 3, 8, 8, seed=seed).view(Row)
            alive.add(row) if row.__hash__ else None
            most = max(most, len(alive))
            yield {"image": row}

    Row.__hash__ = object.__hash__
    collect(load(residual_network()), [{"sum": extremes(24)}], feeds(), batch_size=2)
    assert most <= 6


@pytest.mark.parametrize("largest, size", [(1, LARGEST_BATCH), (100_000, 32), (3 << 20, 1), (1 << 40, 1)])
def test_large_tensors_make_small_batches(largest, size, monkeypatch):
    monkeypatch.setattr(collect_module, "platform", lambda: "cpu")
    assert fitting_batch(largest) == size


def test_the_largest_tensor_is_found_without_running():
    model = load(residual_network())
    feed = {"image": IMAGES[:1]}
    assert largest_tensor(model, {}, feed) == 8 * 8 * 8 * 4
    shapes = tensor_shapes(model, {}, feed)
    assert shapes["sum"].shape == (1, 8, 8, 8)
    assert shapes["stem.weight"].shape == (8, 3, 3, 3)


# --------------------------------------------------------------------------------------------------------- items to samples

FREE, FIXED = load(residual_network()).inputs, load(residual_network(1)).inputs


def test_an_item_is_split_along_a_free_first_axis():
    found = list(split_samples(FREE, [IMAGES[:2], {"image": IMAGES[2:3]}]))
    assert [feed["image"].shape for feed in found] == [(1, 3, 8, 8)] * 3
    np.testing.assert_array_equal(np.concatenate([feed["image"] for feed in found]), IMAGES[:3])


def test_an_item_of_a_fixed_batch_is_one_sample():
    assert len(list(split_samples(FIXED, [IMAGES[:1], (IMAGES[1:2],)]))) == 2
    with pytest.raises(InputError, match=r"'image' is float32\[1, 3, 8, 8\], but float32\[2, 3, 8, 8\] was given"):
        list(split_samples(FIXED, [IMAGES[:2]]))


def test_inputs_that_decide_a_branch_belong_to_every_sample():
    declared = load(branching_network()).inputs
    item = {"sound": smooth(3, 1, 16), "rate": np.array(8000)}
    found = list(split_samples(declared, [item], static=("rate",)))
    assert [(feed["sound"].shape, int(feed["rate"])) for feed in found] == [((1, 1, 16), 8000)] * 3


def test_inputs_with_different_first_axes_are_one_sample():
    declared = load(written("(float[N, 2] x, float[M, 2] w) => (float y) { y = Gemm <transB = 1> (x, w) }")).inputs
    item = (np.ones((3, 2), np.float32), np.ones((5, 2), np.float32))
    assert len(list(split_samples(declared, [item]))) == 1


def test_a_short_batch_is_padded_and_masked():
    model = load(transformer_block())
    feeds = samples("tokens", smooth(5, 6, 16))
    found = [batch for _, batch in batches(model, feeds, 2)]
    assert [batch.inputs["tokens"].shape for batch in found] == [(2, 1, 6, 16)] * 3
    assert [batch.number[batch.real].tolist() for batch in found] == [[0, 1], [2, 3], [4]]
