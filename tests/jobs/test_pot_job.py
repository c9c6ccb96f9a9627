"""POT's configuration files: every parameter of its documentation by its own name, with its effect; and what is refused."""

import copy
import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from models import free_size_network, residual_network, samples, transformer_block
from models import written as written_model

from jaxq.accuracy.options import MetricOptions
from jaxq.engine.model import Model
from jaxq.errors import ConfigError, JaxqError, JaxqWarning
from jaxq.jobs.job import LayerwiseTuning
from jaxq.jobs.run import RunResult, read_any, run_config
from jaxq.onnx_io.load import load

PARAMS = "compression.algorithms[0].params"
FILE = {
    "model": {"model_name": "small", "model": "network.onnx"},
    "engine": {"type": "simplified", "data_source": "samples.npz"},
    "compression": {"algorithms": [{"name": "DefaultQuantization", "params": {}}]},
}
IMAGE, STEM, DEPTHWISE = "image", "stem.weight", "depthwise.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a small network and twelve samples for it."""
    path = tmp_path_factory.mktemp("pot")
    onnx.save(residual_network(), path / "network.onnx")
    images = np.concatenate([feed["image"] for feed in samples("residual", 12)])
    np.savez(path / "samples.npz", image=images * np.linspace(0.2, 1, 12, dtype=np.float32)[:, None, None, None])
    return path


def written(folder: Path, params: dict[str, Any], edit: Callable[[Any], Any] | None = None) -> Path:
    """A configuration file with these parameters, changed by `edit`."""
    content = copy.deepcopy(FILE)
    content["compression"]["algorithms"][0]["params"] = params
    if edit is not None:
        edit(content)
    (folder / "pot.json").write_text(json.dumps(content))
    return folder / "pot.json"


def run(folder: Path, edit: Callable[[Any], Any] | None = None, **params: Any) -> Model:
    return run_config(written(folder, params, edit)).model


def compression(**values: Any) -> Callable[[Any], Any]:
    return lambda content: content["compression"].update(values)


def scale(model: Model, name: str) -> np.ndarray:
    return np.asarray(model.encodings[name].scale)


def zero_point(model: Model, name: str) -> np.ndarray:
    return np.asarray(model.encodings[name].zero_point)


def same(one: Model, other: Model) -> bool:
    """Whether all encodings are equal."""
    return one.encodings.keys() == other.encodings.keys() and all(
        np.array_equal(scale(one, name), scale(other, name)) for name in one.encodings
    )


@pytest.fixture(scope="module")
def default(folder) -> Model:
    return run(folder)


# --------------------------------------------------------------------------------------------------- general parameters


def test_defaults_are_those_of_the_documentation(folder, default):
    assert zero_point(default, IMAGE) == 128  # performance: symmetric
    assert same(default, run(folder, preset="performance", saturation_fix="first_layer", use_fast_bias=True))
    images = np.load(folder / "samples.npz")["image"]
    mean_of_largest = np.abs(images).max(axis=(1, 2, 3)).mean()
    np.testing.assert_allclose(scale(default, IMAGE).item(), mean_of_largest / 127, rtol=1e-5)
    assert default.metadata["jaxq.calibration_samples"] == "12"  # the whole data set


def test_preset_chooses_which_tensors_are_asymmetric(folder, default):
    mixed = run(folder, preset="mixed")
    assert zero_point(mixed, IMAGE) not in (0, 128)
    assert (zero_point(mixed, DEPTHWISE) == 0).all()
    fully = run(folder, compression(target_device="NPU"), preset="accuracy")
    assert (zero_point(fully, DEPTHWISE) != 0).any()
    assert same(mixed, run(folder, preset="accuracy"))  # the target has no asymmetric weights per channel
    assert same(default, run(folder, preset="symmetric"))
    assert same(fully, run(folder, compression(target_device="VPU"), preset="asymmetric"))


def test_stat_subset_size_is_the_number_of_samples(folder, default):
    made = run(folder, stat_subset_size=10)
    assert made.metadata["jaxq.calibration_samples"] == "10"
    assert scale(made, IMAGE) < scale(default, IMAGE)  # the last samples are the largest


def test_shuffle_data_draws_samples_by_the_seed(folder):
    def fingerprint(**params):
        return run(folder, stat_subset_size=10, **params).metadata["jaxq.calibration_sha256"]

    drawn = fingerprint(shuffle_data=True, seed=1)
    assert drawn == fingerprint(shuffle_data=True, seed=1)
    assert len({drawn, fingerprint(shuffle_data=True, seed=2), fingerprint()}) == 3


def test_stat_batch_size_is_a_matter_of_speed(folder, default):
    assert read_any(written(folder, {"stat_batch_size": 5}))[0].quantize.batch_size == 5
    assert same(default, run(folder, stat_batch_size=5))


@pytest.mark.parametrize("key", ["inplace_statistics", "inplase_statistics"])
@pytest.mark.filterwarnings("ignore:.*is read as")
def test_inplace_statistics_changes_how_and_not_what(folder, default, key):
    assert same(default, run(folder, compression(**{key: False})))
    assert not read_any(written(folder, {key: False}))[0].quantize.advanced_parameters.inplace_statistics


def test_a_known_misspelling_is_read_with_a_warning(folder):
    with pytest.warns(JaxqWarning, match="'inplase_statistics' is read as 'inplace_statistics'"):
        read_any(written(folder, {}, compression(inplase_statistics=True)))


@pytest.mark.parametrize("place", ["compression", "params", "the documentation's spelling"])
def test_model_type_transformer_keeps_additions_in_float(tmp_path, place):
    onnx.save(transformer_block(), tmp_path / "network.onnx")
    np.savez(tmp_path / "samples.npz", tokens=np.concatenate([feed["tokens"] for feed in samples("transformer", 12)]))
    params = {"params": {"model_type": "transformer"}, "the documentation's spelling": {"model type": "transformer"}}
    edit = compression(model_type="transformer") if place == "compression" else None
    job, _ = read_any(written(tmp_path, params.get(place, {}), edit))
    assert job.quantize.model_type == "transformer"
    said, not_said = (run(tmp_path, compression(model_type=kind)) for kind in ("transformer", "None"))
    assert said.metadata["jaxq.options"] != not_said.metadata["jaxq.options"]
    assert "mixed" not in said.encodings


def test_dump_intermediate_model_writes_the_model_before_bias_correction(folder, tmp_path):
    result = run_config(written(folder, {}, compression(dump_intermediate_model=True)), tmp_path)
    before, after = load(tmp_path / "small.intermediate.onnx"), load(tmp_path / "small.onnx")
    assert result.path == tmp_path / "small.onnx"
    assert [node.op for node in before.graph.nodes] == [node.op for node in after.graph.nodes]
    image = np.load(folder / "samples.npz")["image"]
    assert not np.array_equal(before(image)["scores"], after(image)["scores"])


def test_target_device_chooses_the_table(folder):
    targets = {
        name: run(folder, compression(target_device=name)).metadata["jaxq.target"]
        for name in ("ANY", "CPU", "GPU", "VPU")
    }
    assert targets == {"ANY": "onnxruntime", "CPU": "onnxruntime", "GPU": "openvino", "VPU": "openvino"}


def biases(model: Model) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in model.params.items() if value.ndim == 1}


def moved(one: Model, other: Model) -> set[str]:
    """The biases in which two models differ."""
    return {name for name in biases(one) if not np.array_equal(biases(one)[name], biases(other)[name])}


COARSE = {"bits": 2}  # so that a correction is worth something; full bias correction drops one that is not


def test_use_fast_bias_chooses_the_algorithm(folder, default):
    assert moved(default, run(folder, use_fast_bias=False))


@pytest.mark.parametrize("fast", [True, False])
def test_threshold_limits_the_correction(folder, fast):
    free, held = (run(folder, use_fast_bias=fast, threshold=value, weights=COARSE) for value in (1000.0, 1e-9))
    assert moved(free, held)


def test_apply_for_all_nodes_corrects_layers_in_float_too(folder):
    ignored = {"scope": ["Gemm_scores"]}
    some, every = (
        run(folder, use_fast_bias=False, ignored=ignored, apply_for_all_nodes=flag, weights=COARSE)
        for flag in (False, True)
    )
    tried = [json.loads(model.metadata["jaxq.bias_correction"])["of"] for model in (some, every)]
    assert tried[1] == tried[0] + 1


def test_saturation_fix_holds_weights_to_seven_bits(folder):
    def held(value):
        encodings = run(folder, saturation_fix=value).encodings
        return {name for name, each in encodings.items() if "weight" in name and int(each.qmax) == 63}

    assert held("no") == set()
    assert held("first_layer") == {STEM}
    assert held("all") == {STEM, DEPTHWISE, "pointwise.weight", "scores.weight"}


# ------------------------------------------------------------------------------------------------------------- ignored


def test_ignored_scope_keeps_nodes_in_float(folder, default):
    kept = run(folder, ignored={"scope": ["Gemm_scores"]})
    assert "scores.weight" in default.encodings.keys() - kept.encodings.keys()


def test_ignored_operations_are_openvinos_or_onnxs(folder):
    for name in ("Convolution", "Conv", "GroupConvolution"):
        kept = run(folder, ignored={"operations": [{"type": name}]})
        assert not {STEM, DEPTHWISE} & kept.encodings.keys()
        assert "scores.weight" in kept.encodings


def test_ignored_operations_may_have_attributes(folder):
    for value in (8, "8"):
        kept = run(folder, ignored={"operations": [{"type": "Convolution", "attributes": {"group": value}}]})
        assert DEPTHWISE not in kept.encodings
        assert STEM in kept.encodings
    listed = run(folder, ignored={"operations": [{"type": "Convolution", "attributes": {"kernel_shape": "1,1"}}]})
    assert {"pointwise.weight", STEM} - listed.encodings.keys() == {"pointwise.weight"}


def test_skip_model_leaves_everything_in_float(folder):
    with pytest.warns(JaxqWarning, match="leaves the whole model in float"):
        assert not run(folder, ignored={"skip_model": True}).encodings


# -------------------------------------------------------------------------------------------------- weights, activations


def test_bits_are_those_of_the_grid(folder):
    made = run(folder, weights={"bits": 4}, activations={"bits": 16}, saturation_fix="no").encodings
    assert (int(made[STEM].qmin), int(made[STEM].qmax)) == (-7, 7)
    assert int(made[IMAGE].qmax) == 65535


def test_mode_overrides_the_preset(folder):
    made = run(folder, weights={"mode": "asymmetric"}, activations={"mode": "asymmetric"})
    assert (zero_point(made, DEPTHWISE) != 0).any()
    assert zero_point(made, IMAGE) != 128


def test_levels_are_the_ends_of_the_grid(folder, default):
    limits = {"level_low": -100, "level_high": 100}
    made = run(folder, weights=limits, activations=limits, saturation_fix="no")
    assert (int(made.encodings[DEPTHWISE].qmin), int(made.encodings[DEPTHWISE].qmax)) == (-100, 100)
    np.testing.assert_allclose(scale(made, DEPTHWISE), scale(default, DEPTHWISE) * 127 / 100, rtol=1e-6)
    image = made.encodings[IMAGE]
    assert int(image.qmax) - int(image.qmin) == 200
    np.testing.assert_allclose(scale(made, IMAGE), scale(default, IMAGE) * 127 / 100, rtol=1e-6)


def test_granularity_is_one_scale_or_one_for_each_channel(folder, default):
    assert scale(default, DEPTHWISE).size == 8  # the target's own
    assert scale(run(folder, weights={"granularity": "pertensor"}), DEPTHWISE).size == 1
    assert same(default, run(folder, weights={"granularity": "perchannel"}))


def test_granularity_of_activations_is_a_matter_of_the_target(tmp_path):
    random = np.random.default_rng(0)
    text = "(float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) { r = Relu (x) y = Conv <group=4> (r, w) }"
    onnx.save(written_model(text, w=random.normal(size=(4, 1, 1, 1)).astype(np.float32)), tmp_path / "network.onnx")
    np.savez(tmp_path / "samples.npz", x=random.random((12, 4, 6, 6), np.float32))
    on_intel = compression(target_device="GPU")
    assert scale(run(tmp_path, on_intel, activations={"granularity": "perchannel"}), "r").size == 4
    assert scale(run(tmp_path, on_intel, activations={"granularity": "pertensor"}), "r").size == 1


# ------------------------------------------------------------------------------------------------------ range estimators


def of_images(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The smallest and the largest value of each sample."""
    images = np.load(folder / "samples.npz")["image"]
    return images.min(axis=(1, 2, 3)), images.max(axis=(1, 2, 3))


AGGREGATORS: dict[str, Callable[[np.ndarray], float]] = {
    "mean": np.mean,
    "max": np.max,
    "median": np.median,
    "mean_no_outliers": lambda x: np.mean(x[(x >= np.quantile(x, 0.01)) & (x <= np.quantile(x, 0.99))]),
    "median_no_outliers": lambda x: np.median(x[(x >= np.quantile(x, 0.01)) & (x <= np.quantile(x, 0.99))]),
    "hl_estimator": lambda x: np.median([(a + b) / 2 for i, a in enumerate(x) for b in x[i + 1 :]]),
}


@pytest.mark.parametrize("name", AGGREGATORS)
def test_aggregators_are_those_of_the_documentation(folder, name):
    made = run(
        folder,
        preset="mixed",
        activations={"range_estimator": {"max": {"aggregator": name}, "min": {"aggregator": "min"}}},
    )
    low, high = of_images(folder)
    width = AGGREGATORS[name](high) - low.min()
    np.testing.assert_allclose(scale(made, IMAGE).item(), width / 255, rtol=0.005)  # then 0 is put on the grid


def test_the_aggregator_min_takes_the_smallest(folder):
    made = run(folder, activations={"range_estimator": {"max": {"aggregator": "min"}}})
    largest = np.abs(np.load(folder / "samples.npz")["image"]).max(axis=(1, 2, 3))
    np.testing.assert_allclose(scale(made, IMAGE).item(), largest.min() / 127, rtol=1e-5)


@pytest.mark.parametrize("part", ["weights", "activations"])
def test_quantiles_leave_outliers_out(folder, default, part):
    tensor = {"weights": DEPTHWISE, "activations": IMAGE}[part]
    wide, narrow = (
        scale(run(folder, **{part: {"range_estimator": {"max": {"type": "quantile", "outlier_prob": p}}}}), tensor)
        for p in (0.001, 0.2)
    )
    assert (narrow < wide).all()
    assert (wide <= scale(default, tensor)).all()
    preset = scale(run(folder, **{part: {"range_estimator": {"preset": "quantile"}}}), tensor)
    assert (preset <= scale(default, tensor)).all()
    assert (preset < scale(default, tensor)).any()
    named = {"preset": "quantile", "max": {"outlier_prob": 0.2}}  # the preset says that it is one
    np.testing.assert_array_equal(scale(run(folder, **{part: {"range_estimator": named}}), tensor), narrow)


def test_a_range_estimator_at_the_top_serves_where_a_section_has_none(folder):
    estimator = {"max": {"type": "quantile", "outlier_prob": 0.1}}
    above = run(folder, range_estimator=estimator)
    inside = run(folder, weights={"range_estimator": estimator}, activations={"range_estimator": estimator})
    assert same(above, inside)


def test_the_lower_end_has_an_estimator_of_its_own(folder):
    plain = run(folder, preset="mixed")
    cut = run(
        folder, preset="mixed", activations={"range_estimator": {"min": {"type": "quantile", "outlier_prob": 0.1}}}
    )
    assert scale(cut, IMAGE) < scale(plain, IMAGE)


def test_clipping_value_bounds_the_range(folder):
    made = run(folder, activations={"range_estimator": {"max": {"clipping_value": 0.5}}})
    assert scale(made, IMAGE).item() <= 0.5 / 127 * 1.01


def test_estimators_of_jaxq_are_presets_too(folder, default):
    made = run(folder, activations={"range_estimator": {"preset": "minmax"}})
    low, high = of_images(folder)
    np.testing.assert_allclose(scale(made, IMAGE).item(), max(high.max(), -low.min()) / 127, rtol=1e-5)


# ----------------------------------------------------------------------------------------------------- other algorithms


def test_layerwise_tuning_is_passed_on_with_a_warning(folder):
    path = written(
        folder, {"use_layerwise_tuning": True, "num_samples_for_tuning": 2000, "batch_size": 50, "loss": "l2"}
    )
    found = read_any(path)[0].layerwise_tuning
    assert found == LayerwiseTuning(num_samples_for_tuning=2000, batch_size=50, loss="l2")
    with pytest.warns(
        JaxqWarning, match="layer-wise tuning is asked for, which this version of jaxq does not have yet"
    ):
        run_config(path)


def test_options_of_tuning_without_it_are_warned_of(folder):
    with pytest.warns(JaxqWarning, match=r"params\.batch_size has no effect without use_layerwise_tuning"):
        read_any(written(folder, {"batch_size": 50}))


def test_accuracy_aware_quantization_is_read(folder):
    params = {
        "maximal_drop": 0.005,
        "max_iter_num": 30,
        "metrics": [{"name": "accuracy", "baseline_value": 0.72}],
        "preset": "mixed",
    }

    def edit(content):
        content["compression"]["algorithms"][0]["name"] = "AccuracyAwareQuantization"

    job, _ = read_any(written(folder, params, edit))
    assert job.quantize.preset == "mixed"
    assert (job.accuracy.max_drop, job.accuracy.max_num_iterations) == (0.005, 30)
    assert job.accuracy.metrics == (MetricOptions("top1", 0.72),)
    with pytest.warns(JaxqWarning, match=r'use_prev_if_drop_increase has no effect .* "search": "pot"'):
        read_any(written(folder, {**params, "use_prev_if_drop_increase": False}, edit))
    own = {"search": "pot", "ranking": "exact", "use_prev_if_drop_increase": False}
    job, _ = read_any(written(folder, {**params, **own}, edit))
    assert own.items() <= asdict(job.accuracy).items()


# ---------------------------------------------------------------------------------------------------------------- engine


def test_simplified_mode_takes_the_centre_of_pictures_stretched_to_the_size_of_the_model(folder):
    pillow = pytest.importorskip("PIL.Image")
    (folder / "pictures").mkdir()
    for number in range(10):
        pixels = np.random.default_rng(number).integers(0, 256, (6, 10, 3), np.uint8)
        pillow.fromarray(pixels).resize((20, 12)).save(folder / "pictures" / f"{number}.png")

    def made(**engine: Any) -> RunResult:
        return run_config(written(folder, {}, lambda content: content["engine"].update(engine)))

    whole, centre = (made(data_source="pictures", std=255, central_fraction=part).model for part in (1.0, 0.5))
    assert whole.metadata["jaxq.calibration_samples"] == "10"
    assert whole.metadata["jaxq.calibration_sha256"] != centre.metadata["jaxq.calibration_sha256"]
    pattern = made(data_source="pictures/[0-9].png", layout="CHW", std=255).model
    assert pattern.metadata["jaxq.calibration_sha256"] == whole.metadata["jaxq.calibration_sha256"]


def test_samples_come_from_a_function_that_lies_beside_the_file(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "pot_samples.py").write_text(
        "import numpy as np\ndef load():\n    return list(np.load('samples.npz')['image'][:, None])\n"
    )
    model = run(folder, lambda content: content["engine"].update(data_source="pot_samples:load"))
    assert model.metadata["jaxq.calibration_samples"] == "12"


# ------------------------------------------------------------------------------------------------------------- bad input


def estimator(part: str, **bound: Any) -> dict[str, Any]:
    return {part: {"range_estimator": {"max": bound}}}


BAD_PARAMS = {
    "unknown key": ({"weights": {"bitz": 8}}, rf"{PARAMS}.weights.bitz: unknown key; did you mean 'bits'?"),
    "unknown key at the top": ({"stat_subset_siz": 3}, "stat_subset_siz: unknown key; did you mean 'stat_subset_size'?"),
    "text for a number": ({"stat_subset_size": "300"}, f'{PARAMS}.stat_subset_size = "300"; expected an integer'),
    "a number for an object": ({"weights": 8}, f"{PARAMS}.weights = 8; expected an object"),
    "half a bit": ({"weights": {"bits": 3.5}}, "weights.bits = 3.5; expected an integer"),
    "one bit": ({"weights": {"bits": 1}}, f"{PARAMS}.weights.bits = 1; expected an integer from 2 to 16"),
    "bits of no kernel": (
        {"weights": {"bits": 12}, "target_device": "tensorrt"}, f"{PARAMS}.weights.bits = 12 needs int16, which target 'tensorrt'"
    ),
    "levels the wrong way round": ({"weights": {"level_low": 9, "level_high": -9}}, "level_low = 9 is not below level_high = -9"),
    "more levels than bits": ({"activations": {"level_low": -300}}, "activations.level_low = -300 does not fit 8 bits"),
    "lopsided levels": ({"weights": {"mode": "symmetric", "level_low": -9, "level_high": 3}}, "have no zero in their middle"),
    "quantile without probability": (estimator("activations", type="quantile"), "max.outlier_prob is missing; type"),
    "probability without quantile": (estimator("weights", outlier_prob=0.1), "outlier_prob = 0.1; it is for type 'quantile'"),
    "probability above a half": (
        estimator("activations", type="quantile", outlier_prob=0.7), "outlier_prob = 0.7; expected at least 0 and less than 0.5"
    ),
    "the smallest as upper end": (estimator("activations", type="min"), "max.type = 'min': the upper end cannot be the smallest"),
    "aggregator": (estimator("activations", aggregator="men"), 'aggregator = "men"; expected .*; did you mean \'mean\'?'),
    "estimator": ({"weights": {"range_estimator": {"preset": "quantil"}}}, "preset = 'quantil'; .*; did you mean 'quantile'?"),
    "estimator and ends": (
        {"weights": {"range_estimator": {"preset": "mse", "max": {"type": "max"}}}}, "preset = 'mse' says how both ends are found"
    ),
    "channels of activations": (
        {"activations": {"granularity": "perchannel"}},
        f"{PARAMS}.activations.granularity = 'perchannel'; target 'onnxruntime' has one scale for each tensor only",
    ),
    "channels of asymmetric weights": (
        {"weights": {"granularity": "perchannel", "mode": "asymmetric"}}, "granularity = 'perchannel'; target 'onnxruntime'"
    ),
    "preset": ({"preset": "mixd"}, 'preset = "mixd"; expected .*; did you mean \'mixed\'?'),
    "saturation fix": ({"saturation_fix": "yes"}, "saturation_fix = \"yes\"; expected 'no', 'first_layer' or 'all'"),
    "range estimator of both": (
        {"range_estimator": {"max": {"type": "min"}}}, f"{PARAMS}.range_estimator.max.type = 'min': the upper end cannot"
    ),
    "no samples": ({"stat_subset_size": 0}, f"{PARAMS}.stat_subset_size = 0; expected an integer of at least 1"),
    "no batch": ({"stat_batch_size": 0}, f"{PARAMS}.stat_batch_size = 0; expected an integer of at least 1"),
    "threshold": ({"threshold": -1}, f"{PARAMS}.threshold = -1.0; expected a finite number above 0"),
    "text for a switch": ({"use_fast_bias": "yes"}, 'use_fast_bias = "yes"; expected a boolean'),
    "ignored node": (
        {"ignored": {"scope": ["Gemm_score"]}},
        f"{PARAMS}.ignored.scope: ignored name 'Gemm_score' matches no node; did you mean 'Gemm_scores'",
    ),
    "ignored type": (
        {"ignored": {"operations": [{"type": "Tanh"}]}}, f"{PARAMS}.ignored.operations: ignored operation 'Tanh' matches no node"
    ),
}  # fmt: skip


def escaped(message: str) -> str:
    """A message as a pattern, in which only `.*` is one."""
    return ".*".join(map(re.escape, message.split(".*")))


@pytest.mark.parametrize("params, message", BAD_PARAMS.values(), ids=BAD_PARAMS)
def test_wrong_parameters_are_refused_with_their_path(folder, params, message):
    with pytest.raises(ConfigError, match=escaped(message)) as error:
        run(folder, **params)
    assert str(error.value).startswith(str(folder / "pot.json"))
    assert error.value.path[:4] == ("compression", "algorithms", 0, "params")


def change(*path: str, **values: Any) -> Callable[[Any], Any]:
    def edit(content: Any) -> None:
        for key in path:
            content = content[key]
        content.update(values)

    return edit


BAD_FILES = {
    "no model": (lambda c: c["model"].pop("model"), "model.model is missing; give the path of an ONNX file"),
    "OpenVINO's format": (change("model", model="m.xml"), "'m.xml' is in OpenVINO's own format; jaxq reads ONNX: give"),
    "cascade": (change("model", cascade=[{}]), "model.cascade: jaxq quantizes one model at a time"),
    "accuracy checker": (change(engine={"config": "ac.yml"}), 'engine.config: the accuracy checker of OpenVINO .* "simplified"'),
    "nothing in the engine": (change(engine={}), "engine: the accuracy checker of OpenVINO is no part of jaxq"),
    "data-free": (change(engine={"type": "data_free"}), "engine.type = 'data_free': jaxq never makes data up"),
    "kind of engine": (change("engine", type="simplifed"), "type = \"simplifed\"; .*; did you mean 'simplified'?"),
    "layout": (change("engine", data_source="pictures", layout="NHCW"), "layout = 'NHCW'; .*; did you mean 'NHWC'?"),
    "central fraction of arrays": (change("engine", central_fraction=0.5), "engine.layout are for images"),
    "no engine": (lambda c: c.pop("engine"), "engine is missing"),
    "no compression": (lambda c: c.pop("compression"), "compression is missing"),
    "no algorithm": (change("compression", algorithms=[]), "compression.algorithms has 0 entries; expected one"),
    "algorithm": (
        change("compression", algorithms=[{"name": "DefaultQuantisation"}]),
        "compression.algorithms[0].name = 'DefaultQuantisation'; .*; did you mean 'DefaultQuantization'?",
    ),
    "device": (compression(target_device="CPUU"), "compression.target_device = 'CPUU'; known: .*; did you mean 'CPU'?"),
    "device without runtime": (compression(target_device="GNA"), "compression.target_device = 'GNA': the GNA has no runtime"),
    "model type": (compression(model_type="transformr"), "compression.model_type = 'transformr'; .* did you mean 'transformer'"),
    "no data": (change("engine", data_source=None), "engine.data_source is missing; give a folder or pattern of images"),
}  # fmt: skip


@pytest.mark.parametrize("where, place", [("params", f"{PARAMS}.metrics"), ("engine", "engine.metrics")])
def test_a_metric_is_named_where_it_stands(folder, where, place):
    def edit(content):
        algorithm = content["compression"]["algorithms"][0]
        algorithm["name"] = "AccuracyAwareQuantization"
        (content["engine"] if where == "engine" else algorithm["params"])["metrics"] = [{"name": "acuracy"}]

    with pytest.raises(ConfigError, match=escaped(f"pot.json: {place}[0].name = 'acuracy'; expected one of")):
        read_any(written(folder, {}, edit))


@pytest.mark.parametrize("edit, message", BAD_FILES.values(), ids=BAD_FILES)
def test_wrong_files_are_refused_with_what_to_do(folder, edit, message):
    with pytest.raises(ConfigError, match=escaped(message)) as error:
        read_any(written(folder, {}, edit))
    assert error.value.path[0] in ("model", "engine", "compression")


@pytest.mark.parametrize(
    "edit, place",
    [
        (change("model", model="netwrk.onnx"), "model.model: no such file"),
        (change("model", model="samples.npz"), "model.model: '.*samples.npz' is not an ONNX file"),
        (change("engine", data_source="sample.npz"), "engine.data_source: no such file or folder of data"),
    ],
    ids=["no model", "no ONNX file", "no data"],
)
def test_a_file_that_cannot_be_used_is_named_with_the_key_that_names_it(folder, edit, place):
    with pytest.raises(JaxqError, match=escaped(f"pot.json: {place}")):
        run(folder, edit)


def test_more_samples_than_there_are_is_a_warning_with_the_path(folder):
    with pytest.warns(
        JaxqWarning, match=re.escape(f"{PARAMS}.stat_subset_size = 300, but the data has 12 samples; all of them")
    ):
        run(folder, stat_subset_size=300)


def test_samples_of_several_shapes_are_no_error_whatever_the_batch(tmp_path):
    onnx.save(free_size_network(), tmp_path / "network.onnx")
    (tmp_path / "parts").mkdir()
    for number in range(10):
        size = 8 + 4 * (number % 2)
        np.save(tmp_path / "parts" / f"{number}.npy", np.random.default_rng(number).random((1, 1, size, 8), np.float32))
    model = run(tmp_path, lambda content: content["engine"].update(data_source="parts"), stat_batch_size=4)
    assert model.metadata["jaxq.calibration_samples"] == "10"
