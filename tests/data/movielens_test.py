"""The adapter on a small set in MovieLens-1M's own format."""

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rerank_rl.config import Config, ConfigError, DataConfig
from rerank_rl.data import movielens, schema
from rerank_rl.types import PAD

USERS, MOVIES = 40, 150


def write(path, as_dat=False):
  random = np.random.default_rng(0)
  users = [f"{u}::{'FM'[u % 2]}::{u % 3}::{u % 5}::0" for u in range(1, 41)]
  movies = [f"{m}::Été {m} (19{m % 90 + 10})::A|B" for m in range(2, 152)]
  movies[3] = "5::No year::B"
  (path / "users.dat").write_text("\n".join(users), encoding="latin-1")
  (path / "movies.dat").write_text("\n".join(movies), encoding="latin-1")
  rows = []
  for user in range(1, USERS + 1):
    for step, m in enumerate(random.permutation(MOVIES)[: 19 + user % 6]):
      rows.append((user, m + 2, random.integers(1, 6), 1000 + step // 2))
  table = np.array(rows)[random.permutation(len(rows))]
  if as_dat:
    lines = ["::".join(map(str, row)) for row in table.tolist()]
    (path / "ratings.dat").write_text("\n".join(lines))
    return table
  names = ["user_id", "movie_id", "rating", "timestamp"]
  columns = pa.table({n: table[:, k] for k, n in enumerate(names)})
  pq.write_table(columns, path / "ratings.parquet")
  return table


def config(path, **values):
  return Config(data=DataConfig(name="movielens_1m", path=str(path), **values))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
  path = tmp_path_factory.mktemp("ml")
  table = write(path)
  return table, movielens.load(config(path)), path


def items_of(data, part):
  return data.item_ids[
    np.take_along_axis(part.request.candidates, part.slate, 1)
  ]


def users_of(table, data, part):
  """Each row's user, found by its six logged movies."""
  met = {u: set(table[table[:, 0] == u, 1].tolist()) for u in range(1, 41)}
  rows = zip(items_of(data, part).tolist(), part.request.history)
  found = []
  for slate, history in rows:
    known = {*slate, *data.item_ids[history[history != PAD]].tolist()}
    found.append([u for u in met if known <= met[u]])
  return found, met


def test_last_slates_are_test_and_those_before_valid(loaded):
  table, data, _ = loaded
  assert schema.num_rows(data.splits["test"]) == USERS
  assert schema.num_rows(data.splits["valid"]) == USERS
  for name, behind in (("test", 0), ("valid", 6)):
    for user, slate, time in zip(
      range(1, USERS + 1),
      items_of(data, data.splits[name]).tolist(),
      data.timestamps[name],
    ):
      mine = table[table[:, 0] == user]
      ordered = np.sort(mine[:, 3])
      assert time == ordered[len(mine) - 1 - behind]
      times = [int(mine[mine[:, 1] == item, 3][0]) for item in slate]
      assert times == ordered[len(mine) - 6 - behind :][:6].tolist()


def test_candidates_are_distinct_and_the_others_never_met(loaded):
  table, data, _ = loaded
  for part in data.splits.values():
    found, met = users_of(table, data, part)
    slates = items_of(data, part).tolist()
    for users, slate, row in zip(found, slates, part.request.candidates):
      names = set(data.item_ids[row].tolist())
      assert len(names) == 50
      assert any(names & met[user] == set(slate) for user in users)


def test_histories_are_older_and_full_of_the_rest(loaded):
  table, data, _ = loaded
  part = data.splits["test"]
  for user, history, slate in zip(
    range(1, USERS + 1), part.request.history, items_of(data, part)
  ):
    mine = set(table[table[:, 0] == user, 1].tolist())
    seen = data.item_ids[history[history != PAD]].tolist()
    assert set(seen) == mine - set(slate.tolist())


def test_signals_are_thresholds_on_stars(loaded):
  table, data, _ = loaded
  stars = {(u, m): r for u, m, r, _ in table.tolist()}
  part = data.splits["test"]
  for user, slate, feedback in zip(
    range(1, USERS + 1), items_of(data, part).tolist(), part.feedback
  ):
    rated = np.array([stars[user, movie] for movie in slate])
    expected = rated[:, None] >= np.array([3, 4, 5])
    np.testing.assert_array_equal(feedback, expected)


def test_test_ratings_leave_no_trace_in_factors_or_scores(loaded, tmp_path):
  """Other stars and movies in the last slate change nothing else."""
  table, data, path = loaded
  for name in ("users.dat", "movies.dat"):
    (tmp_path / name).write_bytes((path / name).read_bytes())
  late = np.isin(
    table[:, 0] * 1000 + table[:, 1],
    (np.arange(1, USERS + 1)[:, None] * 1000
     + items_of(data, data.splits["test"])).ravel(),
  )  # fmt: skip
  changed = table.copy()
  changed[late, 2] = 6 - changed[late, 2]
  names = ["user_id", "movie_id", "rating", "timestamp"]
  columns = pa.table({n: changed[:, k] for k, n in enumerate(names)})
  pq.write_table(columns, tmp_path / "ratings.parquet")
  other = movielens.load(config(tmp_path))
  np.testing.assert_array_equal(other.features, data.features)
  for name in schema.SPLITS:
    np.testing.assert_array_equal(
      other.splits[name].request.scores, data.splits[name].request.scores
    )


def test_loading_twice_gives_the_same_and_ratings_dat_will_do(loaded, tmp_path):
  _, data, _ = loaded
  write(tmp_path, as_dat=True)
  again = movielens.load(config(tmp_path))
  for name in schema.SPLITS:
    jax.tree.map(
      np.testing.assert_array_equal, again.splits[name], data.splits[name]
    )


def test_positions_tell_nothing(loaded):
  _, data, _ = loaded
  places = np.concatenate([p.slate.ravel() for p in data.splits.values()])
  assert abs(places.mean() - 24.5) < 4 * 14.4 / np.sqrt(places.size)


def test_weights_are_configurable(loaded):
  _, data, path = loaded
  assert data.weights == (1.0, 1.0, 1.0)
  mine = movielens.load(config(path, weights=(1, 2, 3)))
  assert mine.weights == (1.0, 2.0, 3.0)
  with pytest.raises(ConfigError, match="click, like, star"):
    movielens.load(config(path, weights=(1,)))


def test_what_is_missing_is_named(tmp_path, monkeypatch):
  with pytest.raises(ConfigError, match=r"absent is no folder"):
    movielens.load(config(tmp_path / "absent"))
  monkeypatch.setenv("RERANK_RL_DATA", str(tmp_path / "root"))
  with pytest.raises(ConfigError, match=r"root/movielens_1m is no folder"):
    movielens.load(config(""))
  with pytest.raises(ConfigError, match=r"ratings\.parquet is missing"):
    movielens.load(config(tmp_path))
  write(tmp_path)
  path = tmp_path / "ratings.parquet"
  pq.write_table(pq.read_table(path).drop(["rating"]), path)
  with pytest.raises(ConfigError, match="no column 'rating'"):
    movielens.load(config(tmp_path))
  path.write_bytes(b"PAR1")
  with pytest.raises(ConfigError, match="no readable parquet"):
    movielens.load(config(tmp_path))
  write(tmp_path)
  (tmp_path / "movies.dat").write_text("1::A\n")
  with pytest.raises(ConfigError, match=r"movies\.dat, line 1 has 2 fields"):
    movielens.load(config(tmp_path))
