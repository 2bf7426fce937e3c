"""One run of the next-item task, from sequences to report."""

from collections.abc import Callable, Mapping
import pathlib
import time
from types import MappingProxyType
from typing import Any

from rerank_rl.config import Config, refuse_unread
from rerank_rl.data import load
from rerank_rl.evaluation import next_item as metrics
from rerank_rl.models import policy
from rerank_rl.training import next_item, runs
from rerank_rl.training import state as states
from rerank_rl.training.next_item import NextItem
from rerank_rl.training.stages import next_item as sft
from rerank_rl.training.stages import next_item_evaluator as evaluator
from rerank_rl.training.stages import next_item_rl as rl
from rerank_rl.training.stages import tokenize

PROTOCOL = "next_item"


def semantic_ids(setting: NextItem) -> NextItem:
  """The stage `tokenizer`: published IDs are kept, others made."""
  return setting if setting.dataset.sids is not None else tokenize.run(setting)


STAGES: Mapping[str, Callable] = MappingProxyType(
  {
    "tokenizer": semantic_ids,
    sft.STAGE: sft.run,
    evaluator.STAGE: evaluator.run,
    rl.STAGE: rl.run,
  }
)

BATCHES = {sft.STAGE: "sft", rl.STAGE: "rl_train"}


def check(config: Config) -> None:
  """Refuses what cannot run, before any work is done.

  Raises:
    ConfigError: unknown data, stages missing, numbers that cannot be run.
  """
  runs.check_stages(config, STAGES, ("tokenizer", sft.STAGE))
  load.check(config, load.SEQUENCES)
  refuse_unread(config, "data.feedback", "session", "ranker", "demo")
  policy.check(config.policy)
  states.check(config.sft, "config.sft")
  if rl.STAGE in config.stages:
    rl.check(config)


def begin(config: Config, root: pathlib.Path) -> NextItem:
  """Loads a configuration's sequences; `learn` does the rest.

  Args:
    config: the run's.
    root: folder of the stages' artifacts, shared by runs where they agree.

  Returns:
    A NextItem without artifacts.

  Raises:
    ConfigError: see `check`; what the data's own loader refuses.
  """
  check(config)
  return next_item.start(config, root)


def learn(setting: NextItem) -> NextItem:
  """Runs or reloads every stage."""
  return runs.learn(setting, STAGES)


def evaluate(
  setting: NextItem, folder: pathlib.Path, command: str
) -> list[dict[str, Any]]:
  """Judges the run on the test split, once; see `pipeline.evaluate`."""
  test = setting.dataset.splits["test"]
  start = time.monotonic()
  rank = next_item.ranker(setting)
  lists = {"popularity": next_item.popularity(setting, test)}
  if setting.follows is not None:
    lists["item_to_item"] = next_item.following(setting, test)
  lists |= {name: rank(own, test) for name, own in setting.params.items()}
  judged = metrics.judged(
    lists, test.target[:, -1], len(setting.dataset.item_ids)
  )
  seconds = {"report": time.monotonic() - start}
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
