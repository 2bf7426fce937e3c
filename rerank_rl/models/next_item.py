"""The next-item policy: an item-level trunk, a small token-level decoder.

The trunk reads a history causally, an item a position; an item's embedding is
the sum of its semantic ID's codes' and, where the configuration says so, one
of its own. From the trunk's state the decoder writes the next item's tokens:
a code's embedding and an MLP lead from one level's state to the next.

Letters: M items, V codes, L levels, H history, d width.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from rerank_rl.config import NextItemConfig, PolicyConfig
from rerank_rl.models import policy
from rerank_rl.models.transformer import Transformer


class Sizes(NamedTuple):
  """Static sizes of a catalogue's semantic IDs.

  Attributes:
    items: M.
    levels: L.
    codes: V, codes a level.
  """

  items: int
  levels: int
  codes: int


class NextItemPolicy(NamedTuple):
  """Pure functions of a policy over the whole catalogue.

  Attributes:
    levels: tokens an item (L).
    init: (key) -> params.
    encode: (params, sids i32[M, L], item i32[B, H], place i32[B, H]) ->
      f32[B, H, d], the states that choose each next item's first token; item
      and place as in `data.sequences.Windows`.
    step: (params, state f32[..., d], code i32[...], level) -> f32[..., d],
      the state after the token of `level`; PAD feeds nothing.
    logits: (params, state f32[..., d], level) -> f32[..., V], of all codes;
      `decoding.catalogue` tells which are legal.
    teach: (params, sids, item, place, target i32[B, H], key) -> L of
      f32[B, H, V], the logits along the targets' tokens; dropout acts where
      the key is not None.
  """

  levels: int
  init: Callable
  encode: Callable
  step: Callable
  logits: Callable
  teach: Callable


class NextItem(nn.Module):
  """The module behind a `NextItemPolicy`."""

  config: PolicyConfig
  task: NextItemConfig
  sizes: Sizes

  def setup(self):
    c, sizes = self.config, self.sizes
    dtype = jnp.dtype(c.dtype)
    table = nn.initializers.normal(c.dim**-0.5)
    param = lambda name, *shape: self.param(name, table, shape, dtype)
    dense = functools.partial(nn.Dense, dtype=dtype, param_dtype=dtype)
    each = range(sizes.levels)
    self.sid = param("sid", sizes.levels, sizes.codes, c.dim)
    self.past = param("past", self.task.history, c.dim)
    zeros = nn.initializers.zeros_init()
    if self.task.item_embedding:
      # From zero: an item that is hardly seen stays what its codes say.
      shape = (sizes.items, c.dim)
      self.own = self.param("own", zeros, shape, dtype)
    self.drop = nn.Dropout(self.task.dropout)
    self.body = Transformer(c.dim, c.layers, c.heads, dtype, self.task.dropout)
    norm = functools.partial(nn.LayerNorm, dtype=dtype, param_dtype=dtype)
    self.norms = [norm(name=f"norm_{level}") for level in each]
    self.ups = [dense(2 * c.dim, name=f"up_{level}") for level in each[:-1]]
    self.downs = [dense(c.dim, name=f"down_{level}") for level in each[:-1]]
    square = nn.initializers.lecun_normal(batch_axis=(0,))
    shape = (sizes.levels, c.dim, c.dim)
    self.query = self.param("query", square, shape, dtype)
    self.bias = self.param("bias", zeros, (sizes.levels, sizes.codes), dtype)

  def _dropped(self, x):
    return self.drop(x, deterministic=not self.has_rng("dropout"))

  def encode(self, sids, item, place):
    """States f32[B, H, d]; see `NextItemPolicy`."""
    real = place >= 0
    safe = jnp.maximum(item, 0)
    x = self.sid[jnp.arange(self.sizes.levels), sids[safe]].sum(-2)
    x = x + self.past[jnp.maximum(place, 0)]
    if self.task.item_embedding:
      x = x + self.own[safe]
    x = jnp.where(real[..., None], x, 0)
    sequence = jnp.cumsum(place == 0, axis=1)
    order = jnp.arange(item.shape[1])
    mask = sequence[:, :, None] == sequence[:, None]
    mask &= (order[None] <= order[:, None])[None] & real[:, None]
    states, _ = self.body.encode(self._dropped(x), mask)
    return self._dropped(states)

  def step(self, state, code, level):
    """The state after a token f32[..., d]."""
    fed = self.sid[level, jnp.maximum(code, 0)]
    x = state + jnp.where((code >= 0)[..., None], fed, 0)
    hidden = nn.gelu(self.ups[level](self.norms[level](x)))
    return x + self._dropped(self.downs[level](hidden))

  def logits(self, state, level):
    """Logits f32[..., V]; output embeddings are tied to the input's."""
    x = self.norms[-1](state) @ self.query[level]
    bias = self.bias[level]
    return x @ self.sid[level].T + bias.reshape((1,) * (x.ndim - 1) + (-1,))

  def teach(self, sids, item, place, target):
    """Logits along the targets' tokens, L of f32[B, H, V].

    Not stacked: the gradient of a stack is copied through every level.
    """
    state = self.encode(sids, item, place)
    codes = sids[jnp.maximum(target, 0)]
    out = [self.logits(state, 0)]
    for level in range(self.sizes.levels - 1):
      state = self.step(state, codes[..., level], level)
      out.append(self.logits(state, level + 1))
    return tuple(out)


@functools.cache
def make_policy(
  config: PolicyConfig, task: NextItemConfig, sizes: Sizes
) -> NextItemPolicy:
  """Builds the pure functions, jitted; the same arguments give the same ones.

  Raises:
    ConfigError: see `models.policy.check`.
  """
  policy.check(config)
  module = NextItem(config, task, sizes)
  call = lambda params, *args, method: module.apply(
    {"params": params}, *args, method=method
  )

  def init(key):
    sids = jnp.zeros((sizes.items, sizes.levels), jnp.int32)
    row = jnp.zeros((1, task.history), jnp.int32)
    return module.init(key, sids, row, row, row, method="teach")["params"]

  def teach(params, sids, item, place, target, key):
    rngs = {} if key is None else {"dropout": key}
    args = (sids, item, place, target)
    return module.apply({"params": params}, *args, rngs=rngs, method="teach")

  part = lambda method: functools.partial(call, method=method)
  return NextItemPolicy(
    sizes.levels,
    init,
    jax.jit(part("encode")),
    jax.jit(part("step"), static_argnums=3),
    jax.jit(part("logits"), static_argnums=2),
    jax.jit(teach),
  )
