"""Learning from what another policy did: one function, one equation.

Shapes: B transitions, N candidates, K slots, D dimensions of an action. Losses
come as (sum, denominator).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from rerank_rl.rl.objectives import Loss
from rerank_rl.types import Array

_LOW = -1e9  # Below every score.


def td_target(reward: Array, left: Array, ahead: Array, gamma: float) -> Array:
  """r + gamma (1 - left) V(s'), what a Q is fitted to.

  Args:
    reward: f32[B], of the slate.
    left: bool[B], whether the user left after it.
    ahead: f32[B], V of the same user's state after it; read where he stayed.
    gamma: discount a slate.

  Returns:
    f32[B], no gradient.
  """
  target = reward + jnp.where(left, 0, gamma * ahead)
  return jax.lax.stop_gradient(target)


def quality_loss(quality: Array, target: Array) -> Loss:
  """(target - Q(s, a))^2, L_Q of arXiv 2501.17409 and of plain TD.

  Args:
    quality: f32[B], Q(s, a), or f32[B, X] of X critics.
    target: of the same shape, of `td_target`.

  Returns:
    Loss, a mean over users and critics.
  """
  error = jax.lax.stop_gradient(target) - quality
  return Loss((error**2).sum(), quality.size)


def value_loss(value: Array, quality: Array, weight: Array) -> Loss:
  """beta (V(s) - sg Q(s, a))^2, L_V of arXiv 2501.17409.

  Two random factors lie between s and s': the policy's action and the user.
  Q takes the user's part from rewards, V the action's from Q. Each sample has
  its own beta: were errors averaged first, beta would scale the loss and
  choose nothing, as in the public code.

  Args:
    value: f32[B], V(s).
    quality: f32[B], Q(s, a) of the action taken.
    weight: f32[B], beta = pi(a | s) / p_behaviour(a | s); 1 on policy.
  """
  error = value - jax.lax.stop_gradient(quality)
  return Loss((jax.lax.stop_gradient(weight) * error**2).sum(), value.size)


def importance(logp: Array, behaviour: Array, most: float) -> Array:
  """beta = min(pi(a | s) / p_behaviour(a | s), most), f32[B], no gradient.

  Args:
    logp: f32[B], log pi(a | s) of the policy that is valued.
    behaviour: f32[B], the same of the policy that acted.
    most: the highest weight.
  """
  # The bound comes first: exp of a large number would be infinite.
  apart = jnp.minimum(logp - behaviour, math.log(most))
  return jax.lax.stop_gradient(jnp.exp(apart))


def polyak(target: Any, params: Any, tau: float) -> Any:
  """target + tau (params - target), leaf by leaf."""
  return jax.tree.map(lambda old, new: old + tau * (new - old), target, params)


def gaussian_log_density(point: Array, mean: Array, scale: float) -> Array:
  """log N(point; mean, scale^2 I) f32[B] of points f32[B, D]."""
  far = (((point - mean) / scale) ** 2).sum(-1)
  wide = point.shape[-1] * (2 * math.log(scale) + math.log(2 * math.pi))
  return -0.5 * (far + wide)


def _best(free: Array, scores: Array) -> Array:
  """i32[B], the first of the best-scored candidates that are free."""
  return jnp.where(free, scores, _LOW).argmax(-1)


def epsilon_greedy(
  key: Array, scores: Array, real: Array, slots: int, epsilon: float
) -> Array:
  """A slate, slot by slot: the best candidate left, or by chance any.

  Args:
    key: PRNG key.
    scores: f32[B, N].
    real: bool[B, N], candidates; at least `slots` of them.
    slots: K.
    epsilon: a slot's probability of being drawn uniformly from what is left.

  Returns:
    i32[B, K], positions.
  """
  first, second = jax.random.split(key)
  shape = (slots, scores.shape[0])
  wander = jax.random.uniform(first, shape) < epsilon
  noise = jax.random.uniform(second, (slots, *scores.shape))

  def place(free, xs):
    wander, noise = xs
    item = jnp.where(wander, _best(free, noise), _best(free, scores))
    return free & ~jax.nn.one_hot(item, free.shape[1], dtype=bool), item

  _, slate = jax.lax.scan(place, real, (wander, noise))
  return slate.T.astype(jnp.int32)


def epsilon_greedy_log_mass(
  scores: Array, real: Array, slate: Array, epsilon: float
) -> Array:
  """log P(slate) f32[B] under `epsilon_greedy`, exactly.

    P = prod_k [(1 - epsilon) 1{i_k is the best left} + epsilon / (n - k)]

  with n candidates and k = 0, 1, ... of them placed before.

  Args:
    scores: f32[B, N].
    real: bool[B, N].
    slate: i32[B, K], positions.
    epsilon: above 0, or slates that greed does not choose have no mass.
  """

  def place(free, item):
    chosen = item == _best(free, scores)
    left = free.sum(-1).astype(scores.dtype)
    mass = (1 - epsilon) * chosen + epsilon / left
    free = free & ~jax.nn.one_hot(item, free.shape[1], dtype=bool)
    return free, jnp.log(mass)

  _, logp = jax.lax.scan(place, real, slate.T)
  return logp.sum(0)
