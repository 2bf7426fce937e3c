"""A policy as decoding sees it: a tuple of pure functions.

Letters as in prefix_lm.py.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rerank_rl.config import ConfigError, PolicyConfig, check_choice
from rerank_rl.models.hpn import ExpectedPolicy, HierarchicalPolicy
from rerank_rl.models.prefix_lm import (
  LocalIndexTransformer,
  PointerTransformer,
  Sizes,
  SlateTransformer,
  take,
)


class Policy(NamedTuple):
  """Pure functions of one policy; `levels` is 1 for pointer heads.

  Attributes:
    levels: tokens an item (L).
    slots: items a slate (K).
    init: (key, catalogue, request) -> params.
    even: params -> params that hardly prefer one item to another, for a policy
      that acts before it was shown anything.
    codes: (catalogue, request) -> i32[B, N, L], the candidates' tokens.
    prefill: (params, catalogue, request, order i32[B, N]) -> Prompt.
    step: (params, prompt, cache, rank i32[B, C, Q], t, at, mask) ->
      (state f32[B, C, Q, d], cache); feeds the token at depth t.
    logits: (params, prompt, state f32[B, X, d], level) -> f32[B, X, N], the
      items' scores by rank, which `legality.log_probs` sums to tokens';
      `level` may be traced. Of `wide` type, whatever the network's.
    states: (params, prompt, ranks i32[B, G, K]) -> f32[B, G, K, L, d], the
      states that choose the tokens of G slates a request.
    score: the same -> f32[B, G, K, L, N], their logits.
    cache: (prompt, C, S) -> KeyValue f32[B, C, H, S, dh] a layer, zeros.
  """

  levels: int
  slots: int
  init: Callable
  even: Callable
  codes: Callable
  prefill: Callable
  step: Callable
  logits: Callable
  states: Callable
  score: Callable
  cache: Callable


# In bf16 a gradient step of 1e-3 is lost to rounding. The last needs x64.
DTYPES = ("float32", "float64")

# A head is a module; the tokens of pointer heads are positions.
HEADS = {
  "global": SlateTransformer,
  "pointer": PointerTransformer,
  "local_index": LocalIndexTransformer,
  "hpn": HierarchicalPolicy,
  "hpn_expected": ExpectedPolicy,
}

# Those that read a request's goal.
GOAL_HEADS = tuple(
  name for name, kind in HEADS.items() if issubclass(kind, SlateTransformer)
)


def check(config: PolicyConfig) -> None:
  """Refuses what no policy can be.

  Raises:
    ConfigError: an unknown head or type, or heads that do not divide the
      width.
  """
  check_choice(config.head, HEADS, "config.policy.head")
  check_choice(config.dtype, DTYPES, "config.policy.dtype")
  if config.dim % config.heads:
    raise ConfigError(
      f"config.policy.dim={config.dim} is not a multiple of "
      f"config.policy.heads={config.heads}."
    )


@functools.cache
def make_policy(config: PolicyConfig, sizes: Sizes) -> Policy:
  """Builds the pure functions of a policy.

  The same arguments give the same functions, each jitted, so that programs
  that call one several times, and the stages of a run, trace it once.

  Args:
    config: widths and head.
    sizes: the data's sizes.

  Returns:
    A Policy.

  Raises:
    ConfigError: see `check`.
  """
  check(config)
  module = HEADS[config.head](config, sizes)
  L = module.tokens_per_item

  def by_rank(catalogue, request, order):
    return take(module.tokens_of(catalogue, request), order)

  def init(key, catalogue, request):
    B, N = request.candidates.shape
    order = jnp.broadcast_to(jnp.arange(N, dtype=jnp.int32), (B, N))
    tokens = by_rank(catalogue, request, order)
    params = module.init(
      key, catalogue, request, order, tokens, method="initialise"
    )["params"]
    return jax.tree.map(lambda x: x.astype(config.dtype), params)

  def prefill(params, catalogue, request, order):
    tokens = by_rank(catalogue, request, order)
    return module.apply(
      {"params": params}, catalogue, request, order, tokens, method="prompt"
    )

  def step(params, prompt, cache, rank, t, at, mask):
    return module.apply(
      {"params": params}, prompt, cache, rank, t, at, mask, method="extend"
    )

  def logits(params, prompt, state, level):
    query = module.apply({"params": params}, state, level, method="queries")
    keys = prompt.keys[:, level]
    return jnp.einsum("bxd,bnd->bxn", query, keys)

  def states(params, prompt, ranks):
    return _states(params, prompt, ranks, step, L)

  def score(params, prompt, ranks):
    return _by_level(logits, params, prompt, states(params, prompt, ranks))

  def cache(prompt, C, S):
    def empty(there):
      B, H, _, dh = there.shape
      return jnp.zeros((B, C, H, S, dh), there.dtype)

    return jax.tree.map(empty, prompt.memory)

  return Policy(
    L,
    sizes.slots,
    init,
    module.even,
    module.tokens_of,
    jax.jit(prefill),
    step,
    logits,
    states,
    jax.jit(score),
    cache,
  )


def _states(params, prompt, ranks, step, L):
  """Teacher forcing of G slates a request as path blocks: no tree mask.

  Each chain is causal within itself and shares the prompt's keys; the last
  token is never fed, since its edge is scored from its parent's state.
  """
  B, G, K = ranks.shape
  T = K * L
  states = jnp.broadcast_to(
    prompt.root[:, None, None], (B, G, 1, prompt.root.shape[-1])
  )
  if T > 1:
    fed = jnp.repeat(ranks, L, axis=2)[:, :, : T - 1]
    depth = jnp.arange(T - 1)[None, None]
    causal = jnp.tril(jnp.ones((T - 1, T - 1), bool))[None, None]
    later, _ = step(params, prompt, None, fed, depth, 0, causal)
    states = jnp.concatenate([states, later], axis=2)
  return states.reshape(B, G, K, L, -1)


def _by_level(logits, params, prompt, states):
  """Logits f32[B, G, K, L, N] of states f32[B, G, K, L, d]."""
  B, G, K, L, d = states.shape
  one = lambda state, level: logits(params, prompt, state, level)
  flat = states.reshape(B, G * K, L, d)
  out = jax.vmap(one, in_axes=(2, 0), out_axes=2)(flat, jnp.arange(L))
  return out.reshape(B, G, K, L, -1)
