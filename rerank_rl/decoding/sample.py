"""Rollouts: G chains a request, sampled or greedy, prompt prefilled once.

Letters: X states, Q one token a chain; the rest as in types.py.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rerank_rl.decoding import legality, tree
from rerank_rl.models.policy import Policy, Prompt
from rerank_rl.types import PAD, Array, Catalogue, Request, TokenTree


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
  trie, prompt = game
  B, N = trie.order.shape
  K, L = policy.slots, policy.levels
  cache = policy.cache(prompt, group, K * L - 1)

  def feed(cache, rank, depth):
    see = jnp.arange(K * L - 1)[None, None, None] <= depth
    state, cache = policy.step(
      params, prompt, cache, rank[:, :, None], depth, depth, see
    )
    return state[:, :, 0], cache

  def choose(state, legal, rank, level, key):
    first = legality.children(trie, legal, rank, level)
    logits = policy.logits(params, prompt, state, level)
    logp = legality.log_probs(logits, first)
    if temperature == 0:
      logq = jnp.full_like(logp, jnp.nan)
      score = jnp.where(first, logp, 2 * legality.NEGATIVE)
    else:
      logq = legality.log_probs(logp / temperature, first)
      noise = jax.random.gumbel(key, logp.shape, logp.dtype)
      score = jnp.where(first, logq + noise, 2 * legality.NEGATIVE)
    some = first.any(-1)
    best = jnp.where(some, jnp.argmax(score, axis=-1), PAD).astype(jnp.int32)
    take = lambda x: jnp.take_along_axis(
      x, jnp.maximum(best, 0)[..., None], axis=-1
    )[..., 0]
    mean = jnp.where(first, logp, 0).sum(-1) / jnp.maximum(first.sum(-1), 1)
    return best, jnp.where(some, take(logp), 0), take(logq), mean

  def slot(carry, slot_index, last):
    placed, cache, state = carry
    at = jnp.full((B, group), slot_index, jnp.int32)
    legal = legality.alive(trie, placed, at, rules)
    rank = jnp.full((B, group), PAD, jnp.int32)
    out = []
    for level in range(L):
      depth = slot_index * L + level
      step_key = jax.random.fold_in(key, depth)
      rank, *rest = choose(state, legal, rank, level, step_key)
      out.append(rest)
      if level < L - 1 or not last:
        state, cache = feed(cache, rank, depth)
    placed = placed.at[:, :, slot_index].set(rank)
    stacked = [jnp.stack(values, axis=-1) for values in zip(*out, strict=True)]
    return (placed, cache, state), stacked

  placed = jnp.full((B, group, K), PAD, jnp.int32)
  state = jnp.broadcast_to(
    prompt.root[:, None], (B, group, prompt.root.shape[-1])
  )
  carry, parts = jax.lax.scan(
    lambda c, k: slot(c, k, last=False),
    (placed, cache, state),
    jnp.arange(K - 1),
  )
  # The last slot's last token is chosen, not fed: T - 1 forward tokens.
  (placed, _, _), final = slot(carry, K - 1, last=True)
  logp, logq, mean = (
    jnp.concatenate([a, b[None]]).transpose(1, 2, 0, 3).reshape(B, group, -1)
    for a, b in zip(parts, final, strict=True)
  )
  return tree.from_chains(
    tokens_of(trie, placed),
    logp,
    mean,
    positions_of(trie, placed),
    logq,
    iid=temperature == 1,
  )


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
