"""Stage `sft` of the next-item task: cross-entropy of all next items."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rerank_rl.decoding import catalogue
from rerank_rl.models.next_item import NextItemPolicy
from rerank_rl.training import loop
from rerank_rl.training import state as states
from rerank_rl.training.checkpoint import load_artifact
from rerank_rl.training.next_item import NextItem, selection
from rerank_rl.training.setting import keep, ready
from rerank_rl.training.stages.sft import STAGE, learned, local_batches


def make_step(policy: NextItemPolicy, tx, decay: float) -> Callable:
  """The SFT step: (sids, tree, state, batch, key) -> (state, metrics).

    loss = -sum_l log p(token_l | history, tokens before it), mean over items,

  each token under the catalogue's legality, at every place of a sequence.
  """

  def step(sids, tree, state, batch, key):
    count = (batch.target >= 0).sum()

    def loss(params):
      logits = policy.teach(
        params, sids, batch.item, batch.place, batch.target, key
      )
      total = -catalogue.path_log_probs(tree, logits, batch.target).sum()
      return total / jnp.maximum(count, 1), total

    grads, total = jax.grad(loss, has_aux=True)(state.params)
    state = states.apply_gradients(state, grads, tx, decay)
    return state, {"loss": (total, count)}

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
  evaluate, select = selection(setting)
  fit = loop.fit(
    states.create(params, tx),
    jax.tree_util.Partial(
      make_step(policy, tx, config.sft.ema),
      setting.catalogue.sids,
      setting.tree,
    ),
    local_batches(setting, config.sft.batch_size, STAGE),
    config.sft,
    setting.key(STAGE),
    folder=setting.folder(STAGE),
    title=name,
    evaluate=evaluate,
    select=select,
    mesh=setting.mesh,
  )
  keep(setting, STAGE, fit.best_params, history=fit.history)
  return learned(setting, STAGE, name, fit.best_params, fit.history)
