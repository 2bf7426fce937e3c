"""Users who answer by a vote of simple rules, or as most do.

An ensemble of a logical and a statistical model of users, as simulators that
ask a language model have it (arXiv 2412.16984), without one. It has little in
common with a response model, on which one of its three votes rests: what holds
for both kinds of users is no whim of a network.
"""

import jax
import jax.numpy as jnp
import jax.scipy.special
import numpy as np

from rerank_rl.simulation import learnt
from rerank_rl.types import PAD, Array, Impression

PRIOR = 20.0  # Shows of an item that are worth as much as what all items say.
VOTES = 2  # Of three opinions, that make a click.
_LOGIC = np.arange(100, dtype=np.float32) / 100  # Of these the likeliest.


class Ensemble(learnt.Learnt):
  """A logical model of users (three opinions) and a statistical one.

    P(click on item i in slot k) = logic * [VOTES opinions are above their bars]
                                   + (1 - logic) * usual_click(i, k)
    P(signal s)                  = P(click) * min(1, usual_s / usual_click)
    usual_s(i, k)                = sigmoid(rates_is + places_ks)

  Attributes:
    features: f32[M, F], unit vectors: how an item's attributes differ from the
      mean item's.
    rates: f32[M, S], log-odds of each signal; an item's mean is drawn towards
      all items'.
    places: f32[K, S], what a slot adds to them.
    bars: f32[3], what opinions must exceed: as often as the log has clicks.
    logic: f32[], with which the log's clicks are likeliest.
  """

  features: Array
  rates: Array
  places: Array
  bars: Array
  logic: Array

  def opinions(self, state: learnt.Visitor, shown: Array) -> Array:
    """Three opinions f32[3, K] on the items i32[K] that a user is shown.

    Cosine of an item's attributes to those of what he clicked; that of its
    vector to what he clicked, the newest weighing most; P(click) as the
    response model, which reads his clicks in their order, says.
    """
    past = (state.history != PAD).astype(self.features.dtype)
    liked = past @ self.features[jnp.maximum(state.history, 0)]
    sequence = super().chances(state, shown)[:, 0]
    return jnp.stack(
      [
        learnt.cosine(self.features[shown], liked),
        learnt.cosine(self.vectors[shown], state.taste),
        sequence,
      ]
    )

  def chances(self, state: learnt.Visitor, shown: Array) -> Array:
    """P(signal) f32[K, S] of the items i32[K] that a user is shown."""
    agreed = _agreed(self.opinions(state, shown), self.bars)
    usual = jax.nn.sigmoid(self.rates[shown] + self.places)
    click = self.logic * agreed + (1 - self.logic) * usual[:, 0]
    return click[:, None] * jnp.minimum(usual / usual[:, :1], 1)


def _agreed(opinion: Array, bars: Array) -> Array:
  """1 where enough of the opinions f32[..., 3, K] exceed their bars, else 0."""
  above = opinion > bars.reshape((1,) * (opinion.ndim - 2) + (3, 1))
  return (above.sum(-2) >= VOTES).astype(opinion.dtype)


@jax.jit
def fit(law: learnt.Learnt, features: Array, log: Impression) -> Ensemble:
  """Reads rates, bars and the weight of logic off a log.

  Args:
    law: the response model, its catalogue, and the session's numbers.
    features: f32[M, F], the catalogue's attributes.
    log: n rows, of the users whom `law` was fitted to.

  Returns:
    Users of the same catalogue.
  """
  shown, real = _shown(log)
  weight = real[..., None].astype(features.dtype)
  seen = log.feedback * weight
  mean = _inside(seen.sum((0, 1)) / weight.sum((0, 1)))
  by_item = lambda x: jnp.zeros((len(features), x.shape[-1])).at[shown].add(x)
  rate = (by_item(seen) + PRIOR * mean[None]) / (by_item(weight) + PRIOR)
  slot = _inside(seen.sum(0) / jnp.maximum(weight.sum(0), 1))
  logit = jax.scipy.special.logit
  users = Ensemble(
    **{name: getattr(law, name) for name in law.__dataclass_fields__},
    features=learnt.unit(features - features.mean(0, keepdims=True)),
    rates=logit(rate),
    places=logit(slot) - logit(mean)[None],
    bars=jnp.zeros(3),
    logic=jnp.zeros(()),
  )
  opinion = learnt.on_log(users.opinions, users, log)
  each = jnp.where(real[:, None], opinion, jnp.nan).swapaxes(0, 1)
  bars = jnp.nanquantile(each.reshape(3, -1), 1 - mean[0], 1)
  usual = jax.nn.sigmoid(users.rates[shown] + users.places[None])[..., 0]
  agreed, clicked = _agreed(opinion, bars), log.feedback[..., 0] > 0.5

  def likely(logic):
    click = logic * agreed + (1 - logic) * usual
    chance = jnp.where(clicked, click, 1 - click)
    return jnp.log(chance).sum(where=real)

  best = jnp.argmax(jax.lax.map(likely, jnp.asarray(_LOGIC)))
  return users.replace(bars=bars, logic=jnp.asarray(_LOGIC)[best])


def _shown(log):
  """Catalogue rows i32[n, K] of a log's slates, and which are not PAD."""
  place = jnp.maximum(log.slate, 0)
  shown = jnp.take_along_axis(log.request.candidates, place, axis=1)
  return shown, log.slate != PAD


def _inside(rate):
  """A rate that is neither 0 nor 1."""
  return jnp.clip(rate, 1e-4, 1 - 1e-4)
