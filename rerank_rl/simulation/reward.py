"""What a slate is worth: the world's truth, an evaluator, or logged labels.

Or whether it is good: 1 or 0.

A reward is a function (impression, slate i32[B, G, K]) -> Outcome, and a
pytree (`jax.tree_util.Partial`), so that jit sees its arrays as arguments.
"""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp

from rerank_rl.models import ensemble
from rerank_rl.types import PAD, Array, Impression, Outcome
from rerank_rl.world import utility
from rerank_rl.world.world import World

Reward = Callable[[Impression, Array], Outcome]

GOOD_SHARE = 0.95  # Of the optimum, from which a slate of the world is good.


def _outcome(per_item: Array) -> Outcome:
  reward = per_item.sum(-1)
  return Outcome(reward, per_item, jnp.zeros_like(reward))


def world_reward(world: World) -> Reward:
  """Expected clicks under the true law; reads `impression.hidden`."""
  return jax.tree_util.Partial(_world, world)


def _world(world: World, impression: Impression, slate: Array) -> Outcome:
  B, G, K = slate.shape
  rows = jnp.take_along_axis(
    impression.request.candidates,
    jnp.maximum(slate, 0).reshape(B, G * K),
    axis=1,
  ).reshape(B, G, K)
  items = jnp.where(slate < 0, PAD, rows)
  return _outcome(utility.per_item(world, impression.hidden, items))


def evaluator_reward(model, fitted, features: Array, weights) -> Reward:
  """Expected weighted feedback by a list evaluator.

  Args:
    model: a ListEvaluator.
    fitted: its parameters and calibration.
    features: f32[M, F], the catalogue's.
    weights: S floats, each signal's part in the utility.
  """
  return jax.tree_util.Partial(
    _evaluator(model), fitted, features, jnp.asarray(weights)
  )


@functools.cache
def _evaluator(model) -> Callable[..., Outcome]:
  """One function for each network, so that jit knows it again."""

  def value(fitted, features, weights, impression, slate) -> Outcome:
    logits = ensemble.predict(
      model, fitted, features, impression.request, slate
    )
    return _outcome(ensemble.values(logits, slate, weights))

  return value


def label_gains(impression: Impression) -> Array:
  """Logged first signal by candidate, f32[B, N]; unlogged items count 0."""
  N = impression.request.candidates.shape[1]
  place = jnp.where(impression.slate < 0, N, impression.slate)
  gains = jnp.zeros((place.shape[0], N + 1), impression.feedback.dtype)
  put = lambda g, i, v: g.at[i].set(v)
  return jax.vmap(put)(gains, place, impression.feedback[..., 0])[:, :N]


def discounts(places: int, dtype=None) -> Array:
  """1 / log2(place + 1) f32[K], what DCG gives each place from 1."""
  return 1 / jnp.log2(jnp.arange(places, dtype=dtype) + 2)


def label_reward(impression: Impression, slate: Array) -> Outcome:
  """DCG@K of the logged labels over the ideal one (protocol of recovery)."""
  B, G, K = slate.shape
  gains = label_gains(impression)
  discount = discounts(K, gains.dtype)
  ideal = jax.lax.top_k(gains, K)[0] @ discount
  shown = jnp.take_along_axis(
    gains, jnp.maximum(slate, 0).reshape(B, G * K), axis=1
  ).reshape(B, G, K)
  shown = jnp.where(slate < 0, 0, shown) * discount[None, None]
  return _outcome(shown / jnp.maximum(ideal, 1e-6)[:, None, None])


def good_reward(world: World) -> Reward:
  """1[good slate]: its true utility is at least .95 of the optimum's.

  The optimum of each request is searched anew, as `utility.optimum` does: a
  batch takes a few hundredths of what a learning step takes.
  """
  return jax.tree_util.Partial(_good, world)


def _good(world: World, impression: Impression, slate: Array) -> Outcome:
  candidates = impression.request.candidates
  best = utility.best(world, impression.hidden, candidates)
  top = _world(world, impression, best[:, None]).reward
  worth = _world(world, impression, slate).reward
  return _success(worth >= GOOD_SHARE * top, slate)


def better_than_logged(reward: Reward) -> Reward:
  """1[R(slate) > R(logged slate)], a good slate where no truth is known."""
  return jax.tree_util.Partial(_better, reward)


def _better(reward: Reward, impression: Impression, slate: Array) -> Outcome:
  logged = reward(impression, impression.slate[:, None]).reward
  return _success(reward(impression, slate).reward > logged, slate)


def _success(good: Array, slate: Array) -> Outcome:
  """1 or 0 for bool[B, G]; the last item settles it."""
  reward = good.astype(jnp.float32)
  filled = slate != PAD
  left = jnp.cumsum(filled[..., ::-1], -1)[..., ::-1]
  per_item = jnp.where(filled & (left == 1), reward[..., None], 0)
  return Outcome(reward, per_item, jnp.zeros_like(reward))
