"""Stage `distill`: the policy learns from mined lists (DeGRe).

It starts from the SFT policy where the run has one, else from nothing.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rerank_rl.config import Config, ConfigError, DistillConfig, check_choice
from rerank_rl.data import schema, shards
from rerank_rl.decoding import list_search, sample
from rerank_rl.models.policy import Policy
from rerank_rl.rl import learner, objectives
from rerank_rl.training import fitting
from rerank_rl.training import state as states
from rerank_rl.training.setting import Setting, greedy_ranker, selection
from rerank_rl.training.stages.sft import fresh
from rerank_rl.types import Array, Impression

STAGE = "distill"


class Mined(NamedTuple):
  """Requests and the lists mined for them.

  Attributes:
    impression: the Impression that was logged.
    slate: i32[B, G, K], lists, best first.
    value: f32[B, G], V-hat; NEVER where there is no list.
    gain: f16[B, G, K, N], of each candidate as the next item.
  """

  impression: Impression
  slate: Array
  value: Array
  gain: Array


def list_weights(value: Array, tau: float) -> Array:
  """w = softmax(value / tau) f32[B, G] over the lists that exist."""
  real = value > list_search.NEVER / 2
  return jnp.where(real, jax.nn.softmax(value / tau, axis=1), 0)


def dense(policy, config, catalogue, reference, params, batch: Mined):
  """Lists weighted by value, their items and the evaluator's soft labels."""
  del reference
  game = sample.prepare(policy, params, catalogue, batch.impression.request)
  scores = learner.score_slates(policy, params, game, batch.slate)
  worth = batch.gain.astype(batch.value.dtype) / config.tau_q
  labels = learner.soft_labels(game.trie, batch.slate, worth)
  weight = list_weights(batch.value, config.tau)
  return objectives.distill(scores, labels, weight, config.hard, config.soft)


def preferred(policy, config, catalogue, reference, params, batch: Mined):
  """Mined lists are preferred to the logged slate (DPO on GReF's pairs)."""
  logged = batch.impression.slate[:, None]
  slate = jnp.concatenate([batch.slate, logged], axis=1)

  def logp(params):
    game = sample.prepare(policy, params, catalogue, batch.impression.request)
    return learner.score_slates(policy, params, game, slate).logp.sum(-1)

  weight = list_weights(batch.value, config.tau)
  old = jax.lax.stop_gradient(logp(reference))
  return objectives.preference(logp(params), old, weight, config.beta)


OBJECTIVES = {"distill": dense, "preference": preferred}


def step(
  policy: Policy,
  config: DistillConfig,
  tx,
  decay: float,
  catalogue,
  reference,
  state,
  batch,
  key,
):
  """One gradient step on the configured objective: (state, metrics)."""
  del key
  objective = OBJECTIVES[config.objective]
  own = functools.partial(objective, policy, config, catalogue, reference)
  return states.step_on(state, lambda p: own(p, batch), tx, decay)


def check(config: Config) -> None:
  """Raises ConfigError: an unknown objective, no reference, too few lists."""
  objective = config.distill.objective
  check_choice(objective, OBJECTIVES, "config.distill.objective")
  if objective == "preference" and "sft" not in config.stages:
    raise ConfigError(
      "config.distill.objective='preference' needs a policy to start from; "
      "add the stage 'sft' to config.stages."
    )
  if config.distill.lists > config.mine.width:
    raise ConfigError(
      f"config.distill.lists={config.distill.lists} are more than are mined; "
      f"lower it or widen config.mine.width={config.mine.width}."
    )
  states.check(config.distill_train, "config.distill_train")


def batches(setting: Setting) -> shards.Stream:
  """This process's batches of `Mined`, in the stage's own order."""
  train = setting.dataset.splits["train"]
  if setting.mined is None:
    raise ValueError("the stage 'distill' needs what 'mine' leaves.")

  def make(table: dict[str, np.ndarray]) -> Mined:
    shown = schema.take(train, table.pop("row"))
    best = {k: x[:, : setting.config.distill.lists] for k, x in table.items()}
    return Mined(shown, **best)

  return shards.Stream(
    setting.mined,
    setting.config.distill_train.batch_size,
    fitting.data_seed(setting, STAGE),
    jax.process_index(),
    jax.process_count(),
    make,
  )


def run(setting: Setting) -> Setting:
  """Learns, resumes or reloads the policy.

  Args:
    setting: after `mine`, and `sft` where the objective has a reference.

  Returns:
    With `params[config.name]`.

  Raises:
    ConfigError: see `check`.
  """
  config = setting.config
  check(config)
  return fitting.run(
    setting,
    STAGE,
    config.name,
    _fit,
    setting.identity["tokenizer"],
    setting.identity["mine"],
    setting.identity.get("sft", ""),
    config.policy,
    config.distill,
    config.distill_train,
    config.protocol,
  )


def _fit(setting: Setting) -> None:
  config = setting.config
  train = config.distill_train
  tx = states.optimizer(train)
  start = setting.params.get(config.sft_name)
  start = jax.tree.map(jnp.asarray, fresh(setting) if start is None else start)
  own = jax.tree_util.Partial(
    states.bound(step, setting.policy, config.distill, tx, train.ema),
    setting.catalogue,
    start,
  )
  state, stream = states.create(start, tx), batches(setting)
  watch = selection(setting, greedy_ranker(setting))
  fitting.fit(setting, STAGE, state, own, stream, train, watch)
