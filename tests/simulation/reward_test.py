"""Rewards against hand calculation."""

import jax
import jax.numpy as jnp
import numpy as np

from rerank_rl.evaluation import ranking
from rerank_rl.simulation import reward
from rerank_rl.types import PAD, Impression
from tests import toys


def _impression():
  request = toys.request(batch=2)
  slate = jnp.array([[4, 0, 2], [1, 0, PAD]])
  feedback = jnp.array([[[1.0], [0.0], [1.0]], [[0.0], [1.0], [0.0]]])
  nan = jnp.full(slate.shape, jnp.nan)
  return Impression(request, slate, feedback, nan, jnp.zeros((2, 0)))


def test_label_gains_lie_at_the_logged_positions():
  gains = reward.label_gains(_impression())
  np.testing.assert_array_equal(gains, [[0, 0, 1, 0, 1], [1, 0, 0, 0, 0]])


def test_label_reward_is_ndcg():
  impression = _impression()
  slates = jnp.array([[[2, 4, 0], [3, 1, 2]], [[0, 1, PAD], [1, 0, PAD]]])
  out = reward.label_reward(impression, slates)
  gains = np.asarray(reward.label_gains(impression))
  for g in range(2):
    slate = np.asarray(slates[:, g])
    shown = np.take_along_axis(gains, np.maximum(slate, 0), 1) * (slate >= 0)
    ideal = -np.sort(-gains, axis=1)
    np.testing.assert_allclose(
      out.reward[:, g], ranking.ndcg_at_k(shown, ideal), atol=1e-6
    )
  np.testing.assert_allclose(out.per_item.sum(-1), out.reward, atol=1e-6)
  assert (out.reward[:, 0] == 1).all()


def test_rewards_are_pytrees_that_jit_takes_as_arguments():
  one = jax.tree_util.Partial(reward.label_reward)
  value = jax.jit(lambda f, x, s: f(x, s).reward)
  impression = _impression()
  slate = impression.slate[:, None]
  np.testing.assert_allclose(
    value(one, impression, slate), one(impression, slate).reward, atol=1e-6
  )
