"""The exploration bonus against its definition, leaf by leaf."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rerank_rl.decoding import tree
from rerank_rl.rl import bonus
from rerank_rl.types import PAD
from tests import toys


def test_the_newest_earns_most_and_all_fade():
  # What no rollout is may be predicted as badly as it will.
  error = jnp.array([[3.0, 1.0, 9.0], [2.0, 5.0, 0.0]])
  found = jnp.array([[True, True, False]] * 2)
  scaled = lambda step: bonus.scaled(error, found, jnp.array(step))
  want = [[0.25, 0, 0], [0.125, 0.5, 0]]
  np.testing.assert_allclose(scaled(0), want, atol=1e-6)
  np.testing.assert_allclose(scaled(40), scaled(0) / 2, atol=1e-6)
  assert (bonus.scaled(jnp.ones((2, 3)), found, jnp.array(0)) == 0).all()
  assert (bonus.scaled(error, found & False, jnp.array(0)) == 0).all()


def test_noise_has_the_bonuss_size_and_not_its_order():
  error = jax.random.uniform(jax.random.key(0), (100, 100)) ** 2
  found = jnp.ones(error.shape, bool)
  paid = bonus.scaled(error, found, jnp.array(10))
  drawn = bonus.noise(paid, found, jax.random.key(1))
  np.testing.assert_allclose(drawn.mean(), paid.mean(), rtol=0.05)
  np.testing.assert_allclose(drawn.std(), paid.std(), rtol=0.05)
  assert abs(np.corrcoef(paid.ravel(), drawn.ravel())[0, 1]) < 0.05


def test_who_has_failed():
  token = jnp.zeros((4, 4, 1), jnp.int32)
  zero = jnp.zeros(token.shape)
  made = tree.from_chains(token, zero, zero, token, zero, True)
  reward = jnp.array(
    [[0.0, 0, 0, 0], [1, 0, 1, 0], [1, 1, 1, 1], [0.5, 0.2, 0.4, 0.1]]
  )
  np.testing.assert_array_equal(
    bonus.unsuccessful(made, reward),
    np.array([[1, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0], [0, 1, 0, 1]], bool),
  )


@functools.cache
def _chains():
  policy, params = toys.policy("global")

  made = toys.chains(policy, params, jax.random.key(3))
  scores = toys.scores(policy, params, toys.request(), made.slate)
  return made, np.asarray(scores.legal.sum(-1))


@pytest.mark.parametrize("merged", (False, True))
def test_the_bonus_stands_on_the_last_choice_alone(merged):
  chains, legal = _chains()
  made = tree.merge(chains) if merged else chains
  leaf = jax.random.normal(jax.random.key(0), made.slate.shape[:2])
  given = bonus.at_last_choice(made, leaf)
  B, G, T = made.path.shape
  positive = np.zeros(made.token.shape)
  negative = np.zeros(made.token.shape)
  forced = 0
  for b, g in np.ndindex(B, G):
    last = np.flatnonzero(legal[b, g] > 1)[-1]
    forced += (legal[b, g] == 1).any() and last < T - 1
    edge = made.path[b, g, last]
    assert edge != PAD
    positive[b, edge] += max(float(leaf[b, g]), 0) / G
    negative[b, edge] += min(float(leaf[b, g]), 0) / G
  assert forced > 10  # Else nothing is tested.
  np.testing.assert_allclose(given.positive, positive, atol=1e-6)
  np.testing.assert_allclose(given.negative, negative, atol=1e-6)


def test_success_earns_nothing():
  chains, _ = _chains()
  outcome = toys.outcome(chains)
  reward = (outcome.reward > 0).astype(jnp.float32)
  assert 0 < reward.mean() < 1
  paid = jnp.ones_like(reward)
  given = bonus.given(chains, outcome.replace(reward=reward), paid)
  each = tree.on_path(chains, given.positive).sum(-1) * reward.shape[1]
  np.testing.assert_allclose(each, 1 - reward, atol=1e-6)
  np.testing.assert_allclose(given.leaf, 1 - reward)
