"""Stage `sft` of the next-item task: cross-entropy of all next items."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rerank_rl.data.sequences import Windows
from rerank_rl.decoding import next_item as decoding
from rerank_rl.decoding.catalogue import Tree
from rerank_rl.models.next_item import NextItemPolicy
from rerank_rl.training import fitting
from rerank_rl.training import state as states
from rerank_rl.training.next_item import NextItem, selection
from rerank_rl.training.stages.sft import STAGE
from rerank_rl.types import Array


def cross_entropy(
  policy: NextItemPolicy, tree: Tree, params, batch: Windows, key: Array
) -> tuple[Array, Array]:
  """Of all next items under the catalogue's legality, with dropout.

    - sum_l log p(token_l | history, tokens before it)

  Returns:
    (sum over the places of a sequence that have a target, their number).
  """
  keys = jax.random.split(key)
  state = policy.encode(params, tree, batch.item, batch.place, keys[0])
  choices = decoding.along(policy, params, tree, state, batch.target, keys[1])
  logp = sum(map(decoding.chosen, choices))
  real = batch.target >= 0
  return -jnp.where(real, logp, 0).sum(), real.sum()


def make_step(policy: NextItemPolicy, tx, decay: float) -> Callable:
  """The SFT step: (tree, state, batch, key) -> (state, metrics)."""

  def step(tree, state, batch, key):
    objective = lambda params: cross_entropy(policy, tree, params, batch, key)
    return states.step_on(state, objective, tx, decay)

  return step


def run(setting: NextItem) -> NextItem:
  """Learns, resumes or reloads the policy.

  Args:
    setting: with semantic IDs.

  Returns:
    With `params[config.sft_name]`.
  """
  config = setting.config
  return fitting.run(
    setting,
    STAGE,
    config.sft_name,
    _fit,
    setting.identity["data"],
    setting.identity.get("tokenizer", ""),
    config.policy,
    config.next_item,
    config.sft,
  )


def _fit(setting: NextItem) -> None:
  config, policy = setting.config.sft, setting.policy
  tx = states.optimizer(config)
  params = jax.jit(policy.init)(setting.key("policy"))
  step = jax.tree_util.Partial(make_step(policy, tx, config.ema), setting.tree)
  state = states.create(params, tx)
  batches = fitting.local_batches(setting, config.batch_size, STAGE)
  fitting.fit(setting, STAGE, state, step, batches, config, selection(setting))
