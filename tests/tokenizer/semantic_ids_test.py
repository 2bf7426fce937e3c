import itertools

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np
import pytest

from rerank_rl.tokenizer import residual_kmeans, semantic_ids
from rerank_rl.tokenizer.residual_kmeans import Codebook


def _codebook(levels=3, codes=4, dim=2, seed=0):
  rng = np.random.default_rng(seed)
  scale = 0.4 ** np.arange(levels)[:, None, None]
  centroids = scale * rng.normal(size=(levels, codes, dim))
  return Codebook(centroids=centroids.astype(np.float32))


def _vectors(rows, dim=2, seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(rows, dim)).astype(np.float32)


def test_encode_is_greedy_residual_search():
  codebook, vectors = _codebook(), _vectors(50)
  got = np.asarray(semantic_ids.encode(codebook, vectors))
  assert got.dtype == np.int32
  residual = vectors.astype(np.float64)
  for level, centroids in enumerate(codebook.centroids):
    gap = np.square(residual[:, None] - centroids[None]).sum(axis=-1)
    np.testing.assert_array_equal(got[:, level], gap.argmin(axis=1))
    residual = residual - centroids[got[:, level]]


def test_codes_are_the_same_under_jit_vmap_pmap_and_a_mesh():
  assert jax.device_count() == 8
  codebook = _codebook(3, 64, 12)
  tie = codebook.centroids[0][np.random.default_rng(0).integers(64, size=1024)]
  # Half-way between centroids: one rounding decides.
  vectors = (tie + tie[::-1]) / 2
  encode = semantic_ids.encode
  want = np.asarray(jax.jit(encode)(codebook, vectors))
  mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
  copies = jax.device_put(codebook, NamedSharding(mesh, PartitionSpec()))
  cases = {
    "eager": encode(codebook, vectors),
    "vmap": jax.vmap(encode, in_axes=(None, 0))(codebook, vectors),
    "pmap": jax.pmap(encode, in_axes=(None, 0))(
      codebook, vectors.reshape(8, 128, 12)
    ),
    "pmap of scaled": jax.pmap(lambda x: encode(codebook, 2 * x))(
      vectors.reshape(8, 128, 12) / 2
    ),
    "host": semantic_ids.encode_all(codebook, vectors),
    "double": semantic_ids.encode_all(codebook, vectors.astype(np.float64)),
  }
  for axes in ("a", ("a", "b")):
    spread = NamedSharding(mesh, PartitionSpec(axes))
    cases[f"mesh {axes}"] = jax.jit(encode, out_shardings=spread)(
      copies, jax.device_put(vectors, spread)
    )
  with jax.enable_x64(True):
    cases["x64"] = encode(codebook, vectors.astype(np.float64))
    assert cases["x64"].dtype == np.int32
  for name, got in cases.items():
    got = np.asarray(got).reshape(want.shape)
    np.testing.assert_array_equal(got, want, err_msg=name)


def test_encoding_in_parts_changes_nothing(monkeypatch):
  codebook, vectors = _codebook(), _vectors(37)
  want = semantic_ids.encode_all(codebook, vectors)
  monkeypatch.setattr(semantic_ids, "_CHUNK", 8)
  np.testing.assert_array_equal(
    semantic_ids.encode_all(codebook, vectors), want
  )
  assert semantic_ids.encode_all(codebook, vectors[:0]).shape == (0, 3)


def test_encode_gives_back_codes_where_levels_are_well_apart():
  # Each level's reach is below half the gap of the one above.
  grid = np.asarray([[-1, -1], [-1, 1], [1, -1], [1, 1]], np.float32)
  codebook = Codebook(centroids=np.stack([grid, 0.25 * grid, 0.0625 * grid]))
  sids = np.asarray([*itertools.product(range(4), repeat=3)], np.int32)
  vectors = semantic_ids.reconstruct(codebook, sids)
  np.testing.assert_array_equal(semantic_ids.encode(codebook, vectors), sids)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), cut=st.integers(0, 40))
def test_assigned_ids_are_distinct_invertible_and_append_only(seed, cut):
  codebook = _codebook(seed=seed)
  vectors = _vectors(40, seed=seed) * 0.5
  sids = semantic_ids.assign(codebook, vectors)
  np.testing.assert_array_equal(
    semantic_ids.decode(sids, sids), np.arange(40, dtype=np.int32)
  )
  old = semantic_ids.assign(codebook, vectors[:cut])
  new = semantic_ids.assign(codebook, vectors[cut:], taken=old)
  np.testing.assert_array_equal(np.concatenate([old, new]), sids)
  # Nobody moves without need: the first item to want a SID gets it, unless
  # an earlier one had to move there.
  encoded = semantic_ids.encode_all(codebook, vectors)
  before = set()
  for mine, wanted in zip(sids.tolist(), encoded.tolist()):
    assert mine == wanted or tuple(wanted) in before
    before.add(tuple(mine))


def test_taken_ids_may_come_from_anywhere():
  codebook, vectors = _codebook(2, 4), _vectors(6)
  encoded = semantic_ids.encode_all(codebook, vectors)
  taken = np.unique(encoded, axis=0)
  got = semantic_ids.assign(codebook, vectors, taken)
  both = np.concatenate([taken, got])
  assert len(np.unique(both, axis=0)) == len(both)


def test_every_id_can_be_used_and_not_one_more():
  codebook = _codebook(2, 4)
  vectors = np.zeros((17, 2), np.float32)
  sids = semantic_ids.assign(codebook, vectors[:16])
  assert len(np.unique(sids, axis=0)) == 16
  with pytest.raises(
    ValueError,
    match=r"17 new .* 16 semantic IDs .*prefix \[.\] .* 17 .*; raise tok",
  ):
    semantic_ids.assign(codebook, vectors)


def test_many_items_that_collide_are_still_quick():
  codebook = _codebook(3, 32, 4)
  vectors = np.repeat(_vectors(4, 4), 2500, axis=0)
  sids = semantic_ids.assign(codebook, vectors)
  assert len(np.unique(sids, axis=0)) == 10_000


@pytest.mark.parametrize(
  "taken, text",
  [
    ([[0, 0]], r"taken has shape \(1, 2\)"),
    ([[0, 0, 0], [0, 4, 0]], r"row 1 is \[0, 4, 0\]; .* \[0, 4\)"),
    ([[0, 1, 0], [0, 0, 0], [0, 1, 0]], "rows 0 and 2 hold the same"),
    ([[0.0, 0, 0]], "dtype float64"),
  ],
)
def test_a_malformed_taken_is_named(taken, text):
  with pytest.raises(ValueError, match=text):
    semantic_ids.assign(_codebook(), _vectors(3), np.asarray(taken))


def test_index_finds_rows_and_nothing_else():
  rng = np.random.default_rng(0)
  every = np.asarray([*itertools.product(range(5), repeat=3)], np.int32)
  table = rng.permutation(every)[:60]
  index = semantic_ids.SidIndex(table)
  want = {tuple(sid): row for row, sid in enumerate(table.tolist())}
  query = np.concatenate([every, [[-1, -1, -1], [9, 0, 0], [0, 0, 9]]])
  got = index.rows(query)
  assert got.dtype == np.int32
  assert got.tolist() == [want.get(tuple(q), -1) for q in query.tolist()]
  shaped = index.rows(query.reshape(2, -1, 3))
  np.testing.assert_array_equal(shaped.reshape(-1), got)
  empty = semantic_ids.SidIndex(table[:0])
  assert (empty.rows(query) == -1).all()
  with pytest.raises(ValueError, match="last axis must hold 3"):
    index.rows(query[:, :2])
  with pytest.raises(ValueError, match="rows 0 and 60 hold the same"):
    semantic_ids.SidIndex(np.concatenate([table, table[:1]]))


def test_ids_beyond_31_bits_and_beyond_63():
  wide = np.asarray([[65535, 65535, 65535], [65535, 65535, 0]], np.int32)
  np.testing.assert_array_equal(semantic_ids.decode(wide, wide), [0, 1])
  full = np.asarray([[511] * 7, [511] * 6 + [510]], np.int32)  # 2**63 IDs.
  np.testing.assert_array_equal(semantic_ids.decode(full, full), [0, 1])
  assert (semantic_ids.pack(full, 512) > 0).all()
  with pytest.raises(ValueError, match=r"4 levels of 65536 codes .* 2\*\*63"):
    semantic_ids.decode(np.full((1, 4), 65535), np.zeros((1, 4), int))


def test_prefixes_reconstruct_and_pad_adds_nothing():
  codebook = _codebook()
  sids = np.asarray([[1, 2, 3], [1, 2, -1], [-1, -1, -1]], np.int32)
  c = codebook.centroids
  want = [c[0, 1] + c[1, 2] + c[2, 3], c[0, 1] + c[1, 2], [0, 0]]
  got = jax.jit(semantic_ids.reconstruct)(codebook, sids)
  np.testing.assert_allclose(got, want, rtol=1e-6)


def test_report_counts_by_hand():
  codebook = Codebook(
    centroids=np.asarray([[[0.0], [10]], [[0.0], [1]]], np.float32)
  )
  vectors = np.asarray([[0], [0], [10], [0]], np.float32)
  sids = semantic_ids.assign(codebook, vectors)
  np.testing.assert_array_equal(sids, [[0, 0], [0, 1], [1, 0], [1, 1]])
  got = semantic_ids.report(codebook, vectors, sids)
  assert got["used"] == [1, 1]
  np.testing.assert_allclose(got["perplexity"], [2, 2])
  assert got["collision_rate"] == 0.5 == got["moved"]
  assert got["moved_prefix"] == 0.25
  assert got["reconstruction_error"] == [0, 0]
  # Item 1 is off by 1, item 3 by 11; the spread about 2.5 is 75.
  np.testing.assert_allclose(got["assigned_error"], (1 + 121) / 75)
  with pytest.raises(ValueError, match="1 rows and vectors 4"):
    semantic_ids.report(codebook, vectors, sids[:1])


def test_report_tells_codes_that_nobody_uses():
  vectors = np.repeat(_vectors(3), 2, axis=0)
  codebook = residual_kmeans.fit(jax.random.key(0), vectors, 2, 8, 5, False)
  sids = semantic_ids.assign(codebook, vectors)
  got = semantic_ids.report(codebook, vectors, sids)
  assert got["used"][0] == 3 / 8 and got["collision_rate"] == 0.5
  assert got["reconstruction_error"][-1] < 1e-9
  assert all(1 <= p <= 8 for p in got["perplexity"])


def test_artifact_comes_back_and_replaces_the_old_one(tmp_path):
  path = tmp_path / "tokenizer.npz"
  codebook, vectors = _codebook(), _vectors(9)
  semantic_ids.save(path, _codebook(seed=5), np.zeros((1, 3), np.int32))
  sids = semantic_ids.assign(codebook, vectors)
  semantic_ids.save(path, codebook, sids)
  loaded, table = semantic_ids.load(path)
  np.testing.assert_array_equal(loaded.centroids, codebook.centroids)
  np.testing.assert_array_equal(table, sids)
  assert table.dtype == np.int32
  np.testing.assert_array_equal(
    semantic_ids.encode_all(loaded, vectors),
    semantic_ids.encode_all(codebook, vectors),
  )
  assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.npz"]
  with pytest.raises(FileNotFoundError):
    semantic_ids.load(tmp_path / "none.npz")


def test_a_write_that_fails_leaves_the_old_artifact(tmp_path, monkeypatch):
  path = tmp_path / "tokenizer.npz"
  sids = np.zeros((1, 3), np.int32)
  semantic_ids.save(path, _codebook(), sids)
  before = path.read_bytes()

  def broken(file, **_):
    file.write(b"half")
    raise OSError("disk full")

  monkeypatch.setattr(np, "savez", broken)
  with pytest.raises(OSError, match="disk full"):
    semantic_ids.save(path, _codebook(seed=1), sids)
  assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_any_damage_is_one_clear_error(tmp_path):
  path = tmp_path / "tokenizer.npz"
  codebook = _codebook(2, 4)
  semantic_ids.save(path, codebook, semantic_ids.assign(codebook, _vectors(5)))
  whole = path.read_bytes()
  rng = np.random.default_rng(0)
  damaged = [whole[:cut] for cut in range(0, len(whole), 97)]
  for at in rng.integers(len(whole), size=200):
    byte = bytes([whole[at] ^ (1 << int(rng.integers(8)))])
    damaged.append(whole[:at] + byte + whole[at + 1 :])
  unharmed = 0
  for content in damaged:
    path.write_bytes(content)
    try:
      loaded, _ = semantic_ids.load(path)
    except ValueError as error:
      assert "tokenizer.npz is not an intact tokenizer artifact" in str(error)
    else:  # A bit of the zip's own bookkeeping: then nothing is lost.
      np.testing.assert_array_equal(loaded.centroids, codebook.centroids)
      unharmed += 1
  assert unharmed < len(damaged) / 2
  np.savez(path, other=np.zeros(3))
  with pytest.raises(ValueError, match="not an intact"):
    semantic_ids.load(path)
