"""Trees grown level by level: beams and fixed trees differ in what is kept.

Edges are appended to one cache a request and a node sees its ancestors
through a mask: nothing is copied when the frontier branches.

Letters: W nodes of the frontier; edge t * W + w is node w's choice at depth t.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rerank_rl.decoding import legality, sample, tree
from rerank_rl.models import prefix_lm
from rerank_rl.models.policy import Policy
from rerank_rl.types import PAD, ROOT, Array, TokenTree


class Frontier(NamedTuple):
  """W unfinished slates a request; `last` is the edge that each ends in."""

  placed: Array  # i32[B, W, K], ranks.
  rank: Array  # i32[B, W], any rank under the current prefix.
  logp: Array  # f32[B, W], NEGATIVE where there is no such node.
  score: Array  # f32[B, W], what `Keep` ranked it by.
  last: Array  # i32[B, W]
  seen: Array  # bool[B, W, E], ancestors, places without a token included.
  state: Array  # f32[B, W, d]


class Kept(NamedTuple):
  """The W children that go on.

  Attributes:
    index: i32[B, W], parent * N + rank.
    score: f32[B, W], passed to the next `Keep` with the frontier.
    real: bool[B, W] or bool[], False where a place stays empty.
  """

  index: Array
  score: Array
  real: Array


# (frontier, total f32[B, W, N], legal bool[B, W, N], t) -> Kept, where total
# is the log-probability of each child's prefix.
Keep = Callable[[Frontier, Array, Array, Array], Kept]


def grow(
  policy: Policy,
  params,
  game: sample.Game,
  width: int,
  keep: Keep,
  rules: Sequence[legality.Rule] = (),
) -> TokenTree:
  """Grows all T levels of a tree with at most W nodes each.

  Args:
    policy: pure functions.
    params: its parameters.
    game: from `sample.prepare`.
    width: W.
    keep: which children of all nodes go on.
    rules: business rules.

  Returns:
    A TokenTree of W leaves; not iid; `log_q` is NaN. A leaf that does not
    exist is PAD.
  """
  B = game.trie.order.shape[0]
  K, L, W = policy.slots, policy.levels, width
  E = K * L * W
  cache = policy.cache(game.prompt, 1, E)
  one = jnp.broadcast_to(jnp.arange(W) == 0, (B, W))
  dtype = game.prompt.root.dtype
  alone = jnp.where(one, 0.0, legality.NEGATIVE).astype(dtype)
  start = Frontier(
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

  def branch(nodes, t):
    return _branch(policy, params, game, nodes, t, keep, rules)

  def token(carry, t):
    nodes, cache = carry
    state, cache = policy.step(
      params,
      game.prompt,
      cache,
      nodes.rank[:, None],
      t - 1,
      (t - 1) * W,
      nodes.seen[:, None],
    )
    nodes, edge = branch(nodes._replace(state=state[:, 0]), t)
    return (nodes, cache), edge

  # The first token is chosen from the prompt; the last is never fed.
  nodes, first = branch(start, 0)
  (nodes, _), rest = jax.lax.scan(token, (nodes, cache), jnp.arange(1, K * L))
  edges = [
    jnp.concatenate([a[None], b]).swapaxes(0, 1)
    for a, b in zip(first, rest, strict=True)
  ]
  return _as_tree(game.trie, nodes, edges)


def _branch(policy, params, game, nodes, t, keep, rules):
  """One token: all children of all nodes, W of them kept."""
  B, W, _ = nodes.placed.shape
  k, level = t // policy.levels, t % policy.levels
  slot = jnp.full((B, W), k, jnp.int32)
  alive = legality.alive(game.trie, nodes.placed, slot, rules)
  items = legality.under(game.trie, alive, nodes.rank, level)
  first = legality.children(game.trie, items, level)
  scores = policy.logits(params, game.prompt, nodes.state, level)
  logp = legality.log_probs(game.trie, scores, items, first, level)
  N = logp.shape[-1]
  # A node with nothing left to place goes on, once, without a token.
  some = first.any(-1, keepdims=True)
  legal = first | (~some & (jnp.arange(N) == 0)[None, None])
  total = jnp.where(legal, nodes.logp[..., None] + logp, -jnp.inf)
  total = jnp.maximum(total, 4 * legality.NEGATIVE)
  kept = keep(nodes, total, legal, t)
  parent, rank = kept.index // N, (kept.index % N).astype(jnp.int32)
  take = lambda x: prefix_lm.take(x, parent)
  flat = lambda x: jnp.take_along_axis(x.reshape(B, W * N), kept.index, 1)
  rank = jnp.where(take(some[..., 0]), rank, PAD)
  reached = jnp.where(kept.real, flat(total), 4 * legality.NEGATIVE)
  real = (rank >= 0) & (reached > legality.NEGATIVE / 2)
  mean = legality.mean_log_prob(logp, first)
  edge = jnp.asarray(t * W + jnp.arange(W), jnp.int32)
  edge = jnp.broadcast_to(edge, (B, W))
  # A slot that stays empty is fed, too, and seen: as chains and the learner do.
  seen = take(nodes.seen)
  seen |= jnp.arange(seen.shape[-1])[None, None] == edge[..., None]
  placed = take(nodes.placed)
  done = real & (level == policy.levels - 1)
  placed = placed.at[:, :, k].set(jnp.where(done, rank, placed[:, :, k]))
  code = jnp.take_along_axis(
    game.trie.codes[:, :, level], jnp.maximum(rank, 0), axis=1
  )
  record = (
    jnp.where(real, code, PAD),
    jnp.where(real, take(nodes.last), ROOT),
    jnp.where(real, flat(logp), 0),
    jnp.where(real, take(mean), 0),
  )
  new = Frontier(
    placed,
    jnp.where(real, rank, PAD),
    reached,
    kept.score,
    jnp.where(real, edge, take(nodes.last)),
    seen,
    take(nodes.state),
  )
  return new, record


def _as_tree(trie, nodes, edges) -> TokenTree:
  """The surviving nodes' edges; abandoned ones become padding."""
  token, parent, logp, mean = edges  # Each [B, T, W].
  B, T, W = token.shape
  E = T * W
  token, parent, logp, mean = (x.reshape(B, E) for x in edges)
  exists = nodes.logp > legality.NEGATIVE / 2
  place = jnp.arange(E, dtype=jnp.int32).reshape(T, W)[None, None]
  seen = nodes.seen & (exists[..., None] & (token != PAD)[:, None])
  seen = seen.reshape(B, W, T, W)
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
    trie, jnp.where(exists[..., None], nodes.placed, PAD)
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
