"""Every advanced parameter of nncf does what its name says; steps are switches."""

import warnings
from typing import Any

import numpy as np
import onnx
import pytest
from models import NETWORKS, Network, quantized, samples, smooth, written

import jaxq
from jaxq import AdvancedBiasCorrectionParameters, AdvancedQuantizationParameters, AdvancedSmoothQuantParameters
from jaxq.algorithms.channel_alignment import ChannelAlignment
from jaxq.algorithms.smooth_quant import SmoothQuant
from jaxq.errors import ConfigError, JaxqWarning
from jaxq.graph.select import IgnoredScope, Subgraph
from jaxq.numerics.estimators import RangeEstimatorParametersSet
from jaxq.onnx_io.load import load
from jaxq.options import QuantizeOptions
from jaxq.pipeline import prepare, rewriting
from jaxq.placement.schemes import FP8QuantizationParameters, Override, QuantizationParameters

FP8 = FP8QuantizationParameters()
STEM, DEPTHWISE = "stem.weight", "depthwise.weight"


def made(name: str = "residual", **advanced: Any) -> jaxq.Model:
    """The network of that name, quantized on its samples with advanced parameters."""
    return jaxq.quantize(
        NETWORKS[name][0](), samples(name, 12), advanced_parameters=AdvancedQuantizationParameters(**advanced)
    )


def scale(model: jaxq.Model, name: str) -> np.ndarray:
    return np.asarray(model.encodings[name].scale)


def differing(one: jaxq.Model, other: jaxq.Model) -> set[str]:
    """The params that two models do not share."""
    assert one.params.keys() == other.params.keys()
    return {name for name, value in one.params.items() if not np.array_equal(value, other.params[name])}


def test_overflow_fix_holds_weights_to_seven_bits():
    held = {
        fix: {name for name, each in made(overflow_fix=fix).encodings.items() if int(each.qmax) == 63}
        for fix in ("disable", "first_layer_only", "enable")
    }
    assert held["disable"] == set()
    assert held["first_layer_only"] == {STEM}
    assert held["enable"] > {STEM, DEPTHWISE}


@pytest.mark.parametrize(
    "activations, weights",
    [(FP8, FP8), (FP8, None), (None, FP8), (QuantizationParameters(num_bits=16), QuantizationParameters(num_bits=16))],
    ids=["float8", "float8 activations", "float8 weights", "16 bits"],
)
def test_biases_have_scales_of_their_own_where_nothing_is_added_in_integers(activations, weights):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", JaxqWarning)
        found = made(activations_quantization_params=activations, weights_quantization_params=weights)
    assert STEM in found.encodings
    biases = [each for each in found.encodings.values() if int(each.qmax) == 2**31 - 1]
    assert len(biases) == 4
    assert all(each.scale.size == 1 and np.frexp(each.scale.item())[0] == 0.5 for each in biases)  # powers of two


BITS16 = QuantizationParameters(num_bits=16)
OLD, NEW = "1.31.1", "1.32.0"


@pytest.mark.parametrize(
    "activations, weights, version, kind",
    [
        (FP8, FP8, OLD, "float8"),
        (FP8, None, OLD, "float8"),
        (None, FP8, OLD, "float8"),
        (FP8, FP8, None, "float8"),
        (BITS16, None, None, "rounds the inputs"),
        (BITS16, None, NEW, "rounds the inputs"),
        (FP8, FP8, NEW, ""),
        (None, FP8, NEW, ""),
        (BITS16, None, OLD, ""),
        (BITS16, FP8, OLD, ""),
        (BITS16, BITS16, NEW, ""),
        (None, None, None, ""),
    ],
)
def test_what_the_installed_runtime_does_not_take_is_warned_of_with_the_option(
    activations, weights, version, kind, monkeypatch
):
    monkeypatch.setattr("jaxq.pipeline.installed_version", lambda _: version)
    advanced = AdvancedQuantizationParameters(
        activations_quantization_params=activations, weights_quantization_params=weights
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        prepare(NETWORKS["residual"][0](), samples("residual", 12), QuantizeOptions(advanced_parameters=advanced))
    found = [str(each.message) for each in caught if "ONNX Runtime" in str(each.message)]
    assert len(found) == bool(kind)
    if kind:
        assert kind in found[0]
        assert ("ORT_DISABLE_ALL" if kind == "float8" else "session.qdq_matmulnbits_accuracy_level") in found[0]
        assert version is None or f"({version} is installed)" in found[0]


def test_quantize_outputs_gives_the_outputs_quantizers():
    assert "scores" not in {name.partition("@")[0] for name in quantized("residual").encodings}
    assert "scores" in {name.partition("@")[0] for name in made(quantize_outputs=True).encodings}


def two_convolutions() -> onnx.ModelProto:
    """x [N, 2, 8, 8] -> y, two convolutions with nothing between them, of very unequal channels."""
    net = Network()
    x = net.convolution(net.input("x", ["N", 2, 8, 8]), "first", (2, 4), 1)
    net.initializers["first.weight"] *= np.array([1, 50, 0.02, 5], np.float32)[:, None, None, None]
    net.convolution(x, "second", (4, 3), 1)
    net.output("second", ["N", 3, 8, 8])
    return net.proto()


def test_channel_alignment_and_equalization_are_switches_that_keep_the_float_function():
    proto, data = two_convolutions(), [smooth(12, 2, 8, 8)]

    def run(**advanced):
        options = AdvancedQuantizationParameters(disable_bias_correction=True, **advanced)
        return jaxq.quantize(proto, data, advanced_parameters=options)

    plain = run(disable_equalization=True)
    for changed in (run(disable_equalization=True, disable_channel_alignment=False), run()):
        assert "first.weight" in differing(plain, changed)
        np.testing.assert_allclose(
            changed.replace(encodings={})(data[0])["second"], load(proto)(data[0])["second"], rtol=1e-4, atol=1e-3
        )


def test_smooth_quant_is_for_transformers_and_has_its_alphas():
    transformer, residual = (load(NETWORKS[name][0]()).graph for name in ("transformer", "residual"))

    def steps(graph, **options):
        return rewriting(graph, QuantizeOptions(**options), frozenset())

    assert [type(step) for step in steps(transformer)] == [SmoothQuant]
    assert steps(residual) == []
    assert [type(step) for step in steps(residual, model_type="transformer")] == [SmoothQuant]
    alphas = AdvancedSmoothQuantParameters(matmul=0.5, convolution=0.25)
    advanced = AdvancedQuantizationParameters(smooth_quant_alphas=alphas, disable_channel_alignment=False)
    smoothing, aligning = steps(transformer, advanced_parameters=advanced)
    assert (smoothing.matmul, smoothing.convolution, type(aligning)) == (0.5, 0.25, ChannelAlignment)
    off = AdvancedQuantizationParameters(smooth_quant_alphas=AdvancedSmoothQuantParameters(matmul=-1))
    assert steps(transformer, advanced_parameters=off) == []


@pytest.mark.parametrize("matmul", [0.5, None])
def test_smooth_quant_keeps_the_float_function(matmul):
    smoothed = made("transformer", smooth_quant_alphas=AdvancedSmoothQuantParameters(matmul=matmul))
    feed = samples("transformer", 1)[0]
    expected = load(NETWORKS["transformer"][0]())(feed)["mixed"]
    plain = made(
        "transformer", smooth_quant_alphas=AdvancedSmoothQuantParameters(matmul=matmul), disable_bias_correction=True
    )
    np.testing.assert_allclose(plain.replace(encodings={})(feed)["mixed"], expected, rtol=1e-3, atol=1e-4)
    assert np.square(smoothed(feed)["mixed"] - expected).mean() < np.square(expected).mean() / 50


def test_biases_are_corrected_fast_or_not_or_not_at_all():
    def biases(**options):
        model = jaxq.quantize(NETWORKS["residual"][0](), samples("residual", 12), **options)
        return {name: np.asarray(value) for name, value in model.params.items() if value.ndim == 1}

    off = AdvancedQuantizationParameters(disable_bias_correction=True)
    held = AdvancedQuantizationParameters(bias_correction_params=AdvancedBiasCorrectionParameters(threshold=1e-9))
    none, fast, full, small = (
        biases(advanced_parameters=off), biases(fast_bias_correction=True), biases(), biases(advanced_parameters=held)
    )  # fmt: skip
    assert none.keys() <= fast.keys()
    for one, other, alike in ((none, fast, False), (none, full, False), (fast, full, False), (none, small, True)):
        assert np.allclose(one["scores.bias"], other["scores.bias"], rtol=0, atol=0) == alike


def test_all_nodes_are_corrected_where_that_is_said():
    def bias(everywhere):
        return jaxq.quantize(
            NETWORKS["residual"][0](),
            samples("residual", 12),
            ignored_scope=IgnoredScope(names="Gemm_scores"),
            advanced_parameters=AdvancedQuantizationParameters(
                bias_correction_params=AdvancedBiasCorrectionParameters(apply_for_all_nodes=everywhere)
            ),
        ).params["scores.bias"]

    original = load(NETWORKS["residual"][0]()).params["scores.bias"]
    np.testing.assert_array_equal(bias(False), original)
    assert not np.array_equal(bias(True), original)


def test_batchwise_statistics_are_of_samples_or_of_whole_items():
    data = [
        smooth(4, 3, 8, 8, seed=seed) * np.linspace(0.1, 1, 4, dtype=np.float32)[:, None, None, None]
        for seed in range(3)
    ]

    def run(batchwise):
        options = AdvancedQuantizationParameters(
            batchwise_statistics=batchwise, activations_range_estimator_params="mean_minmax"
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", JaxqWarning)  # three items are few
            return jaxq.quantize(NETWORKS["residual"][0](), data, preset="performance", advanced_parameters=options)

    items, each = run(False), run(True)
    assert items.metadata["jaxq.calibration_samples"] == "3"
    assert each.metadata["jaxq.calibration_samples"] == "12"
    largest = np.mean([np.abs(item).max() for item in data])
    np.testing.assert_allclose(scale(items, "image").item(), largest / 127, rtol=1e-5)
    assert scale(each, "image") < scale(items, "image")
    assert scale(run(None), "image") == scale(each, "image")


def test_quantization_parameters_and_overrides_choose_the_grids():
    four = QuantizationParameters(num_bits=4)
    model = made(
        weights_quantization_params=four,
        overrides=Override(names="Conv_stem", weights=QuantizationParameters(num_bits=8)),
    )
    assert (int(model.encodings[STEM].qmax), int(model.encodings[DEPTHWISE].qmax)) == (127, 7)
    asymmetric = made(activations_quantization_params=QuantizationParameters(mode="symmetric"))
    assert np.asarray(asymmetric.encodings["image"].zero_point) == 128
    with pytest.raises(ConfigError, match=r"overrides\[0\]\.names: 'Conv_stm' matches no node"):
        made(overrides=Override(names="Conv_stm", weights=four))


@pytest.mark.parametrize("asked, run", [(None, None), (2, 2), (64, 6)], ids=["chosen", "small", "more than there are"])
def test_auto_tries_its_candidates_in_batches_of_the_size_asked_for(monkeypatch, asked, run):
    collect, sizes = jaxq.algorithms.layer_errors.collect, []
    monkeypatch.setattr(
        jaxq.algorithms.layer_errors,
        "collect",
        lambda *given, batch_size: sizes.append(batch_size) or collect(*given, batch_size=batch_size),
    )
    advanced = AdvancedQuantizationParameters(activations_range_estimator_params="auto")
    jaxq.quantize(NETWORKS["residual"][0](), samples("residual", 12), advanced_parameters=advanced, batch_size=asked)
    assert set(sizes) == {run}


def test_the_propagation_rule_decides_whether_readers_share_a_quantizer():
    text = """(float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y, float[N, 4, 6, 6] z)
        { [one] y = Conv (x, v)  [two] z = Conv (x, w) }"""
    weight = np.random.default_rng(0).normal(size=(4, 4, 1, 1)).astype(np.float32)
    proto = written(text, v=weight, w=weight)

    def quantizers(rule):
        advanced = AdvancedQuantizationParameters(
            quantizer_propagation_rule=rule,
            overrides=Override(names="one", activations=QuantizationParameters(num_bits=16)),
        )
        model = jaxq.quantize(proto, [smooth(12, 4, 6, 6)], advanced_parameters=advanced)
        return sorted(int(model.encodings[name].qmax) for name in model.encodings.keys() - model.params.keys())

    assert quantizers("merge_all_in_one") == [65535]
    assert quantizers("do_not_merge_branches") == [255, 65535]


def ranges(model: jaxq.Model) -> dict[str, float]:
    """The scales of the activations."""
    return {name: scale(model, name).item() for name in model.encodings if name not in model.params}


@pytest.mark.parametrize("name", ["minmax", "mean_minmax", "median_minmax", "mean_quantile"])
def test_range_estimators_are_chosen_by_name_or_by_parameters(name):
    by_name = made(activations_range_estimator_params=name)
    by_value = made(activations_range_estimator_params=dict(RangeEstimatorParametersSet.items())[name])
    assert ranges(by_name) == ranges(by_value) != ranges(quantized("residual"))


def test_the_range_estimator_of_weights_is_one_of_its_own():
    four = QuantizationParameters(num_bits=4)
    full, least = (
        made(weights_quantization_params=four, weights_range_estimator_params=name) for name in ("minmax", "mse")
    )
    assert (scale(least, STEM) <= scale(full, STEM)).all()
    assert (scale(least, STEM) < scale(full, STEM)).any()
    assert ranges(least) == ranges(full)


def test_what_is_accepted_for_nncfs_sake_changes_nothing():
    model = made(inplace_statistics=False, backend_params={"compress_weights": False})
    assert differing(model, quantized("residual")) == set()


def test_what_lies_between_two_nodes_can_be_ignored():
    scope = IgnoredScope(subgraphs=[Subgraph("Conv_depthwise", "Conv_pointwise")])
    prepared = prepare(NETWORKS["residual"][0](), samples("residual", 12), QuantizeOptions(ignored_scope=scope))
    assert {"Conv_depthwise", "Conv_pointwise"} <= prepared.ignored
    assert "Conv_stem" in prepared.plan.nodes
    assert "Conv_depthwise" not in prepared.plan.nodes


def test_all_samples_are_used_where_no_number_is_given():
    data = [smooth(1, 3, 8, 8, seed=seed) for seed in range(310)]
    proto = NETWORKS["residual"][0]()
    assert jaxq.quantize(proto, data).metadata["jaxq.calibration_samples"] == "300"
    assert jaxq.quantize(proto, data, subset_size=None).metadata["jaxq.calibration_samples"] == "310"


def test_the_plan_can_be_made_again_with_more_in_float():
    prepared = prepare(NETWORKS["residual"][0](), samples("residual", 12), QuantizeOptions())
    fewer = prepared.place(ignored={"Gemm_scores"})
    assert set(prepared.plan.nodes) - set(fewer.nodes) == {"Gemm_scores"}


def test_the_model_before_bias_correction_can_be_watched():
    prepared = prepare(NETWORKS["residual"][0](), samples("residual", 12), QuantizeOptions())
    seen = []
    after = prepared.run(watch=seen.append)
    (before,) = seen
    assert before.encodings.keys() == after.encodings.keys()
    assert all("bias" in name for name in differing(before, after))
    assert differing(before, after)
