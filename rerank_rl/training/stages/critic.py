"""Stage `critic`: what the SFT policy's prefixes are worth, token by token."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rerank_rl.config import Config, ConfigError, CriticConfig
from rerank_rl.decoding import sample
from rerank_rl.models.critic import Critic, value_of
from rerank_rl.models.hpn import HierarchicalPolicy
from rerank_rl.models.policy import HEADS, Policy
from rerank_rl.rl import values
from rerank_rl.simulation.reward import Reward
from rerank_rl.training import fitting
from rerank_rl.training import state as states
from rerank_rl.training.setting import (
  CHUNK,
  Setting,
  by_chunks,
  local,
  ready,
  valuer,
)
from rerank_rl.training.stages import rl

STAGE = "critic"


def check(config: Config) -> None:
  """Refuses what no critic can value.

  Raises:
    ConfigError: a reward that the run does not have, a policy whose states do
      not tell what was placed, bad numbers.
  """
  head = config.policy.head
  if issubclass(HEADS[head], HierarchicalPolicy):
    raise ConfigError(
      f"config.policy.head={head!r} forgets the items above, which the stage "
      "'critic' values; choose a head that reads them, such as global."
    )
  rl.check_reward(config)
  states.check(config.critic_train, "config.critic_train")


def _rollouts(policy, config, params, catalogue, reward, batch, key):
  """(game, tree, Outcome) of the policy that is being valued."""
  game = sample.prepare(policy, params, catalogue, batch.request)
  tree = sample.chains(policy, params, game, key, config.group)
  tree = jax.lax.stop_gradient(tree)
  return game, tree, reward(batch, tree.slate)


def step(
  policy: Policy,
  config: CriticConfig,
  tx,
  decay: float,
  catalogue,
  reward,
  params,
  state,
  batch,
  key,
):
  """Rolls the policy of `params` out; one gradient step on TD(lambda)."""
  game, tree, outcome = _rollouts(
    policy, config, params, catalogue, reward, batch, key
  )

  def objective(critic):
    value = value_of(policy, critic)
    read = values.along(policy, params, value, game, tree.slate)
    return values.temporal_difference(read, outcome, config.decay)

  return states.step_on(state, objective, tx, decay)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _errors(policy, config, catalogue, reward, params, critic, batch, key):
  """Of the values of what was sampled, by depth: f32[B, T, 2].

  Squared errors, summed over the rollouts, and how many values were read.
  """
  game, tree, outcome = _rollouts(
    policy, config, params, catalogue, reward, batch, key
  )
  value = value_of(policy, critic)
  read = values.along(policy, params, value, game, tree.slate)
  to_come = values.lambda_returns(read, outcome, 1.0)
  square = jnp.where(read.real, (read.chosen - to_come) ** 2, 0)
  return jnp.stack([square, read.real.astype(square.dtype)], -1).sum(1)


def run(setting: Setting) -> Setting:
  """Learns, resumes or reloads the critic of the SFT policy.

  Args:
    setting: after `sft`.

  Returns:
    With `critic`.
  """
  config = setting.config
  check(config)
  setting = setting.identified(
    STAGE,
    setting.identity["sft"],
    config.rl.reward,
    config.critic,
    config.critic_train,
  )
  if not ready(setting, STAGE):
    _fit(setting)
  params, history = fitting.kept(setting, STAGE)
  return dataclasses.replace(setting, critic=params, history=history)


def _fit(setting: Setting) -> None:
  config, policy = setting.config, setting.policy
  params = jax.tree.map(jnp.asarray, setting.params[config.sft_name])
  reward = setting.reward(config.rl.reward)
  tx = states.optimizer(config.critic_train)
  valid = setting.dataset.splits["valid"]
  key = setting.key(STAGE)

  def evaluate(critic):
    critic = local(critic)
    found = by_chunks(
      lambda batch: _errors(
        policy,
        config.critic,
        setting.catalogue,
        reward,
        params,
        critic,
        batch,
        key,
      ),
      CHUNK // 2,
      valid,
    ).sum(0)
    errors = found.reshape(policy.slots, policy.levels, 2)
    ends = (errors[:, -1, 0] / np.maximum(errors[:, -1, 1], 1)).tolist()
    by_slot = {f"error_slot_{k}": error for k, error in enumerate(ends)}
    error, count = errors.sum((0, 1)).tolist()
    return {"error": error / max(count, 1), **by_slot}

  own = jax.tree_util.Partial(
    states.bound(step, policy, config.critic, tx, config.critic_train.ema),
    setting.catalogue,
    reward,
    params,
  )
  state = states.create(_init(setting, params, reward), tx)
  train = config.critic_train
  batches = fitting.local_batches(setting, train.batch_size, STAGE)
  watch = evaluate, ("error", False)
  fitting.fit(setting, STAGE, state, own, batches, train, watch)


def _init(setting: Setting, params: Any, reward: Reward) -> Any:
  """Fresh parameters of the critic: all slates are worth what logged ones are.

  Args:
    setting: after `sft`.
    params: the SFT policy's.
    reward: what values foretell.
  """
  policy = setting.policy
  some = jax.tree.map(lambda x: x[:CHUNK], setting.dataset.splits["train"])
  typical = float(valuer(reward)(some, some.slate).mean())
  critic = Critic(policy.levels, policy.slots, typical)

  @states.jit_once
  def init(key, params, request):
    game = sample.prepare(policy, params, setting.catalogue, request)
    slot = jnp.zeros((len(request.size), 1), jnp.int32)
    return critic.init(key, game.prompt, game.prompt.root[:, None], 0, slot)

  few = jax.tree.map(lambda x: jnp.asarray(x[:2]), some.request)
  return init(setting.key("critic/init"), params, few)["params"]
