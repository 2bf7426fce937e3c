"""Credit: from what the leaves were worth to advantages on edges.

A credit is a function (tree, outcome) -> Credit. Positive and negative
advantages are summed apart, so that merging common prefixes leaves the
gradient of a clipped objective unchanged.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rerank_rl.decoding import legality
from rerank_rl.decoding import tree as trees
from rerank_rl.types import PAD, Array, Outcome, TokenTree


class Credit(NamedTuple):
  """Advantages on edges.

  Attributes:
    positive: f32[B, E], (1/G) sum of max(A, 0) over the chains through it.
    negative: f32[B, E], the same of min(A, 0).
    leaf: f32[B, G], the leaves' advantages (their worth, normalised; the sum
      over their paths where edges differ).
  """

  positive: Array
  negative: Array
  leaf: Array


def centre(reward: Array, where: Array) -> Array:
  """R - mean R over the group; 0 where rewards differ by rounding alone.

  Args:
    reward: f32[B, G, ...].
    where: bool[B, G, ...], leaves that there are; the others get 0.

  Returns:
    f32[B, G, ...].
  """
  reward = jnp.where(where, reward, 0)
  out = jnp.where(where, reward - _mean(reward, where), 0)
  return jnp.where(_std(out, where) > _rounding(reward), out, 0)


def normalise(reward: Array, where: Array, epsilon: float = 1e-4) -> Array:
  """A = (R - mean R) / (std R + epsilon) over the group; 0 where G = 1.

  Args:
    reward: f32[B, G, ...].
    where: bool[B, G, ...], leaves that there are; the others get 0.
    epsilon: keeps groups without variance at 0.

  Returns:
    f32[B, G, ...].
  """
  out = centre(reward, where)
  return out / (_std(out, where) + epsilon)


def _mean(values: Array, where: Array) -> Array:
  """Mean over the leaves that there are, f32[B, 1, ...]; values 0 elsewhere."""
  count = where.sum(axis=1, keepdims=True)
  return values.sum(axis=1, keepdims=True) / jnp.maximum(count, 1)


def _std(centred: Array, where: Array) -> Array:
  """Root of the mean square, f32[B, 1, ...]."""
  return jnp.sqrt(_mean(centred**2, where))


def _rounding(reward: Array) -> Array:
  """A spread f32[B, 1, ...] that rounding alone may give rewards."""
  scale = jnp.abs(reward).max(axis=1, keepdims=True)
  return 8 * jnp.finfo(reward.dtype).eps * scale


def group(tree: TokenTree, outcome: Outcome) -> Credit:
  """Group-relative: a leaf's normalised reward on each of its edges.

  A+-(e) = (1/G) sum over g through e of max/min(A_g, 0) (GRPO).
  """
  return spread(tree, normalise(outcome.reward, trees.found(tree)))


def centred(tree: TokenTree, outcome: Outcome) -> Credit:
  """Group-relative without the division by std: A = R - mean R (Dr. GRPO).

  A group's part in the gradient stays in proportion to what is at stake in
  it, so that an entropy bonus can hold: divided by std, ever rarer and
  smaller differences count as much as large ones, and sampling dies out.
  """
  return spread(tree, centre(outcome.reward, trees.found(tree)))


def expected(tree: TokenTree, outcome: Outcome, score: Array) -> Credit:
  """What the expected reward among the leaves found gains by each, no draws.

    A_g = G p_g (R_g - sum_h p_h R_h),   p = softmax of the leaves' scores,

  with R normalised over the group. Where scores are log-probabilities this is
  the gradient of sum_g p_g R_g, whole: for leaves that a search has found.

  Args:
    tree: the tree.
    outcome: what its leaves were worth.
    score: f32[B, G], of the leaves.
  """
  where = trees.found(tree)
  p = jax.nn.softmax(jnp.where(where, score, legality.NEGATIVE), axis=1)
  reward = normalise(outcome.reward, where)
  mean = (p * reward).sum(1, keepdims=True)
  return spread(tree, score.shape[1] * p * (reward - mean))


def to_go(tree: TokenTree, outcome: Outcome) -> Credit:
  """Group-relative reward to go: an item is credited with what it can change.

    A_t = G_t - mean G_t over the group,   G_t = sum of per_item from t's slot

  What the items above have earned is settled and only adds noise: `centred`
  without it has the same expectation, but for the baseline's finite group.
  """
  rewards = on_tokens(outcome.per_item, tree.path.shape[-1])
  ahead = still_to_come(rewards) + outcome.bootstrap[..., None]
  return _on_edges(tree, centre(ahead, tree.path != PAD))


def still_to_come(rewards: Array) -> Array:
  """Each place's reward and all later ones', f32[..., T]."""
  return jnp.flip(jnp.cumsum(jnp.flip(rewards, -1), -1), -1)


def on_tokens(per_item: Array, tokens: int) -> Array:
  """Slots' rewards f32[B, G, K] on the tokens [B, G, T] that complete them."""
  levels = tokens // per_item.shape[-1]
  ahead = [(0, 0)] * per_item.ndim + [(levels - 1, 0)]
  return jnp.pad(per_item[..., None], ahead).reshape(*per_item.shape[:-1], -1)


def spread(tree: TokenTree, leaf: Array, where: Array | bool = True) -> Credit:
  """Puts leaf advantages f32[B, G] on edges of their paths.

  Args:
    tree: the tree.
    leaf: f32[B, G].
    where: bool[B, G, T], the edges of each path that have them; all.

  Returns:
    Credit.
  """
  each = jnp.broadcast_to(leaf[..., None], tree.path.shape)
  return _on_edges(tree, jnp.where(where, each, 0))._replace(leaf=leaf)


def _on_edges(tree: TokenTree, each: Array) -> Credit:
  """Advantages of rollouts' tokens f32[B, G, T], summed on the edges."""
  G = each.shape[1]
  return Credit(
    trees.sum_to_edges(tree, jnp.maximum(each, 0) / G),
    trees.sum_to_edges(tree, jnp.minimum(each, 0) / G),
    jnp.where(tree.path == PAD, 0, each).sum(-1),
  )


def critic(tree: TokenTree, outcome: Outcome) -> Credit:
  """A critic's advantages of tokens, held against the group's mean at each.

    A_t = Â_t - mean Â_t over the group,   Â from `values.advantages`

  What a critic gets wrong about a request as a whole is no reason to prefer
  all that was tried there, or none.
  """
  return _on_edges(tree, centre(outcome.advantage, tree.path != PAD))


def advantage(tree: TokenTree, outcome: Outcome) -> Credit:
  """A critic's advantages of tokens, held against the batch's at each depth.

    A_t = (Â_t - mean Â_t) / (std Â_t + epsilon) over all rollouts

  where tokens were a choice; others, which no gradient moves, get 0. Where a
  state is met once, there is no group to hold them against. What a critic that
  still learns gets wrong of all states is no reason to prefer all that was
  tried, or none; and an entropy bonus weighs the same whatever rewards are
  worth.
  """
  flat = lambda x: x.reshape(1, -1, x.shape[-1])
  each = normalise(flat(outcome.advantage), flat(trees.choices(tree)))
  return _on_edges(tree, each.reshape(tree.path.shape))


def sibling(tree: TokenTree, outcome: Outcome, epsilon: float = 1e-4) -> Credit:
  """Sibling-relative: an edge against the edges it competed with (V-STAR).

    A(e) = (Rbar(e) - mean) / (std + epsilon)

  over the siblings of e, where Rbar(e) is the mean reward of the rollouts
  through e; 0 for an only child. Siblings count once each, however many
  rollouts they carry. The objective's sum over edges and mean over tokens
  becomes (1/|C|) sum_e A(e) r(e), C being a request's edges with siblings.

  Args:
    tree: merged, so that siblings are distinct.
    outcome: what its leaves were worth.
    epsilon: keeps groups without variance at 0.

  Returns:
    Credit; `leaf` sums A over the path.
  """
  real = tree.weight > 0
  mean = mean_reward(tree, outcome.reward)
  count = jnp.maximum(_over_siblings(tree, jnp.ones_like(mean)), 1)
  centred = mean - _over_siblings(tree, mean) / count
  std = jnp.sqrt(_over_siblings(tree, centred**2) / count)
  alive = real & (count > 1)
  differ = alive & (std > _rounding(outcome.reward))
  advantage = jnp.where(differ, centred / (std + epsilon), 0)
  tokens = tree.weight.sum(axis=1, keepdims=True)
  share = tokens / jnp.maximum(alive.sum(axis=1, keepdims=True), 1)
  return Credit(
    jnp.maximum(advantage, 0) * share,
    jnp.minimum(advantage, 0) * share,
    trees.on_path(tree, advantage).sum(-1),
  )


def confined(tree: TokenTree, outcome: Outcome) -> Credit:
  """The gradient of the reward expected of the policy within the tree.

    A(e) = q(e) (Rbar(e) - Rbar(its parent)),   q(leaf) = product of pbar

  where pbar is the policy's probability of an edge among its siblings, q that
  of whoever follows the policy and never leaves the tree, and Rbar the mean
  reward under q. Nothing of it is sampled: were the tree to hold every slate,
  this would be the policy's gradient. Unlike `sibling`, it weighs siblings by
  their probability, and rewards by what is at stake.

  Args:
    tree: of distinct slates and distinct siblings.
    outcome: what its leaves were worth.

  Returns:
    Credit; `leaf` is q (R - Rbar of the tree).
  """
  tiny = jnp.finfo(tree.logp_old.dtype).tiny
  p = jnp.where(tree.weight > 0, jnp.exp(tree.logp_old), 0)
  pbar = p / jnp.maximum(_over_siblings(tree, p), tiny)
  found = trees.found(tree)
  on_path = jnp.where(tree.path == PAD, 1, trees.on_path(tree, pbar))
  q = jnp.where(found, on_path.prod(-1), 0)
  q /= jnp.maximum(q.sum(1, keepdims=True), tiny)  # Walks may end unfinished.
  reward = centre(outcome.reward, found)
  leaf = q * (reward - (q * reward).sum(1, keepdims=True))
  each = jnp.broadcast_to(leaf[..., None], tree.path.shape)
  gain = trees.sum_to_edges(tree, each)
  # 0 for an only child.
  advantage = gain - pbar * _over_siblings(tree, gain)
  return Credit(jnp.maximum(advantage, 0), jnp.minimum(advantage, 0), leaf)


def _over_siblings(tree: TokenTree, values: Array) -> Array:
  """Sums f32[B, E] over the edges of one parent, on each of them."""
  B, E = values.shape
  real = tree.weight > 0
  # Edges of one parent are one group; the root's come first.
  group = jnp.where(real, tree.parent + 1, E)
  zeros = jnp.zeros((B, E + 1), values.dtype)
  add = lambda z, i, v: z.at[i].add(v)[i]
  return jax.vmap(add)(zeros, group, jnp.where(real, values, 0))


def mean_reward(tree: TokenTree, reward: Array) -> Array:
  """Rbar(e), the mean reward of the rollouts through e; 0 at padding.

  Args:
    tree: the tree.
    reward: f32[B, G].

  Returns:
    f32[B, E].
  """
  each = jnp.broadcast_to(reward[..., None], tree.path.shape)
  total = trees.sum_to_edges(tree, each)
  count = trees.sum_to_edges(tree, jnp.ones_like(each))
  return total / jnp.maximum(count, 1)


def blend(*credits: Credit) -> Credit:
  """The sum of credits."""
  return jax.tree.map(lambda *parts: sum(parts), *credits)


def zero_variance(given: Credit) -> Array:
  """bool[B]: requests whose rollouts carry no signal."""
  return ((given.positive == 0) & (given.negative == 0)).all(axis=1)
