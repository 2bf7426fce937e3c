"""What stages that learn share: batches, fitting, keeping, reloading."""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax

from rerank_rl.config import TrainConfig
from rerank_rl.data import pipeline
from rerank_rl.training import loop
from rerank_rl.training.checkpoint import load_artifact
from rerank_rl.training.setting import AnyRun, Run, keep, ready
from rerank_rl.training.state import TrainState


def fit(
  setting: Run,
  stage: str,
  state: TrainState,
  step: Callable,
  batches: Any,
  config: TrainConfig,
  watch: tuple[Callable, tuple[str, bool]],
  part: Callable[[Any], Any] = lambda params: params,
  since: int = 0,
) -> None:
  """Fits what a stage is for, selected on validation, and keeps it.

  Args:
    setting: the run's.
    stage: whose folder, key and title it gets.
    state: the initial state.
    step: see `loop.fit`.
    batches: this process's.
    config: the stage's numbers.
    watch: (evaluate, select), see `loop.fit`.
    part: of the best parameters, what is kept.
    since: see `loop.fit`.
  """
  evaluate, select = watch
  out = loop.fit(
    state,
    step,
    batches,
    config,
    setting.key(stage),
    folder=setting.folder(stage),
    title=stage,
    evaluate=evaluate,
    select=select,
    since=since,
    mesh=setting.mesh,
  )
  keep(setting, stage, part(out.best_params), history=out.history)


def run(
  setting: AnyRun, stage: str, fit: Callable[[AnyRun], None], *parts: Any
) -> AnyRun:
  """Learns, resumes or reloads a stage that hangs on all before it.

  Args:
    setting: the run's.
    stage: whose artifact it is.
    fit: leaves the artifact where it is missing.
    *parts: of the configuration, what else the artifact depends on.

  Returns:
    The setting with `params[config.name]`.
  """
  before = {k: own for k, own in setting.identity.items() if k != stage}
  setting = setting.identified(stage, before, *parts)
  if not ready(setting, stage):
    fit(setting)
  return learned(setting, stage, setting.config.name)


def learned(setting: AnyRun, stage: str, name: str) -> AnyRun:
  """The setting with what a stage has kept as `params[name]`."""
  params, meta = load_artifact(setting.folder(stage))
  return dataclasses.replace(
    setting,
    params={**setting.params, name: params},
    history={**setting.history, stage: meta["history"]},
  )


def local_batches(setting: Run, batch_size: int, stage: str):
  """This process's shuffled training batches, in the stage's own order."""
  return pipeline.batches(
    setting.dataset.splits["train"],
    batch_size,
    data_seed(setting, stage),
    jax.process_index(),
    jax.process_count(),
  )


def data_seed(setting: Run, stage: str) -> int:
  """The seed of a stage's own order of the data."""
  key = setting.key(stage + "/data")
  return int(jax.random.randint(key, (), 0, 2**31 - 1))
