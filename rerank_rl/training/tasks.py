"""Which pipeline serves a protocol: slates, sessions, or the next item."""

from types import MappingProxyType, ModuleType

from rerank_rl.config import Config, check_choice
from rerank_rl.training import (
  next_item_pipeline,
  pipeline,
  session_pipeline,
)

# Each offers check, begin, learn, evaluate and run.
TASKS = MappingProxyType(
  {
    **dict.fromkeys(pipeline.PROTOCOLS, pipeline),
    next_item_pipeline.PROTOCOL: next_item_pipeline,
    session_pipeline.PROTOCOL: session_pipeline,
  }
)


def of(config: Config) -> ModuleType:
  """The pipeline of `config.protocol`.

  Raises:
    ConfigError: no pipeline serves it.
  """
  check_choice(config.protocol, TASKS, "config.protocol")
  return TASKS[config.protocol]
