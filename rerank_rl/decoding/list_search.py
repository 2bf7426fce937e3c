"""Beam search over lists of items, driven by any scorer of the next item.

A scorer says what each candidate would be worth as the next item of a prefix;
a slate's value is the sum over its positions. Because a position's worth
depends on the items above it only, a prefix's value is final.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from rerank_rl import types

NEVER = -1e9  # Below any value; finite, so that no NaN can arise.

Score = Callable[[jax.Array, jax.Array], jax.Array]


class Plan(NamedTuple):
  """Slates that a search has kept, and what it weighed on the way.

  Attributes:
    slate: i32[B, W, K], positions in the candidates, best slate first, PAD
      behind the last; rows of PAD where fewer than W slates exist.
    value: f32[B, W], summed score; NEVER where there is no slate.
    gain: f32[B, W, K, N], score of each candidate as the next item of the
      slate's first k; without meaning for candidates among them and from the
      slate's end on.
  """

  slate: jax.Array
  value: jax.Array
  gain: jax.Array


def search(
  score: Score, request: types.Request, slots: int, width: int = 1
) -> jax.Array:
  """The slates i32[B, width, K] of `plan`."""
  return plan(score, request, slots, width).slate


def plan(
  score: Score, request: types.Request, slots: int, width: int = 1
) -> Plan:
  """Slates of high summed score; width 1 is list-greedy.

  Args:
    score: (placed i32[B, W, K] with PAD from position k on, k i32[]) to
      f32[B, W, N], worth of each candidate at position k.
    request: whose candidates fill `size` <= slots positions each; fewer
      where there are fewer candidates.
    slots: K.
    width: prefixes kept at each position.

  Returns:
    A Plan of W = `width`.
  """
  real = request.candidates >= 0
  chex.assert_rank(real, 2)
  batch, count = real.shape
  want = jnp.minimum(request.size, jnp.sum(real, 1, dtype=jnp.int32))
  rows = jnp.arange(batch)[:, None]
  items = jnp.arange(count)[None, None]

  def step(k, state):
    placed, value, used, gains = state
    gain = score(placed, k)
    gains = gains.at[:, :, k].set(gain)
    total = jnp.where(used, NEVER, value[..., None] + gain)
    # A dead beam or a full slate offers itself once, unchanged.
    still = jnp.where(items == 0, value[..., None], NEVER)
    full = (k >= want)[:, None, None]
    total = jnp.where(full, still, total)
    total = jnp.maximum(total, NEVER).reshape(batch, -1)
    value, index = jax.lax.top_k(total, width)
    parent, item = index // count, (index % count).astype(jnp.int32)
    item = jnp.where(full[..., 0], types.PAD, item)
    placed = placed[rows, parent].at[:, :, k].set(item)
    picked = items == item[..., None]
    return placed, value, used[rows, parent] | picked, gains[rows, parent]

  placed = jnp.full((batch, width, slots), types.PAD, jnp.int32)
  dtype = jax.eval_shape(score, placed, jnp.int32(0)).dtype
  first = jnp.arange(width) == 0  # All prefixes are equal at the start.
  value = jnp.where(first, 0, NEVER).astype(dtype)[None]
  value = jnp.broadcast_to(value, (batch, width))
  used = jnp.broadcast_to(~real[:, None], (batch, width, count))
  gains = jnp.zeros((batch, width, slots, count), dtype)
  start = (placed, value, used, gains)
  placed, value, _, gains = jax.lax.fori_loop(0, slots, step, start)
  dead = value <= NEVER / 2
  placed = jnp.where(dead[..., None], types.PAD, placed)
  return Plan(placed, jnp.where(dead, NEVER, value), gains)
