"""Networks of agents that act on items or points, not on tokens.

All read a user as HSRL's policy does (`hpn.Descent.root`), and an item by its
semantic ID, its features and the upstream ranker's score. Letters as in
prefix_lm.py; D dimensions of a point.
"""

import functools

from flax import linen as nn
import jax.numpy as jnp

from rerank_rl.config import PolicyConfig
from rerank_rl.models.hpn import Descent
from rerank_rl.models.prefix_lm import SemanticTokens, Sizes, take
from rerank_rl.types import PAD

POINT = 16  # Dimensions of a point; the last weighs the ranker's score.


class Reading(SemanticTokens, nn.Module):
  """A request as all agents read it.

  Attributes:
    config: widths.
    sizes: the data's.
  """

  config: PolicyConfig
  sizes: Sizes

  def setup(self):
    self.descent = Descent(self.config, self.sizes)
    self.dtype = jnp.dtype(self.config.dtype)

  def user(self, catalogue, request):
    """The user's state f32[B, d]."""
    return self.descent.root(catalogue, request)

  def known(self, catalogue, request):
    """The same f32[B, d], of who knows how far the session is."""
    return self.descent.known(catalogue, request)

  def items(self, catalogue, request):
    """The candidates f32[B, N, d], whoever looks at them."""
    return self.descent.items(catalogue, request.candidates)


class Head(nn.Module):
  """unit * MLP(x): a value, 0 at first (see `hpn.LevelCritic`)."""

  dim: int
  unit: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    """f32[...] of inputs f32[..., d]."""
    dense = functools.partial(
      nn.Dense, dtype=self.dtype, param_dtype=self.dtype
    )
    x = nn.gelu(dense(2 * self.dim)(x))
    out = dense(1, kernel_init=nn.initializers.zeros)(x)
    return self.unit * out[..., 0]


class StateValue(nn.Module):
  """V(s) of a user, and what critics share.

  Attributes:
    config: widths.
    sizes: the data's.
    unit: what values are multiples of.
  """

  config: PolicyConfig
  sizes: Sizes
  unit: float

  def setup(self):
    c = self.config
    self.reading = Reading(c, self.sizes)
    self.whole = Head(c.dim, self.unit, jnp.dtype(c.dtype))

  def state(self, catalogue, request):
    """V(s) f32[B]."""
    return self.whole(self.reading.known(catalogue, request))


class ItemValues(StateValue):
  """What showing an item is worth, for DQN; and V(s).

    Q(s, i) = MLP(s, i, s * i) + unit w r_i

  r is the ranker's score and w is learnt from 0. A slate is worth the mean of
  its items.
  """

  def setup(self):
    super().setup()
    c = self.config
    dtype = jnp.dtype(c.dtype)
    self.one = Head(c.dim, self.unit, dtype)
    self.prior = self.param("prior", nn.initializers.zeros, (), dtype)

  def __call__(self, catalogue, request):
    """Q(s, i) f32[B, N] of the candidates."""
    items = self.reading.items(catalogue, request)
    user = self.reading.known(catalogue, request)[:, None]
    user = jnp.broadcast_to(user, items.shape)
    own = self.one(jnp.concatenate([user, items, user * items], axis=-1))
    return own + self.unit * self.prior * request.scores

  def initialise(self, catalogue, request):
    """Touches every parameter; only for `init`."""
    self(catalogue, request)
    self.state(catalogue, request)


class PointActor(nn.Module):
  """A point z for a user, and vectors of items: the slate is top-K of z . e.

  Points lie in [-1, 1]^D. Vectors are normalised, and their last coordinate
  is the ranker's score, standardised over the request.
  """

  config: PolicyConfig
  sizes: Sizes

  def setup(self):
    c = self.config
    dtype = jnp.dtype(c.dtype)
    dense = functools.partial(nn.Dense, dtype=dtype, param_dtype=dtype)
    self.reading = Reading(c, self.sizes)
    self.up = dense(2 * c.dim)
    self.down = dense(POINT)
    self.narrow = dense(POINT - 1)
    self.norm = nn.LayerNorm(dtype=dtype, param_dtype=dtype)
    self.often = self.param("often", nn.initializers.zeros, (), dtype)

  def __call__(self, catalogue, request):
    """z f32[B, D]."""
    user = self.reading.user(catalogue, request)
    return jnp.tanh(self.down(nn.gelu(self.up(user))))

  def vectors(self, catalogue, request):
    """e f32[B, N, D] of the candidates."""
    own = self.norm(self.narrow(self.reading.items(catalogue, request)))
    real = request.candidates != PAD
    count = jnp.maximum(real.sum(-1, keepdims=True), 1)
    mean = (request.scores * real).sum(-1, keepdims=True) / count
    apart = (request.scores - mean) * real
    spread = jnp.sqrt((apart**2).sum(-1, keepdims=True) / count)
    scores = apart / (spread + 1e-6)
    return jnp.concatenate([own, scores[..., None].astype(own.dtype)], axis=-1)

  def clicks(self, catalogue, request, slate):
    """Logits f32[B, K] of a click on each item of slates: z . e + b."""
    chosen = take(self.vectors(catalogue, request), slate)
    z = self(catalogue, request)
    return jnp.einsum("bd,bkd->bk", z, chosen) + self.often

  def initialise(self, catalogue, request):
    """Touches every parameter; only for `init`."""
    self(catalogue, request)
    self.vectors(catalogue, request)


class PointCritic(StateValue):
  """Q(s, z) of a user and a point; V(s); and a point for each slate.

  V reads the user apart from Q: what it is fitted to moves nothing of Q's.
  """

  def setup(self):
    super().setup()
    c = self.config
    dtype = jnp.dtype(c.dtype)
    self.pair = Head(c.dim, self.unit, dtype)
    self.own = Reading(c, self.sizes)
    self.back = nn.Dense(POINT, dtype=dtype, param_dtype=dtype)

  def __call__(self, catalogue, request, point):
    """Q(s, z) f32[B] of points f32[B, D]."""
    user = self.reading.known(catalogue, request)
    return self.pair(jnp.concatenate([user, point.astype(user.dtype)], -1))

  def state(self, catalogue, request):
    """V(s) f32[B]."""
    return self.whole(self.own.known(catalogue, request))

  def pooled(self, catalogue, request, slate):
    """The point f32[B, D] that a slate i32[B, K] stands for (HAC).

    h = tanh(W [mean of its items, mean of their scores] + b).
    """
    items = take(self.reading.items(catalogue, request), slate).mean(1)
    scores = jnp.take_along_axis(request.scores, slate, axis=1)
    scores = scores.mean(1, keepdims=True).astype(items.dtype)
    return jnp.tanh(self.back(jnp.concatenate([items, scores], axis=-1)))

  def initialise(self, catalogue, request, slate):
    """Touches every parameter; only for `init`."""
    self(catalogue, request, self.pooled(catalogue, request, slate))
    self.state(catalogue, request)
