"""Trees of a fixed shape: each node at depth t has branching[t] children."""

from collections.abc import Sequence
import math

import jax
import jax.numpy as jnp

from rerank_rl.decoding import frontier, legality, sample
from rerank_rl.models.policy import Policy
from rerank_rl.types import Array, TokenTree


def leaves(branching: Sequence[int]) -> int:
  """G, the product of the branching."""
  return math.prod(branching)


def _by_depth(branching: Sequence[int], tokens: int) -> list[int]:
  """The branching at each of T depths: 1 beyond its end."""
  return [*branching, *([1] * (tokens - len(branching)))]


def forward_tokens(branching: Sequence[int], tokens: int) -> int:
  """Tokens that a tree of T levels feeds; the last level is never fed."""
  every = _by_depth(branching, tokens)
  return sum(leaves(every[: t + 1]) for t in range(tokens - 1))


def fixed_tree(
  policy: Policy,
  params,
  game: sample.Game,
  branching: Sequence[int],
  key: Array,
  rules: Sequence[legality.Rule] = (),
) -> TokenTree:
  """Samples each node's children without replacement, a fixed number each.

  A node's children are the branching[t] largest of its children's
  log-probabilities plus Gumbel noise; one child is an ordinary sample.

  Args:
    policy: pure functions.
    params: its parameters.
    game: from `sample.prepare`.
    branching: children of each node by depth; 1 at depths beyond its end.
    key: PRNG key.
    rules: business rules.

  Returns:
    A TokenTree of `leaves(branching)` leaves; not iid; `log_q` is NaN. Where
    fewer tokens are legal than the tree has room for, leaves are PAD.
  """
  G, T = leaves(branching), policy.slots * policy.levels
  children = jnp.asarray(_by_depth(branching, T), jnp.int32)
  nodes_at = jnp.cumprod(children)

  def keep(nodes, total, legal, t):
    del nodes
    N = total.shape[-1]
    noise = jax.random.gumbel(
      jax.random.fold_in(key, t), total.shape, total.dtype
    )
    score = jnp.where(legal, total + noise, 4 * legality.NEGATIVE)
    order = jnp.argsort(-score, axis=-1)
    node = jnp.arange(G, dtype=jnp.int32)
    parent, which = node // children[t], node % children[t]
    # A node may be asked for more children than there are candidates.
    rank = order[:, parent, jnp.minimum(which, N - 1)]
    real = (node < nodes_at[t]) & (which < N)
    index = parent[None] * N + rank
    score = jnp.take_along_axis(score.reshape(score.shape[0], -1), index, 1)
    return frontier.Kept(index, score, real[None])

  return frontier.grow(policy, params, game, G, keep, rules)
