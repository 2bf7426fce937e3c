"""MovieLens-1M as slates of six ratings (docs/data.md).

F. M. Harper and J. A. Konstan, "The MovieLens Datasets: History and
Context", ACM TiiS 5(4), 2015.
"""

import pathlib

import numpy as np

from rerank_rl.config import Config, ConfigError
from rerank_rl.data import cells, public, slates
from rerank_rl.data.schema import Dataset

SIGNALS = ("click", "like", "star")
WEIGHTS = (1.0, 1.0, 1.0)
_LEAST = (3, 4, 5)  # Stars that each signal takes.
_TIE_SEED = 1  # Half of all neighbours share a second.


def load(config: Config) -> Dataset:
  """MovieLens-1M from `public.folder(config)`.

  A user's ratings in time order, cut into sixes from the last one back: the
  last slate is test, the one before validation, the others train. Signals
  are ratings >= 3, >= 4 and = 5. All ratings before a slate are history.

  Args:
    config: `data.name`, `data.path` and `data.weights` are read.

  Returns:
    The data set; its timestamps are in seconds.

  Raises:
    ConfigError: a file, a column or a line is missing or wrong.
  """
  path = public.folder(config)
  rating_user, rating_item, stars, time = _ratings(path)
  item_ids, side, groups = _items(path / "movies.dat", rating_item)
  user_ids, user_features = _users(path / "users.dat")
  ratings = path / "ratings.parquet"
  user = public.rows_of(rating_user, user_ids, ratings, "user_id")
  item = public.rows_of(rating_item, item_ids, ratings, "movie_id")

  tie = np.random.default_rng(_TIE_SEED).permutation(user.size)
  order = np.lexsort((tie, time, user))
  user, item, stars, time = (x[order] for x in (user, item, stars, time))
  index, first = slates.cut(user, public.SLATE, from_end=True)
  owner = user[index[:, 0]]
  to_last = _blocks_to_last(owner)
  split = np.select([to_last == 0, to_last == 1], [2, 1], 0).astype(np.int8)
  trained = np.ones(user.size, bool)
  trained[index[split > 0].ravel()] = False
  met = np.zeros((user_ids.size, item_ids.size), bool)
  met[user, item] = True
  log = public.Log(
    owner=owner,
    items=item[index],
    feedback=(stars[index][..., None] >= np.array(_LEAST)).astype(np.float32),
    history=slates.windows(item, first, index[:, 0], public.HISTORY),
    time=time[index[:, -1]],
    split=split,
    met=met,
    trained=(user[trained], item[trained]),
    popularity=np.bincount(item[trained], minlength=item_ids.size),
    side=side,
    groups=groups,
    item_ids=item_ids,
    user=user_features,
  )
  return public.assemble(config, log, SIGNALS, WEIGHTS)


def _blocks_to_last(owner: np.ndarray) -> np.ndarray:
  """i64[n]: how many blocks of the same user follow each (sorted) one."""
  last = np.searchsorted(owner, owner, side="right") - 1
  return last - np.arange(owner.size)


def _ratings(path: pathlib.Path) -> list[np.ndarray]:
  """user_id, movie_id, rating and timestamp, each i64[ratings]."""
  names = dict.fromkeys(
    ("user_id", "movie_id", "rating", "timestamp"), cells.INTEGER
  )
  if (
    not (path / "ratings.parquet").is_file()
    and (path / "ratings.dat").is_file()
  ):
    path = path / "ratings.dat"
    found = [_whole(path, column) for column in _lines(path, 4).T]
  else:
    path = path / "ratings.parquet"
    table = public.read_parquet(path, names)
    found = [table[name].to_numpy() for name in names]
  wrong = ~np.isin(found[2], (1, 2, 3, 4, 5))
  if wrong.any():
    row = int(np.argmax(wrong))
    raise ConfigError(
      f"{path}, row {row + 1}: the rating {found[2][row]} is none of 1 to 5; "
      "get the file again."
    )
  return found


def _items(
  path: pathlib.Path, rated: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Ids, features (genres, year) and first genres of the rated movies."""
  table = _lines(path, 3)
  ids = _whole(path, table[:, 0])
  order = np.argsort(ids)
  order = order[np.isin(ids[order], np.unique(rated))]
  ids, table = ids[order], table[order]
  genres = [text.split("|") for text in table[:, 2]]
  names = sorted({name for line in genres for name in line})
  flags = np.array(
    [[name in line for name in names] for line in genres], np.float32
  )
  years = np.array([_year(title) for title in table[:, 1]], np.float32)
  side = public.standardise(np.c_[flags, years])
  groups = np.array([names.index(line[0]) for line in genres], np.int32)
  return ids, side, groups


def _year(title: str) -> int:
  """The year in 'Toy Story (1995)'; 1990, about the mean, without one."""
  tail = title.rstrip().rpartition("(")[2].rstrip(")")
  return int(tail) if tail.isdecimal() and len(tail) == 4 else 1990


def _users(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
  """Ids and features: gender, age group and occupation, one-hot."""
  table = _lines(path, 5)
  ids = _whole(path, table[:, 0])
  table, ids = table[np.argsort(ids)], np.sort(ids)
  flags = [public.one_hot(table[:, column]) for column in (1, 2, 3)]
  return ids, np.concatenate(flags, 1)


def _lines(path: pathlib.Path, width: int) -> np.ndarray:
  """str[lines, width] of an original '::'-separated file."""
  if not path.is_file():
    raise ConfigError(f"{path} is missing; it comes with ml-1m.zip.")
  lines = path.read_text(encoding="latin-1").splitlines()
  table = [line.split("::") for line in lines]
  for number, fields in enumerate(table):
    if len(fields) != width:
      raise ConfigError(
        f"{path}, line {number + 1} has {len(fields)} fields, expected "
        f"{width} separated by '::'; get the file again."
      )
  if not table:
    raise ConfigError(f"{path} is empty; get the file again.")
  return np.array(table)


def _whole(path: pathlib.Path, texts: np.ndarray) -> np.ndarray:
  """i64[n] of a column of text."""
  for number, text in enumerate(texts, 1):
    if not (text.isdecimal() and len(text) < 19):
      raise ConfigError(
        f"{path}, line {number}: {cells.short(str(text))} is no whole number; "
        "get the file again."
      )
  return texts.astype(np.int64)
