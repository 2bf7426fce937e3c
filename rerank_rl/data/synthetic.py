"""The synthetic world as a data set."""

import jax
import numpy as np

from rerank_rl.config import Config
from rerank_rl.data import sequences
from rerank_rl.data.schema import SPLITS, Dataset
from rerank_rl.world import world as world_lib


def seed_of(config: Config) -> int:
  """The world's seed: `config.world.seed`, or the run's where it is None."""
  return config.seed if config.world.seed is None else config.world.seed


def world_of(config: Config) -> world_lib.World:
  """The World behind `load(config)`; ConfigError where sizes clash."""
  return world_lib.build(config.world, seed_of(config))


def item_features(world: world_lib.World) -> np.ndarray:
  """f32[M, D + 1 + topics]: observed latents and q, standardised; topic.

  The topic stays a one-hot of zeros and ones.
  """
  features = np.array(world.features)
  measured = features[:, : world.z.shape[1] + 1]
  spread = measured.std(axis=0)
  measured -= measured.mean(axis=0)
  measured /= np.where(spread > 0, spread, 1.0)
  return features


def item_vectors(world: world_lib.World) -> np.ndarray:
  """f32[M, D + 1], observed latents and q, what the tokenizer quantises.

  Scaled so that the squared distance of two items is the mean squared
  difference of their relevance over users of every direction:
  E_u (3 u.d + dq)^2 = 9 |d|^2 / D + dq^2.
  """
  size = world.z.shape[1]
  vectors = np.array(world.features[:, : size + 1])
  vectors[:, :size] *= world_lib.TASTE / np.sqrt(size)
  return vectors


def load(config: Config) -> Dataset:
  """Generates the world's catalogue and log.

  Training and validation hold warm items only; the test split holds all.

  Args:
    config: the run's; `world` gives sizes and, with `seed`, every draw.

  Returns:
    A Dataset with one signal, the click, and true users in `hidden`.

  Raises:
    ConfigError: sizes that contradict each other.
  """
  world = world_of(config)
  sizes = config.world
  counts = (sizes.num_train, sizes.num_valid, sizes.num_test)
  # The world itself is drawn from key(seed): logs from keys folded off it.
  key = jax.random.key(seed_of(config))
  splits = {
    name: world_lib.impressions(
      world,
      jax.random.fold_in(key, index),
      count,
      warm=name != "test",
    )
    for index, (name, count) in enumerate(zip(SPLITS, counts, strict=True))
  }
  return Dataset(
    name="world",
    item_ids=np.arange(sizes.num_items, dtype=np.int64),
    features=item_features(world),
    vectors=item_vectors(world),
    groups=np.asarray(world.topic, np.int32),
    splits=splits,
    timestamps={
      name: np.zeros(count, np.int64)
      for name, count in zip(SPLITS, counts, strict=True)
    },
    signals=("click",),
    weights=(1.0,),
    slate_size=sizes.slate_size,
    warm=np.asarray(world.warm),
  )


def load_sequences(config: Config) -> sequences.Sequences:
  """Histories of the world's users, for the next-item task.

  A user meets items with probability in proportion to sigmoid(rel); what was
  met before is left out, as in logs of reviews.

  Args:
    config: the run's; `world.num_train` users.

  Returns:
    Sequences; the tokenizer quantises the items' vectors.

  Raises:
    ConfigError: sizes that contradict each other, or histories too short.
  """
  world = world_of(config)
  key = jax.random.fold_in(jax.random.key(seed_of(config)), len(SPLITS))
  log = world_lib.impressions(world, key, config.world.num_train, warm=True)
  met = log.request.history
  earlier = np.tri(met.shape[1], k=-1, dtype=bool)
  new = ~((met[:, :, None] == met[:, None]) & earlier[None]).any(2)
  new &= (new.sum(1) >= sequences.LEAST)[:, None]
  counts = new.sum(1)
  first = np.r_[0, np.cumsum(counts[counts > 0])]
  return sequences.assemble(
    config,
    sequences.Events(met[new], first),
    np.arange(len(world.warm)),
    features=item_features(world),
    vectors=item_vectors(world),
  )
