"""Reads the user of a request from history and the ranker's scores.

The ranker's scores of the candidates are noisy measurements of one user, so
a ridge regression of scores on learned item embeddings estimates that user;
it is solved in closed form and differentiated through (Bertinetto et al.
2019, arXiv:1805.08136). Shapes are those of `rerank_rl.types`; R is the rank
of the regression.
"""

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp


@struct.dataclass
class Traits:
  """What is known of an item whoever looks at it.

  Attributes:
    code: f32[..., D].
    phi: f32[..., R], regressors of the ranker's score.
    facts: f32[..., 4], offset and weight of the item as a candidate, pull
      and weight as a part of the history.
    pool: f32[..., D / 2], what is averaged over sets of items.
  """

  code: jax.Array
  phi: jax.Array
  facts: jax.Array
  pool: jax.Array

  def at(self, rows) -> "Traits":
    return jax.tree.map(lambda x: x[rows], self)


class Mlp(nn.Module):
  """Dense layers with gelu between them and dropout after each gelu."""

  widths: tuple[int, ...]
  dropout: float = 0.0

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    for width in self.widths[:-1]:
      x = nn.gelu(nn.Dense(width)(x))
      x = nn.Dropout(self.dropout, deterministic=not train)(x)
    return nn.Dense(self.widths[-1])(x)


class Tower(nn.Module):
  """Features f32[..., F] to `Traits`."""

  dim: int
  rank: int
  dropout: float

  @nn.compact
  def __call__(self, features, train=False) -> Traits:
    code = Mlp((self.dim, self.dim), self.dropout)(features, train)
    offset, weight, pull, recall = jnp.split(nn.Dense(4)(code), 4, -1)
    facts = [offset, nn.softplus(weight), pull, nn.softplus(recall - 2.0)]
    return Traits(
      code=code,
      phi=nn.Dense(self.rank)(code),
      facts=jnp.concatenate(facts, -1),
      pool=nn.Dense(self.dim // 2)(code),
    )


class Reader(nn.Module):
  """Reads the user from history, candidates and the ranker's scores.

  With regressors phi, offsets and weights of the items and a prior mean mu
  from the user's features, the posterior of a linear-Gaussian user is the
  ridge solution

    covariance = (Lambda + sum_{i in C, H} w_i phi_i phi_i')^-1
    mean = covariance (sum_{i in C} w_i (score_i - offset_i) phi_i
                       + sum_{i in H} pull_i phi_i + Lambda mu),

  to which means over both sets are added through a small network.
  """

  dim: int
  rank: int
  dropout: float

  @nn.compact
  def __call__(self, request, past: Traits, shown: Traits, train=False):
    """Code f32[B, D], mean f32[B, R] and covariance f32[B, R, R]."""
    seen = (request.history >= 0)[..., None]
    real = (request.candidates >= 0)[..., None]
    score = request.scores[..., None]
    offset, weight = shown.facts[..., :1], shown.facts[..., 1:2] * real
    pull, recall = past.facts[..., 2:3] * seen, past.facts[..., 3:] * seen
    ridge = self.param("ridge", nn.initializers.ones, (self.rank,))
    ridge = nn.softplus(ridge)
    precision = (
      jnp.einsum("bnr,bnq->brq", shown.phi * weight, shown.phi)
      + jnp.einsum("bhr,bhq->brq", past.phi * recall, past.phi)
      + jnp.diag(ridge)[None]
    )
    moment = jnp.sum(shown.phi * weight * (score - offset), 1)
    moment = moment + jnp.sum(past.phi * pull, 1)
    if request.user.shape[-1]:
      moment = moment + ridge[None] * nn.Dense(self.rank)(request.user)
    covariance = _inverse(precision)
    mean = jnp.einsum("brq,bq->br", covariance, moment)
    parts = [
      mean,
      _mean(past.pool, seen),
      _mean(shown.pool, real),
      _mean(shown.pool * score, real),
      _mean(score, real),
      request.user,
    ]
    code = Mlp((2 * self.dim, self.dim), self.dropout)(
      jnp.concatenate(parts, -1), train
    )
    return code, mean, covariance


@jax.custom_jvp
def _inverse(a):
  """Inverse of positive definite f32[B, R, R]: Gauss-Jordan, no pivots.

  Many small matrices are slow through LAPACK on CPU; this is R rank-1
  updates of the whole batch.
  """

  def eliminate(i, a):
    pivot = a[:, i, i][:, None]
    row, column = a[:, i] / pivot, a[:, :, i]
    a = a - column[:, :, None] * row[:, None]
    a = a.at[:, i].set(row).at[:, :, i].set(-column / pivot)
    return a.at[:, i, i].set(1 / pivot[:, 0])

  return jax.lax.fori_loop(0, a.shape[-1], eliminate, a)


@_inverse.defjvp
def _inverse_jvp(primals, tangents):
  inverse = _inverse(*primals)
  return inverse, -inverse @ tangents[0] @ inverse


def _mean(x, mask):
  """Mean over axis 1 where mask f32[B, N, 1]; 0 for an empty set."""
  return jnp.sum(x * mask, 1) / jnp.maximum(jnp.sum(mask, 1), 1)
