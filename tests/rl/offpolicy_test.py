"""Off-policy equations: by hand, by enumeration, against exact solutions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rerank_rl.rl import offpolicy

GAMMA = 0.9


def test_nothing_follows_who_left():
  reward, left = jnp.array([1.0, 2.0]), jnp.array([False, True])
  found = offpolicy.td_target(reward, left, jnp.array([10.0, 99.0]), GAMMA)
  np.testing.assert_allclose(found, [1 + 0.9 * 10, 2.0])


def test_beta_weighs_each_sample():
  """Of two samples the policy would take one: the other moves no value."""
  value, quality = jnp.array([1.0, 1.0]), jnp.array([3.0, 6.0])
  beta = jnp.array([2.0, 0.0])
  loss = lambda value: offpolicy.value_loss(value, quality, beta)
  total, count = loss(value)
  # Averaged first it would be mean(beta) * mean(error^2) = 14.5.
  np.testing.assert_allclose(total / count, 2 * 4 / 2)
  grad = jax.grad(lambda value: loss(value).total)(value)
  np.testing.assert_allclose(grad, [2 * 2 * (1 - 3), 0])


def test_targets_and_weights_learn_nothing():
  one = jnp.ones(2)
  by_target = jax.grad(lambda t: offpolicy.quality_loss(one, t).total)
  by_quality = jax.grad(lambda q: offpolicy.value_loss(one, q, one).total)
  by_weight = jax.grad(lambda w: offpolicy.value_loss(one, 2 * one, w).total)
  by_logp = jax.grad(lambda x: offpolicy.importance(x, one, 5.0).sum())
  for grad in (by_target, by_quality, by_weight, by_logp):
    np.testing.assert_array_equal(grad(jnp.zeros(2)), [0, 0])


def test_weights_are_ratios_up_to_a_bound():
  logp = jnp.log(jnp.array([0.2, 0.1, 0.4])) + jnp.array([0, 0, 200.0])
  behaviour = jnp.log(jnp.array([0.1, 0.4, 0.4]))
  found = offpolicy.importance(logp, behaviour, 3.0)
  np.testing.assert_allclose(found, [2, 0.25, 3], rtol=1e-5)


def test_the_target_moves_by_tau():
  target, params = {"a": jnp.zeros(2)}, {"a": jnp.array([1.0, -2.0])}
  found = offpolicy.polyak(target, params, 0.1)
  np.testing.assert_allclose(found["a"], [0.1, -0.2])


def test_gaussian_density():
  point, mean = jnp.array([[0.0, 1.0]]), jnp.array([[0.5, 1.0]])
  one = np.exp(-0.5) / (0.5 * np.sqrt(2 * np.pi))
  two = 1 / (0.5 * np.sqrt(2 * np.pi))
  found = offpolicy.gaussian_log_density(point, mean, 0.5)
  np.testing.assert_allclose(found, [np.log(one * two)], rtol=1e-5)


# A user of three places: action 1 moves on, where the last pays most and ends.
REWARD = np.array([[1.0, 0.0], [0.5, 0.0], [0.0, 4.0]])
AFTER = np.array([[0, 1], [0, 2], [1, 0]])
LEFT = np.array([[False, False], [False, False], [False, True]])
POLICY = np.array([[0.8, 0.2], [0.3, 0.7], [0.5, 0.5]])


def _exact(policy):
  """V^pi = (I - gamma P)^-1 r."""
  move = np.zeros((3, 3))
  for s, a in itertools.product(range(3), range(2)):
    move[s, AFTER[s, a]] += policy[s, a] * (not LEFT[s, a])
  return np.linalg.solve(np.eye(3) - GAMMA * move, (policy * REWARD).sum(1))


def _learnt(left, weight):
  """V f[3] that the disentangled pair ends at, from each action once."""
  s, a = np.divmod(np.arange(6), 2)
  ahead, reward = AFTER[s, a], jnp.asarray(REWARD[s, a])

  def update(tables, _):
    def loss(tables):
      value, quality = tables["v"][s], tables["q"][s, a]
      target = offpolicy.td_target(
        reward, left[s, a], tables["v"][ahead], GAMMA
      )
      main = offpolicy.quality_loss(quality, target)
      return main.total + offpolicy.value_loss(value, quality, weight).total

    grads = jax.grad(loss)(tables)
    return jax.tree.map(lambda x, g: x - 0.2 * g, tables, grads), None

  start = {"v": jnp.zeros(3), "q": jnp.zeros((3, 2))}
  return jax.lax.scan(update, start, length=800)[0]["v"]


def test_the_fixed_point_is_the_policys_value():
  """Whoever acted: here both actions alike, and beta = pi / .5."""
  beta = offpolicy.importance(
    jnp.log(POLICY.reshape(-1)), jnp.full(6, np.log(0.5)), 10.0
  )
  learnt = jax.jit(_learnt)
  found = learnt(LEFT, beta)
  np.testing.assert_allclose(found, _exact(POLICY), rtol=1e-3)
  uniform = np.full((3, 2), 0.5)
  # Without weights it is the value of who acted, which is another.
  np.testing.assert_allclose(
    learnt(LEFT, jnp.ones(6)), _exact(uniform), rtol=1e-3
  )
  assert np.abs(_exact(uniform) - _exact(POLICY)).min() > 0.1
  # Bootstrapping at the end and only there (public code) is none of both.
  wrong = learnt(~LEFT, beta)
  assert np.abs(wrong - _exact(POLICY)).min() > 0.5


@pytest.mark.parametrize("epsilon", [0.3, 1.0])
def test_the_mass_of_slates_is_their_frequency(epsilon):
  """Over all slates it sums to one, and draws fall accordingly."""
  scores = jnp.array([[0.3, 2.0, -1.0, 1.0, 0.5]])
  real = jnp.array([[True, True, False, True, True]])
  every = np.array(list(itertools.permutations((0, 1, 3, 4), 3)), np.int32)
  count = len(every)
  wide = lambda x: jnp.broadcast_to(x, (count, 5))
  logp = offpolicy.epsilon_greedy_log_mass(
    wide(scores), wide(real), jnp.asarray(every), epsilon
  )
  mass = np.exp(logp)
  np.testing.assert_allclose(mass.sum(), 1, rtol=1e-5)
  best = (every == [1, 3, 4]).all(1)
  hit = lambda n: 1 - epsilon + epsilon / n
  np.testing.assert_allclose(mass[best], hit(4) * hit(3) * hit(2), rtol=1e-5)
  draws = 20_000
  many = lambda x: jnp.broadcast_to(x, (draws, 5))
  slates = offpolicy.epsilon_greedy(
    jax.random.key(0), many(scores), many(real), 3, epsilon
  )
  same = (np.asarray(slates)[:, None] == every[None]).all(-1)
  assert same.any(1).all()
  np.testing.assert_allclose(same.mean(0), mass, atol=5 * 0.5 / draws**0.5)
