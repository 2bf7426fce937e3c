"""Benchmarks of what a finished run has learnt: flags and loading."""

import dataclasses
import json
import pathlib

from absl import flags
import jax

from rerank_rl import config as config_lib
from rerank_rl.training import pipeline
from rerank_rl.training.setting import Setting
from rerank_rl.types import Impression

_WORKDIR = flags.DEFINE_string("workdir", None, "A finished run.")
_ARTIFACTS = flags.DEFINE_string("artifacts", None, "Default: the workdir.")
_REQUESTS = flags.DEFINE_integer("requests", 512, "Of the split, from its top.")
_SPLIT = flags.DEFINE_string("split", "test", "valid while choosing numbers.")


def learnt(*stages: str, world: bool = True) -> Setting:
  """The run's setting after some stages, which are made where missing.

  Args:
    *stages: which; none = the run's own.
    world: whether only a run of the world will do.

  Raises:
    ConfigError: no such run, or one without a world.
  """
  path = pathlib.Path(_WORKDIR.value or "") / "config.json"
  if not path.is_file():
    raise config_lib.ConfigError(
      f"--workdir={_WORKDIR.value} has no config.json; name a finished run."
    )
  config = config_lib.freeze(json.loads(path.read_text(encoding="utf-8")))
  if world and config.data.name != "world":
    raise config_lib.ConfigError(
      f"{path} is of {config.data.name}, whose truth is not known; name a run "
      "of the world."
    )
  config = dataclasses.replace(config, stages=stages or config.stages)
  artifacts = pathlib.Path(_ARTIFACTS.value or path.parent)
  return pipeline.learn(pipeline.begin(config, artifacts))


def requests(setting: Setting) -> Impression:
  """The impressions that a benchmark is run on."""
  whole = setting.dataset.splits[_SPLIT.value]
  return jax.tree.map(lambda x: x[: _REQUESTS.value], whole)
