"""Users' impressions: checked row by row, then padded into columns.

A batch is checked as ragged arrays, all rows at once; only the first wrong
row is looked up, for the message.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import pathlib
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rerank_rl.data import cells, tables
from rerank_rl.types import PAD

REQUIRED = {
  "request_id": cells.ID,
  "timestamp": cells.INTEGER,
  "history": cells.IDS,
  "candidates": cells.IDS,
  "scores": cells.NUMBERS,
  "shown": cells.IDS,
}
_NOT_FEATURES = ("user_id",)
LARGEST = 1e18  # Of numbers: networks square them, in 32 bits.


@dataclasses.dataclass(frozen=True)
class Layout:
  """How the columns of an impressions file are read.

  Attributes:
    path: the file.
    kinds: column -> kind, for every column that is read.
    signals: columns of feedback, one number for each item shown.
    user: columns of user features.
    items: the file of items, for messages.
    ids: Arrow array [M] of item ids in catalogue order.
    slate_size: most items shown, 0 for no limit.
    ignored: columns that are not read.
  """

  path: pathlib.Path
  kinds: dict[str, str]
  signals: tuple[str, ...]
  user: tuple[str, ...]
  items: pathlib.Path
  ids: pa.Array
  slate_size: int
  ignored: tuple[str, ...]


class Ragged(NamedTuple):
  """Lists of different lengths: row r is values[start[r]:start[r + 1]]."""

  start: np.ndarray
  values: np.ndarray

  def lengths(self) -> np.ndarray:
    """i64[n]."""
    return np.diff(self.start)

  def row(self) -> np.ndarray:
    """i64[values]: the row of each value."""
    return np.repeat(np.arange(self.start.size - 1), self.lengths())

  def padded(self, width: int, fill: Any, to_left: bool = False) -> np.ndarray:
    """[n, width, ...]: rows filled up at their end.

    With `to_left`, the last `width` values, filled up before them.
    """
    begin, stop = self.start[:-1, None], self.start[1:, None]
    if to_left:
      index = stop + np.arange(-width, 0)[None]
      real = index >= begin
    else:
      index = begin + np.arange(width)[None]
      real = index < stop
    source = self.values
    if not source.size:  # Nothing to gather from.
      source = np.zeros((1, *source.shape[1:]), source.dtype)
    result = source[np.where(real, index, 0)]
    result[~real] = fill
    return result


@dataclasses.dataclass(frozen=True)
class Checked:
  """A batch of n valid impressions.

  Attributes:
    request_id: Arrow array [n].
    timestamp: i64[n].
    user: f64[n, U].
    history, candidates: Ragged catalogue rows.
    scores: Ragged, as candidates.
    slate: Ragged positions in candidates.
    feedback: Ragged [shown, S].
    propensity: Ragged, as slate.
  """

  request_id: pa.Array
  timestamp: np.ndarray
  user: np.ndarray
  history: Ragged
  candidates: Ragged
  scores: Ragged
  slate: Ragged
  feedback: Ragged
  propensity: Ragged


def layout(
  path: pathlib.Path,
  signals: tuple[str, ...],
  items: pathlib.Path,
  ids: pa.Array,
  slate_size: int,
) -> Layout:
  """Finds the columns of an impressions file.

  Raises:
    ConfigError: the file cannot be read or lacks a column.
  """
  names = tables.field_names(path)
  for name in (*REQUIRED, *signals):
    what = "signal" if name in signals else "column"
    tables.require(path, names, name, what)
  user = tuple(
    name
    for name in names
    if (name == "user" or name.startswith("user_"))
    and name not in (*_NOT_FEATURES, *signals)
  )
  lists = tables.sample_kinds(path, list(user))
  kinds = dict(REQUIRED) | dict.fromkeys(signals, cells.NUMBERS)
  if "propensity" in names:
    kinds["propensity"] = cells.NUMBERS
  for name in user:
    kinds[name] = cells.NUMBERS if lists[name] else cells.NUMBER
  ignored = tuple(name for name in names if name not in kinds)
  return Layout(path, kinds, signals, user, items, ids, slate_size, ignored)


def read(plan: Layout) -> Iterator[tuple[int, Checked]]:
  """Streams (number of the first row, checked batch).

  Raises:
    ConfigError: the first mistake found, in one sentence.
  """
  widths = {}
  for number, columns in tables.batches(plan.path, plan.kinds):
    yield number, _check(plan, number, columns, widths)


def _check(
  plan: Layout,
  number: int,
  columns: dict[str, pa.Array],
  widths: dict[str, int],
) -> Checked:
  """Every rule of docs/data.md on one batch; `widths` as in `numbers_of`."""

  def reject(row: int, field: str, text: str):
    cells.fail(plan.path, number + int(row), field, text)

  time = columns["timestamp"].to_numpy()
  _check_times(time, reject)
  history, candidates, shown = _catalogue_rows(plan, columns, reject)
  for field, lists in (("candidates", candidates), ("shown", shown)):
    empty = lists.lengths() == 0
    if empty.any():
      reject(int(np.argmax(empty)), field, "the list is empty; drop the row")
    _check_distinct(plan, field, lists, reject)
  if plan.slate_size:
    long = shown.lengths() > plan.slate_size
    if long.any():
      row = int(np.argmax(long))
      text = f"{shown.lengths()[row]} items, but --slate_size="
      reject(row, "shown", f"{text}{plan.slate_size}; raise it or drop the row")
  scores = _numbers(columns, "scores", "candidates", candidates, reject)
  signals = [
    _numbers(columns, name, "shown", shown, reject) for name in plan.signals
  ]
  for name, signal in zip(plan.signals, signals, strict=True):
    good = (signal.values >= 0) & (signal.values <= 1)
    _check_range(name, signal, good, "[0, 1]", reject)
  if "propensity" in columns:
    chance = _numbers(columns, "propensity", "shown", shown, reject)
    positive = chance.values.astype(np.float32) > 0  # As it is kept.
    good = positive & (chance.values <= 1)
    _check_range("propensity", chance, good, "(0, 1]", reject)
  else:
    chance = Ragged(shown.start, np.full(shown.values.size, np.nan))
  stacked = np.stack([signal.values for signal in signals], 1)
  return Checked(
    request_id=columns["request_id"],
    timestamp=time,
    user=numbers_of(columns, plan.user, widths, time.size, reject),
    history=history,
    candidates=candidates,
    scores=scores,
    slate=_positions(plan, candidates, shown, reject),
    feedback=Ragged(shown.start, stacked),
    propensity=chance,
  )


def _ragged(column: pa.ListArray) -> Ragged:
  return Ragged(
    column.offsets.to_numpy().astype(np.int64), column.flatten().to_numpy()
  )


def _check_times(time: np.ndarray, reject) -> None:
  wrong = time < 0
  if wrong.any():
    row = np.argmax(wrong)
    reject(
      row, "timestamp", f"{time[row]} is negative; count from 1970 or later"
    )


def _catalogue_rows(plan, columns, reject) -> list[Ragged]:
  """history, candidates and shown as rows of the catalogue."""
  fields = ("history", "candidates", "shown")
  parts = [columns[field].flatten() for field in fields]
  if len({part.type for part in parts}) > 1:
    parts = [part.cast(pa.string()) for part in parts]
  values = pa.concat_arrays(parts)
  ids = plan.ids
  if values.type != ids.type:
    values, ids = values.cast(pa.string()), ids.cast(pa.string())
  found = pc.index_in(values, value_set=ids).fill_null(PAD).to_numpy()
  result, begin = [], 0
  for field, part in zip(fields, parts, strict=True):
    rows = found[begin : begin + len(part)].astype(np.int64)
    lists = Ragged(columns[field].offsets.to_numpy().astype(np.int64), rows)
    unknown = rows == PAD
    if unknown.any():
      where = int(np.argmax(unknown))
      reject(
        lists.row()[where],
        field,
        f"item {part[where].as_py()!r} is not in {plan.items}; "
        "add it or drop the row",
      )
    result.append(lists)
    begin += len(part)
  return result


def _keys(plan: Layout, lists: Ragged) -> np.ndarray:
  """i64[values]: one number for each (row, item)."""
  return lists.row() * len(plan.ids) + lists.values


def _check_distinct(plan, field, lists: Ragged, reject) -> None:
  keys = np.sort(_keys(plan, lists))
  twice = keys[1:] == keys[:-1]
  if twice.any():
    row, item = divmod(int(keys[1:][np.argmax(twice)]), len(plan.ids))
    name = plan.ids[item].as_py()
    reject(row, field, f"item {name!r} occurs twice; list every item once")


def _positions(plan, candidates: Ragged, shown: Ragged, reject) -> Ragged:
  """Where each item shown is among its row's candidates."""
  keys, wanted = _keys(plan, candidates), _keys(plan, shown)
  order = np.argsort(keys)
  at = np.minimum(np.searchsorted(keys[order], wanted), keys.size - 1)
  absent = keys[order][at] != wanted
  row = shown.row()
  if absent.any():
    where = np.argmax(absent)
    name = plan.ids[int(shown.values[where])].as_py()
    reject(
      row[where],
      "shown",
      f"item {name!r} is not among the candidates; add it or drop the row",
    )
  return Ragged(shown.start, order[at] - candidates.start[row])


def _numbers(columns, field, model, lists: Ragged, reject) -> Ragged:
  """Finite numbers, as many in each row as `lists` has."""
  result = _ragged(columns[field])
  wrong = result.lengths() != lists.lengths()
  if wrong.any():
    row = np.argmax(wrong)
    have, want = result.lengths()[row], lists.lengths()[row]
    reject(
      row, field, f"{have} values, but {model!r} has {want}; give one for each"
    )
  _check_finite(field, result, reject)
  return result


def _check_finite(field, lists: Ragged, reject) -> None:
  wrong = ~(np.abs(lists.values) <= LARGEST)
  if wrong.any():
    where = np.argmax(wrong)
    reject(
      lists.row()[where],
      field,
      f"{lists.values[where]} is no finite number of at most {LARGEST:g}; "
      "correct it or drop the row",
    )


def _check_range(field, lists: Ragged, good, interval, reject) -> None:
  if not good.all():
    where = np.argmin(good)
    reject(
      lists.row()[where],
      field,
      f"{lists.values[where]} is outside {interval}; correct it or drop the "
      "row",
    )


def numbers_of(
  columns: dict[str, pa.Array],
  names: Sequence[str],
  widths: dict[str, int],
  count: int,
  reject,
) -> np.ndarray:
  """Number and number-list columns laid side by side.

  Args:
    columns: canonical Arrow arrays of `count` rows.
    names: the columns to take.
    widths: column -> values a row in earlier batches; gains those seen first.
    count: n.
    reject: called with row, field and text where a value is wrong.

  Returns:
    f64[n, width], finite in f32.
  """
  parts = []
  for name in names:
    column = columns[name]
    if pa.types.is_list(column.type):
      lists = _ragged(column)
    else:
      lists = Ragged(np.arange(count + 1), column.to_numpy())
    want = widths.setdefault(name, int(lists.lengths()[0]))
    wrong = lists.lengths() != want
    if wrong.any():
      row = np.argmax(wrong)
      have = lists.lengths()[row]
      reject(
        row, name, f"{have} values, but rows above have {want}; give as many"
      )
    _check_finite(name, lists, reject)
    parts.append(lists.values.reshape(count, -1))
  return np.concatenate(parts, 1) if parts else np.zeros((count, 0))
