"""HSRL's policy over semantic IDs, and its critic of every level.

Both walk from a user's state to an item's by taking off, level by level, what
its token stands for (arXiv 2510.09167):

  c_0 = state,   c_{l+1} = LayerNorm(c_l - e_l).

The policy's tokens lead to items without forward passes of their own: an
item's score hangs on the user and on its own tokens alone, so a slate is drawn
from one table of scores without replacement.

Letters as in prefix_lm.py.
"""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp

from rerank_rl.config import PolicyConfig
from rerank_rl.models.prefix_lm import Prompt, SemanticTokens, Sizes, take
from rerank_rl.models.transformer import Transformer
from rerank_rl.types import PAD

_UNUSED = -1e9  # The logit of a code that no item has.
SLATES = 10.0  # Of a session, that networks count as one.


class Descent(nn.Module):
  """The user's state, and how tokens lead on from it."""

  config: PolicyConfig
  sizes: Sizes

  def setup(self):
    c, sizes = self.config, self.sizes
    self.dtype = dtype = jnp.dtype(c.dtype)
    table = nn.initializers.normal(c.dim**-0.5)
    shape = (sizes.levels, sizes.codes, c.dim)
    self.sid = self.param("sid", table, shape, dtype)
    self.past = self.param("past", table, (sizes.history, c.dim), dtype)
    dense = functools.partial(nn.Dense, dtype=dtype, param_dtype=dtype)
    self.about = dense(c.dim, name="about")
    self.start = self.param("start", table, (c.dim,), dtype)
    self.user = dense(c.dim, name="user")
    self.told = dense(c.dim, name="told")
    self.body = Transformer(c.dim, c.layers, c.heads, dtype)
    self.norms = [
      nn.LayerNorm(dtype=dtype, param_dtype=dtype, name=f"norm_{level}")
      for level in range(sizes.levels)
    ]

  def embedded(self, tokens):
    """Embeddings f32[..., L, d] of the codes i32[..., L] of semantic IDs."""
    return self.sid[jnp.arange(self.sizes.levels), tokens]

  def items(self, catalogue, rows):
    """Embeddings f32[..., d] of catalogue rows i32[...]."""
    safe = jnp.maximum(rows, 0)
    codes = self.embedded(catalogue.sids[safe]).sum(-2)
    return codes + self.about(catalogue.features[safe].astype(self.dtype))

  def root(self, catalogue, request):
    """c_0 f32[B, d]: the history read causally, then the user himself."""
    B, H = request.history.shape
    past = self.items(catalogue, request.history)
    user = jnp.broadcast_to(self.start, (B, self.start.shape[0]))
    if request.user.shape[-1]:
      user = user + self.user(request.user.astype(self.dtype))
    x = jnp.concatenate([past + self.past[None], user[:, None]], axis=1)
    real = jnp.pad(
      request.history != PAD, ((0, 0), (0, 1)), constant_values=True
    )
    causal = jnp.tril(jnp.ones((H + 1, H + 1), bool))
    x, _ = self.body.encode(x, causal[None] & real[:, None], since=H)
    return x[:, 0]

  def known(self, catalogue, request):
    """`root` of who also knows how far the session is: critics do."""
    root = self.root(catalogue, request)
    if request.so_far is None:
      return root
    return root + self.told(request.so_far.astype(self.dtype) / SLATES)

  def after(self, state, embedding, level):
    """c_{l+1} f32[..., d] from c_l and the embedding of level l's token."""
    return self.norms[level](state - embedding)

  def walk(self, root, embeddings):
    """All states on the way f32[..., L + 1, d].

    Args:
      root: f32[..., d], c_0.
      embeddings: f32[..., L, d], of each level's token.
    """
    states = [root]
    for level in range(self.sizes.levels):
      at = embeddings[..., level, :]
      states.append(self.after(states[-1], at, level))
    return jnp.stack(states, axis=-2)


class HierarchicalPolicy(SemanticTokens, nn.Module):
  """HPN: an item is as likely as its tokens, slates are Plackett-Luce.

    score(i) = w r_i + sum_l log p_l(z_l(i) | c_l),   p_l = softmax(W_l c_l)

  over the codes that the catalogue uses at that level. c_l follows the item's
  own tokens; r is the upstream ranker's score, which the paper has none of, and
  w is learnt from 0. A level's legal children are then worth the mass of the
  items under them (`legality.log_probs`).
  """

  config: PolicyConfig
  sizes: Sizes

  def setup(self):
    c, sizes = self.config, self.sizes
    self.descent = Descent(c, sizes)
    square = nn.initializers.normal(c.dim**-0.5)
    shape = (sizes.levels, c.dim, sizes.codes)
    dtype = jnp.dtype(c.dtype)
    self.heads = self.param("heads", square, shape, dtype)
    self.prior = self.param("prior", nn.initializers.zeros, (), dtype)

  def _dist(self, catalogue, state, level):
    """log p_l f32[..., V] over the codes that the catalogue uses at l."""
    V = self.sizes.codes
    used = jnp.zeros(V, bool).at[catalogue.sids[:, level]].set(True)
    used = used.reshape((1,) * (state.ndim - 1) + (V,))
    logits = jnp.where(used, state @ self.heads[level], _UNUSED)
    return jax.nn.log_softmax(logits)

  def _embedding(self, dist, token, level):
    """e_l f32[B, N, d] of the items' own tokens i32[B, N]."""
    del dist
    return self.descent.sid[level, token]

  def prompt(self, catalogue, request, order, tokens):
    """A `Prompt`: scores as keys of width 1, states after tokens as inputs."""
    root = self.descent.root(catalogue, request)
    given = jnp.take_along_axis(request.scores, order, axis=1)
    state, states, score = root[:, None], [], self.prior * given
    for level in range(self.sizes.levels):
      token = tokens[..., level]
      dist = self._dist(catalogue, state, level)
      every = jnp.broadcast_to(dist, (*token.shape, dist.shape[-1]))
      own = jnp.take_along_axis(every, token[..., None], axis=-1)
      score = score + own[..., 0]
      embedding = self._embedding(dist, token, level)
      state = self.descent.after(state, embedding, level)
      states.append(jnp.broadcast_to(state, (*token.shape, state.shape[-1])))
    keys = jnp.stack([score] * self.sizes.levels, axis=1)[..., None]
    none = jnp.zeros((len(root), 0), bool)
    return Prompt(root, (), none, jnp.stack(states, axis=2), keys)

  def extend(self, prompt, cache, rank, t, at, mask):
    """The states after tokens; see `Policy.step`. An item's end is the root."""
    del at, mask
    B, C, Q = rank.shape
    _, N, L, d = prompt.inputs.shape
    level = jnp.broadcast_to(t, rank.shape) % L
    index = (jnp.maximum(rank, 0) * L + level).reshape(B, C * Q)
    state = take(prompt.inputs.reshape(B, N * L, d), index)
    inside = ((rank >= 0) & (level < L - 1))[..., None]
    root = prompt.root[:, None, None]
    return jnp.where(inside, state.reshape(B, C, Q, d), root), cache

  def queries(self, state, level):
    """Ones f32[B, X, 1]: scores hang on no state but the root."""
    del level
    return jnp.ones_like(state[..., :1])

  @staticmethod
  def even(params):
    """As they are: first scores differ little."""
    return params

  def initialise(self, catalogue, request, order, tokens):
    """Touches every parameter; only for `init`."""
    self.prompt(catalogue, request, order, tokens)


class ExpectedPolicy(HierarchicalPolicy):
  """HPN whose states follow the expected token: e_l = p_l E_l, one for all."""

  def _embedding(self, dist, token, level):
    del token
    return jnp.exp(dist) @ self.descent.sid[level]


class LevelCritic(SemanticTokens, nn.Module):
  """HSRL's critic: what is still to come, read at every level.

    V(s) = sum_l softmax(w)_l v_l(c_l)   with c_l along expected tokens,

  the weights w learnt; and at each token of a slate v_l(c_l) along the
  tokens chosen so far in its slot, which begin from what the user said to the
  slots above. It has a walk of its own, so that values and the policy do not
  pull at one another, and sees no later token.

  Attributes:
    config: widths.
    sizes: the data's.
    unit: what values are multiples of, such as the sum of a session's
      discounts: a network's outputs learn slowly to be large.
  """

  config: PolicyConfig
  sizes: Sizes
  unit: float = 1.0

  def setup(self):
    c, sizes = self.config, self.sizes
    dtype = jnp.dtype(c.dtype)
    self.descent = Descent(c, sizes)
    table = nn.initializers.normal(c.dim**-0.5)
    self.slot = self.param("slot", table, (sizes.slots, c.dim), dtype)
    dense = functools.partial(nn.Dense, dtype=dtype, param_dtype=dtype)
    each = range(sizes.levels + 1)
    none = nn.initializers.zeros
    self.ups = [dense(2 * c.dim, name=f"up_{level}") for level in each]
    self.downs = [
      dense(1, kernel_init=none, name=f"down_{level}") for level in each
    ]
    self.mix = self.param("mix", none, (sizes.levels + 1,), dtype)
    self.liked = dense(c.dim, name="liked")
    self.passed = dense(c.dim, name="passed")

  def _values(self, states):
    """v_l f32[..., L + 1] of the states f32[..., L + 1, d] of a walk."""
    each = [
      down(nn.gelu(up(states[..., level, :])))
      for level, (up, down) in enumerate(zip(self.ups, self.downs, strict=True))
    ]
    return self.unit * jnp.concatenate(each, axis=-1)

  def initialise(self, catalogue, request, share, slate):
    """Touches every parameter; only for `init`."""
    self.state(catalogue, request, share)
    self.prefixes(catalogue, request, slate, slate > 0)

  def state(self, catalogue, request, share):
    """V(s) f32[B] of requests.

    Args:
      catalogue: the Catalogue.
      request: the Request.
      share: f32[B, N], the policy's probability of each candidate as the
        first item: its mean of tokens' embeddings is the expected token's.
    """
    root = self.descent.known(catalogue, request)
    every = self.descent.embedded(self.tokens_of(catalogue, request))
    expected = jnp.einsum("bn,bnld->bld", share, every)
    states = self.descent.walk(root + self.slot[:1], expected)
    return self._values(states) @ jax.nn.softmax(self.mix)

  def prefixes(self, catalogue, request, slate, clicked):
    """Values f32[B, K, L] of the states that choose slates' tokens.

    A slot's states know how the user answered to the slots above it, which no
    choice of its own changes.

    Args:
      catalogue: the Catalogue.
      request: the Request.
      slate: i32[B, K], positions, PAD where empty.
      clicked: bool[B, K], his answers.
    """
    place = jnp.maximum(slate, 0)
    rows = jnp.take_along_axis(request.candidates, place, axis=1)
    items = self.descent.items(catalogue, rows)
    answered = jnp.where(
      clicked[..., None], self.liked(items), self.passed(items)
    )
    before = jnp.pad(answered, ((0, 0), (1, 0), (0, 0)))[:, :-1]
    above = jnp.cumsum(before, axis=1)
    root = self.descent.known(catalogue, request)
    start = root[:, None] + self.slot[None] + above
    own = self.descent.embedded(catalogue.sids[jnp.maximum(rows, 0)])
    values = self._values(self.descent.walk(start, own))
    return values[..., : self.sizes.levels]
