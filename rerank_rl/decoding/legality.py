"""Which tokens are legal: one rule for every head and every decoder.

A request's items sorted by semantic ID form a trie in which every prefix is
an interval of ranks. A rank is an item's place in that order; a token at
level l is stood for by the first legal rank of its run. So a distribution
over legal tokens is a distribution over at most N ranks, and the next prefix
is the run that was chosen: no table of V codes is ever built. A token's
probability is the sum over the legal items that it leads to.

Letters: X states of a request (rollouts, or rollouts times slots).
"""

from collections.abc import Callable, Sequence

from flax import struct
import jax
import jax.numpy as jnp

from rerank_rl.types import Array

# Finite, so that masked log-probabilities times zero stay zero.
NEGATIVE = -1e9


class Trie(struct.PyTreeNode):
  """The items of each request, sorted lexicographically by semantic ID.

  Attributes:
    order: i32[B, N], rank -> position in the request's candidates.
    rank: i32[B, N], position -> rank.
    codes: i32[B, N, L], codes by rank; PAD rows last.
    start: i32[B, L, N], first rank of the run that shares codes 0..l.
    stop: i32[B, L, N], one past the run's last rank.
    real: bool[B, N], False at padding.
    size: i32[B], slots to fill.
  """

  order: Array
  rank: Array
  codes: Array
  start: Array
  stop: Array
  real: Array
  size: Array


# A rule maps (trie, placed i32[B, X, K], slot i32[B, X]) to bool[B, X, N]
# over ranks; rules are composed by "and".
Rule = Callable[[Trie, Array, Array], Array]


def build(codes: Array, real: Array, size: Array) -> Trie:
  """Sorts each request's items into a trie.

  Args:
    codes: i32[B, N, L], distinct rows where real.
    real: bool[B, N].
    size: i32[B].

  Returns:
    The Trie.
  """
  B, N, L = codes.shape
  position = jnp.broadcast_to(jnp.arange(N, dtype=jnp.int32), (B, N))
  columns = [codes[:, :, level] for level in range(L)]
  fake, *columns, order = jax.lax.sort(
    [(~real).astype(jnp.int32), *columns, position],
    dimension=1,
    num_keys=L + 1,
  )
  codes = jnp.stack(columns, axis=-1)
  rank = jnp.argsort(order, axis=1).astype(jnp.int32)
  # A run at level l ends where any of the codes 0..l changes.
  change = jnp.cumsum(codes[:, 1:] != codes[:, :-1], axis=-1) > 0
  change |= (fake[:, 1:] != fake[:, :-1])[..., None]
  edge = jnp.ones((B, 1, L), bool)
  first = jnp.concatenate([edge, change], axis=1).swapaxes(1, 2)
  last = jnp.concatenate([change, edge], axis=1).swapaxes(1, 2)
  place = position[:, None]
  start = jax.lax.cummax(jnp.where(first, place, 0), axis=2)
  stop = jax.lax.cummin(jnp.where(last, place + 1, N), axis=2, reverse=True)
  return Trie(order, rank, codes, start, stop, fake == 0, size)


def length(trie: Trie) -> Array:
  """Slots that a request's slate fills, i32[B]: candidates may be fewer."""
  return jnp.minimum(trie.size, trie.real.sum(-1).astype(jnp.int32))


def alive(
  trie: Trie, placed: Array, slot: Array, rules: Sequence[Rule] = ()
) -> Array:
  """Items that may still be placed.

  Args:
    trie: the requests' items.
    placed: i32[B, X, K], ranks already placed, PAD elsewhere.
    slot: i32[B, X], the slot to fill.
    rules: business rules; all must allow an item, so that a slot at which
      they contradict each other stays empty.

  Returns:
    bool[B, X, N] over ranks.
  """
  N = trie.order.shape[1]
  used = (placed[..., None] == jnp.arange(N)[None, None, None]).any(2)
  legal = trie.real[:, None] & ~used
  legal &= (slot < trie.size[:, None])[..., None]
  for rule in rules:
    legal &= rule(trie, placed, slot)
  return legal


def under(trie: Trie, legal: Array, rank: Array, level: Array) -> Array:
  """Legal items that the current prefix leads to.

  Args:
    trie: the requests' items.
    legal: bool[B, X, N] over ranks, from `alive`.
    rank: i32[B, X], any rank under the current prefix (ignored at level 0).
    level: i32[], level of the token to choose; may be traced.

  Returns:
    bool[B, X, N] over ranks.
  """
  place = jnp.arange(legal.shape[-1])[None, None]
  safe, above = jnp.maximum(rank, 0), jnp.maximum(level - 1, 0)
  low = jnp.take_along_axis(trie.start[:, above], safe, axis=1)
  high = jnp.take_along_axis(trie.stop[:, above], safe, axis=1)
  inside = (place >= low[..., None]) & (place < high[..., None])
  return legal & ((level == 0) | (inside & (rank >= 0)[..., None]))


def _by_run(x: Array, mask: Array) -> Array:
  """Sums f32[B, X, N] over the ranks j that mask bool[B, i, j] gives to i.

  A product is quicker than scans over the few ranks, and has no order.
  """
  return jnp.einsum(
    "bxj,bij->bxi", x, mask.astype(x.dtype), precision="highest"
  )


def children(trie: Trie, items: Array, level: Array) -> Array:
  """Legal next tokens, each stood for by the first legal rank of its run.

  Args:
    trie: the requests' items.
    items: bool[B, X, N] over ranks, from `under`.
    level: i32[], level of the token to choose; may be traced.

  Returns:
    bool[B, X, N], True at one rank a legal token.
  """
  place = jnp.arange(items.shape[-1])
  ahead = trie.start[:, level][..., None] <= place[None, None]
  ahead &= (place[None] < place[:, None])[None]
  return items & (_by_run(items.astype(jnp.float32), ahead) == 0)


def log_probs(
  trie: Trie, scores: Array, items: Array, first: Array, level: Array
) -> Array:
  """Log-probabilities of the legal tokens: each is worth its items.

    p(token | prefix) = sum_{i legal under prefix, token} exp(score_i)
                        / sum_{i legal under prefix} exp(score_i)

  A prefix is as good as the best that it still leads to, not as the mean.

  Args:
    trie: the requests' items.
    scores: f32[B, X, N] by rank.
    items: bool[B, X, N], from `under`.
    first: bool[B, X, N], from `children`.
    level: i32[], level of the token to choose; may be traced.

  Returns:
    f32[B, X, N]; NEGATIVE where not legal, 0 everywhere if nothing is. No
    legal token falls below the logarithm of the type's least number.
  """
  mass = masses(scores, items)
  tiny = jnp.finfo(scores.dtype).tiny
  run = jnp.log(jnp.maximum(run_sum(trie, mass, level), tiny))
  logp = run - jnp.log(jnp.maximum(mass.sum(-1, keepdims=True), tiny))
  logp = jnp.where(first, logp, NEGATIVE)
  return jnp.where(first.any(-1, keepdims=True), logp, 0.0)


def masses(scores: Array, items: Array) -> Array:
  """exp(score) of the items bool[B, X, N], 0 elsewhere; the largest is 1."""
  masked = jnp.where(items, scores, NEGATIVE)
  top = jax.lax.stop_gradient(masked.max(-1, keepdims=True))
  return jnp.where(items, jnp.exp(masked - top), 0)


def run_sum(trie: Trie, values: Array, level: Array) -> Array:
  """Each rank's token: the sum over its run.

  Args:
    trie: the requests' items.
    values: f32[B, X, N] by rank, such as `masses`.
    level: i32[], level of the token; may be traced.

  Returns:
    f32[B, X, N], equal within a run.
  """
  place = jnp.arange(values.shape[-1])[None, None]
  # Bounds against places are vectorised; start against start is not.
  inside = place >= trie.start[:, level][..., None]
  inside &= place < trie.stop[:, level][..., None]
  return _by_run(values, inside)


def run_mean(trie: Trie, values: Array, mass: Array, level: Array) -> Array:
  """Each token's value: the mean of its items', weighted by their mass.

  Args:
    trie: the requests' items.
    values: f32[B, X, N] by rank.
    mass: f32[B, X, N], from `masses`.
    level: i32[], level of the token; may be traced.

  Returns:
    f32[B, X, N], equal within a run; 0 where a run has no mass.
  """
  tiny = jnp.finfo(mass.dtype).tiny
  below = jnp.maximum(run_sum(trie, mass, level), tiny)
  return run_sum(trie, values * mass, level) / below


def log_prob_of(trie: Trie, mass: Array, rank: Array, level: Array) -> Array:
  """`log_probs` of the one token that leads to a rank.

  Args:
    trie: the requests' items.
    mass: f32[B, X, N], from `masses`.
    rank: i32[B, X], a legal item's; PAD gives 0.
    level: i32[], level of the token; may be traced.

  Returns:
    f32[B, X].
  """
  _, run = _around(trie, mass, rank, level)
  tiny = jnp.finfo(mass.dtype).tiny
  log = lambda x: jnp.log(jnp.maximum(x, tiny))
  return jnp.where(rank >= 0, log(run) - log(mass.sum(-1)), 0)


def interval_of(
  trie: Trie, mass: Array, rank: Array, level: Array
) -> tuple[Array, Array]:
  """The share of probability before a token, in the order of ranks; its own.

  Args as in `log_prob_of`.

  Returns:
    Two f32[B, X].
  """
  before, run = _around(trie, mass, rank, level)
  total = jnp.maximum(mass.sum(-1), jnp.finfo(mass.dtype).tiny)
  return before / total, run / total


def _around(trie, mass, rank, level):
  """The mass f32[B, X] before a rank's run at a level, and of the run."""
  place = jnp.arange(mass.shape[-1])[None, None]
  safe = jnp.maximum(rank, 0)
  low = jnp.take_along_axis(trie.start[:, level], safe, axis=1)[..., None]
  high = jnp.take_along_axis(trie.stop[:, level], safe, axis=1)[..., None]
  of = lambda where: jnp.where(where, mass, 0).sum(-1)
  return of(place < low), of((place >= low) & (place < high))


def mean_log_prob(logp: Array, first: Array) -> Array:
  """Mean f32[...] of log-probabilities f32[..., N] over `first`; 0 if none."""
  total = jnp.where(first, logp, 0).sum(-1)
  return total / jnp.maximum(first.sum(-1), 1)


def renormalise(logits: Array, first: Array) -> Array:
  """Log-softmax f32[..., N] over `first`, NEGATIVE elsewhere; 0 if none."""
  masked = jnp.where(first, logits, NEGATIVE)
  logp = jnp.where(first, jax.nn.log_softmax(masked, axis=-1), NEGATIVE)
  return jnp.where(first.any(-1, keepdims=True), logp, 0.0)


def pin(positions: Array) -> Rule:
  """A rule: candidate `positions[b, k]` is shown at slot k and nowhere else.

  Args:
    positions: i32[B, K], positions in candidates, PAD where free.
  """

  def rule(trie: Trie, placed: Array, slot: Array) -> Array:
    N = trie.order.shape[1]
    here = jnp.take_along_axis(
      positions, jnp.minimum(slot, positions.shape[1] - 1), axis=1
    )
    match = trie.order[:, None] == here[..., None]
    pinned = (positions[:, None] == jnp.arange(N)[None, :, None]).any(-1)
    by_rank = jnp.take_along_axis(pinned, trie.order, axis=1)[:, None]
    return jnp.where((here >= 0)[..., None], match, ~by_rank)

  return rule


def cap(groups: Array, limit: Array) -> Rule:
  """A rule: at most `limit[b]` items of one group a slate.

  Args:
    groups: i32[B, N], group of each candidate, by position.
    limit: i32[B].
  """

  def rule(trie: Trie, placed: Array, slot: Array) -> Array:
    del slot
    by_rank = jnp.take_along_axis(groups, trie.order, axis=1)
    B, X, K = placed.shape
    flat = jnp.maximum(placed, 0).reshape(B, X * K)
    shown = jnp.take_along_axis(by_rank, flat, axis=1).reshape(B, X, K)
    same = shown[..., None] == by_rank[:, None, None]
    count = (same & (placed >= 0)[..., None]).sum(2)
    return count < limit[:, None, None]

  return rule
