"""The adapter on a small set in KuaiRand-Pure's columns."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rerank_rl.config import Config, ConfigError, DataConfig
from rerank_rl.data import kuairand, schema
from rerank_rl.types import PAD
from tests.data import movielens_test

USERS, VIDEOS, DAY = 30, 160, 86_400_000
DATES = [*range(20220425, 20220431), *range(20220501, 20220509)]


def write(path):
  random = np.random.default_rng(0)
  log = []
  for user in range(USERS):
    for step in range(40):
      day = step * len(DATES) // 40
      time = day * DAY + step * 1000 + 10
      tab, click = random.choice([0, 1], p=[0.2, 0.8]), random.integers(0, 2)
      log.append(
        {
          "user_id": user,
          "video_id": int(random.integers(0, 60) + user),
          "time_ms": time,
          "date": DATES[day],
          "tab": int(tab),
          "is_click": int(click),
          "long_view": int(click * random.integers(0, 2)),
          "is_like": 0,
        }
      )
  write_logs(path, log)
  sequences = [
    {
      "user_id": u,
      "last_time_ms": -5 if u % 2 else 7 * DAY,
      "watch_seq": [u, 159],
    }
    for u in range(USERS)
  ]
  pq.write_table(
    pa.Table.from_pylist(sequences), path / "user_sequences.parquet"
  )
  items = [
    {
      "video_id": v, "video_type": "AD" if v % 9 == 0 else "NORMAL",
      "upload_type": f"t{v % 4}", "music_type": None if v % 5 else 9.0,
      "video_duration": None if v % 7 == 0 else float(v), "server_width": 720.0,
      "server_height": 1280.0 + v,
      "tag": f"{v % 3},{v % 11}" if v else "unknown",
      "upload_date": 20220400 + v % 9, "play_cnt": float(v),
    }
    for v in range(VIDEOS)
  ]  # fmt: skip
  pq.write_table(
    pa.Table.from_pylist(items[::-1]), path / "item_features.parquet"
  )
  users = [
    {"user_id": u} | {n: f"{n}{u % 3}" for n in kuairand._USER_FLAGS}
    for u in range(USERS)
  ]
  pq.write_table(pa.Table.from_pylist(users), path / "user_features.parquet")
  return log


def write_logs(path, log):
  for name, part in zip(
    kuairand.LOGS,
    ([r for r in log if r["date"] < 20220501],
     [r for r in log if r["date"] >= 20220501]),
  ):  # fmt: skip
    pq.write_table(pa.Table.from_pylist(part[::-1]), path / name)


def config(path):
  return Config(data=DataConfig(name="kuairand_pure", path=str(path)))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
  path = tmp_path_factory.mktemp("kr")
  log = write(path)
  return log, kuairand.load(config(path)), path


def expected_slates(log):
  """(split, user, rows) by plain loops."""
  for user in range(USERS):
    seen, mine = set(), []
    for row in sorted(
      (r for r in log if r["user_id"] == user and r["tab"] == 1),
      key=lambda r: r["time_ms"],
    ):
      if row["video_id"] not in seen:
        mine.append(row)
        seen.add(row["video_id"])
    for low in range(0, len(mine) - 5, 6):
      block = mine[low : low + 6]
      date = block[-1]["date"]
      split = 0 if date <= 20220505 else 1 if date == 20220506 else 2
      yield schema.SPLITS[split], user, block


def test_slates_splits_feedback_and_histories(loaded):
  log, data, _ = loaded
  nexts = dict.fromkeys(schema.SPLITS, 0)
  for split, user, block in expected_slates(log):
    part, row = data.splits[split], nexts[split]
    nexts[split] += 1
    shown = part.request.candidates[row][part.slate[row]]
    assert shown.tolist() == [r["video_id"] for r in block]
    expected = [[r["is_click"], r["long_view"], r["is_like"]] for r in block]
    np.testing.assert_array_equal(part.feedback[row], expected)
    assert data.timestamps[split][row] == block[-1]["time_ms"]
    begin = block[0]["time_ms"]
    events = [(-5 if user % 2 else 7 * DAY, v) for v in (user, 159)]
    events += [
      (r["time_ms"], r["video_id"])
      for r in log
      if r["user_id"] == user and r["is_click"]
    ]
    events.sort(key=lambda event: event[0])
    older = [video for time, video in events if time < begin]
    history = part.request.history[row]
    assert history[history != PAD].tolist() == older[-50:]
  for split, count in nexts.items():
    assert schema.num_rows(data.splits[split]) == count > 0


def test_other_candidates_were_never_met_on_any_tab(loaded):
  log, data, _ = loaded
  met = {u: {u, 159} for u in range(USERS)}
  for row in log:
    met[row["user_id"]].add(row["video_id"])
  nexts = dict.fromkeys(schema.SPLITS, 0)
  for split, user, block in expected_slates(log):
    row = data.splits[split].request.candidates[nexts[split]].tolist()
    nexts[split] += 1
    assert len(set(row)) == 50
    assert set(row) & met[user] == {r["video_id"] for r in block}


def test_totals_over_the_period_are_no_features(loaded, tmp_path):
  _, data, path = loaded
  for source in path.iterdir():
    (tmp_path / source.name).write_bytes(source.read_bytes())
  items = pq.read_table(path / "item_features.parquet")
  items = items.drop(["play_cnt"])
  pq.write_table(items, tmp_path / "item_features.parquet")
  again = kuairand.load(config(tmp_path))
  np.testing.assert_array_equal(again.features, data.features)
  assert np.isfinite(data.features).all()


def test_the_future_leaves_no_trace(loaded, tmp_path):
  """Feedback after 5 May changes no factor and no training score."""
  _, data, path = loaded
  for source in path.iterdir():
    (tmp_path / source.name).write_bytes(source.read_bytes())
  later = pq.read_table(path / kuairand.LOGS[1]).to_pylist()
  for row in later:
    if row["date"] > 20220505:
      row["is_click"] = 1 - row["is_click"]
  pq.write_table(pa.Table.from_pylist(later), tmp_path / kuairand.LOGS[1])
  other = kuairand.load(config(tmp_path))
  np.testing.assert_array_equal(other.features, data.features)
  np.testing.assert_array_equal(
    other.splits["train"].request.scores, data.splits["train"].request.scores
  )


def test_whom_a_user_meets_in_the_end_leaves_no_trace(
  loaded, tmp_path, monkeypatch
):
  """Other videos in held-out slates: pairs and counts, not feedback alone.

  Most such slates begin on training's days.
  """
  log, _, path = loaded
  for source in path.iterdir():
    (tmp_path / source.name).write_bytes(source.read_bytes())
  # Whom the user met elsewhere, too, is in the histories of training.
  elsewhere = {
    (row["user_id"], row["video_id"]) for row in log if row["tab"] != 1
  } | {(user, user) for user in range(USERS)}
  held_out = {
    (user, row["video_id"])
    for split, user, block in expected_slates(log)
    for row in block
    if split != "train"
  } - elsewhere
  changed = [dict(row) for row in log]
  for row in changed:
    if (row["user_id"], row["video_id"]) in held_out:
      row["video_id"] += 60  # Beyond all that this user meets.
  write_logs(tmp_path, changed)
  met = np.zeros((USERS, VIDEOS), bool)
  met[:, 159] = met[np.arange(USERS), np.arange(USERS)] = True
  for row in (*log, *changed):
    met[row["user_id"], row["video_id"]] = True
  both, masses = movielens_test.loaded_without_draws(
    monkeypatch, kuairand.load, (config(path), config(tmp_path)), met
  )
  movielens_test.assert_fitted_alike(*both)
  np.testing.assert_array_equal(*masses)
  one, two = (
    np.take_along_axis(x.request.candidates, x.slate, 1)
    for x in (data.splits["test"] for data in both)
  )
  assert (one != two).mean() > 0.5 and set(np.unique(two - one)) <= {0, 60}


def test_unknown_videos_and_missing_files_are_named(loaded, tmp_path):
  _, _, path = loaded
  for source in path.iterdir():
    (tmp_path / source.name).write_bytes(source.read_bytes())
  items = pq.read_table(path / "item_features.parquet").slice(0, 120)
  pq.write_table(items, tmp_path / "item_features.parquet")
  with pytest.raises(ConfigError, match=r"'video_id': [0-9]+ is unknown"):
    kuairand.load(config(tmp_path))
  (tmp_path / "user_sequences.parquet").unlink()
  (tmp_path / "item_features.parquet").write_bytes(
    (path / "item_features.parquet").read_bytes()
  )
  with pytest.raises(ConfigError, match=r"user_sequences\.parquet is missing"):
    kuairand.load(config(tmp_path))


@pytest.mark.parametrize(
  ("name", "column", "value", "words"),
  (
    (kuairand.LOGS[1], "is_click", None, "row 1, field 'is_click'.*missing"),
    (kuairand.LOGS[1], "time_ms", None, "0501.*row 1, field 'time_ms'"),
    (kuairand.LOGS[1], "video_id", 10**6, "0501.*row 1, column 'video_id'"),
    ("user_sequences.parquet", "watch_seq", None, "row 1.*missing"),
    ("user_sequences.parquet", "watch_seq", "1|2", "'watch_seq'.*type"),
    ("user_sequences.parquet", "last_time_ms", None, "row 1.*missing"),
    ("item_features.parquet", "upload_date", None, "row 1.*missing"),
    ("item_features.parquet", "video_duration", "x", "'video_duration'"),
    ("item_features.parquet", "tag", ["1"], "'tag'.*lists"),
    ("user_features.parquet", "user_id", None, "row 1.*missing"),
  ),
)
def test_damaged_columns_are_named(
  loaded, tmp_path, name, column, value, words
):
  _, _, path = loaded
  for source in path.iterdir():
    (tmp_path / source.name).write_bytes(source.read_bytes())
  rows = pq.read_table(path / name).to_pylist()
  of_text = isinstance(value, str | list)
  for row in rows[: len(rows) if of_text else 1]:
    row[column] = value
  pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
  with pytest.raises(ConfigError, match=words):
    kuairand.load(config(tmp_path))
