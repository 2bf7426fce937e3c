"""The data sets by name."""

from collections.abc import Callable, Mapping
import dataclasses
from types import MappingProxyType

import numpy as np

from rerank_rl.config import Config, check_choice
from rerank_rl.data import (
  amazon,
  imported,
  kuairand,
  movielens,
  pipeline,
  schema,
  synthetic,
)
from rerank_rl.data.schema import Dataset
from rerank_rl.data.sequences import Sequences
from rerank_rl.world import world

LOADERS: Mapping[str, Callable[[Config], Dataset]] = MappingProxyType(
  {
    "world": synthetic.load,
    "movielens_1m": movielens.load,
    "kuairand_pure": kuairand.load,
    "imported": imported.load,
  }
)


# What the next-item task reads.
SEQUENCES: Mapping[str, Callable[[Config], Sequences]] = MappingProxyType(
  {"world": synthetic.load_sequences, "amazon_beauty": amazon.load}
)


def check(config: Config, loaders: Mapping[str, Callable] = LOADERS) -> None:
  """Raises ConfigError: no such data, or a world that cannot be."""
  check_choice(config.data.name, loaders, "config.data.name")
  check_choice(config.data.feedback, pipeline.FEEDBACK, "config.data.feedback")
  if config.data.name == "world":
    world.check(config.world)


def load(config: Config) -> Dataset:
  """Loads the data set that `config.data.name` names.

  What a loader fits (scores, factors) is fitted on the whole training part,
  `config.data.max_rows` or not.

  Raises:
    ConfigError: see `check`; what the set's own loader refuses.
  """
  check(config)
  dataset = LOADERS[config.data.name](config)
  if config.data.max_rows:
    dataset = _thinned(dataset, config.data.max_rows)
  return dataset


def _thinned(dataset: Dataset, most: int) -> Dataset:
  """At most `most` rows of each split, evenly spaced."""
  kept = {}
  for name, columns in dataset.splits.items():
    count = schema.num_rows(columns)
    kept[name] = np.linspace(0, count - 1, min(count, most)).astype(np.int64)
  few = lambda columns: {
    name: schema.take(column, kept[name]) for name, column in columns.items()
  }
  return dataclasses.replace(
    dataset,
    splits=few(dataset.splits),
    timestamps=few(dataset.timestamps),
    owners=few(dataset.owners),
  )
