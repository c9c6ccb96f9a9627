"""com.microsoft operators against ONNX Runtime's own."""

import numpy as np
import pytest
from node_case import Case, assert_agrees, normal, run_jaxq

from jaxq.errors import UnsupportedOpError

x, row = normal(2, 3, 8), normal(8, seed=1)
gamma, beta = normal(8, seed=2), normal(8, seed=3)
ids = np.array([[1, 3, 0], [2, 2, 4]], np.int32)
image, kernel = normal(1, 4, 5, 5), normal(6, 4, 3, 3)


def case(op, *inputs, outputs=1, **attributes):
    return Case(op=op, inputs=inputs, attributes=attributes, outputs=outputs, opset=1, domain="com.microsoft")


def nbits(bits, zero_points=None, dtype=np.uint8, **attributes):
    rng = np.random.default_rng(0)
    b = rng.integers(0, 256, (5, 2, 16 * bits // 8), dtype=np.uint8)
    scales = rng.uniform(0.1, 1, (5, 2)).astype(np.float32)
    zeros = None
    if zero_points == "packed":
        zeros = rng.integers(0, 256, (5, -(-2 * bits // 8)), dtype=np.uint8)
    elif zero_points == "float":
        zeros = rng.uniform(0, 15, (5, 2)).astype(np.float32)
    return case("MatMulNBits", normal(2, 3, 32), b, scales, zeros, K=32, N=5, bits=bits, block_size=16, **attributes)


CASES = {
    "Gelu": case("Gelu", x),
    "BiasGelu": case("BiasGelu", x, row),
    "FastGelu": case("FastGelu", x),
    "FastGelu with bias": case("FastGelu", x, row),
    "QuickGelu": case("QuickGelu", x, alpha=1.5),
    "FusedConv Relu": case("FusedConv", image, kernel, activation="Relu", pads=[1, 1, 1, 1]),
    "FusedConv LeakyRelu": case("FusedConv", image, kernel, activation="LeakyRelu", activation_params=[0.3]),
    "FusedConv Clip": case("FusedConv", image, kernel, activation="Clip", activation_params=[-1.0, 2.0]),
    "FusedConv HardSigmoid": case("FusedConv", image, kernel, activation="HardSigmoid", activation_params=[0.1, 0.4]),
    "FusedConv with sum": case("FusedConv", image, kernel, normal(6), normal(1, 6, 3, 3, seed=5), activation="Tanh"),
    "FusedGemm": case("FusedGemm", normal(3, 4), normal(5, 4), normal(5), transB=1, activation="Sigmoid", alpha=0.5),
    "FusedGemm LeakyRelu": case(
        "FusedGemm", normal(3, 4), normal(4, 5), normal(5), activation="LeakyRelu", activation_alpha=0.3
    ),
    "FusedMatMul": case("FusedMatMul", normal(2, 3, 4), normal(2, 5, 4), transB=1, alpha=0.25),
    "FusedMatMul A": case("FusedMatMul", normal(4, 3), normal(4, 5), transA=1),
    "FusedMatMul batch A": case("FusedMatMul", normal(3, 2, 4), normal(2, 4, 5), transBatchA=1),
    "FusedMatMul batch B": case("FusedMatMul", normal(2, 3, 4), normal(5, 2, 4), transBatchB=1, transB=1),
    "TransposeMatMul": case("TransposeMatMul", normal(4, 3), normal(5, 4), transA=1, transB=1),
    "SkipLayerNormalization": case("SkipLayerNormalization", x, x * 2, gamma, beta, row, epsilon=1e-5),
    "SkipLayerNormalization bare": case("SkipLayerNormalization", x, x * 2, gamma),
    "SkipSimplifiedLayerNormalization": case("SkipSimplifiedLayerNormalization", x, x * 2, gamma, row, epsilon=1e-5),
    "EmbedLayerNormalization": case(
        "EmbedLayerNormalization",
        ids, ids % 2, normal(5, 8), normal(4, 8), normal(2, 8), gamma, beta, np.array([[1, 1, 0], [1, 1, 1]], np.int32),
        outputs=3,
        epsilon=1e-5,
    ),
    "EmbedLayerNormalization bare": case(
        "EmbedLayerNormalization", ids, None, normal(5, 8), normal(4, 8), None, gamma, beta, outputs=2
    ),
    "EmbedLayerNormalization positions": case(
        "EmbedLayerNormalization",
        ids, None, normal(5, 8), normal(4, 8), None, gamma, beta, None, np.array([[2, 0, 1]], np.int32),
        outputs=2,
    ),
    "MatMulNBits 4": nbits(4),
    "MatMulNBits 4 zero points": nbits(4, "packed"),
    "MatMulNBits 4 float zero points": nbits(4, "float"),
    "MatMulNBits 8": nbits(8),
    "MatMulNBits 8 zero points": nbits(8, "packed"),
    "MatMulNBits 2": nbits(2),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_agrees_with_the_runtime(case):
    assert_agrees(case, rtol=1e-4, atol=1e-4)


def test_sum_and_statistics_of_skip_layer_normalization():
    y, mean, inverse, total = run_jaxq(case("SkipLayerNormalization", x, x, gamma, outputs=4, epsilon=1e-5))
    np.testing.assert_allclose(total, 2 * x, rtol=1e-6)
    np.testing.assert_allclose(mean[..., 0], total.mean(-1), atol=1e-6)
    np.testing.assert_allclose(y, (total - mean) * inverse * gamma, atol=1e-5)


def test_unknown_fused_activation_is_refused():
    with pytest.raises(UnsupportedOpError, match="activation = 'Erf'; expected one of Relu"):
        run_jaxq(case("FusedConv", image, kernel, activation="Erf"))


def test_prepacked_weights_are_refused():
    with pytest.raises(UnsupportedOpError, match="weight_prepacked"):
        run_jaxq(nbits(4, weight_prepacked=1))
