"""The network of random network distillation: slates as random features."""

from flax import linen as nn
import jax.numpy as jnp

from rerank_rl.types import Array, Request


class Novelty(nn.Module):
  """Reads a request's history and a slate, item by item.

  One set of parameters stays random, another learns to predict it on the
  slates that were tried: what it predicts badly is new.

  Attributes:
    dim: width of its two layers and of its output.
  """

  dim: int = 64

  @nn.compact
  def __call__(self, features: Array, request: Request, slate: Array) -> Array:
    """Outputs f32[B, G, dim].

    Args:
      features: f32[M, F], the catalogue's.
      request: what the slates are for.
      slate: i32[B, G, K], positions in its candidates, or PAD.
    """
    B, G, K = slate.shape
    past = _traits(features, request.history)
    count = (request.history >= 0).sum(1, keepdims=True)
    past = past.sum(1) / jnp.maximum(count, 1)
    place = jnp.maximum(slate, 0).reshape(B, G * K)
    rows = jnp.take_along_axis(request.candidates, place, axis=1)
    rows = jnp.where(slate < 0, slate, rows.reshape(B, G, K))
    shown = _traits(features, rows).reshape(B, G, -1)
    past = jnp.broadcast_to(past[:, None], (B, G, past.shape[-1]))
    x = jnp.concatenate([past, shown], axis=-1)
    for _ in range(2):
      x = nn.gelu(nn.Dense(self.dim)(x))
    return nn.Dense(self.dim)(x)


def _traits(features: Array, rows: Array) -> Array:
  """Features f32[..., F] of catalogue rows i32[...], 0 at PAD."""
  return jnp.where((rows >= 0)[..., None], features[jnp.maximum(rows, 0)], 0)
