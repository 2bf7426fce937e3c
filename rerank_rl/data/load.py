"""The data sets by name."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from rerank_rl.config import Config, ConfigError
from rerank_rl.data import imported, kuairand, movielens, pipeline, synthetic
from rerank_rl.data.schema import Dataset
from rerank_rl.world import world

LOADERS: Mapping[str, Callable[[Config], Dataset]] = MappingProxyType(
  {
    "world": synthetic.load,
    "movielens_1m": movielens.load,
    "kuairand_pure": kuairand.load,
    "imported": imported.load,
  }
)


def check(config: Config) -> None:
  """Raises ConfigError: no such data, or a world that cannot be."""
  if config.data.name not in LOADERS:
    raise ConfigError(
      f"config.data.name={config.data.name!r}; choose from "
      f"{', '.join(LOADERS)}."
    )
  if config.data.feedback not in pipeline.FEEDBACK:
    raise ConfigError(
      f"config.data.feedback={config.data.feedback!r}; choose from "
      f"{', '.join(pipeline.FEEDBACK)}."
    )
  if config.data.name == "world":
    world.check(config.world)


def load(config: Config) -> Dataset:
  """Loads the data set that `config.data.name` names.

  Raises:
    ConfigError: see `check`; what the set's own loader refuses.
  """
  check(config)
  return LOADERS[config.data.name](config)
