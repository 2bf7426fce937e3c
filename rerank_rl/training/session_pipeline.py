"""One run of the session task, from users to report."""

from collections.abc import Callable, Mapping
import functools
import pathlib
import time
from types import MappingProxyType
from typing import Any

from rerank_rl.config import Config, ConfigError, SessionConfig, refuse_unread
from rerank_rl.data import load, sessions
from rerank_rl.models import policy
from rerank_rl.training import runs, session, session_setting
from rerank_rl.training.session_setting import SessionRun
from rerank_rl.training.stages import (
  relabel,
  replay,
  response,
  supervised,
  tokenize,
)
from rerank_rl.training.stages import session as session_stage

PROTOCOL = "session"

# Stages that learn a system: modules with `check`, `run` and `systems`. A run
# has one of them.
LEARNERS: Mapping[str, Any] = MappingProxyType(
  {each.STAGE: each for each in (session_stage, replay, relabel, supervised)}
)

STAGES: Mapping[str, Callable] = MappingProxyType(
  {
    "tokenizer": tokenize.run,
    response.STAGE: response.run,
    **{name: stage.run for name, stage in LEARNERS.items()},
  }
)

BATCHES = {response.STAGE: "response", **dict.fromkeys(LEARNERS, "rl_train")}


def learner(config: Config) -> Any:
  """The module of the stage that learns the run's system."""
  return next(LEARNERS[name] for name in config.stages if name in LEARNERS)


def check(config: Config) -> None:
  """Refuses what cannot run, before any work is done.

  Raises:
    ConfigError: unknown data, stages missing, parts that sessions lack.
  """
  runs.check_stages(config, STAGES)
  learning = [name for name in config.stages if name in LEARNERS]
  if "tokenizer" not in config.stages or len(learning) != 1:
    raise ConfigError(
      f"config.stages={config.stages}; sessions need tokenizer and one of "
      f"{', '.join(LEARNERS)}."
    )
  load.check(config, sessions.SESSIONS)
  refuse_unread(config, "data.feedback", "rl.reward", "rl.bonus")
  refuse_unread(config, "next_item", "item_to_item", "ranker", "demo")
  if response.STAGE in config.stages:
    response.check(config)
  elif config.data.name not in session_setting.KNOWN:
    raise ConfigError(
      f"how users of config.data.name={config.data.name!r} behave must be "
      "learnt: add response to config.stages (variant learnt)."
    )
  elif config.session.users != SessionConfig().users:
    raise ConfigError(
      f"config.session.users={config.session.users!r} are learnt from a log: "
      "add response to config.stages (variant learnt)."
    )
  policy.check(config.policy)
  learner(config).check(config)


def begin(config: Config, root: pathlib.Path, mesh=None) -> SessionRun:
  """Loads a configuration's users; `learn` does the rest.

  Args:
    config: the run's.
    root: folder of the stages' artifacts, shared by runs where they agree.
    mesh: devices; None = all.

  Returns:
    A SessionRun without artifacts.

  Raises:
    ConfigError: see `check`; weights that do not fit the logs' signals.
  """
  check(config)
  setting = session_setting.start(config, root, mesh)
  runs.check_weights(setting)
  return setting


def learn(setting: SessionRun) -> SessionRun:
  """Runs or reloads every stage."""
  return runs.learn(setting, STAGES)


def evaluate(
  setting: SessionRun, folder: pathlib.Path, command: str
) -> list[dict[str, Any]]:
  """Judges the run's sessions on the test users, once."""
  begin = time.monotonic()
  judge = functools.partial(session.judge, setting, "test")
  simple = session.system(session.by_weights, setting.dataset.slate_size)
  systems = {
    "random": (simple, session.RANDOM),
    "ranker_order": (simple, session.RANKED),
    **learner(setting.config).systems(setting),
  }
  judged = {n: judge(act, params) for n, (act, params) in systems.items()}
  seconds = {"report": time.monotonic() - begin}
  return runs.publish(setting, folder, command, judged, seconds)


def run(
  config: Config, workdir: pathlib.Path, artifacts: pathlib.Path, command: str
) -> list[dict[str, Any]]:
  """The whole run; see `pipeline.run`."""
  setting = begin(config, artifacts)
  runs.check_batches(setting, BATCHES)
  setting = learn(setting)
  runs.keep_config(config, workdir)
  return evaluate(setting, workdir, command)
