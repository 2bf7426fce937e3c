"""Ranking metrics of shown slates, one number a request.

Every metric takes NumPy or JAX arrays and stays in their library; booleans
and integers become the library's default float. The cut-off k is the slate
size K, the last axis of `gain`. Slots that hold no item have gain 0. Where a
metric is 0 / 0 (NDCG, MAP and recall of a request without a relevant item)
it is NaN, so that means leave the request out and `isnan` counts it.
"""

import chex
import numpy as np

from rerank_rl import types


def _float(x: types.Array) -> types.Array:
  """Booleans and integers as the library's own default float."""
  return x if x.dtype.kind == "f" else x.astype(float)


def _ratio(numerator: types.Array, denominator: types.Array) -> types.Array:
  """The quotient, NaN where the denominator is 0."""
  xp = numerator.__array_namespace__()
  empty = denominator == 0
  return xp.where(
    empty, xp.nan, numerator / xp.where(empty, 1, denominator)
  ).astype(numerator.dtype)


def _dcg(gain: types.Array) -> types.Array:
  """sum_k gain_k / log2(k + 1), k = 1.. along the last axis."""
  xp = gain.__array_namespace__()
  rank = xp.arange(2, gain.shape[-1] + 2).astype(gain.dtype)
  return (gain / xp.log2(rank)[None, :]).sum(-1)


def precision_at_k(gain: types.Array) -> types.Array:
  """Precision: hits / K.

  Args:
    gain: [B, K], relevance of the shown items; an item counts if > 0.

  Returns:
    f32[B] in [0, 1].
  """
  chex.assert_rank(gain, 2)
  return _float(gain > 0).mean(-1)


def recall_at_k(gain: types.Array, relevant: types.Array) -> types.Array:
  """Recall: hits / #relevant.

  Args:
    gain: [B, K], relevance of the shown items; an item counts if > 0.
    relevant: [B], how many relevant items the request holds.

  Returns:
    f32[B] in [0, 1]; NaN where nothing is relevant.
  """
  chex.assert_rank([gain, relevant], [2, 1])
  return _ratio(_float(gain > 0).sum(-1), _float(relevant))


def f1_at_k(gain: types.Array, relevant: types.Array) -> types.Array:
  """Harmonic mean of precision and recall: 2 hits / (K + #relevant).

  Args:
    gain: [B, K], relevance of the shown items; an item counts if > 0.
    relevant: [B], how many relevant items the request holds.

  Returns:
    f32[B] in [0, 1]; 0 where nothing is relevant.
  """
  chex.assert_rank([gain, relevant], [2, 1])
  hits = _float(gain > 0).sum(-1)
  return 2 * hits / (gain.shape[-1] + _float(relevant))


def map_at_k(gain: types.Array, relevant: types.Array) -> types.Array:
  """Average precision: sum_k hit_k precision@k / min(#relevant, K).

  Args:
    gain: [B, K], relevance of the shown items; an item counts if > 0.
    relevant: [B], how many relevant items the request holds.

  Returns:
    f32[B] in [0, 1]; NaN where nothing is relevant.
  """
  chex.assert_rank([gain, relevant], [2, 1])
  xp = gain.__array_namespace__()
  hit = _float(gain > 0)
  rank = xp.arange(1, gain.shape[-1] + 1).astype(hit.dtype)
  precision = hit.cumsum(-1) / rank[None, :]
  possible = xp.minimum(_float(relevant), gain.shape[-1])
  return _ratio((hit * precision).sum(-1), possible)


def ndcg_at_k(gain: types.Array, ideal: types.Array) -> types.Array:
  """DCG over the best possible DCG; DCG = sum_k gain_k / log2(k + 1).

  Gains are linear: whoever wants 2^grade - 1 passes that.

  Args:
    gain: [B, K], gains of the shown items, >= 0.
    ideal: [B, R], gains of all items of the request in any order, padded
      with 0; the best K make the ideal slate.

  Returns:
    f32[B] in [0, 1]; NaN where nothing is relevant.
  """
  chex.assert_rank([gain, ideal], [2, 2])
  xp = gain.__array_namespace__()
  gain, ideal = _float(gain), _float(ideal)
  best = xp.sort(ideal, axis=-1)[:, ::-1][:, : gain.shape[-1]]
  return _ratio(_dcg(gain), _dcg(best))


def coverage(shown: np.ndarray, candidates: np.ndarray) -> float:
  """Distinct items shown / distinct items that could have been shown.

  Args:
    shown: i32[B, K], catalogue rows, PAD where a slate is short.
    candidates: i32[B, N], catalogue rows, PAD after the last.

  Returns:
    A number in [0, 1]; NaN where there is no candidate at all.
  """
  offered = np.unique(candidates[candidates != types.PAD])
  taken = np.unique(shown[shown != types.PAD])
  return len(taken) / len(offered) if len(offered) else float("nan")


def ild(features: types.Array, mask: types.Array) -> types.Array:
  """Intra-list diversity: 1 - mean over pairs of cos(x_i, x_j).

  The cosine is the inner product SUMMED over dimensions; its mean over
  dimensions, a known mistake, is stuck near 1 - 1 / F whatever is shown. A
  zero vector is orthogonal to everything.

  Args:
    features: f32[B, K, F], observed features of the shown items.
    mask: bool[B, K], slots that hold an item.

  Returns:
    f32[B] in [0, 2]; NaN where a slate has fewer than two items.
  """
  chex.assert_rank([features, mask], [3, 2])
  xp = features.__array_namespace__()
  features, mask = _float(features), _float(mask)
  square = (features * features).sum(-1, keepdims=True)
  unit = features / xp.sqrt(xp.where(square > 0, square, 1))
  unit = unit * mask[:, :, None]
  # |sum_i x_i|^2 - sum_i |x_i|^2 counts every ordered pair once.
  total = unit.sum(1)
  cosines = (total * total).sum(-1) - (unit * unit).sum((1, 2))
  count = mask.sum(-1)
  return 1 - _ratio(cosines, (count * (count - 1)).astype(cosines.dtype))
