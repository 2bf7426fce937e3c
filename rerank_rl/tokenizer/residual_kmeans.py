"""Residual k-means: a codebook that turns a vector into L codes.

Level l clusters what the levels above left over. With r_0 = x,

    z_l = argmin_v |r_l - c_{l,v}|^2,    r_{l+1} = r_l - c_{l,z_l},

and x is approximated by the sum of c_{l,z_l} over l (residual vector
quantisation; Chen et al. 2010, "Approximate nearest neighbor search by
residual vector quantization"). Fitting is k-means++ (Arthur and Vassilvitskii
2007) and Lloyd's iterations at each level; codes that lose all their points
restart at the points that are described worst.

`balanced=True` solves Lloyd's assignment step under the constraint that every
code gets M / V points: a price a code, found by Sinkhorn's iteration (Cuturi
2013) until the shares are right, then rounding to counts that differ by at
most one. The constraint shapes the centroids only: encoding stays the pure
nearest code, so a new item needs no other item to be encoded.

    codebook = residual_kmeans.fit(
      jax.random.key(0), vectors, levels=3, codes=256, iterations=25,
      balanced=False)
    codes = semantic_ids.encode(codebook, vectors)     # i32[M, 3]
"""

import functools

from flax import struct
import jax
from jax import lax
import jax.numpy as jnp

from rerank_rl.tokenizer import nearest
from rerank_rl.types import Array

_CHUNK = 4096  # Points whose distances to all codes are held at once.
_SAMPLE = 64  # k-means++ and prices look at this many points a code.
# Sinkhorn: an over-relaxed step (Thibault et al. 2021); temperatures, as
# shares of the mean error, and the share of points that may sit with the
# wrong code, while centroids move and once they rest; a bound on sweeps.
_STEP = 1.5
_MOVING = (0.1,), 0.02
_RESTING = (0.1, 0.03, 0.01), 0.002
_MAX_SWEEPS = 300


@struct.dataclass
class Codebook:
  """Centroids of every level.

  Attributes:
    centroids: f32[L, V, D], finite. Where there were fewer distinct points
      than codes the spare codes repeat a point: legal, but never nearest.
  """

  centroids: Array

  @property
  def levels(self) -> int:
    """L."""
    return self.centroids.shape[0]

  @property
  def codes(self) -> int:
    """V."""
    return self.centroids.shape[1]


def fit(
  key: jax.Array,
  vectors: Array,
  levels: int,
  codes: int,
  iterations: int,
  balanced: bool,
) -> Codebook:
  """Fits a codebook to vectors, level by level.

  Args:
    key: a PRNG key; the same key and vectors give the same codebook.
    vectors: f32[M, D], finite.
    levels: L >= 1.
    codes: V >= 1, codes a level; may exceed M.
    iterations: Lloyd iterations a level, >= 1.
    balanced: whether Lloyd's assignments hold M / V points a code.

  Returns:
    The Codebook, in the vectors' floating dtype.

  Raises:
    ValueError: a wrong shape, a value that is not finite, a count below 1.
  """
  for name, value in (
    ("levels", levels),
    ("codes", codes),
    ("iterations", iterations),
  ):
    if value < 1:
      raise ValueError(f"tokenizer.{name}={value} must be at least 1.")
  residual = jnp.asarray(nearest.checked_vectors(vectors))
  if residual.shape[0] == 0:
    raise ValueError("vectors has no rows; a codebook needs at least 1 item.")
  centroids = []
  for level_key in jax.random.split(key, levels):
    level = fit_level(level_key, residual, codes, iterations, balanced)
    centroids.append(level)
    residual = _descend(level, residual)
  return Codebook(centroids=jnp.stack(centroids))


@jax.jit
def _descend(centroids: jax.Array, residual: jax.Array) -> jax.Array:
  """What one level leaves of residual [M, D], chunk by chunk."""
  blocks, _ = _in_chunks(residual)
  step = lambda x: x - centroids[nearest.code(centroids, x)]
  left = lax.map(step, blocks)
  return left.reshape(-1, residual.shape[1])[: residual.shape[0]]


@functools.partial(jax.jit, static_argnames=("codes", "balanced"))
def fit_level(
  key: jax.Array,
  points: jax.Array,
  codes: int,
  iterations: int,
  balanced: bool,
) -> jax.Array:
  """k-means of one level; pure.

  Args:
    key: a PRNG key.
    points: f32[M, D], M >= 1.
    codes: V.
    iterations: of Lloyd.
    balanced: see the module.

  Returns:
    f32[V, D], the centroids.
  """
  centre = points.mean(axis=0)  # Products of centred points cancel less.
  points = points - centre[None]
  blocks, real = _in_chunks(points)
  pick_key, start_key = jax.random.split(key)
  rows = jax.random.permutation(pick_key, points.shape[0])[: _SAMPLE * codes]
  sample = points[rows]
  centroids = _plus_plus(start_key, sample, codes)
  price = jnp.zeros_like(points, shape=(codes,))

  def lloyd(_, state):
    centroids, price = state
    if balanced:
      price = _prices(sample, centroids, price, *_MOVING)
    code, _ = _choose(blocks, centroids, price)
    return _update(blocks, real, code, centroids), price

  state = (centroids, price)
  centroids, price = lax.fori_loop(0, iterations, lloyd, state)
  if balanced:
    price = _prices(sample, centroids, price, *_RESTING)
    code = balanced_codes(points, centroids, price)
    code = _pad_rows(code, real.size).reshape(real.shape)
    centroids = _update(blocks, real, code, centroids)
  return centroids + centre[None]


def _pad_rows(x: jax.Array, rows: int) -> jax.Array:
  return jnp.pad(x, [(0, rows - x.shape[0])] + [(0, 0)] * (x.ndim - 1))


def _in_chunks(points: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Points [M, D] as [n, C, D], zero-padded, and which of them are real."""
  size = min(_CHUNK, points.shape[0])
  rows = -(-points.shape[0] // size) * size
  blocks = _pad_rows(points, rows).reshape(-1, size, points.shape[1])
  real = jnp.arange(rows) < points.shape[0]
  return blocks, real.reshape(-1, size)


def _plus_plus(key: jax.Array, points: jax.Array, codes: int) -> jax.Array:
  """k-means++: each next start is a point drawn in proportion to its error."""
  first_key, rest_key = jax.random.split(key)
  tiny = jnp.finfo(points.dtype).tiny

  def error_to(row):
    return jnp.square(points - points[row][None]).sum(axis=1)

  def draw(error, key):
    row = jax.random.categorical(key, jnp.log(error + tiny))
    return jnp.minimum(error, error_to(row)), row

  first = jax.random.randint(first_key, (), 0, points.shape[0])
  keys = jax.random.split(rest_key, codes)[1:]
  _, rest = lax.scan(draw, error_to(first), keys)
  return points[jnp.concatenate([first[None], rest])]


def _costs(x: jax.Array, centroids: jax.Array) -> jax.Array:
  """|x - c|^2 by a matrix product: [C, D], [V, D] -> [C, V]. For fitting."""
  product = jnp.matmul(x, centroids.T, precision=lax.Precision.HIGHEST)
  x2 = jnp.square(x).sum(axis=1)[:, None]
  return x2 - 2 * product + jnp.square(centroids).sum(axis=1)[None]


def _choose(blocks, centroids, price) -> tuple[jax.Array, jax.Array]:
  """argmin_v |x - c_v|^2 - price_v, and by how much the next one is worse."""

  def one(x):
    cost = _costs(x, centroids) - price[None]
    code = lax.argmin(cost, 1, jnp.int32)
    best = cost.min(axis=1)
    is_best = code[:, None] == jnp.arange(cost.shape[1])[None]
    regret = jnp.where(is_best, jnp.inf, cost).min(axis=1) - best
    return code, regret

  return lax.map(one, blocks)


def _update(blocks, real, code, centroids) -> jax.Array:
  """Means of each code's points; empty codes restart at the worst points."""
  codes = centroids.shape[0]

  def add(total, chunk):
    x, is_real, z = chunk
    member = (z[:, None] == jnp.arange(codes)[None]) & is_real[:, None]
    member = member.astype(x.dtype)
    sums = jnp.matmul(member.T, x, precision=lax.Precision.HIGHEST)
    error = jnp.square(x - centroids[z]).sum(axis=1)
    sums, counts = total[0] + sums, total[1] + member.sum(axis=0)
    return (sums, counts), jnp.where(is_real, error, 0)

  start = jnp.zeros_like(centroids), jnp.zeros_like(centroids[:, 0])
  (sums, counts), error = lax.scan(add, start, (blocks, real, code))
  means = sums / jnp.maximum(counts, 1)[:, None]
  means = jnp.where((counts > 0)[:, None], means, centroids)
  points = blocks.reshape(-1, blocks.shape[-1])
  empty = counts == 0
  return lax.cond(
    empty.any(),
    _revive,
    lambda m, *_: m,
    means,
    empty,
    points,
    error.reshape(-1),
  )


def _revive(means, empty, points, error) -> jax.Array:
  """The i-th empty code moves to the point with the i-th largest error."""
  worst, rows = lax.top_k(error, min(means.shape[0], error.shape[0]))
  order = jnp.minimum(jnp.cumsum(empty) - 1, rows.shape[0] - 1)
  noise = jnp.finfo(points.dtype).eps * jnp.square(points).sum(axis=1).mean()
  use = empty & (worst[order] > noise)
  return jnp.where(use[:, None], points[rows[order]], means)


def _prices(points, centroids, price, temperatures, tolerance) -> jax.Array:
  """Prices under which every code attracts M / V points (Sinkhorn).

  With w_iv = softmax_v((price_v - |x_i - c_v|^2) / t) repeat
  price_v += s t log((M / V) / sum_i w_iv), with a step 1 < s < 2, until the
  share of misplaced points is below the tolerance; then at the next, lower
  temperature t. Starting from the last call's prices saves sweeps.
  """
  cost = jnp.maximum(_costs(points, centroids), 0)
  error = cost.min(axis=1).mean()
  tiny = jnp.finfo(cost.dtype).tiny
  target = points.shape[0] / centroids.shape[0]

  def settle(price, temperature):
    def sweep(state):
      price, _, step = state
      share = jax.nn.softmax((price[None] - cost) / temperature, axis=1)
      load = share.sum(axis=0)
      excess = jnp.log(jnp.maximum(load, tiny)) - jnp.log(target)
      price = price - _STEP * temperature * excess
      misplaced = jnp.abs(load / target - 1).mean() / 2
      return price - price.mean(), misplaced, step + 1

    def unsettled(state):
      return (state[1] > tolerance) & (state[2] < _MAX_SWEEPS)

    start = price, jnp.asarray(jnp.inf, cost.dtype), 0
    return lax.while_loop(unsettled, sweep, start)[0], None

  ladder = jnp.maximum(jnp.asarray(temperatures, cost.dtype) * error, tiny)
  return lax.scan(settle, price, ladder)[0]


def balanced_codes(
  points: jax.Array, centroids: jax.Array, price: jax.Array
) -> jax.Array:
  """Codes whose counts differ by at most one, near the cheapest such.

  In rounds, each unplaced point asks for the best code that has room, and a
  code takes those who would lose most elsewhere. A round fills a code or
  places everybody, so there are at most V rounds.

  Args:
    points: f32[M, D].
    centroids: f32[V, D].
    price: f32[V], subtracted from squared distances; zeros are legal but
      leave more to the rounds.

  Returns:
    i32[M].
  """
  rows, codes = points.shape[0], centroids.shape[0]
  blocks, _ = _in_chunks(points)
  first, _ = _choose(blocks, centroids, price)
  demand = jnp.bincount(first.reshape(-1)[:rows], length=codes)
  spare = jnp.argsort(jnp.argsort(-demand)) < rows % codes
  room = rows // codes + spare.astype(jnp.int32)
  closed = jnp.finfo(points.dtype).max / 4

  def play(state):
    placed, room = state
    offer = jnp.where(room > 0, price, -closed)
    code, regret = _choose(blocks, centroids, offer)
    waiting = placed < 0
    code = jnp.where(waiting, code.reshape(-1)[:rows], codes)
    order = jnp.lexsort((-regret.reshape(-1)[:rows], code))
    asked = code[order]
    rank = jnp.arange(rows) - jnp.searchsorted(asked, asked)
    taken = rank < jnp.append(room, 0)[asked]
    placed = placed.at[order].set(jnp.where(taken, asked, placed[order]))
    used = jnp.bincount(jnp.where(taken, asked, codes), length=codes + 1)
    return placed, room - used[:codes].astype(room.dtype)

  start = jnp.full(rows, -1, jnp.int32), room.astype(jnp.int32)
  return lax.while_loop(lambda s: (s[0] < 0).any(), play, start)[0]
