"""An attention mask does not set the range of the scores that it is added to, selected with, or written into."""

import jax.numpy as jnp
import numpy as np
import pytest
from models import run_onnx, written

import jaxq
from jaxq.graph.masks import Axes, bounded, floored, mask_inputs
from jaxq.numerics.observers import extremes
from jaxq.onnx_io.save import to_proto

RANDOM = np.random.default_rng(0)
WEIGHTS = {key: (RANDOM.normal(size=(8, 8)) * 0.7).astype(np.float32) for key in ("wq", "wk", "wv", "wo")}
LOWEST = float(np.finfo(np.float32).min)
BIAS = RANDOM.normal(size=(1, 6, 6)).astype(np.float32)
CAUSAL = np.tril(np.ones((1, 6, 6))) > 0


def attention(scores: str, **numbers: float | np.ndarray):
    """x [N, 6, 8], keep and mask [N, 1, 6] -> y: `scores` makes s from r, the products of queries and keys."""
    text = f"""(float[N, 6, 8] x, float[N, 1, 6] keep, float[N, 1, 6] mask) => (float[N, 6, 8] y) {{
        q = MatMul (x, wq)  k = MatMul (x, wk)  v = MatMul (x, wv)  t = Transpose <perm = [0, 2, 1]> (k)
        u = MatMul (q, t)  r = Mul (u, c)  {scores}  p = Softmax <axis = -1> (s)  o = MatMul (p, v)  y = MatMul (o, wo) }}"""
    values = {"c": 0.35, **numbers}
    used = {
        key: np.asarray(each, np.float32) for key, each in values.items() if any(f"{key}{end}" in text for end in ",)")
    }
    return written(text, **WEIGHTS, **used)


def feeds(low: float, high: float = 0.0) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(1)
    found = []
    for number in range(6):
        keep = (np.arange(6) < 6 - number % 3).astype(np.float32).reshape(1, 1, 6)
        mask = np.where(keep > 0, high, low).astype(np.float32)
        found.append({"x": random.normal(size=(1, 6, 8)).astype(np.float32), "keep": keep, "mask": mask})
    return found


FORMS = {  # how the scores r and a mask of `low` become s
    "selected": lambda low: attention("b = Cast <to = 9> (keep)  s = Where (b, r, low)", low=low),
    "made, then added": lambda low: attention(
        "b = Cast <to = 9> (keep)  m = Where (b, zero, low)  s = Add (r, m)", zero=0, low=low
    ),
    "an input": lambda low: attention("s = Add (r, mask)"),
    "before the scores are scaled": lambda low: attention("d = Add (r, mask)  s = Div (d, e)", e=2),
    "behind a bias": lambda low: attention("d = Add (r, bias)  s = Add (d, mask)", bias=BIAS),
    "a constant with a bias": lambda low: attention("s = Add (r, both)", both=np.where(CAUSAL, BIAS, low)),
    "held above a floor": lambda low: attention("d = Add (r, mask)  s = Max (d, floor)", floor=-1e5),
    "the smaller of two": lambda low: attention("s = Min (r, mask)"),
}  # fmt: skip


@pytest.mark.parametrize(
    "form, low, target, bits",
    [
        *((form, -1e9, "qnn", 8) for form in FORMS),
        *((form, -np.inf, "qnn", 8) for form in ("selected", "an input", "a constant with a bias")),
        ("made, then added", -1e4, "qnn", 8),
        ("made, then added", LOWEST, "qnn", 8),
        ("made, then added", -1e9, "qnn", 16),
        ("an input", -np.inf, "onnxruntime", 8),
    ],
)
def test_a_mask_does_not_set_the_range_of_the_scores(form, low, target, bits):
    proto, high = FORMS[form](low), 1e4 if form == "the smaller of two" else 0.0
    used = any("mask" in node.input for node in proto.graph.node)
    data = feeds(low if used else 0.0, high)
    activations = jaxq.QuantizationParameters(num_bits=bits)
    advanced = jaxq.AdvancedQuantizationParameters(
        activations_quantization_params=None if bits == 8 else activations, disable_bias_correction=True
    )
    result = jaxq.quantize(proto, data, target_device=target, advanced_parameters=advanced)
    wanted = np.stack([run_onnx(proto, feed)["y"] for feed in data])
    found = np.stack([run_onnx(to_proto(result), feed)["y"] for feed in data])
    assert 10 * np.log10(np.sum(wanted**2) / np.sum((wanted - found) ** 2)) > 20
    np.testing.assert_allclose(found[2], np.asarray(result(data[2])["y"]), atol=0.05)


def test_the_scores_of_rows_that_are_masked_as_a_whole_do_not_count():
    x = jnp.asarray([[[1.0, -5.0, -1e9], [-1e9, -1e9, -1e9 + 64], [2.0, 1.0, -np.inf]]])
    seen = floored(extremes(8), Axes(-1, True)).measure([x], jnp.asarray([True]))
    assert (float(seen.low[0, 0]), float(seen.high[0, 0])) == (-15.0, 2.0)
    seen = bounded(extremes(8)).measure([x], jnp.asarray([True]))
    assert (float(seen.low[0, 0]), float(seen.high[0, 0])) == (np.float32(-1e30), 2.0)


def test_only_what_a_softmax_alone_reads_is_a_mask():
    model = jaxq.load(attention("s = Add (r, mask)"))
    assert mask_inputs(model.graph, model.params) == {"mask"}
    model = jaxq.load(attention("s = Mul (r, mask)"))
    assert mask_inputs(model.graph, model.params) == set()
