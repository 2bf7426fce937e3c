"""Rollouts: G chains a request, sampled or greedy, prompt prefilled once.

Letters: X states, Q one token a chain; the rest as in types.py.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rerank_rl.decoding import legality, tree
from rerank_rl.models.policy import Policy
from rerank_rl.models.prefix_lm import Prompt
from rerank_rl.types import PAD, Array, Catalogue, Request, TokenTree

# A code has 24 bits: fresh ones come in from below, too few to spoil its order.
_JITTER = 2.0**-12


class Game(NamedTuple):
  """A request made ready: its trie and the policy's view of it."""

  trie: legality.Trie
  prompt: Prompt


def prepare(
  policy: Policy, params, catalogue: Catalogue, request: Request
) -> Game:
  """Sorts the candidates and runs the encoder, once a request."""
  codes = policy.codes(catalogue, request)
  trie = legality.build(codes, request.candidates >= 0, request.size)
  return Game(trie, policy.prefill(params, catalogue, request, trie.order))


def ranks_of(trie: legality.Trie, slate: Array) -> Array:
  """Positions i32[B, G, K] as ranks, PAD where PAD."""
  B, G, K = slate.shape
  safe = jnp.maximum(slate, 0).reshape(B, G * K)
  rank = jnp.take_along_axis(trie.rank, safe, axis=1).reshape(B, G, K)
  return jnp.where(slate < 0, PAD, rank)


def positions_of(trie: legality.Trie, ranks: Array) -> Array:
  """Ranks i32[B, G, K] as positions, PAD where PAD."""
  B, G, K = ranks.shape
  safe = jnp.maximum(ranks, 0).reshape(B, G * K)
  place = jnp.take_along_axis(trie.order, safe, axis=1).reshape(B, G, K)
  return jnp.where(ranks < 0, PAD, place)


def chains(
  policy: Policy,
  params,
  game: Game,
  key: Array,
  group: int,
  temperature: float = 1.0,
  rules: Sequence[legality.Rule] = (),
) -> TokenTree:
  """Samples G independent slates a request.

  Args:
    policy: pure functions.
    params: its parameters.
    game: from `prepare`.
    key: PRNG key.
    group: G.
    temperature: of the explorer; 0 is greedy (ties to the lowest rank).
    rules: business rules.

  Returns:
    A TokenTree of G chains. `logp_old` is at temperature 1; `log_q` at the
    sampling temperature, NaN when greedy. `iid` is static: temperature 1.
  """
  T = policy.slots * policy.levels
  shape = (T, game.trie.order.shape[0], group)
  uniform = jax.random.uniform(key, shape, game.prompt.root.dtype)
  return _roll(policy, params, game, uniform, temperature, rules)


def stratified(
  policy: Policy,
  params,
  game: Game,
  key: Array,
  group: int,
  rules: Sequence[legality.Rule] = (),
) -> TokenTree:
  """Samples G slates a request that share its probability out evenly.

    u_g = (u + g / G) mod 1

  Arithmetic sampling (Vilnis et al. 2023): a number in [0, 1) is the arithmetic
  code of a slate, G numbers at equal distances are G slates. Each is a sample
  of the policy; together they are a tree in which a prefix of probability p
  has pG of the leaves, rounded up or down, where chance alone would vary.

  Args:
    policy: pure functions.
    params: its parameters.
    game: from `prepare`.
    key: PRNG key.
    group: G.
    rules: business rules.

  Returns:
    A TokenTree of G chains; not iid; `log_q` is that of each on its own.
  """
  T, B = policy.slots * policy.levels, game.trie.order.shape[0]
  dtype = game.prompt.root.dtype
  first, rest = jax.random.split(key)
  shift = jax.random.uniform(first, (B, 1), dtype)
  code = jnp.mod(shift + jnp.arange(group, dtype=dtype)[None] / group, 1)
  noise = jax.random.uniform(rest, (T - 1, B, group), dtype)
  uniform = jnp.concatenate([code[None], _JITTER * noise])
  return _roll(policy, params, game, uniform, 1.0, rules, carried=True)


def _roll(
  policy, params, game, uniform, temperature, rules, carried=False
) -> TokenTree:
  """Chains from uniform numbers f32[T, B, G], one a token.

  `carried`: what a token leaves of its number is added to the next one's.
  """
  trie, prompt = game
  T, B, group = uniform.shape
  K, L = policy.slots, policy.levels
  room = max(T - 1, 1)  # A slate may be a single token, and feed none.
  fed = jnp.arange(room)[None, None, None]

  def choose(placed, rank, state, t, uniform):
    slot, level = t // L, t % L
    at = jnp.full((B, group), slot, jnp.int32)
    legal = legality.alive(trie, placed, at, rules)
    items = legality.under(trie, legal, rank, level)
    scores = policy.logits(params, prompt, state, level)
    first = legality.children(trie, items, level)
    dist = legality.log_probs(trie, scores, items, first, level)
    mass = legality.masses(scores, items)
    if temperature == 0:
      rank = _likeliest(trie, mass, level)
      logq = jnp.full_like(uniform, jnp.nan)
    else:
      rank, logq = _draw(uniform, mass, dist, first, temperature)
    some = items.any(-1)
    left = jnp.zeros_like(uniform)
    if carried:
      own = _left(trie, uniform, mass, rank, level)
      left = jnp.where(some, own, uniform)
    rank = jnp.where(some, rank, PAD)
    put = jnp.where(level == L - 1, rank, placed[:, :, slot])
    logp = legality.log_prob_of(trie, mass, rank, level)
    mean = legality.mean_log_prob(dist, first)
    record = logp, mean, logp if logq is None else logq
    return placed.at[:, :, slot].set(put), rank, left, record

  def token(carry, xs):
    placed, rank, left, cache = carry
    t, uniform = xs
    uniform = jnp.mod(uniform + left, 1)
    state, cache = policy.step(
      params, prompt, cache, rank[:, :, None], t - 1, t - 1, fed < t
    )
    placed, rank, left, record = choose(
      placed, rank, state[:, :, 0], t, uniform
    )
    return (placed, rank, left, cache), record

  placed = jnp.full((B, group, K), PAD, jnp.int32)
  rank = jnp.full((B, group), PAD, jnp.int32)
  root = prompt.root[:, None]
  root = jnp.broadcast_to(root, (B, group, root.shape[-1]))
  # The first token is chosen from the prompt: T - 1 forward tokens.
  placed, rank, left, first = choose(placed, rank, root, 0, uniform[0])
  carry = placed, rank, left, policy.cache(prompt, group, room)
  xs = jnp.arange(1, T), uniform[1:]
  (placed, *_), rest = jax.lax.scan(token, carry, xs)
  logp, mean, logq = (
    jnp.concatenate([a[None], b]).transpose(1, 2, 0)
    for a, b in zip(first, rest, strict=True)
  )
  return tree.from_chains(
    tokens_of(trie, placed),
    logp,
    mean,
    positions_of(trie, placed),
    logq,
    iid=temperature == 1 and not carried,
  )


def _likeliest(trie, mass, level):
  """A rank i32[B, G] that the likeliest token leads to; of equals, the first.

  The tokens' distribution need not be known, nor which rank stands for each.
  """
  run = jnp.where(mass > 0, legality.run_sum(trie, mass, level), -1)
  return jnp.argmax(run, axis=-1).astype(jnp.int32)


def _draw(uniform, mass, dist, first, temperature):
  """A rank i32[B, G] that the next token leads to, and log q.

  By the inverse of the distribution function: one number f32[B, G] a chain,
  where Gumbels would need N. At temperature 1 an item is drawn by its mass
  f32[B, G, N], and the token is the one that leads to it: the tokens'
  distribution f32[B, G, N] need not be known, and log q, None, is log p.
  """
  if temperature == 1:
    return _invert(uniform, mass), None
  tempered = legality.renormalise(dist / temperature, first)
  best = _invert(uniform, jnp.where(first, jnp.exp(tempered), 0))
  return best, jnp.take_along_axis(tempered, best[..., None], axis=-1)[..., 0]


def _invert(uniform, mass):
  """The first rank i32[B, G] at which u of the mass f32[B, G, N] is reached."""
  # A product is quicker than a scan over the few ranks.
  upto = jnp.triu(jnp.ones((mass.shape[-1],) * 2, mass.dtype))
  below = jnp.matmul(mass, upto, precision="highest")
  reached = (below > uniform[..., None] * below[..., -1:]).astype(mass.dtype)
  best = jnp.argmax(jnp.where(mass > 0, reached, -1), axis=-1)
  return best.astype(jnp.int32)


def _left(trie, uniform, mass, rank, level):
  """Where in its token's share of the mass a number lies, from 0 to 1."""
  below, share = legality.interval_of(trie, mass, rank, level)
  left = (uniform - below) / jnp.maximum(share, jnp.finfo(share.dtype).tiny)
  return jnp.clip(left, 0, 1)


def tokens_of(trie: legality.Trie, placed: Array) -> Array:
  """Ranks i32[B, G, K] as tokens i32[B, G, K * L], PAD where PAD."""
  B, G, K = placed.shape
  L = trie.codes.shape[-1]
  flat = jnp.maximum(placed, 0).reshape(B, G * K)
  codes = jax.vmap(lambda c, i: c[i])(trie.codes, flat).reshape(B, G, K, L)
  return jnp.where((placed < 0)[..., None], PAD, codes).reshape(B, G, K * L)


def greedy(
  policy: Policy,
  params,
  catalogue: Catalogue,
  request: Request,
  rules: Sequence[legality.Rule] = (),
) -> Array:
  """The greedy slate i32[B, K] of positions: one pass, as at serving."""
  game = prepare(policy, params, catalogue, request)
  key = jax.random.key(0)  # Unused at temperature 0.
  out = chains(policy, params, game, key, 1, 0.0, rules)
  return out.slate[:, 0]
