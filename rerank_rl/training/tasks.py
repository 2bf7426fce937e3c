"""Which pipeline serves a protocol: slates, sessions, or the next item."""

import dataclasses
import pathlib
from types import MappingProxyType, ModuleType

from rerank_rl.config import Config, ConfigError, check_choice, freeze
from rerank_rl.evaluation import report
from rerank_rl.files import damaged, read_object
from rerank_rl.training import (
  next_item_pipeline,
  pipeline,
  session_pipeline,
)
from rerank_rl.training.setting import Run

# Each offers check, begin, learn, evaluate and run.
TASKS = MappingProxyType(
  {
    **dict.fromkeys(pipeline.PROTOCOLS, pipeline),
    next_item_pipeline.PROTOCOL: next_item_pipeline,
    session_pipeline.PROTOCOL: session_pipeline,
  }
)

_REMEDY = (
  "remove it and give the run's launch.train command again, which writes it "
  "anew from the stages' artifacts"
)


def of(config: Config) -> ModuleType:
  """The pipeline of `config.protocol`.

  Raises:
    ConfigError: no pipeline serves it.
  """
  check_choice(config.protocol, TASKS, "config.protocol")
  return TASKS[config.protocol]


def finished(workdir: pathlib.Path) -> Config:
  """The configuration of a finished run.

  Raises:
    ConfigError: it is not finished, or what it left is damaged.
  """
  for name in ("config.json", report.REPORT):
    if not (workdir / name).exists():
      raise ConfigError(
        f"{workdir / name} is missing; finish the run with launch.train first."
      )
  path = workdir / "config.json"
  found = read_object(path, _REMEDY)
  lacks = {field.name for field in dataclasses.fields(Config)} - found.keys()
  if lacks:
    raise damaged(path, f"its {min(lacks)!r} is missing", _REMEDY)
  try:
    return freeze(found)
  except ConfigError as error:
    raise damaged(path, str(error).rstrip("."), _REMEDY) from error


def command(workdir: pathlib.Path) -> str:
  """The command line of a finished run.

  Raises:
    ConfigError: its report is damaged.
  """
  return read_object(workdir / report.REPORT, _REMEDY, command=str)["command"]


def reload(config: Config, artifacts: pathlib.Path) -> Run:
  """What a finished run's last stage left; nothing is learnt.

  Args:
    config: from `finished`.
    artifacts: where its stages' artifacts are.

  Raises:
    ConfigError: a stage's artifact is not there.
  """
  task = of(config)
  setting = task.begin(config, artifacts)
  return task.learn(dataclasses.replace(setting, finished=True))
