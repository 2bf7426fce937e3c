"""Ranking metrics against hand-computed numbers and rax."""

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rax

from rerank_rl.evaluation import ranking

K = 6


def _case(seed, n=40, num=20, graded=False):
  """Random labels, and the gains of a random slate of K of them."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, 4 if graded else 2, (n, num)).astype(np.float64)
  labels *= rng.random((n, num)) < 0.4
  labels[0] = 0  # A request without a relevant item.
  order = rng.permuted(np.tile(np.arange(num), (n, 1)), axis=1)
  return labels, order, np.take_along_axis(labels, order[:, :K], 1)


def _oracle(metric, labels, order, **kwargs):
  scores = np.zeros(labels.shape, np.float32)
  ranks = np.arange(labels.shape[1], 0, -1, dtype=np.float32)
  np.put_along_axis(scores, order, np.tile(ranks, (len(labels), 1)), 1)
  each = jax.vmap(lambda s, y: metric(s, y, topn=K, reduce_fn=None, **kwargs))
  return np.asarray(each(jnp.asarray(scores), jnp.asarray(labels, jnp.float32)))


def test_hand_computed():
  gain = np.array([[1, 0, 1, 0]])
  relevant = np.array([3])
  ideal = np.array([[1, 1, 0, 0, 1]])
  dcg, best = 1 + 1 / 2, 1 + 1 / np.log2(3) + 1 / 2
  assert ranking.precision_at_k(gain) == pytest.approx([0.5])
  assert ranking.recall_at_k(gain, relevant) == pytest.approx([2 / 3])
  assert ranking.f1_at_k(gain, relevant) == pytest.approx([4 / 7])
  assert ranking.map_at_k(gain, relevant) == pytest.approx([(1 + 2 / 3) / 3])
  assert ranking.ndcg_at_k(gain, ideal) == pytest.approx([dcg / best])


def test_map_divides_by_what_fits():
  gain = np.array([[1, 1]])
  assert ranking.map_at_k(gain, np.array([5])) == pytest.approx([1])
  assert ranking.recall_at_k(gain, np.array([5])) == pytest.approx([0.4])


def test_graded_gains_are_linear():
  gain, ideal = np.array([[1, 3]]), np.array([[3, 1, 0]])
  expected = (1 + 3 / np.log2(3)) / (3 + 1 / np.log2(3))
  assert ranking.ndcg_at_k(gain, ideal) == pytest.approx([expected])


@pytest.mark.parametrize("graded", [False, True])
def test_ndcg_agrees_with_rax(graded):
  labels, order, gain = _case(1, graded=graded)
  ours = ranking.ndcg_at_k(gain, labels)
  theirs = _oracle(rax.ndcg_metric, labels, order, gain_fn=lambda label: label)
  some = labels.sum(1) > 0
  assert some.sum() > 30
  np.testing.assert_allclose(ours[some], theirs[some], atol=1e-5)
  assert np.isnan(ours[~some]).all() and (~some).any()


def test_precision_and_recall_agree_with_rax():
  labels, order, gain = _case(2)
  np.testing.assert_allclose(
    ranking.precision_at_k(gain),
    _oracle(rax.precision_metric, labels, order),
    atol=1e-6,
  )
  relevant = labels.sum(1)
  some = relevant > 0
  np.testing.assert_allclose(
    ranking.recall_at_k(gain, relevant)[some],
    _oracle(rax.recall_metric, labels, order)[some],
    atol=1e-6,
  )


def test_map_agrees_with_rax_where_all_relevant_items_fit():
  # rax divides by #relevant alone, so compare where that is at most K.
  labels, order, gain = _case(3)
  relevant = labels.sum(1)
  fits = (relevant > 0) & (relevant <= K)
  assert fits.sum() > 20
  np.testing.assert_allclose(
    ranking.map_at_k(gain, relevant)[fits],
    _oracle(rax.ap_metric, labels, order)[fits],
    atol=1e-6,
  )


def test_nothing_relevant_is_undefined_not_zero():
  gain, none = np.zeros((1, K)), np.zeros(1)
  assert np.isnan(ranking.ndcg_at_k(gain, np.zeros((1, 9)))).all()
  assert np.isnan(ranking.map_at_k(gain, none)).all()
  assert np.isnan(ranking.recall_at_k(gain, none)).all()
  assert ranking.precision_at_k(gain) == 0
  assert ranking.f1_at_k(gain, none) == 0


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_bounded_and_best_when_sorted(seed):
  labels, _, gain = _case(seed, n=8, graded=True)
  best = -np.sort(-labels, 1)[:, :K]
  relevant = (labels > 0).sum(1)
  for metric, at in (
    (ranking.ndcg_at_k, labels),
    (ranking.map_at_k, relevant),
    (ranking.f1_at_k, relevant),
  ):
    ours, top = metric(gain, at), metric(best, at)
    known = ~np.isnan(ours)
    assert (ours[known] >= 0).all()
    assert (ours[known] <= top[known] + 1e-12).all()
    assert (top[known] <= 1 + 1e-12).all()


def test_numpy_and_jax_agree_under_jit():
  labels, _, gain = _case(4)
  relevant = labels.sum(1)
  for metric, args in (
    (ranking.precision_at_k, (gain,)),
    (ranking.recall_at_k, (gain, relevant)),
    (ranking.f1_at_k, (gain, relevant)),
    (ranking.map_at_k, (gain, relevant)),
    (ranking.ndcg_at_k, (gain, labels)),
  ):
    ours = jax.jit(metric)(*map(jnp.asarray, args))
    assert isinstance(ours, jax.Array)
    np.testing.assert_allclose(ours, metric(*args), rtol=1e-5)


def test_coverage_counts_distinct_items_and_ignores_padding():
  shown = np.array([[3, 4], [3, -1]])
  candidates = np.array([[3, 4, 5], [3, 6, -1]])
  assert ranking.coverage(shown, candidates) == 0.5


def test_ild_is_a_real_cosine():
  """Sums over dimensions: the mean would be stuck near 1 - 1 / F."""
  rng = np.random.default_rng(0)
  same = np.tile(rng.normal(size=(1, 1, 64)), (1, K, 1))
  mask = np.ones((1, K), bool)
  assert ranking.ild(same, mask) == pytest.approx([0], abs=1e-12)
  eye = np.eye(K)[None]
  assert ranking.ild(eye, mask) == pytest.approx([1])
  two = np.array([[[1.0, 0.0], [-2.0, 0.0]]])
  assert ranking.ild(two, np.ones((1, 2), bool)) == pytest.approx([2])


def test_ild_is_the_mean_over_pairs_and_masks():
  rng = np.random.default_rng(1)
  x = rng.normal(size=(2, 4, 3))
  mask = np.array([[1, 1, 1, 0], [1, 0, 0, 0]], bool)
  unit = x[0] / np.linalg.norm(x[0], axis=-1, keepdims=True)
  pairs = [unit[i] @ unit[j] for i in range(3) for j in range(i)]
  ours = ranking.ild(x, mask)
  assert ours[0] == pytest.approx(1 - np.mean(pairs))
  assert np.isnan(ours[1])
  np.testing.assert_allclose(
    ranking.ild(jnp.asarray(x), jnp.asarray(mask)), ours, rtol=1e-4
  )
  assert ranking.ild(np.zeros((1, 3, 2)), np.ones((1, 3), bool)) == 1
