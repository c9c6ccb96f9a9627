"""The main job: the same inputs give the same file, whatever the batches; what is wrong is said before or during the work."""

import logging
import warnings

import jax
import numpy as np
import pytest
from models import NETWORKS, integer_network, quantized, residual_network, samples, smooth, written

import jaxq
from jaxq.errors import CalibrationError, ConfigError, InputError, JaxqWarning, ModelError
from jaxq.graph.select import IgnoredScope
from jaxq.onnx_io.load import load
from jaxq.onnx_io.save import to_proto
from jaxq.options import AdvancedQuantizationParameters, Preset
from jaxq.pipeline import quantize

RANDOM = np.random.default_rng(3)
TINY = written(
    "(float[N, 2, 6, 6] x) => (float[N, 3, 6, 6] y) { [first] a = Conv (x, w, b)  r = Relu (a)  [second] y = Conv (r, v) }",
    w=RANDOM.normal(size=(4, 2, 1, 1)).astype(np.float32),
    b=RANDOM.normal(size=4).astype(np.float32),
    v=RANDOM.normal(size=(3, 4, 1, 1)).astype(np.float32),
)
DATA = list(smooth(12, 1, 2, 6, 6, seed=5))


UNCORRECTED = AdvancedQuantizationParameters(disable_bias_correction=True)


def estimated(name: str) -> AdvancedQuantizationParameters:
    """A range estimator for activations, and no bias correction."""
    return AdvancedQuantizationParameters(activations_range_estimator_params=name, disable_bias_correction=True)


def file(model: jaxq.Model) -> bytes:
    return to_proto(model).SerializeToString()


# ------------------------------------------------------------------------------------------------- it does what it should


@pytest.mark.parametrize("name", NETWORKS)
def test_a_quantized_network_stays_close_to_the_float_one(name):
    model, simulated = load(NETWORKS[name][0]()), quantized(name)
    signal, noise = 0.0, 0.0
    for feed in samples(name, 8):
        for key, value in model(feed).items():
            signal += float((value**2).sum())
            noise += float(((simulated(feed)[key] - value) ** 2).sum())
    assert noise < signal / 50  # 17 dB: the networks are random, and small


def test_the_model_that_was_given_stays_as_it_is():
    model = load(TINY)
    before = {name: np.array(value) for name, value in model.params.items()}
    quantize(model, DATA)
    assert not model.encodings
    for name, value in before.items():
        np.testing.assert_array_equal(model.params[name], value)


def test_every_source_of_a_model_and_form_of_data_gives_the_same_file(tmp_path):
    (tmp_path / "tiny.onnx").write_bytes(TINY.SerializeToString())
    expected = file(quantize(TINY, DATA))
    assert file(quantize(tmp_path / "tiny.onnx", np.concatenate(DATA)[None])) == expected
    assert file(quantize(load(TINY), ({"x": row} for row in DATA))) == expected
    assert file(quantize(TINY, jaxq.Dataset([(row, 7) for row in DATA], lambda item: item[:1]))) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", ["residual", "fixed batch", "branching"])
def test_batch_size_does_not_change_the_file(name):
    proto = NETWORKS[name][0]()
    for size in (1, 5):
        assert file(quantize(proto, samples(name, 12), batch_size=size)) == file(quantized(name))


def test_the_order_of_samples_does_not_change_the_encodings():
    forward, back = quantize(TINY, DATA).encodings, quantize(TINY, DATA[::-1]).encodings
    assert forward.keys() == back.keys()
    for name in forward:
        jax.tree.map(np.testing.assert_array_equal, forward[name], back[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar_resnet8", "kws_dscnn"])
def test_batch_size_does_not_change_the_file_of_a_real_model(name, evaluate):
    task = evaluate.TASKS[name]
    one, four = (file(quantize(task.model, task.calib(20), batch_size=size)) for size in (1, 4))
    assert one == four


def test_quantizing_again_compiles_nothing_anew(caplog):
    quantize(TINY, DATA)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        quantize(TINY, [row * 2 for row in DATA[:-1]], batch_size=None)
    compiled = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Compiling")]
    assert [message for message in compiled if any(name in message for name in ("Watching", "Means", "outputs"))] == []


# -------------------------------------------------------------------------------------------------------------- options


def test_performance_is_symmetric_and_mixed_is_not():
    zero_points = {}
    for preset in (Preset.PERFORMANCE, Preset.MIXED):
        encodings = quantize(TINY, DATA, preset=preset.value).encodings
        zero_points[preset] = int(np.asarray(encodings["x"].zero_point).item())
        assert int(np.asarray(encodings["r"].zero_point).item()) == 0
        assert (np.asarray(encodings["w"].zero_point) == 0).all()
    assert zero_points[Preset.PERFORMANCE] == 128
    assert zero_points[Preset.MIXED] != 128


def test_range_estimators_differ_as_they_should():
    scales = {
        each: float(quantize(TINY, DATA, advanced_parameters=estimated(each)).encodings["x"].scale.item())
        for each in ("minmax", "mean_minmax", "mse")
    }
    low, high = min(row.min() for row in DATA), max(row.max() for row in DATA)
    np.testing.assert_allclose(scales["minmax"], (high - low) / 255, rtol=0.02)
    assert scales["mean_minmax"] < scales["minmax"]
    assert scales["mse"] <= scales["minmax"]


def test_only_the_first_samples_up_to_the_subset_are_used():
    few = quantize(TINY, DATA[:10])
    assert file(quantize(TINY, DATA, subset_size=10).replace(metadata=few.metadata)) == file(few)


def test_no_more_samples_are_asked_for_than_are_used():
    asked = []

    def endless():
        while True:
            asked.append(DATA[len(asked) % len(DATA)])
            yield asked[-1]

    assert quantize(TINY, endless(), subset_size=14).metadata["jaxq.calibration_samples"] == "14"
    assert len(asked) == 14


def test_a_loader_may_refill_its_buffer():
    class Loader:
        def __iter__(self):
            buffer = np.empty_like(DATA[0])
            for row in DATA:
                buffer[:] = row
                yield buffer

    assert file(quantize(TINY, Loader())) == file(quantize(TINY, DATA))


@pytest.mark.slow
def test_samples_of_several_sizes_calibrate_one_network():
    feeds = [smooth(1, 1, 8 + 4 * (seed % 2), 10, seed=seed) for seed in range(12)]
    made = quantize(NETWORKS["free size"][0](), feeds)
    assert made.metadata["jaxq.calibration_samples"] == "12"
    assert made(smooth(1, 1, 14, 6))["clean"].shape == (1, 1, 14, 6)


def test_a_branch_that_no_sample_takes_stays_in_float_and_still_runs():
    proto, slow = NETWORKS["branching"][0](), [feed for feed in samples("branching", 24) if feed["rate"] == 8000]
    with pytest.warns(JaxqWarning, match=r"no calibration sample takes the branches of 2 layer\(s\)"):
        made, plain = quantize(proto, slow), load(proto)
    assert "slow.relu" in made.encodings
    assert "fast.relu" not in made.encodings
    feed = {"sound": smooth(1, 1, 16), "rate": np.array(16000)}
    np.testing.assert_allclose(made(feed)["score"], plain(feed)["score"], atol=0.05)


def test_counts_may_be_numpys():
    counts = {"subset_size": np.int64(12), "batch_size": np.int32(3), "seed": np.uint8(0)}
    assert file(quantize(TINY, DATA, **counts)) == file(quantize(TINY, DATA, subset_size=12))


def test_without_bias_correction_no_bias_is_added():
    plain = quantize(TINY, DATA, advanced_parameters=UNCORRECTED)
    assert {"b"} == {name for name, value in plain.params.items() if value.ndim == 1}
    assert "y.bias" in quantize(TINY, DATA).params


def test_a_transformer_is_treated_as_one_when_that_is_said():
    plain = quantized("residual")
    said = quantize(residual_network(), samples("residual", 12), model_type="transformer")
    assert {"sum.relu", "pointwise.norm"} <= plain.encodings.keys() - said.encodings.keys()


def test_what_is_ignored_stays_in_float():
    kept = quantize(TINY, DATA, ignored_scope=IgnoredScope(names="second"))
    assert set(kept.encodings) == {"x", "w", "b"}


def test_the_record_says_how_the_file_was_made():
    made = quantize(
        TINY, DATA, preset="performance", subset_size=10, seed=7, ignored_scope=IgnoredScope(names="second")
    ).metadata
    sha = made["jaxq.calibration_sha256"]
    assert dict(made) == {
        "jaxq.bias_correction": '{"moved": 1, "of": 1, "left": []}',
        "jaxq.preset": "performance",
        "jaxq.target": "onnxruntime",
        "jaxq.ignored": "second",
        "jaxq.options": '{"ignored_scope": {"names": ["second"]}, "preset": "performance", "seed": 7, "subset_size": 10}',
        "jaxq.calibration_samples": "10",
        "jaxq.calibration_sha256": sha,
    }
    assert quantize(TINY, DATA[1:], subset_size=10).metadata["jaxq.calibration_sha256"] != sha


# ------------------------------------------------------------------------------------------------------------ bad input

BAD_OPTIONS = {
    "preset": ({"preset": "mixd"}, r"preset = 'mixd'; expected one of .*'accuracy'\]; did you mean 'mixed'\?"),
    "target": ({"target_device": "onnx-runtime"}, r"target_device = 'onnx-runtime'; known: .*; did you mean 'onnxruntime'\?"),
    "subset size": ({"subset_size": 0}, "subset_size = 0; expected an integer of at least 1"),
    "subset size of a half": ({"subset_size": 0.5}, "subset_size = 0.5; expected an integer of at least 1"),
    "subset size of a boolean": ({"subset_size": True}, "subset_size = True; expected an integer of at least 1"),
    "batch size": ({"batch_size": -1}, "batch_size = -1; expected an integer of at least 1"),
    "batch size of zero": ({"batch_size": 0}, "batch_size = 0; expected an integer of at least 1"),
    "seed": ({"seed": None}, "seed = None; expected an integer of at least 0"),
    "no target": ({"target_device": None}, "target_device = None; known: .*onnxruntime, .*CPU"),
    "ignored scope": ({"ignored_scope": ["first"]}, r"ignored_scope = \['first'\]; expected an IgnoredScope, e\.g\. "),
    "range estimator": (lambda: {"advanced_parameters": estimated("min_max")}, r"'min_max'; .*; did you mean 'minmax'\?"),
    "model type": ({"model_type": "transformers"}, r"model_type = 'transformers'; .*; did you mean 'transformer'\?"),
    "ignored name": (
        {"ignored_scope": IgnoredScope(names="frst")}, r"ignored name 'frst' matches no node; did you mean 'first'\?"
    ),
}  # fmt: skip


@pytest.mark.parametrize("options, message", BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_a_wrong_option_is_refused_before_the_work(options, message):
    with pytest.raises(ConfigError, match=message):
        quantize(TINY, [], **(options() if callable(options) else options))


GOOD, NAN = np.zeros((1, 2, 6, 6), np.float32), np.full((1, 2, 6, 6), np.nan, np.float32)
INFINITE = np.where(DATA[0] == DATA[0].max(), np.inf, DATA[0])
BAD_DATA = {
    "nothing": ([], CalibrationError, "the calibration data is empty; at least one sample is needed"),
    "an empty batch": ([np.zeros((0, 2, 6, 6), np.float32)], CalibrationError, "the calibration data is empty"),
    "NaN": ([DATA[0], NAN], CalibrationError, r"sample 1 \(counted from 0\): input 'x' holds NaN, in 72 of 72 values; repair"),
    "infinity": ([INFINITE], CalibrationError, "calibration sample 0 .* input 'x' holds infinity, in 1 of 72"),
    "another name": ([{"image": GOOD}], InputError, r"no input 'image'; its inputs: 'x': float32\[N, 2, 6, 6\]"),
    "another rank": ([GOOD[0]], InputError, r"\[N, 2, 6, 6\], but float32\[2, 6, 6\] was given: its rank is 3, not 4"),
    "another shape": ([GOOD[:, :1]], InputError, r"\[N, 2, 6, 6\], but float32\[1, 1, 6, 6\] was given: axis 1 must be 2, not 1"),
    "too many arrays": ([(GOOD, GOOD)], InputError, r"'x': float32\[N, 2, 6, 6\]\), but 2 arrays were given"),
    "another dtype": ([GOOD.astype(float)], InputError, r"\[N, 2, 6, 6\], but float64\[1, 2, 6, 6\] was given; convert it"),
    "a batch instead of batches": ({"x": GOOD}, ConfigError, r"a mapping is one batch; put it in a list"),
    "a path": ("data.npz", ConfigError, "not the path 'data.npz'"),
    "a number": (7, ConfigError, "int is not iterable"),
}  # fmt: skip


@pytest.mark.parametrize("data, error, message", BAD_DATA.values(), ids=BAD_DATA)
def test_data_that_cannot_be_used_are_refused(data, error, message):
    with pytest.raises(error, match=message):
        quantize(TINY, data)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_named_and_not_the_samples(value):
    weight = np.ones((4, 2), np.float32)
    weight[1, 1] = value
    proto = written("(float[N, 4] x) => (float[N, 2] y) { a = MatMul (x, w)  y = MatMul (a, v) }",
                    w=weight, v=np.ones((2, 2), np.float32))  # fmt: skip
    with pytest.raises(CalibrationError, match=r"weight 'w' has 1 value\(s\) that are NaN or infinite"):
        quantize(proto, [np.ones((1, 4), np.float32)])


def test_a_tensor_that_is_not_finite_is_named_with_its_sample():
    proto = written(
        "(float[N, 4] x) => (float[N, 2] y) { a = Log (x)  y = MatMul (a, w) }", w=np.ones((4, 2), np.float32)
    )
    data = [np.ones((1, 4), np.float32), -np.ones((1, 4), np.float32)]
    with pytest.raises(
        CalibrationError,
        match=r"tensor 'a' is NaN or infinite in 1 calibration sample\(s\), first in sample 1 .*; run the float model",
    ):
        quantize(proto, data)


SUSPICIOUS = {
    "few": (DATA[:3], r"3 calibration sample\(s\) are few; some hundred are usual"),
    "identical": (DATA[:1] * 12, "all 12 calibration samples are identical; ranges from them will not fit other data"),
    "constant": (
        [np.full_like(GOOD, value) for value in range(12)],
        "input 'x' is constant: every element .* mean nothing",
    ),
}


@pytest.mark.parametrize("data, message", SUSPICIOUS.values(), ids=SUSPICIOUS)
def test_suspicious_data_are_used_with_a_warning(data, message):
    with pytest.warns(JaxqWarning, match=message):
        quantize(TINY, data)


def test_a_warning_points_to_the_line_that_called():
    with pytest.warns(JaxqWarning) as record:
        quantize(TINY, DATA[:3])
    assert record[0].filename == __file__


def test_constant_zeros_still_give_a_model_that_runs():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", JaxqWarning)
        made = quantize(TINY, [GOOD] * 12)
    assert np.isfinite(made(DATA[0])["y"]).all()


def test_few_samples_are_no_surprise_where_few_were_asked_for():
    with warnings.catch_warnings():
        warnings.simplefilter("error", JaxqWarning)
        quantize(TINY, DATA, subset_size=3)


def test_noise_in_place_of_images_is_used_with_a_warning():
    proto = written(
        "(float[N, 3, 16, 16] x) => (float[N, 2, 16, 16] y) { y = Conv (x, w) }", w=np.ones((2, 3, 1, 1), np.float32)
    )
    noise = np.random.default_rng(0).normal(size=(12, 3, 16, 16)).astype(np.float32)
    with pytest.warns(JaxqWarning, match="input 'x' looks like random noise: .*; calibrate with real data"):
        quantize(proto, [noise])


def test_good_data_are_used_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error", JaxqWarning)
        quantize(TINY, DATA)


BAD_MODELS = {
    "simulated already": (lambda: quantized("residual"), r"already quantized \(it has encodings\); give the float model"),
    "QDQ already": (lambda: to_proto(quantized("residual")), r"quantized \(node '.*' \(DequantizeLinear, .*\) and \d+ more\)"),
    "only integers": (integer_network, r"nothing that target 'onnxruntime' computes in integers \(its operators: Add"),
    "no such file": (lambda: "nowhere.onnx", "no such file: 'nowhere.onnx'"),
}  # fmt: skip


@pytest.mark.parametrize("make, message", BAD_MODELS.values(), ids=BAD_MODELS)
def test_a_model_that_cannot_be_quantized_is_refused(make, message):
    data = [np.ones((1, 4), np.int64 if make is integer_network else np.float32)]
    with pytest.raises(ModelError, match=message):
        quantize(make(), data)


def test_neither_model_nor_data_are_touched_before_the_options_are_right():
    def untouched():
        raise AssertionError("no data are needed to see that")
        yield

    with pytest.raises(ConfigError, match="preset = 'mixd'"):
        quantize("nowhere.onnx", untouched(), preset="mixd")
    with pytest.raises(ModelError, match="no such file"):
        quantize("nowhere.onnx", untouched())
    with pytest.raises(ConfigError, match="matches no node"):
        quantize(TINY, untouched(), ignored_scope=IgnoredScope(names="nowhere"))


def test_a_model_of_which_everything_is_ignored_is_refused():
    with pytest.raises(ModelError, match=r"nothing that target .* \(its operators: Conv, Relu; ignored nodes: 2\)"):
        quantize(TINY, DATA, ignored_scope=IgnoredScope(types="Conv"))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_scale_is_finite_and_positive(name):
    for key, each in quantized(name).encodings.items():
        assert np.isfinite(each.scale).all(), key
        assert (np.asarray(each.scale) > 0).all(), key
