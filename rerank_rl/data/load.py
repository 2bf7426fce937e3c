"""The data sets by name."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from rerank_rl.config import Config, ConfigError
from rerank_rl.data import imported, kuairand, movielens, synthetic
from rerank_rl.data.schema import Dataset

LOADERS: Mapping[str, Callable[[Config], Dataset]] = MappingProxyType(
  {
    "world": synthetic.load,
    "movielens_1m": movielens.load,
    "kuairand_pure": kuairand.load,
    "imported": imported.load,
  }
)


def load(config: Config) -> Dataset:
  """Loads the data set that `config.data.name` names.

  Raises:
    ConfigError: no such name, or what the set's own loader refuses.
  """
  if config.data.name not in LOADERS:
    raise ConfigError(
      f"config.data.name={config.data.name!r}; choose from "
      f"{', '.join(LOADERS)}."
    )
  return LOADERS[config.data.name](config)
