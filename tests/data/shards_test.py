"""Shards: whole or absent, each row once, one order for any processes."""

import itertools

import numpy as np
import pytest

from rerank_rl.data import shards

ROWS, SHARDS = 83, 3  # Neither shards nor blocks of equal size.
COLUMNS = {"row": ((), np.int32), "half": ((2, 3), np.float16)}


def _table(span):
  rows = np.array(span, np.int32)
  half = np.repeat(rows[:, None, None], 2, 1) + np.arange(3)[None, None] / 4
  return {"row": rows, "half": half.astype(np.float16)}


def _write(layout, numbers):
  for i in numbers:
    shards.write(layout, i, COLUMNS, _table(layout.span(i)))


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
  made = shards.Layout(tmp_path_factory.mktemp("table"), ROWS, SHARDS)
  _write(made, made.missing())
  return made


def _rows(stream, batches):
  return [next(stream)["row"].tolist() for _ in range(batches)]


def test_an_epoch_holds_every_row_once_in_an_order_of_its_own(layout):
  stream = shards.Stream(layout, ROWS, 0)
  one, two = _rows(stream, 2)
  assert sorted(one) == sorted(two) == list(range(ROWS))
  assert one != two and one != sorted(one)
  assert one != _rows(shards.Stream(layout, ROWS, 1), 1)[0]


def test_columns_stay_together_and_keep_their_types(layout):
  stream = shards.Stream(layout, 10, 0)
  for _ in range(12):
    batch = next(stream)
    wanted = _table(batch["row"])
    for name, column in wanted.items():
      assert batch[name].dtype == column.dtype
      np.testing.assert_array_equal(batch[name], column)


@pytest.mark.parametrize("processes", [2, 5])
def test_processes_share_what_one_would_read(layout, processes):
  whole = _rows(shards.Stream(layout, 20, 3), 9)
  parts = [
    _rows(shards.Stream(layout, 20, 3, p, processes), 9)
    for p in range(processes)
  ]
  assert whole == [list(itertools.chain(*batch)) for batch in zip(*parts)]


def test_a_stream_resumes_exactly(layout):
  stream = shards.Stream(layout, 7, 0)
  _rows(stream, 15)  # Into the second epoch.
  place, rest = stream.get_state(), _rows(stream, 5)
  other = shards.Stream(layout, 7, 0)
  other.set_state(place)
  assert _rows(other, 5) == rest


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_processes_own_disjoint_shards_that_are_all(tmp_path, processes):
  layout = shards.Layout(tmp_path, ROWS, SHARDS)
  own = [layout.missing(p, processes) for p in range(processes)]
  assert sorted(itertools.chain(*own)) == list(range(SHARDS))
  spans = [row for i in range(SHARDS) for row in layout.span(i)]
  assert spans == list(range(ROWS))


def test_a_killed_write_leaves_nothing_that_counts(tmp_path, monkeypatch):
  layout = shards.Layout(tmp_path, ROWS, SHARDS)
  _write(layout, [1])
  before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
  real = shards.builder.write

  def die(table, columns, splits, folder):
    real(table, columns, splits, folder)
    raise KeyboardInterrupt  # All is written but the name.

  monkeypatch.setattr(shards.builder, "write", die)
  with pytest.raises(KeyboardInterrupt):
    _write(layout, [0])
  monkeypatch.undo()
  assert layout.missing() == [0, 2]  # Shard 1 is kept, 0 is not half there.
  _write(layout, layout.missing(0, 2))
  assert layout.missing() == []
  assert all(
    p.stat().st_mtime_ns == t for p, t in before.items() if p.is_file()
  )
  (rows,) = _rows(shards.Stream(layout, ROWS, 0), 1)
  assert sorted(rows) == list(range(ROWS))


def test_a_table_may_have_fewer_rows_than_shards(tmp_path):
  layout = shards.Layout(tmp_path, 2, 5)
  _write(layout, layout.missing())
  assert layout.missing() == []
  assert sorted(itertools.chain(*_rows(shards.Stream(layout, 1, 0), 2))) == [
    0,
    1,
  ]
