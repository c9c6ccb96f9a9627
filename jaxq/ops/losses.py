"""Losses that a graph may end with; for evaluation, and for training on top of an imported model."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxq.errors import UnsupportedOpError
from jaxq.ops import op


@op("NegativeLogLikelihoodLoss", since=12)
def negative_log_likelihood_loss(x, target, weight=None, *, ignore_index=None, reduction="mean"):
    """x [N, C, ...] log probabilities, target [N, ...] classes, weight [C]; the mean is weighted."""
    weights = jnp.ones(x.shape[1], x.dtype) if weight is None else weight
    counted = jnp.ones(target.shape, bool) if ignore_index is None else target != ignore_index
    label = jnp.where(counted, target, 0)
    share = jnp.where(counted, jnp.take(weights, label, mode="clip"), 0)
    loss = -jnp.take_along_axis(jnp.asarray(x), jnp.expand_dims(label, 1), axis=1, mode="clip").squeeze(1) * share
    if reduction == "none":
        return loss
    if reduction == "sum":
        return jnp.sum(loss)
    if reduction == "mean":
        return jnp.sum(loss) / jnp.sum(share)
    raise UnsupportedOpError(f"reduction = {reduction!r}; expected none, sum or mean")


@op("SoftmaxCrossEntropyLoss", since=12)
def softmax_cross_entropy_loss(scores, labels, weights=None, *, ignore_index=None, reduction="mean"):
    """The loss, and the log probabilities."""
    log_probabilities = jax.nn.log_softmax(scores, axis=1)
    loss = negative_log_likelihood_loss(
        log_probabilities, labels, weights, ignore_index=ignore_index, reduction=reduction
    )
    return loss, log_probabilities
