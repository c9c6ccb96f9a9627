"""That compiled programs go with their models and jobs, and that nothing is compiled twice for those that are there."""

import copy
import gc
import sys
import threading
import weakref
from pathlib import Path

import jax
import numpy as np
import pytest
from compilations import compilations
from models import Network, samples, smooth, transformer_block

import jaxq
from jaxq.engine import programs
from jaxq.engine.programs import Held, Programs, compiled, holding
from jaxq.errors import ConfigError


@pytest.fixture
def store(monkeypatch):
    """A store of its own, of at most two programs."""
    monkeypatch.setattr(programs, "PROGRAMS", Programs(2))
    return programs.PROGRAMS


@compiled(static=1)
def scaled(factor, x):
    return x * np.float32(factor)


def compiles(*factors, size=3):
    with compilations() as seen:
        for factor in factors:
            np.testing.assert_array_equal(scaled(factor, np.ones(size, np.float32)), np.full(size, factor, np.float32))
    return len(seen)


def test_the_latest_programs_are_kept_and_the_others_compiled_anew(store):
    assert compiles(1, 2, 1, 2) == 2
    assert compiles(3, 1) == 2  # 1 made room, since 2 was used later
    assert compiles(3, 1) == 0
    assert len(store) == 2


def test_each_set_of_shapes_counts(store):
    assert compiles(1) + compiles(1, size=4) + compiles(1, size=5) == 3
    assert len(store) <= 2


def test_what_somebody_holds_is_kept_and_goes_with_him(store):
    mine = Held()
    with holding(mine), holding():
        assert compiles(1) == 1
    assert compiles(2, 3, 4, 5) == 4
    assert compiles(1) == 0
    (program,) = map(weakref.ref, mine.values())
    assert compiles(6, 7) == 2
    assert program() is not None
    mine.clear()
    gc.collect()
    assert program() is None
    assert compiles(1) == 1


def test_a_job_compiles_nothing_twice(store):
    factors = range(1, 9)
    with holding():
        assert compiles(*factors) == 8
        assert compiles(*factors) == 0
    assert compiles(*factors) > 0


def test_what_is_donated_is_counted_without_the_structure(store):
    double = compiled(static=2, donated=[1])(lambda a, b, kept, given: given * kept)
    kept, given = jax.device_put(np.full(4, 2, np.float32)), jax.device_put(np.full(4, 3, np.float32))
    np.testing.assert_array_equal(double("a", "b", kept, given), np.full(4, 6))
    assert given.is_deleted()
    assert not kept.is_deleted()


def test_threads_share_programs(store):
    wrong, start = [], threading.Barrier(4)

    def work(seed):
        start.wait()
        for factor in np.random.default_rng(seed).integers(1, 6, 25):
            if not (np.asarray(scaled(int(factor), np.ones(3, np.float32))) == factor).all():
                wrong.append(factor)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert wrong == []
    assert len(store) <= 2


def test_the_environment_says_how_many_are_kept(monkeypatch):
    monkeypatch.setattr(programs, "PROGRAMS", Programs())
    monkeypatch.setenv("JAXQ_PROGRAMS", "3")
    compiles(*range(1, 9))
    assert len(programs.PROGRAMS) == 3
    monkeypatch.setenv("JAXQ_PROGRAMS", "0")
    compiles(9)
    assert len(programs.PROGRAMS) == 0
    monkeypatch.setenv("JAXQ_PROGRAMS", "many")
    with pytest.raises(ConfigError, match="JAXQ_PROGRAMS='many' must be a number of programs"):
        compiles(10)


# -------------------------------------------------------------------------------------------------------------- models


def network(channels, layers=1):
    net = Network(seed=channels)
    x = net.input("image", ["N", channels, 5, 5])
    for number in range(layers):
        x = net.node("Relu", [net.convolution(x, f"conv{number}", (channels, channels))], f"relu{number}")
    net.output(x, ["N", channels, 5, 5])
    return net.proto()


def test_a_model_keeps_its_programs_however_much_else_is_compiled(store):
    model, x = jaxq.load(network(3)), smooth(1, 3, 5, 5)
    module = jaxq.to_flax(network(3))
    model(x), module(x)
    compiles(1, 2, 3)
    with compilations() as seen:
        model(x), module(x)
    assert seen == []


def test_models_of_equal_structure_share_their_programs(store):
    x = smooth(1, 3, 5, 5)
    first, second = jaxq.load(network(3)), jaxq.load(network(3))
    first(x)
    compiles(1, 2, 3)
    with compilations() as seen:
        second(x)
    assert seen == []


def test_a_model_that_was_called_can_be_copied(store):
    model, x = jaxq.load(network(3)), smooth(1, 3, 5, 5)
    wanted = model(x)
    for name, value in copy.deepcopy(model)(x).items():
        np.testing.assert_array_equal(value, wanted[name])


@pytest.mark.parametrize(
    "options", [{"fast_bias_correction": True}, {"model_type": "transformer"}], ids=["fast", "transformer"]
)
def test_nothing_is_compiled_that_is_not_let_go_of(options, monkeypatch):
    """What runs outside of a program (`jnp.zeros`) would have one of its own, which JAX keeps for every shape."""
    monkeypatch.setattr(programs, "PROGRAMS", Programs(1000))
    with compilations() as seen:
        jaxq.quantize(transformer_block(), samples("transformer", 9), **options)
    assert 0 < len(seen) == len(programs.PROGRAMS)


def mappings():
    return len(Path("/proc/self/maps").read_text().splitlines())


def resident():
    """Bytes of memory that the process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts what Linux tells about a process")
def test_a_process_that_quantizes_many_models_does_not_grow(monkeypatch):
    monkeypatch.setenv("JAXQ_PROGRAMS", "6")
    monkeypatch.setattr(programs, "PROGRAMS", Programs())
    quick = jaxq.AdvancedQuantizationParameters(activations_range_estimator_params="minmax")
    counts = []
    for number in range(30):
        channels, layers = 3 + number % 10, 1 + number // 10
        samples = [smooth(1, channels, 5, 5, seed=seed) for seed in range(10)]
        quantized = jaxq.quantize(network(channels, layers), samples, advanced_parameters=quick)
        quantized(smooth(1, channels, 5, 5))
        del quantized
        gc.collect()
        counts.append((mappings(), resident()))
    # As long as every program was kept, the last 20 took 4,000 mappings and 250 MB.
    assert counts[-1][0] - counts[9][0] < 1000
    assert counts[-1][1] - counts[9][1] < 150 << 20
