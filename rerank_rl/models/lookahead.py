"""The lookahead evaluator: how much feedback every prefix of a slate will get.

For each signal it gives P(V_t >= k), k = 1..K, of the count V_t of feedback in
the first t positions, by a recursion down the slate (docs/methods.md, DeGRe):

  hit_t(k)      = r_t(k) c_t(k)
  r_{t+1}(k)    = (r_t(k) - hit_t(k) + hit_t(k-1)) s_t
  P(V_t >= k)   = P(V_{t-1} >= k) + hit_t(k-1)

with r_t(k) = P(V_{t-1} = k, position t is read), r_1(0) = 1, c_t(k) the chance
of feedback where k came before and s_t that of reading on. Probabilities leave
k for k + 1 alone and never come back, so that P(V_t >= k) cannot grow in k or
shrink in t, whatever the network says; independent sigmoids could. With s_t = 1
any law of counts is within reach, and a cascade with c_t(k) equal for all k.

Shapes are those of `models.evaluator`; k runs over the last axis.
"""

import functools
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from rerank_rl.models import ensemble, evaluator
from rerank_rl.types import Array


class Descent(NamedTuple):
  """What the recursion has met on its way down T positions.

  Attributes:
    hit: f32[..., T, S, K], hit_t(k).
    count: f32[..., T, S, K], P(V_{t-1} = k), k = 0..K-1.
    reading: f32[..., S, K], r_{T+1}(k).
  """

  hit: Array
  count: Array
  reading: Array


def descend(chance: Array, stay: Array) -> Descent:
  """The recursion of the module's docstring.

  Args:
    chance: f32[..., T, S, K], c_t(k) for k = 0..K-1; 0 at padding.
    stay: f32[..., T], s_t; 1 at padding.
  """
  first = jax.nn.one_hot(0, chance.shape[-1], dtype=chance.dtype)
  reading = jnp.broadcast_to(first, (*chance.shape[:-3], *chance.shape[-2:]))
  count, hits, counts = reading, [], []
  for t in range(chance.shape[-3]):
    hit = reading * chance[..., t, :, :]
    up = jnp.concatenate([jnp.zeros_like(hit[..., :1]), hit[..., :-1]], -1)
    hits.append(hit)
    counts.append(count)
    count = count - hit + up
    reading = (reading - hit + up) * stay[..., t, None, None]
  return Descent(jnp.stack(hits, -3), jnp.stack(counts, -3), reading)


def tails(hit: Array) -> jax.Array:
  """P(V_t >= k) f32[..., T, S, K], k = 1..K, of `descend`'s hits."""
  return jnp.cumsum(hit, -3)


class LookaheadEvaluator(evaluator.ListEvaluator):
  """A list evaluator that also knows how feedback adds up.

  Its logits are those of the expected feedback at each position, as any list
  evaluator's, hence V-hat(prefix) = sum_k P(V >= k) is the sum of a prefix's
  values. It is fitted to the counts of all prefixes. `cascade` is not used:
  the recursion holds the examination.
  """

  def setup(self):
    super().setup()
    # How feedback hangs on what came before: [position, signal, count].
    shape = (self.slots, self.signals, self.slots)
    self.mood = self.param("mood", nn.initializers.zeros, shape)

  def __call__(self, features, request, slate, train=False):
    """Logits f32[B, G, K, S]; see `ListEvaluator`."""
    hit = self._descent(features, request, slate, train).hit
    return evaluator.logit(hit.sum(-1))

  def counts(self, features, request, slate):
    """P(V_t >= k), k = 1..K: f32[B, G, K, S, K], the prefixes' axis third."""
    return tails(self._descent(features, request, slate, False).hit)

  def foretell(self, features, impression, train):
    """Logits f32[B, K, S] of each position's feedback, given the count so far.

    P(V_t = k + 1 | V_{t-1} = k) = hit_t(k) / P(V_{t-1} = k): by the chain rule
    their cross-entropies add up to that of the counts of all prefixes.
    Feedback between 0 and 1 counts in parts.
    """
    slate = impression.slate[:, None]
    seen = self._descent(features, impression.request, slate, train)
    chance = seen.hit[:, 0] / jnp.maximum(seen.count[:, 0], 1e-6)
    before = jnp.cumsum(impression.feedback, 1) - impression.feedback
    far = jnp.abs(before[..., None] - jnp.arange(self.slots)[None, None, None])
    return evaluator.logit((chance * jnp.maximum(1 - far, 0)).sum(-1))

  def score_next(self, items, placed, k):
    """Logits f32[B, W, N, S] of candidates at k; see `ListEvaluator`."""
    click, above = self.judge_next(items, placed, k)
    place = jnp.arange(placed.shape[-1])
    judged = self._judge(above, above, place, False)
    reading = self._descend(*judged, above).reading
    chance = nn.sigmoid(click[..., None] + self.mood[k][None, None, None])
    return evaluator.logit((reading[:, :, None] * chance).sum(-1))

  def _descent(self, features, request, slate, train):
    """The Descent [B, G, ...] of slates i32[B, G, K]."""
    placed = self.place_items(features, request, slate, train)
    place = jnp.arange(slate.shape[-1])
    return self._descend(*self._judge(placed, placed, place, train), placed)

  def _descend(self, click, go, placed):
    """`descend` of logits [B, W, K, S] and [B, W, K, 1]."""
    real = placed.mask
    chance = nn.sigmoid(click[..., None] + self.mood[None, None])
    chance = jnp.where(real[..., None, None], chance, 0)
    return descend(chance, jnp.where(real, nn.sigmoid(go[..., 0]), 1))


@functools.partial(jax.jit, static_argnums=0)
def counts(model, fitted, features, request, slate) -> jax.Array:
  """The members' mean P(V_t >= k) of slates i32[B, G, K]: f32[B, G, K, S, K].

  A mean of laws that are monotone in t and in k is so too.
  """
  apply = lambda p: model.apply(
    {"params": p}, features, request, slate, method="counts"
  )
  return ensemble.each(apply, fitted.params).mean(0)
