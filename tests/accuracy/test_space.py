"""That the program which is tried computes what the model that is written computes, for every setting."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from accuracy_models import MINMAX, base_of, chain, chain_space, images
from compilations import compilations
from models import NETWORKS, samples

import jaxq
from jaxq.accuracy.space import Space
from jaxq.accuracy.treatments import FLOAT, RANGES, UNCORRECTED, WEIGHTS, WIDE, Treatment
from jaxq.engine import devices
from jaxq.numerics.quantizer import fake_quantize, fake_quantize_array

(MSE,) = (each for each in RANGES if each.estimator == "mse")
FOUR_BITS = Treatment("4-bit weights", weight_bits=4)
ROUGH = {"rtol": 2e-5, "atol": 2e-5}


@pytest.fixture(scope="module", params=["residual", "shuffle", "transformer", "branching"])
def network(request):
    name = request.param
    return name, Space(base_of(NETWORKS[name][0](), samples(name, 6)))


def settings(space, count=6):
    random = np.random.default_rng(0)
    names = list(space.layers)
    yield {}
    yield dict.fromkeys(names, FLOAT)
    for _ in range(count):
        yield {name: FLOAT for name in names if random.random() < 0.5}


def test_what_is_tried_is_what_is_written(network):
    name, space = network
    feed = samples(name, 1, first=50)[0]
    for setting in settings(space):
        tried, written = space.candidate(setting)(feed), space.final(setting)(feed)
        for key, value in tried.items():
            np.testing.assert_allclose(np.asarray(value), np.asarray(written[key]), **ROUGH, err_msg=str(setting))


def test_all_layers_quantized_is_what_quantize_gives(network):
    name, space = network
    feed = samples(name, 1, first=50)[0]
    usual = jaxq.quantize(NETWORKS[name][0](), samples(name, 6), advanced_parameters=MINMAX)(feed)
    for key, value in space.candidate({})(feed).items():
        np.testing.assert_allclose(np.asarray(value), np.asarray(usual[key]), **ROUGH)


def test_all_layers_reverted_is_the_float_model(network):
    name, space = network
    feed = samples(name, 1, first=50)[0]
    setting = dict.fromkeys(space.layers, FLOAT)
    exact = jaxq.load(NETWORKS[name][0]())(feed)
    assert not space.parts(setting).changed
    for model in (space.float_model(), space.candidate(setting), space.final(setting)):
        for key, value in model(feed).items():
            np.testing.assert_allclose(np.asarray(value), np.asarray(exact[key]), rtol=1e-4, atol=1e-4)


def test_layers_cover_every_quantizer(network):
    _, space = network
    without = space.parts(dict.fromkeys(space.layers, FLOAT))
    assert not without.plan.activations
    assert not without.plan.weights
    assert sorted(node for layer in space.layers.values() for node in layer.nodes) == sorted(space.plan.nodes)


def test_no_layer_is_half_quantized(network):
    """Where a node's weight is rounded its data are, and the other way round, whatever is reverted."""
    _, space = network
    for setting in settings(space):
        parts = space.parts(setting)
        for layer in space.layers.values():
            if layer.weights:
                switches = [switch for (node, _), switch in space.switches.places.items() if node in layer.nodes]
                rounded_weights = not parts.rounded.isdisjoint(layer.weights)
                assert rounded_weights == (layer.name not in setting)
                assert not rounded_weights or parts.switches.issuperset(switches)


def test_a_shared_quantizer_stays_for_the_other_reader():
    space = Space(base_of(NETWORKS["residual"][0](), samples("residual", 4)))
    shared = [name for name in space.switches.tensors.values() if list(space.switches.tensors.values()).count(name) > 1]
    assert shared, "the sum and the convolution read the same tensor"
    reader = next(
        place for place, switch in space.switches.places.items() if space.switches.tensors[switch] == shared[0]
    )
    layer = next(layer.name for layer in space.layers.values() if reader[0] in layer.nodes)
    on = {space.switches.tensors[switch] for switch in space.parts({layer: FLOAT}).switches}
    assert shared[0] in on


def test_correcting_biases_of_a_candidate_runs_the_program_that_corrected_those_of_the_base():
    space = Space(base_of(chain(), images(24)))
    with compilations() as compiled:
        moved = space.corrected({"Conv_conv1": FLOAT})
    assert moved.biases
    assert compiled == []


def test_settings_do_not_compile_again():
    space = chain_space()
    feed = images(1, 40)[0]
    space.candidate({})(feed)
    with compilations() as compiled:
        for step in (FLOAT, WEIGHTS, WIDE, UNCORRECTED, MSE, FOUR_BITS):
            for layer in space.layers:
                space.candidate({layer: step})(feed)
        space.float_model()(feed)
        assert not compiled


def test_candidates_upload_what_differs_from_those_before(monkeypatch):
    found, put = [], devices.traced_param
    monkeypatch.setattr(devices, "traced_param", lambda name, value: found.append(name) or put(name, value))
    space = Space(base_of(chain(), images(24)))

    def uploads(setting, **options):
        found.clear()
        assert space.candidate(setting, **options).program.params
        return set(found)

    layers = list(space.layers)
    own = {name for name in space.candidate({}).params if layers[1].removeprefix("Conv_") in name}
    assert len(own) > 1
    assert uploads({}) > own
    assert uploads({}) == set()
    reverted = uploads({layers[1]: FLOAT}, corrected=False)
    assert reverted  # biases that are not corrected
    assert reverted.isdisjoint(own)  # the exact weights are there since the calibration
    assert uploads({layers[2]: FLOAT}, corrected=False).isdisjoint(own - space.base.corrected.keys())
    assert uploads({layers[1]: FLOAT}, corrected=False) == set()


def test_a_reverted_layer_has_its_own_bias_again():
    space = Space(base_of(chain(), images(24)))
    moved = next(bias for bias, node in space._owners.items() if node == "Conv_conv1")
    assert (np.asarray(space.base.exact[moved]) != np.asarray(space.base.corrected[moved])).any()
    for setting, kind in (({}, "corrected"), ({"Conv_conv1": FLOAT}, "exact"), ({"Conv_conv1": UNCORRECTED}, "exact"),
                          ({"Conv_conv1": WEIGHTS}, "corrected")):  # fmt: skip
        found = {**space.base.exact, **space.parts(setting).biases}
        np.testing.assert_array_equal(found[moved], getattr(space.base, kind)[moved])


def test_16_bits_hold_what_was_seen_where_8_are_clipped():
    base = base_of(chain(), images(12), "minmax")
    first, seen = next(iter(base.encodings)), base.encodings["minmax"]
    half = {name: replace(each, scale=each.scale / 2) for name, each in base.encodings[first].items()}
    space = Space(replace(base, encodings={first: half, "minmax": seen}))
    wide = {name: each for name, each in space.parts({"Conv_conv1": WIDE}).encodings.items() if int(each.qmax) == 65535}
    assert wide
    for name, each in wide.items():
        np.testing.assert_allclose(each.scale * 65535, seen[name].scale * 255, rtol=0.01)


def test_weights_of_a_layer_may_have_other_bits_than_planned(tmp_path):
    """The same range in fewer steps; other layers stay as they are, and the file has what was tried."""
    space = chain_space()
    layer, (weight,) = "Conv_conv1", space.layers["Conv_conv1"].weights
    before, after = (space.parts(setting).encodings for setting in ({}, {layer: FOUR_BITS}))
    assert (int(after[weight].qmin), int(after[weight].qmax)) == (-7, 7)
    np.testing.assert_allclose(after[weight].scale * 7, before[weight].scale * 127, rtol=1e-6)
    other = space.layers["Conv_conv0"].weights[0]
    np.testing.assert_array_equal(after[other].scale, before[other].scale)
    assert len(np.unique(space.candidate({layer: FOUR_BITS}).params[weight][0])) <= 15
    jaxq.save(space.final({layer: FOUR_BITS}), tmp_path / "model.onnx")
    feed = {"image": images(1, 40)[0]}
    tried, written = (
        np.asarray(each(feed)["scores"])
        for each in (space.candidate({layer: FOUR_BITS}), jaxq.load(tmp_path / "model.onnx"))
    )
    np.testing.assert_allclose(tried, written, rtol=1e-3, atol=2e-3)


def test_every_repair_is_closer_to_float_than_all_in_eight_bits():
    space = chain_space()
    feed = np.concatenate(images(20, 40))
    exact = np.asarray(space.float_model()(feed)["scores"])

    def error(step):
        setting = dict.fromkeys(space.layers, step) if step else {}
        return float(np.abs(np.asarray(space.candidate(setting)(feed)["scores"]) - exact).mean())

    assert error(FLOAT) < 1e-5
    assert error(WEIGHTS) < error("")
    assert error(WIDE) < error("")


def test_repaired_models_are_written_as_they_were_tried(tmp_path):
    pytest.importorskip("onnxruntime")
    from models import run_onnx

    space = chain_space()
    feed = {"image": images(1, 40)[0]}
    setting = {
        "Conv_conv0": WIDE,
        "Conv_conv1": WEIGHTS,
        "Conv_conv2": MSE,
        "Gemm_scores": UNCORRECTED,
    }
    jaxq.save(space.final(setting), tmp_path / "model.onnx")
    expected = np.asarray(space.candidate(setting)(feed)["scores"])
    found = run_onnx(str(tmp_path / "model.onnx"), feed)["scores"]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-3)


def test_layers_in_float_are_counted_by_their_weights():
    space = chain_space()
    assert space.weight_layers == 4
    assert space.float_layers({}) == 0
    assert space.float_layers({"Conv_conv0": FLOAT, "Conv_conv1": WEIGHTS}) == 1


def test_rounding_in_numpy_is_that_of_the_program():
    space = Space(base_of(NETWORKS["residual"][0](), samples("residual", 4)))
    for name, encoding in space.base.weights.items():
        value = np.asarray(space.base.exact[name])
        np.testing.assert_array_equal(
            fake_quantize_array(value, encoding), np.asarray(fake_quantize(jnp.asarray(value), encoding))
        )
