"""A token tree scored under a dense ancestor mask: the learner's oracle.

Letters: Q edges that are fed, all in one cache; the rest as in types.py.
"""

import jax.numpy as jnp
import numpy as np

from rerank_rl.decoding import tree as trees
from rerank_rl.models.policy import Policy
from rerank_rl.types import ROOT, Array, TokenTree


def ancestors(tree: TokenTree) -> Array:
  """bool[B, E, E]: whether the second edge is above the first, or is it."""
  B, E = tree.parent.shape
  edge = jnp.arange(E, dtype=jnp.int32)
  at = jnp.broadcast_to(edge, (B, E))
  mask = at[..., None] == edge[None, None]
  for _ in range(tree.path.shape[2] - 1):
    above = jnp.take_along_axis(tree.parent, jnp.maximum(at, 0), axis=1)
    at = jnp.where(at == ROOT, ROOT, above)
    mask |= at[..., None] == edge[None, None]
  return mask


def policy(
  policy: Policy, tree: TokenTree, mask: Array, fed: np.ndarray
) -> Policy:
  """The policy with a `score` that lays the tree's edges out in one row.

  Args:
    policy: pure functions.
    tree: whose slates will be scored.
    mask: bool[B, Q, Q], `ancestors(tree)` among the fed edges.
    fed: i32[Q], the edges; all that are a parent.

  Returns:
    A Policy for `learner.score_slates` on `tree.slate`.
  """
  L = policy.levels
  place = np.zeros(tree.token.shape[1], np.int32)
  place[fed] = np.arange(len(fed))

  def score(params, prompt, ranks):
    B, G, K = ranks.shape
    T = K * L
    rank = trees.to_edges(tree, jnp.repeat(ranks, L, axis=2))[:, fed]
    states, _ = policy.step(
      params,
      prompt,
      None,
      rank[:, None],
      tree.depth[:, None, fed],
      0,
      mask[:, None],
    )
    states = jnp.concatenate([prompt.root[:, None], states[:, 0]], axis=1)
    parent = jnp.where(tree.parent == ROOT, -1, jnp.asarray(place)[tree.parent])
    above = trees.on_path(tree, parent + 1).reshape(B, G * T)
    states = jnp.take_along_axis(states, above[..., None], axis=1)
    states = states.reshape(B, G * K, L, -1)
    out = [
      policy.logits(params, prompt, states[:, :, level], level)
      for level in range(L)
    ]
    return jnp.stack(out, axis=2).reshape(B, G, K, L, -1)

  return policy._replace(score=score)
