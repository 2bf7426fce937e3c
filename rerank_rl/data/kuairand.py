"""KuaiRand-Pure as pseudo-slates of six exposures (docs/data.md).

C. Gao et al., "KuaiRand: An Unbiased Sequential Recommendation Dataset with
Randomly Exposed Videos", CIKM 2022. The Pure set keeps 7,583 videos, so
neighbours in a user's log lie hours apart: its slates show no list effects.
"""

import pathlib

import numpy as np
import pyarrow as pa

from rerank_rl.config import Config, ConfigError
from rerank_rl.data import cells, public, slates
from rerank_rl.data.schema import Dataset

SIGNALS = ("click", "long_view", "like")
WEIGHTS = (1.0, 1.0, 2.0)
LOGS = ("log_0425_0430.parquet", "log_0501_0508.parquet")
_COLUMNS = ("is_click", "long_view", "is_like")
_TAB = 1  # One surface: click-through rates differ by six between tabs.
_LAST_TRAIN, _LAST_VALID = 20220505, 20220506
_TAG_BUCKETS = 32
_TIE_SEED = 1
_USER_FLAGS = (
  "user_active_degree",
  "is_lowactive_period",
  "is_video_author",
  "follow_user_num_range",
  "fans_user_num_range",
  "friend_user_num_range",
  "register_days_range",
)
# Known at upload. The set's counts of shows, plays and likes are totals over
# the whole period and would tell the future.
_ITEM_FLAGS = ("video_type", "upload_type", "music_type")
_ITEM_SIZES = ("video_duration", "server_width", "server_height")


def load(config: Config) -> Dataset:
  """KuaiRand-Pure from `public.folder(config)`.

  Tab 1 only, a user's repeated exposures to a video dropped but the first,
  cut into sixes from the user's first exposure; a slate is dated by its last
  item: train to 5 May, valid 6 May, test after. The history holds watched
  videos: the sequence before the log if it ends before the slate begins, and
  the clicked exposures of any tab that are older than the slate.

  Args:
    config: `data.name`, `data.path` and `data.weights` are read.

  Returns:
    The data set; its timestamps are in milliseconds.

  Raises:
    ConfigError: a file or a column is missing or wrong.
  """
  path = public.folder(config)
  item_ids, side, groups = _items(path / "item_features.parquet")
  user_ids, user_features = _users(path / "user_features.parquet")
  log = _read_log(path, user_ids, item_ids)
  *seen, seen_time = _sequences(path, user_ids, item_ids)
  user, item, time, date, signals = _first_exposures(log)
  index, _ = slates.cut(user, public.SLATE, from_end=False)
  owner, last_date = user[index[:, 0]], date[index[:, -1]]
  split = np.select(
    [last_date <= _LAST_TRAIN, last_date <= _LAST_VALID], [0, 1], 2
  ).astype(np.int8)

  clicked = log["is_click"] > 0
  history = _histories(
    np.concatenate([seen[0], log["user_id"][clicked]]),
    np.concatenate([seen[1], log["video_id"][clicked]]),
    np.concatenate([seen_time, log["time_ms"][clicked]]),
    owner,
    time[index[:, 0]],
  )
  train, held = index[split == 0].ravel(), index[split > 0].ravel()
  shape = user_ids.size, item_ids.size
  return public.assemble(
    config,
    public.Log(
      owner=owner,
      items=item[index],
      feedback=signals[index].astype(np.float32),
      history=history,
      time=time[index[:, -1]],
      split=split,
      met=_met(log, seen, shape),
      trained=_trained(
        log, seen, (user[train], item[train]), (user[held], item[held]), shape
      ),
      popularity=np.bincount(item[train], minlength=item_ids.size),
      side=side,
      groups=groups,
      item_ids=item_ids,
      user=user_features,
    ),
    SIGNALS,
    WEIGHTS,
  )


def _met(
  log: dict[str, np.ndarray],
  seen: list[np.ndarray],
  shape: tuple[int, int],
) -> np.ndarray:
  """bool[users, M]: all that each user watched before or was ever shown."""
  met = np.zeros(shape, bool)
  met[tuple(seen)] = True
  met[log["user_id"], log["video_id"]] = True
  return met


def _trained(
  log: dict[str, np.ndarray],
  seen: list[np.ndarray],
  shown: tuple[np.ndarray, np.ndarray],
  held: tuple[np.ndarray, np.ndarray],
  shape: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
  """(users, items) of the training part: watched, or in a training slate.

  All exposures of training slates count, so that a row's own slate is always
  in, and always taken out of its score. No pair of a held-out slate does: it is
  dated by its last item, and most begin with items of training's days, whose
  clicks would be told by their own scores.
  """
  early = (log["is_click"] > 0) & (log["date"] <= _LAST_TRAIN)
  user = np.concatenate([seen[0], log["user_id"][early], shown[0]])
  item = np.concatenate([seen[1], log["video_id"][early], shown[1]])
  hidden = np.zeros(shape, bool)
  hidden[held] = True
  kept = ~hidden[user, item]
  return user[kept], item[kept]


def _read_log(
  path: pathlib.Path, user_ids: np.ndarray, item_ids: np.ndarray
) -> dict[str, np.ndarray]:
  """The exposures of all tabs, users and videos as rows."""
  known = {"user_id": user_ids, "video_id": item_ids}
  names = dict.fromkeys(
    (*known, "time_ms", "date", "tab", *_COLUMNS), cells.INTEGER
  )
  parts = []
  for where in (path / name for name in LOGS):
    table = public.read_parquet(where, names)
    part = {name: table[name].to_numpy() for name in names}
    for name, ids in known.items():
      part[name] = public.rows_of(part[name], ids, where, name)
    parts.append(part)
  return {name: np.concatenate([p[name] for p in parts]) for name in names}


def _first_exposures(log: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
  """user, item, time, date and signals[E, S] of the tab, by user and time."""
  rows = np.flatnonzero(log["tab"] == _TAB)
  tie = np.random.default_rng(_TIE_SEED).permutation(rows.size)
  order = np.lexsort((tie, log["time_ms"][rows], log["user_id"][rows]))
  rows = rows[order]
  pair = np.stack([log["user_id"][rows], log["video_id"][rows]])
  _, first = np.unique(pair, axis=1, return_index=True)
  rows = rows[np.sort(first)]
  signals = np.stack([log[name][rows] > 0 for name in _COLUMNS], 1)
  columns = [log[name][rows] for name in ("user_id", "video_id", "time_ms")]
  return (*columns, log["date"][rows], signals)


def _sequences(
  path: pathlib.Path, user_ids: np.ndarray, item_ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(user, item, time of the sequence's end) of each video watched before."""
  where = path / "user_sequences.parquet"
  kinds = {
    "user_id": cells.INTEGER,
    "last_time_ms": cells.INTEGER,
    "watch_seq": cells.IDS,
  }
  table = public.read_parquet(where, kinds)
  watched = table["watch_seq"].combine_chunks()
  count = np.diff(watched.offsets.to_numpy())
  user = public.rows_of(table["user_id"].to_numpy(), user_ids, where, "user_id")
  item = public.rows_of(
    watched.flatten().to_numpy(False), item_ids, where, "watch_seq"
  )
  last = table["last_time_ms"].to_numpy()
  return np.repeat(user, count), item, np.repeat(last, count)


def _histories(
  user: np.ndarray,
  item: np.ndarray,
  time: np.ndarray,
  owner: np.ndarray,
  begin: np.ndarray,
) -> np.ndarray:
  """i32[n, H]: the owner's last events that are strictly older than `begin`.

  Events are given in any order across users; equal times keep their order.
  """
  order = np.lexsort((time, user))
  user, item, time = user[order], item[order], time[order]
  first = np.searchsorted(user, owner)
  # One sortable key; times in ms take 41 bits.
  base = min(int(time.min()), int(begin.min()))
  span = max(int(time.max()), int(begin.max())) - base + 1
  key = user.astype(np.int64) * span + (time - base)
  stop = np.searchsorted(key, owner.astype(np.int64) * span + begin - base)
  return slates.windows(item, first, stop, public.HISTORY)


def _items(
  path: pathlib.Path,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Ids, features known at upload, and first tags, by ascending id."""
  names = dict.fromkeys((*_ITEM_FLAGS, *_ITEM_SIZES, "tag"))
  whole = dict.fromkeys(("video_id", "upload_date"), cells.INTEGER)
  table = public.read_parquet(path, names | whole).sort_by("video_id")
  flags = [public.one_hot(_text(table[name])) for name in _ITEM_FLAGS]
  sizes = [_filled(path, name, table[name]) for name in _ITEM_SIZES]
  _, day = np.unique(table["upload_date"].to_numpy(), return_inverse=True)
  tags = [text.split(",") for text in _text(table["tag"]).tolist()]
  hashed = np.zeros((len(tags), _TAG_BUCKETS), np.float32)
  for row, line in enumerate(tags):
    for tag in line:
      if tag.isdigit():
        hashed[row, int(tag) % _TAG_BUCKETS] = 1
  columns = [*flags, *(np.log1p(s)[:, None] for s in sizes), day[:, None]]
  side = public.standardise(np.concatenate([*columns, hashed], 1))
  _, groups = np.unique([line[0] for line in tags], return_inverse=True)
  ids = table["video_id"].to_numpy()
  return ids, side, groups.astype(np.int32)


def _users(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
  """Ids and one-hot features, by ascending id."""
  kinds = {"user_id": cells.INTEGER, **dict.fromkeys(_USER_FLAGS)}
  table = public.read_parquet(path, kinds).sort_by("user_id")
  flags = [public.one_hot(_text(table[name])) for name in _USER_FLAGS]
  return table["user_id"].to_numpy(), np.concatenate(flags, 1)


def _text(column: pa.ChunkedArray) -> np.ndarray:
  """A column as strings, nulls as ''."""
  text = column.cast(pa.string()).fill_null("")
  return np.array(text.to_pylist())


def _filled(
  path: pathlib.Path, name: str, column: pa.ChunkedArray
) -> np.ndarray:
  """A numeric column, f64, nulls as the median."""
  try:
    numbers = column.cast(pa.float64())
  except pa.ArrowException as error:
    text = (
      f"the column's type is {column.type}, not numbers; get the file again"
    )
    raise ConfigError(f"{path}, field {name!r}: {text}.") from error
  values = numbers.fill_null(float("nan")).to_numpy()
  return np.where(np.isnan(values), np.nanmedian(values), values)
