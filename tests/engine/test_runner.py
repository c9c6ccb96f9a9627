"""What runs over the samples of a batch: each by itself, networks side by side, sums, slopes, states, and when it compiles."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilations import compilations
from models import residual_network, smooth

from jaxq.engine.batching import batches
from jaxq.engine.execute import quantizing
from jaxq.engine.runner import SAMPLES, Batch, Folded, PerSample, Slopes, outputs, per_sample, run, share, summed, whole
from jaxq.graph.cut import between
from jaxq.graph.ir import FrozenDict
from jaxq.numerics.quantizer import IntType
from jaxq.numerics.ranges import symmetric_weight_params
from jaxq.onnx_io.load import load

FEEDS = [{"image": row[None]} for row in smooth(5, 3, 8, 8)]
NONE = FrozenDict()


@pytest.fixture
def model(request):
    found = load(residual_network())
    return found.replace(graph=replace(found.graph, name=request.node.name))  # so that nothing is compiled for it yet


@pytest.fixture
def batch(model) -> Batch:
    """Five samples and three slots of padding."""
    ((_, found),) = batches(model, FEEDS, 8)
    return found


def encodings(model, steps):
    kernel = next(name for name, value in model.params.items() if value.ndim == 4)
    largest = np.abs(model.params[kernel]).max(keepdims=True)
    return {kernel: symmetric_weight_params(largest * steps, IntType(4))}


def wanted(model, **changes):
    """{output: [5, ...]}, by calls of the model."""
    rows = [model.replace(**changes)(feed) for feed in FEEDS]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def close(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), found, expected)


def energy(networks, numbers, sample):
    """The sum of squares of all outputs."""
    found, _ = networks[0](numbers[0], sample.inputs)
    return sum(jnp.sum(value**2) for value in found.values())


def test_each_sample_gives_what_the_model_gives(model, batch):
    graph, params, rounding = model.replace(encodings=encodings(model, 1)).program
    found = run(outputs, per_sample, (graph,), NONE, batch, (params, rounding))
    close(
        {name: np.asarray(value)[batch.real] for name, value in found.items()},
        wanted(model, encodings=encodings(model, 1)),
    )


def test_a_feed_runs_whole_with_the_axis_of_batches_that_the_network_has(model):
    graph, params, _ = model.program
    feed = Batch({"image": np.concatenate([feed["image"] for feed in FEEDS])})
    found = run(outputs, whole, (graph,), NONE, feed, (params, {}))
    close(found, {name: value[:, 0] for name, value in wanted(model).items()})


def test_padding_adds_nothing_to_sums_and_means(model, batch):
    def mean(networks, numbers, sample):
        return {
            name: jax.lax.psum(value * share(sample), SAMPLES)
            for name, value in networks[0](numbers[0], sample.inputs)[0].items()
        }

    graph, params, _ = model.program
    rows = wanted(model)
    close(run(outputs, summed, (graph,), NONE, batch, (params, {})), {name: each.sum(0) for name, each in rows.items()})
    found = run(mean, PerSample(None), (graph,), NONE, batch, (params,))
    close(found, {name: each.mean(0) for name, each in rows.items()})


@dataclass(frozen=True)
class Apart:
    """The distance of one output of the second network from that of the first."""

    output: str

    def __call__(self, networks, numbers, sample):
        params, rounding = numbers
        exact, _ = networks[0](params, sample.inputs)
        found, _ = networks[1](params, sample.inputs, tap=quantizing(rounding))
        return jnp.abs(found[self.output] - exact[self.output]).max()


def test_two_networks_run_side_by_side_on_the_same_sample(model, batch):
    graph, params, rounding = model.replace(encodings=encodings(model, 1)).program
    name = "depthwise.relu"
    part = between(graph, (), [name])
    longer = replace(graph, outputs=(name, *graph.outputs))
    found = run(Apart(name), per_sample, (longer, part), NONE, batch, (params, rounding))
    inner = model.replace(graph=between(model.graph, (), [name]))
    rows = wanted(inner)[name], wanted(inner, encodings=encodings(model, 1))[name]
    expected = np.abs(rows[1] - rows[0]).reshape(5, -1).max(1)
    assert expected.min() > 0
    close(np.asarray(found)[batch.real], expected)


def test_slopes_are_those_of_the_sum_over_the_samples(model, batch):
    graph, params, _ = model.program
    name = next(name for name, value in params.items() if value.ndim == 4)

    def value(weight):
        return run(energy, summed, (graph,), NONE, batch, ({**params, name: weight},))

    total, slopes = run(energy, Slopes(), (graph,), NONE, batch, (params,))
    close(total, value(params[name]))
    direction = np.sign(np.asarray(slopes[name])).astype(np.float32)
    change = (value(params[name] + 1e-3 * direction) - value(params[name] - 1e-3 * direction)) / 2e-3
    np.testing.assert_allclose(np.sum(slopes[name] * direction), change, rtol=0.02)


def count(state, found, batch):
    return state + jnp.where(batch.real, found, 0).sum()


def test_a_state_is_folded_over_batches_and_gives_its_memory(model):
    graph, params, _ = model.program
    first = state = jax.device_put(np.float32(0))
    for signature, batch in batches(model, FEEDS, 2):
        state = run(energy, Folded(count), (graph,), signature.static, batch, (params,), state)
    assert first.is_deleted()
    close(state, sum((value**2).sum() for value in wanted(model).values()))


def test_a_part_starts_from_tensors_that_are_handed_in(model, batch):
    graph, params, _ = model.program
    name = "depthwise.relu"
    there = run(outputs, per_sample, (between(graph, (), [name]),), NONE, batch, (params, {}))[name]
    part = between(graph, [name], graph.outputs)

    def from_there(networks, numbers, sample):
        return networks[0](numbers, {**sample.inputs, **sample.beside})[0]

    found = run(from_there, per_sample, (part,), NONE, batch._replace(beside={name: there}), params)
    close({name: np.asarray(value)[batch.real] for name, value in found.items()}, wanted(model))


def test_batches_and_numbers_compile_nothing_and_structure_does(model):
    graph = model.program.graph
    with compilations() as seen:
        for steps in (1, 2, 3):
            _, params, rounding = model.replace(encodings=encodings(model, steps)).program
            for signature, batch in batches(model, FEEDS, 2):
                run(Apart(graph.outputs[0]), per_sample, (graph, graph), signature.static, batch, (params, rounding))
        assert len(seen) == 1
        run(Apart(graph.outputs[0]), summed, (graph, graph), signature.static, batch, (params, rounding))
        run(energy, summed, (graph,), signature.static, batch, (params,))
    assert len(seen) == 3


def test_what_is_asked_names_the_program(model, batch, caplog):
    graph, params, _ = model.program
    with jax.log_compiles():
        run(energy, summed, (graph,), NONE, batch, (params,))
    assert any(record.getMessage().startswith("Compiling jit(energy)") for record in caplog.records)
