"""Evaluators as they are used: several networks that answer as one.

A model is a `ListEvaluator` or what has its interface (`models.pointwise`,
`models.lookahead`, `models.response`). Letters and shapes as in evaluator.py;
E members.
"""

import functools
from typing import Any

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp

from rerank_rl.models import evaluator


@struct.dataclass
class Fitted:
  """A fitted evaluator: an ensemble and its calibration.

  Attributes:
    params: parameters of `ListEvaluator`, each with a leading member axis.
    scale: f32[S], applied to the ensemble's logits (1 / temperature).
    shift: f32[S], added to them.
  """

  params: Any
  scale: jax.Array
  shift: jax.Array


def init(model, key, features, request, members=1) -> Fitted:
  """Fresh, uncalibrated parameters of `members` networks."""
  slate = jnp.zeros((request.candidates.shape[0], 1, model.slots), jnp.int32)
  start = lambda k: model.init(k, features, request, slate)["params"]
  params = jax.vmap(start)(jax.random.split(key, members))
  ones = jnp.ones((model.signals,), features.dtype)
  return Fitted(params, ones, 0 * ones)


def loss(model, params, features, impression, key=None):
  """The network's penalty, all members: (sum, count).

  Args:
    model: a `ListEvaluator`.
    params: `Fitted.params`.
    features: f32[M, F].
    impression: a `types.Impression`.
    key: for dropout; None leaves it out.

  Returns:
    Sum of the terms of `ListEvaluator.penalty`, and how many there are.
  """
  members = jax.tree.leaves(params)[0].shape[0]
  keys = None if key is None else jax.random.split(key, members)

  def penalty(tree, k):
    return model.apply(
      {"params": tree},
      features,
      impression,
      k is not None,
      rngs=None if k is None else {"dropout": k},
      method="penalty",
    )

  terms, counted = each(penalty, params, keys)
  return jnp.sum(terms, where=counted), jnp.sum(counted)


def each(function, *trees):
  """`function` of each member's trees, stacked; None stands for no tree.

  In turn, not by vmap: CPUs multiply one member's matrices with a library and
  a batch of them with a loop, five times slower.
  """
  return jax.lax.map(lambda member: function(*member), trees)


def _pooled(fitted: Fitted, logits) -> jax.Array:
  """Calibrated logits of the members' mean probability ([E, ...])."""
  x = evaluator.logit(jnp.mean(nn.sigmoid(logits), 0))
  lift = (1,) * (x.ndim - 1) + (-1,)
  return x * fitted.scale.reshape(lift) + fitted.shift.reshape(lift)


@functools.partial(jax.jit, static_argnums=0)
def predict(model, fitted, features, request, slate) -> jax.Array:
  """Calibrated logits f32[B, G, K, S] of slates i32[B, G, K]."""
  apply = lambda p: model.apply({"params": p}, features, request, slate)
  return _pooled(fitted, each(apply, fitted.params))


def encode(model, fitted, features, request) -> evaluator.Items:
  """Each member's `Items`, for `predict_next`; leading member axis."""
  apply = lambda p: model.apply(
    {"params": p}, features, request, method="encode"
  )
  return each(apply, fitted.params)


def predict_next(model, fitted, items, placed, k) -> jax.Array:
  """Calibrated logits f32[B, W, N, S] of each candidate at position k."""
  apply = lambda p, x: model.apply(
    {"params": p}, x, placed, k, method="score_next"
  )
  return _pooled(fitted, each(apply, fitted.params, items))


def next_values(model, fitted, features, request, weights):
  """A scorer of next items for `decoding.list_search.search`.

  Returns:
    A function of (placed i32[B, W, K], k) to f32[B, W, N]: the expected
    utility sum_s weight_s * P(signal s) of each candidate at position k.
  """
  items = encode(model, fitted, features, request)

  def score(placed, k):
    logits = predict_next(model, fitted, items, placed, k)
    return nn.sigmoid(logits) @ jnp.asarray(weights, logits.dtype)

  return score


def values(logits, slate, weights) -> jax.Array:
  """Expected utility of each position, f32[B, G, K]; 0 at PAD.

  sum_s weight_s * P(signal s at t); a slate's value is its sum over t.
  """
  weights = jnp.asarray(weights, logits.dtype)
  return jnp.where(slate >= 0, nn.sigmoid(logits) @ weights, 0)
