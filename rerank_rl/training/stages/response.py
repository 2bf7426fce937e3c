"""Stage `response`: two models of users, learnt from disjoint groups of them.

Sessions are trained in "a" and judged in "b" (`training.session_setting`): what
holds in both was not one model's whim.
"""

import dataclasses

from rerank_rl.config import Config, ConfigError, check_choice
from rerank_rl.models.response import ResponseModel
from rerank_rl.training.session_setting import (
  LEARNT,
  PLAYED,
  SessionRun,
  log_of,
)
from rerank_rl.training.stages import evaluators

STAGE = "response"


def check(config: Config) -> None:
  """Raises ConfigError: numbers that no model of users can have."""
  if config.response.members != 1:
    raise ConfigError(
      f"config.response.members={config.response.members}: a user answers as "
      "one model says; use 1."
    )
  check_choice(config.session.users, LEARNT, "config.session.users")
  if config.data.name == "trust":
    raise ConfigError(
      "config.stages has response, but data 'trust' have no log to learn "
      "users from; leave it out."
    )


def model_of(setting: SessionRun) -> ResponseModel:
  """The configured network."""
  config, data = setting.config.response, setting.dataset
  return ResponseModel(
    slots=data.slate_size,
    signals=len(data.signals),
    window=data.history,
    dim=config.dim,
    dropout=config.dropout,
  )


def run(setting: SessionRun) -> SessionRun:
  """Fits or reloads the models of users.

  Args:
    setting: with data.

  Returns:
    With judges and users "a" and "b".
  """
  logs, config = setting.dataset.logs, setting.config
  played = (config.session,) if config.data.name in PLAYED else ()
  setting = evaluators.learnt(
    setting,
    STAGE,
    dict.fromkeys(logs, model_of(setting)),
    lambda name: evaluators.parted(
      log_of(setting, name), f"response model {name.upper()}"
    ),
    config.response,
    *played,
  )
  kind = LEARNT[setting.config.session.users]
  users = {name: kind(setting, name) for name in logs}
  return dataclasses.replace(setting, users=users)
