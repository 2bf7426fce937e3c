"""The RL step where a critic learns beside the policy (V-STAR)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rerank_rl.config import RLConfig, TrainConfig
from rerank_rl.models.critic import Critic
from rerank_rl.training import state as states
from rerank_rl.training.stages import rl
from rerank_rl.types import PAD, Impression, Outcome
from tests import toys

PARTS = ("policy", "critic")


def _batch():
  request = toys.request()
  nothing = np.zeros((request.candidates.shape[0], toys.SIZES.slots), np.int32)
  return Impression(
    request, nothing, nothing[..., None] * 1.0, nothing * 1.0, nothing[:, :0]
  )


def _equal(impression, slate):
  """Every slate is worth 1: nothing to learn but that."""
  reward = jnp.ones(slate.shape[:2])
  share = jnp.full(slate.shape, 1 / slate.shape[2])
  return Outcome(reward, share, 0 * reward)


def _different(impression, slate):
  """Each item has a worth of its own."""
  per_item = jnp.where(slate == PAD, 0, jnp.sin(3.0 * slate))
  reward = per_item.sum(-1)
  return Outcome(reward, per_item, 0 * reward)


@functools.cache
def _stepped(explore, credit, reward, rate=0.01, **more):
  """(state before, after, metrics) of one step."""
  train = TrainConfig(
    learning_rate=rate, warmup_steps=0, weight_decay=0.0, ema=0.9
  )
  tx = states.optimizer(train, PARTS)
  policy, params = toys.policy("global")
  critic = Critic(policy.levels, policy.slots)

  @jax.jit
  def init(prompt):
    slot = jnp.zeros((prompt.root.shape[0], 1), jnp.int32)
    root = prompt.root[:, None]
    return critic.init(jax.random.key(1), prompt, root, 0, slot)["params"]

  own = init(toys.game(policy, params).prompt)
  state = states.create({"policy": params, "critic": own}, tx)
  parts = {"explore": explore, "credit": credit, **more}
  config = RLConfig(group=4, budget=16, kl=0.0, entropy=0.0, **parts)
  method = rl.Method(policy, config, tx, train.ema, 0.9)
  step = jax.jit(functools.partial(rl.step, method), static_argnums=1)
  key = jax.random.key(2)
  after, metrics = step(toys.catalogue(), reward, params, state, _batch(), key)
  return state, after, metrics


def _moved(one, two, part):
  pairs = zip(
    jax.tree.leaves(one.params[part]), jax.tree.leaves(two.params[part])
  )
  return max(float(np.abs(a - b).max()) for a, b in pairs)


@pytest.mark.parametrize("credit", ("group+sibling", "confined"))
def test_a_critic_learns_and_leaves_the_policy_alone(credit):
  """Without differences between slates, the critic's loss is all there is."""
  before, after, metrics = _stepped("value_guided", credit, _equal)
  assert _moved(before, after, "critic") > 1e-3
  assert _moved(before, after, "policy") == 0
  dead, requests = metrics["zero_variance_groups"]
  assert dead == requests == 4
  # Places that the search left empty are not counted as rewards.
  total, leaves = metrics["reward"]
  assert total == leaves and 4 < leaves < 16


def test_the_critics_advantages_move_the_policy():
  before, after, metrics = _stepped("chains", "critic", _different)
  assert _moved(before, after, "policy") > 1e-3
  assert metrics["zero_variance_groups"][0] < 4


def test_a_batch_is_fitted_in_as_many_steps_as_asked():
  """The rollouts stay, the loss on them falls."""
  out = [
    _stepped(
      "chains",
      "centred",
      _different,
      rate=1e-4,
      objective="uniform_q",
      epochs=epochs,
    )
    for epochs in (1, 4)
  ]
  assert [int(after.step) for _, after, _ in out] == [1, 4]
  assert len({float(seen["reward"][0]) for *_, seen in out}) == 1
  first, last = (float(seen["loss"][0]) for *_, seen in out)
  assert last < 0.9 * first
