"""A list evaluator: expected feedback at every position of a slate.

The network states what feedback each position of a slate will get, given the
request and the items above it only. Its parts are generic: a user code
(`models.reader`), recency-weighted similarity to the items above, and an
examination factor (the cascade model of Craswell et al. 2008):

  P(s at t) = prod_{j<t} continue_j * P(s at t | examined, items above).

Shapes are those of `rerank_rl.types`; W prefixes or G slates a request,
A similarity heads of E dimensions, R the rank of the ridge regression.
"""

import chex
from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp
import optax

from rerank_rl import types
from rerank_rl.models import reader

_FLOOR = 1e-6  # Probabilities stay this far from 0 and 1.


@struct.dataclass
class Context:
  """A batch of requests, read.

  Attributes:
    traits: Traits of a table of items.
    rows: i32[B, N], the candidates' rows in that table.
    scores: f32[B, N].
    mask: bool[B, N], False at PAD.
    user: f32[B, D], code.
    mean: f32[B, R], posterior mean of the ridge regression.
    covariance: f32[B, R, R], its posterior covariance.
  """

  traits: reader.Traits
  rows: jax.Array
  scores: jax.Array
  mask: jax.Array
  user: jax.Array
  mean: jax.Array
  covariance: jax.Array


@struct.dataclass
class Items:
  """What the list part of the network knows of an item in its request.

  Attributes:
    code: f32[B, ..., D], the item as this user sees it.
    base: f32[B, ..., S], logits of the signals for the item alone.
    key: f32[B, ..., A, E], unit vectors; their products are similarities.
    mask: bool[B, ...], False at PAD.
  """

  code: jax.Array
  base: jax.Array
  key: jax.Array
  mask: jax.Array

  def take(self, index: jax.Array) -> "Items":
    """Rows `index` i32[B, ...] (PAD allowed) of fields [B, N, ...]."""
    rows = jax.tree.map(lambda x: _rows(x, index), self)
    return rows.replace(mask=rows.mask & (index >= 0))


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
    self.tower = reader.Tower(self.dim, self.rank, self.dropout)
    self.reader = reader.Reader(self.dim, self.rank, self.dropout)
    self.meet = nn.Dense(self.dim)
    self.merge = reader.Mlp((self.dim, self.dim), self.dropout)
    self.base = nn.Dense(self.signals)
    self.key = nn.Dense(self.dim)
    self.value = nn.Dense(2 * self.heads)
    self.recency = self.param("recency", _decays, (self.heads, self.slots))
    self.strength = self.param(
      "strength", nn.initializers.ones, (self.slots, 4 * self.heads)
    )
    self.place = self.param(
      "place", nn.initializers.normal(0.02), (self.slots, self.dim)
    )
    self.join = nn.Dense(self.dim)
    self.listwise = reader.Mlp((self.dim, self.signals + 1), self.dropout)
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
    placed = self.place_items(features, request, slate, train)
    click, go = self._judge(placed, placed, jnp.arange(slate.shape[-1]), train)
    stay = _log_stay(go, placed.mask)
    examined = jnp.cumsum(stay, -2) - stay
    return _joint(click, examined) if self.cascade else click

  def penalty(self, features, impression, train=False):
    """What fitting minimises: see `feedback_loss`."""
    return feedback_loss(self.foretell(features, impression, train), impression)

  def foretell(self, features, impression, train):
    """Logits f32[B, K, S] that fitting holds against the feedback."""
    x = self(features, impression.request, impression.slate[:, None], train)
    return x[:, 0]

  def place_items(self, features, request, slate, train=False) -> Items:
    """The items of slates i32[B, G, K] as `Items` [B, G, K, ...]."""
    chex.assert_rank(slate, 3)
    context = self.read(features, request, train)
    batch, slates, slots = slate.shape
    if slates * slots < request.candidates.shape[1]:
      flat = self.view(context, slate.reshape(batch, -1), train)
      shape = lambda x: x.reshape(batch, slates, slots, *x.shape[2:])
      return jax.tree.map(shape, flat)
    # Cheaper: each candidate once.
    return self.view(context, None, train).take(slate)

  def encode(self, features, request) -> Items:
    """The candidates as `Items` [B, N, ...]: what `score_next` reads."""
    return self.view(self.read(features, request), None)

  def read(self, features, request, train=False) -> Context:
    """Reads requests: everything that does not depend on a slate."""
    chex.assert_rank([features, request.candidates], 2)
    rows = jnp.concatenate([request.history, request.candidates], 1)
    rows = jnp.maximum(rows, 0)
    if rows.size < features.shape[0]:  # Embed no more items than needed.
      features = features[rows.ravel()]
      rows = jnp.arange(rows.size).reshape(rows.shape)
    traits = self.tower(features, train)
    past, rows = jnp.split(rows, [request.history.shape[1]], 1)
    user, mean, covariance = self.reader(
      request, traits.at(past), traits.at(rows), train
    )
    mask = request.candidates >= 0
    return Context(traits, rows, request.scores, mask, user, mean, covariance)

  def view(self, context: Context, index, train=False) -> Items:
    """The candidates at positions `index` i32[B, X]; all of them if None."""
    rows, score, mask = context.rows, context.scores, context.mask
    if index is not None:
      score, mask = _rows(score, index), _rows(mask, index) & (index >= 0)
      rows = _rows(rows, index)
    item = context.traits.at(rows)
    fit = jnp.einsum("bnr,br->bn", item.phi, context.mean)
    doubt = jnp.sum(item.phi * (item.phi @ context.covariance), -1)
    facts = jnp.stack([fit, doubt, score, item.facts[..., 0]], -1)
    product = self.meet(item.code) * context.user[:, None]
    code = self.merge(jnp.concatenate([item.code, product, facts], -1), train)
    key = self.key(item.code)
    key = key.reshape(*key.shape[:-1], self.heads, -1)
    key = key * jax.lax.rsqrt(jnp.sum(key**2, -1, keepdims=True) + _FLOOR)
    base = self.base(jnp.concatenate([code, facts], -1))
    return Items(code, base, key, mask)

  def score_next(self, items: Items, placed, k):
    """Logits f32[B, W, N, S] of every candidate as the item at position k.

    Args:
      items: `encode`'s result.
      placed: i32[B, W, K], prefixes; only the first k positions are read.
      k: i32 scalar, the position to fill (may be traced).
    """
    click, above = self.judge_next(items, placed, k)
    if not self.cascade:
      return click
    _, go = self._judge(above, above, jnp.arange(placed.shape[-1]), False)
    examined = jnp.sum(_log_stay(go, above.mask), 2)
    return _joint(click, examined[:, :, None])

  def judge_next(self, items: Items, placed, k):
    """Logits f32[B, W, N, S] given examination, and the Items [B, W, K] above.

    Arguments as in `score_next`; no item stands at position k or behind it.
    """
    chex.assert_rank(placed, 3)
    slots = jnp.arange(placed.shape[-1])
    placed = jnp.where((slots < k)[None, None], placed, types.PAD)
    above = items.take(placed)
    every = jax.tree.map(lambda x: x[:, None], items)
    click, _ = self._judge(every, above, jnp.full((1,), k), False)
    return click, above

  def _judge(self, target: Items, above: Items, place, train):
    """Logits: of signals given examination [B, W, T, S], to go on [.., 1].

    Target t stands at position place[t] (place may have length 1: shared).
    """
    lists = self._summary(target, above, place)
    lists = lists * self.strength[place][None, None]
    hidden = self.join(lists) + (target.code + self.place[place][None, None])
    out = self.listwise(nn.gelu(hidden), train)
    click = target.base + self.effect(lists) + out[..., : self.signals]
    return click, self.stay(click) + out[..., self.signals :]

  def _summary(self, target: Items, above: Items, place):
    """Recency-weighted means over the items above, [B, W, T, 4 A]."""
    distance = place[:, None] - jnp.arange(above.mask.shape[-1])[None]
    earlier = (distance > 0)[None, None] & above.mask[:, :, None]
    logits = self.recency[:, jnp.maximum(distance - 1, 0)]
    weight = jnp.exp(logits)[None, None] * earlier[:, :, None]
    total = jnp.sum(weight, -1, keepdims=True)
    weight = weight / jnp.maximum(total, _FLOOR)
    value = self.value(above.code)
    value = value.reshape(*value.shape[:-1], self.heads, 2)
    mean = jnp.einsum("bwatj,bwjac->bwtac", weight, value)
    mean = mean.reshape(*mean.shape[:3], -1)
    shape = (*above.mask.shape[:2], *target.key.shape[2:])
    key = jnp.broadcast_to(target.key, shape)
    near = like = 0.0
    # Slot by slot: sums over so short an axis are slow on CPU.
    for j in range(above.mask.shape[-1]):
      cosine = jnp.einsum("bwtae,bwae->bwta", key, above.key[:, :, j])
      share = weight[..., j].swapaxes(2, 3)
      near = near + share * nn.relu(cosine)
      like = like + share * cosine
    mean = jnp.broadcast_to(mean, (*shape[:3], mean.shape[-1]))
    return jnp.concatenate([near, like, mean], -1)


def feedback_loss(logits, impression):
  """Cross-entropies f32[B, K, S] of the feedback, and which of them count."""
  shown = (impression.slate >= 0)[..., None]
  terms = optax.sigmoid_binary_cross_entropy(logits, impression.feedback)
  return terms, jnp.broadcast_to(shown, terms.shape)


def logit(p):
  """log p / (1 - p), kept finite."""
  p = jnp.clip(p, _FLOOR, 1 - _FLOOR)
  return jnp.log(p) - jnp.log1p(-p)


def _log_stay(go, mask):
  """log P(going on) of logits [..., 1]; 0 where there is no item."""
  return jnp.where(mask[..., None], nn.log_sigmoid(go), 0)


def _joint(click, log_examined):
  """Logit of exp(log_examined) * sigmoid(click)."""
  log_p = nn.log_sigmoid(click) + log_examined
  log_p = jnp.minimum(log_p, -_FLOOR)
  return log_p - jnp.log(-jnp.expm1(log_p))


def _decays(key, shape, dtype=jnp.float32):
  """Log weights of distances 1, 2, ...: from flat to nearly last-only."""
  del key
  rate = jnp.linspace(0.0, 3.0, shape[0], dtype=dtype)
  return -rate[:, None] * jnp.arange(shape[1], dtype=dtype)[None]


def _rows(x, index):
  """x[B, N, ...] at positions i32[B, ...]; PAD reads position 0."""
  take = jax.vmap(lambda row, i: row[i])
  return take(x, jnp.maximum(index, 0))
