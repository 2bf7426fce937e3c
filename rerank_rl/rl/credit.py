"""Credit: from what the leaves were worth to advantages on edges.

A credit is a function (tree, outcome) -> Credit. Positive and negative
advantages are summed apart, so that merging common prefixes leaves the
gradient of a clipped objective unchanged.
"""

from typing import NamedTuple

import jax.numpy as jnp

from rerank_rl.decoding import tree as trees
from rerank_rl.types import Array, Outcome, TokenTree


class Credit(NamedTuple):
  """Advantages on edges.

  Attributes:
    positive: f32[B, E], (1/G) sum of max(A, 0) over the chains through it.
    negative: f32[B, E], the same of min(A, 0).
    leaf: f32[B, G], the leaves' advantages (their worth, normalised).
  """

  positive: Array
  negative: Array
  leaf: Array


def normalise(reward: Array, epsilon: float = 1e-4) -> Array:
  """A = (R - mean R) / (std R + epsilon) over the group; 0 where G = 1.

  Args:
    reward: f32[B, G].
    epsilon: keeps groups without variance at 0.

  Returns:
    f32[B, G].
  """
  centred = reward - reward.mean(axis=1, keepdims=True)
  std = jnp.sqrt((centred**2).mean(axis=1, keepdims=True))
  # Rounding alone must not become an advantage.
  scale = jnp.abs(reward).max(axis=1, keepdims=True)
  tiny = 8 * jnp.finfo(reward.dtype).eps * scale
  return jnp.where(std > tiny, centred / (std + epsilon), 0.0)


def group(tree: TokenTree, outcome: Outcome) -> Credit:
  """Group-relative: a leaf's normalised reward on each of its edges.

  A+-(e) = (1/G) sum over g through e of max/min(A_g, 0) (GRPO).
  """
  return spread(tree, normalise(outcome.reward))


def centred(tree: TokenTree, outcome: Outcome) -> Credit:
  """Group-relative without the division by std: A = R - mean R (Dr. GRPO).

  A group's part in the gradient stays in proportion to what is at stake in
  it, so that an entropy bonus can hold: divided by std, ever rarer and
  smaller differences count as much as large ones, and sampling dies out.
  """
  reward = outcome.reward
  return spread(tree, reward - reward.mean(axis=1, keepdims=True))


def spread(tree: TokenTree, leaf: Array) -> Credit:
  """Puts leaf advantages f32[B, G] on the edges of their paths."""
  G = leaf.shape[1]
  each = jnp.broadcast_to(leaf[..., None] / G, tree.path.shape)
  return Credit(
    trees.sum_to_edges(tree, jnp.maximum(each, 0)),
    trees.sum_to_edges(tree, jnp.minimum(each, 0)),
    leaf,
  )


def zero_variance(leaf: Array) -> Array:
  """bool[B]: groups that carry no signal."""
  return (leaf == 0).all(axis=1)
