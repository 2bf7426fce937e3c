"""Beam search and stochastic beam search over a request's trie.

Edges are appended to one cache a request and beams see their ancestors
through a mask: nothing is copied when beams branch.

Letters: W beams; edge t * W + w is beam w's choice at depth t.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rerank_rl.decoding import legality, sample, tree
from rerank_rl.models.policy import Policy
from rerank_rl.types import PAD, ROOT, Array, TokenTree


class _Beams(NamedTuple):
  """W unfinished slates a request; `last` is the edge that each ends in."""

  placed: Array  # i32[B, W, K], ranks.
  rank: Array  # i32[B, W], any rank under the current prefix.
  logp: Array  # f32[B, W], NEGATIVE where there is no such beam.
  score: Array  # f32[B, W], what beams are ranked by.
  last: Array  # i32[B, W]
  seen: Array  # bool[B, W, E], ancestors.
  state: Array  # f32[B, W, d]


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
  B, N = game.trie.order.shape
  K, L, W = policy.slots, policy.levels, width
  E = K * L * W
  cache = policy.cache(game.prompt, 1, E)
  one = jnp.broadcast_to(jnp.arange(W) == 0, (B, W))
  dtype = game.prompt.root.dtype
  alone = jnp.where(one, 0.0, legality.NEGATIVE).astype(dtype)
  beams = _Beams(
    jnp.full((B, W, K), PAD, jnp.int32),
    jnp.full((B, W), PAD, jnp.int32),
    alone,
    alone,
    jnp.full((B, W), ROOT, jnp.int32),
    jnp.zeros((B, W, E), bool),
    jnp.broadcast_to(
      game.prompt.root[:, None], (B, W, game.prompt.root.shape[-1])
    ),
  )

  def branch(beams, t):
    noise = None if key is None else jax.random.fold_in(key, t)
    return _branch(policy, params, game, beams, t, rules, noise)

  def token(carry, t):
    beams, cache = carry
    state, cache = policy.step(
      params,
      game.prompt,
      cache,
      beams.rank[:, None],
      t - 1,
      (t - 1) * W,
      beams.seen[:, None],
    )
    beams, edge = branch(beams._replace(state=state[:, 0]), t)
    return (beams, cache), edge

  # The first token is chosen from the prompt; the last is never fed.
  beams, first = branch(beams, 0)
  (beams, _), rest = jax.lax.scan(token, (beams, cache), jnp.arange(1, K * L))
  edges = [
    jnp.concatenate([a[None], b]).swapaxes(0, 1)
    for a, b in zip(first, rest, strict=True)
  ]
  return _as_tree(game.trie, beams, edges)


def _branch(policy, params, game, beams, t, rules, key):
  """One token: all children of all beams, the best W of them kept."""
  B, W, _ = beams.placed.shape
  k, level = t // policy.levels, t % policy.levels
  slot = jnp.full((B, W), k, jnp.int32)
  alive = legality.alive(game.trie, beams.placed, slot, rules)
  items = legality.under(game.trie, alive, beams.rank, level)
  first = legality.children(game.trie, items, level)
  scores = policy.logits(params, game.prompt, beams.state, level)
  logp = legality.log_probs(game.trie, scores, items, first, level)
  N = logp.shape[-1]
  # A beam with nothing left to place goes on, once, without a token.
  some = first.any(-1, keepdims=True)
  stay = ~some & (jnp.arange(N) == 0)[None, None]
  total = jnp.where(first | stay, beams.logp[..., None] + logp, -jnp.inf)
  total = jnp.maximum(total, 4 * legality.NEGATIVE)
  score = total
  if key is not None:
    score = _condition(total, beams.score, first | stay, key)
  best, index = jax.lax.top_k(score.reshape(B, W * N), W)
  parent, rank = index // N, (index % N).astype(jnp.int32)
  take = lambda x: jax.vmap(lambda v, i: v[i])(x, parent)
  flat = lambda x: jnp.take_along_axis(x.reshape(B, W * N), index, 1)
  rank = jnp.where(take(some[..., 0]), rank, PAD)
  logp_total = flat(total)
  real = (rank >= 0) & (logp_total > legality.NEGATIVE / 2)
  mean = jnp.where(first, logp, 0).sum(-1) / jnp.maximum(first.sum(-1), 1)
  edge = jnp.asarray(t * W + jnp.arange(W), jnp.int32)
  edge = jnp.broadcast_to(edge, (B, W))
  seen = take(beams.seen)
  seen |= (jnp.arange(seen.shape[-1])[None, None] == edge[..., None]) & (
    real[..., None]
  )
  placed = take(beams.placed)
  done = real & (level == policy.levels - 1)
  placed = placed.at[:, :, k].set(jnp.where(done, rank, placed[:, :, k]))
  code = jnp.take_along_axis(
    game.trie.codes[:, :, level], jnp.maximum(rank, 0), axis=1
  )
  record = (
    jnp.where(real, code, PAD),
    jnp.where(real, take(beams.last), ROOT),
    jnp.where(real, flat(logp), 0),
    jnp.where(real, take(mean), 0),
  )
  new = _Beams(
    placed,
    jnp.where(real, rank, PAD),
    logp_total,
    best,
    jnp.where(real, edge, take(beams.last)),
    seen,
    take(beams.state),
  )
  return new, record


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


def _as_tree(trie, beams, edges) -> TokenTree:
  """The surviving beams' edges; abandoned ones become padding."""
  token, parent, logp, mean = edges  # Each [B, T, W].
  B, T, W = token.shape
  E = T * W
  token, parent, logp, mean = (x.reshape(B, E) for x in edges)
  exists = beams.logp > legality.NEGATIVE / 2
  place = jnp.arange(E, dtype=jnp.int32).reshape(T, W)[None, None]
  seen = beams.seen.reshape(B, W, T, W) & exists[:, :, None, None]
  path = jnp.where(seen, place, PAD).max(-1)
  kept = seen.any(1).reshape(B, E)
  depth = jnp.broadcast_to(jnp.arange(E, dtype=jnp.int32) // W, (B, E))
  # An edge's own state is where its child chooses.
  mean_path = jnp.take_along_axis(
    mean, jnp.maximum(path, 0).reshape(B, W * T), axis=1
  ).reshape(B, W, T)
  mean_path = jnp.where(path == PAD, 0, mean_path)
  ahead = jnp.concatenate([mean_path[:, :, 1:], jnp.zeros((B, W, 1))], axis=2)
  slate = sample.positions_of(
    trie, jnp.where(exists[..., None], beams.placed, PAD)
  )
  zero = lambda x: jnp.where(kept, x, 0)
  out = TokenTree(
    token=jnp.where(kept, token, PAD),
    parent=jnp.where(kept, parent, ROOT),
    depth=zero(depth),
    logp_old=zero(logp),
    log_q=jnp.where(kept, jnp.nan, 0.0).astype(logp.dtype),
    mean_logp_old=zero(jnp.zeros_like(logp)),
    weight=zero(jnp.zeros_like(logp)),
    path=path,
    slate=slate,
    iid=False,
  )
  share = jnp.full((B, W, T), 1 / W, logp.dtype)
  return out.replace(
    weight=tree.sum_to_edges(out, share),
    mean_logp_old=tree.to_edges(out, ahead.astype(logp.dtype)),
  )
