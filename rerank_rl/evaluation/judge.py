"""The one place where slates are judged, by the same rules for every system.

`judge` turns every system's slates into one number a metric and request;
`summarise` turns those into the rows of a report, with intervals. Evaluator
A rewarded training and S selected it: only B and the true world are a
system's worth, and the gaps say how far A has been talked into things.
"""

from collections.abc import Callable, Mapping

import chex
import numpy as np

from rerank_rl import types
from rerank_rl.evaluation import bootstrap, ranking

Value = Callable[[types.Impression, np.ndarray], np.ndarray]
Judgement = dict[str, np.ndarray | float]

_NOT_A_METRIC = ("optimum", "cold")


def logged_relevance(
  impressions: types.Impression, signal: int = 0, threshold: float = 0.5
) -> np.ndarray:
  """Recovery labels: the candidates that were shown and liked.

  Args:
    impressions: numpy Impression of n requests.
    signal: which of the S feedback signals.
    threshold: a slot is relevant if its signal is at least this.

  Returns:
    bool[n, N] over the request's candidates.
  """
  slate = impressions.slate
  liked = (slate != types.PAD) & (
    impressions.feedback[:, :, signal] >= threshold
  )
  labels = np.zeros(impressions.request.candidates.shape, bool)
  rows, slots = np.nonzero(liked)
  labels[rows, slate[rows, slots]] = True
  return labels


def judge(
  slates: Mapping[str, np.ndarray],
  impressions: types.Impression,
  *,
  features: np.ndarray,
  groups: np.ndarray,
  evaluators: Mapping[str, Value],
  true_utility: Value | None = None,
  optimum: np.ndarray | None = None,
  relevant: np.ndarray | None = None,
  warm: np.ndarray | None = None,
) -> dict[str, Judgement]:
  """Judges the slates of every system on the same n requests.

  Args:
    slates: system -> i32[n, K], positions in the candidates, PAD at the end.
    impressions: numpy Impression; its slate is what was logged.
    features: f32[M, F], the items' observed features, for diversity.
    groups: i32[M], the items' topic, genre or tag.
    evaluators: "a", "s", "b", "lookahead" -> f(impressions, slate) ->
      f32[n], expected utility; any may be missing.
    true_utility: the world's, same signature; None on real data.
    optimum: f32[n], true utility of the best slate known; None if unknown.
    relevant: bool or graded [n, N] labels of the candidates; None where
      recovery has no meaning.
    warm: bool[M], items seen in training; requests with another candidate
      form the cold slice. None: no such slice.

  Returns:
    system -> {metric: f64[n], or a float where it belongs to all requests at
    once}. "optimum" f64[n] and "cold" bool[n] ride along; no metric. A
    metric without meaning on the data is left out.

  Raises:
    ValueError: a slate of the wrong shape, beyond the candidates, with an
      item twice or with a hole.
  """
  for system, slate in slates.items():
    _check(system, slate, impressions)
  shared: Judgement = {}
  if optimum is not None:
    shared["optimum"] = np.asarray(optimum, np.float64)
  if warm is not None:
    shared["cold"] = cold_requests(impressions.request.candidates, warm)
  logged_b = None
  if "b" in evaluators:
    logged_b = _values(evaluators["b"], impressions, impressions.slate)
  judged = {}
  for system, slate in slates.items():
    slate = np.asarray(slate)
    worth = _worth(slate, impressions, evaluators, true_utility, logged_b)
    if relevant is not None:
      worth |= _recovery(slate, np.asarray(relevant))
    variety = _variety(slate, impressions, features, groups)
    judged[system] = worth | variety | shared
  return judged


def cold_requests(candidates: np.ndarray, warm: np.ndarray) -> np.ndarray:
  """Requests with a candidate that training has never seen.

  Args:
    candidates: i32[n, N], catalogue rows, PAD after the last.
    warm: bool[M], items seen in training.

  Returns:
    bool[n].
  """
  unseen = ~np.asarray(warm, bool)[candidates]
  return (unseen & (candidates != types.PAD)).any(-1)


def _check(
  system: str, slate: np.ndarray, impressions: types.Impression
) -> None:
  """Raises ValueError unless `slate` is one that could be shown."""
  slate = np.asarray(slate)
  if slate.shape != impressions.slate.shape:
    raise ValueError(
      f"{system}: slates have shape {slate.shape}; the {len(slate)} requests "
      f"judged need {impressions.slate.shape}."
    )
  candidates = impressions.request.candidates
  empty = slate == types.PAD
  outside = ~empty & ((slate < 0) | (slate >= candidates.shape[1]))
  safe = np.where(empty | outside, 0, slate)
  item = np.take_along_axis(candidates, safe, 1)
  outside |= ~empty & (item == types.PAD)
  ordered = np.sort(slate, 1)
  twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != types.PAD)
  for wrong, why in (
    (outside.any(1), "a position that is no candidate"),
    (twice.any(1), "an item twice"),
    ((empty[:, :-1] & ~empty[:, 1:]).any(1), "an item below an empty slot"),
  ):
    if wrong.any():
      row = int(np.argmax(wrong))
      raise ValueError(
        f"{system}: the slate of request {row}, {slate[row].tolist()}, holds "
        f"{why}; slates are distinct positions in request.candidates."
      )


def _values(
  value: Value, impressions: types.Impression, slate: np.ndarray
) -> np.ndarray:
  """One value a request, f64[n]."""
  out = np.asarray(value(impressions, slate), np.float64)
  chex.assert_shape(out, (len(slate),))
  return out


def _worth(
  slate: np.ndarray,
  impressions: types.Impression,
  evaluators: Mapping[str, Value],
  true_utility: Value | None,
  logged_b: np.ndarray | None,
) -> Judgement:
  """What the evaluators and the world say, and the gaps between them."""
  out: Judgement = {
    f"evaluator_{name}": _values(value, impressions, slate)
    for name, value in evaluators.items()
  }
  if logged_b is not None:
    out["win_rate_b"] = bootstrap.win_rate(
      np.asarray(out["evaluator_b"]), logged_b
    )
  if true_utility is not None:
    out["true_utility"] = _values(true_utility, impressions, slate)
  if "evaluator_a" in out:
    for name, other in (("b", "evaluator_b"), ("truth", "true_utility")):
      if other in out:
        out[f"gap_a_{name}"] = out["evaluator_a"] - out[other]
  return out


def _recovery(slate: np.ndarray, relevant: np.ndarray) -> Judgement:
  """How well a slate finds the relevant candidates, best first."""
  k = slate.shape[1]
  gain = np.take_along_axis(relevant, np.maximum(slate, 0), 1)
  gain = np.where(slate == types.PAD, 0, gain)
  count = (relevant > 0).sum(1)
  return {
    f"precision@{k}": ranking.precision_at_k(gain),
    f"recall@{k}": ranking.recall_at_k(gain, count),
    f"ndcg@{k}": ranking.ndcg_at_k(gain, relevant),
    f"map@{k}": ranking.map_at_k(gain, count),
    f"f1@{k}": ranking.f1_at_k(gain, count),
    "without_relevant": float((count == 0).sum()),
  }


def _variety(
  slate: np.ndarray,
  impressions: types.Impression,
  features: np.ndarray,
  groups: np.ndarray,
) -> Judgement:
  """Coverage of the candidates, and diversity within a slate."""
  candidates = impressions.request.candidates
  mask = slate != types.PAD
  items = np.take_along_axis(candidates, np.maximum(slate, 0), 1)
  items = np.where(mask, items, types.PAD)
  group = np.asarray(groups)[items]
  same = group[:, :, None] == group[:, None, :]
  above = np.tri(slate.shape[1], k=-1, dtype=bool)
  repeats = (same & above).any(2)
  return {
    "coverage": ranking.coverage(items, candidates),
    "ild": ranking.ild(np.asarray(features, np.float64)[items], mask),
    "groups": (mask & ~repeats).sum(1).astype(np.float64),
  }


def summarise(
  judged: Mapping[str, Judgement],
  seed: int,
  *,
  resamples: int = bootstrap.RESAMPLES,
) -> list[dict]:
  """The rows of a report: one a system, in the order of `judged`.

  Share is sum U / sum U*, regret 1 - share. Metrics of the cold slice are
  prefixed `cold_`. `requests` counts what was judged and
  `without_relevant` what NDCG, MAP and recall leave out.

  Args:
    judged: what `judge` returned.
    seed: of the run, noted in the rows; it also seeds the bootstrap.
    resamples: of the bootstrap over requests.

  Returns:
    [{"system", "seed", "metrics": {name: float}, "intervals": {name: [low,
    high]}}], 95 %; figures of all requests at once have no interval.
  """
  return [
    {"system": system, "seed": seed} | _figures(judgement, seed, resamples)
    for system, judgement in judged.items()
  ]


def _figures(judgement: Judgement, seed: int, resamples: int) -> dict:
  """The metrics and intervals of one system."""
  arrays = {
    name: value
    for name, value in judgement.items()
    if isinstance(value, np.ndarray) and name not in _NOT_A_METRIC
  }
  whole = {
    name: float(value)
    for name, value in judgement.items()
    if not isinstance(value, np.ndarray)
  }
  columns = {name: (x, np.ones_like(x)) for name, x in arrays.items()}
  if "true_utility" in arrays and "optimum" in judgement:
    columns["share"] = (
      arrays["true_utility"],
      np.asarray(judgement["optimum"]),
    )
  whole["requests"] = float(len(next(iter(arrays.values()))))
  if "cold" in judgement:
    cold = np.asarray(judgement["cold"])
    whole["cold_requests"] = float(cold.sum())
    columns |= {
      f"cold_{name}": (np.where(cold, top, np.nan), per)
      for name, (top, per) in columns.items()
    }
  tops, pers = (np.stack(x, 1) for x in zip(*columns.values(), strict=True))
  figures = bootstrap.over_requests(tops, pers, resamples=resamples, seed=seed)
  metrics, intervals = whole, {}
  for name, (mean, low, high) in zip(columns, figures.tolist(), strict=True):
    if np.isnan(mean):
      continue  # No request to speak of, e.g. an empty cold slice.
    metrics[name], intervals[name] = mean, [low, high]
    if name.endswith("share"):
      regret = name.removesuffix("share") + "regret"
      metrics[regret], intervals[regret] = 1 - mean, [1 - high, 1 - low]
  return {"metrics": metrics, "intervals": intervals}


def gap_by_decile(a: np.ndarray, b: np.ndarray, bins: int = 10) -> list[dict]:
  """A - B by decile of A: does the reward outrun the independent judge?

  Args:
    a: f32[n], evaluator A's value of a system's slates.
    b: f32[n], evaluator B's (or the true utility) of the same slates.
    bins: how many groups of equal size, lowest A first.

  Returns:
    [{"decile", "count", "a", "b", "gap"}], means; empty groups left out.
  """
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  chex.assert_equal_shape([a, b])
  table = []
  parts = np.array_split(np.argsort(a, kind="stable"), bins)
  for decile, rows in enumerate(parts, start=1):
    if len(rows):
      mean_a, mean_b = float(a[rows].mean()), float(b[rows].mean())
      table.append(
        {
          "decile": decile,
          "count": len(rows),
          "a": mean_a,
          "b": mean_b,
          "gap": mean_a - mean_b,
        }
      )
  return table


def calibration(
  predicted: np.ndarray,
  observed: np.ndarray,
  mask: np.ndarray,
  bins: int = 10,
) -> dict:
  """Whether an evaluator's probabilities mean what they say.

  ECE = sum_bins (count / total) |mean predicted - mean observed|, over bins
  of equal width.

  Args:
    predicted: f32[n, K], probability of one signal at each shown position.
    observed: f32[n, K], the signal itself or its true probability.
    mask: bool[n, K], positions that held an item.
    bins: of equal width over [0, 1].

  Returns:
    {"ece", "bins": [{"low", "high", "count", "predicted", "observed"}],
    "positions": [{"position", "count", "predicted", "observed", "ece"}]};
    position 1 is the top; empty bins and positions are left out.
  """
  predicted = np.asarray(predicted, np.float64)
  observed = np.asarray(observed, np.float64)
  mask = np.asarray(mask, bool)
  chex.assert_equal_shape([predicted, observed, mask])
  reliability = _reliability(predicted[mask], observed[mask], bins)
  positions = []
  for slot in range(mask.shape[1]):
    here = mask[:, slot]
    if here.any():
      p, y = predicted[here, slot], observed[here, slot]
      positions.append(
        {
          "position": slot + 1,
          "count": int(here.sum()),
          "predicted": float(p.mean()),
          "observed": float(y.mean()),
          "ece": _ece(_reliability(p, y, bins)),
        }
      )
  return {
    "ece": _ece(reliability),
    "bins": reliability,
    "positions": positions,
  }


def _reliability(p: np.ndarray, y: np.ndarray, bins: int) -> list[dict]:
  """Means of flat p and y by equal-width bin of p."""
  index = np.clip((p * bins).astype(int), 0, bins - 1)
  count = np.bincount(index, minlength=bins)
  sum_p = np.bincount(index, p, bins)
  sum_y = np.bincount(index, y, bins)
  return [
    {
      "low": i / bins,
      "high": (i + 1) / bins,
      "count": int(count[i]),
      "predicted": float(sum_p[i] / count[i]),
      "observed": float(sum_y[i] / count[i]),
    }
    for i in np.flatnonzero(count).tolist()
  ]


def _ece(reliability: list[dict]) -> float:
  """Expected calibration error of reliability bins; NaN without any."""
  total = sum(row["count"] for row in reliability)
  if not total:
    return float("nan")
  return sum(
    row["count"] / total * abs(row["predicted"] - row["observed"])
    for row in reliability
  )
