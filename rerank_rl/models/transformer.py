"""Transformer blocks whose keys and values are explicit arrays.

Letters: Q queries that are processed together, C caches of a request (one
a rollout chain, or one for a whole tree), S places in such a cache, P prompt
tokens, H heads, d width, dh width of a head.
"""

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp

from rerank_rl.types import Array


@struct.dataclass
class KeyValue:
  """Keys and values of one layer.

  A stack's are a tuple, one a layer: stacked in one array they would be
  copied at every token instead of written in place.

  Attributes:
    key: f32[..., H, S, dh].
    value: f32[..., H, S, dh].
  """

  key: Array
  value: Array


def attend(query: Array, key: Array, mask: Array, scale: float) -> Array:
  """Masked attention scores f32[..., Q, S]; finite where masked."""
  scores = jnp.einsum("...qd,...sd->...qs", query, key) * scale
  return jnp.where(mask, scores, jnp.asarray(-1e9, scores.dtype))


class Block(nn.Module):
  """Pre-norm attention and MLP with GELU; `encode` and `extend` share it.

  Dropout acts where the caller gives the rng "dropout".
  """

  dim: int
  heads: int
  dtype: jnp.dtype
  dropout: float = 0.0

  def setup(self):
    self.drop = nn.Dropout(self.dropout)
    dense = lambda n, name: nn.Dense(
      n, dtype=self.dtype, param_dtype=self.dtype, name=name
    )
    norm = lambda name: nn.LayerNorm(
      dtype=self.dtype, param_dtype=self.dtype, name=name
    )
    self.norm_attention = norm("norm_attention")
    self.qkv = dense(3 * self.dim, "qkv")
    self.out = dense(self.dim, "out")
    self.norm_mlp = norm("norm_mlp")
    self.up = dense(4 * self.dim, "up")
    self.down = dense(self.dim, "down")

  def _project(self, x):
    """Queries, keys and values, each f32[..., H, Q, dh]."""
    parts = self.qkv(self.norm_attention(x))
    parts = parts.reshape(*x.shape[:-1], 3, self.heads, self.dim // self.heads)
    return [jnp.moveaxis(parts[..., i, :, :], -2, -3) for i in range(3)]

  def _finish(self, x, mixed):
    """Residual attention output, then the MLP."""
    mixed = jnp.moveaxis(mixed, -3, -2).reshape(x.shape)
    still = not self.has_rng("dropout")
    x = x + self.drop(self.out(mixed), deterministic=still)
    new = self.down(nn.gelu(self.up(self.norm_mlp(x))))
    return x + self.drop(new, deterministic=still)

  def encode(self, x, mask, since=0):
    """Self-attention over x f32[B, P, d] under mask bool[B, P, P].

    Args:
      x: f32[B, P, d].
      mask: bool[B, P, P].
      since: the first place whose outcome is asked for.

    Returns:
      (x f32[B, P - since, d], KeyValue f32[B, H, P, dh]).
    """
    query, key, value = self._project(x)
    scale = (self.dim // self.heads) ** -0.5
    query, mask = query[:, :, since:], mask[:, None, since:]
    share = jax.nn.softmax(attend(query, key, mask, scale))
    return self._finish(x[:, since:], share @ value), KeyValue(key, value)

  def append(self, x, past, bias, asked):
    """Attends to what was before and to itself.

    Args:
      x: f32[B, Q, d], new places.
      past: KeyValue f32[B, H, S, dh].
      bias: f32[B, H, A, S + Q], added to the scores.
      asked: i32[B, A], the places of x whose outcome is asked for; None = all.

    Returns:
      (x f32[B, A, d], KeyValue f32[B, H, Q, dh] of the new places).
    """
    query, key, value = self._project(x)
    if asked is not None:
      x = jnp.take_along_axis(x, asked[..., None], axis=1)
      query = jnp.take_along_axis(query, asked[:, None, :, None], axis=2)
    scale = (self.dim // self.heads) ** -0.5
    ask = lambda key: jnp.einsum("bhqd,bhsd->bhqs", query, key) * scale
    # Scores are short; keys and values, side by side, would be copied.
    scores = jnp.concatenate([ask(past.key), ask(key)], axis=-1)
    share = jax.nn.softmax(scores + bias)
    then, now = jnp.split(share, [past.key.shape[2]], axis=-1)
    mixed = then @ past.value + now @ value
    return self._finish(x, mixed), KeyValue(key, value)

  def extend(self, x, prompt, prompt_mask, cache, at, mask):
    """Attends to the shared prompt and to the request's own caches.

    Args:
      x: f32[B, C, Q, d], new tokens.
      prompt: KeyValue f32[B, H, P, dh], never repeated over C.
      prompt_mask: bool[B, P].
      cache: KeyValue f32[B, C, H, S, dh], or None: the new tokens alone.
      at: where in S the new tokens' keys are written.
      mask: bool[B or 1, C or 1, Q, S], own tokens that each query sees.

    Returns:
      (x, KeyValue f32[B, C, H, S, dh]).
    """
    query, key, value = self._project(x)
    if cache is not None:
      where = (0, 0, 0, at, 0)
      key = jax.lax.dynamic_update_slice(cache.key, key, where)
      value = jax.lax.dynamic_update_slice(cache.value, value, where)
    scale = (self.dim // self.heads) ** -0.5
    B, C, H, Q, dh = query.shape
    # Fold C into the queries: one product with the prompt for all caches.
    folded = query.swapaxes(1, 2).reshape(B, H, C * Q, dh)
    there = attend(folded, prompt.key, prompt_mask[:, None, None], scale)
    there = there.reshape(B, H, C, Q, -1).swapaxes(1, 2)
    own = attend(query, key, mask[:, :, None], scale)
    share = jax.nn.softmax(jnp.concatenate([there, own], axis=-1))
    there, own = jnp.split(share, [prompt.key.shape[2]], axis=-1)
    folded = there.swapaxes(1, 2).reshape(B, H, C * Q, -1) @ prompt.value
    mixed = folded.reshape(B, H, C, Q, dh).swapaxes(1, 2) + own @ value
    return self._finish(x, mixed), KeyValue(key, value)


class Transformer(nn.Module):
  """A stack of blocks and a final norm."""

  dim: int
  layers: int
  heads: int
  dtype: jnp.dtype
  dropout: float = 0.0

  def setup(self):
    self.blocks = [
      Block(self.dim, self.heads, self.dtype, self.dropout, name=f"block_{i}")
      for i in range(self.layers)
    ]
    self.norm = nn.LayerNorm(
      dtype=self.dtype, param_dtype=self.dtype, name="norm"
    )

  def encode(self, x, mask, since=0):
    """Encodes f32[B, P, d] under mask bool[B, P, P]; see `Block`.

    Returns:
      (normed x f32[B, P - since, d], KeyValue a layer).
    """
    memory = []
    for block in self.blocks:
      # Layers above ask of all places, but none stands above the last.
      last = block is self.blocks[-1]
      x, own = block.encode(x, mask, since if last else 0)
      memory.append(own)
    return self.norm(x), tuple(memory)

  def extend(self, x, prompt, prompt_mask, cache, at, mask):
    """x f32[B, C, Q, d] -> (normed x, KeyValue a layer); see `Block`."""
    if cache is None:
      cache = [None] * self.layers
    new = []
    for block, there, own in zip(self.blocks, prompt, cache, strict=True):
      x, own = block.extend(x, there, prompt_mask, own, at, mask)
      new.append(own)
    return self.norm(x), tuple(new)
