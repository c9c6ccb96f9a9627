"""After correction no channel is shifted by rounding, whatever the batches that the samples came in."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from models import Network, residual_network, shuffle_network, smooth, transformer_block

import jaxq.algorithms.bias_correction
from jaxq.algorithms import run_pipeline
from jaxq.algorithms.bias_correction import (
    GROUPS,
    BiasCorrection,
    FloatNetwork,
    Site,
    bias_sites,
    kept,
    mean_of_channels,
    relative_noise,
    rounded,
    switched_off,
)
from jaxq.engine.execute import execute, quantizing
from jaxq.engine.model import Model
from jaxq.engine.runner import run
from jaxq.graph.fusion import add_missing_biases, fuse
from jaxq.numerics.distance import worst_if_nan
from jaxq.numerics.quantizer import IntType, QuantParams, fake_quantize
from jaxq.numerics.ranges import symmetric_weight_params
from jaxq.onnx_io.load import load

FEEDS = [{"image": row[None]} for row in smooth(16, 3, 8, 8)]
IMAGES = np.concatenate([feed["image"] for feed in FEEDS])


def coarse(model: Model) -> Model:
    """The model with its weights at three bits, so that the means move."""
    encodings = {
        name: symmetric_weight_params(np.abs(value).max(keepdims=True), IntType(3, narrow=True))
        for name, value in model.params.items()
        if value.ndim > 1
    }
    return model.replace(encodings=encodings)


def prepared(proto) -> Model:
    model = load(proto)
    graph, params = add_missing_biases(*fuse(model.graph, model.params))
    return model.replace(graph=graph, params=params)


@pytest.fixture(scope="module")
def model() -> Model:
    return coarse(prepared(residual_network()))


def sites_of(model: Model) -> tuple[Site, ...]:
    return bias_sites(model.graph, model.params, [node.name for node in model.graph.nodes])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_outputs_that_are_no_numbers_are_the_worst(bad):
    wanted, found = {"y": np.ones((2, 3), np.float32)}, {"y": np.float32([[1, 1, bad], [1, 1, 1]])}
    assert relative_noise(wanted, found, np.array([True, True])) == np.inf
    assert relative_noise(wanted, found, np.array([False, True])) == 0


def channel_means(model: Model, name: str, axis: int = 1) -> np.ndarray:
    found = {}

    def watch(each, value, carry):
        if each == name:
            found[each] = value
        return value, carry

    feed = {"image": jax.numpy.asarray(IMAGES)}
    graph, params, encodings = model.program
    quantize = quantizing(encodings)

    def tap(each, value, carry):
        watch(each, value, carry)
        return quantize(each, value, carry)

    execute(graph, params, feed, tap=tap)
    value = np.asarray(found[name])
    return value.mean(tuple(each for each in range(value.ndim) if each != axis % value.ndim))


def test_the_means_of_all_channels_are_those_of_the_float_model(model):
    sites = sites_of(model)
    assert {site.output for site in sites} == {"stem.norm", "depthwise.norm", "pointwise.norm", "scores"}
    after = run_pipeline([BiasCorrection(sites=sites, batch=16, checks=0)], model, FEEDS)
    exact = model.replace(encodings={})
    for site in sites:
        wanted, before, found = (channel_means(each, site.output) for each in (exact, model, after))
        assert np.abs(found - wanted).max() < 1e-4 < np.abs(before - wanted).max()


def test_in_small_batches_most_of_what_is_missing_is_found(model):
    sites = sites_of(model)
    after = run_pipeline([BiasCorrection(sites=sites, batch=2, checks=0)], model, FEEDS)
    exact = model.replace(encodings={})
    for site in sites:
        wanted, before, found = (channel_means(each, site.output) for each in (exact, model, after))
        assert np.abs(found - wanted).mean() < 0.3 * np.abs(before - wanted).mean()


def test_a_shift_above_the_threshold_leaves_the_layer_as_it_is(model):
    sites = sites_of(model)
    after = run_pipeline([BiasCorrection(sites=sites, threshold=0.0)], model, FEEDS)
    for site in sites:
        np.testing.assert_array_equal(after.params[site.bias], model.params[site.bias])


def test_a_quantizer_that_is_off_is_left_off():
    value = jax.numpy.asarray(smooth(4, 5) * 7)
    params = symmetric_weight_params(np.ones((1, 1), np.float32), IntType(3))
    np.testing.assert_allclose(rounded(value, switched_off(params)), value, atol=float(params.scale.item()) * 2.0**-21)
    lowest = jax.numpy.full((1, 1), np.finfo(np.float32).min)
    np.testing.assert_array_equal(rounded(lowest, switched_off(replace(params, scale=params.scale * 1e36))), lowest)
    np.testing.assert_allclose(rounded(value, params), fake_quantize(value, params), rtol=1e-6)


def test_a_bias_of_zeros_is_corrected():
    model = coarse(prepared(residual_network()))
    site = next(site for site in sites_of(model) if site.output == "stem.norm")
    model = model.replace(params={**model.params, site.bias: np.zeros_like(model.params[site.bias])})
    after = run_pipeline([BiasCorrection(sites=(site,), checks=0)], model, FEEDS)
    assert after.params[site.bias].any()


def test_only_the_biases_of_the_sites_move(model):
    site = sites_of(model)[1]
    after = run_pipeline([BiasCorrection(sites=(site,), checks=0)], model, FEEDS)
    moved = {name for name in model.params if not np.array_equal(model.params[name], after.params[name])}
    assert moved == {site.bias}
    assert after.params[site.bias].dtype == np.float32
    assert after.encodings == model.encodings


def test_a_model_without_rounding_is_left_as_it_is(model):
    exact = model.replace(encodings={})
    after = run_pipeline([BiasCorrection(sites=sites_of(model))], exact, FEEDS)
    for name, value in exact.params.items():
        np.testing.assert_array_equal(after.params[name], value)


def test_padding_of_the_last_batch_does_not_count(model):
    sites = sites_of(model)
    padded = run_pipeline([BiasCorrection(sites=sites, batch=16, checks=0)], model, FEEDS[:5])
    full = run_pipeline([BiasCorrection(sites=sites, batch=5, checks=0)], model, FEEDS[:5])
    for site in sites:
        np.testing.assert_allclose(padded.params[site.bias], full.params[site.bias], rtol=1e-4, atol=1e-5)


def test_shifts_that_move_the_outputs_away_are_dropped():
    """The range cuts one huge value off: to mend the mean over all positions, all the others are moved."""
    net = Network(seed=3)
    product = net.node("MatMul", [net.input("x", ["N", 16, 4]), net.weight("w", 4, 6)], "product")
    total = net.node("Add", [product, net.constant("b", np.zeros(6))], "sum")
    net.node("LayerNormalization", [total, net.constant("gamma", np.ones(6))], "y")
    net.output("y", ["N", 16, 6])
    model = load(net.proto())
    model = model.replace(encodings={"x": QuantParams.of(np.full((1, 1, 1), 0.1), 0, IntType(8))})
    rows = smooth(16, 16, 4) * np.float32(0.5)
    rows[:, 0, 0] = 100.0  # the range ends at 12.7
    sites = sites_of(model)
    feeds = [{"x": row[None]} for row in rows]
    checked = run_pipeline([BiasCorrection(sites=sites, samples=8)], model, feeds)
    unchecked = run_pipeline([BiasCorrection(sites=sites, samples=8, checks=0)], model, feeds)
    assert not checked.params["b"].any()
    exact, before, after = (
        np.asarray(each({"x": rows})["y"]) for each in (model.replace(encodings={}), model, unchecked)
    )
    assert np.abs(before - exact).mean() < 0.1 * np.abs(after - exact).mean()


NAMES = list("abcdefgh")  # two to a group


def error_of(**parts):
    """An error to which each bias adds its part where it is moved."""
    return lambda chosen: 10.0 + sum(parts.get(name, 0.0) for name in chosen)


@pytest.mark.parametrize(
    ("parts", "wanted"),
    [
        ({"a": -5.0, "c": 1.0}, NAMES),  # clear: nothing else is tried
        ({"a": -1.0, "b": -1.0, "f": 1.0}, list("abcdgh")),  # all are better than none: the worse ones are taken back
        ({"a": -1.0, "f": 9.0}, list("ab")),  # none is better than all: the good ones are given
        ({"a": 1.0, "d": 2.0, "f": float("nan")}, []),
        (dict.fromkeys(NAMES, float("inf")), []),
    ],
)
def test_what_is_kept_is_what_lowers_the_error(parts, wanted):
    def error(chosen):
        return float(worst_if_nan(error_of(**parts)(chosen)))

    assert list(kept(NAMES, error)) == wanted


def test_a_layer_whose_shift_does_harm_does_not_stop_the_others(model):
    """The shift of one layer is spoilt: all together would be worse than none."""
    sites = sites_of(model)
    step = BiasCorrection(sites=sites, samples=8)
    whole = run_pipeline([replace(step, checks=0)], model, FEEDS)
    bad = sites[1].bias

    def noise(chosen):
        spoilt = {name: whole.params[name] + (50 if name == bad else 0) for name in chosen}
        found = model.replace(params={**model.params, **spoilt})({"image": IMAGES[8:]})
        return relative_noise(model.replace(encodings={})({"image": IMAGES[8:]}), found, np.full(8, True))

    names = [site.bias for site in sites]
    assert noise(names) > noise([])
    chosen = kept(names, noise)
    assert chosen
    assert bad not in chosen
    assert noise(chosen) < noise([])


def test_the_result_says_which_biases_were_moved(model):
    sites = sites_of(model)
    after = run_pipeline([BiasCorrection(sites=sites, checks=0)], model, FEEDS)
    assert json.loads(after.metadata["jaxq.bias_correction"]) == {"moved": 4, "of": 4, "left": []}
    none = run_pipeline([BiasCorrection(sites=sites, threshold=1e-9)], model, FEEDS)
    said = json.loads(none.metadata["jaxq.bias_correction"])
    assert said == {"moved": 0, "of": 4, "left": [site.bias for site in sites]}


def test_grids_of_sixteen_bits_are_not_looked_at(model):
    fine = {
        name: symmetric_weight_params(np.abs(model.params[name]).max(keepdims=True), IntType(16))
        for name in model.encodings
    }
    exact = model.replace(encodings=fine)
    assert BiasCorrection(sites=sites_of(model)).apply(exact, {}, iter(())) is exact


def test_at_most_the_samples_asked_for_are_taken(model):
    taken = []

    def feeds():
        for number, feed in enumerate(FEEDS):
            taken.append(number)
            yield feed

    BiasCorrection(sites=sites_of(model), samples=5, batch=4, checks=3).apply(model, {}, feeds())
    assert len(taken) == 8  # three of them to check the outputs


def test_batches_and_new_scales_compile_once(model, monkeypatch):
    traces = []

    def counted(graph, *arguments, **options):
        traces.append(graph.name)
        return execute(graph, *arguments, **options)

    monkeypatch.setattr(jaxq.engine.runner, "execute", counted)
    model = model.replace(graph=replace(model.graph, name="batches and new scales compile once"))
    step = BiasCorrection(sites=sites_of(model), batch=4)
    run_pipeline([step], model, FEEDS[:10])
    run_pipeline([step], model.replace(encodings=coarse(model).encodings), FEEDS[:3])
    assert len(traces) == 1  # the float and the quantized walk are one program


def test_the_bias_behind_a_matmul_is_a_site_and_is_corrected():
    net = Network(seed=1)
    product = net.node("MatMul", [net.input("image", ["N", 3, 8, 8]), net.weight("w", 8, 6)], "product")
    net.node("Add", [product, net.constant("b", np.zeros(6))], "y")
    net.output("y", ["N", 3, 8, 6])
    model = coarse(load(net.proto()))
    sites = sites_of(model)
    assert sites == (Site("y", "b", -1),)
    after = run_pipeline([BiasCorrection(sites=sites, batch=16, checks=0)], model, FEEDS)
    exact = model.replace(encodings={})
    np.testing.assert_allclose(channel_means(after, "y", -1), channel_means(exact, "y", -1), atol=1e-4)


def test_sites_are_the_biases_that_one_node_adds():
    convolutions = [Site(name, f"{name}.bias", 1) for name in ("left", "right", "mixed")]
    assert sites_of(load(shuffle_network())) == (*convolutions, Site("scores", "scores.bias", -1))
    products = [Site(name, f"{name}.bias", -1) for name in ("query", "key", "value", "projection", "wide", "narrow")]
    assert set(sites_of(load(transformer_block()))) == set(products)


def test_shared_biases_and_unnamed_nodes_are_left_alone():
    net = Network()
    x = net.convolution(net.input("image", ["N", 3, 8, 8]), "a", (3, 4))
    net.node("Conv", [x, net.weight("b.weight", 4, 4, 1, 1), "a.bias"], "b")
    net.output("b", ["N", 4, 8, 8])
    model = load(net.proto())
    assert sites_of(model) == ()
    residual = prepared(residual_network())
    assert bias_sites(residual.graph, residual.params, []) == ()


@pytest.mark.parametrize("shape", [(1,), (1, 4)])
def test_a_vector_that_is_not_one_value_per_channel_is_no_site(shape):
    net = Network()
    product = net.node("MatMul", [net.input("image", ["N", 3, 8, 8]), net.weight("w", 8, 4)], "product")
    net.node("Add", [product, net.constant("b", smooth(*shape))], "y")
    net.output("y", ["N", 3, 8, 4])
    assert sites_of(load(net.proto())) == ()


def test_bits_do_not_matter_to_what_is_compiled_but_to_what_is_found(model):
    fine = model.replace(encodings={
        name: symmetric_weight_params(np.abs(model.params[name]).max(keepdims=True), IntType(8, narrow=True))
        for name in model.encodings
    })  # fmt: skip
    sites = sites_of(model)
    shifts = [
        np.abs(
            run_pipeline([BiasCorrection(sites=sites)], each, FEEDS).params[sites[0].bias] - each.params[sites[0].bias]
        )
        for each in (fine, model)
    ]
    assert shifts[0].max() < shifts[1].max() / 4


def test_a_layer_without_channels_has_no_rows_to_look_at():
    assert mean_of_channels(np.zeros((2, 0, 3), np.float32), 1).shape == (0,)
    np.testing.assert_array_equal(mean_of_channels(np.zeros((2, 0, 3), np.float32), 2), [0, 0, 0])


def test_what_the_float_network_gave_serves_further_calls(model, monkeypatch):
    step, known, calls = BiasCorrection(sites=sites_of(model), samples=8, checks=4), FloatNetwork(), []
    monkeypatch.setattr(jaxq.algorithms.bias_correction, "run", lambda *given: calls.append(1) or run(*given))
    finer = {name: replace(each, scale=each.scale / 2) for name, each in model.encodings.items()}
    for candidate in (model, model.replace(encodings=finer)):
        afresh = step.apply(candidate, {}, FEEDS)
        apart, calls[:] = len(calls), []
        again = step.apply(candidate, {}, FEEDS, known)
        for site in step.sites:
            np.testing.assert_array_equal(again.params[site.bias], afresh.params[site.bias])
        together, calls[:] = len(calls), []
    # two batches to correct, of which float may be known, and one to check: float once, then none, all and without each group
    trials = apart - 2 * 2 - 1
    assert trials in (2, 2 + GROUPS)
    assert together == 2 + trials
