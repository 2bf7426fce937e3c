"""What every task's run does: it is checked, learnt, kept and reported."""

from collections.abc import Callable, Mapping
import dataclasses
import json
import pathlib
import time
from typing import Any

import jax

from rerank_rl.config import Config, ConfigError
from rerank_rl.evaluation import judge as judges
from rerank_rl.evaluation import report
from rerank_rl.training import mesh
from rerank_rl.training.setting import AnyRun, Run

# What reports call the systems that no run learns.
TAKEN = (
  *("ranker_order", "popularity", "ranker_reversed", "popularity_reversed"),
  *("score_popularity_logistic", "beam_on_a", "mined", "sft_best16"),
  *("bayes_list", "bayes_pointwise", "optimum", "random", "item_to_item"),
)


def check_stages(
  config: Config, known: Mapping[str, Any], first: tuple[str, ...] = ()
) -> None:
  """Refuses stages that make no run.

  Args:
    config: the run's.
    known: the task's stages, in their order.
    first: those that a run must begin with.

  Raises:
    ConfigError: a stage that is not known, twice, out of order or missing.
  """
  for field in ("name", "sft_name"):
    if getattr(config, field) in TAKEN:
      raise ConfigError(
        f"config.{field}={getattr(config, field)!r} is what a report calls "
        "another system; give the run's own another name."
      )
  for stage in config.stages:
    if stage not in known:
      raise ConfigError(
        f"config.stages holds {stage!r}; choose from {', '.join(known)}."
      )
  places = [list(known).index(stage) for stage in config.stages]
  if places != sorted(set(places)):
    raise ConfigError(
      f"config.stages={config.stages}; each once, in the order "
      f"{', '.join(known)}."
    )
  if config.stages[: len(first)] != first:
    raise ConfigError(
      f"config.stages={config.stages}; the protocol {config.protocol!r} needs "
      f"{' and '.join(first)} first."
    )


def check_weights(setting: Run) -> None:
  """Raises ConfigError: weights that do not fit the data's signals."""
  dataset = setting.dataset
  if len(setting.weights) != len(dataset.signals):
    raise ConfigError(
      f"config.data.weights={setting.weights} should give one weight for each "
      f"signal of {dataset.name}: "
      f"{', '.join(dataset.signals) or 'it has none'}."
    )
  if dataset.signals and not any(setting.weights):
    raise ConfigError(
      f"config.data.weights={setting.weights}: no feedback would be worth "
      "anything; give one signal a weight."
    )


def check_batches(setting: Run, parts: Mapping[str, str]) -> None:
  """Raises ConfigError: the mesh does not divide a stage's batches.

  Args:
    setting: the run's.
    parts: stage -> part of the configuration with its `batch_size`.
  """
  for stage in filter(parts.__contains__, setting.config.stages):
    rows = getattr(setting.config, parts[stage]).batch_size
    if rows % setting.mesh.size:
      at = f"config.{parts[stage]}.batch_size"
      raise mesh.indivisible(setting.mesh, rows, at)


def keep_config(config: Config, workdir: pathlib.Path) -> None:
  """Notes in the workdir what its report will be of.

  Call when all is learnt: a run that is refused, or killed before, leaves an
  earlier one's note and report as they are.
  """
  if jax.process_index() == 0:
    workdir.mkdir(parents=True, exist_ok=True)
    text = json.dumps(dataclasses.asdict(config), indent=2) + "\n"
    fresh = workdir / ".config.json.tmp"
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(workdir / "config.json")


def learn(setting: AnyRun, stages: Mapping[str, Callable]) -> AnyRun:
  """Runs or reloads every stage; the setting that the last one left."""
  for stage in setting.config.stages:
    start = time.monotonic()
    setting = stages[stage](setting)
    timing = {**setting.timing, stage: time.monotonic() - start}
    setting = dataclasses.replace(setting, timing=timing)
  return setting


def publish(
  setting: Run,
  folder: pathlib.Path,
  command: str,
  judged: Mapping[str, dict[str, Any]],
  seconds: Mapping[str, float],
  **pages: Any,
) -> list[dict[str, Any]]:
  """Writes the report of what was judged.

  Args:
    setting: after all stages.
    folder: where report.json, report.html, ... go.
    command: what repeats the run.
    judged: system -> metric -> values.
    seconds: beside the stages'.
    **pages: see `report.write`.

  Returns:
    The report's rows.
  """
  rows = judges.summarise(judged, setting.config.seed)
  if jax.process_index() == 0:
    report.write(
      folder,
      dataset=setting.dataset.name,
      version=setting.version,
      split="test",
      protocol=setting.config.protocol,
      command=command,
      rows=rows,
      judged=judged,
      timing={**setting.timing, **seconds},
      history=setting.history,
      **pages,
    )
  return rows
