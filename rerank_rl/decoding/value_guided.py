"""Value-guided search: the best node is branched first, under a budget.

V-STAR's VED (arXiv 2602.10699). One token a request is fed at each step, in
every request at once: either the walk in hand goes on or, where a slate has
just been completed, a new branch is begun at the node that is worth most. So no
forward pass is idle, every branch ends in a slate, and the budget is the number
of steps.

Letters: S steps (forward tokens a request), M = S + 1 nodes (node 0 is the
prompt, node i + 1 the token that step i fed), G <= S - T + 2 leaves.
"""

from collections.abc import Callable, Sequence
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rerank_rl.decoding import legality, sample, tree
from rerank_rl.models import prefix_lm
from rerank_rl.models.policy import Policy
from rerank_rl.models.prefix_lm import Prompt
from rerank_rl.types import PAD, ROOT, Array, TokenTree

# (prompt, state f32[B, X, d], level i32[], left i32[B, X]) -> f32[B, X, N]: by
# rank, what this item and later ones are worth once its token of that level
# is chosen; `left` slots are still to fill, this one included.
Value = Callable[[Prompt, Array, Array, Array], Array]


class Nodes(NamedTuple):
  """What is known of each node.

  Attributes:
    depth: i32[B, M], tokens so far: the depth t at which it chooses.
    placed: i32[B, M, K], ranks.
    rank: i32[B, M], any rank under its prefix.
    path: i32[B, M, T], the edges that lead to it, PAD beyond.
    logp: f32[B, M, N], log-probabilities of its children, NEGATIVE where
      not legal.
    worth: f32[B, M, N], values of its children.
    open: bool[B, M, N], legal children that no branch has taken.
    onward: i32[B, M], the child that a walk goes on to.
    priority: f32[B, M], G(s) = V(s) + entropy * H(s).
    visits: i32[B, M], branches that it has begun.
    leaf: bool[B, M], whether its walk ended here.
  """

  depth: Array
  placed: Array
  rank: Array
  path: Array
  logp: Array
  worth: Array
  open: Array
  onward: Array
  priority: Array
  visits: Array
  leaf: Array


def value_guided(
  policy: Policy,
  params,
  value: Value,
  game: sample.Game,
  budget: int,
  entropy: float = 0.1,
  explore: float = 1.0,
  trust: float = 0.01,
  rules: Sequence[legality.Rule] = (),
  leaves: int | None = None,
  key: Array | None = None,
) -> TokenTree:
  """Grows a tree of whole slates, best node first.

    G(s) = V(s) + entropy H(s), H over the legal children
    U(s) = G(s) + explore sqrt(ln(n + 1) / (N(s) + 1))
    V(s) = V(root) + sum over the path of Q(s_t, a_t) - V(s_t)

  n branches have been begun, N(s) of them at s. The critic's Q and V are of
  what is still to come, so that a node is worth what its tokens have gained.
  Only a decisive node, whose G is at least the mean of its depth's, is
  branched: the one of largest U among those whose branch the budget can still
  complete. If no decisive node is left, any that can be completed will do. It
  is branched at the open child of largest log p + Q / trust, the best under a
  policy held near the one that walks. Without a key the first walk is the
  policy's greedy slate, and branches are completed greedily; with one, walks
  are drawn from the policy.

  Args:
    policy: pure functions.
    params: its parameters.
    value: worth of children; a node's V is their mean under the policy.
    game: from `sample.prepare`.
    budget: S, forward tokens a request without the prompt, >= T - 1.
    entropy: weight of the children's entropy.
    explore: weight of the visits' bonus.
    trust: of the policy against the critic, in units of the reward.
    rules: business rules; a slot that they leave empty ends the slate.
    leaves: most slates, G, for who cannot take all that the budget allows;
      tokens are left over where cheap branches fill them.
    key: of the walks that rollouts take, None for a search.

  Returns:
    A TokenTree; not iid; `log_q` is NaN. Leaves beyond those found are PAD.

  Raises:
    ValueError: a budget that completes no slate.
  """
  B, N = game.trie.order.shape
  K, L, S = policy.slots, policy.levels, budget
  T, M = K * L, budget + 1
  G = S - T + 2 if leaves is None else min(leaves, S - T + 2)
  if S < max(T - 1, 1):
    raise ValueError(
      f"budget={budget} completes no slate; a greedy one takes {T - 1} tokens."
    )
  dtype = game.prompt.root.dtype

  look = functools.partial(_children, policy, params, value, game, rules)

  def choose(i, logp):
    if key is None:
      return jnp.argmax(logp, -1).astype(jnp.int32)
    drawn = jax.random.categorical(jax.random.fold_in(key, i), logp)
    return drawn.astype(jnp.int32)

  def put(nodes, i, state, depth, placed, rank, path, alive, known):
    """The nodes with node i, where alive, and its children."""
    logp, worth, legal = look(state, placed, rank, depth)
    p = jnp.where(legal, jnp.exp(logp), 0)
    own = (p * worth).sum(-1)
    known = own if known is None else known
    worth = jnp.where(legal, worth + (known - own)[:, None], 0)
    new = Nodes(
      depth=jnp.where(alive, depth, PAD),
      placed=placed,
      rank=rank,
      path=path,
      logp=logp,
      worth=worth,
      open=legal & alive[:, None],
      onward=choose(i, logp),
      priority=known - entropy * (p * logp).sum(-1),
      visits=jnp.zeros((B,), jnp.int32),
      leaf=alive & ((depth == T - 1) | ~legal.any(-1)),
    )
    return jax.tree.map(lambda x, y: x.at[:, i].set(y), nodes, new)

  row = jnp.arange(B)
  # The depth of a leaf: the last token of a full slate is never fed.
  ends = jnp.minimum(T - 1, L * legality.length(game.trie))

  def step(carry, i):
    nodes, cache, here = carry
    ended = nodes.leaf[row, here]
    node, fits = _select(nodes, ends, S - i, T, explore)
    fits &= nodes.leaf.sum(1) < G
    node = jnp.where(ended, node, here)
    alive = ~ended | fits
    at = jax.tree.map(lambda x: x[row, node], nodes)
    order = at.logp + at.worth / trust
    best = jnp.argmax(jnp.where(at.open, order, 2 * legality.NEGATIVE), -1)
    rank = jnp.where(ended, best, at.onward).astype(jnp.int32)
    seen = (at.path[:, :, None] == jnp.arange(S)[None, None]).any(1)
    seen |= jnp.arange(S)[None] == i
    state, cache = policy.step(
      params,
      game.prompt,
      cache,
      rank[:, None, None],
      at.depth[:, None, None],
      i,
      seen[:, None, None],
    )
    level, slot = at.depth % L, at.depth // L
    old = at.placed[row, slot]
    placed = at.placed.at[row, slot].set(jnp.where(level == L - 1, rank, old))
    path = at.path.at[row, at.depth].set(i)
    taken = jnp.where(alive, rank, N)
    nodes = nodes._replace(
      open=nodes.open.at[row, node, taken].set(False, mode="drop"),
      visits=nodes.visits.at[row, node].add(ended & fits),
    )
    nodes = put(
      nodes,
      i + 1,
      state[:, 0, 0],
      at.depth + 1,
      placed,
      rank,
      path,
      alive,
      at.worth[row, rank],
    )
    here = jnp.where(alive, i + 1, here)
    code = game.trie.codes[row, rank, level]
    return (nodes, cache, here), (
      jnp.where(alive, code, PAD),
      at.logp[row, rank],
    )

  nothing = lambda *shape: jnp.full((B, M, *shape), PAD, jnp.int32)
  number = lambda *shape: jnp.zeros((B, M, *shape), dtype)
  never = lambda *shape: jnp.zeros((B, M, *shape), bool)
  nodes = Nodes(
    depth=nothing(),
    placed=nothing(K),
    rank=nothing(),
    path=nothing(T),
    logp=number(N),
    worth=number(N),
    open=never(N),
    onward=nothing(),
    priority=number(),
    visits=jnp.zeros((B, M), jnp.int32),
    leaf=never(),
  )
  first = jnp.zeros((B,), jnp.int32)
  nodes = put(
    nodes,
    0,
    game.prompt.root,
    first,
    nodes.placed[:, 0],
    nodes.rank[:, 0],
    nodes.path[:, 0],
    jnp.ones((B,), bool),
    None,
  )
  carry = nodes, policy.cache(game.prompt, 1, S), first
  (nodes, _, _), edges = jax.lax.scan(step, carry, jnp.arange(S))
  token, logp = (x.swapaxes(0, 1) for x in edges)
  return _as_tree(game.trie, nodes, token, logp, G)


def _select(nodes, ends, left, T, explore):
  """The node i32[B] to branch, and whether there is one bool[B]."""
  B, M = nodes.depth.shape
  fits = nodes.open.any(-1) & (nodes.depth >= 0) & ~nodes.leaf
  fits &= ends[:, None] - nodes.depth <= left
  at = (nodes.depth[..., None] == jnp.arange(T)[None, None]).astype(
    nodes.priority.dtype
  )
  count = jnp.maximum(at.sum(1), 1)
  mean = jnp.einsum("bm,bmt->bt", nodes.priority, at) / count
  decisive = nodes.priority >= jnp.einsum("bt,bmt->bm", mean, at)
  total = nodes.visits.sum(1, keepdims=True)
  bonus = jnp.sqrt(jnp.log(total + 1.0) / (nodes.visits + 1))
  score = nodes.priority + explore * bonus
  gated = fits & decisive
  allowed = jnp.where(gated.any(1, keepdims=True), gated, fits)
  score = jnp.where(allowed, score, 2 * legality.NEGATIVE)
  return jnp.argmax(score, 1), fits.any(1)


def _children(policy, params, value, game, rules, state, placed, rank, depth):
  """Children of one node a request: log-probabilities, values, legal [B, N].

  Depths differ between requests, so each request is a batch of its own.
  """
  L = policy.levels

  def one(trie, prompt, state, placed, rank, depth):
    trie, prompt = jax.tree.map(lambda x: x[None], (trie, prompt))
    state, placed, rank, t = (
      x[None, None] for x in (state, placed, rank, depth)
    )
    level = depth % L
    left = legality.length(trie)[:, None] - t // L
    alive = legality.alive(trie, placed, t // L, rules)
    items = legality.under(trie, alive, rank, level)
    legal = legality.children(trie, items, level)
    scores = policy.logits(params, prompt, state, level)
    logp = legality.log_probs(trie, scores, items, legal, level)
    mass = legality.masses(scores, items)
    worth = legality.run_mean(
      trie, value(prompt, state, level, left), mass, level
    )
    return logp[0, 0], jnp.where(legal, worth, 0)[0, 0], legal[0, 0]

  return jax.vmap(one)(game.trie, game.prompt, state, placed, rank, depth)


def _as_tree(trie, nodes, token, logp, G) -> TokenTree:
  """Edges: S fed tokens, then the last token of each of G leaves."""
  B, S = token.shape
  K, T = nodes.placed.shape[2], nodes.path.shape[2]
  order = jnp.argsort(~nodes.leaf, axis=1)[:, :G]
  take = lambda x: prefix_lm.take(x, order)
  found, path, placed = take(nodes.leaf), take(nodes.path), take(nodes.placed)
  # The last token is chosen at the leaf's state: no forward.
  last = take(nodes.onward)
  ends = found & take(nodes.open).any(-1)
  own = S + jnp.arange(G, dtype=jnp.int32)[None]
  path = path.at[:, :, T - 1].set(jnp.where(ends, own, PAD))
  path = jnp.where(found[..., None], path, PAD)
  put = jnp.where(ends, last, placed[:, :, K - 1])
  placed = placed.at[:, :, K - 1].set(put)
  take_last = lambda x: jnp.take_along_axis(x, last[..., None], -1)[..., 0]
  code = prefix_lm.take(trie.codes[:, :, -1], last)
  parent = jnp.where(ends, path[:, :, T - 2] if T > 1 else ROOT, ROOT)
  real = token != PAD
  depth = nodes.depth[:, 1:] - 1
  before = jnp.take_along_axis(
    nodes.path[:, 1:], jnp.maximum(depth - 1, 0)[..., None], -1
  )[..., 0]
  legal = nodes.logp > legality.NEGATIVE / 2
  mean = legality.mean_log_prob(nodes.logp, legal)
  both = lambda a, b: jnp.concatenate([a, b], axis=1)
  zero = lambda x: jnp.where(real, x, 0)
  all_logp = both(zero(logp), jnp.where(ends, take_last(take(nodes.logp)), 0))
  out = TokenTree(
    token=both(token, jnp.where(ends, code, PAD)),
    parent=both(jnp.where(real & (depth > 0), before, ROOT), parent),
    depth=both(zero(depth), jnp.where(ends, T - 1, 0)),
    logp_old=all_logp,
    log_q=jnp.where(both(real, ends), jnp.nan, 0.0).astype(logp.dtype),
    mean_logp_old=both(zero(mean[:, 1:]), jnp.zeros((B, G), logp.dtype)),
    weight=jnp.zeros_like(all_logp),
    path=path,
    slate=sample.positions_of(trie, jnp.where(found[..., None], placed, PAD)),
    iid=False,
  )
  share = jnp.full((B, G, T), 1 / G, logp.dtype)
  return out.replace(weight=tree.sum_to_edges(out, share))
