"""Rankings' policy gradient against all rankings that there are."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from rerank_rl.rl import ranking
from rerank_rl.simulation import reward

SCORE = np.array([0.7, -0.4, 0.2, 1.1])
GAIN = np.array([0.0, 1.0, 0.0, 0.5])
ITEMS, PLACES = 4, 2


def _expected(score, gain=GAIN):
  """Expected DCG, by summing over all lists of PLACES items."""
  total = 0.0
  discount = reward.discounts(PLACES)
  for order in itertools.permutations(range(len(score)), PLACES):
    left, p, worth = jnp.exp(score), 1.0, 0.0
    for place, item in enumerate(order):
      p *= left[item] / left.sum()
      left = left.at[item].set(0)
      worth += discount[place] * gain[item]
    total += p * worth
  return total


def _estimate(score, gain, where, lists):
  args = [jnp.asarray(x)[None] for x in (score, gain, where)]
  return jax.jit(ranking.plackett_luce, static_argnums=(3, 4))(
    *args, PLACES, lists, jax.random.key(0)
  )


def test_the_gradient_is_that_of_the_expected_dcg():
  want = jax.grad(_expected)(jnp.asarray(SCORE, jnp.float32))
  given, worth = _estimate(SCORE, GAIN, np.ones(ITEMS, bool), 40_000)
  np.testing.assert_allclose(given[0], want, atol=4e-3)
  assert np.abs(want).max() > 0.05
  np.testing.assert_allclose(worth[0], _expected(SCORE), atol=5e-3)
  np.testing.assert_allclose(given.sum(), 0, atol=1e-5)


def test_two_lists_share_their_baseline():
  """With few lists the mean is smaller by (S - 1) / S, and no more."""
  want = jax.grad(_expected)(jnp.asarray(SCORE, jnp.float32))
  many = 30_000
  args = [jnp.tile(jnp.asarray(x)[None], (many, 1)) for x in (SCORE, GAIN)]
  given, _ = jax.jit(ranking.plackett_luce, static_argnums=(3, 4))(
    *args, jnp.ones((many, ITEMS), bool), PLACES, 2, jax.random.key(1)
  )
  np.testing.assert_allclose(given.mean(0), want / 2, atol=5e-3)


def test_items_that_are_not_there_have_no_part():
  where = np.array([True, True, True, False])
  want = jax.grad(_expected)(
    jnp.asarray(SCORE[:3], jnp.float32), jnp.asarray(GAIN[:3])
  )
  given, _ = _estimate(SCORE, GAIN, where, 40_000)
  assert given[0, 3] == 0
  np.testing.assert_allclose(given[0, :3], want, atol=4e-3)


def test_nothing_to_gain_gives_nothing():
  given, worth = _estimate(SCORE, 0 * GAIN, np.ones(ITEMS, bool), 16)
  assert (given == 0).all() and (worth == 0).all()
