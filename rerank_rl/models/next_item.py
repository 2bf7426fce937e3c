"""The next-item policy: an item-level trunk, a small token-level decoder.

The trunk reads a history causally, an item a position. An item is the sum of
its prefixes, the nodes on its path through the catalogue's tree: a node is its
last code's embedding, which it shares, and a short one of its own. From the
trunk's state the decoder writes the next item's tokens: a node's embedding and
an MLP lead from one level's state to the next. A policy is several such members
that vote.

Letters: E members, M items, n nodes, V codes, L levels, H history, F children,
d width of a member's state; a policy's holds all members', side by side.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple, Protocol

from flax import linen as nn
import jax
import jax.numpy as jnp

from rerank_rl.config import NextItemConfig, PolicyConfig
from rerank_rl.models import policy
from rerank_rl.models.prefix_lm import CODES
from rerank_rl.models.transformer import Transformer
from rerank_rl.types import Array


class Sizes(NamedTuple):
  """Static sizes of a catalogue's semantic IDs.

  Attributes:
    nodes: n, distinct prefixes, the empty one among them.
    levels: L.
    codes: V, codes a level.
  """

  nodes: int
  levels: int
  codes: int


class Nodes(Protocol):
  """What the policy reads of a catalogue (`decoding.catalogue.Tree`).

  Attributes:
    path: i32[M, L], item -> the nodes from its first token to its leaf.
    code: i32[n], the token that leads to each node.
  """

  path: Array
  code: Array


def at_codes(logits: Array, code: Array) -> Array:
  """Logits f32[..., F] of codes i32[..., F], from f32[..., V]; PAD as 0."""
  # As one vector: gradients of a gather along an axis cost far more.
  V = logits.shape[-1]
  row = jnp.arange(0, logits.size, V, dtype=jnp.int32)
  row = row.reshape(*code.shape[:-1], 1)
  return logits.ravel()[jnp.maximum(code, 0) + row]


class NextItemPolicy(NamedTuple):
  """Pure functions of a policy over the whole catalogue.

  Dropout acts where the last argument, a key, is not None.

  Attributes:
    levels: tokens an item (L).
    init: (key) -> params.
    encode: (params, nodes, item i32[B, H], place i32[B, H], key) ->
      f32[B, H, d], the states that choose each next item's first token; item
      and place as in `data.sequences.Windows`.
    step: (params, nodes, state f32[..., d], node i32[...], level, key) ->
      f32[..., d], the state after the token of `level` that leads to a node;
      PAD feeds nothing.
    logits: (params, nodes, state f32[..., d], child i32[..., F], level) ->
      f32[..., F], of a node's children; anything at PAD.
  """

  levels: int
  init: Callable
  encode: Callable
  step: Callable
  logits: Callable


class NextItem(nn.Module):
  """The module behind a member."""

  config: PolicyConfig
  task: NextItemConfig
  sizes: Sizes

  def setup(self):
    c, sizes = self.config, self.sizes
    dtype = jnp.dtype(c.dtype)
    param = lambda name, *shape: self.param(name, CODES, shape, dtype)
    dense = functools.partial(nn.Dense, dtype=dtype, param_dtype=dtype)
    each = range(sizes.levels)
    self.sid = param("sid", sizes.levels, sizes.codes, c.dim)
    self.past = param("past", self.task.history, c.dim)
    zeros, short = nn.initializers.zeros_init(), self.task.own_dim
    # From zero: a prefix that is hardly seen stays what its codes say.
    self.own = self.param("own", zeros, (sizes.nodes, short), dtype)
    lecun = nn.initializers.lecun_normal()
    self.widen = self.param("widen", lecun, (short, c.dim), dtype)
    self.drop = nn.Dropout(self.task.dropout)
    self.drop_item = nn.Dropout(self.task.item_dropout)
    self.body = Transformer(c.dim, c.layers, c.heads, dtype, self.task.dropout)
    norm = functools.partial(nn.LayerNorm, dtype=dtype, param_dtype=dtype)
    self.norm_item = norm()
    self.norms = [norm(name=f"norm_{level}") for level in each]
    self.ups = [dense(2 * c.dim, name=f"up_{level}") for level in each[:-1]]
    self.downs = [dense(c.dim, name=f"down_{level}") for level in each[:-1]]
    square = nn.initializers.lecun_normal(batch_axis=(0,))
    shape = (sizes.levels, c.dim, c.dim)
    self.query = self.param("query", square, shape, dtype)
    self.bias = self.param("bias", zeros, (sizes.levels, sizes.codes), dtype)

  def encode(self, nodes, item, place):
    """States f32[B, H, d]; see `NextItemPolicy`."""
    real = place >= 0
    path = nodes.path[jnp.maximum(item, 0)]
    code = nodes.code[path]
    x = self.sid[jnp.arange(self.sizes.levels), code].sum(-2)
    x = x + self.own[path].sum(-2) @ self.widen
    x = self.norm_item(x + self.past[jnp.maximum(place, 0)])
    x = jnp.where(real[..., None], x, 0)
    sequence = jnp.cumsum(place == 0, axis=1)
    order = jnp.arange(item.shape[1])
    mask = sequence[:, :, None] == sequence[:, None]
    mask &= (order[None] <= order[:, None])[None] & real[:, None]
    x = self.drop_item(x, deterministic=not self.has_rng("dropout"))
    return self.body.encode(x, mask)[0]

  def step(self, nodes, state, node, level):
    """The state after a token f32[..., d]."""
    safe = jnp.maximum(node, 0)
    fed = self.sid[level, nodes.code[safe]] + self.own[safe] @ self.widen
    x = state + jnp.where((node >= 0)[..., None], fed, 0)
    hidden = nn.gelu(self.ups[level](self.norms[level](x)))
    new = self.downs[level](hidden)
    return x + self.drop(new, deterministic=not self.has_rng("dropout"))

  def logits(self, nodes, state, child, level):
    """Logits f32[..., F]; output embeddings are tied to the input's.

    Nodes of the first level are codes: nothing of their own is needed there.
    """
    x = self.norms[-1](state) @ self.query[level]
    bias = self.bias[level]
    every = x @ self.sid[level].T + bias.reshape((1,) * (x.ndim - 1) + (-1,))
    safe = jnp.maximum(child, 0)
    out = at_codes(every, nodes.code[safe])
    if level:
      near = x @ self.widen.T
      out = out + jnp.einsum("...fr,...r->...f", self.own[safe], near)
    return out

  def everything(self, nodes, item):
    """Calls all parts once, so that they get their parameters."""
    state = self.encode(nodes, item, item)[:, 0]
    for level in range(self.sizes.levels):
      self.logits(nodes, state, item, level)
      if level < self.sizes.levels - 1:
        state = self.step(nodes, state, item[:, 0], level)


@functools.cache
def make_member(
  config: PolicyConfig, task: NextItemConfig, sizes: Sizes
) -> NextItemPolicy:
  """Builds the pure functions, jitted; the same arguments give the same ones.

  Raises:
    ConfigError: see `models.policy.check`.
  """
  policy.check(config)
  module = NextItem(config, task, sizes)

  def call(method, params, *args, key=None):
    rngs = {} if key is None else {"dropout": key}
    return module.apply({"params": params}, *args, method=method, rngs=rngs)

  def init(key):
    nowhere = _Nowhere(
      jnp.zeros((1, sizes.levels), jnp.int32),
      jnp.zeros(sizes.nodes, jnp.int32),
    )
    row = jnp.zeros((1, task.history), jnp.int32)
    return module.init(key, nowhere, row, method="everything")["params"]

  def encode(params, nodes, item, place, key=None):
    return call("encode", params, nodes, item, place, key=key)

  def step(params, nodes, state, node, level, key=None):
    return call("step", params, nodes, state, node, level, key=key)

  def logits(params, nodes, state, child, level):
    return call("logits", params, nodes, state, child, level)

  return _jitted(sizes.levels, init, encode, step, logits)


@functools.cache
def ensemble(member: NextItemPolicy, count: int) -> NextItemPolicy:
  """The policy of E members that share nothing but the catalogue.

    p(token | prefix) ~ exp(mean_e log p_e(token | prefix))

  over the legal tokens; what one member has learnt of the noise the others
  outvote. Parameters have a leading axis E.
  """

  def keys_of(key):
    return None if key is None else jax.random.split(key, count)

  def joined(states):
    return jnp.moveaxis(states, 0, -2).reshape(*states.shape[1:-1], -1)

  def apart(state):
    states = state.reshape(*state.shape[:-1], count, -1)
    return jnp.moveaxis(states, -2, 0)

  def init(key):
    return jax.vmap(member.init)(keys_of(key))

  def encode(params, nodes, item, place, key=None):
    each = lambda params, key: member.encode(params, nodes, item, place, key)
    return joined(jax.vmap(each)(params, keys_of(key)))

  def step(params, nodes, state, node, level, key=None):
    def each(params, state, key):
      return member.step(params, nodes, state, node, level, key)

    return joined(jax.vmap(each)(params, apart(state), keys_of(key)))

  def logits(params, nodes, state, child, level):
    def each(params, state):
      return member.logits(params, nodes, state, child, level)

    return jax.vmap(each)(params, apart(state)).mean(0)

  return _jitted(member.levels, init, encode, step, logits)


def _jitted(levels, init, encode, step, logits) -> NextItemPolicy:
  """A policy of functions, compiled once a level where they take one."""
  at_level = functools.partial(jax.jit, static_argnums=4)
  return NextItemPolicy(
    levels, init, jax.jit(encode), at_level(step), at_level(logits)
  )


class _Nowhere(NamedTuple):
  """`Nodes` of one item, to begin with."""

  path: Array
  code: Array
