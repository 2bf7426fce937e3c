"""The nearest centroid, the same one on every compiler's path."""

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from rerank_rl.types import Array

_BLOCK = 8  # Coordinates added in one step of the loop.


def checked_vectors(vectors: Array, width: int | None = None) -> np.ndarray:
  """`vectors` as a finite host array [M, D], or a ValueError.

  Args:
    vectors: [M, D], any real dtype; integers become f32.
    width: the D that a codebook asks for; None accepts any D >= 1.
  """
  vectors = np.asarray(vectors)
  if not np.issubdtype(vectors.dtype, np.floating):
    vectors = vectors.astype(np.float32)
  if vectors.ndim != 2 or vectors.shape[1] == 0:
    raise ValueError(
      f"vectors has shape {vectors.shape}; give [items, dimensions]."
    )
  if width is not None and vectors.shape[1] != width:
    raise ValueError(
      f"vectors has {vectors.shape[1]} columns but the codebook was fitted"
      f" on {width}; encode with the features that it was fitted on."
    )
  bad = ~np.isfinite(vectors).all(axis=1)
  if bad.any():
    raise ValueError(
      f"vectors row {int(bad.argmax())} (of {int(bad.sum())} such rows) holds"
      " a value that is not finite; clean or drop these items."
    )
  return vectors


def code(centroids: Array, points: Array) -> jax.Array:
  """argmin_v |x - c_v|^2, ties to the lowest: f32[..., D] -> i32[...]."""
  distances = squared_distances(points, centroids)
  return lax.argmin(distances, distances.ndim - 1, jnp.int32)


def squared_distances(points: Array, centroids: Array) -> jax.Array:
  """|x - c_v|^2 with the same bits however the program is compiled.

  A matrix product sums in an order that depends on the batch, and a compiler
  may or may not fuse x * x + s into one rounding; either can turn a near tie.
  Here d = x - c is split into a high half h and a low half l of its mantissa,
  so that h * h and 2 h * l are exact and fusing changes nothing, and they are
  added in coordinate order; l * l lies below the rounding of the sum.

  Args:
    points: f32[..., D].
    centroids: f32[V, D], the same dtype.

  Returns:
    f32[..., V].
  """
  points, centroids = jnp.asarray(points), jnp.asarray(centroids)
  kind = jnp.finfo(points.dtype)
  low_bits = (kind.nmant + 2) // 2
  bits = jnp.dtype(f"uint{kind.bits}")
  mask = jnp.asarray(np.array(2**kind.bits - 2**low_bits, bits))
  pad = -points.shape[-1] % _BLOCK
  columns = jnp.moveaxis(points, -1, 0)
  columns = jnp.pad(columns, [(0, pad)] + [(0, 0)] * (points.ndim - 1))
  coordinates = jnp.pad(centroids.T, [(0, pad), (0, 0)])
  lead = (1,) * (points.ndim - 1)

  def add_block(block, total):
    for offset in range(_BLOCK):
      d = block * _BLOCK + offset
      c = coordinates[d].reshape(lead + (-1,))
      gap = columns[d][..., None] - c
      high = lax.bitcast_convert_type(
        lax.bitcast_convert_type(gap, bits) & mask, gap.dtype
      )
      low = gap - high
      total = total + high * high
      total = total + (2 * high) * low
    return total

  total = jnp.zeros_like(points, shape=points.shape[:-1] + centroids.shape[:1])
  return lax.fori_loop(0, columns.shape[0] // _BLOCK, add_block, total)
