import itertools

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np

from rerank_rl.tokenizer import semantic_ids
from rerank_rl.tokenizer.residual_kmeans import Codebook


def _walk(vector, centroids, encoded, sid):
  """All SIDs under `sid` in the order of the rule; the plain definition."""
  level = len(sid)
  if level == len(centroids):
    yield sid
    return
  residual = vector.astype(np.float64)
  for above, code in enumerate(sid):
    residual = residual - centroids[above, code]
  gap = np.square(centroids[level] - residual[None]).sum(axis=1)
  if sid == tuple(encoded[:level]):
    gap[encoded[level]] = -1
  for code in np.argsort(gap, kind="stable"):
    yield from _walk(vector, centroids, encoded, (*sid, int(code)))


@settings(max_examples=60, deadline=None)
@given(
  shape=st.sampled_from([(1, 4), (2, 1), (2, 4), (3, 2)]),
  seed=st.integers(0, 2**32 - 1),
  fill=st.sampled_from([0.5, 0.7, 1.0]),
  distinct=st.integers(1, 20),
)
def test_items_go_where_the_rule_sends_them(shape, seed, fill, distinct):
  levels, codes = shape
  rng = np.random.default_rng(seed)
  scale = 0.5 ** np.arange(levels)[:, None, None]
  centroids = scale * rng.normal(size=(levels, codes, 2))
  codebook = Codebook(centroids=centroids.astype(np.float32))
  rows = int(fill * codes**levels)
  # Few distinct vectors make many collide; a tree filled to the brim makes
  # them leave their prefixes.
  pool = rng.normal(size=(distinct, 2)).astype(np.float32)
  vectors = pool[rng.integers(distinct, size=rows)]
  encoded = semantic_ids.encode_all(codebook, vectors)
  seen, want = set(), []
  for vector, code in zip(vectors, encoded):
    order = _walk(vector, codebook.centroids, code.tolist(), ())
    want.append(next(sid for sid in order if sid not in seen))
    seen.add(want[-1])
  got = semantic_ids.assign(codebook, vectors)
  np.testing.assert_array_equal(got, np.reshape(want, (rows, levels)))


def test_an_item_evicts_a_later_one_from_its_own_sid():
  # Items 0 and 1 encode to (0,); 1 moves to (1,), which item 2 encodes to.
  codebook = Codebook(centroids=np.asarray([[[0.0], [1], [3]]], np.float32))
  vectors = np.asarray([[0.0], [0.1], [1]], np.float32)
  got = semantic_ids.assign(codebook, vectors)
  np.testing.assert_array_equal(got, [[0], [1], [2]])


def test_a_full_prefix_sends_items_to_the_next_one_above():
  centroids = np.asarray([[[0.0], [10], [-11]], [[0.0], [1], [2]]], np.float32)
  got = semantic_ids.assign(
    Codebook(centroids=centroids), np.zeros((9, 1), np.float32)
  )
  want = [*itertools.product([0], range(3)), *itertools.product([1], range(3))]
  # From -10 the nearest last codes are 0, 1, 2; from +11 they are 2, 1, 0.
  want += [(2, 2), (2, 1), (2, 0)]
  np.testing.assert_array_equal(got, want)
