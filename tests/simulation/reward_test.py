"""Rewards against hand calculation."""

import jax
import jax.numpy as jnp
import numpy as np

from rerank_rl.evaluation import ranking
from rerank_rl.simulation import reward
from rerank_rl.types import PAD, Impression, Request
from tests import toys
from tests.world.utility_test import everything, requests


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


def _world_impression(count):
  world, hidden, candidates = requests(count=count)
  nothing = np.zeros((count, 4), np.int32)
  request = Request(
    user=np.zeros((count, 0)),
    history=np.zeros((count, 1), np.int32),
    candidates=candidates,
    scores=np.zeros(candidates.shape),
    size=np.full(count, 4),
  )
  blank = nothing * 1.0
  return world, Impression(request, nothing, blank[..., None], blank, hidden)


def test_good_slates_are_near_the_best_of_all():
  world, impression = _world_impression(6)
  candidates = impression.request.candidates
  orders, worth = everything(world, impression.hidden, candidates)
  slates = np.broadcast_to(orders, (6, *orders.shape))
  out = jax.jit(reward.good_reward(world))(impression, slates)
  wanted = worth >= 0.95 * worth.max(1, keepdims=True)
  # Worth a threshold, to rounding: either is right.
  clear = np.abs(worth / worth.max(1, keepdims=True) - 0.95) > 1e-5
  np.testing.assert_array_equal(
    np.asarray(out.reward == 1)[clear], wanted[clear]
  )
  assert set(np.unique(out.reward)) == {0.0, 1.0}
  assert 0 < wanted.mean() < 0.5
  np.testing.assert_allclose(out.per_item.sum(-1), out.reward, atol=1e-6)


def test_better_than_logged_compares_with_what_was_shown():
  impression = _impression()
  better = reward.better_than_logged(jax.tree_util.Partial(reward.label_reward))
  slates = jnp.array(
    [[[4, 0, 2], [4, 2, 0], [0, 1, 3]], [[1, 0, PAD], [0, 1, PAD], [1, 0, PAD]]]
  )
  np.testing.assert_array_equal(
    better(impression, slates).reward, [[0, 1, 0], [0, 1, 0]]
  )


def test_a_slots_part_is_settled_by_the_slots_up_to_it():
  world, impression = _world_impression(6)
  rng = np.random.default_rng(0)
  N, K = impression.request.candidates.shape[1], impression.slate.shape[1]
  draw = lambda: np.stack([rng.permutation(N)[:K] for _ in range(6)])
  one, two = draw()[:, None], draw()[:, None]
  for function in (reward.world_reward(world), reward.good_reward(world)):
    whole = function(impression, one).per_item
    for k in range(1, K):
      kept, swap = one[..., :k], two
      # Later slots: items that the first k do not hold, in another order.
      rest = [
        [i for i in swap[b, 0] if i not in kept[b, 0]][: K - k]
        + [i for i in range(N) if i not in {*swap[b, 0], *kept[b, 0]}]
        for b in range(6)
      ]
      rest = np.array([r[: K - k] for r in rest])[:, None]
      other = np.concatenate([kept, rest], -1)
      np.testing.assert_allclose(
        function(impression, other).per_item[..., :k], whole[..., :k], atol=1e-6
      )


def test_rewards_are_pytrees_that_jit_takes_as_arguments():
  one = jax.tree_util.Partial(reward.label_reward)
  value = jax.jit(lambda f, x, s: f(x, s).reward)
  impression = _impression()
  slate = impression.slate[:, None]
  np.testing.assert_allclose(
    value(one, impression, slate), one(impression, slate).reward, atol=1e-6
  )
