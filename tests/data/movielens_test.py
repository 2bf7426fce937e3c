"""The adapter on a small set in MovieLens-1M's own format."""

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rerank_rl.config import Config, ConfigError, DataConfig
from rerank_rl.data import movielens, public, schema
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
  write_ratings(path, table)
  return table


def write_ratings(path, table):
  names = ["user_id", "movie_id", "rating", "timestamp"]
  columns = pa.table({n: table[:, k] for k, n in enumerate(names)})
  pq.write_table(columns, path / "ratings.parquet")


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


def held_out(table, data, *splits):
  """bool[ratings]: those in the slates of some splits, one a user in each."""
  names = table[:, 0] * 1000 + table[:, 1]
  owner = np.arange(1, USERS + 1)[:, None] * 1000
  slates = [owner + items_of(data, data.splits[split]) for split in splits]
  return np.isin(names, slates)


def loaded_without_draws(monkeypatch, load, configs, met):
  """Data sets whose other candidates hang on no one's log, and their masses.

  Whom a user meets is nobody's candidate, in whatever split: held-out slates
  of other items would change which negatives training rows are given, and
  with them all that is fitted. Here these are items that `met` leaves free.

  Args:
    monkeypatch: pytest's.
    load: an adapter's.
    configs: one a data set.
    met: bool[users, M], whom each user meets in any of them.

  Returns:
    (data sets, the mass that each asks candidates to be drawn with).
  """
  masses = []

  def draw(random, owner, known, mass, count):
    del random
    assert not (known & ~met).any()
    masses.append(mass)
    free = [np.flatnonzero(~met[user])[:count] for user in owner]
    return np.array(free, np.int32)

  monkeypatch.setattr(public.slates, "draw_unmet", draw)
  return [load(config) for config in configs], masses


def assert_fitted_alike(data, other):
  """What training fits, and all that it makes of a row that stayed itself."""
  for name in ("item_ids", "features", "vectors", "warm"):
    np.testing.assert_array_equal(getattr(other, name), getattr(data, name))
  jax.tree.map(
    np.testing.assert_array_equal, other.splits["train"], data.splits["train"]
  )
  # Of held-out rows: what was not shown is scored by the history alone.
  compared = 0
  for split in ("valid", "test"):
    one, two = (x.splits[split].request for x in (data, other))
    same = one.candidates == two.candidates
    same &= (one.history == two.history).all(1, keepdims=True)
    np.testing.assert_array_equal(one.scores[same], two.scores[same])
    compared += same.sum()
  assert compared > 0


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
  """Other stars in the last slate change nothing else."""
  table, data, path = loaded
  for name in ("users.dat", "movies.dat"):
    (tmp_path / name).write_bytes((path / name).read_bytes())
  changed = table.copy()
  late = held_out(table, data, "test")
  changed[late, 2] = 6 - changed[late, 2]
  write_ratings(tmp_path, changed)
  other = movielens.load(config(tmp_path))
  np.testing.assert_array_equal(other.features, data.features)
  for name in schema.SPLITS:
    np.testing.assert_array_equal(
      other.splits[name].request.scores, data.splits[name].request.scores
    )


def test_whom_a_user_meets_in_the_end_leaves_no_trace(
  loaded, tmp_path, monkeypatch
):
  """Other movies in the last two slates: pairs and counts, not stars."""
  table, data, path = loaded
  for name in ("users.dat", "movies.dat"):
    (tmp_path / name).write_bytes((path / name).read_bytes())
  late = held_out(table, data, "valid", "test")
  # Seeded so that the same movies are rated: these are the catalogue.
  changed, random = table.copy(), np.random.default_rng(1)
  row_of = lambda movies: np.searchsorted(data.item_ids, movies)
  met = np.zeros((USERS, data.item_ids.size), bool)
  met[table[:, 0] - 1, row_of(table[:, 1])] = True
  for user in range(USERS):
    rows = late & (table[:, 0] == user + 1)
    changed[rows, 1] = random.permutation(data.item_ids[~met[user]])[:12]
  met[changed[:, 0] - 1, row_of(changed[:, 1])] = True
  write_ratings(tmp_path, changed)
  both, masses = loaded_without_draws(
    monkeypatch, movielens.load, (config(path), config(tmp_path)), met
  )
  assert_fitted_alike(*both)
  np.testing.assert_array_equal(*masses)
  for split in ("valid", "test"):
    one, two = (items_of(x, x.splits[split]) for x in both)
    assert (one != two).all()


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


@pytest.mark.parametrize(
  ("name", "text", "words"),
  (
    ("ratings.dat", "1::3::five::9\n", r"ratings\.dat, line 1: 'five'"),
    ("ratings.dat", "1::3::3.5::9\n", r"line 1: '3\.5'"),
    ("ratings.dat", f"{10**29}::3::5::9\n", "line 1: '1000"),
    ("ratings.dat", "1::3::9::9\n", "row 1: the rating 9"),
    ("ratings.dat", "", r"ratings\.dat is empty"),
    ("users.dat", "", r"users\.dat is empty"),
    ("movies.dat", "", r"movies\.dat is empty"),
    ("movies.dat", "x::A (1990)::B\n", r"movies\.dat, line 1: 'x'"),
  ),
)
def test_damaged_text_is_named(tmp_path, name, text, words):
  write(tmp_path, as_dat=True)
  (tmp_path / name).write_text(text)
  with pytest.raises(ConfigError, match=words):
    movielens.load(config(tmp_path))


@pytest.mark.parametrize(
  ("value", "words"),
  ((None, "row 3.*'rating'.*missing"), (3.5, "3.5"), (7, "row 3.*rating 7")),
)
def test_damaged_ratings_are_named(tmp_path, value, words):
  write(tmp_path)
  path = tmp_path / "ratings.parquet"
  table = pq.read_table(path)
  ratings = table["rating"].to_pylist()
  ratings[2] = value
  place = table.column_names.index("rating")
  table = table.set_column(place, "rating", pa.array(ratings))
  pq.write_table(table, path)
  with pytest.raises(ConfigError, match=words):
    movielens.load(config(tmp_path))
  pq.write_table(table.slice(0, 0), path)
  with pytest.raises(ConfigError, match="has no rows"):
    movielens.load(config(tmp_path))
