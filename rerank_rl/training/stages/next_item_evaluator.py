"""Stage `evaluators` of the next-item task: what follows what, linearly."""

import dataclasses

import jax.numpy as jnp

from rerank_rl.models import item_to_item
from rerank_rl.training.checkpoint import load_artifact
from rerank_rl.training.next_item import NextItem
from rerank_rl.training.setting import keep, ready
from rerank_rl.training.stages.evaluators import STAGE


def run(setting: NextItem) -> NextItem:
  """Fits or reloads the evaluator.

  Args:
    setting: with data.

  Returns:
    With `follows`.

  Raises:
    ConfigError: the catalogue is too large for it.
  """
  config, num_items = setting.config, len(setting.dataset.item_ids)
  item_to_item.check(num_items)
  data = setting.identity["data"]
  setting = setting.identified(STAGE, data, config.item_to_item)
  if not ready(setting, STAGE):
    train = setting.dataset.splits["train"]
    matrix = item_to_item.fit(train, num_items, config.item_to_item)
    keep(setting, STAGE, {"follows": matrix})
  found, _ = load_artifact(setting.folder(STAGE))
  return dataclasses.replace(setting, follows=jnp.asarray(found["follows"]))
