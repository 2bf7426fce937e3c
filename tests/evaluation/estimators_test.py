"""Off-policy estimates against truths: a small cascade's, and the world's."""

import functools
import itertools

import numpy as np
import pytest

from rerank_rl.evaluation import estimators
from rerank_rl.world import utility
from tests.world import world_test

ITEMS, K = 4, 3
APPEAL = np.array([0.2, 0.5, 0.7, 0.35])
SLATES = np.array(list(itertools.permutations(range(ITEMS), K)))


def _plackett_luce(scores):
  """Conditional probabilities [24, K] of every ordered slate."""
  mass = np.exp(scores)
  left = mass.sum() - np.cumsum(mass[SLATES], 1) + mass[SLATES]
  return mass[SLATES] / left


def _cascade_reward():
  """P(click at k): the user stops at the first click, so prefixes matter."""
  appeal = APPEAL[SLATES]
  survive = np.cumprod(1 - appeal, 1) / (1 - appeal)
  return survive * appeal


def _log(n, seed, logging, reward):
  rng = np.random.default_rng(seed)
  slates = rng.choice(len(SLATES), n, p=logging.prod(1))
  clicks = rng.random((n, K)) < reward[slates]
  return slates, clicks.astype(np.float32), np.ones((n, K), bool)


LOGGING = _plackett_luce(np.array([0.8, 0.0, -0.5, 0.3]))
TARGET = _plackett_luce(np.array([-0.5, 0.4, 0.9, 0.0]))


@pytest.mark.parametrize("self_normalised", [False, True])
def test_reward_interaction_finds_the_truth_of_a_cascade(self_normalised):
  reward = _cascade_reward()
  truth = TARGET.prod(1) @ reward
  logged = LOGGING.prod(1) @ reward
  rows, clicks, mask = _log(40_000, 0, LOGGING, reward)
  found = estimators.reward_interaction(
    clicks, LOGGING[rows], TARGET[rows], mask, self_normalised
  )
  assert (np.abs(found.value - truth) < 4 * found.error).all()
  # The logged average is a different number: the weights do the work.
  assert np.abs(logged - truth).max() > 10 * found.error.max()
  assert (np.diff(found.ess) < 0).all() and found.ess[0] < 40_000


def test_unbiased_over_many_logs_and_errors_are_honest():
  reward = _cascade_reward()
  truth = TARGET.prod(1) @ reward
  values, errors = [], []
  for seed in range(200):
    rows, clicks, mask = _log(400, seed, LOGGING, reward)
    found = estimators.reward_interaction(
      clicks, LOGGING[rows], TARGET[rows], mask
    )
    values.append(found.value)
    errors.append(found.error)
  spread = np.std(values, 0)
  assert (np.abs(np.mean(values, 0) - truth) < 4 * spread / np.sqrt(200)).all()
  np.testing.assert_allclose(np.mean(errors, 0), spread, rtol=0.25)


def test_independent_is_biased_in_a_cascade_but_varies_less():
  reward = _cascade_reward()
  truth = TARGET.prod(1) @ reward
  rows, clicks, mask = _log(40_000, 1, LOGGING, reward)
  args = (clicks, LOGGING[rows], TARGET[rows], mask)
  alone = estimators.independent(*args)
  cascade = estimators.reward_interaction(*args)
  assert np.abs(alone.value - truth)[2] > 4 * alone.error[2]
  assert alone.error[2] < cascade.error[2]
  assert alone.ess[2] > cascade.ess[2]
  assert alone.value[0] == pytest.approx(cascade.value[0])


@functools.cache
def _world_log():
  """A log of the world, two top slots, and what another policy makes of them.

  Who knows the user puts first what he likes, and then what is least alike.
  Slots below change nothing in those two, whose 90 pairs can be enumerated.

  Returns:
    (clicks, propensity, target), each [n, 2], and the truth f64[2].
  """
  world, log = world_test.log(world_test.SMALL, 8192)
  candidates, score = log.request.candidates, log.request.scores
  n, N = candidates.shape
  liking = world_test.relevances(world, log.hidden)
  first = np.exp(score + np.take_along_axis(liking, candidates, 1))
  first /= first.sum(1, keepdims=True)
  z = np.asarray(world.z)[candidates]
  alike = np.maximum(np.einsum("bid,bjd->bij", z, z), 0)
  then = np.exp(score[:, None] - 3 * alike) * (1 - np.eye(N))[None]
  then /= then.sum(2, keepdims=True)
  pairs = np.array(list(itertools.permutations(range(N), 2)))
  chance = first[:, pairs[:, 0]] * then[:, pairs[:, 0], pairs[:, 1]]
  worth = utility.per_item(world, log.hidden, candidates[:, pairs])
  truth = np.einsum("bp,bpk->k", chance, np.asarray(worth)) / n
  row, (top, second) = np.arange(n), log.slate[:, :2].T
  target = np.stack([first[row, top], then[row, top, second]], 1)
  return log.feedback[:, :2, 0], log.propensity[:, :2], target, truth


@pytest.mark.parametrize("self_normalised", [False, True])
def test_the_worlds_log_tells_what_another_policy_is_worth(self_normalised):
  """Its own propensities, examination and fatigue against the closed form."""
  *logged, truth = _world_log()
  mask = np.ones(logged[0].shape, bool)
  found = estimators.reward_interaction(*logged, mask, self_normalised)
  assert (np.abs(found.value - truth) < 3 * found.error).all()
  assert (np.abs(logged[0].mean(0) - truth) > 2 * found.error).all()
  # Its second slot is read under other items than the log's.
  alone = estimators.independent(*logged, mask, self_normalised)
  assert alone.value[0] == found.value[0]
  assert np.abs(alone.value - truth)[1] > 2 * alone.error[1]
  assert alone.error[1] < found.error[1]


@pytest.mark.parametrize("self_normalised", [False, True])
def test_independent_finds_the_truth_of_independent_slots(self_normalised):
  rng = np.random.default_rng(2)
  logging, target = np.array([[0.7, 0.3], [0.2, 0.8]])
  items = rng.choice(2, (40_000, K), p=logging)
  appeal = np.array([0.2, 0.6])
  clicks = (rng.random(items.shape) < appeal[items]).astype(np.float32)
  found = estimators.independent(
    clicks,
    logging[items],
    target[items],
    np.ones_like(items, bool),
    self_normalised,
  )
  assert (np.abs(found.value - target @ appeal) < 4 * found.error).all()


def test_the_logging_policy_itself_is_the_plain_average():
  rows, clicks, mask = _log(100, 3, LOGGING, _cascade_reward())
  for estimate in (estimators.independent, estimators.reward_interaction):
    for self_normalised in (False, True):
      found = estimate(
        clicks, LOGGING[rows], LOGGING[rows], mask, self_normalised
      )
      np.testing.assert_allclose(found.value, clicks.mean(0))
      np.testing.assert_allclose(found.ess, 100)


def test_empty_slots_earn_nothing_and_need_no_propensity():
  rows, clicks, mask = _log(50, 4, LOGGING, _cascade_reward())
  mask[:, 2] = False
  propensity = np.where(mask, LOGGING[rows], np.nan)
  found = estimators.reward_interaction(clicks, propensity, TARGET[rows], mask)
  assert found.value[2] == 0 and np.isfinite(found.value).all()


def test_logs_without_propensities_are_refused():
  rows, clicks, mask = _log(10, 5, LOGGING, _cascade_reward())
  propensity = LOGGING[rows].copy()
  propensity[4, 1] = np.nan
  with pytest.raises(ValueError, match=r"carry no propensities: .*row 4"):
    estimators.independent(clicks, propensity, TARGET[rows], mask)
  propensity[4, 1] = 0
  with pytest.raises(ValueError, match=r"`propensity` is 0\.0 at row 4"):
    estimators.independent(clicks, propensity, TARGET[rows], mask)
  with pytest.raises(ValueError, match=r"`target` is -1\.0 at row 0"):
    estimators.independent(clicks, LOGGING[rows], -1.0 * mask, mask)
