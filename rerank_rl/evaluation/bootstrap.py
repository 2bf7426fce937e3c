"""Intervals: bootstrap over requests within a seed, Student's t over seeds.

Nearly every reported figure is a ratio of sums over requests: a mean is
sum(v) / n, a share is sum(U) / sum(U*). Resampling requests therefore means one
matrix of counts times columns of numerators and denominators. NaN leaves a
request out. NumPy only, seeded: equal inputs give equal bytes.
"""

from collections.abc import Callable, Iterator
import itertools
from typing import NamedTuple

import chex
import numpy as np
from scipy import special

LEVEL = 0.95
RESAMPLES = 1000
_BLOCK = 4_000_000  # Counts held at once: 32 MB.


class Interval(NamedTuple):
  """A figure with its two-sided 95 % interval (NaN where it has none)."""

  mean: float
  low: float
  high: float

  def signed(self) -> str:
    """A difference as text: +.0161 [+.0140, +.0182], leading zeros kept."""
    return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


def _draws(n: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
  """Which of n requests each resample holds, i64[n]."""
  rng = np.random.default_rng(seed)
  for _ in range(resamples):
    yield rng.integers(0, n, n)


def _counts(n: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
  """How often each of n requests is drawn, in blocks of f64[<= R, n]."""
  draws = _draws(n, resamples, seed)
  block = max(1, _BLOCK // max(n, 1))
  while rows := list(itertools.islice(draws, block)):
    counts = [np.bincount(row, minlength=n) for row in rows]
    yield np.stack(counts).astype(np.float64)


def _sums(
  values: np.ndarray, per: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
  """Numerators and denominators, both 0 where either is NaN."""
  values = np.asarray(values, np.float64)
  per = np.ones_like(values) if per is None else np.asarray(per, np.float64)
  chex.assert_equal_shape([values, per])
  known = ~(np.isnan(values) | np.isnan(per))
  return np.where(known, values, 0.0), np.where(known, per, 0.0)


def _divide(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
  return np.divide(
    top, bottom, out=np.full_like(top, np.nan), where=bottom != 0
  )


def _percentiles(draws: np.ndarray) -> np.ndarray:
  """Percentile interval f64[2, C] of draws[R, C]; NaN where all are NaN."""
  low_high = np.full((2, draws.shape[1]), np.nan)
  some = ~np.isnan(draws).all(0)
  tail = 50 * (1 - LEVEL)
  if some.any():
    low_high[:, some] = np.nanpercentile(
      draws[:, some], [tail, 100 - tail], axis=0
    )
  return low_high


def over_requests(
  values: np.ndarray,
  per: np.ndarray | None = None,
  *,
  resamples: int = RESAMPLES,
  seed: int = 0,
) -> np.ndarray:
  """Percentile bootstrap of sum(values) / sum(per) over requests.

  Columns are resampled together, so many metrics cost little more than one.

  Args:
    values: [n, C], one column a metric; NaN leaves a request out of it.
    per: [n, C] or None (ones: the mean), what the sum is divided by.
    resamples: how many times the n requests are drawn with replacement.
    seed: of the draws.

  Returns:
    f64[C, 3]: point, low, high; NaN for a column without data.
  """
  chex.assert_rank(values, 2)
  top, bottom = _sums(values, per)
  point = _divide(top.sum(0), bottom.sum(0))
  draws = [
    _divide(counts @ top, counts @ bottom)
    for counts in _counts(len(top), resamples, seed)
  ]
  low_high = _percentiles(np.concatenate(draws))
  return np.stack([point, *low_high], axis=-1)


def of_sample(
  statistic: Callable[..., float],
  *columns: np.ndarray,
  resamples: int = RESAMPLES,
  seed: int = 0,
) -> Interval:
  """Percentile bootstrap of what is no ratio of sums, such as an AUC.

  Args:
    statistic: a number of columns.
    *columns: [n] each, resampled together.
    resamples: how many times the n rows are drawn with replacement.
    seed: of the draws.

  Returns:
    The Interval of statistic(*columns).
  """
  chex.assert_equal_shape(columns)
  drawn = _draws(len(columns[0]), resamples, seed)
  found = [statistic(*(x[rows] for x in columns)) for rows in drawn]
  low, high = _percentiles(np.array(found)[:, None])[:, 0].tolist()
  return Interval(statistic(*columns), low, high)


def over_seeds(values: np.ndarray) -> Interval:
  """Student's t interval of the mean of one number a seed.

  mean +- t_{.975, s-1} std / sqrt(s).

  Args:
    values: [s], e.g. one metric of one system in s runs.

  Returns:
    The Interval; low and high are NaN for a single seed.
  """
  values = np.asarray(values, np.float64)
  chex.assert_rank(values, 1)
  mean, count = float(values.mean()), len(values)
  if count < 2:
    return Interval(mean, float("nan"), float("nan"))
  quantile = special.stdtrit(count - 1, (1 + LEVEL) / 2)  # Student's t.
  half = quantile * values.std(ddof=1)
  half = float(half / np.sqrt(count))
  return Interval(mean, mean - half, mean + half)


def paired_difference(
  a: np.ndarray,
  b: np.ndarray,
  per: np.ndarray | None = None,
  *,
  resamples: int = RESAMPLES,
  seed: int = 0,
) -> Interval:
  """How much better `a` is than `b`, paired by request, over all seeds.

  d_s = sum_r (a_sr - b_sr) / sum_r per_sr; the estimate is mean_s d_s. The
  distance to either bound is sqrt(t^2 + boot^2), of Student's t over d_s and
  of the percentile bootstrap over requests (Zou and Donner 2008): t alone
  misses the requests' noise where seeds share their requests, the bootstrap
  alone misses the seeds'. One seed: the bootstrap. A draw takes the same
  requests in every seed, right whether or not they share their requests;
  where they do not, t holds all the noise and the interval is a little wide.

  Args:
    a: [seeds, requests], a metric of one system; NaN leaves a request out.
    b: [seeds, requests], the other's, same requests in the same order.
    per: [seeds, requests] or None (ones), e.g. the optimum for a share.
    resamples: of the bootstrap.
    seed: of the bootstrap's draws.

  Returns:
    Interval of the difference; above 0 means that `a` wins.

  Raises:
    ValueError: the shapes differ, or a seed has no request in common.
  """
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  if a.ndim != 2 or a.shape != b.shape:
    raise ValueError(
      f"paired_difference needs two arrays [seeds, requests] of one shape, "
      f"not {a.shape} and {b.shape}; judge both systems on the same requests."
    )
  top, bottom = _sums(a - b, per)
  empty = np.flatnonzero(bottom.sum(1) == 0)
  if len(empty):
    raise ValueError(
      f"paired_difference: row {empty[0]} has no request that both systems "
      "were judged on; leave that seed out."
    )
  d_s = top.sum(1) / bottom.sum(1)
  draws = [
    _divide(counts @ top.T, counts @ bottom.T).mean(1, keepdims=True)
    for counts in _counts(a.shape[1], resamples, seed)
  ]
  low, high = _percentiles(np.concatenate(draws))[:, 0]
  mean, t_low, t_high = over_seeds(d_s)
  seeds = np.nan_to_num([mean - t_low, t_high - mean])  # One seed: none.
  below, above = np.hypot(seeds, [mean - low, high - mean]).tolist()
  return Interval(mean, mean - below, mean + above)


def win_rate(value: np.ndarray, logged: np.ndarray) -> np.ndarray:
  """Whether a slate beats the logged one: 1 yes, 1/2 tie, 0 no.

  Args:
    value: [n], e.g. evaluator B's value of a system's slates.
    logged: [n], the same of the logged slates.

  Returns:
    f64[n]; its mean is the win rate. NaN where either is NaN.
  """
  value, logged = np.asarray(value), np.asarray(logged)
  chex.assert_equal_shape([value, logged])
  wins = (value > logged) + 0.5 * (value == logged)
  return np.where(np.isnan(value) | np.isnan(logged), np.nan, wins)
