"""Stage `sft` of the next-item task: cross-entropy of all next items."""

from collections.abc import Callable

import jax

from rerank_rl.decoding import catalogue
from rerank_rl.models.next_item import NextItemPolicy
from rerank_rl.training import fitting
from rerank_rl.training import state as states
from rerank_rl.training.next_item import NextItem, selection
from rerank_rl.training.setting import ready
from rerank_rl.training.stages.sft import STAGE


def make_step(policy: NextItemPolicy, tx, decay: float) -> Callable:
  """The SFT step: (sids, tree, state, batch, key) -> (state, metrics).

    loss = -sum_l log p(token_l | history, tokens before it), mean over items,

  each token under the catalogue's legality, at every place of a sequence.
  """

  def step(sids, tree, state, batch, key):
    def objective(params):
      logits = policy.teach(
        params, sids, batch.item, batch.place, batch.target, key
      )
      total = -catalogue.path_log_probs(tree, logits, batch.target).sum()
      return total, (batch.target >= 0).sum()

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
  setting = setting.identified(
    STAGE,
    setting.identity["data"],
    setting.identity.get("tokenizer", ""),
    config.policy,
    config.next_item,
    config.sft,
  )
  if not ready(setting, STAGE):
    _fit(setting)
  return fitting.learned(setting, STAGE, config.sft_name)


def _fit(setting: NextItem) -> None:
  config, policy = setting.config.sft, setting.policy
  tx = states.optimizer(config)
  params = jax.jit(policy.init)(setting.key("policy"))
  step = jax.tree_util.Partial(
    make_step(policy, tx, config.ema), setting.catalogue.sids, setting.tree
  )
  state = states.create(params, tx)
  batches = fitting.local_batches(setting, config.batch_size, STAGE)
  fitting.fit(setting, STAGE, state, step, batches, config, selection(setting))
