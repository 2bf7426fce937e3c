"""Position-wise off-policy estimates from logged propensities.

A log of slates was drawn by a policy that placed item a_k with probability
p(a_k | x, a_<k); a target policy would have placed it with pi(a_k | x, a_<k).
The weights below turn the log's rewards into the target's:

  independent         w_k        Li et al. 2018: the reward of a slot depends
                                 on its own item, drawn apart from the others
  reward_interaction  w_1 .. w_k  McInerney et al. 2020: it depends on the
                                 items above too (a cascade)

with w_k = pi(a_k | x, a_<k) / p(a_k | x, a_<k). The second is unbiased in the
synthetic world, whose clicks depend on the shown prefix only; the first is
not, but varies less. Always read them with the effective sample size.
"""

from typing import NamedTuple

import chex
import numpy as np


class Estimate(NamedTuple):
  """A target policy's reward at each of the K positions.

  Attributes:
    value: f64[K], expected reward a request; their sum is the slate's.
    error: f64[K], standard error.
    ess: f64[K], effective sample size (sum w)^2 / sum w^2 out of n.
  """

  value: np.ndarray
  error: np.ndarray
  ess: np.ndarray


def _ratios(
  propensity: np.ndarray, target: np.ndarray, mask: np.ndarray
) -> np.ndarray:
  """Ratios pi / p, f64[n, K], 1 at empty slots, of checked propensities."""
  propensity = np.asarray(propensity, np.float64)
  target = np.asarray(target, np.float64)
  unknown = mask & np.isnan(propensity)
  if unknown.any():
    row, slot = np.argwhere(unknown)[0]
    raise ValueError(
      "These impressions carry no propensities: `propensity` is NaN at row "
      f"{row}, position {slot}; off-policy estimates need logs that recorded "
      "the logging policy's probabilities, so use an evaluator instead."
    )
  for name, x, bad in (
    ("propensity", propensity, (propensity <= 0) | (propensity > 1 + 1e-6)),
    ("target", target, ~((target >= 0) & (target <= 1 + 1e-6))),
  ):
    if (mask & bad).any():
      row, slot = np.argwhere(mask & bad)[0]
      raise ValueError(
        f"`{name}` is {x[row, slot]} at row {row}, position {slot}; it must "
        f"be a probability{' above 0' if name == 'propensity' else ''}."
      )
  safe = np.where(mask, propensity, 1.0)
  return np.where(mask, np.where(mask, target, 1.0) / safe, 1.0)


def _estimate(
  weight: np.ndarray, reward: np.ndarray, self_normalised: bool
) -> Estimate:
  """mean(w r), or sum(w r) / sum(w), by position."""
  n = len(weight)
  total = weight.sum(0)
  square = (weight * weight).sum(0)
  with np.errstate(invalid="ignore", divide="ignore"):
    ess = np.where(square > 0, total**2 / square, 0.0)
    if self_normalised:
      value = (weight * reward).sum(0) / total
      # Delta method: the residuals' second moment over (sum w)^2.
      residual = weight * (reward - value[None, :])
      error = np.sqrt((residual**2).sum(0)) / total
    else:
      value = (weight * reward).mean(0)
      error = (weight * reward).std(0, ddof=1) / np.sqrt(n)
  return Estimate(value, error, ess)


def _prepared(reward, propensity, target, mask):
  reward, mask = np.asarray(reward, np.float64), np.asarray(mask, bool)
  chex.assert_rank(reward, 2)
  for x in (propensity, target, mask):
    chex.assert_equal_shape([reward, x])
  return np.where(mask, reward, 0.0), _ratios(propensity, target, mask)


def independent(
  reward: np.ndarray,
  propensity: np.ndarray,
  target: np.ndarray,
  mask: np.ndarray,
  self_normalised: bool = False,
) -> Estimate:
  """Per-position IPS: V_k = 1/n sum_i w_ik r_ik (SNIPS: / sum_i w_ik).

  Args:
    reward: f32[n, K], utility seen at each logged position.
    propensity: f32[n, K], the logging policy's probabilities.
    target: f32[n, K], the target policy's of the same logged items.
    mask: bool[n, K], positions that held an item.
    self_normalised: divide by the weights' sum (biased, less variance).

  Returns:
    The Estimate; self-normalised values are NaN where no weight is left.

  Raises:
    ValueError: a propensity is NaN, 0 or not a probability.
  """
  reward, ratio = _prepared(reward, propensity, target, mask)
  return _estimate(ratio, reward, self_normalised)


def reward_interaction(
  reward: np.ndarray,
  propensity: np.ndarray,
  target: np.ndarray,
  mask: np.ndarray,
  self_normalised: bool = False,
) -> Estimate:
  """RIPS: V_k = 1/n sum_i (prod_{j<=k} w_ij) r_ik (or / sum of weights).

  Args:
    reward: f32[n, K], utility seen at each logged position.
    propensity: f32[n, K], the logging policy's probabilities.
    target: f32[n, K], the target policy's of the same logged prefixes.
    mask: bool[n, K], positions that held an item.
    self_normalised: divide by the weights' sum (biased, less variance).

  Returns:
    The Estimate; self-normalised values are NaN where no weight is left.

  Raises:
    ValueError: a propensity is NaN, 0 or not a probability.
  """
  reward, ratio = _prepared(reward, propensity, target, mask)
  return _estimate(ratio.cumprod(1), reward, self_normalised)
