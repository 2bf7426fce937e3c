"""Intervals: what they cover, and what they must not depend on."""

import numpy as np
import pytest

from rerank_rl.evaluation import bootstrap


def test_over_requests_agrees_with_the_normal_interval():
  values = np.random.default_rng(0).normal(2.0, 1.0, (900, 1))
  (mean, low, high) = bootstrap.over_requests(values)[0]
  half = 1.96 * values.std() / 30
  assert mean == pytest.approx(values.mean())
  assert low == pytest.approx(mean - half, abs=0.2 * half)
  assert high == pytest.approx(mean + half, abs=0.2 * half)


def test_share_is_a_ratio_of_sums_not_a_mean_of_ratios():
  value, optimum = np.array([[1.0], [1.0]]), np.array([[1.0], [3.0]])
  assert bootstrap.over_requests(value, optimum)[0, 0] == 0.5


def test_a_mean_of_the_sample_is_the_mean_over_requests():
  value, per = np.random.default_rng(5).uniform(1, 2, (2, 70))
  ratio = lambda value, per: value.sum() / per.sum()
  whole = bootstrap.of_sample(ratio, value, per, resamples=99, seed=3)
  by_sums = bootstrap.over_requests(
    value[:, None], per[:, None], resamples=99, seed=3
  )
  np.testing.assert_allclose(whole, by_sums[0])


def test_nan_leaves_a_request_out():
  values = np.random.default_rng(1).normal(size=(50, 2))
  values[10:, 1] = np.nan
  point, low, high = bootstrap.over_requests(values)[1]
  assert point == pytest.approx(values[:10, 1].mean())
  assert low < point < high
  empty = bootstrap.over_requests(np.full((5, 1), np.nan))
  assert np.isnan(empty).all()


def test_seeded_and_blind_to_the_other_columns():
  values = np.random.default_rng(2).normal(size=(60, 3))
  both = bootstrap.over_requests(values, seed=7)
  np.testing.assert_array_equal(both, bootstrap.over_requests(values, seed=7))
  alone = bootstrap.over_requests(values[:, 1:2], seed=7)
  np.testing.assert_allclose(alone[0], both[1])
  assert (both[:, 1] != bootstrap.over_requests(values, seed=8)[:, 1]).all()


def test_blocks_do_not_change_the_draws(monkeypatch):
  values = np.random.default_rng(3).normal(size=(40, 1))
  whole = bootstrap.over_requests(values, resamples=50)
  monkeypatch.setattr(bootstrap, "_BLOCK", 40 * 7)
  np.testing.assert_allclose(
    bootstrap.over_requests(values, resamples=50), whole
  )


def test_over_seeds_by_hand():
  mean, low, high = bootstrap.over_seeds(np.array([1.0, 2.0, 3.0]))
  assert mean == 2
  assert high - mean == pytest.approx(4.302653 / np.sqrt(3), rel=1e-5)
  assert mean - low == pytest.approx(high - mean)
  one = bootstrap.over_seeds(np.array([4.0]))
  assert one.mean == 4 and np.isnan(one.low) and np.isnan(one.high)


def test_pairing_sees_what_the_noise_of_requests_hides():
  rng = np.random.default_rng(4)
  base = rng.normal(0, 5, (1, 400))
  a = base + 0.1 + rng.normal(0, 0.2, (1, 400))
  paired = bootstrap.paired_difference(a, base)
  assert 0 < paired.low < 0.1 < paired.high < 0.2
  shuffled = bootstrap.paired_difference(a, rng.permuted(base, axis=1))
  assert shuffled.low < 0 < shuffled.high


def test_paired_difference_flips_with_its_arguments():
  rng = np.random.default_rng(5)
  a, b = rng.normal(size=(2, 3, 80))
  ab, ba = (
    bootstrap.paired_difference(a, b),
    bootstrap.paired_difference(b, a),
  )
  assert ab.mean == pytest.approx(-ba.mean)
  assert ab.low == pytest.approx(-ba.high)


def test_two_seeds_that_agree_by_luck_keep_the_requests_noise():
  rng = np.random.default_rng(6)
  one = rng.normal(size=(1, 100))
  a = np.concatenate([one, one])
  interval = bootstrap.paired_difference(a, np.zeros_like(a))
  single = bootstrap.paired_difference(one, np.zeros_like(one))
  assert interval.high - interval.low == pytest.approx(single.high - single.low)
  assert interval.high - interval.low > 0.2


@pytest.mark.parametrize("shared", [False, True])
def test_paired_difference_covers_the_truth(shared):
  """Nominal 95 %: at least 90 % of 100 repetitions, and not absurdly wide."""
  hits, widths = 0, []
  for trial in range(100):
    rng = np.random.default_rng(trial)
    noise = rng.normal(0, 1, (1 if shared else 3, 100))
    a = 0.3 + noise + rng.normal(0, 0.1, (3, 1)) * np.ones((3, 100))
    interval = bootstrap.paired_difference(
      a, np.zeros_like(a), resamples=100, seed=trial
    )
    hits += interval.low <= 0.3 <= interval.high
    widths.append(interval.high - interval.low)
  assert hits >= 90
  assert np.median(widths) < 1.0


def test_difference_of_shares():
  a, b = np.array([[2.0, 4.0]]), np.array([[1.0, 3.0]])
  best = np.array([[4.0, 6.0]])
  assert bootstrap.paired_difference(a, b, best).mean == pytest.approx(0.2)


def test_paired_difference_names_the_mistake():
  with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 4\)"):
    bootstrap.paired_difference(np.zeros((2, 3)), np.zeros((2, 4)))
  hole = np.array([[0.0, 1.0], [np.nan, np.nan]])
  with pytest.raises(ValueError, match="row 1 has no request"):
    bootstrap.paired_difference(hole, np.zeros((2, 2)))


def test_win_rate_halves_ties():
  wins = bootstrap.win_rate(
    np.array([2.0, 1.0, 0.0, np.nan]), np.array([1.0, 1.0, 1.0, 1.0])
  )
  np.testing.assert_array_equal(wins, [1, 0.5, 0, np.nan])
