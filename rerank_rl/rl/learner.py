"""From a token tree to per-edge log-probabilities: one learner for all trees.

Paths are scored as blocks (causal within a path, the prompt shared by the
group) and each edge takes the value of the first path through it.

Letters: R = G * K states that choose an item's first token.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rerank_rl.decoding import catalogue, legality, next_item, sample
from rerank_rl.models.next_item import NextItemPolicy
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


class Walk(NamedTuple):
  """Slates as the states that choose their items.

  Attributes:
    rank: i32[B, R], the item that each places, PAD where empty.
    slot: i32[B, R], its slot.
    alive: bool[B, R, N], items that it may place; none where empty.
  """

  rank: Array
  slot: Array
  alive: Array


def walk(
  trie: legality.Trie, ranks: Array, rules: Sequence[legality.Rule]
) -> Walk:
  """What each slot of slates i32[B, G, K] of ranks chooses, and among what."""
  B, G, K = ranks.shape
  flat = lambda x: x.reshape(B, G * K, *x.shape[3:])
  slots = jnp.arange(K, dtype=jnp.int32)
  earlier = slots[None] < slots[:, None]
  placed = flat(jnp.where(earlier[None, None], ranks[:, :, None], PAD))
  slot = flat(jnp.broadcast_to(slots, (B, G, K)))
  rank = flat(ranks)
  alive = legality.alive(trie, placed, slot, rules) & (rank >= 0)[..., None]
  return Walk(rank, slot, alive)


def over_levels(function: Callable, values: Array) -> Any:
  """Applies (f32[B, R, ...], level) -> [B, R, ...] to every level at once.

  Args:
    function: may return a pytree; `level` is traced.
    values: f32[B, G, K, L, ...], of the states that choose level l's token.

  Returns:
    The function's arrays, [B, G, T, ...].
  """
  B, G, K, L = values.shape[:4]
  flat = values.reshape(B, G * K, *values.shape[3:])
  out = jax.vmap(function, in_axes=(2, 0), out_axes=2)(flat, jnp.arange(L))
  return jax.tree.map(lambda x: x.reshape(B, G, K * L, *x.shape[3:]), out)


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
  ranks = sample.ranks_of(game.trie, slate)
  logits = policy.score(params, game.prompt, ranks)
  return score_logits(game.trie, ranks, logits, rules)


def score_logits(
  trie: legality.Trie,
  ranks: Array,
  logits: Array,
  rules: Sequence[legality.Rule] = (),
) -> PathScores:
  """PathScores of slates whose items are worth exp(logit) at every state.

  Args:
    trie: the requests' items.
    ranks: i32[B, G, K], the slates' items, PAD where empty.
    logits: f32[B, G, K, L, N], of every item by rank at each level's state.
    rules: the rollout's business rules.
  """
  N = trie.order.shape[1]
  rank, _, alive = walk(trie, ranks, rules)

  def score(logits, level):
    items = legality.under(trie, alive, rank, level)
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

  return over_levels(score, logits)


def score_items(
  policy: NextItemPolicy,
  params,
  tree: catalogue.Tree,
  state: Array,
  item: Array,
) -> PathScores:
  """Scores single items of a whole catalogue, token by token.

  Args:
    policy: pure functions.
    params: its parameters.
    tree: the catalogue.
    state: f32[B, d], states that choose the first token.
    item: i32[B, G], PAD where there is none.

  Returns:
    PathScores with T = L; N is the most children that any node has, a token's
    place is its node's among its parent's children.
  """
  B, G = item.shape
  state = jnp.broadcast_to(state[:, None], (B, G, state.shape[-1]))
  real = (item >= 0)[..., None]
  wide = max(tree.fans)
  logp, dists, legal, chosen = [], [], [], []
  for choice in next_item.along(policy, params, tree, state, item):
    more = ((0, 0), (0, 0), (0, wide - choice.dist.shape[-1]))
    logp.append(next_item.chosen(choice))
    dists.append(jnp.pad(choice.dist, more, constant_values=legality.NEGATIVE))
    legal.append(jnp.pad((choice.child >= 0) & real, more))
    chosen.append(choice.slot)
  stack = lambda parts: jnp.stack(parts, axis=2)
  return PathScores(
    jnp.where(real, stack(logp), 0), stack(dists), stack(legal), stack(chosen)
  )


def soft_labels(trie: legality.Trie, slate: Array, worth: Array) -> PathScores:
  """What a softmax over items says of each token along slates (DeGRe).

    q(token | prefix) = sum of q(item) under prefix and token
                        / sum of q(item) under prefix

  with q = softmax of worth over the items that are still legal: the item's
  label marginalised along the semantic IDs.

  Args:
    trie: the requests' items.
    slate: i32[B, G, K], positions, PAD where empty.
    worth: f32[B, G, K, N], of each candidate, by position, as the next item.

  Returns:
    PathScores whose `dist` holds log q over the legal tokens.
  """
  ranks = sample.ranks_of(trie, slate)
  by_rank = jnp.take_along_axis(worth, trie.order[:, None, None], axis=-1)
  L = trie.codes.shape[-1]
  logits = jnp.repeat(by_rank[:, :, :, None], L, axis=3)
  return score_logits(trie, ranks, logits)
