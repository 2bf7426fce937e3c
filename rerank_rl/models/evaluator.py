"""A list evaluator: expected feedback at every position of a slate.

The network states what feedback each position of a slate will get, given the
request and the items above it only. Its parts are generic: a user code read
from history and from the ranker's scores (a differentiable ridge regression
of scores on item embeddings, after Bertinetto et al. 2019,
arXiv:1805.08136), recency-weighted similarity to the items above, and an
examination factor (the cascade model of Craswell et al. 2008):

  P(s at t) = prod_{j<t} continue_j * P(s at t | examined, items above).

Shapes are those of `rerank_rl.types`; W prefixes or G slates a request,
A similarity heads of E dimensions, R the rank of the ridge regression.
"""

from typing import Any

import chex
from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp
import optax

from rerank_rl import types

_FLOOR = 1e-6  # Probabilities stay this far from 0 and 1.


@struct.dataclass
class Items:
  """What the list part of the network knows of an item in its request.

  Attributes:
    code: f32[..., D], the item as this user sees it.
    base: f32[..., S], logits of the signals for the item alone.
    key: f32[..., A, E], unit vectors whose products are similarities.
    mask: bool[...], False at PAD.
  """

  code: jax.Array
  base: jax.Array
  key: jax.Array
  mask: jax.Array

  def take(self, index: jax.Array) -> "Items":
    """Rows `index` i32[B, ...] (PAD allowed) of fields [B, N, ...]."""
    safe = jnp.maximum(index, 0)
    rows = jax.tree.map(lambda x: jax.vmap(lambda a, i: a[i])(x, safe), self)
    return rows.replace(mask=rows.mask & (index >= 0))


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


class UserReader(nn.Module):
  """Reads the user from history, candidates and the ranker's scores.

  With item embeddings phi and learned offsets and weights, the posterior mean
  of a linear-Gaussian user is the ridge solution

    u = (Lambda + sum_i w_i phi_i phi_i')^-1
        (sum_{i in C} w_i (score_i - offset_i) phi_i + sum_{i in H} v_i phi_i),

  to which mean pools of both sets are added through a small network.
  """

  dim: int
  rank: int
  dropout: float

  @nn.compact
  def __call__(self, request, history, candidates, train=False):
    """Returns code f32[B, dim] and per-candidate f32[B, N, 3]."""
    seen = (request.history >= 0).astype(history.dtype)[..., None]
    shown = (request.candidates >= 0).astype(candidates.dtype)[..., None]
    project = nn.Dense(self.rank, name="phi")
    own = nn.Dense(2, name="observation")(candidates)
    past = nn.Dense(2, name="recall")(history)
    offset, weight = own[..., :1], nn.softplus(own[..., 1:]) * shown
    pull, gain = past[..., :1] * seen, nn.softplus(past[..., 1:] - 2.0) * seen
    phi_n, phi_h = project(candidates), project(history)
    ridge = self.param("ridge", nn.initializers.ones, (self.rank,))
    precision = (
      jnp.einsum("bnr,bnq->brq", phi_n * weight, phi_n)
      + jnp.einsum("bhr,bhq->brq", phi_h * gain, phi_h)
      + jnp.diag(nn.softplus(ridge))[None]
    )
    residual = request.scores[..., None] - offset
    moment = jnp.sum(phi_n * weight * residual, 1) + jnp.sum(phi_h * pull, 1)
    factor = jax.scipy.linalg.cho_factor(precision, lower=True)
    user = jax.scipy.linalg.cho_solve(factor, moment[..., None])[..., 0]
    spread = jax.scipy.linalg.cho_solve(factor, phi_n.swapaxes(1, 2))
    fit = jnp.einsum("bnr,br->bn", phi_n, user)
    doubt = jnp.sum(phi_n * spread.swapaxes(1, 2), -1)
    pools = [
      user,
      _mean(history, seen),
      _mean(candidates, shown),
      _mean(candidates * request.scores[..., None], shown),
      _mean(request.scores[..., None], shown),
      request.user,
    ]
    code = Mlp((2 * self.dim, self.dim), self.dropout)(
      jnp.concatenate(pools, -1), train
    )
    return code, jnp.stack([fit, doubt, offset[..., 0]], -1)


class ListEvaluator(nn.Module):
  """Expected feedback of slates; see the module's docstring.

  Attributes:
    slots: the longest slate, K.
    signals: S.
    dim: width D.
    rank: R, dimensions of the ridge regression.
    heads: A, similarities and recency profiles.
    cascade: whether feedback needs examination (see the module).
    dropout: rate in the hidden layers.
  """

  slots: int
  signals: int = 1
  dim: int = 64
  rank: int = 16
  heads: int = 8
  cascade: bool = True
  dropout: float = 0.1

  def setup(self):
    self.tower = Mlp((self.dim, self.dim), self.dropout)
    self.reader = UserReader(self.dim, self.rank, self.dropout)
    self.meet = nn.Dense(self.dim)
    self.merge = Mlp((self.dim, self.dim), self.dropout)
    self.base = nn.Dense(self.signals)
    self.key = nn.Dense(self.dim)
    self.value = nn.Dense(2 * self.heads)
    self.recency = self.param(
      "recency", _decays, (self.heads, self.slots), jnp.float32
    )
    self.strength = self.param(
      "strength", nn.initializers.ones, (self.slots, 4 * self.heads)
    )
    self.place = self.param(
      "place", nn.initializers.normal(0.02), (self.slots, self.dim)
    )
    self.join = nn.Dense(self.dim)
    self.listwise = Mlp((self.dim, self.signals + 1), self.dropout)
    self.effect = nn.Dense(self.signals, use_bias=False)
    self.stay = nn.Dense(1, bias_init=nn.initializers.constant(2.0))

  def __call__(self, features, request, slate, train=False):
    """Logits f32[B, G, K, S] of the feedback at each position.

    Args:
      features: f32[M, F], the catalogue's.
      request: a `types.Request` with leading dimension B.
      slate: i32[B, G, K], positions in the candidates, PAD.
      train: whether dropout acts (needs the rng `dropout`).
    """
    return self.score_slates(
      self.encode(features, request, train), slate, train
    )

  def encode(self, features, request, train=False) -> Items:
    """The request's candidates as `Items` [B, N, ...]: once a request."""
    chex.assert_rank([features, request.candidates], 2)
    rows = jnp.concatenate([request.history, request.candidates], 1)
    embedded = self.tower(features[jnp.maximum(rows, 0)], train)
    split = request.history.shape[1]
    history, candidates = embedded[:, :split], embedded[:, split:]
    user, facts = self.reader(request, history, candidates, train)
    facts = jnp.concatenate([facts, request.scores[..., None]], -1)
    product = self.meet(candidates) * user[:, None]
    code = self.merge(
      jnp.concatenate([candidates, product, facts], -1), train
    )
    key = self.key(candidates)
    key = key.reshape(*key.shape[:-1], self.heads, -1)
    key = key * jax.lax.rsqrt(jnp.sum(key**2, -1, keepdims=True) + _FLOOR)
    base = self.base(jnp.concatenate([code, facts], -1))
    return Items(code, base, key, request.candidates >= 0)

  def score_slates(self, items: Items, slate, train=False):
    """Logits f32[B, G, K, S] for slates i32[B, G, K] of encoded items."""
    chex.assert_rank(slate, 3)
    placed = items.take(slate)
    place = jnp.arange(slate.shape[-1])
    click, stay = self._judge(placed, placed, place, train)
    examined = jnp.cumsum(stay, -2) - stay
    return _joint(click, examined) if self.cascade else click

  def score_next(self, items: Items, placed, k):
    """Logits f32[B, W, N, S] of every candidate as the item at position k.

    Args:
      items: `encode`'s result.
      placed: i32[B, W, K], prefixes; only the first k positions are read.
      k: i32 scalar, the position to fill (may be traced).
    """
    chex.assert_rank(placed, 3)
    slots = jnp.arange(placed.shape[-1])
    placed = jnp.where((slots < k)[None, None], placed, types.PAD)
    above = items.take(placed)
    every = jax.tree.map(lambda x: x[:, None], items)
    click, _ = self._judge(every, above, jnp.full((1,), k), False)
    if not self.cascade:
      return click
    _, stay = self._judge(above, above, slots, False)
    examined = jnp.sum(jnp.where((slots < k)[None, None, :, None], stay, 0), 2)
    return _joint(click, examined[:, :, None])

  def _judge(self, target: Items, above: Items, place, train):
    """Given examination: logits [B, W, T, S], log P(continue) [B, W, T, 1].

    Target t stands at position place[t] (place may have length 1: shared).
    """
    lists = self._summary(target, above, place)
    lists = lists * self.strength[place][None, None]
    hidden = self.join(lists) + (target.code + self.place[place][None, None])
    out = self.listwise(nn.gelu(hidden), train)
    click = target.base + self.effect(lists) + out[..., : self.signals]
    go = self.stay(click) + out[..., self.signals :]
    return click, jnp.where(target.mask[..., None], nn.log_sigmoid(go), 0)

  def _summary(self, target: Items, above: Items, place):
    """Recency-weighted means over the items above, [B, W, T, 4 A]."""
    distance = place[:, None] - jnp.arange(above.mask.shape[-1])[None]
    earlier = (distance > 0)[None, None] & above.mask[:, :, None]
    logits = self.recency[:, jnp.maximum(distance - 1, 0)]
    weight = jnp.exp(logits)[None, None] * earlier[:, :, None]
    total = jnp.sum(weight, -1, keepdims=True)
    weight = weight / jnp.maximum(total, _FLOOR)
    shape = (*above.mask.shape[:2], *target.key.shape[2:])
    likeness = jnp.einsum(
      "bwtae,bwjae->bwatj", jnp.broadcast_to(target.key, shape), above.key
    )
    value = self.value(above.code)
    value = value.reshape(*value.shape[:-1], self.heads, 2)
    mean = jnp.einsum("bwatj,bwjac->bwtac", weight, value)
    mean = mean.reshape(*mean.shape[:3], -1)
    mean = jnp.broadcast_to(mean, (*shape[:3], mean.shape[-1]))
    near = jnp.sum(weight * nn.relu(likeness), -1).swapaxes(2, 3)
    like = jnp.sum(weight * likeness, -1).swapaxes(2, 3)
    return jnp.concatenate([near, like, mean], -1)


@struct.dataclass
class Fitted:
  """A fitted evaluator: an ensemble and its calibration.

  Attributes:
    params: parameters of `ListEvaluator`, each with a leading member axis.
    scale: f32[S], applied to the ensemble's logits (1 / temperature).
    shift: f32[S], added to them.
  """

  params: Any
  scale: jax.Array
  shift: jax.Array


def init(model, key, features, request, members=1) -> Fitted:
  """Fresh, uncalibrated parameters of `members` networks."""
  slate = jnp.zeros((request.candidates.shape[0], 1, model.slots), jnp.int32)
  start = lambda k: model.init(k, features, request, slate)["params"]
  params = jax.vmap(start)(jax.random.split(key, members))
  ones = jnp.ones((model.signals,))
  return Fitted(params, ones, 0 * ones)


def loss(model, params, features, impression, key=None):
  """Binary cross-entropy of the positions shown, all members: (sum, count).

  Args:
    model: a `ListEvaluator`.
    params: `Fitted.params`.
    features: f32[M, F].
    impression: a `types.Impression`.
    key: for dropout; None leaves it out.

  Returns:
    Sum over members, positions and signals, and how many terms it has.
  """
  slate = impression.slate[:, None]
  members = jax.tree.leaves(params)[0].shape[0]
  keys = None if key is None else jax.random.split(key, members)

  def logits(tree, k):
    rngs = None if k is None else {"dropout": k}
    return model.apply(
      {"params": tree}, features, impression.request, slate, k is not None,
      rngs=rngs,
    )[:, 0]

  x = jax.vmap(logits, in_axes=(0, None if key is None else 0))(params, keys)
  target = jnp.broadcast_to(impression.feedback[None], x.shape)
  shown = jnp.broadcast_to((impression.slate >= 0)[None, ..., None], x.shape)
  terms = optax.sigmoid_binary_cross_entropy(x, target)
  return jnp.sum(terms, where=shown), jnp.sum(shown)


def _pooled(fitted: Fitted, logits) -> jax.Array:
  """Calibrated logits of the members' mean probability ([E, ...])."""
  mean = jnp.clip(jnp.mean(nn.sigmoid(logits), 0), _FLOOR, 1 - _FLOOR)
  x = jnp.log(mean) - jnp.log1p(-mean)
  lift = (1,) * (x.ndim - 1) + (-1,)
  return x * fitted.scale.reshape(lift) + fitted.shift.reshape(lift)


def predict(model, fitted, features, request, slate) -> jax.Array:
  """Calibrated logits f32[B, G, K, S] of slates i32[B, G, K]."""
  apply = lambda p: model.apply({"params": p}, features, request, slate)
  return _pooled(fitted, jax.vmap(apply)(fitted.params))


def encode(model, fitted, features, request) -> Items:
  """Each member's `Items`, for `predict_next`; leading member axis."""
  apply = lambda p: model.apply(
    {"params": p}, features, request, method="encode"
  )
  return jax.vmap(apply)(fitted.params)


def predict_next(model, fitted, items, placed, k) -> jax.Array:
  """Calibrated logits f32[B, W, N, S] of each candidate at position k."""
  apply = lambda p, x: model.apply(
    {"params": p}, x, placed, k, method="score_next"
  )
  return _pooled(fitted, jax.vmap(apply)(fitted.params, items))


def values(logits, slate, weights) -> jax.Array:
  """Expected utility of each position, f32[B, G, K]; 0 at PAD.

  sum_s weight_s * P(signal s at t); a slate's value is its sum over t.
  """
  weights = jnp.asarray(weights, logits.dtype)
  return jnp.where(slate >= 0, nn.sigmoid(logits) @ weights, 0)


def _joint(click, log_examined):
  """Logit of exp(log_examined) * sigmoid(click)."""
  log_p = nn.log_sigmoid(click) + log_examined
  log_p = jnp.minimum(log_p, -_FLOOR)
  return log_p - jnp.log(-jnp.expm1(log_p))


def _decays(key, shape, dtype):
  """Log weights of distances 1, 2, ...: from flat to nearly last-only."""
  del key
  rate = jnp.linspace(0.0, 3.0, shape[0], dtype=dtype)
  return -rate[:, None] * jnp.arange(shape[1], dtype=dtype)[None]


def _mean(x, mask):
  """Mean over axis 1 where mask f32[B, N, 1]; 0 for an empty set."""
  return jnp.sum(x * mask, 1) / jnp.maximum(jnp.sum(mask, 1), 1)
