"""Supervised rerankers that emit no tokens: PRM and NAR4Rec.

Both read the request with the policy's own encoder, so that they differ from
it in the output alone. Each is a few pure functions: `init`, `logits` of every
candidate (a slot for NAR4Rec), and `train_logits`, those that it learns by.
"""

from collections.abc import Callable
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from rerank_rl.config import PolicyConfig
from rerank_rl.models.prefix_lm import Sizes, SlateTransformer
from rerank_rl.types import PAD, Array, Request

_NEVER = -1e9


class Reranker(NamedTuple):
  """Pure functions of one supervised reranker.

  Attributes:
    init: (key, catalogue, request) -> params.
    logits: (params, catalogue, request) -> f32[B, J, N]; J is 1 for a
      pointwise model, K for one that matches slots with items.
    train_logits: the same, f32[B, K, N], plus a learnt bias of each slot:
      what an item owes to its place is not laid at its door.
  """

  init: Callable
  logits: Callable
  train_logits: Callable


class Matching(nn.Module):
  """Encoder states matched with J learnt queries.

  J = 1 scores every item in the context of all (PRM, arXiv:1904.06813);
  J = K matches each slot with each item in one shot (NAR4Rec,
  arXiv:2402.06871).
  """

  config: PolicyConfig
  sizes: Sizes
  queries: int

  def setup(self):
    self.encoder = SlateTransformer(self.config, self.sizes)
    init = nn.initializers.normal(self.config.dim**-0.5)
    dtype = jnp.dtype(self.config.dtype)
    shape = (self.queries, self.config.dim)
    self.query = self.param("query", init, shape, dtype)
    self.mix = nn.Dense(self.config.dim, dtype=dtype, param_dtype=dtype)
    self.bias = nn.Dense(1, dtype=dtype, param_dtype=dtype)
    zeros = nn.initializers.zeros_init()
    self.place = self.param("place", zeros, (self.sizes.slots,), dtype)

  def placed(self, catalogue, request):
    """f32[B, K, N]: logits with the slots' biases."""
    return self(catalogue, request) + self.place[None, :, None]

  def __call__(self, catalogue, request):
    """f32[B, J, N]."""
    start, context = self.encoder.states(catalogue, request)
    query = self.query[None] + self.mix(start)[:, None]
    scores = jnp.einsum("bjd,bnd->bjn", query, context)
    return scores + self.bias(context)[..., 0][:, None]


def make_reranker(config: PolicyConfig, sizes: Sizes, queries: int) -> Reranker:
  """Builds a `Reranker` with J = queries (1: PRM, K: NAR4Rec)."""
  module = Matching(config, sizes, queries)

  def init(key, catalogue, request):
    return module.init(key, catalogue, request, method="placed")["params"]

  def logits(params, catalogue, request):
    return module.apply({"params": params}, catalogue, request)

  def train_logits(params, catalogue, request):
    return module.apply({"params": params}, catalogue, request, method="placed")

  return Reranker(init, logits, train_logits)


def assign(logits: Array, request: Request, slots: int) -> Array:
  """Fills the slots from the top, each with the best item left.

  Args:
    logits: f32[B, J, N]; J = 1 sorts one score, J = K matches slots.
    request: whose candidates and sizes count.
    slots: K.

  Returns:
    i32[B, K], positions, PAD after the last.
  """
  B, J, N = logits.shape
  used = request.candidates < 0
  slate = []
  for k in range(slots):
    score = jnp.where(used, _NEVER, logits[:, min(k, J - 1)])
    best = jnp.argmax(score, axis=1).astype(jnp.int32)
    full = used.all(1) | (k >= request.size)
    slate.append(jnp.where(full, PAD, best))
    used |= jnp.arange(N)[None] == best[:, None]
  return jnp.stack(slate, axis=1)


def directions(features: Array, request: Request) -> Array:
  """The candidates' features f32[M, F] at length 1: f32[B, N, F]."""
  own = features[jnp.maximum(request.candidates, 0)]
  length = jnp.linalg.norm(own, axis=-1, keepdims=True)
  return own / jnp.maximum(length, 1e-6)


def mmr(
  relevance: Array, features: Array, request: Request, slots: int, trade: float
) -> Array:
  """Maximal marginal relevance (Carbonell and Goldstein 1998).

  argmax trade * rel_i - (1 - trade) * max_{j shown} cos(i, j), in turn, with
  relevance scaled to [0, 1] in each request.

  Args:
    relevance: f32[B, N].
    features: f32[M, F], whose cosine is the similarity.
    request: the requests.
    slots: K.
    trade: 1 = relevance alone.

  Returns:
    i32[B, K], positions, PAD after the last.
  """
  N = relevance.shape[1]
  real = request.candidates >= 0
  low = jnp.where(real, relevance, jnp.inf).min(1, keepdims=True)
  high = jnp.where(real, relevance, -jnp.inf).max(1, keepdims=True)
  relevance = (relevance - low) / jnp.maximum(high - low, 1e-6)
  unit = directions(features, request)
  used, near, slate = ~real, jnp.zeros_like(relevance), []
  for k in range(slots):
    score = trade * relevance - (1 - trade) * near
    best = jnp.argmax(jnp.where(used, _NEVER, score), axis=1).astype(jnp.int32)
    full = used.all(1) | (k >= request.size)
    slate.append(jnp.where(full, PAD, best))
    used |= jnp.arange(N)[None] == best[:, None]
    shown = jax.vmap(lambda u, i: u[i])(unit, best)
    cosine = jnp.einsum("bnf,bf->bn", unit, shown)
    near = cosine if k == 0 else jnp.maximum(near, cosine)
  return jnp.stack(slate, axis=1)
