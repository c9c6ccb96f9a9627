"""com.microsoft attention operators against ONNX Runtime's own."""

import numpy as np
import pytest
from node_case import Case, assert_agrees, normal, run_jaxq, run_runtime

from jaxq.errors import ModelError, UnsupportedOpError

B, S, P, H, K, D = 2, 3, 2, 4, 2, 16
T = P + S
HIDDEN = H * D

x, weights, bias = normal(B, S, 6), normal(6, 3 * HIDDEN), normal(3 * HIDDEN)
query, key, value = normal(B, S, HIDDEN), normal(B, S, HIDDEN, seed=1), normal(B, S, HIDDEN, seed=2)
past_key, past_value = normal(B, H, P, D), normal(B, H, P, D, seed=1)
padding = np.array([[1, 1, 0], [1, 1, 1]], np.int32)
cos, sin = np.cos(normal(16, D // 2)), np.sin(normal(16, D // 2))


def case(op, *inputs, outputs=1, static=(), **attributes):
    return Case(
        op=op, inputs=inputs, attributes=attributes, outputs=outputs, opset=1, domain="com.microsoft", static=static
    )


integers = np.random.default_rng(0).integers(0, 256, (B, S, 6), np.uint8)
integer_weights = np.random.default_rng(1).integers(-128, 128, (6, 3 * HIDDEN), np.int8)
columns, zeros = np.linspace(0.01, 0.02, 3 * HIDDEN, dtype=np.float32), np.zeros(3 * HIDDEN, np.int8)


def qattention(weight_scale, *rest, **attributes):
    inputs = (integers, integer_weights, bias, np.array(0.02, np.float32), weight_scale, *rest)
    return case("QAttention", *inputs, num_heads=H, static=(1,), **attributes)


def mha(*inputs, **attributes):
    return case("MultiHeadAttention", *inputs, num_heads=H, **attributes)


def gqa(*inputs, step=T, used=(T, T), past=True, rest=(), **attributes):
    """Queries, keys and values, the cache, how many keys each row has, and the total."""
    cache = (normal(B, K, P, D), normal(B, K, P, D, seed=1)) if past is True else past or (None, None)
    lengths, total = np.array(used, np.int32) - 1, np.array([step], np.int32)
    inputs = (*inputs, *cache, lengths, total, *rest)
    return case(
        "GroupQueryAttention", *inputs, num_heads=H, kv_num_heads=K, outputs=3, static=(6,), **attributes
    )  # fmt: skip


new = normal(B, S, HIDDEN), normal(B, S, K * D), normal(B, S, K * D, seed=1)
one = tuple(part[:, :1] for part in new)
buffer = (normal(B, K, 9, D), normal(B, K, 9, D, seed=1))

CASES = {
    "Attention": case("Attention", x, weights, bias, num_heads=H),
    "Attention unidirectional": case("Attention", x, weights, bias, num_heads=H, unidirectional=1),
    "Attention raw mask": case("Attention", x, weights, bias, padding, num_heads=H),
    "Attention 3D mask": case("Attention", x, weights, bias, np.tri(3, dtype=np.int32)[None].repeat(B, 0), num_heads=H),
    "Attention lengths": case("Attention", x, weights, bias, np.array([2, 3], np.int32), num_heads=H),
    "Attention ends and starts": case("Attention", x, weights, bias, np.array([3, 3, 1, 0], np.int32), num_heads=H),
    "Attention bias": case("Attention", x, weights, bias, None, None, normal(B, H, S, S), num_heads=H),
    "Attention past": case(
        "Attention", x, weights, bias, None, normal(2, B, H, P, D), num_heads=H, unidirectional=1, outputs=2
    ),
    "Attention sizes": case(
        "Attention", x, normal(6, 2 * HIDDEN + 12), normal(2 * HIDDEN + 12), num_heads=H, scale=0.3,
        qkv_hidden_sizes=[HIDDEN, HIDDEN, 12],
    ),
    "QAttention": qattention(np.array(0.01, np.float32)),
    "QAttention by column, masked": qattention(columns, padding, np.array(100, np.uint8), zeros, unidirectional=1),
    "QAttention past": qattention(
        np.array(0.01, np.float32), None, np.array(128, np.uint8), np.array(0, np.int8), normal(2, B, H, P, D),
        unidirectional=1, outputs=2,
    ),
    "MultiHeadAttention": mha(query, key, value),
    "MultiHeadAttention bias": mha(query, key, value, bias, scale=0.2),
    "MultiHeadAttention mask": mha(query, key, value, None, padding),
    "MultiHeadAttention lengths": mha(query, key, value, None, np.array([2, 3], np.int32)),
    "MultiHeadAttention score bias": mha(query, key, value, None, None, normal(1, H, S, S)),
    "MultiHeadAttention past": mha(query, key, value, bias, None, None, past_key, past_value, outputs=3),
    "MultiHeadAttention causal": mha(query, key, value, unidirectional=1),
    "MultiHeadAttention cross": mha(query, normal(B, H, 5, D), normal(B, H, 5, D, seed=1)),
    "RotaryEmbedding": case("RotaryEmbedding", normal(B, H, S, D), np.array([[0, 5, 2], [1, 2, 3]]), cos, sin),
    "RotaryEmbedding flat": case("RotaryEmbedding", query, np.array([4]), cos, sin),
    "RotaryEmbedding interleaved": case("RotaryEmbedding", query, np.array([4]), cos, sin, interleaved=1),
    "RotaryEmbedding part": case(
        "RotaryEmbedding", query, np.array([0]), cos[:, :2], sin[:, :2], rotary_embedding_dim=4, num_heads=H
    ),
    "GroupQueryAttention prompt": gqa(*new, step=S, used=(S, S), past=False),
    "GroupQueryAttention packed": gqa(np.concatenate(new, -1), None, None, step=S, used=(S, S), past=False),
    "GroupQueryAttention next": gqa(*one, step=P + 1, used=(P + 1, P + 1)),
    "GroupQueryAttention ragged": gqa(*one, step=P + 1, used=(P + 1, P)),
    "GroupQueryAttention rotary": gqa(*one, step=P + 1, used=(P + 1, P), rest=(cos, sin), do_rotary=1),
    "GroupQueryAttention rotary prompt": gqa(
        *new, step=S, used=(S, S), past=False, rest=(cos, sin), do_rotary=1, rotary_interleaved=1
    ),
    "GroupQueryAttention window": gqa(*new, step=S, used=(S, S), past=False, local_window_size=2),
    "GroupQueryAttention softcap": gqa(*new, step=S, used=(S, S), past=False, softcap=1.5, scale=0.7),
    "GroupQueryAttention smooth": gqa(*new, step=S, used=(S, S), past=False, smooth_softmax=1),
    "GroupQueryAttention sink": gqa(
        *new, step=S, used=(S, S), past=False, rest=(None, None, None, None, normal(H))
    ),
    "GroupQueryAttention bias": gqa(
        *new, step=S, used=(S, S), past=False, rest=(None, None, None, normal(B, H, S, S))
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_agrees_with_the_runtime(case):
    assert_agrees(case, rtol=1e-4, atol=1e-4)


def test_packed_heads_are_the_same_attention():
    """ONNX Runtime's CPU kernel does not take them."""
    packed = normal(B, S, H, 3, D)
    parts = [packed[:, :, :, part].reshape(B, S, HIDDEN) for part in range(3)]
    wanted = run_jaxq(mha(*parts))[0]
    np.testing.assert_allclose(run_jaxq(mha(packed))[0], wanted, atol=1e-6)
    np.testing.assert_allclose(run_jaxq(mha(parts[0], packed[:, :, :, 1:]))[0], wanted, atol=1e-6)


def test_a_cache_with_room_is_filled_in_place():
    """Rows beyond the keys in use hold nothing in particular in ONNX Runtime."""
    grown = gqa(*one, step=P + 1, used=(P + 1, P), past=buffer)
    got, wanted = run_jaxq(grown), run_runtime(grown)
    np.testing.assert_allclose(got[0], wanted[0], atol=1e-5)
    for mine, theirs in zip(got[1:], wanted[1:], strict=True):
        assert mine.shape == theirs.shape == (B, K, 9, D)
        np.testing.assert_array_equal(mine[0, :, : P + 1], theirs[0, :, : P + 1])
        np.testing.assert_array_equal(mine[1, :, :P], theirs[1, :, :P])


def test_what_is_not_implemented_is_refused():
    with pytest.raises(UnsupportedOpError, match="Attention with do_rotary is not supported"):
        run_jaxq(case("Attention", x, weights, bias, num_heads=H, do_rotary=1))


def test_a_window_without_causality_is_refused():
    with pytest.raises(ModelError, match="local_window_size needs causal attention"):
        run_jaxq(gqa(*new, step=S, used=(S, S), past=False, local_window_size=2, causal=0))
