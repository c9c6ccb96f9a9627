"""The attention operators of the domain com.microsoft.

Shape letters: B batch, H query heads, K key and value heads, S queries, P past keys, T keys, D head size.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxq.errors import ModelError, UnsupportedOpError
from jaxq.ops import op, static_ints
from jaxq.ops.attention import attend, merge_heads, rotate, score_bias, split_heads, visible_keys
from jaxq.ops.contrib import MICROSOFT
from jaxq.ops.contrib_quantized import matmul_integer_to_float


def refuse(operator: str, **given) -> None:
    """Raises UnsupportedOpError when one of the options that are not implemented is used."""
    used = [name for name, value in given.items() if value is not None and value != 0]
    if used:
        raise UnsupportedOpError(f"{operator} with {', '.join(used)} is not supported; export the model without")


@op("Attention", since=1, domain=MICROSOFT)
def attention(
    x,
    weights,
    bias=None,
    mask_index=None,
    past=None,
    attention_bias=None,
    past_sequence_length=None,
    *,
    num_heads,
    do_rotary=0,
    mask_filter_value=-10000.0,
    past_present_share_buffer=0,
    qkv_hidden_sizes=(),
    rotary_embedding_dim=0,
    scale=0.0,
    unidirectional=0,
):
    """Self attention with the projection of x [B, S, I] inside; also the cache [2, B, H, T, D]."""
    refuse("Attention", do_rotary=do_rotary, past_present_share_buffer=past_present_share_buffer)
    projected = x @ weights if bias is None else x @ weights + bias
    sizes = qkv_hidden_sizes or (projected.shape[-1] // 3,) * 3
    parts = jnp.split(projected, [sizes[0], sizes[0] + sizes[1]], axis=-1)
    return self_attention(
        parts, num_heads, mask_index, past, attention_bias, mask_filter_value, scale=scale, causal=unidirectional
    )


def self_attention(parts, num_heads, mask_index, past, attention_bias, mask_filter_value, *, scale, causal):
    """Attention from the projections q, k and v, and the keys and values for the next call."""
    q, k, v = (split_heads(part, num_heads) for part in parts)
    if past is not None:
        k, v = jnp.concatenate([past[0], k], axis=2), jnp.concatenate([past[1], v], axis=2)
    added = padding_bias(mask_index, q, k, mask_filter_value, attention_bias, causal)
    y, _ = attend(q, k, v, added, scale=scale or None)
    present = jnp.stack([k, v]) if k.shape == v.shape else jnp.zeros((0,), y.dtype)
    return merge_heads(y), present


@op("QAttention", since=1, domain=MICROSOFT)
def qattention(
    x,
    weight,
    bias,
    input_scale,
    weight_scale,
    mask_index=None,
    input_zero_point=None,
    weight_zero_point=None,
    past=None,
    *,
    num_heads,
    do_rotary=0,
    mask_filter_value=-10000.0,
    past_present_share_buffer=0,
    scale=0.0,
    unidirectional=0,
):
    """Attention whose projection is computed in integers; everything after it is float."""
    refuse("QAttention", do_rotary=do_rotary, past_present_share_buffer=past_present_share_buffer)
    projected = matmul_integer_to_float(x, weight, input_scale, weight_scale, input_zero_point, weight_zero_point, bias)
    return self_attention(
        jnp.split(projected, 3, axis=-1),
        num_heads,
        mask_index,
        past,
        None,
        mask_filter_value,
        scale=scale,
        causal=unidirectional,
    )


@op("MultiHeadAttention", since=1, domain=MICROSOFT)
def multi_head_attention(
    query,
    key=None,
    value=None,
    bias=None,
    key_padding_mask=None,
    attention_bias=None,
    past_key=None,
    past_value=None,
    past_sequence_length=None,
    cache_indirection=None,
    *,
    num_heads,
    mask_filter_value=-10000.0,
    scale=0.0,
    unidirectional=0,
):
    """query [B, S, H * D], or packed with the others [B, S, H, 3, D]; also the cache and the attention weights."""
    refuse("MultiHeadAttention", past_sequence_length=past_sequence_length, cache_indirection=cache_indirection)
    if key is None:  # [B, S, H, 3, D]
        q, k, v = (jnp.swapaxes(query[:, :, :, part], 1, 2) for part in range(3))
    elif value is None:  # key holds [B, T, H, 2, D]
        q = split_heads(query, num_heads)
        k, v = (jnp.swapaxes(key[:, :, :, part], 1, 2) for part in range(2))
    else:
        if bias is not None:
            # Keys of an encoder that come as heads were projected before, with their bias.
            sizes = query.shape[-1], query.shape[-1] if key.ndim == 4 else key.shape[-1]
            q_bias, k_bias, v_bias = jnp.split(bias, [sizes[0], sizes[0] + sizes[1]])
            query = query + q_bias
            key, value = (key + k_bias, value + v_bias) if key.ndim == 3 else (key, value)
        q = split_heads(query, num_heads)
        k, v = (part if part.ndim == 4 else split_heads(part, num_heads) for part in (key, value))
    if past_key is not None:
        k, v = jnp.concatenate([past_key, k], axis=2), jnp.concatenate([past_value, v], axis=2)
    added = padding_bias(key_padding_mask, q, k, mask_filter_value, attention_bias, unidirectional)
    y, scores = attend(q, k, v, added, scale=scale or None)
    return merge_heads(y), k, v, scores[3]


def padding_bias(mask, q, k, fill: float, added, unidirectional: int) -> jax.Array | None:
    """What is added to the scores [B, H, S, T]: `fill` where the mask hides a key, `added`, and -inf for what comes later.

    The mask is 0 for hidden and 1 for visible keys, [B, T], [B, S, T] or [B, 1, max, max], or it holds the number of keys,
    [B], or the ends and then the starts of the visible ones, [2 * B].
    """
    batch, _, queries, _ = q.shape
    keys = k.shape[2]
    bias = None if added is None else added.astype(q.dtype)
    if mask is not None:
        if mask.ndim == 1:
            if mask.shape[0] not in (batch, 2 * batch):
                raise UnsupportedOpError(
                    f"a mask index of shape {list(mask.shape)}; expected [{batch}] or [{2 * batch}]"
                )
            place = jnp.arange(keys, dtype=mask.dtype)
            kept = place < mask[:batch, None]
            kept = kept if mask.shape[0] == batch else kept & (place >= mask[batch:, None])
            kept = kept[:, None, None]
        elif mask.ndim == 4:
            kept = mask[:, :, keys - queries : keys, :keys] > 0
        else:
            kept = jnp.expand_dims(mask > 0, (1, 2) if mask.ndim == 2 else 1)
        hidden = jnp.where(kept, jnp.zeros((), q.dtype), jnp.asarray(fill, q.dtype))
        bias = hidden if bias is None else bias + hidden
    visible = visible_keys((queries, keys), keys - queries, 0, -1, -1) if unidirectional else None
    return score_bias(bias, visible, keys, q.dtype)


@op("RotaryEmbedding", since=1, domain=MICROSOFT)
def rotary_embedding(
    x,
    position_ids,
    cos_cache,
    sin_cache,
    *,
    interleaved=0,
    is_packed_batching=0,
    num_heads=0,
    rotary_embedding_dim=0,
    scale=1.0,
):
    """x [B, H, S, D] or [B, S, H * D]; position ids [B, S], or [1]: that of the first token."""
    refuse("RotaryEmbedding", is_packed_batching=is_packed_batching)
    size = rotary_embedding_dim or 2 * cos_cache.shape[-1]
    heads = x if x.ndim == 4 else split_heads(x, num_heads or x.shape[-1] // size)
    if position_ids.ndim == 1:
        position_ids = (position_ids + jnp.arange(heads.shape[2], dtype=position_ids.dtype))[None]
    cos, sin = (jnp.take(cache, position_ids, axis=0)[:, None] for cache in (cos_cache, sin_cache))
    y = rotate(heads * jnp.asarray(scale, x.dtype), cos, sin, size, interleaved=bool(interleaved))
    return y if x.ndim == 4 else merge_heads(y)


@op("GroupQueryAttention", since=1, domain=MICROSOFT, static=("total_sequence_length",))
def group_query_attention(
    query,
    key,
    value,
    past_key,
    past_value,
    seqlens_k,
    total_sequence_length,
    cos_cache=None,
    sin_cache=None,
    position_ids=None,
    attention_bias=None,
    head_sink=None,
    k_scale=None,
    v_scale=None,
    q_norm_weight=None,
    k_norm_weight=None,
    *,
    num_heads,
    kv_num_heads,
    causal=1,
    do_rotary=0,
    k_quant_type="NONE",
    kv_cache_bit_width=0,
    local_window_size=-1,
    qk_norm_epsilon=1e-6,
    qk_output=0,
    rotary_interleaved=0,
    scale=0.0,
    sliding_window_cache=0,
    smooth_softmax=0,
    softcap=0.0,
    v_quant_type="NONE",
):
    """Attention of decoders: `seqlens_k` + 1 keys are in use in each row after this step, the new ones last.

    query [B, S, H * D], key and value [B, S, K * D], or all of them in query. Also the cache [B, K, max(P, T), D].
    """
    refuse(
        "GroupQueryAttention",
        k_scale=k_scale,
        v_scale=v_scale,
        q_norm_weight=q_norm_weight,
        k_norm_weight=k_norm_weight,
        sliding_window_cache=sliding_window_cache,
        qk_output=qk_output,
    )
    if key is None:
        size = query.shape[-1] // (num_heads + 2 * kv_num_heads)
        query, key, value = jnp.split(query, [num_heads * size, (num_heads + kv_num_heads) * size], axis=-1)
    q, k, v = split_heads(query, num_heads), split_heads(key, kv_num_heads), split_heads(value, kv_num_heads)
    (total,) = static_ints(total_sequence_length, "GroupQueryAttention.total_sequence_length")
    queries = q.shape[2]
    used = jnp.reshape(seqlens_k, (-1, 1)).astype(jnp.int32) + 1
    # A first step may be padded on the right, so it always starts at 0.
    before = jnp.zeros_like(used) if total == queries else used - queries
    if do_rotary:
        places = before + jnp.arange(queries) if position_ids is None else position_ids
        cos, sin = (jnp.take(cache, places, axis=0)[:, None] for cache in (cos_cache, sin_cache))
        q, k = (rotate(part, cos, sin, 2 * cos.shape[-1], interleaved=bool(rotary_interleaved)) for part in (q, k))
    k, v = appended(past_key, k, before, total), appended(past_value, v, before, total)
    if local_window_size >= 0 and not causal:
        raise ModelError("GroupQueryAttention: local_window_size needs causal attention")
    left = local_window_size - 1 if local_window_size >= 0 else -1
    visible = visible_keys((queries, total), before[:, None, None], 0 if causal else None, left, -1)
    if visible is None:
        visible = jnp.arange(total) < used[:, None, None]
    sink = jnp.zeros(num_heads, q.dtype) if smooth_softmax and head_sink is None else head_sink
    bias = score_bias(attention_bias, visible, total, q.dtype)
    y, _ = attend(q, k[:, :, :total], v[:, :, :total], bias, scale=scale or None, softcap=softcap, sink=sink)
    return merge_heads(y), k, v


def appended(past, new: jax.Array, before: jax.Array, total: int) -> jax.Array:
    """The cache [B, K, max(P, total), D] with `new` [B, K, S, D] written from position `before` [B, 1] on."""
    length = total if past is None else max(total, past.shape[2])
    if past is None:
        past = jnp.zeros((*new.shape[:2], 0, new.shape[3]), new.dtype)
    old = jnp.pad(past, ((0, 0), (0, 0), (0, length - past.shape[2]), (0, 0)))
    step = (jnp.arange(length) - before)[:, None, :, None]
    moved = jnp.take_along_axis(new, jnp.clip(step, 0, new.shape[2] - 1), axis=2)
    return jnp.where((step >= 0) & (step < new.shape[2]), moved, old)
