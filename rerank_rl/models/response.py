"""How a user responds to a slate, read from what he has clicked before.

An item's answer hangs on the user, on the item and on those above it. The user
is read by a transformer over the clicked items, in which each sees the last W
up to and with itself (sliding window, Beltagy et al. 2020), weighed by how long
ago they were (ALiBi, Press et al. 2022, with learnt slopes). No place is
absolute and none sees what follows it, so a user who has been read is read on,
click by click, with the same result as from the start.

Letters: B users, Q new clicks, W window, E = W + Q; the rest as in types.py.
"""

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp

from rerank_rl.models import evaluator
from rerank_rl.models.reader import Mlp
from rerank_rl.models.transformer import Block, KeyValue
from rerank_rl.types import PAD, Array


@struct.dataclass
class Memory:
  """Users, read so far.

  Attributes:
    layers: KeyValue f32[B, H, W, dh] a layer: the last W clicks, newest last.
    count: i32[B], how many of them there are.
    state: f32[B, d], after the newest click.
  """

  layers: tuple[KeyValue, ...]
  count: Array
  state: Array


class ResponseModel(nn.Module):
  """P(signal | user's profile, his clicks, item, the items above it).

  Fitted as `evaluator.ListEvaluator` is, whose interface it has.

  Attributes:
    slots: K of the slates that it is fitted to.
    signals: S.
    window: W.
    dim: width d.
    layers: blocks.
    heads: of each.
    dropout: rate while fitting.
  """

  slots: int
  signals: int
  window: int
  dim: int = 64
  layers: int = 2
  heads: int = 2
  dropout: float = 0.1

  def setup(self):
    self.item = Mlp((self.dim, self.dim), self.dropout)
    self.profile = nn.Dense(self.dim)
    self.start = self.param("start", nn.initializers.zeros, (self.dim,))
    dtype = jnp.dtype(jnp.float32)
    self.blocks = [
      Block(self.dim, self.heads, dtype, self.dropout, name=f"block_{i}")
      for i in range(self.layers)
    ]
    self.slope = self.param("slope", _slopes, (self.layers, self.heads))
    self.norm = nn.LayerNorm()
    self.place = self.param(
      "place", nn.initializers.normal(0.02), (self.slots, self.dim)
    )
    self.answer = Mlp((self.dim, self.signals), self.dropout)

  def __call__(self, features, request, slate, train=False):
    """Logits f32[B, G, K, S] of the signals at each position.

    Args:
      features: f32[M, F], the catalogue's.
      request: a `types.Request` with leading dimension B.
      slate: i32[B, G, K], positions in the candidates, PAD.
      train: whether dropout acts (needs the rng `dropout`).
    """
    B, G, K = slate.shape
    items = lambda rows: self.item(features[jnp.maximum(rows, 0)], train)
    past = request.history
    memory = self.extend(self.blank(B), items(past), past != PAD)
    place = jnp.maximum(slate, 0).reshape(B, G * K)
    shown = jnp.take_along_axis(request.candidates, place, axis=1)
    shown = items(shown).reshape(B, G, K, self.dim)
    return self.respond(memory.state, self.who(request.user), shown, train)

  def penalty(self, features, impression, train=False):
    """What fitting minimises: see `evaluator.feedback_loss`."""
    slate = impression.slate[:, None]
    x = self(features, impression.request, slate, train)[:, 0]
    return evaluator.feedback_loss(x, impression)

  def table(self, features):
    """Every item of a catalogue f32[M, F], read once: f32[M, d]."""
    return self.item(features)

  def who(self, user):
    """Profiles f32[B, d] of users' features f32[B, U]."""
    shape = (*user.shape[:-1], self.dim)
    return self.profile(user) if user.shape[-1] else jnp.zeros(shape)

  def blank(self, users):
    """The Memory of users without clicks."""
    shape = (users, self.heads, self.window, self.dim // self.heads)
    none = KeyValue(jnp.zeros(shape), jnp.zeros(shape))
    state = jnp.broadcast_to(self.start, (users, self.dim))
    return Memory((none,) * self.layers, jnp.zeros(users, jnp.int32), state)

  def extend(self, memory, items, clicked):
    """Users after more items, of which those that were clicked are read.

    Args:
      memory: Memory of B users.
      items: f32[B, Q, d], rows of `table`, oldest first.
      clicked: bool[B, Q].

    Returns:
      Memory.
    """
    W = self.window
    number = jnp.cumsum(clicked, axis=1)  # From 1.
    total = number[:, -1]
    old = jnp.arange(W) - W + 1  # The newest is 0.
    place = jnp.concatenate(
      [jnp.broadcast_to(old[None], (len(items), W)), number], axis=1
    )
    there = jnp.concatenate([old[None] > -memory.count[:, None], clicked], 1)
    kept = _newest(clicked, total, W)
    newest = jnp.maximum(kept[:, -1:] - W, 0)
    x, layers = items, []
    for i, (block, past) in enumerate(
      zip(self.blocks, memory.layers, strict=True)
    ):
      # Of the last block nothing is read but the newest click.
      asked = newest if i == self.layers - 1 else None
      at = number if asked is None else total[:, None]
      ago = at[:, :, None] - place[:, None]
      seen = there[:, None] & (ago >= 0) & (ago < W)
      slope = nn.softplus(self.slope[i])[None, :, None, None]
      bias = jnp.where(seen[:, None], -slope * ago[:, None], -1e9)
      x, own = block.append(x, past, bias, asked)
      layers.append(
        jax.tree.map(lambda old, new: _take(old, new, kept), past, own)
      )
    state = jnp.where((total > 0)[:, None], self.norm(x[:, 0]), memory.state)
    count = jnp.minimum(memory.count + total, W)
    return Memory(tuple(layers), count, state)

  def respond(self, state, user, items, train=False):
    """Logits f32[B, G, K, S] for slates f32[B, G, K, d] of `table`'s rows."""
    number = jnp.arange(items.shape[2], dtype=items.dtype)[None, None, :, None]
    above = (jnp.cumsum(items, axis=2) - items) / jnp.maximum(number, 1)
    last = jnp.pad(items, ((0, 0), (0, 0), (1, 0), (0, 0)))[:, :, :-1]
    both = (state + user)[:, None, None] + self.place[None, None]
    parts = [jnp.broadcast_to(both, items.shape), items, both * items]
    parts += [above, items * above, items * last]
    return self.answer(jnp.concatenate(parts, -1), train)


def _newest(clicked, total, W):
  """Where the W newest of W old and Q new ones are, i32[B, W].

  Only the clicked of the new ones (bool[B, Q], `total` of them) count.
  """
  order = jnp.argsort(~clicked, axis=1, stable=True)
  place = jnp.arange(W)[None] + total[:, None]
  new = jnp.take_along_axis(
    order, jnp.clip(place - W, 0, order.shape[1] - 1), 1
  )
  return jnp.where(place < W, place, W + new)


def _take(old, new, index):
  """f32[B, H, X, d] at i32[B, X] of f32[B, H, W, d], then f32[B, H, Q, d]."""
  W, index = old.shape[2], index[:, None, :, None]
  # Nothing is out of bounds; to look would take as long as to copy.
  at = lambda x, i: jnp.take_along_axis(x, i, 2, mode="promise_in_bounds")
  then = at(old, jnp.minimum(index, W - 1))
  return jnp.where(index < W, then, at(new, jnp.maximum(index - W, 0)))


def _slopes(key, shape, dtype=jnp.float32):
  """Softplus inverses of .02 to .2 a click, one for each head."""
  del key
  rate = jnp.geomspace(0.02, 0.2, shape[1], dtype=dtype)
  return jnp.broadcast_to(jnp.log(jnp.expm1(rate)), shape)
