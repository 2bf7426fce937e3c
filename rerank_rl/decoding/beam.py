"""Beam search and stochastic beam search over a request's trie.

Letters: W beams.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from rerank_rl.decoding import frontier, legality, sample
from rerank_rl.models.policy import Policy
from rerank_rl.types import Array, TokenTree


def beam(
  policy: Policy,
  params,
  game: sample.Game,
  width: int,
  rules: Sequence[legality.Rule] = (),
  key: Array | None = None,
) -> TokenTree:
  """The W best slates by log-probability, or W drawn without replacement.

  Args:
    policy: pure functions.
    params: its parameters.
    game: from `sample.prepare`.
    width: W.
    rules: business rules.
    key: if given, stochastic beam search: log-probabilities are perturbed
      top-down by Gumbel noise (Kool et al. 2019, equation 11).

  Returns:
    A TokenTree whose leaves are the beams, best first; not iid; `log_q` is
    NaN. A leaf that does not exist (fewer slates than W) is PAD.
  """

  def keep(nodes, total, legal, t):
    score = total
    if key is not None:
      noise = jax.random.fold_in(key, t)
      score = _condition(total, nodes.score, legal, noise)
    best, index = jax.lax.top_k(score.reshape(score.shape[0], -1), width)
    return frontier.Kept(index, best, jnp.array(True))

  return frontier.grow(policy, params, game, width, keep, rules)


def _condition(total, parent_score, legal, key):
  """Gumbels of the children, conditioned on their maximum: the parent's."""
  noise = jax.random.gumbel(key, total.shape, total.dtype)
  perturbed = jnp.where(legal, total + noise, 4 * legality.NEGATIVE)
  top = perturbed.max(-1, keepdims=True)
  parent = parent_score[..., None]
  # v = G - g + log(1 - exp(g - Z)); G~ = G - max(v, 0) - log1p(exp(-|v|)).
  inner = -jnp.expm1(jnp.minimum(perturbed - top, 0))
  v = parent - perturbed + jnp.log(jnp.maximum(inner, 1e-30))
  out = parent - jnp.maximum(v, 0) - jnp.log1p(jnp.exp(-jnp.abs(v)))
  return jnp.where(legal, out, 4 * legality.NEGATIVE)
