"""The judge against worlds small enough to judge by hand."""

import numpy as np
import pytest

from rerank_rl import types
from rerank_rl.evaluation import judge

N, K, M = 5, 3, 12
FEATURES = np.eye(M, dtype=np.float32)
GROUPS = np.arange(M, dtype=np.int32) // 4


def _impressions(n=8, seed=0):
  """Random requests over M items; the logged slate is the first K."""
  rng = np.random.default_rng(seed)
  candidates = np.stack([rng.permutation(M)[:N] for _ in range(n)])
  feedback = rng.integers(0, 2, (n, K, 1)).astype(np.float32)
  return types.Impression(
    request=types.Request(
      user=np.zeros((n, 0), np.float32),
      history=np.zeros((n, 0), np.int32),
      candidates=candidates.astype(np.int32),
      scores=np.zeros((n, N), np.float32),
      size=np.full(n, K, np.int32),
    ),
    slate=np.tile(np.arange(K, dtype=np.int32), (n, 1)),
    feedback=feedback,
    propensity=np.full((n, K), np.nan, np.float32),
    hidden=np.zeros((n, 0), np.float32),
  )


def _item_sum(impression, slate):
  """A utility: the sum of the shown catalogue rows."""
  items = np.take_along_axis(
    impression.request.candidates, np.maximum(slate, 0), 1
  )
  return np.where(slate == types.PAD, 0, items).sum(1).astype(np.float32)


def _best(impressions):
  order = np.argsort(-impressions.request.candidates, axis=1)
  return order[:, :K].astype(np.int32)


def _judge(slates, impressions, **kwargs):
  kwargs = {"features": FEATURES, "groups": GROUPS, "evaluators": {}} | kwargs
  return judge.judge(slates, impressions, **kwargs)


def test_logged_relevance_marks_liked_positions_only():
  impressions = _impressions()
  impressions.slate[0] = [4, 1, types.PAD]
  impressions.feedback[0, :, 0] = [1, 0.4, 1]
  labels = judge.logged_relevance(impressions)
  np.testing.assert_array_equal(labels[0], [0, 0, 0, 0, 1])
  assert labels[1:].sum() == impressions.feedback[1:].sum()


def test_the_optimum_has_share_one_and_regret_zero():
  impressions = _impressions()
  best = _best(impressions)
  judged = _judge(
    {"logged": impressions.slate, "optimum": best},
    impressions,
    true_utility=_item_sum,
    optimum=_item_sum(impressions, best),
  )
  logged, optimum = judge.summarise(judged, seed=3, resamples=50)
  assert optimum["system"] == "optimum" and optimum["seed"] == 3
  assert optimum["metrics"]["share"] == pytest.approx(1)
  assert optimum["metrics"]["regret"] == pytest.approx(0)
  expected = _item_sum(impressions, impressions.slate).sum()
  expected /= _item_sum(impressions, best).sum()
  assert logged["metrics"]["share"] == pytest.approx(expected)
  low, high = logged["intervals"]["share"]
  assert low <= expected <= high
  assert logged["intervals"]["regret"] == pytest.approx([1 - high, 1 - low])
  assert "optimum" not in logged["metrics"]


def test_evaluators_gaps_and_win_rate():
  impressions = _impressions()
  judged = _judge(
    {"logged": impressions.slate, "best": _best(impressions)},
    impressions,
    evaluators={
      "a": lambda i, s: _item_sum(i, s) + 2,
      "b": _item_sum,
    },
    true_utility=lambda i, s: _item_sum(i, s) - 1,
  )
  best = judged["best"]
  np.testing.assert_allclose(best["gap_a_b"], 2)
  np.testing.assert_allclose(best["gap_a_truth"], 3)
  np.testing.assert_allclose(judged["logged"]["win_rate_b"], 0.5)
  assert best["win_rate_b"].min() >= 0.5
  assert best["win_rate_b"].mean() > 0.5


def test_metrics_without_meaning_are_left_out():
  impressions = _impressions()
  (row,) = judge.summarise(
    _judge({"x": impressions.slate}, impressions), seed=0, resamples=20
  )
  assert set(row["metrics"]) == {"requests", "coverage", "ild", "groups"}
  assert set(row["intervals"]) == {"ild", "groups"}


def test_recovery_of_the_logged_slate():
  impressions = _impressions()
  impressions.feedback[0] = 0
  labels = judge.logged_relevance(impressions)
  judged = _judge({"logged": impressions.slate}, impressions, relevant=labels)
  (row,) = judge.summarise(judged, seed=0, resamples=20)
  metrics = row["metrics"]
  empty = (labels.sum(1) == 0).sum()
  assert metrics["without_relevant"] == empty >= 1
  assert metrics[f"precision@{K}"] == pytest.approx(impressions.feedback.mean())
  assert metrics[f"recall@{K}"] == 1
  assert np.isnan(judged["logged"][f"ndcg@{K}"]).sum() == empty
  assert 0 < metrics[f"map@{K}"] <= 1
  reversed_ = impressions.slate[:, ::-1]
  twice = _judge({"r": reversed_}, impressions, relevant=labels)["r"]
  np.testing.assert_array_equal(twice[f"f1@{K}"], judged["logged"][f"f1@{K}"])


def test_empty_slots_hit_nothing():
  impressions = _impressions(n=1)
  labels = np.array([[True, False, False, False, False]])
  slate = np.array([[1, types.PAD, types.PAD]], np.int32)
  judged = _judge({"x": slate}, impressions, relevant=labels)["x"]
  assert judged[f"precision@{K}"] == judged[f"ndcg@{K}"] == 0


def test_graded_labels_reach_ndcg_and_nothing_else():
  impressions = _impressions(n=1)
  labels = np.array([[1.0, 3.0, 0, 0, 0]])
  judged = _judge({"x": impressions.slate}, impressions, relevant=labels)["x"]
  expected = (1 + 3 / np.log2(3)) / (3 + 1 / np.log2(3))
  assert judged[f"ndcg@{K}"] == pytest.approx([expected])
  assert judged[f"precision@{K}"] == pytest.approx([2 / 3])


def test_cold_slice_is_the_requests_with_an_unseen_candidate():
  impressions = _impressions(n=30)
  impressions.request.candidates[5] = [0, 1, 2, types.PAD, types.PAD]
  warm = np.ones(M, bool)
  warm[-1] = False  # Where PAD, as an index, would point.
  judged = _judge(
    {"x": impressions.slate},
    impressions,
    true_utility=_item_sum,
    optimum=_item_sum(impressions, _best(impressions)),
    warm=warm,
  )
  cold = (impressions.request.candidates == M - 1).any(1)
  assert 0 < cold.sum() < 30
  (row,) = judge.summarise(judged, seed=0, resamples=20)
  metrics = row["metrics"]
  utility = judged["x"]["true_utility"]
  best = judged["x"]["optimum"]
  assert metrics["cold_requests"] == cold.sum()
  assert metrics["cold_true_utility"] == pytest.approx(utility[cold].mean())
  assert metrics["cold_share"] == pytest.approx(
    utility[cold].sum() / best[cold].sum()
  )
  assert metrics["cold_regret"] == pytest.approx(1 - metrics["cold_share"])


def test_an_empty_cold_slice_leaves_no_figure():
  impressions = _impressions()
  judged = _judge({"x": impressions.slate}, impressions, warm=np.ones(M, bool))
  (row,) = judge.summarise(judged, seed=0, resamples=20)
  assert row["metrics"]["cold_requests"] == 0
  assert "cold_ild" not in row["metrics"]


def test_variety_of_short_slates():
  impressions = _impressions(n=1)
  impressions.request.candidates[0] = [0, 1, 4, 11, 8]
  slate = np.array([[0, 1, types.PAD]], np.int32)
  judged = _judge({"x": slate}, impressions)["x"]
  assert judged["coverage"] == pytest.approx(2 / 5)
  assert judged["groups"] == pytest.approx([1])
  assert judged["ild"] == pytest.approx([1])  # One-hot features.
  other = np.array([[1, 2, 3]], np.int32)
  assert _judge({"x": other}, impressions)["x"]["groups"] == [3]


@pytest.mark.parametrize(
  ("slate", "why"),
  [
    ([0, 0, 1], "an item twice"),
    ([0, 1, N], "no candidate"),
    ([0, 1, -2], "no candidate"),
    ([0, 1, 4], "no candidate"),  # PAD among the candidates.
    ([0, types.PAD, 1], "an item below an empty slot"),
  ],
)
def test_impossible_slates_are_refused(slate, why):
  impressions = _impressions()
  impressions.request.candidates[:, 4] = types.PAD
  slates = impressions.slate.copy()
  slates[6] = slate
  with pytest.raises(ValueError, match=f"mine: .*request 6.*{why}"):
    _judge({"mine": slates}, impressions)


def test_slates_of_other_requests_are_refused():
  impressions = _impressions()
  with pytest.raises(ValueError, match=r"mine: .*\(7, 3\).*\(8, 3\)"):
    _judge({"mine": impressions.slate[:7]}, impressions)


def test_gap_by_decile_sees_a_hacked_evaluator():
  a = np.random.default_rng(0).random(200)
  table = judge.gap_by_decile(a, np.minimum(a, 0.5))
  assert [row["decile"] for row in table] == list(range(1, 11))
  assert sum(row["count"] for row in table) == 200
  assert table[0]["gap"] == pytest.approx(0)
  assert table[-1]["gap"] > 0.4
  a_means = [row["a"] for row in table]
  assert a_means == sorted(a_means)


def test_calibration_of_honest_and_overconfident_probabilities():
  rng = np.random.default_rng(1)
  p = rng.random((20_000, K))
  y = (rng.random(p.shape) < p).astype(np.float32)
  mask = np.ones(p.shape, bool)
  honest = judge.calibration(p, y, mask)
  assert honest["ece"] < 0.01
  assert sum(row["count"] for row in honest["bins"]) == p.size
  bold = judge.calibration(np.minimum(p + 0.2, 1), y, mask)
  assert bold["ece"] == pytest.approx(
    np.mean(np.minimum(p + 0.2, 1) - y), abs=0.01
  )


def test_calibration_is_per_position_and_masks():
  p = np.array([[0.9, 0.1, 0.5], [0.9, 0.1, 0.5]])
  y = np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
  mask = np.array([[1, 1, 0], [1, 1, 0]], bool)
  top, second = judge.calibration(p, y, mask)["positions"]
  assert (top["position"], second["position"]) == (1, 2)
  assert top["ece"] == pytest.approx(0.4)
  assert second["observed"] - second["predicted"] == pytest.approx(0.9)
  edge = judge.calibration(np.ones((1, 1)), np.ones((1, 1)), mask[:1, :1])
  assert edge["ece"] == 0 and edge["bins"][0]["high"] == 1
