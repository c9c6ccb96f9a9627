"""After correction no channel is shifted by rounding, whatever the batches that the samples came in."""

import logging

import jax
import numpy as np
import pytest
from models import NETWORKS, residual_network, samples, smooth, transformer_block, written

from jaxq.algorithms.bias_correction import BiasCorrection, Site, bias_sites
from jaxq.collect import split_samples
from jaxq.fusion import add_missing_biases
from jaxq.model import Model
from jaxq.onnx_import import load
from jaxq.quantizer import IntType, QuantParams

COARSE = IntType(3, narrow=True)  # so that rounding shifts a lot


def coarse(model: Model) -> Model:
    """The model with its weights on three bits."""
    encodings = {}
    for name, value in model.params.items():
        if value.ndim > 1:
            encodings[name] = QuantParams.of(np.abs(value).max(keepdims=True) / 3, 0, COARSE)
    return model.replace(encodings=encodings)


def networks() -> dict[str, Model]:
    text = "(float[N, 4, 6, 6] x) => (float[N, 5, 6, 6] y) { h = Conv (x, w, b)  r = Relu (h)  y = Conv (r, v, c) }"
    random = np.random.default_rng(0)
    conv = written(text, w=random.normal(size=(6, 4, 1, 1)).astype(np.float32), b=random.normal(size=6).astype(np.float32),
                   v=random.normal(size=(5, 6, 1, 1)).astype(np.float32), c=np.zeros(5, np.float32))  # fmt: skip
    return {"convolutions": load(conv), "transformer": load(transformer_block())}


MODELS = networks()


def sites_of(model: Model) -> tuple[Site, ...]:
    return bias_sites(model.graph, model.params, [node.name for node in model.graph.nodes])


def shifts(plain: Model, quantized: Model, rows: np.ndarray, outputs: tuple[str, ...]) -> np.ndarray:
    """The mean difference of the last channels of each output."""
    import dataclasses

    graph = dataclasses.replace(plain.graph, outputs=outputs)
    exact, rounded = (each.replace(graph=graph)([rows]) for each in (plain, quantized))
    axis = 1 if rows.ndim == 4 else -1
    means = [np.moveaxis(np.asarray(exact[name] - rounded[name]), axis, 0) for name in outputs]
    return np.concatenate([each.reshape(each.shape[0], -1).mean(1) for each in means])


@pytest.mark.parametrize("name, rows", [("convolutions", smooth(16, 4, 6, 6)), ("transformer", smooth(16, 6, 16))])
def test_the_means_of_all_channels_come_out_right(name, rows):
    model = MODELS[name]
    rounded, sites = coarse(model), sites_of(model)
    outputs = tuple(site.output for site in sites)
    corrected = BiasCorrection(sites=sites).apply(rounded, {}, list(split_samples(model.inputs, [rows])))
    before, after = (np.abs(shifts(model, each, rows, outputs)) for each in (rounded, corrected))
    assert before.max() > 0.05
    assert after.max() < 1e-4


def test_only_biases_move():
    model = MODELS["convolutions"]
    feeds = list(split_samples(model.inputs, [smooth(4, 4, 6, 6)]))
    corrected = BiasCorrection(sites=sites_of(model)).apply(coarse(model), {}, feeds)
    moved = {name for name, value in model.params.items() if (corrected.params[name] != value).any()}
    assert moved == {"b", "c"}
    assert corrected.params["c"].dtype == np.float32


def test_where_nothing_is_rounded_nothing_moves():
    model = MODELS["convolutions"]
    feeds = list(split_samples(model.inputs, [smooth(4, 4, 6, 6)]))
    corrected = BiasCorrection(sites=sites_of(model)).apply(model, {}, feeds)
    for name, value in model.params.items():
        np.testing.assert_allclose(corrected.params[name], value, atol=1e-6)


def test_no_more_samples_are_taken_than_asked_for():
    model = MODELS["convolutions"]
    feeds = split_samples(model.inputs, [smooth(8, 4, 6, 6)])
    taken = []
    BiasCorrection(sites=sites_of(model), samples=5, batch=2).apply(
        coarse(model), {}, (taken.append(1) or feed for feed in feeds)
    )
    assert len(taken) <= 6


def test_a_ragged_last_batch_counts_by_its_samples_and_compiles_nothing_anew(caplog):
    model = coarse(MODELS["convolutions"])
    rows = smooth(5, 4, 6, 6)
    step = BiasCorrection(sites=sites_of(model)[:1], batch=2)
    step.apply(model, {}, split_samples(model.inputs, [rows[:4]]))
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        ragged = step.apply(model, {}, split_samples(model.inputs, [rows]))
    assert not [record for record in caplog.records if "_shifts" in record.getMessage()]
    single = BiasCorrection(sites=sites_of(model)[:1], batch=1).apply(model, {}, split_samples(model.inputs, [rows]))
    # Of one layer with rounded weights, the mean of batch means is the mean over samples.
    np.testing.assert_allclose(ragged.params["b"], single.params["b"], rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------------------------- where


def test_sites_are_the_biases_that_one_node_adds():
    model = load(NETWORKS["shuffle"][0]())
    assert sites_of(model) == tuple(
        Site(output, bias, 1)
        for output, bias in (
            ("left", "left.bias"),
            ("right", "right.bias"),
            ("mixed", "mixed.bias"),
            ("scores", "scores.bias"),
        )
    )


def test_the_add_behind_a_product_is_a_site_of_its_last_axis():
    assert Site("query", "query.bias", -1) in sites_of(MODELS["transformer"])
    assert len(sites_of(MODELS["transformer"])) == 6


def test_missing_and_shared_biases_and_nodes_that_are_not_named_are_none():
    model = load(residual_network())
    assert sites_of(model) == (Site("scores", "scores.bias", 1),)
    graph, params = add_missing_biases(model.graph, model.params)
    names = [node.name for node in graph.nodes if node.op == "Conv"]
    assert len(bias_sites(graph, params, names)) == 3
    shared = load(written("(float[N, 2] x) => (float[N, 2] y) { h = Gemm (x, w, b)  y = Gemm (h, w, b) }",
                          w=np.eye(2, dtype=np.float32), b=np.ones(2, np.float32)))  # fmt: skip
    assert sites_of(shared) == ()


def test_a_network_is_corrected_for_real():
    """On the data of the calibration, the outputs of the corrected network are closer in the mean."""
    model = load(residual_network())
    graph, params = add_missing_biases(model.graph, model.params)
    model = model.replace(graph=graph, params=params)
    feeds = samples("residual", 16)
    rounded = coarse(model)
    corrected = BiasCorrection(sites=sites_of(model)).apply(rounded, {}, feeds)
    rows = np.concatenate([feed["image"] for feed in feeds])
    before, after = (
        np.abs((model([rows])["scores"] - each([rows])["scores"]).mean(0)).max() for each in (rounded, corrected)
    )
    assert after < before / 5
