"""Stage `mine`: lists that the lookahead evaluator finds, and what it weighed.

For a sample of the training requests a beam search by V-hat finds lists that
were not shown. Kept are their values and, for each of their prefixes, the gain
V-hat([prefix; v]) - V-hat(prefix) of every candidate v: a softmax of gains is
one of values, at any temperature, so that all who learn share the lists.
"""

import dataclasses
import functools
from typing import Any

from absl import logging
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np

from rerank_rl.config import MineConfig
from rerank_rl.data import schema, shards
from rerank_rl.decoding import list_search
from rerank_rl.models import ensemble
from rerank_rl.training.setting import CHUNK, Setting, by_chunks, keep, ready
from rerank_rl.types import PAD, Impression

STAGE = "mine"


@functools.partial(jax.jit, static_argnums=(0, 1))
def search(model, config: MineConfig, fitted, features, weights, batch):
  """A beam's lists of a batch that were not shown.

  Returns:
    A Plan, the best list first, rows of PAD where there is none.
  """
  score = ensemble.next_values(model, fitted, features, batch.request, weights)
  plan = list_search.plan(score, batch.request, model.slots, config.width)
  shown = (plan.slate == batch.slate[:, None]).all(-1)
  value, index = jax.lax.top_k(
    jnp.where(shown, list_search.NEVER, plan.value), config.width
  )
  take = jax.vmap(lambda x, i: x[i])
  real = (value > list_search.NEVER / 2)[..., None]
  slate = jnp.where(real, take(plan.slate, index), PAD)
  return list_search.Plan(slate, value, take(plan.gain, index))


def columns(setting: Setting) -> dict[str, tuple[tuple[int, ...], type]]:
  """name -> (shape of a row, type) of the mined table.

  `row` is the request's place in the training split; the others are a Plan's.
  """
  width, sizes = setting.config.mine.width, setting.sizes
  return {
    "row": ((), np.int32),
    "slate": ((width, sizes.slots), np.int32),
    "value": ((width,), np.float32),
    "gain": ((width, sizes.slots, sizes.candidates), np.float16),
  }


def lists(setting: Setting, impressions: Impression) -> Any:
  """Lists for any impressions that were not shown: a Plan's fields by name."""
  one = setting.judges["lookahead"]
  weights = jnp.asarray(setting.weights)

  def find(batch):
    return search(
      one.model,
      setting.config.mine,
      one.fitted,
      setting.catalogue.features,
      weights,
      batch,
    )._asdict()

  return by_chunks(find, CHUNK // 2, impressions)


def run(setting: Setting) -> Setting:
  """Mines what is missing; every process its own shards.

  Args:
    setting: after `lookahead`.

  Returns:
    With `mined`.
  """
  config = setting.config
  setting = setting.identified(
    STAGE, setting.identity["lookahead"], config.mine, setting.weights
  )
  train, kinds = setting.dataset.splits["train"], columns(setting)
  count = schema.num_rows(train)
  # In random order: a block's neighbours in time are no sample.
  order = np.random.default_rng(config.seed).permutation(count)
  order = order[: config.mine.requests]
  folder = setting.folder(STAGE) / "shards"
  layout = shards.Layout(folder, order.size, config.mine.shards)
  if not ready(setting, STAGE):
    folder.mkdir(parents=True, exist_ok=True)
    for shard in layout.missing(jax.process_index(), jax.process_count()):
      rows = order[np.array(layout.span(shard))]
      table = {"row": rows, **lists(setting, schema.take(train, rows))}
      table = {name: x.astype(kinds[name][1]) for name, x in table.items()}
      shards.write(layout, shard, kinds, table)
      logging.info("mined shard %d of %d.", shard + 1, layout.shards)
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices(str(folder))
    keep(setting, STAGE, {"rows": order})
  return dataclasses.replace(setting, mined=layout)
