"""OpenVINO's CPU plugin runs each kind of layer of its table as the table says, and computes what jaxq simulates.

The precision of each layer is the one that the plugin reports of the graph that it made. Values are compared with inference in
float32 between the integer kernels: the plugin's default is bfloat16 on processors that have it.
"""

import re
from typing import Any

import numpy as np
import pytest
from models import written

import jaxq
from jaxq.analysis.inspect import summarize
from jaxq.onnx_io.load import load
from jaxq.onnx_io.save import save
from jaxq.placement.fates import INTEGER, STORED
from jaxq.placement.targets import OPENVINO

ov = pytest.importorskip("openvino", reason="needs openvino, which runs the files of target 'openvino'")

C = 8  # channels
BYTES = {"i8", "u8"}
FLOATS = {"f32"}
# Sums of integers are exact, what stands between is float32 on both sides: what differs is a value at the border of two steps
# now and then, and an addition that the plugin adds to the sums of a convolution without rounding that convolution's result.
STEPS = 1.5


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def image(body: str, rank: int = 4, opset: int = 17, channels: int = C, **values: Any) -> tuple[Any, dict[str, tuple]]:
    """x [1, 4, 8, ...] -> Conv, Relu -> t -> `body` -> u -> Conv -> y."""
    sizes, kernel = (8,) * (rank - 2), (3,) * (rank - 2)
    pads = f"pads = {[1] * 2 * (rank - 2)}"
    text = f"(float[1, 4, {', '.join(map(str, sizes))}] x) => (float[{', '.join('ABCDE'[:rank])}] y) {{" \
           f"  c0 = Conv <{pads}> (x, w0)  t = Relu (c0)  {body}  y = Conv <{pads}> (u, w1) }}"  # fmt: skip
    fixed = {"w0": weights(C, 4, *kernel, seed=8), "w1": weights(4, channels, *kernel, seed=9)}
    return written(text, opset, **fixed, **values), {"x": (1, 4, *sizes)}


def rows(body: str, width: int = 16, **values: Any) -> tuple[Any, dict[str, tuple]]:
    """x [1, 16, 16] -> MatMul -> Relu -> t -> `body` -> u -> MatMul -> y."""
    text = f"(float[1, 16, 16] x) => (float[A, B, D] y) {{ c0 = MatMul (x, w0)  t = Relu (c0)  {body}  y = MatMul (u, w1) }}"
    return written(text, w0=weights(16, 16, seed=8), w1=weights(width, 16, seed=9), **values), {"x": (1, 16, 16)}


def layers(model: jaxq.Model, folder: Any) -> tuple[Any, dict[str, set[str]]]:
    """The compiled file, and the precisions in which the plugin computes the nodes that it made of each of ours."""
    path = folder / "model.onnx"
    save(model, path)
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = ov.Core().compile_model(str(path), "CPU", options)
    found: dict[str, set[str]] = {}
    for op in compiled.get_runtime_model().get_ordered_ops():
        info = {key: str(getattr(value, "value", value)) for key, value in op.get_rt_info().items()}
        for name in re.split(r"[,/#]", info.get("originalLayersNames", "")):
            found.setdefault(name, set()).add(info.get("runtimePrecision", ""))
    return compiled, found


def check(made: tuple[Any, dict[str, tuple]], folder: Any, expected: set[str], **options: Any) -> None:
    """The node that is called "op" runs in one of the precisions, and the outputs are those of the simulation."""
    proto, shapes = made
    random = np.random.default_rng(0)
    samples = [{name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()} for _ in range(4)]
    quantized = jaxq.quantize(proto, jaxq.Dataset(samples), target_device="openvino", **options)
    compiled, found = layers(quantized, folder)
    # A transposed convolution loses its name.
    mine = {name for name in found if name == "op" or "ConvolutionBackpropData" in name}
    assert mine
    assert set().union(*(found[name] for name in mine)) <= expected, found
    simulated, seen = np.asarray(quantized(samples[0])["y"]), next(iter(compiled(samples[0]).values()))
    step = (simulated.max() - simulated.min()) / 255
    assert np.abs(seen - simulated).max() <= STEPS * step


PAD = "pads = [1, 1, 1, 1]"
CONVOLUTIONS = {
    "Conv": (f"[op] u = Conv <{PAD}> (t, w)", {"w": weights(C, C, 3, 3)}),
    "Conv in groups": (f"[op] u = Conv <{PAD}, group = 2> (t, w)", {"w": weights(C, C // 2, 3, 3)}),
    "DepthwiseConv": (f"[op] u = Conv <{PAD}, group = {C}> (t, w)", {"w": weights(C, 1, 3, 3)}),
    "ConvTranspose": ("[op] u = ConvTranspose <strides = [2, 2]> (t, w)", {"w": weights(C, C, 2, 2)}),
    "Add": (f"a = Conv <{PAD}> (t, w)  [op] u = Add (a, t)", {"w": weights(C, C, 3, 3)}),
    "Sum": (f"a = Conv <{PAD}> (t, w)  [op] u = Sum (a, t)", {"w": weights(C, C, 3, 3)}),
    "Sub": (f"a = Conv <{PAD}> (t, w)  [op] u = Sub (a, t)", {"w": weights(C, C, 3, 3)}),
    "Mul": (f"a = Conv <{PAD}> (t, w)  [op] u = Mul (a, t)", {"w": weights(C, C, 3, 3)}),
    "AveragePool": ("[op] u = AveragePool <kernel_shape = [2, 2]> (t)", {}),
    "GlobalAveragePool": ("[op] u = GlobalAveragePool (t)", {}),
    "ReduceMean": ("[op] u = ReduceMean <axes = [2, 3]> (t)", {}),
    "LpNormalization": ("[op] u = LpNormalization <axis = 1> (t)", {}),
    "Resize": ('[op] u = Resize <mode = "nearest"> (t, , s)', {"s": np.float32([1, 1, 2, 2])}),
    "MaxPool": ("[op] u = MaxPool <kernel_shape = [2, 2]> (t)", {}),
    "GlobalMaxPool": ("[op] u = GlobalMaxPool (t)", {}),
    "ReduceMax": ("[op] u = ReduceMax <axes = [2, 3]> (t)", {}),
    "Transpose": ("[op] u = Transpose <perm = [0, 1, 3, 2]> (t)", {}),
    "Concat and Split": ("[op] a, b = Split <axis = 1> (t)  u = Concat <axis = 1> (b, a)", {}),
    "Slice": ("a = Slice (t, from, to, axes)  [op] u = Concat <axis = 1> (a, t, a)",
              {"from": np.int64([0]), "to": np.int64([4]), "axes": np.int64([1]), "channels": 2 * C}),
    "LeakyRelu": (f"a = Conv <{PAD}> (t, w)  [op] u = LeakyRelu (a)", {"w": weights(C, C, 3, 3)}),
    "Sigmoid": (f"a = Conv <{PAD}> (t, w)  [op] u = Sigmoid (a)", {"w": weights(C, C, 3, 3)}),
}  # fmt: skip


SHIFTED = ("Conv", "DepthwiseConv", "ConvTranspose", "Add", "Mul")  # with zero points of their own


@pytest.mark.parametrize(
    "name, preset",
    [*((name, "performance") for name in CONVOLUTIONS), *((name, "mixed") for name in SHIFTED)],
)
def test_layers_on_images_run_in_integers(name, preset, tmp_path):
    body, values = CONVOLUTIONS[name]
    check(image(body, **values), tmp_path, BYTES, preset=preset)


@pytest.mark.parametrize("rank", [3, 5])
def test_convolutions_of_sequences_and_volumes_run_in_integers(rank, tmp_path):
    body = f"[op] u = Conv <pads = {[1] * 2 * (rank - 2)}> (t, w)"
    check(image(body, rank, w=weights(C, C, *[3] * (rank - 2))), tmp_path, BYTES)


TWO = "a = MatMul (t, p)  b = MatMul (t, q)  c = Transpose <perm = [0, 2, 1]> (b)  [op] u = MatMul (a, c)"
PRODUCTS = {
    "MatMul": ("[op] u = MatMul (t, p)", {}),
    "MatMul with a constant on the left": ("[op] u = MatMul (p, t)", {}),
    "of two activations": (TWO, {}),
    "of two that are not negative": (TWO.replace("b = MatMul (t, q)", "d = MatMul (t, q)  b = Relu (d)"), {}),
}


@pytest.mark.parametrize("preset", ["performance", "mixed"])
@pytest.mark.parametrize("name", PRODUCTS)
def test_products_run_in_integers(name, preset, tmp_path):
    body, values = PRODUCTS[name]
    both = {key: weights(16, 16, seed=seed) for seed, key in enumerate("pq") if f"{key})" in body or f"({key}" in body}
    check(rows(body, **both, **values), tmp_path, BYTES, preset=preset)


def test_a_dense_layer_runs_in_integers(tmp_path):
    text = "(float[16, 16] x) => (float[16, 16] y) { [op] a = Gemm <transB = 1> (x, w, b)  c = Relu (a)  y = Gemm (c, v, b) }"
    values = {"w": weights(16, 16), "v": weights(16, 16, seed=1), "b": weights(16, seed=2)}
    check((written(text, **values), {"x": (16, 16)}), tmp_path, BYTES)


LEFT_OUT = {
    "Div": "a = Sigmoid (t)  [op] u = Div (t, a)",
    "Max": "a = Sigmoid (t)  [op] u = Max (t, a)",
    "Pow": "[op] u = Pow (t, two)",
    "HardSigmoid": "[op] u = HardSigmoid (t)",
    "SpaceToDepth": "[op] a = SpaceToDepth <blocksize = 2> (t)  u = DepthToSpace <blocksize = 2> (a)",
    "Resize": '[op] u = Resize <mode = "linear"> (t, , s)',
    "ConvTranspose": "[op] u = ConvTranspose <strides = [2, 2], group = 2> (t, w)",
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_the_table_leaves_out_has_no_kernel_in_integers(name, tmp_path):
    """If one of these fails, the runtime has learned it: put it into the table."""
    values = {"two": np.float32(2), "s": np.float32([1, 1, 2, 2]), "w": weights(C, C // 2, 2, 2)}
    body = LEFT_OUT[name]
    made = image(body, **{key: value for key, value in values.items() if f" {key})" in body})
    fates = summarize(load(made[0]), "openvino").fates[name]
    assert not {INTEGER, STORED} & fates.keys()
    check(made, tmp_path, FLOATS)


@pytest.mark.parametrize("wanted", [{"mode": "asymmetric"}, {"num_bits": 4}], ids=str)
@pytest.mark.parametrize("made", [image(*CONVOLUTIONS["Conv"][:1], w=weights(C, C, 3, 3)),
                                  rows("[op] u = MatMul (t, p)", p=weights(16, 16))], ids=["Conv", "MatMul"])  # fmt: skip
def test_weights_of_which_kernels_are_in_float_are_said_to_be(made, wanted, tmp_path):
    options = jaxq.AdvancedQuantizationParameters(weights_quantization_params=jaxq.QuantizationParameters(**wanted))
    proto, shapes = made
    samples = [{name: np.random.default_rng(0).normal(size=shape).astype(np.float32) for name, shape in shapes.items()}]
    quantized = jaxq.quantize(proto, jaxq.Dataset(samples), target_device="openvino", advanced_parameters=options)
    compiled, _ = layers(quantized, tmp_path)
    inputs = {
        str(getattr(op.get_rt_info()["outputPrecisions"], "value", op.get_rt_info()["outputPrecisions"]))
        for op in compiled.get_runtime_model().get_ordered_ops()
        if "Dequantize" not in op.get_friendly_name() and op.get_friendly_name().startswith("op")
    }
    assert inputs <= FLOATS
    found = summarize(load(tmp_path / "model.onnx"), "openvino").findings
    assert any(each.node == "op" and "runs in float" in each.problem for each in found)


def test_the_table_claims_no_more_than_these_tests_run():
    tested = {*CONVOLUTIONS, "MatMul", "Gemm", "Gather", "Upsample"}
    assert OPENVINO.rules.keys() <= tested


@pytest.mark.parametrize("bits", [5, 12])
def test_a_narrow_grid_with_bounds_for_each_channel_is_clipped_to(bits, tmp_path):
    """The channels of the data of a depthwise convolution have scales of their own, and the file has no type of 5 bits."""
    proto, shapes = image(*CONVOLUTIONS["DepthwiseConv"][:1], w=weights(C, 1, 3, 3))
    samples = [{name: np.random.default_rng(0).normal(size=shape).astype(np.float32) for name, shape in shapes.items()}]
    wanted = jaxq.AdvancedQuantizationParameters(
        activations_quantization_params=jaxq.QuantizationParameters(num_bits=bits),
        weights_quantization_params=jaxq.QuantizationParameters(num_bits=3),
    )
    quantized = jaxq.quantize(proto, jaxq.Dataset(samples), target_device="openvino", advanced_parameters=wanted)
    outside = {name: 3 * value for name, value in samples[0].items()}
    simulated = np.asarray(quantized(outside)["y"])
    save(quantized, tmp_path / "model.onnx")
    assert any(node.op == "Max" for node in load(tmp_path / "model.onnx").graph.nodes)
    np.testing.assert_allclose(np.asarray(load(tmp_path / "model.onnx")(outside)["y"]), simulated, rtol=1e-5, atol=1e-5)


CHAINS = {
    "one product behind another": "c = MatMul (x, p)  y = MatMul (c, q)",
    "Relu between": "a = MatMul (x, p)  c = Relu (a)  y = MatMul (c, q)",
    "Clip between": "a = MatMul (x, p)  c = Clip (a, zero, six)  y = MatMul (c, q)",
    "Gemm": "a = Gemm <transB = 1> (x, p)  c = Relu (a)  y = Gemm (c, q)",
    "one number for all": "a = MatMul (x, p)  d = Add (a, one)  c = Relu (d)  y = MatMul (c, q)",
    "three, the second with a bias": "a = MatMul (x, p)  c = Relu (a)  d = Gemm (c, q, b)  e = Relu (d)  y = MatMul (e, p)",
    "a sum behind": "a = MatMul (x, p)  c = Relu (a)  d = MatMul (c, q)  e = Relu (d)  f = MatMul (e, p)  y = Add (f, c)",
}


@pytest.mark.parametrize("correct", [True, False], ids=["corrected", "as rounded"])
@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_of_products_without_biases_on_few_rows_is_right(name, correct, tmp_path):
    """The plugin makes one kernel of it, which gives zeros or numbers of 1e9 where weights have scales for their channels."""
    body = CHAINS[name]
    values = {
        "p": weights(16, 16),
        "q": weights(16, 16, seed=1),
        "b": weights(16, seed=2),
        "one": np.float32([0.3] * 16),
    }
    values |= {"zero": np.float32(0), "six": np.float32(6)}
    used = {key: value for key, value in values.items() if re.search(rf"\b{key}\b", body)}
    proto = written(f"(float[4, 16] x) => (float[4, 16] y) {{ {body} }}", **used)
    samples = [{"x": np.random.default_rng(seed).normal(size=(4, 16)).astype(np.float32)} for seed in range(4)]
    how = jaxq.AdvancedQuantizationParameters(disable_bias_correction=not correct)
    quantized = jaxq.quantize(proto, jaxq.Dataset(samples), target_device="openvino", advanced_parameters=how)
    compiled, _ = layers(quantized, tmp_path)
    simulated, seen = np.asarray(quantized(samples[0])["y"]), next(iter(compiled(samples[0]).values()))
    assert np.abs(seen - simulated).max() <= STEPS * (simulated.max() - simulated.min()) / 255
