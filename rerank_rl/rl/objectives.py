"""Objectives: from credit and log-probabilities to a loss on edges.

Each returns (sum, denominator); denominators are sums of edge weights, so
that a merged tree and its chains give the same loss.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rerank_rl.decoding import legality
from rerank_rl.decoding import tree as trees
from rerank_rl.rl.credit import Credit
from rerank_rl.rl.learner import PathScores
from rerank_rl.types import PAD, Array, TokenTree


class Loss(NamedTuple):
  """A loss as (sum, denominator): mean it only after devices are summed."""

  total: Array
  denominator: Array


def ratio(tree: TokenTree, scores: PathScores) -> Array:
  """r(e) = pi(e) / pi_old(e), f32[B, E], 1 at padding."""
  logp = trees.to_edges(tree, scores.logp)
  wide = jnp.promote_types(logp.dtype, jnp.float32)
  return jnp.exp(logp.astype(wide) - tree.logp_old.astype(wide))


def clipped(
  tree: TokenTree, scores: PathScores, credit: Credit, clip: float
) -> Loss:
  """-[A+ min(r, 1 + clip) + A- max(r, 1 - clip)] summed over edges (PPO)."""
  r = ratio(tree, scores)
  gain = credit.positive * jnp.minimum(r, 1 + clip)
  gain += credit.negative * jnp.maximum(r, 1 - clip)
  return Loss(-gain.sum(), tree.weight.sum())


def reinforce(
  tree: TokenTree, scores: PathScores, credit: Credit, clip: float
) -> Loss:
  """-(A+ + A-) log pi summed over edges; `clip` is not used."""
  del clip
  logp = trees.to_edges(tree, scores.logp)
  gain = (credit.positive + credit.negative) * logp
  return Loss(-gain.sum(), tree.weight.sum())


def reference(
  tree: TokenTree, scores: PathScores, credit: Credit, clip: float
) -> Loss:
  """Cross-entropy to softmax of the group's normalised rewards (GoalRank).

  -sum_g softmax(A)_g log pi(slate g), a distillation of the group's order;
  not a policy gradient, so any lists will do. Denominator: tokens a slate.
  """
  del clip
  given = jnp.where(trees.found(tree), credit.leaf, legality.NEGATIVE)
  share = jax.nn.softmax(given, axis=1)
  logp = scores.logp.sum(-1)
  return Loss(-(share * logp).sum(), tree.weight.sum())


def uniform_q(
  tree: TokenTree, scores: PathScores, credit: Credit, clip: float
) -> Loss:
  """(Q - sg[r~ + mean over legal children of Q'])^2 on each token (ROVER).

  Q(e) = log pi(e) - log pi_old(e) values an edge under the uniform policy, Q'
  is the same at the next state, 0 at a leaf, and r~ is the leaf's advantage
  R - mean R, which stands in every token's target. A sum over rollouts, so
  that merging changes nothing. `clip` is not used.
  """
  del clip
  real = tree.path != PAD
  q = jnp.where(real, scores.logp - trees.on_path(tree, tree.logp_old), 0)
  mean = legality.mean_log_prob(scores.dist, scores.legal)
  ahead = jnp.concatenate([mean[:, :, 1:], jnp.zeros_like(mean[:, :, :1])], 2)
  ahead -= trees.on_path(tree, tree.mean_logp_old)
  target = jax.lax.stop_gradient(credit.leaf[..., None] + ahead)
  total = jnp.where(real, (q - target) ** 2, 0).sum() / q.shape[1]
  return Loss(total, tree.weight.sum())


def entropy(scores: PathScores) -> Array:
  """H(e) = -sum over legal tokens of p log p, at each path's state [B,G,T]."""
  p = jnp.where(scores.legal, jnp.exp(scores.dist), 0)
  return -(p * scores.dist).sum(-1)


def kl(scores: PathScores, reference_scores: PathScores) -> Array:
  """KL(pi || pi_ref), exact over the legal tokens of each path's state.

  Returns:
    f32[B, G, T].
  """
  p = jnp.where(scores.legal, jnp.exp(scores.dist), 0)
  return (p * (scores.dist - reference_scores.dist)).sum(-1)


def weighted(tree: TokenTree, path_values: Array) -> Loss:
  """Mean over rollouts of path values [B, G, T], as a sum over edges."""
  values = trees.to_edges(tree, path_values)
  return Loss((tree.weight * values).sum(), tree.weight.sum())


def cross_entropy(scores: PathScores, weight: Array) -> Loss:
  """-sum of log pi over demonstrated tokens; weight f32[B, G] a slate."""
  real = scores.legal.any(-1)
  total = (scores.logp * weight[..., None]).sum()
  return Loss(-total, (real * weight[..., None]).sum())


def distill(
  scores: PathScores,
  labels: PathScores,
  weight: Array,
  hard: float,
  soft: float,
) -> Loss:
  """sum_l w_l sum_t [hard CE(y_t, p_t) + soft KL(q_t || p_t)] (DeGRe).

  Args:
    scores: the policy's, along lists of items y.
    labels: of `learner.soft_labels`, along the same lists.
    weight: f32[B, G], w of each list.
    hard: weight of the items' own cross-entropy.
    soft: weight of the soft labels, alpha.
  """
  main = cross_entropy(scores, weight)
  far = (weight[..., None] * kl(labels, scores)).sum()
  return Loss(hard * main.total + soft * far, main.denominator)


def preference(
  logp: Array, reference: Array, weight: Array, beta: float
) -> Loss:
  """-sum_l w_l log sigmoid(beta (d_l - d_loser)), d = log pi - log pi_ref.

  Direct preference optimisation; the last slate of each request is what the
  others are preferred to.

  Args:
    logp: f32[B, G + 1], log-probabilities of slates.
    reference: the same, by the reference policy.
    weight: f32[B, G], of the preferred slates.
    beta: inverse temperature.
  """
  d = logp - reference
  margin = d[:, :-1] - d[:, -1:]
  total = (weight * jax.nn.log_sigmoid(beta * margin)).sum()
  return Loss(-total, weight.sum())
