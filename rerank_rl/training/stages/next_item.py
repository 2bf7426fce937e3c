"""Stage `sft` of the next-item task: cross-entropy of all next items."""

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
  member: NextItemPolicy, tree: Tree, params, batch: Windows, key: Array
) -> tuple[Array, Array]:
  """Of all next items under the catalogue's legality, with dropout.

    - sum_l log p_e(token_l | history, tokens before it)

  Args:
    member: its pure functions.
    tree: the catalogue.
    params: of all members, which learn each for itself.
    batch: what users met.
    key: of dropout.

  Returns:
    (sum over members and the places that have a target, their number).
  """
  real = batch.target >= 0

  def own(params, key):
    keys = jax.random.split(key)
    state = member.encode(params, tree, batch.item, batch.place, keys[0])
    choices = decoding.along(member, params, tree, state, batch.target, keys[1])
    logp = sum(map(decoding.chosen, choices))
    return -jnp.where(real, logp, 0).sum()

  count = len(jax.tree.leaves(params)[0])
  total = jax.vmap(own)(params, jax.random.split(key, count))
  return total.sum(), count * real.sum()


def step(member: NextItemPolicy, tx, decay: float, tree, state, batch, key):
  """The SFT step: (state, metrics)."""
  objective = lambda params: cross_entropy(member, tree, params, batch, key)
  return states.step_on(state, objective, tx, decay)


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
  config = setting.config.sft
  tx = states.optimizer(config)
  params = states.jit_once(setting.policy.init)(setting.key("policy"))
  own = jax.tree_util.Partial(
    states.bound(step, setting.member, tx, config.ema), setting.tree
  )
  state = states.create(params, tx)
  batches = fitting.local_batches(setting, config.batch_size, STAGE)
  fitting.fit(setting, STAGE, state, own, batches, config, selection(setting))
