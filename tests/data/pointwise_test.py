"""Co-visit scores leave the row's own user out; the fit is a logistic."""

import numpy as np

from rerank_rl.data import pointwise
from rerank_rl.types import PAD


def matrix(seed=0, users=30, items=12):
  random = np.random.default_rng(seed)
  user, item = np.nonzero(random.random((users, items)) < 0.4)
  return pointwise.interactions(user, item, (users, items))


def test_repeated_pairs_count_once():
  met = pointwise.interactions(np.array([0, 0]), np.array([1, 1]), (1, 2))
  assert met.toarray().tolist() == [[0, 1]]


def test_a_training_row_scores_as_if_its_own_target_were_not_logged():
  full = matrix()
  dense = full.toarray()
  owner = 3
  held = np.flatnonzero(dense[owner])
  target, history = held[-1], held[:-1]
  dense[owner, target] = 0
  user, item = np.nonzero(dense)
  without = pointwise.interactions(user, item, dense.shape)

  def score(table, trained):
    padded = np.r_[[PAD, PAD], history].astype(np.int32)[None]
    return pointwise.CoVisits(table)(
      np.array([owner]), padded, np.array([[target]]), np.array([trained])
    )

  np.testing.assert_allclose(
    score(full, True), score(without, False), rtol=1e-5
  )
  assert (score(full, False) > score(full, True)).all()


def test_empty_histories_say_nothing():
  result = pointwise.CoVisits(matrix())(
    np.array([0]), np.full((1, 4), PAD), np.arange(12)[None], np.array([False])
  )
  assert np.ptp(result[..., 0]) == 0
  assert np.isfinite(result).all()


def test_factors_are_the_truncated_svd():
  dense = matrix().toarray()
  dense[:, 5] = 0
  met = pointwise.interactions(*np.nonzero(dense), dense.shape)
  factors = pointwise.item_factors(met, 4)
  assert factors.shape == (12, 4)
  assert (factors[5] == 0).all()
  gram = factors.T @ factors
  np.testing.assert_allclose(gram, np.diag(np.diag(gram)), atol=1e-4)
  assert (np.diff(np.diag(gram)) <= 1e-6).all()
  np.testing.assert_array_equal(factors, pointwise.item_factors(met, 4))


def test_as_many_factors_as_users_keep_all_there_is():
  met = matrix(users=3)
  factors = pointwise.item_factors(met, 3)
  fewer = pointwise.item_factors(met, 2)
  np.testing.assert_allclose(np.abs(factors[:, :2]), np.abs(fewer), atol=1e-5)


def test_logistic_finds_the_weights_that_made_the_labels():
  random = np.random.default_rng(0)
  x = random.normal(size=(40_000, 2))
  p = 1 / (1 + np.exp(-(x @ [1.5, -0.7] + 0.3)))
  weights = pointwise.fit_logistic(x, random.random(40_000) < p)
  np.testing.assert_allclose(weights, [1.5, -0.7, 0.3], atol=0.06)
