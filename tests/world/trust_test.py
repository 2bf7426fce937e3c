"""The world of trust: its model is what it samples; greed does not pay."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rerank_rl.world import trust

SEEDS = range(10)
GAMMA = 0.9


def test_users_do_what_the_model_says():
  world = trust.build(0)
  reward, after = trust.model(world)
  every = trust.slates()
  rng = np.random.default_rng(0)
  react = jax.jit(jax.vmap(trust.react, (None, None, None, 0)))
  for number in rng.choice(len(every), 4, replace=False):
    for level in (0, 2, trust.LEVELS - 1):
      keys = jax.random.split(jax.random.key(level), 20_000)
      args = (jnp.int32(level), jnp.asarray(every[number]), keys)
      to, clicked, left = react(world, *args)
      # Six standard errors of means of 20,000.
      seen = np.asarray(clicked).sum(1).mean()
      assert abs(seen - reward[level, number]) < 6 * 0.7 / 141
      share = [(~left & (to == s)).mean() for s in range(trust.LEVELS)]
      np.testing.assert_allclose(
        share, after[level, number], atol=6 * 0.5 / 141
      )


@pytest.mark.parametrize("seed", SEEDS)
def test_the_myopic_policy_loses_its_users(seed):
  world = trust.build(seed)
  myopic = trust.value(world, trust.best(world, 0.0), GAMMA)
  assert myopic.mean() <= 0.7 * trust.optimum(world, GAMMA).mean()


def test_the_optimum_is_one():
  """Bellman's equation holds, and no deterministic policy nearby is better."""
  world = trust.build(1)
  reward, after = trust.model(world)
  best = trust.optimum(world, GAMMA)
  np.testing.assert_allclose(
    best, (reward + GAMMA * after @ best).max(1), rtol=1e-9
  )
  rows = np.eye(reward.shape[1])
  chosen = trust.best(world, GAMMA).argmax(1)
  for level, other in itertools.product(range(trust.LEVELS), range(0, 56, 5)):
    changed = chosen.copy()
    changed[level] = other
    assert (trust.value(world, rows[changed], GAMMA) <= best + 1e-9).all()
