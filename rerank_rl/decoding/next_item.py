"""Beam search for one item over the whole catalogue.

Letters: W beams, F children, d width; the rest as in `catalogue`.
"""

import jax
import jax.numpy as jnp

from rerank_rl.decoding import catalogue, legality
from rerank_rl.models.next_item import NextItemPolicy
from rerank_rl.models.prefix_lm import take
from rerank_rl.types import PAD, Array


def beam(
  policy: NextItemPolicy,
  params,
  tree: catalogue.Tree,
  state: Array,
  width: int,
  key: Array,
  gone: Array | None = None,
) -> tuple[Array, Array]:
  """The W items that constrained beam search likes best.

  Args:
    policy: pure functions.
    params: its parameters.
    tree: the catalogue.
    state: f32[B, d], states that choose the first token.
    width: W.
    key: PRNG key; equal scores are put in random order.
    gone: i32[B, X], ranks that may not be shown, or None.

  Returns:
    (items i32[B, W], log-probabilities f32[B, W]), best first; PAD and
    NEGATIVE where there are fewer than W items.
  """
  B = state.shape[0]
  state = state[:, None]
  node = jnp.full((B, 1), catalogue.ROOT, jnp.int32)
  logp = jnp.zeros((B, 1), state.dtype)
  gone = None if gone is None else gone[:, None]
  for level, fan in enumerate(tree.fans):
    child = catalogue.children(tree, node, fan, gone)
    logits = policy.logits(params, state, level)
    dist = catalogue.log_probs(tree, logits, child)
    total = jnp.where(child >= 0, logp[..., None] + dist, legality.NEGATIVE)
    total = total.reshape(B, -1)
    noise = jax.random.fold_in(key, level)
    logp, index = _best(total, min(width, total.shape[1]), noise)
    node = jnp.take_along_axis(child.reshape(B, -1), index, axis=1)
    if level < policy.levels - 1:
      code = catalogue.token_of(tree, node)
      state = policy.step(params, take(state, index // fan), code, level)
  item = catalogue.item_at(tree, node)
  short = ((0, 0), (0, width - item.shape[1]))
  return (
    jnp.pad(item, short, constant_values=PAD),
    jnp.pad(logp, short, constant_values=legality.NEGATIVE),
  )


def _best(scores: Array, count: int, key: Array) -> tuple[Array, Array]:
  """The highest of f32[B, n], best first, and where they are.

  `top_k` puts the first of equals first; looked at in a random order, any of
  them may be.
  """
  order = jax.random.permutation(key, scores.shape[1])
  best, index = jax.lax.top_k(scores[:, order], count)
  return best, order[index]
