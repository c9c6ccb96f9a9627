"""Weight-only compression: which weights, in how many bits, and what ONNX Runtime makes of the file."""

import json
import re
import warnings

import numpy as np
import onnx
import pytest
from models import residual_network, run_onnx, smooth, transformer_block, written

from jaxq import algorithms, compress
from jaxq.algorithms import weight_compression
from jaxq.compress import compress_weights, compression_sites, largest_group
from jaxq.engine.collect import collect
from jaxq.errors import CalibrationError, ConfigError, JaxqWarning, ModelError
from jaxq.onnx_io.load import load
from jaxq.onnx_io.matmul_nbits import to_matmul_nbits
from jaxq.onnx_io.save import save, to_proto
from jaxq.placement.place import IgnoredScope

MODES = ["int8_sym", "int8_asym", "int4_sym", "int4_asym"]
TEXT = """(int64[N, 5] ids) => (float[N, 5, 48] logits) {
    x = Gather (table, ids)
    h = MatMul (x, first)  a = Relu (h)  m = MatMul (a, second)  r = Add (m, x)
    logits = MatMul (r, head) }"""


def language_model() -> onnx.ModelProto:
    random = np.random.default_rng(0)
    shapes = {"table": (48, 64), "first": (64, 128), "second": (128, 64), "head": (64, 48)}
    return written(TEXT, **{name: (random.normal(size=shape) / 8).astype(np.float32) for name, shape in shapes.items()})


def ids(rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {"ids": np.random.default_rng(seed).integers(0, 48, (rows, 5))}


def grids(model) -> dict[str, tuple[int, int, tuple[int, ...]]]:
    return {name: (int(p.qmin), int(p.qmax), np.shape(p.scale)) for name, p in model.encodings.items()}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("all_layers", [False, True])
def test_the_file_computes_what_the_model_simulates(mode, all_layers):
    group = {} if mode.startswith("int8") else {"group_size": 32}
    model = compress_weights(language_model(), mode=mode, all_layers=all_layers, **group)
    proto = to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    assert not {each.name for each in proto.graph.initializer} & {"table", "first", "second", "head"}
    found = run_onnx(proto, ids(3))["logits"]
    np.testing.assert_allclose(found, model(ids(3))["logits"], rtol=1e-4, atol=1e-4)


def test_embeddings_and_the_last_product_keep_eight_bits():
    found = grids(compress_weights(language_model(), mode="int4_sym", group_size=32))
    assert found["first"] == (-8, 7, (2, 128))
    assert found["second"] == (-8, 7, (4, 64))
    assert found["table"] == (0, 255, (48, 1))
    assert found["head"] == (0, 255, (1, 48))
    everywhere = grids(compress_weights(language_model(), mode="int4_sym", group_size=32, all_layers=True))
    assert everywhere["table"] == (-8, 7, (48, 2))
    assert everywhere["head"] == (-8, 7, (2, 48))


def test_without_a_backup_mode_they_stay_in_float():
    assert grids(compress_weights(language_model(), mode="int4_asym", group_size=64, backup_mode="none")).keys() == {
        "first",
        "second",
    }


@pytest.mark.parametrize("exact, other", [("first", "second"), ("second", "first")])
def test_a_ratio_leaves_the_layers_out_that_would_lose_most(exact, other):
    proto = language_model()
    (weight,) = [each for each in proto.graph.initializer if each.name == exact]
    on_the_grid = np.random.default_rng(1).integers(0, 2, weight.dims).astype(np.float32)
    weight.CopyFrom(onnx.numpy_helper.from_array(on_the_grid, exact))
    for dataset in (None, [ids(4)]):
        found = grids(compress_weights(proto, mode="int4_asym", group_size=32, ratio=0.5, dataset=dataset))
        assert found[exact][:2] == (0, 15)
        assert found[other][:2] == (0, 255)


def test_a_layer_that_the_host_runs_is_judged_by_its_weights():
    """No statistic is taken there, which is not the same as an error of zero."""
    text = """(float[1, 64] x) => (float[1, 32] y, float[K, 32] late, float[1, 32] z) {
        y = MatMul (x, exact)  flat = Reshape (x, all)  b = Greater (flat, zero)  rows = Unsqueeze (flat, one)
        k = Compress <axis = 0> (rows, b)  wide = Concat <axis = 1> (k, k)  late = MatMul (wide, tail)  z = MatMul (x, last) }"""
    random = np.random.default_rng(0)
    weights = {
        "exact": random.integers(0, 2, (64, 32)).astype(np.float32),
        "tail": random.normal(size=(2, 32)).astype(np.float32),
        "last": random.normal(size=(64, 32)).astype(np.float32),
    }
    model = written(text, all=np.array([-1]), zero=np.float32(0), one=np.array([1]), **weights)
    data = [random.normal(size=(1, 64)).astype(np.float32) for _ in range(2)]
    options = {"mode": "int4_asym", "group_size": -1, "all_layers": True, "dataset": data}
    found = grids(compress_weights(model, ratio=0.5, **options))
    assert {name for name, (_, highest, _) in found.items() if highest == 15} == {"exact"}


@pytest.mark.parametrize("group, shape", [(-1, (1, 128)), (64, (1, 128)), (32, (2, 128))])
def test_a_group_is_of_the_size_asked_for(group, shape):
    assert grids(compress_weights(language_model(), mode="int4_sym", group_size=group))["first"][2] == shape


def test_a_group_that_does_not_divide_is_adjusted_ignored_or_refused():
    asked = {"mode": "int4_sym", "group_size": 128}
    assert grids(compress_weights(language_model(), **asked))["first"] == (-8, 7, (1, 128))
    ignored = compress_weights(language_model(), **asked, group_size_fallback_mode="ignore")
    assert grids(ignored)["first"] == (0, 255, (1, 128))
    with pytest.raises(ConfigError, match="64 input channels of weight 'first' do not divide into groups of 128"):
        compress_weights(language_model(), **asked, group_size_fallback_mode="error")


def test_groups_are_adjusted_to_powers_of_two_of_at_least_32():
    assert [largest_group(length, 128) for length in (192, 96, 160, 48, 100)] == [64, 32, 32, None, None]


def test_gptq_is_closer_to_the_float_model_than_rounding():
    model = load(language_model())
    data = [ids(8, seed) for seed in range(8)]
    exact = model(ids(16, 99))["logits"]
    error = {}
    for gptq in (False, True):
        done = compress_weights(model, mode="int4_sym", group_size=32, dataset=data, gptq=gptq)
        error[gptq] = float(((done(ids(16, 99))["logits"] - exact) ** 2).mean())
    assert error[True] < 0.9 * error[False]


@pytest.mark.parametrize("options", [{"gptq": True}, {"ratio": 0.5}], ids=["gptq", "ratio"])
@pytest.mark.parametrize("bound, passes", [(1 << 30, 1), (4 * 64**2, 2)])
def test_second_moments_are_held_up_to_a_bound(options, bound, passes, monkeypatch):
    """Those of the inputs of three layers, of 64, 128 and 64 channels: the largest alone takes more than the smaller bound."""
    held = []

    def watched(model, needs, *arguments, **keywords):
        held.append(sum(observer.init(1).nbytes for need in needs for observer in need.values()))
        return collect(model, needs, *arguments, **keywords)

    monkeypatch.setattr(weight_compression, "MOMENT_BYTES", bound)
    for module in (algorithms, compress):
        monkeypatch.setattr(module, "collect", watched)
    compress_weights(language_model(), mode="int4_sym", group_size=32, dataset=[ids(8)], **options)
    layers = [4 * 64**2, 4 * 128**2] + [4 * 64**2] * ("gptq" in options)
    assert held == ([sum(layers)] if passes == 1 else layers)


def test_ignored_nodes_keep_their_weights():
    found = compress_weights(language_model(), ignored_scope=IgnoredScope(types=["Gather"]))
    assert found.encodings.keys() == {"first", "second", "head"}


def test_a_weight_that_is_summed_over_along_both_axes_stays_in_float():
    text = "(float[N, 4] x) => (float[N, 4] y) { h = MatMul (x, w)  y = Gemm <transB = 1> (h, w) }"
    model = load(written(text, w=np.eye(4, dtype=np.float32)))
    assert compression_sites(model.graph, model.params, ()) == ()


def test_a_tied_embedding_is_compressed_once():
    text = """(int64[N] ids) => (float[N, 6] y) { x = Gather (w, ids)  y = Gemm <transB = 1> (x, w) }"""
    model = compress_weights(written(text, w=np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)))
    assert model.encodings["w"].scale.shape == (6, 1)
    feed = {"ids": np.array([0, 5, 2])}
    np.testing.assert_allclose(run_onnx(to_proto(model), feed)["y"], model(feed)["y"], rtol=1e-5)


# --------------------------------------------------------------------------------------- kinds of weights, and what is said


KINDS = {  # text, shape of w, shape of x, shape of the scales in groups of 32
    "a stack of matrices": (
        "(float[N, 3, 2, 64] x) => (float[N, 3, 2, 8] y) { y = MatMul (x, w) }",
        (3, 64, 8),
        (2, 3, 2, 64),
        (3, 2, 8),
    ),
    "transposed data": (
        "(float[64, N] x) => (float[N, 8] y) { y = Gemm <transA = 1> (x, w) }",
        (64, 8),
        (64, 3),
        (2, 8),
    ),
    "both transposed": (
        "(float[64, N] x) => (float[N, 8] y) { y = Gemm <transA = 1, transB = 1> (x, w) }",
        (8, 64),
        (64, 3),
        (8, 2),
    ),
    "an embedding in columns": (
        "(int64[N] x) => (float[64, N] y) { y = Gather <axis = -1> (w, x) }",
        (64, 8),
        (3,),
        (2, 8),
    ),
}


@pytest.mark.parametrize("mode", ["int8_sym", "int8_asym", "int4_sym", "int4_asym"])
@pytest.mark.parametrize("text, shape, data, scales", KINDS.values(), ids=KINDS.keys())
def test_every_kind_of_weight_is_compressed_as_the_runtime_reads_it(text, shape, data, scales, mode, tmp_path):
    random = np.random.default_rng(0)
    proto = written(text, w=random.normal(size=shape).astype(np.float32))
    options = {"group_size": 32, "all_layers": True} if mode.startswith("int4") else {}
    model = compress_weights(proto, mode=mode, **options)
    if options:
        assert model.encodings["w"].scale.shape == scales
    feed = {"x": np.arange(3) if "int64" in text else random.normal(size=data).astype(np.float32)}
    steps = np.abs(model(feed)["y"] - load(proto)(feed)["y"]).max()
    assert 0 < steps < (4 if options else 0.4)
    save(model, tmp_path / "model.onnx")
    np.testing.assert_allclose(
        run_onnx(str(tmp_path / "model.onnx"), feed)["y"], model(feed)["y"], rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(load(tmp_path / "model.onnx")(feed)["y"], model(feed)["y"], rtol=1e-4, atol=1e-4)


LEFT = {  # text, shapes, and what is said of the weight
    "1": ("y = MatMul (x, w)  z = MatMul (x, v)", {"w": (64,)}, "'w' (its rank is 1)"),
    "left": ("y = MatMul (w, x)  z = MatMul (x, v)", {"w": (8, 64)}, "'w' (it stands on the left in a MatMul)"),
    "conv": (
        "t = Unsqueeze (x, axes)  y = Conv (t, w)  z = MatMul (x, v)",
        {"w": (3, 64, 1)},
        "'w' (a weight of Conv;",
    ),
    "stacked embedding": (
        "i = ArgMax (x)  y = Gather (w, i)  z = MatMul (x, v)",
        {"w": (64, 4, 2)},
        "'w' (its rank is 3, an embedding has 2)",
    ),
}


@pytest.mark.parametrize("body, shapes, said", LEFT.values(), ids=LEFT.keys())
def test_what_stays_in_float_is_named(body, shapes, said):
    values = {name: np.ones(shape, np.float32) for name, shape in (shapes | {"v": (64, 8)}).items()}
    proto = written(f"(float[64, 64] x) => (float[N] y, float[64, 8] z) {{ {body} }}", axes=np.array([0]), **values)
    with pytest.warns(JaxqWarning, match=re.escape(said)):
        model = compress_weights(proto)
    assert model.encodings.keys() == {"v"}
    assert json.loads(model.metadata["jaxq.left_in_float"]).keys() == {"w"}


def test_what_stays_in_float_as_it_was_asked_for_is_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error", JaxqWarning)
        ignored = compress_weights(language_model(), ignored_scope=IgnoredScope(types=["Gather"]))
        none = compress_weights(language_model(), mode="int4_sym", group_size=32, backup_mode="none")
    assert json.loads(ignored.metadata["jaxq.left_in_float"]) == {"table": "ignored"}
    assert json.loads(none.metadata["jaxq.left_in_float"]).keys() == {"table", "head"}


@pytest.mark.parametrize(
    "options, said",
    [
        (
            {"group_size": 100, "group_size_fallback_mode": "ignore"},
            "2 of 2 .* groups of 100: 'first', 'second' get int8_asym",
        ),
        (
            {"group_size": 96, "group_size_fallback_mode": "ignore", "backup_mode": "none"},
            "get float instead of int4_sym",
        ),
        ({"group_size": 100}, "no weight divides into groups of 100: groups of 64 were taken"),
        ({"group_size": 256}, "no weight divides into groups of 256: groups of 64, 128 were taken"),
        ({"group_size": 8}, "unpacks groups of 8 at every run"),
    ],
)
def test_groups_that_do_not_fit_are_said(options, said):
    with pytest.warns(JaxqWarning, match=said):
        compress_weights(language_model(), mode="int4_sym", **options)


def test_a_weight_that_is_not_finite_is_named():
    w = np.ones((64, 8), np.float32)
    w[3, 4] = np.nan
    with pytest.raises(CalibrationError, match="weight 'w' has 1 value"):
        compress_weights(written("(float[N, 64] x) => (float[N, 8] y) { y = MatMul (x, w) }", w=w))


def test_the_file_says_how_it_was_made():
    found = compress_weights(language_model(), mode="int4_sym", group_size=32).metadata
    assert found["jaxq.compress_weights"] == "int4_sym"


# ------------------------------------------------------------------------------------------------------ MatMulNBits


@pytest.mark.parametrize("mode", ["int4_sym", "int4_asym"])
@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_matmul_nbits_computes_the_same(mode, op):
    if op == "MatMul":
        text, shape = "(float[N, 96] x) => (float[N, 10] y) { y = MatMul (x, w) }", (96, 10)
    else:
        text, shape = "(float[N, 96] x) => (float[N, 10] y) { y = Gemm <transB = 1> (x, w, b) }", (10, 96)
    random = np.random.default_rng(0)
    tensors = {"w": random.normal(size=shape).astype(np.float32)}
    if op == "Gemm":
        tensors["b"] = random.normal(size=10).astype(np.float32)
    model = compress_weights(written(text, **tensors), mode=mode, group_size=32, all_layers=True)
    proto = to_proto(to_matmul_nbits(model))
    assert [node.op_type for node in proto.graph.node] == ["MatMulNBits"]
    feed = {"x": smooth(5, 96)}
    expected = model(feed)["y"]
    np.testing.assert_allclose(run_onnx(proto, feed)["y"], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(load(proto)(feed)["y"], expected, rtol=1e-4, atol=1e-4)


def test_a_file_can_be_written_with_matmul_nbits(tmp_path):
    model = compress_weights(language_model(), mode="int4_sym", group_size=32)
    save(model, tmp_path / "small.onnx", matmul_nbits=True)
    assert {node.op for node in load(tmp_path / "small.onnx").graph.nodes} >= {"MatMulNBits", "DequantizeLinear"}
    found = run_onnx(str(tmp_path / "small.onnx"), ids(3))["logits"]
    np.testing.assert_allclose(found, model(ids(3))["logits"], rtol=1e-4, atol=1e-4)


def test_a_model_without_blocks_has_nothing_for_matmul_nbits():
    with pytest.raises(ModelError, match="no weight can be written as MatMulNBits"):
        to_matmul_nbits(compress_weights(residual_network()))


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "options, message",
    [
        ({"mode": "int4"}, r"mode = 'int4'; expected one of .*did you mean 'int4_sym'"),
        (
            {"mode": "int8_sym", "group_size": 64},
            "group_size = 64 with mode = 'int8_sym', which has one scale a channel",
        ),
        ({"mode": "int4_sym", "group_size": 0}, "group_size = 0; expected an integer of at least 2"),
        ({"mode": "int4_sym", "ratio": 1.5}, "ratio = 1.5; expected a share of the weights between 0 and 1"),
        ({"ratio": 0.5}, "ratio = 0.5 with mode = 'int8_asym': a mix needs a mode of 4 bits"),
        ({"gptq": True}, "gptq needs a dataset"),
        ({"backup_mode": "int4_sym"}, "backup_mode = 'int4_sym'; expected one of"),
        ({"subset_size": 0}, "subset_size = 0; expected an integer of at least 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        compress_weights(language_model(), **options)


def test_a_model_without_matrix_products_is_refused():
    with pytest.raises(ModelError, match="no weights to compress"):
        compress_weights(written("(float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }"))


def test_a_compressed_model_is_not_compressed_again():
    with pytest.raises(ModelError, match="already quantized"):
        compress_weights(to_proto(compress_weights(transformer_block())))


def test_convolutions_are_left_alone():
    assert compress_weights(residual_network()).encodings.keys() == {"scores.weight"}
