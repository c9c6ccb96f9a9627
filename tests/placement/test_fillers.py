"""A huge constant in a place that does not count sets no range; where it may count, the range that holds it is named."""

import re
import warnings

import numpy as np
import pytest
from models import run_onnx, written

import jaxq
from jaxq.errors import JaxqWarning
from jaxq.onnx_io.save import to_proto

RANDOM = np.random.default_rng(0)
W1, W2 = (RANDOM.normal(size=(8, 8)).astype(np.float32) * 0.5 for _ in range(2))
LOWEST = float(np.finfo(np.float32).min)
FEEDS = [
    {
        "x": RANDOM.normal(size=(1, 6, 8)).astype(np.float32),
        "keep": (np.arange(6) < 6 - number % 3).astype(np.float32).reshape(1, 6, 1),
    }
    for number in range(10)
]
WHERE = "b = Cast <to = 9> (keep)  f = Where (b, h, big)"
ADD = "b = Cast <to = 9> (keep)  m = Where (b, zero, big)  f = Add (h, m)"
MAXIMUM = "p = ReduceMax <axes = [1], keepdims = 1> (f)"
FORMS = {  # how f, which holds the constant, becomes p
    "ReduceMax": MAXIMUM,
    "MaxPool": "t = Transpose <perm = [0, 2, 1]> (f)  u = MaxPool <kernel_shape = [6]> (t)  "
    "p = Transpose <perm = [0, 2, 1]> (u)",
    "TopK": "p, i = TopK <axis = 1> (f, two)",
    "Relu": "p = Relu (f)",
    "Sigmoid": "p = Sigmoid (f)",
    "LogSoftmax": "l = LogSoftmax <axis = 1> (f)  p = Exp (l)",
    "Softmax, written out": "a = ReduceMax <axes = [1]> (f)  d = Sub (f, a)  e = Exp (d)  "
    "s = ReduceSum (e, one)  p = Div (e, s)",
}


def network(brought: str, chosen: str, big: float):
    values = {"zero": np.float32(0), "big": np.float32(big), "two": np.array([2]), "one": np.array([1])}
    text = f"""(float[1, 6, 8] x, float[1, 6, 1] keep) => (float[1, K, 8] y) {{
        h = MatMul (x, w1)  {brought}  {chosen}  y = MatMul (p, w2) }}"""
    used = {key: each for key, each in values.items() if re.search(rf"\b{key}[,)]", text)}
    return written(text, w1=W1, w2=W2, **used)


def quantized(proto, target: str):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        result = jaxq.quantize(proto, FEEDS, target_device=target)
    return result, [
        str(each.message) for each in found if "has few" in str(each.message) or "puts" in str(each.message)
    ]


@pytest.mark.parametrize(
    "brought, chosen, big, target",
    [
        *((WHERE, form, -1e4, "qnn") for form in FORMS),
        (ADD, "Sigmoid", -1e4, "qnn"),
        (ADD, "MaxPool", LOWEST, "qnn"),
        (WHERE, "MaxPool", -np.inf, "qnn"),
        (WHERE, "LogSoftmax", -np.inf, "qnn"),
        (WHERE, "MaxPool", -1e4, "onnxruntime"),
        (WHERE, "ReduceMax", LOWEST, "onnxruntime"),
    ],
)
def test_what_does_not_count_sets_no_range(brought, chosen, big, target):
    proto = network(brought, FORMS[chosen], big)
    result, said = quantized(proto, target)
    assert not said
    wanted, made = (np.stack([run_onnx(each, feed)["y"] for feed in FEEDS]) for each in (proto, to_proto(result)))
    assert 10 * np.log10(np.sum(wanted**2) / np.sum((wanted - made) ** 2)) > 20
    np.testing.assert_allclose(made[2], np.asarray(result(FEEDS[2])["y"]), atol=0.1)


def test_a_range_that_must_hold_the_constant_is_named():
    proto = network(WHERE, "g = Mul (f, keep)  p = Relu (g)", -1e4)
    with pytest.warns(
        JaxqWarning, match=r"the range of tensor 'f' reaches -1e\+04, because node .* puts -1e\+04 into it"
    ):
        jaxq.quantize(proto, FEEDS, target_device="qnn")


def test_values_as_large_as_the_constant_count():
    far = [{**feed, "x": feed["x"] * np.float32(1e4)} for feed in FEEDS]
    result = jaxq.quantize(network(WHERE, MAXIMUM, -1e4), far, target_device="qnn")
    steps = result.encodings["f"]
    assert float(steps.scale) * 255 > 2e4
