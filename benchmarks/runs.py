"""Benchmarks of what a finished run has learnt: flags and loading."""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib

from absl import flags
import jax

from rerank_rl import config as config_lib
from rerank_rl.files import read_object
from rerank_rl.training import pipeline, session_pipeline
from rerank_rl.training.session_setting import SessionRun
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
  config = _config(_WORKDIR.value, world)
  config = pipeline.with_stages(config, stages or config.stages)
  return pipeline.learn(pipeline.begin(config, _artifacts(_WORKDIR.value)))


def sessions() -> SessionRun:
  """A run of sessions after its stages.

  Raises:
    ConfigError: no such run.
  """
  config = _read(_WORKDIR.value)
  if config.protocol != session_pipeline.PROTOCOL:
    raise config_lib.ConfigError(f"{_WORKDIR.value} is not a run of sessions.")
  begun = session_pipeline.begin(config, _artifacts(_WORKDIR.value))
  return session_pipeline.learn(begun)


def several(workdirs: Sequence[str]) -> Mapping[str, Setting]:
  """Runs of one world after all their stages, by their folders.

  Their data are made once.

  Raises:
    ConfigError: no run, one without a world, or runs of several worlds.
  """
  if not workdirs:
    raise config_lib.ConfigError("--workdirs names no run.")
  out, begun = {}, None
  for workdir in workdirs:
    config, root = _config(workdir), _artifacts(workdir)
    begun = begun or pipeline.begin(config, root)
    for field in ("seed", "world", "data"):
      value = getattr(config, field)
      if value != getattr(begun.config, field):
        raise config_lib.ConfigError(
          f"{workdir} has config.{field}={value}, unlike {workdirs[0]}; name "
          "runs of one world."
        )
    own = dataclasses.replace(begun, config=config, root=root)
    out[workdir] = pipeline.learn(own)
  return out


def _read(workdir: str | None) -> config_lib.Config:
  """A finished run's configuration.

  Raises:
    ConfigError: there is none.
  """
  path = pathlib.Path(workdir or "") / "config.json"
  if not path.is_file():
    raise config_lib.ConfigError(
      f"{workdir} has no config.json; name a finished run."
    )
  return config_lib.freeze(read_object(path, "make the run anew"))


def _config(workdir: str | None, world: bool = True) -> config_lib.Config:
  """A finished run's configuration, of the world where that is asked."""
  config = _read(workdir)
  if world and config.data.name != "world":
    raise config_lib.ConfigError(
      f"{workdir} is of {config.data.name}, whose truth is not known; name a "
      "run of the world."
    )
  return config


def _artifacts(workdir: str) -> pathlib.Path:
  """Where a run's stages left what they made."""
  return pathlib.Path(_ARTIFACTS.value or workdir)


def requests(setting: Setting) -> Impression:
  """The impressions that a benchmark is run on."""
  whole = setting.dataset.splits[_SPLIT.value]
  return jax.tree.map(lambda x: x[: _REQUESTS.value], whole)
