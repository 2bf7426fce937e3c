"""From a token tree to per-edge log-probabilities: one learner for all trees.

Paths are scored as blocks (causal within a path, the prompt shared by the
group) and each edge takes the value of the first path through it.

Letters: R = G * K states that choose an item's first token.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rerank_rl.decoding import legality, sample
from rerank_rl.models.policy import Policy
from rerank_rl.types import PAD, Array


class PathScores(NamedTuple):
  """Teacher-forced distributions along paths.

  Attributes:
    logp: f32[B, G, T], log-probability of each token; 0 at padding.
    dist: f32[B, G, T, N], log-probabilities of the legal tokens by rank.
    legal: bool[B, G, T, N], one rank a legal token; all False at padding.
    chosen: i32[B, G, T], the token's representative rank.
  """

  logp: Array
  dist: Array
  legal: Array
  chosen: Array


def score_slates(
  policy: Policy,
  params,
  game: sample.Game,
  slate: Array,
  rules: Sequence[legality.Rule] = (),
) -> PathScores:
  """Scores slates token by token under the rollout's own legality.

  Args:
    policy: pure functions.
    params: its parameters.
    game: from `sample.prepare` with the same parameters.
    slate: i32[B, G, K], positions, PAD where empty.
    rules: the rollout's business rules.

  Returns:
    PathScores; rollout and learner agree to rounding.
  """
  trie, prompt = game
  B, G, K = slate.shape
  L = policy.levels
  N = trie.order.shape[1]
  ranks = sample.ranks_of(trie, slate)
  logits = policy.score(params, prompt, ranks)
  flat = lambda x: x.reshape(B, G * K, *x.shape[3:])
  slots = jnp.arange(K, dtype=jnp.int32)
  earlier = slots[None] < slots[:, None]
  placed = jnp.where(earlier[None, None], ranks[:, :, None], PAD)
  slot = jnp.broadcast_to(slots, (B, G, K))
  alive = legality.alive(trie, flat(placed), flat(slot), rules)
  rank = flat(ranks)

  def score(logits, level):
    items = legality.under(trie, alive, rank, level)
    items &= (rank >= 0)[..., None]
    first = legality.children(trie, items, level)
    dist = legality.log_probs(trie, logits, items, first, level)
    # The token's run is represented by its first legal rank.
    start = jnp.take_along_axis(
      trie.start[:, level], jnp.maximum(rank, 0), axis=1
    )
    place = jnp.arange(N)[None, None]
    chosen = jnp.argmax(first & (place >= start[..., None]), axis=-1)
    logp = jnp.take_along_axis(dist, chosen[..., None], axis=-1)[..., 0]
    return PathScores(jnp.where(rank >= 0, logp, 0), dist, first, chosen)

  # All levels at once: states that choose level l's token, for every l.
  out = jax.vmap(score, in_axes=(2, 0), out_axes=2)(flat(logits), jnp.arange(L))
  return jax.tree.map(lambda x: x.reshape(B, G, K * L, *x.shape[3:]), out)
