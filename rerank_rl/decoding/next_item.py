"""One item over the whole catalogue: beam search, samples, given paths.

Letters: W beams, G samples, F children, d width; the rest as in `catalogue`.
"""

from collections.abc import Iterator
from typing import NamedTuple

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
    dist = _dist(policy, params, tree, state, child, level)
    total = jnp.where(child >= 0, logp[..., None] + dist, legality.NEGATIVE)
    total = total.reshape(B, -1)
    noise = jax.random.fold_in(key, level)
    logp, index = _best(total, min(width, total.shape[1]), noise)
    node = jnp.take_along_axis(child.reshape(B, -1), index, axis=1)
    if level < policy.levels - 1:
      state = take(state, index // fan)
      state = policy.step(params, tree, state, node, level)
  item = catalogue.item_at(tree, node)
  short = ((0, 0), (0, width - item.shape[1]))
  return (
    jnp.pad(item, short, constant_values=PAD),
    jnp.pad(logp, short, constant_values=legality.NEGATIVE),
  )


def _dist(policy, params, tree, state, child, level):
  """Log-probabilities f32[..., F] of a state's children."""
  return catalogue.log_probs(
    policy.logits(params, tree, state, child, level), child
  )


def _best(scores: Array, count: int, key: Array) -> tuple[Array, Array]:
  """The highest of f32[B, n], best first, and where they are.

  `top_k` puts the first of equals first; looked at in a random order, any of
  them may be.
  """
  order = jax.random.permutation(key, scores.shape[1])
  best, index = jax.lax.top_k(scores[:, order], count)
  return best, order[index]


class Choice(NamedTuple):
  """What an item's token was chosen from.

  Attributes:
    dist: f32[..., F], log-probabilities of the legal tokens.
    child: i32[..., F], the nodes that they lead to, PAD where illegal.
    slot: i32[...], which of them leads to the item.
  """

  dist: Array
  child: Array
  slot: Array


def along(
  policy: NextItemPolicy,
  params,
  tree: catalogue.Tree,
  state: Array,
  item: Array,
  key: Array | None = None,
) -> Iterator[Choice]:
  """The choices, level by level, that lead to items.

  Args:
    policy: pure functions.
    params: its parameters.
    tree: the catalogue.
    state: f32[..., d], states that choose the first token.
    item: i32[...]; PAD stands for any.
    key: of dropout, or None.

  Yields:
    L Choices.
  """
  path = tree.path[jnp.maximum(item, 0)]
  parent = jnp.full_like(item, catalogue.ROOT)
  for level, fan in enumerate(tree.fans):
    child = catalogue.children(tree, parent, fan)
    dist = _dist(policy, params, tree, state, child, level)
    node = path[..., level]
    yield Choice(dist, child, node - tree.child[parent])
    if level < policy.levels - 1:
      own = None if key is None else jax.random.fold_in(key, level)
      state = policy.step(params, tree, state, node, level, own)
    parent = node


def chosen(choice: Choice) -> Array:
  """Log-probability f32[...] of the token that was chosen."""
  at = choice.slot[..., None]
  return jnp.take_along_axis(choice.dist, at, axis=-1)[..., 0]


def samples(
  policy: NextItemPolicy,
  params,
  tree: catalogue.Tree,
  state: Array,
  count: int,
  key: Array,
) -> Array:
  """G independent items i32[B, G] of the policy, after states f32[B, d]."""
  B = state.shape[0]
  state = jnp.broadcast_to(state[:, None], (B, count, state.shape[-1]))
  node = jnp.full((B, count), catalogue.ROOT, jnp.int32)
  for level, fan in enumerate(tree.fans):
    child = catalogue.children(tree, node, fan)
    dist = _dist(policy, params, tree, state, child, level)
    draw = jax.random.categorical(jax.random.fold_in(key, level), dist)
    node = jnp.take_along_axis(child, draw[..., None], axis=-1)[..., 0]
    if level < policy.levels - 1:
      state = policy.step(params, tree, state, node, level)
  return catalogue.item_at(tree, node)
