"""Attention, rotary position embeddings and linear attention.

Shape letters: B batch, H query heads, K key and value heads, S queries, T keys, D head size.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax

from jaxq.errors import ModelError, UnsupportedOpError
from jaxq.ops import ELEMENT_TYPES, op


@op("Attention", since=23)
def attention(
    q,
    k,
    v,
    attn_mask=None,
    past_key=None,
    past_value=None,
    nonpad_kv_seqlen=None,
    *,
    is_causal=0,
    kv_num_heads=None,
    left_window_size=-1,
    q_num_heads=None,
    qk_matmul_output_mode=0,
    right_window_size=-1,
    scale=None,
    softcap=0.0,
    softmax_precision=None,
):
    """q [B, H, S, D], k and v [B, K, T, D], or [B, S, H * D]; also the cache after this step and what the scores were."""
    packed = q.ndim == 3
    if packed:
        q, k, v = split_heads(q, q_num_heads), split_heads(k, kv_num_heads), split_heads(v, kv_num_heads)
    first_query = 0
    if past_key is not None:
        first_query = past_key.shape[2]
        k, v = jnp.concatenate([past_key, k], axis=2), jnp.concatenate([past_value, v], axis=2)
    elif nonpad_kv_seqlen is not None:
        first_query = jnp.reshape(nonpad_kv_seqlen, (-1, 1, 1, 1)) - q.shape[2]

    visible = visible_keys(
        (q.shape[2], k.shape[2]), first_query, 0 if is_causal else None, left_window_size, right_window_size
    )
    if nonpad_kv_seqlen is not None:
        visible = both(visible, jnp.arange(k.shape[2]) < jnp.reshape(nonpad_kv_seqlen, (-1, 1, 1, 1)))
    y, scores = attend(
        q,
        k,
        v,
        score_bias(attn_mask, visible, k.shape[2], q.dtype),
        scale=scale,
        softcap=softcap,
        precision=softmax_precision,
    )
    return merge_heads(y) if packed else y, k, v, scores[qk_matmul_output_mode].astype(q.dtype)


def split_heads(x: jax.Array, count: int) -> jax.Array:
    """[B, S, H * D] -> [B, H, S, D]."""
    if not count or x.shape[-1] % count:
        raise ModelError(f"{x.shape[-1]} features cannot be split into {count} heads")
    return jnp.swapaxes(jnp.reshape(x, (*x.shape[:2], count, -1)), 1, 2)


def merge_heads(x: jax.Array) -> jax.Array:
    """[B, H, S, D] -> [B, S, H * D]."""
    return jnp.reshape(jnp.swapaxes(x, 1, 2), (x.shape[0], x.shape[2], -1))


def both(a: jax.Array | None, b: jax.Array | None) -> jax.Array | None:
    """Logical and, where None stands for all true."""
    return b if a is None else a if b is None else a & b


def visible_keys(lengths: tuple[int, int], first_query, ahead: int | None, left: int, right: int) -> jax.Array | None:
    """Which keys each query may see, bool [..., S, T]; None when all.

    Query i stands at position p = first_query + i and sees the keys p - left to p + right, where -1 is no limit, and none
    beyond p + `ahead` (0: causal).
    """
    limits = [limit for limit in (ahead, right) if limit is not None and limit >= 0]
    distance = first_query + jnp.arange(lengths[0])[:, None] - jnp.arange(lengths[1])
    visible = distance >= -min(limits) if limits else None
    return both(visible, distance <= left if left >= 0 else None)


def score_bias(mask, visible, keys: int, dtype) -> jax.Array | None:
    """What is added to the scores: a float mask, and -inf where a bool mask or `visible` is false; None when nothing.

    A mask that is shorter than the keys hides the rest of them.
    """
    if mask is None:
        return None if visible is None else jnp.where(visible, jnp.zeros((), dtype), -jnp.inf)
    hidden = keys - mask.shape[-1]
    bias = jnp.where(mask, jnp.zeros((), dtype), -jnp.inf) if mask.dtype == bool else mask.astype(dtype)
    if hidden > 0:
        bias = jnp.pad(bias, [(0, 0)] * (bias.ndim - 1) + [(0, hidden)], constant_values=-jnp.inf)
    return bias if visible is None else jnp.where(visible, bias, -jnp.inf)


def attend(q, k, v, bias=None, *, scale=None, softcap=0.0, precision=None, sink=None):
    """softmax(softcap(q k^T * scale) + bias) v, [B, H, S, D], and the scores after each stage, [B, H, S, T].

    Each key head serves H / K query heads. A query that may see no key gets 0. `sink` [H] is a further score that takes
    its share of the softmax and adds nothing.
    """
    batch, heads, queries, size = q.shape
    key_heads, keys = k.shape[1:3]
    if heads % key_heads:
        raise ModelError(f"{heads} query heads cannot share {key_heads} key heads")
    root = jnp.asarray(math.sqrt(1 / math.sqrt(size) if scale is None else scale), q.dtype)
    grouped = jnp.reshape(q * root, (batch, key_heads, heads // key_heads, queries, size))
    raw = jnp.reshape(jnp.einsum("bkgsd,bktd->bkgst", grouped, k * root), (batch, heads, queries, keys))
    capped = softcap * jnp.tanh(raw / softcap) if softcap else raw
    biased = capped if bias is None else capped + bias
    weights = masked_softmax(biased if precision is None else biased.astype(ELEMENT_TYPES[precision]), bias, sink)
    weights = weights.astype(q.dtype)
    shares = jnp.reshape(weights, (batch, key_heads, heads // key_heads, queries, keys))
    y = jnp.reshape(jnp.einsum("bkgst,bktd->bkgsd", shares, v), (batch, heads, queries, v.shape[-1]))
    return y, (raw, capped, biased, weights)


def masked_softmax(scores: jax.Array, bias: jax.Array | None, sink: jax.Array | None = None) -> jax.Array:
    """Softmax over the last axis; rows that `bias` hides entirely (where softmax is 0 / 0) are 0."""
    if bias is not None:
        hidden = jnp.max(bias, axis=-1, keepdims=True) == -jnp.inf
        scores = jnp.where(hidden, jnp.zeros((), scores.dtype), scores)  # before the softmax, for its derivative
    if sink is None:
        weights = jax.nn.softmax(scores, axis=-1)
    else:
        column = jnp.broadcast_to(jnp.reshape(sink, (-1, 1, 1)), (*scores.shape[:-1], 1)).astype(scores.dtype)
        weights = jax.nn.softmax(jnp.concatenate([scores, column], axis=-1), axis=-1)[..., :-1]
    return weights if bias is None else jnp.where(hidden, jnp.zeros((), weights.dtype), weights)


@op("RotaryEmbedding", since=23)
def rotary_embedding(
    x, cos_cache, sin_cache, position_ids=None, *, interleaved=0, num_heads=None, rotary_embedding_dim=0
):
    """x [B, H, S, D] or [B, S, H * D]; caches [positions, D / 2], or [B, S, D / 2] without position ids."""
    cos, sin = (cache if position_ids is None else cache[position_ids] for cache in (cos_cache, sin_cache))
    heads = split_heads(x, num_heads) if x.ndim == 3 else x
    y = rotate(
        heads, cos[:, None], sin[:, None], rotary_embedding_dim or heads.shape[-1], interleaved=bool(interleaved)
    )
    return merge_heads(y) if x.ndim == 3 else y


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array, size: int, *, interleaved: bool) -> jax.Array:
    """Turns pairs among the first `size` features of x [..., D] by the angles whose cos and sin [..., size / 2] are given.

    Source: Su et al., RoFormer, arXiv:2104.09864, equation 34. A pair is (i, i + size / 2), or (2i, 2i + 1) interleaved.
    """
    turned, rest = x[..., :size], x[..., size:]
    a, b = (turned[..., ::2], turned[..., 1::2]) if interleaved else jnp.split(turned, 2, axis=-1)
    pair = (cos * a - sin * b, sin * a + cos * b)
    turned = jnp.reshape(jnp.stack(pair, axis=-1), turned.shape) if interleaved else jnp.concatenate(pair, axis=-1)
    return jnp.concatenate([turned, rest], axis=-1)


@op("LinearAttention", since=27)
def linear_attention(
    query,
    key,
    value,
    past_state=None,
    decay=None,
    beta=None,
    *,
    q_num_heads,
    kv_num_heads,
    chunk_size=64,
    scale=0.0,
    update_rule="gated_delta",
):
    """A recurrence over the tokens with state S [B, K, D, Dv] in float32, as in the standard's description:

        S = exp(g_t) S;   S = S + k_t (beta_t (v_t - S^T k_t))^T;   o_t = scale S^T q_t

    without the decay g or without the correction by what is already stored, according to the update rule.
    """
    rules = {"linear": (False, False), "gated": (True, False), "delta": (False, True), "gated_delta": (True, True)}
    if update_rule not in rules:
        raise UnsupportedOpError(f"update_rule = {update_rule!r}; expected one of {', '.join(rules)}")
    gated, corrected = rules[update_rule]
    if gated != (decay is not None) or corrected != (beta is not None):
        raise ModelError(
            f"update_rule {update_rule!r} {'needs' if gated else 'forbids'} decay, {'needs' if corrected else 'forbids'} beta"
        )

    def by_time(x: jax.Array, heads: int) -> jax.Array:
        """[B, T, heads * D] -> [T, B, heads, D] in float32."""
        return jnp.moveaxis(jnp.reshape(x, (*x.shape[:2], heads, -1)), 1, 0).astype(jnp.float32)

    q, k, v = by_time(query, q_num_heads), by_time(key, kv_num_heads), by_time(value, kv_num_heads)
    factor = scale or 1 / math.sqrt(q.shape[-1])
    q = jnp.reshape(q * factor, (*q.shape[:2], kv_num_heads, q_num_heads // kv_num_heads, -1))
    rows = {"q": q, "k": k, "v": v}
    if gated:
        rows["decay"] = jnp.exp(by_time(decay, kv_num_heads))[..., None]
    if corrected:
        rows["beta"] = by_time(beta, beta.shape[-1])

    def step(state, row):
        state = state * row["decay"] if gated else state
        new = row["v"]
        if corrected:
            new = row["beta"] * (new - jnp.einsum("bkdv,bkd->bkv", state, row["k"]))
        state = state + row["k"][..., :, None] * new[..., None, :]
        return state, jnp.einsum("bkgd,bkdv->bkgv", row["q"], state)

    shape = (query.shape[0], kv_num_heads, k.shape[-1], v.shape[-1])
    start = jnp.zeros(shape, jnp.float32) if past_state is None else past_state.astype(jnp.float32)
    state, y = lax.scan(step, start, rows)
    y = jnp.reshape(jnp.moveaxis(y, 0, 1), (*query.shape[:2], -1))
    return y.astype(query.dtype), state.astype(query.dtype if past_state is None else past_state.dtype)
