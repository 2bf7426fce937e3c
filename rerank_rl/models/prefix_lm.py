"""The prefix-LM: reads a request once, then a slate's tokens one by one.

Prompt: user, history (causal), candidates (a set), start. Every position of
a token's row is a rank (the candidates sorted by semantic ID), so that the
encoder sees the same array however the candidates were permuted.

Letters: P = H + N + 2 prompt tokens (one more with a goal), X states, d
width; C, Q, S as in transformer.py.
"""

import functools
from typing import NamedTuple

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp

from rerank_rl.config import PolicyConfig
from rerank_rl.models import reader
from rerank_rl.models.transformer import KeyValue, Transformer
from rerank_rl.types import Array

RANK = 16  # Dimensions in which the ranker's scores are regressed.
CODES = nn.initializers.normal(0.02)  # Larger, rare codes stay noise.


class Sizes(NamedTuple):
  """Static sizes of the data: what the parameters' shapes depend on.

  Attributes:
    codes: V, codes a level of the catalogue's semantic IDs.
    levels: L of the catalogue's semantic IDs.
    slots: K, items a slate.
    history: H.
    candidates: N.
  """

  codes: int
  levels: int
  slots: int
  history: int
  candidates: int


@struct.dataclass
class Prompt:
  """A request as the decoder needs it; computed once a request.

  Attributes:
    root: f32[B, d], state from which the first token is chosen.
    memory: a KeyValue f32[B, H, P, dh] a layer.
    mask: bool[B, P], real prompt tokens.
    inputs: f32[B, N, L, d], by rank, what feeding the level's token adds.
    keys: f32[B, L, N, d], by rank, what scores the item at that level.
  """

  root: Array
  memory: tuple[KeyValue, ...]
  mask: Array
  inputs: Array
  keys: Array


def take(values: Array, index: Array) -> Array:
  """values[b, index[b, x]]: [B, N, ...] by i32[B, X] -> [B, X, ...]."""
  return jax.vmap(lambda v, i: v[i])(values, index)


class SemanticTokens:
  """What heads share whose tokens are semantic IDs' codes."""

  sizes: Sizes

  @property
  def tokens_per_item(self):
    """L of this head's tokens."""
    return self.sizes.levels

  @staticmethod
  def tokens_of(catalogue, request):
    """i32[B, N, L]: the candidates' semantic IDs."""
    return catalogue.sids[jnp.maximum(request.candidates, 0)]


class SlateTransformer(SemanticTokens, nn.Module):
  """The prefix-LM; heads differ in tokens and output embeddings alone."""

  config: PolicyConfig
  sizes: Sizes

  def setup(self):
    c = self.config
    dtype = jnp.dtype(c.dtype)
    table = nn.initializers.normal(c.dim**-0.5)
    param = lambda name, *shape: self.param(name, table, shape, dtype)
    dense = functools.partial(
      nn.Dense, c.dim, dtype=dtype, param_dtype=dtype, use_bias=False
    )
    sizes = self.sizes
    shape = (sizes.levels, sizes.codes, c.dim)
    self.sid = self.param("sid", CODES, shape, dtype)
    self.slot = param("slot", sizes.slots, c.dim)
    self.level = param("level", sizes.levels, c.dim)
    self.kind = param("kind", 4, c.dim)
    self.past = param("past", sizes.history, c.dim)
    self.tower = reader.Tower(c.dim, RANK, 0.0)
    self.reader = reader.Reader(c.dim, RANK, 0.0)
    self.facts = dense()
    self.meet = dense()
    square = nn.initializers.lecun_normal(batch_axis=(0,))
    square_shape = (sizes.levels, c.dim, c.dim)
    self.bridge = self.param("bridge", square, square_shape, dtype)
    self.goal = dense()
    self.gate = dense()
    self.body = Transformer(c.dim, c.layers, c.heads, dtype)
    self.query = self.param("query", square, square_shape, dtype)
    self.placed = dense()

  def _codes(self, catalogue, rows):
    """Sum of the codes' embeddings f32[..., d] of items i32[...]."""
    x = self._embedded(catalogue.sids[jnp.maximum(rows, 0)]).sum(-2)
    return jnp.where((rows >= 0)[..., None], x, 0)

  def _embedded(self, tokens):
    """Embeddings f32[..., L, d] of the codes i32[..., L] of semantic IDs."""
    return self.sid[jnp.arange(self.sizes.levels), tokens]

  def _read(self, catalogue, request):
    """Embeds history and candidates as the reader's user sees them.

    Returns:
      (past f32[B, H, d], items f32[B, N, d], user f32[B, d]).
    """
    H = request.history.shape[1]
    rows = jnp.concatenate([request.history, request.candidates], axis=1)
    safe = jnp.maximum(rows, 0)
    table = catalogue.features.astype(self.slot.dtype)
    # Embed no more items than needed; a symbolic batch counts as a small one.
    if not isinstance(rows.size, int) or rows.size < table.shape[0]:
      table = table[safe.ravel()]
      safe = jnp.arange(rows.size).reshape(rows.shape)
    traits = self.tower(table)
    past, shown = traits.at(safe[:, :H]), traits.at(safe[:, H:])
    user, mean, covariance = self.reader(request, past, shown)
    fit = jnp.einsum("bnr,br->bn", shown.phi, mean)
    doubt = jnp.sum(shown.phi * (shown.phi @ covariance), -1)
    facts = [fit, doubt, request.scores, shown.facts[..., 0]]
    own = self.facts(jnp.stack(facts, axis=-1))
    own += shown.code + self.meet(shown.code) * user[:, None]
    codes = self._codes(catalogue, rows)
    return past.code + codes[:, :H], own + codes[:, H:], user

  def encode(self, catalogue, request, order):
    """Embeds the request and runs the encoder, candidates by rank.

    Returns:
      (start f32[B, d], context f32[B, N, d], memory, real bool[B, P]).
    """
    B, N = order.shape
    H = request.history.shape[1]
    # By rank, so that sums over the set run in one order.
    by_rank = lambda x: jnp.take_along_axis(x, order, axis=1)
    scores = by_rank(request.scores).astype(self.slot.dtype)
    request = request.replace(
      candidates=by_rank(request.candidates), scores=scores
    )
    past, items, user = self._read(catalogue, request)
    x = jnp.concatenate(
      [
        self._users(request, user),
        past + self.past[None] + self.kind[1][None, None],
        self._indexed(items, order) + self.kind[2][None, None],
        jnp.broadcast_to(self.kind[3], (B, 1, self.config.dim)),
      ],
      axis=1,
    )
    U = x.shape[1] - H - N - 1
    one = jnp.ones((B, U), bool)
    real = jnp.concatenate(
      [one, request.history >= 0, request.candidates >= 0, one[:, :1]], axis=1
    )
    mask = _prefix_mask(U, H, N)[None] & real[:, None]
    states, memory = self.body.encode(x, mask, since=U + H)
    return states[:, -1], states[:, :N], memory, real

  def states(self, catalogue, request):
    """Encoder alone, in the candidates' own order: (start, context)."""
    order = jnp.broadcast_to(
      jnp.arange(request.candidates.shape[1]), request.candidates.shape
    )
    return self.encode(catalogue, request, order)[:2]

  def prompt(self, catalogue, request, order, tokens):
    """The `Prompt` of requests whose tokens by rank are i32[B, N, L]."""
    root, context, memory, real = self.encode(catalogue, request, order)
    inputs = self._inputs(tokens, context)
    if request.goal is not None:
      # Whether to show more like what is placed, or less, is the goal's to say.
      inputs *= 1 + self.gate(request.goal)[:, None, None]
    return Prompt(
      root=root,
      memory=memory,
      mask=real,
      inputs=inputs,
      keys=self._keys(tokens, context, order),
    )

  def _users(self, request, user):
    """User tokens f32[B, 1 or 2, d]: the user, and a goal where asked."""
    user = (user + self.kind[0][None])[:, None]
    if request.goal is None:
      return user
    return jnp.concatenate([user, self.goal(request.goal)[:, None]], axis=1)

  def _indexed(self, items, order):
    """Adds what a head needs to be told of the candidates' order."""
    return items

  def _inputs(self, tokens, context):
    """What a token feeds: its code and, once complete, the item's state."""
    return self._embedded(tokens).at[:, :, -1].add(self.placed(context))

  def _keys(self, tokens, context, order):
    """What items are scored by: the code's embedding, tied, and their state.

    A code means the same in every request; the states of the candidates that
    carry it tell what it is worth in this one.
    """
    bridged = jnp.einsum("bnd,lde->blne", context, self.bridge)
    return self._embedded(tokens).swapaxes(1, 2) + bridged

  def extend(self, prompt, cache, rank, t, at, mask):
    """Feeds tokens; see `Policy.step`. t i32 broadcastable to rank."""
    B, C, Q = rank.shape
    L = prompt.inputs.shape[2]
    depth = jnp.broadcast_to(t, rank.shape)
    N = prompt.inputs.shape[1]
    flat = prompt.inputs.reshape(B, N * L, -1)
    index = jnp.maximum(rank, 0) * L + depth % L
    x = take(flat, index.reshape(B, C * Q)).reshape(B, C, Q, -1)
    x = jnp.where((rank >= 0)[..., None], x, 0)
    x += self.slot[depth // L] + self.level[depth % L]
    return self.body.extend(x, prompt.memory, prompt.mask, cache, at, mask)

  def queries(self, state, level):
    """Projects states f32[B, X, d] for the level's output embeddings."""
    return state @ self.query[level]

  @staticmethod
  def even(params):
    """All items are as likely: first queries meet keys at random, and far."""
    return {**params, "query": jnp.zeros_like(params["query"])}

  def initialise(self, catalogue, request, order, tokens):
    """Touches every parameter; only for `init`."""
    prompt = self.prompt(catalogue, request, order, tokens)
    rank = jnp.zeros((order.shape[0], 1, 1), jnp.int32)
    mask = jnp.ones((1, 1, 1, 1), bool)
    self.extend(prompt, None, rank, 0, 0, mask)
    self.queries(prompt.root[:, None], 0)


class PointerTransformer(SlateTransformer):
  """The same with one token an item; keys are the candidates' states."""

  @property
  def tokens_per_item(self):
    """A position is one token."""
    return 1

  @staticmethod
  def tokens_of(catalogue, request):
    """i32[B, N, 1]: the candidates' positions."""
    place = jnp.arange(request.candidates.shape[1], dtype=jnp.int32)
    return jnp.broadcast_to(place[:, None], (*request.candidates.shape, 1))

  def _inputs(self, tokens, context):
    return self.placed(context)[:, :, None]

  def _keys(self, tokens, context, order):
    return context[:, None]


class LocalIndexTransformer(PointerTransformer):
  """GloRank's ablation: the token is the item's index in the request."""

  def setup(self):
    super().setup()
    table = nn.initializers.normal(self.config.dim**-0.5)
    shape = (self.sizes.candidates, self.config.dim)
    dtype = jnp.dtype(self.config.dtype)
    self.index_in = self.param("index_in", table, shape, dtype)
    self.index_out = self.param("index_out", table, shape, dtype)

  def _indexed(self, items, order):
    return items + self.index_in[order]

  def _keys(self, tokens, context, order):
    return self.index_out[order][:, None]


def _prefix_mask(users: int, history: int, candidates: int) -> Array:
  """bool[P, P]: user; causal history; a set of candidates; a start token."""
  P = users + history + candidates + 1
  place = jnp.arange(P)
  kind = jnp.digitize(place, jnp.array([users, users + history, P - 1]))
  earlier = kind[None] < kind[:, None]
  same = kind[None] == kind[:, None]
  causal = place[None] <= place[:, None]
  return earlier | (same & (causal | (kind != 1)[:, None]))
