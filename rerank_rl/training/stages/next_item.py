"""Stage `sft` of the next-item task: cross-entropy of all next items."""

from collections.abc import Callable

import jax

from rerank_rl.decoding import catalogue
from rerank_rl.models.next_item import NextItemPolicy
from rerank_rl.training import state as states
from rerank_rl.training.checkpoint import load_artifact
from rerank_rl.training.next_item import NextItem, selection
from rerank_rl.training.setting import ready
from rerank_rl.training.stages.sft import (
  STAGE,
  fit_policy,
  learned,
  local_batches,
)


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
  name = config.sft_name
  if ready(setting, STAGE):
    params, meta = load_artifact(setting.folder(STAGE))
    return learned(setting, STAGE, name, params, meta["history"])
  policy, tx = setting.policy, states.optimizer(config.sft)
  params = jax.jit(policy.init)(setting.key("policy"))
  step = jax.tree_util.Partial(
    make_step(policy, tx, config.sft.ema),
    setting.catalogue.sids,
    setting.tree,
  )
  state = states.create(params, tx)
  batches = local_batches(setting, config.sft.batch_size, STAGE)
  return fit_policy(
    setting, STAGE, name, state, step, batches, config.sft, selection(setting)
  )
