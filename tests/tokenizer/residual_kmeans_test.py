import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from rerank_rl.tokenizer import residual_kmeans, semantic_ids

ROWS, DIM, CODES = 600, 4, 16  # One shape for nearly all: few compilations.

_balanced_codes = jax.jit(residual_kmeans.balanced_codes)


def _mixture(rows=ROWS, seed=0, clusters=10):
  rng = np.random.default_rng(seed)
  centres = 2 * rng.normal(size=(clusters, DIM))
  points = centres[rng.integers(clusters, size=rows)]
  return (points + rng.normal(size=points.shape)).astype(np.float32)


def _fit(vectors, levels=2, balanced=False, seed=0, iterations=25):
  return residual_kmeans.fit(
    jax.random.key(seed), vectors, levels, CODES, iterations, balanced
  )


def _errors(codebook, vectors):
  codes = semantic_ids.encode_all(codebook, vectors)
  spread = np.square(vectors - vectors.mean(axis=0)[None]).sum()
  out, residual = [], vectors
  for level, centroids in enumerate(np.asarray(codebook.centroids)):
    residual = residual - centroids[codes[:, level]]
    out.append(np.square(residual).sum() / spread)
  return np.asarray(out)


@jax.jit
def _prices(points, centroids):
  return residual_kmeans._prices(
    points,
    centroids,
    jnp.zeros(len(centroids)),
    *residual_kmeans._RESTING,
  )


def test_every_level_helps_and_a_seed_repeats():
  vectors = _mixture()
  codebook = _fit(vectors)
  errors = _errors(codebook, vectors)
  assert errors[0] < 0.25 and errors[1] < 0.4 * errors[0]
  again, other = _fit(vectors), _fit(vectors, seed=1)
  np.testing.assert_array_equal(codebook.centroids, again.centroids)
  assert not np.array_equal(codebook.centroids, other.centroids)


def test_separated_clusters_are_found_whatever_their_offset():
  rng = np.random.default_rng(0)
  centres = 1e3 + 10 * rng.permutation(64)[:CODES, None] // [1, 4, 16, 64] % 4
  label = np.arange(ROWS) % CODES
  vectors = centres[label] + 0.1 * rng.normal(size=(ROWS, DIM))
  vectors = vectors.astype(np.float32)
  # k-means may settle in a local optimum; k-means++ finds this one.
  fits = [_fit(vectors, seed=seed) for seed in range(3)]
  best = min(fits, key=lambda fit: _errors(fit, vectors)[0])
  codes = semantic_ids.encode_all(best, vectors)[:, 0]
  assert len(set(zip(label.tolist(), codes.tolist()))) == CODES
  for code in range(CODES):
    mean = vectors[codes == code].mean(axis=0)
    np.testing.assert_allclose(best.centroids[0, code], mean, rtol=1e-6)


def test_balanced_reconstructs_almost_as_well_as_plain():
  # Public "balanced" residual k-means stopped after two iterations and lost
  # 17 % of reconstruction error to the plain one.
  ratios = []
  for seed in range(3):
    vectors = _mixture(seed=seed)
    plain = _errors(_fit(vectors, seed=seed), vectors)
    balanced = _errors(_fit(vectors, balanced=True, seed=seed), vectors)
    ratios.append(balanced / plain)
  first, both = np.mean(ratios, axis=0)
  assert first < 1.04 and both < 1.08, (first, both)


def test_two_iterations_would_not_do():
  vectors = _mixture()
  short = _errors(_fit(vectors, balanced=True, iterations=2), vectors)
  long = _errors(_fit(vectors, balanced=True), vectors)
  assert long[0] < 0.97 * short[0]


def test_balanced_uses_codes_more_evenly_than_plain():
  rng = np.random.default_rng(0)
  vectors = rng.standard_t(3, size=(ROWS, DIM)).astype(np.float32)

  def largest(balanced):
    codebook = _fit(vectors, balanced=balanced)
    codes = semantic_ids.encode_all(codebook, vectors)[:, 0]
    return np.bincount(codes, minlength=CODES).max()

  assert largest(True) < 0.75 * largest(False)


@pytest.mark.parametrize("rows, codes", [(101, 8), (5, 8)])
def test_balanced_counts_differ_by_at_most_one(rows, codes):
  points = jnp.asarray(_mixture(rows))
  centroids = points[:2].repeat(codes // 2, axis=0) + 1.0  # Ties abound.
  code = _balanced_codes(points, centroids, jnp.zeros(codes))
  counts = np.bincount(code, minlength=codes)
  assert counts.sum() == rows and counts.max() - counts.min() <= 1


def test_balanced_codes_cost_about_what_the_best_assignment_costs():
  points = jnp.asarray(_mixture(120))
  centroids = points[:6]
  code = _balanced_codes(points, centroids, _prices(points, centroids))
  points, centroids = np.asarray(points), np.asarray(centroids)
  cost = np.square(points[:, None] - centroids[None]).sum(axis=-1)
  rows, columns = optimize.linear_sum_assignment(np.repeat(cost, 20, axis=1))
  best = cost[rows, columns // 20].sum()
  assert cost[np.arange(120), code].sum() <= 1.03 * best


def test_prices_draw_equal_shares_where_nearest_codes_do_not():
  points = np.random.default_rng(0).standard_t(4, size=(2048, 2))
  points = points.astype(np.float32)
  centroids = points[:16]
  price = np.asarray(_prices(points, centroids))
  cost = np.square(points[:, None] - centroids[None]).sum(axis=-1)

  def misplaced(price):
    counts = np.bincount((cost - price[None]).argmin(axis=1), minlength=16)
    return np.abs(counts - 128).sum() / 2 / 2048

  assert misplaced(price) < 0.02 < 0.2 < misplaced(np.zeros(16))


def test_dead_codes_restart_at_the_worst_points():
  points = np.zeros((50, 2), np.float32)
  points[7], points[9] = [10, 0], [0, 5]
  blocks, real = residual_kmeans._in_chunks(jnp.asarray(points))
  centroids = jnp.asarray([[0.0, 0], [50, 50], [60, 60], [70, 70]])
  code = jnp.zeros(real.shape, jnp.int32)
  got = jax.jit(residual_kmeans._update)(blocks, real, code, centroids)
  np.testing.assert_allclose(got[0], points.mean(axis=0), atol=1e-6)
  np.testing.assert_array_equal(got[1:3], points[[7, 9]])
  np.testing.assert_array_equal(got[3], centroids[3])  # No error is left.


def test_no_code_is_dead_when_a_few_points_are_far_away():
  rng = np.random.default_rng(0)
  vectors = 0.01 * rng.normal(size=(ROWS, DIM)).astype(np.float32)
  vectors[:12] += 100 * rng.normal(size=(12, DIM)).astype(np.float32)
  sids = semantic_ids.encode_all(_fit(vectors), vectors)
  assert len(np.unique(sids[:, 0])) == CODES


@pytest.mark.parametrize(
  "kind, balanced",
  [
    ("short", True),
    ("few", False),
    ("few", True),
    ("alike", False),
    ("alike", True),
    ("two", False),
    ("two", True),
    ("zero", True),
  ],
)
def test_fewer_points_than_codes_are_met_exactly(kind, balanced):
  vectors = {
    "short": _mixture(5),
    "few": np.repeat(_mixture(5), ROWS // 5, axis=0),
    "alike": np.full((ROWS, DIM), 0.3),
    "two": np.repeat([[0.1, 2, 3, 4], [4, 5, 6.7, 8]], ROWS // 2, axis=0),
    "zero": np.zeros((ROWS, DIM)),
  }[kind].astype(np.float32)
  codebook = _fit(vectors, balanced=balanced)
  assert np.isfinite(codebook.centroids).all()
  codes = semantic_ids.encode_all(codebook, vectors)
  got = semantic_ids.reconstruct(codebook, codes)
  np.testing.assert_allclose(got, vectors, atol=1e-5)
  distinct = len(np.unique(vectors, axis=0))
  assert len(np.unique(codes, axis=0)) <= distinct


def test_points_in_parts_are_counted_once(monkeypatch):
  points = jnp.asarray(_mixture(100))
  centroids, price = points[:9] + 0.1, jnp.arange(9.0)

  def step():
    blocks, real = residual_kmeans._in_chunks(points)
    code, regret = residual_kmeans._choose(blocks, centroids, price)
    means = residual_kmeans._update(blocks, real, code, centroids)
    left = residual_kmeans._descend.__wrapped__(centroids, points)
    return means, left, code.reshape(-1)[:100], regret.reshape(-1)[:100]

  whole = jax.jit(step)()
  monkeypatch.setattr(residual_kmeans, "_CHUNK", 32)
  for one, other in zip(whole, jax.jit(lambda: step())()):
    np.testing.assert_allclose(one, other, atol=1e-4)


def test_double_precision_is_kept():
  with jax.enable_x64(True):
    vectors = _mixture(40).astype(np.float64)
    codebook = _fit(vectors, balanced=True)
    assert codebook.centroids.dtype == np.float64
    assert _errors(codebook, vectors)[-1] < 0.1


def test_users_mistakes_are_named():
  vectors = _mixture(20)
  with pytest.raises(ValueError, match=r"tokenizer.levels=0 must be"):
    _fit(vectors, levels=0)
  with pytest.raises(ValueError, match=r"tokenizer.iterations=0 must be"):
    _fit(vectors, iterations=0)
  with pytest.raises(ValueError, match="no rows"):
    _fit(vectors[:0])
  with pytest.raises(ValueError, match=r"row 3 .* not finite"):
    _fit(np.where(np.arange(20)[:, None] == 3, np.inf, vectors))
