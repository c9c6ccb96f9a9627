"""Which outputs are scores of classes: rather missed than claimed."""

import numpy as np
import pytest
from models import NETWORKS, quantized, written

from jaxq.analysis.classes import class_scores
from jaxq.graph.ir import Graph
from jaxq.onnx_io.load import load
from jaxq.onnx_io.qdq import with_qdq


def scores_of(text: str, opset: int = 17, **initializers) -> set[str]:
    model = load(written(text, opset, **initializers))
    return set(class_scores(model.graph, model.params))


def head(output: str, count: int, *, body: str = "{} = Gemm (x, w)", others: str = "") -> set[str]:
    """The class scores of a network that ends in such a layer."""
    text = f"(float[N, 8] x) => (float[N, {count}] {output}{others}) {{ {body.format(output)} }}"
    return scores_of(text, w=np.ones((8, count), np.float32))


@pytest.mark.parametrize(
    "output, count, found",
    [
        ("logits", 4, True),
        ("class_scores", 2, True),
        ("prob", 64, True),
        ("y", 10, True),
        ("output", 1000, True),
        ("y", 1, False),
        ("y", 4, False),  # the corners of a box, as likely
        ("y", 128, False),  # the width of an embedding
        ("embedding", 10, False),
        ("boxes", 12, False),
        ("landmarks", 10, False),
        ("class_embedding", 10, False),
    ],
)
def test_a_linear_layer_gives_scores_where_names_and_width_allow_it(output, count, found):
    assert head(output, count) == ({output} if found else set())


@pytest.mark.parametrize(
    "body, found",
    [
        ("h = Gemm (x, w) {} = Softmax (h)", True),
        ("h = Gemm (x, w) {} = LogSoftmax <axis = 1> (h)", True),
        ("h = Gemm (x, w) {} = Softmax <axis = 0> (h)", False),
        ("h = Gemm (x, w) s = Softmax (h) {} = Identity (s)", True),
        ("h = MatMul (x, w) {} = Add (h, h)", False),
        ("h = Gemm (x, w) {} = Sigmoid (h)", False),  # labels of which several may hold
        ("h = Gemm (x, w) {} = LpNormalization (h)", False),
        ("h = Gemm (x, w) {} = Relu (h)", False),
    ],
)
def test_what_makes_the_values_decides(body, found):
    assert head("y", 4, body=body) == ({"y"} if found else set())


def test_what_an_argmax_reads_is_scores():
    body = "{} = Gemm (x, w) best = ArgMax <axis = 1> (y)"
    assert head("y", 4, body=body, others=", int64[N, 1] best") == {"y"}


def test_without_a_name_the_only_output_alone_is_scores():
    body = "{} = Gemm (x, w) z = Gemm (x, w)"
    assert head("y", 10, body=body, others=", float[N, 10] z") == set()
    assert head("scores", 10, body=body.replace("{}", "scores"), others=", float[N, 10] z") == {"scores"}


def test_a_pooled_convolution_is_a_linear_layer_and_trailing_axes_of_one_do_not_count():
    text = """(float[N, 3, 8, 8] x) => (float[N, 12, 1, 1] y) { h = Conv (x, w) y = GlobalAveragePool (h) }"""
    assert scores_of(text, w=np.ones((12, 3, 1, 1), np.float32)) == {"y"}
    assert scores_of(text.replace("1, 1] y", "2, 2] y"), w=np.ones((12, 3, 1, 1), np.float32)) == set()


def test_a_product_of_two_activations_is_no_layer():
    assert scores_of("(float[N, 8] x, float[8, 12] k) => (float[N, 12] y) { y = MatMul (x, k) }") == set()


@pytest.mark.parametrize(
    "name, wanted",
    [
        ("residual", {"scores"}),
        ("shuffle", {"scores"}),
        ("opset 7", {"probabilities"}),
        ("opset 11", {"probabilities"}),
        ("transformer", set()),
        ("free size", set()),
        ("branching", set()),
    ],
)
def test_networks(name, wanted):
    model = load(NETWORKS[name][0]())
    assert class_scores(model.graph, model.params) == wanted


def test_quantizers_pass_values_on():
    model = with_qdq(quantized("residual"))
    assert class_scores(model.graph, model.params) == {"scores"}


def test_an_input_that_is_an_output_is_no_scores():
    assert class_scores(Graph((), ("x",), ("x",)), {}) == frozenset()
