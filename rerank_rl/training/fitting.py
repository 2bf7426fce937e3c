"""What stages that learn share: batches, fitting, keeping, reloading."""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax

from rerank_rl.config import TrainConfig
from rerank_rl.data import pipeline
from rerank_rl.training import loop
from rerank_rl.training.checkpoint import check_meta, load_artifact
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
  setting: AnyRun,
  stage: str,
  name: str,
  fit: Callable[[AnyRun], None],
  *parts: Any,
) -> AnyRun:
  """Learns, resumes or reloads what a stage is for.

  Args:
    setting: the run's.
    stage: whose artifact it is.
    name: of the system that it learns.
    fit: leaves the artifact where it is missing.
    *parts: what the artifact depends on, see `Run.identified`.

  Returns:
    The setting with `params[name]`.

  Raises:
    ConfigError: the artifact is damaged.
  """
  setting = setting.identified(stage, *parts)
  if not ready(setting, stage):
    fit(setting)
  params, history = kept(setting, stage)
  return dataclasses.replace(
    setting, params={**setting.params, name: params}, history=history
  )


def kept(setting: Run, stage: str) -> tuple[Any, dict[str, list]]:
  """What `fit` kept of a stage, and all stages' history with its own.

  Raises:
    ConfigError: the artifact is damaged.
  """
  folder = setting.folder(stage)
  params, meta = load_artifact(folder)
  check_meta(folder, meta, history=list)
  return params, {**setting.history, stage: meta["history"]}


def local_batches(setting: Run, batch_size: int, stage: str, rows: Any = None):
  """This process's shuffled batches, in the stage's own order.

  Args:
    setting: the run's.
    batch_size: of all processes.
    stage: whose order it is.
    rows: what batches are made of; None = the training split.
  """
  return pipeline.batches(
    setting.dataset.splits["train"] if rows is None else rows,
    batch_size,
    data_seed(setting, stage),
    jax.process_index(),
    jax.process_count(),
  )


def data_seed(setting: Run, stage: str) -> int:
  """The seed of a stage's own order of the data."""
  key = setting.key(stage + "/data")
  return int(jax.random.randint(key, (), 0, 2**31 - 1))
