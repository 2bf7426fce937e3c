"""Items, users, an upstream ranker and a log, all of known law.

  z_i = unit(c_topic(i) + .6 e), q_i ~ N(0, .5^2),
  u = unit(w c_a + (1 - w) c_b + .6 e), w uniform, a and b two topics,
  rel(u, i) = 3 u.z_i + q_i - 1.6,

with e ~ N(0, I/D), as long as a topic's unit centre c.

A request draws a pool of 8 N items, the ranker scores it with rel + noise
and its N best are the candidates. The logging policy is Plackett-Luce over
the ranker's scores.
"""

from collections.abc import Callable
import functools
import math

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from rerank_rl.config import ConfigError, WorldConfig, check_bounds
from rerank_rl.types import PAD, Array, Impression, Request
from rerank_rl.world import click_law

CHUNK = 4096  # Requests generated at a time.
POOL = 8  # Items the ranker scores, in multiples of N.
ITEM_SPREAD = 0.6
QUALITY_SPREAD = 0.5
USER_SPREAD = 0.6
TASTE = 3.0
OFFSET = -1.6


@struct.dataclass
class World:
  """The truth.

  Attributes:
    centres: f32[topics, D], unit.
    z: f32[M, D], items' latents, unit.
    quality: f32[M], q.
    topic: i32[M].
    features: f32[M, D + 1 + topics], what may be observed of an item: its
      latents and q, noisy unless `config.observed`, and its topic, one-hot.
    warm: bool[M], False for the items held out of training.
    shuffle: i32[M], a fixed random order of the items, that pools are cut
      from.
    law: how users click.
    config: static sizes.
  """

  centres: Array
  z: Array
  quality: Array
  topic: Array
  features: Array
  warm: Array
  shuffle: Array
  law: click_law.Law
  config: WorldConfig = struct.field(pytree_node=False)


def _unit(x: Array) -> jax.Array:
  return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def gaussian(key: Array, shape: tuple[int, ...], dtype) -> jax.Array:
  """Gaussian vectors of expected squared length 1."""
  return jax.random.normal(key, shape, dtype) / math.sqrt(shape[-1])


def check(config: WorldConfig) -> None:
  """Raises ConfigError where no world can have these sizes."""
  check_bounds(config, "config.world")
  if config.slate_size > config.num_candidates:
    raise ConfigError(
      f"config.world.slate_size={config.slate_size} exceeds"
      f" num_candidates={config.num_candidates}; lower it."
    )
  warm = config.num_items - int(config.cold_share * config.num_items)
  if warm < config.slate_size:
    raise ConfigError(
      f"config.world.num_items={config.num_items} leaves {warm} items for"
      f" training, fewer than slate_size={config.slate_size}; raise it."
    )


def build(config: WorldConfig, seed: int) -> World:
  """The world of `seed`; `config.seed` wins where it is given.

  Args:
    config: sizes and weights.
    seed: the run's seed.

  Returns:
    A World of f32 arrays.

  Raises:
    ConfigError: sizes that contradict each other.
  """
  check(config)
  seed = seed if config.seed is None else config.seed
  return _build(config, jax.random.key(seed))


@functools.partial(jax.jit, static_argnames="config")
def _build(config: WorldConfig, key: Array) -> World:
  """f32 and i32 whatever the default: one world, with x64 or without."""
  f32, i32, items = jnp.float32, jnp.int32, config.num_items
  rows = jnp.arange(items, dtype=i32)
  keys = iter(jax.random.split(key, 8))
  shape = (config.num_topics, config.latent_dim)
  centres = _unit(jax.random.normal(next(keys), shape, f32))
  topic = jax.random.randint(next(keys), (items,), 0, config.num_topics, i32)
  unlike = gaussian(next(keys), (items, config.latent_dim), f32)
  z = _unit(centres[topic] + ITEM_SPREAD * unlike)
  quality = QUALITY_SPREAD * jax.random.normal(next(keys), (items,), f32)
  seen = jnp.concatenate([z, quality[:, None]], axis=-1)
  if not config.observed:
    noise = jax.random.normal(next(keys), seen.shape, f32)
    seen = seen + config.feature_noise * noise
  cold = jax.random.permutation(next(keys), rows)
  cold = cold[: int(config.cold_share * items)]
  return World(
    centres=centres,
    z=z,
    quality=quality,
    topic=topic,
    features=jnp.concatenate(
      [seen, jax.nn.one_hot(topic, config.num_topics, dtype=f32)], axis=-1
    ),
    warm=jnp.ones(items, bool).at[cold].set(False),
    shuffle=jax.random.permutation(next(keys), rows),
    law=click_law.Law(fatigue=config.fatigue, contrast=config.contrast),
    config=config,
  )


def topic_pairs(world: World, key: Array, count: int):
  """Two distinct topics a user, both i32[count]."""
  topics = world.centres.shape[0]
  # The second is drawn among the others: it steps over the first.
  most = jnp.array([[topics], [topics - 1]])
  pair = jax.random.randint(key, (2, count), 0, most, jnp.int32)
  return pair[0], pair[1] + (pair[1] >= pair[0])


def users(world: World, key: Array, count: int) -> jax.Array:
  """Users drawn from the prior: f[count, D], unit."""
  pair_key, mix_key, noise_key = jax.random.split(key, 3)
  first, second = topic_pairs(world, pair_key, count)
  dtype = world.z.dtype
  mix = jax.random.uniform(mix_key, (count, 1), dtype)
  unlike = gaussian(noise_key, (count, world.z.shape[1]), dtype)
  return blend(world, first, second, mix, unlike)


def blend(
  world: World, first: Array, second: Array, mix: Array, noise: Array
) -> jax.Array:
  """unit(w c_a + (1 - w) c_b + .6 e), the prior's user.

  Args:
    world: the truth.
    first: i[...], topic a.
    second: i[...], topic b.
    mix: f[..., 1], w in [0, 1].
    noise: f[..., D], e.

  Returns:
    f[..., D].
  """
  centre = mix * world.centres[first] + (1 - mix) * world.centres[second]
  return _unit(centre + USER_SPREAD * noise)


def relevance(world: World, hidden: Array, items: Array) -> jax.Array:
  """rel(u, i) = 3 u.z_i + q_i - 1.6.

  Args:
    world: the truth.
    hidden: f[..., D], users.
    items: i[..., N], catalogue rows; PAD rows get some finite value.

  Returns:
    f[..., N].
  """
  taste = jnp.einsum("...d,...nd->...n", hidden, world.z[items])
  return TASTE * taste + world.quality[items] + OFFSET


def stock(world: World, warm: bool = False) -> np.ndarray:
  """The items that may occur, i32[M], in `world.shuffle`'s order.

  Args:
    world: the truth.
    warm: whether those held out of training may not. PAD then stands at the
      end, so that what draws from all is the same program; where the others
      do not fill a pool they come without, i32[W].
  """
  order = np.asarray(world.shuffle)
  if not warm:
    return order
  kept = order[np.asarray(world.warm)[order]]
  if len(kept) < POOL * world.config.num_candidates:
    return kept
  return np.pad(kept, (0, len(order) - len(kept)), constant_values=PAD)


def impressions(
  world: World, key: Array, count: int, warm: bool = False
) -> Impression:
  """A log: requests, Plackett-Luce slates and their clicks.

  Row b depends on `key` and b only, so a longer log starts with the shorter.

  Args:
    world: the truth.
    key: a PRNG key.
    count: rows, >= 1.
    warm: whether items held out of training do not occur.

  Returns:
    An Impression of numpy columns (f32, i32): one signal, the click.

  Raises:
    ValueError: too few items may occur to fill a slate.
  """
  size, order = world.config.slate_size, stock(world, warm)
  items = int(_count(order))
  if count < 1 or items < size:
    raise ValueError(
      f"a log of {count} requests over {items} items with slates of {size} is"
      f" not possible; ask for >= 1 request and >= {size} items."
    )
  # Always whole chunks: a program for another size would cost more.
  parts = [
    jax.device_get(_chunk(world, key, jnp.asarray(order), start))
    for start in range(0, count, CHUNK)
  ]
  return jax.tree.map(lambda *x: np.concatenate(x)[:count], *parts)


@jax.jit
def _chunk(world, key, order, start):
  rows = start + jnp.arange(CHUNK)
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, rows)
  return jax.vmap(functools.partial(_impression, world, order))(keys)


def _impression(world: World, order: Array, key: Array) -> Impression:
  """One row of `impressions`, of `stock`'s items."""
  config, dtype = world.config, world.z.dtype
  keys = jax.random.split(key, 6)
  user = users(world, keys[0], 1)[0]
  history = _history(world, order, user, keys[1])
  candidates, scores = retrieve(world, order, user, keys[2], keys[3])
  slate, propensity = logged_slate(scores, config.slate_size, keys[4])
  shown = candidates[slate]
  clicks = click_law.sample_clicks(
    keys[5],
    world.law,
    relevance(world, user, shown),
    world.z[shown],
    jnp.ones(shown.shape, bool),
  )
  candidates, scores = to_width(config, candidates, scores)
  return Impression(
    request=Request(
      user=user if config.observed else user[:0],
      history=history,
      candidates=candidates,
      scores=scores,
      size=jnp.int32(config.slate_size),
    ),
    slate=slate,
    feedback=clicks.astype(dtype)[:, None],
    propensity=propensity,
    hidden=user,
  )


def retrieve(
  world: World, order: Array, user: Array, pool_key: Array, noise_key: Array
) -> tuple[jax.Array, jax.Array]:
  """The upstream ranker's best N of a pool of 8 N items, for one user.

  Args:
    world: the truth.
    order: i32[W], the items that may occur, see `stock`.
    user: f[D].
    pool_key: PRNG key of the pool.
    noise_key: PRNG key of the ranker's noise.

  Returns:
    (catalogue rows i32[N], scores f[N]), best first; fewer than N where
    there are fewer items.
  """
  score = lambda pool: relevance(world, user, pool)
  return retrieve_by(world.config, order, score, pool_key, noise_key)


def retrieve_by(
  config: WorldConfig,
  order: Array,
  score: Callable[[Array], Array],
  pool_key: Array,
  noise_key: Array,
) -> tuple[jax.Array, jax.Array]:
  """`retrieve` for whoever likes catalogue rows i32[n] as `score` says."""
  pool = _pool(order, min(POOL * config.num_candidates, len(order)), pool_key)
  known = score(pool)
  noise = jax.random.normal(noise_key, pool.shape, known.dtype)
  scores, best = jax.lax.top_k(
    known + config.ranker_noise * noise, min(config.num_candidates, len(pool))
  )
  return pool[best], scores


def to_width(
  config: WorldConfig, candidates: Array, scores: Array
) -> tuple[jax.Array, jax.Array]:
  """What `retrieve` brings as i32[N], PAD at the end, and f[N], 0 there."""
  short = (0, config.num_candidates - len(candidates))
  padded = jnp.pad(candidates, short, constant_values=PAD)
  return padded, jnp.pad(scores, short)


def _pool(order: Array, size: int, key: Array) -> jax.Array:
  """`size` distinct items of `order`, each as likely as any other.

  The order, a ring turned by a random offset, is cut into `size` strata and
  one item is drawn from each: O(size) whatever the catalogue's size.
  """
  count = _count(order)
  place = jnp.arange(size + 1, dtype=jnp.int32)
  # floor(place * count / size), in 32 bits.
  cuts = place * (count // size) + place * (count % size) // size
  turn_key, draw_key = jax.random.split(key)
  turn = jax.random.randint(turn_key, (), 0, count)
  drawn = jax.random.randint(draw_key, (size,), cuts[:-1], cuts[1:], jnp.int32)
  return order[(turn + drawn) % count]


def _count(order: Array) -> Array:
  """How many items `stock` holds, i32."""
  return (order != PAD).sum(dtype=jnp.int32)


def _history(world: World, order: Array, user: Array, key: Array):
  """i32[H] draws of `order`, with replacement, P(i) ~ sigmoid(rel(u, i)).

  By rejection: uniform proposals, kept with probability sigmoid(rel), until
  there are H. Exact, and independent of the catalogue's size.
  """
  size, total = world.config.history_size, _count(order)

  def more(state):
    return state[1] < size

  def propose(state):
    kept, count, key = state
    key, item_key, keep_key = jax.random.split(key, 3)
    # A quarter or so of all proposals is kept: one round mostly suffices.
    items = order[jax.random.randint(item_key, (8 * size,), 0, total)]
    p = jax.nn.sigmoid(relevance(world, user, items))
    keep = jax.random.uniform(keep_key, p.shape, p.dtype) < p
    slot = jnp.where(keep, count + jnp.cumsum(keep) - 1, size)
    return kept.at[slot].set(items, mode="drop"), count + keep.sum(), key

  empty = jnp.full(size, PAD, order.dtype)
  return jax.lax.while_loop(more, propose, (empty, 0, key))[0]


def logged_slate(
  scores: Array, size: int, key: Array
) -> tuple[jax.Array, jax.Array]:
  """The logging policy's slate: drawn without replacement, P ~ exp(score).

  The Gumbel trick: the K largest of score + Gumbel noise. The propensity of
  pick k is exp(s_k) / sum of exp(s) over what picks 0..k-1 left.

  Args:
    scores: f[N], in the world's log the upstream ranker's.
    size: K.
    key: PRNG key.

  Returns:
    (positions i32[K], propensities f[K]).
  """
  gumbel = jax.random.gumbel(key, scores.shape, scores.dtype)
  _, slate = jax.lax.top_k(scores + gumbel, size)
  weight = jax.nn.softmax(scores)
  picked = weight[slate]
  # Summing what is left, not subtracting what is gone, keeps precision.
  taken = slate[:, None] == jnp.arange(len(scores))[None, :]
  gone = jnp.cumsum(taken.astype(jnp.int32), axis=0) - taken
  left = jnp.where(gone > 0, 0.0, weight[None, :]).sum(axis=-1)
  return slate, picked / left
