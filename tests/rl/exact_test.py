"""The uniform policy's values, and what greedy on them is worth."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rerank_rl.rl import exact

DEPTH, WIDTH = 3, 3


def _leaves():
  return np.array(list(itertools.product(range(WIDTH), repeat=DEPTH)))


def _greedy(tokens, q):
  """Reward index of the leaf that greedy on Q reaches."""
  alive = np.ones(len(tokens), bool)
  for t in range(DEPTH):
    best = np.where(alive, q[:, t], -np.inf).argmax()
    alive &= tokens[:, t] == tokens[best, t]
  return int(np.flatnonzero(alive)[0])


def test_by_hand():
  tokens = np.array([[0, 0], [0, 1], [1, 0]])
  got = exact.uniform_values(tokens, np.array([1.0, 0.0, 0.4]))
  np.testing.assert_allclose(got, [[0.5, 1], [0.5, 0], [0.4, 0.4]])


def test_a_repeated_leaf_is_refused():
  with pytest.raises(ValueError, match="1 of 2 leaves"):
    exact.uniform_values(np.zeros((2, 2), int), np.zeros(2))


def test_values_are_the_uniform_policys():
  random = np.random.default_rng(0)
  # A ragged tree: some leaves are missing.
  tokens = _leaves()[random.permutation(WIDTH**DEPTH)[:14]]
  reward = random.normal(size=14)
  q = exact.uniform_values(tokens, reward)
  drawn = np.zeros(tokens[:, 0].max() + 1)
  count = np.zeros_like(drawn)
  for _ in range(20_000):
    alive = np.ones(14, bool)
    for t in range(DEPTH):
      token = random.choice(np.unique(tokens[alive, t]))
      alive &= tokens[:, t] == token
    leaf = int(np.flatnonzero(alive)[0])
    drawn[tokens[leaf, 0]] += reward[leaf]
    count[tokens[leaf, 0]] += 1
  for row, value in zip(tokens, q[:, 0], strict=True):
    np.testing.assert_allclose(
      drawn[row[0]] / count[row[0]], value, atol=5 / np.sqrt(count[row[0]])
    )


def test_learnt_tables_reach_the_oracle():
  """Temporal differences with the reward at the leaf alone."""
  random = np.random.default_rng(1)
  tokens = _leaves()
  reward = jnp.asarray(random.normal(size=len(tokens)))
  shape = [(WIDTH,) * (t + 1) for t in range(DEPTH)]

  def loss(table):
    total = 0.0
    for t in range(DEPTH):
      after = (
        table[t + 1].mean(-1) if t + 1 < DEPTH else reward.reshape(shape[t])
      )
      total += ((table[t] - jax.lax.stop_gradient(after)) ** 2).sum()
    return total

  table = [jnp.zeros(s) for s in shape]
  tx = optax.sgd(0.25)
  state = tx.init(table)
  step = jax.jit(jax.grad(loss))
  for _ in range(80):
    updates, state = tx.update(step(table), state)
    table = optax.apply_updates(table, updates)
  q = exact.uniform_values(tokens, np.asarray(reward))
  for t in range(DEPTH):
    got = np.asarray(table[t])[tuple(tokens[:, : t + 1].T)]
    np.testing.assert_allclose(got, q[:, t], atol=1e-5)


def test_greedy_is_optimal_with_a_binary_reward_alone():
  random = np.random.default_rng(2)
  tokens = _leaves()
  binary, graded = [], []
  for _ in range(200):
    good = (random.random(len(tokens)) < 0.1).astype(float)
    if good.any():
      leaf = _greedy(tokens, exact.uniform_values(tokens, good))
      binary.append(good[leaf] == 1)
    worth = random.normal(size=len(tokens))
    leaf = _greedy(tokens, exact.uniform_values(tokens, worth))
    graded.append(leaf == worth.argmax())
  assert all(binary) and len(binary) > 150
  # The theorem does not hold for graded rewards, and must not be claimed.
  assert np.mean(graded) < 0.6
