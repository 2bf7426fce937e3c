import chex
import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np
import pytest

from rerank_rl.tokenizer import nearest


def _near_ties(rows, codes, dim, seed=0):
  """Centroids, and points half-way between two, off by about one rounding."""
  rng = np.random.default_rng(seed)
  centroids = rng.normal(size=(codes, dim)).astype(np.float32)
  pair = rng.integers(codes, size=(2, rows))
  points = (centroids[pair[0]] + centroids[pair[1]]) / 2
  points += 1e-7 * rng.normal(size=points.shape)
  return centroids, points.astype(np.float32)


@pytest.mark.parametrize("dim", [1, 7, 8, 33])
def test_distances_are_the_squared_distances(dim):
  centroids, points = _near_ties(50, 9, dim)
  want = np.square(
    points.astype(np.float64)[:, None] - centroids.astype(np.float64)[None]
  ).sum(axis=-1)
  got = nearest.squared_distances(points, centroids)
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_distances_in_double_precision():
  with jax.enable_x64(True):
    rng = np.random.default_rng(0)
    points, centroids = rng.normal(size=(20, 5)), rng.normal(size=(6, 5))
    got = nearest.squared_distances(points, centroids)
    assert got.dtype == np.float64
    want = np.square(points[:, None] - centroids[None]).sum(axis=-1)
    np.testing.assert_allclose(got, want, rtol=1e-13)
    assert nearest.code(centroids, points).dtype == np.int32


@pytest.mark.parametrize("dim", [3, 20])
def test_same_bits_in_every_context(dim):
  centroids, points = _near_ties(256, 32, dim)
  f = lambda x: nearest.squared_distances(x, centroids)
  want = np.asarray(jax.jit(f)(points))
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  spread = jax.device_put(points, NamedSharding(mesh, PartitionSpec("data")))
  by_row = jax.jit(lambda x: lax.map(f, x))
  cases = {
    "eager": f(points),
    "vmap": jax.jit(jax.vmap(f))(points),
    "map": by_row(points),
    "batched": jax.jit(f)(points.reshape(4, 8, 8, dim)),
    "part": np.concatenate([jax.jit(f)(points[:100]), f(points[100:])]),
    "pmap": jax.pmap(f)(points.reshape(8, 32, dim)),
    "sharded": jax.jit(f)(spread),
    "traced": jax.jit(nearest.squared_distances)(points, centroids),
    "in a larger program": jax.jit(lambda x: f(x) + 0 * jnp.exp(x[:, :1]))(
      points
    ),
  }
  for name, got in cases.items():
    got = np.asarray(got).reshape(want.shape)
    np.testing.assert_array_equal(got, want, err_msg=name)


def test_a_tie_goes_to_the_lowest_code_and_a_centroid_to_itself():
  centroids = np.asarray([[0, 1], [1, 0], [0, 1], [0, -1]], np.float32)
  points = np.asarray([[0, 0], [0, 1], [9, 0]], np.float32)
  chex.assert_trees_all_equal(
    np.asarray(nearest.code(centroids, points)), np.asarray([0, 0, 1], np.int32)
  )


def test_vectors_that_cannot_be_quantised_are_named():
  bad = np.zeros((4, 2), np.float32)
  bad[2, 1] = np.nan
  with pytest.raises(ValueError, match=r"row 2 \(of 1 such rows\)"):
    nearest.checked_vectors(bad)
  with pytest.raises(ValueError, match=r"shape \(3,\)"):
    nearest.checked_vectors(np.zeros(3))
  with pytest.raises(ValueError, match=r"2 columns but .* fitted on 5"):
    nearest.checked_vectors(np.zeros((4, 2)), width=5)
  assert nearest.checked_vectors(np.zeros((4, 2), int)).dtype == np.float32
