"""One run of the slate task, from impressions to report."""

from collections.abc import Callable, Mapping
import dataclasses
import pathlib
import time
from typing import Any

from absl import logging
import jax
import numpy as np
import scipy.special

from rerank_rl.config import (
  Config,
  ConfigError,
  check_choice,
  refuse_unread,
  unset,
)
from rerank_rl.data import load
from rerank_rl.data import pipeline as data_pipeline
from rerank_rl.evaluation import judge as judges
from rerank_rl.models import policy
from rerank_rl.training import runs, systems
from rerank_rl.training import setting as settings
from rerank_rl.training.setting import Setting, valuer
from rerank_rl.training.stages import (
  critic,
  distill,
  lookahead,
  mine,
  ranker,
  rl,
  sft,
  tokenize,
)
from rerank_rl.training.stages import evaluators as evaluator_stage
from rerank_rl.types import Impression

STAGES = {
  "tokenizer": tokenize.run,
  "evaluators": evaluator_stage.run,
  "lookahead": lookahead.run,
  "mine": mine.run,
  "sft": sft.run,
  "distill": distill.run,
  "critic": critic.run,
  "rl": rl.run,
  "ranker": ranker.run,
}
# The part of the configuration that sizes a stage's batches.
BATCHES = {
  **dict.fromkeys(("evaluators", "lookahead"), "evaluators"),
  **dict.fromkeys(("sft", "ranker"), "sft"),
  "distill": "distill_train",
  "critic": "critic_train",
  "rl": "rl_train",
}
# Stages that take up what another one left.
NEEDS = {"mine": "lookahead", "distill": "mine", "critic": "sft", "rl": "sft"}
# What one stage alone reads, and no variant sets beside others.
_ALONE = {"ranker": "ranker", "distill": "distill.objective", "rl": "rl.bonus"}
# Stages that leave the system `config.name`; a run has one at most.
LAST = ("distill", "rl", "ranker")
PROTOCOLS = ("value", "recovery", "oracle")


def with_stages(config: Config, stages: tuple[str, ...]) -> Config:
  """A run's configuration with other stages, and without what none reads."""
  unread = [field for stage, field in _ALONE.items() if stage not in stages]
  return unset(dataclasses.replace(config, stages=stages), *unread)


def check(config: Config) -> None:
  """Refuses what cannot run, before any work is done.

  Raises:
    ConfigError: an unknown stage or protocol, stages out of order, an
      illegal composition, a protocol that the data cannot serve.
  """
  runs.check_stages(config, STAGES)
  check_choice(config.protocol, PROTOCOLS, "config.protocol")
  if config.protocol == "oracle" and config.data.name != "world":
    raise ConfigError(
      "config.protocol='oracle' needs config.data.name='world'."
    )
  if config.protocol == "recovery" and config.data.name == "world":
    raise ConfigError(
      "config.protocol='recovery' ranks the labels of real data, and "
      "config.data.name='world' knows more; use value or oracle."
    )
  for stage, needed in NEEDS.items():
    if stage in config.stages and needed not in config.stages:
      raise ConfigError(
        f"config.stages has {stage!r} without {needed!r} before it."
      )
  refuse_unread(config, "session", "next_item", "item_to_item")
  for stage, field in _ALONE.items():
    if stage not in config.stages:
      refuse_unread(config, field)
  last = [stage for stage in LAST if stage in config.stages]
  if len(last) > 1:
    raise ConfigError(
      f"config.stages has {' and '.join(last)}, each of which would leave "
      f"config.name={config.name!r}; keep one."
    )
  if last and "sft" in config.stages and config.sft_name == config.name:
    raise ConfigError(
      f"config.name={config.name!r} is config.sft_name, too; give what "
      f"{last[0]} leaves a name of its own."
    )
  if config.protocol == "value" and "evaluators" not in config.stages:
    raise ConfigError(
      "config.protocol='value' selects by evaluator S; add the stage "
      "'evaluators' to config.stages."
    )
  if "tokenizer" not in config.stages:
    raise ConfigError("config.stages needs 'tokenizer'.")
  load.check(config)
  policy.check(config.policy)
  checked = {
    "sft": sft,
    "distill": distill,
    "critic": critic,
    "rl": rl,
    "ranker": ranker,
  }
  for name, stage in checked.items():
    if name in config.stages:
      stage.check(config)


def begin(config: Config, root: pathlib.Path, mesh=None) -> Setting:
  """Loads a configuration's data; `learn` does the rest.

  Args:
    config: the run's.
    root: folder of the stages' artifacts, shared by runs where they agree.
    mesh: devices; None = all.

  Returns:
    A Setting without artifacts.

  Raises:
    ConfigError: see `check`; weights that do not fit the data's signals, a
      tree that is deeper than its slates.
  """
  check(config)
  setting = settings.start(config, root, mesh)
  runs.check_weights(setting)
  if rl.STAGE in config.stages:
    rl.check_depth(config.rl, setting.policy)
  splits = dict(setting.dataset.splits)
  splits["train"] = data_pipeline.feedback_control(
    splits["train"], config.data.feedback, config.seed
  )
  dataset = dataclasses.replace(setting.dataset, splits=splits)
  return dataclasses.replace(setting, dataset=dataset)


def learn(setting: Setting) -> Setting:
  """Runs or reloads every stage."""
  return runs.learn(setting, STAGES)


def compare(
  setting: Setting,
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
  """Test slates of the run's systems and of what they are held against.

  Returns:
    (system -> i32[n, K], system -> seconds).
  """
  impressions = setting.dataset.splits["test"]
  slates = dict(systems.simple(setting, impressions))
  todo: dict[str, Callable] = {}
  if "a" in setting.judges:
    todo["beam_on_a"] = lambda: systems.beam_on_a(setting, impressions)
  if setting.mined is not None:
    todo["mined"] = lambda: mine.lists(setting, impressions)["slate"][:, 0]
  todo |= systems.learnt(setting, impressions)
  seconds = {}
  for name, rank in todo.items():
    start = time.monotonic()
    slates[name] = rank()
    seconds[f"rank/{name}"] = time.monotonic() - start
  if setting.world is not None:
    slates |= systems.bounds(setting, setting.world)
  return slates, seconds


def evaluate(
  setting: Setting, folder: pathlib.Path, command: str
) -> list[dict[str, Any]]:
  """Judges the run on the test split, once, and writes its report.

  Args:
    setting: after all stages.
    folder: where report.json, report.html, ... go.
    command: what repeats the run.

  Returns:
    The report's rows.
  """
  start = time.monotonic()
  dataset = setting.dataset
  test = dataset.splits["test"]
  slates, seconds = compare(setting)
  values = {name: valuer(setting.judged_by(name)) for name in setting.judges}
  truth = best = relevant = None
  if setting.world is not None:
    truth = valuer(setting.reward("world"))
    best = truth(test, slates["optimum"])
  else:
    relevant = judges.logged_relevance(test)
  judged = judges.judge(
    slates,
    test,
    features=dataset.features,
    groups=dataset.groups,
    evaluators=values,
    true_utility=truth,
    optimum=best,
    relevant=relevant,
    warm=dataset.warm,
  )
  return runs.publish(
    setting,
    folder,
    command,
    judged,
    {**seconds, "report": time.monotonic() - start},
    calibrations=_calibrations(setting, test, slates),
    deciles=_deciles(judged),
  )


def _calibrations(
  setting: Setting, test: Impression, slates: Mapping[str, np.ndarray]
) -> Mapping[str, dict]:
  """Each evaluator's calibration on logged slates, signal by signal.

  On the run's own, which nobody has shown, A's is known in the world alone.
  """

  def chances(name, impressions):
    model, fitted = setting.judges[name]
    features = setting.catalogue.features
    logits = evaluator_stage.predict(model, fitted, features, impressions)
    return scipy.special.expit(logits)

  out = {}
  for name in setting.judges:
    p = chances(name, test)
    for i, signal in enumerate(setting.dataset.signals):
      out[f"evaluator {name.upper()}, {signal}"] = judges.calibration(
        p[..., i], test.feedback[..., i], test.slate >= 0
      )
  own = setting.config.name
  if setting.world is not None and "a" in setting.judges and own in slates:
    slate = slates[own]
    p = chances("a", test.replace(slate=slate))[..., 0]
    _, truth = settings.worth(setting.reward("world"), test, slate)
    title = f"evaluator A on {own}'s slates, true chance of a click"
    out[title] = judges.calibration(p, truth, slate >= 0)
  return out


def _deciles(judged: Mapping[str, Mapping[str, Any]]) -> Mapping[str, list]:
  """A - B by decile of A for every system that both have judged."""
  return {
    system: judges.gap_by_decile(own["evaluator_a"], own["evaluator_b"])
    for system, own in judged.items()
    if "evaluator_a" in own and "evaluator_b" in own
  }


def run(
  config: Config, workdir: pathlib.Path, artifacts: pathlib.Path, command: str
) -> list[dict[str, Any]]:
  """The whole run; the same call again resumes or re-evaluates it.

  Args:
    config: the run's.
    workdir: where its report goes.
    artifacts: where its stages' artifacts go; runs may share it.
    command: what repeats the run.

  Returns:
    The report's rows.
  """
  setting = begin(config, artifacts)
  runs.check_batches(setting, BATCHES)
  # What the world knows hangs on no stage: one process makes it meanwhile.
  making = None
  if setting.world is not None and jax.process_count() == 1:
    making = systems.begin_bounds(setting, setting.world)
  setting = learn(setting)
  if setting.world is not None:
    systems.bounds(setting, setting.world, making)
  runs.keep_config(config, workdir)
  logging.info("judging on the test split")
  return evaluate(setting, workdir, command)
