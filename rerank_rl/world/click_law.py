"""The click law: how a user reads a slate. It is written here only.

With rel_t the relevance of the item in slot t, t = 0 the top slot,

  p_t = sigmoid(rel_t - fatigue_t + contrast_t), a click given examination,
  fatigue_t = fatigue * (1 - .5^t) * sum_{s<t} w_s max(z_t.z_s, 0) / sum w_s,
    w_s = .7^(t-1-s),
  contrast_t = contrast * (rel_t - rel_{t-1}), 0 at t = 0,
  e_0 = 1, e_{t+1} = e_t * sigmoid(1.2 + 2 (p_t - .3)), examination,
  P(click at t) = e_t * p_t.

Fatigue, contrast and examination read the shown prefix and never a click, so
a slate's expected clicks are a closed form and every prefix's value is final:
items placed below cannot change it.
"""

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from rerank_rl.types import Array


@struct.dataclass
class Law:
  """The law's numbers; all static.

  Attributes:
    fatigue: weight of similarity to the items above.
    contrast: weight of the step in relevance from the item just above.
    decay: weight of an item one slot further up, relative to the nearer.
    saturation: fatigue reaches 1 - saturation^t of its weight in slot t.
    stay_bias, stay_slope, stay_pivot: the next slot is examined with
      probability sigmoid(stay_bias + stay_slope * (p_t - stay_pivot)).
  """

  fatigue: float = struct.field(pytree_node=False, default=2.5)
  contrast: float = struct.field(pytree_node=False, default=0.16)
  decay: float = struct.field(pytree_node=False, default=0.7)
  saturation: float = struct.field(pytree_node=False, default=0.5)
  stay_bias: float = struct.field(pytree_node=False, default=1.2)
  stay_slope: float = struct.field(pytree_node=False, default=2.0)
  stay_pivot: float = struct.field(pytree_node=False, default=0.3)


@struct.dataclass
class Prefix:
  """What the law remembers of the slots filled so far.

  Attributes:
    likeness: f[..., N], sum over placed s of decay^(t-1-s) max(z_n.z_s, 0).
    last: f[...], relevance of the item just above; 0 before the first.
    examined: f[...], e_t.
    utility: f[...], expected clicks of the slots filled so far.
  """

  likeness: Array
  last: Array
  examined: Array
  utility: Array


def similarity(z_above: Array, z_below: Array) -> jax.Array:
  """max(z_i . z_j, 0): f[..., I, D], f[..., J, D] -> f[..., I, J]."""
  cosine = jnp.einsum("...id,...jd->...ij", z_above, z_below)
  return jnp.maximum(cosine, 0.0)


def fatigue_scale(law: Law, slot: int) -> float:
  """What slot `slot`'s decayed similarity sum is multiplied by."""
  weights = sum(law.decay**s for s in range(slot))
  return law.fatigue * (1 - law.saturation**slot) / max(weights, 1.0)


def stay(law: Law, p: Array) -> jax.Array:
  """Probability that an examined slot's reader goes on to the next."""
  return jax.nn.sigmoid(law.stay_bias + law.stay_slope * (p - law.stay_pivot))


def conditional_clicks(law: Law, rel: Array, alike: Array) -> jax.Array:
  """P(click at t | t is examined).

  Args:
    law: the law.
    rel: f[..., K], relevances, top slot first.
    alike: f[..., K, K], positive cosines between the slots' items.

  Returns:
    f[..., K].
  """
  size = rel.shape[-1]
  weights = np.zeros((size, size))
  for t in range(size):
    for s in range(t):
      weights[t, s] = fatigue_scale(law, t) * law.decay ** (t - 1 - s)
  fatigue = jnp.einsum(
    "...ts,ts->...t", alike, jnp.asarray(weights, alike.dtype)
  )
  # The top slot has nothing above: its contrast is with itself.
  above = jnp.concatenate([rel[..., :1], rel[..., :-1]], axis=-1)
  return jax.nn.sigmoid(rel - fatigue + law.contrast * (rel - above))


def clicks_from_similarity(
  law: Law, rel: Array, alike: Array, mask: Array
) -> jax.Array:
  """`expected_clicks` where the positive cosines f[..., K, K] are known."""
  p = conditional_clicks(law, rel, alike)
  reach = jnp.cumprod(stay(law, p), axis=-1)
  examined = jnp.concatenate(
    [jnp.ones_like(reach[..., :1]), reach[..., :-1]], axis=-1
  )
  return jnp.where(mask, examined * p, 0.0)


def expected_clicks(law: Law, rel: Array, z: Array, mask: Array) -> jax.Array:
  """Marginal P(click at t), examination included: e_t * p_t.

  Args:
    law: the law.
    rel: f[..., K], relevance of each slot's item, top slot first.
    z: f[..., K, D], unit latents of the items.
    mask: bool[..., K], False at padding, which may only follow the items.

  Returns:
    f[..., K], 0 at padding.
  """
  return clicks_from_similarity(law, rel, similarity(z, z), mask)


def sample_clicks(
  key: Array, law: Law, rel: Array, z: Array, mask: Array
) -> jax.Array:
  """Simulates a reader: bool[..., K], arguments as in `expected_clicks`."""
  p = conditional_clicks(law, rel, similarity(z, z))
  click_key, stay_key = jax.random.split(key)
  stays = jax.random.uniform(stay_key, p.shape, p.dtype) < stay(law, p)
  # Slot t is examined when the reader went on from every slot above it.
  gone_on = jnp.cumprod(stays.astype(jnp.int32), axis=-1)
  examined = jnp.concatenate(
    [jnp.ones_like(gone_on[..., :1]), gone_on[..., :-1]], axis=-1
  )
  clicks = jax.random.uniform(click_key, p.shape, p.dtype) < p
  return clicks & (examined > 0) & mask


def empty_prefix(rel: Array) -> Prefix:
  """The prefix without items, for candidates of relevance f[..., N]."""
  none = jnp.zeros_like(rel[..., 0])
  return Prefix(jnp.zeros_like(rel), none, none + 1.0, none)


def next_clicks(law: Law, prefix: Prefix, rel: Array, slot: int) -> jax.Array:
  """P(click | examined) of every candidate, were it placed in `slot`.

  Args:
    law: the law.
    prefix: the `slot` slots above.
    rel: f[..., N], the candidates' relevance.
    slot: the slot to fill, 0 the top.

  Returns:
    f[..., N].
  """
  step = rel - prefix.last[..., None] if slot else jnp.zeros_like(rel)
  fatigue = fatigue_scale(law, slot) * prefix.likeness
  return jax.nn.sigmoid(rel - fatigue + law.contrast * step)


def place(law: Law, prefix: Prefix, rel: Array, p: Array, alike: Array):
  """The prefix with one more item.

  Args:
    law: the law.
    prefix: the slots above.
    rel: f[...], the placed item's relevance.
    p: f[...], its P(click | examined).
    alike: f[..., N], its positive cosine to every candidate.

  Returns:
    A Prefix.
  """
  return Prefix(
    likeness=law.decay * prefix.likeness + alike,
    last=rel,
    examined=prefix.examined * stay(law, p),
    utility=prefix.utility + prefix.examined * p,
  )
