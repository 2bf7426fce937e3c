"""Batches: a permutation, shared out exactly, resumed exactly."""

from itertools import chain

import numpy as np
import pytest

from rerank_rl.data import pipeline
from rerank_rl.types import PAD, Impression, Request


def numbered(n: int, slots: int = 2) -> Impression:
  """Row r says r in every column."""
  row = np.arange(n)[:, None]
  return Impression(
    request=Request(
      user=row.astype(np.float32),
      history=row.astype(np.int32),
      candidates=np.tile(row, (1, slots)).astype(np.int32),
      scores=np.tile(row, (1, slots)).astype(np.float32),
      size=np.full(n, slots, np.int32),
    ),
    slate=np.tile(np.arange(slots, dtype=np.int32), (n, 1)),
    feedback=np.tile(row[..., None] / n, (1, slots, 1)).astype(np.float32),
    propensity=np.ones((n, slots), np.float32),
    hidden=np.zeros((n, 0), np.float32),
  )


def rows(batch: Impression) -> list[int]:
  return batch.request.history[:, 0].tolist()


def test_one_pass_holds_every_row_once_and_columns_stay_together():
  parts = list(pipeline.batches(numbered(23), 8, seed=0, repeat=False))
  assert [len(rows(part)) for part in parts] == [8, 8, 7]
  assert sorted(chain(*map(rows, parts))) == list(range(23))
  for part in parts:
    np.testing.assert_array_equal(part.request.user[:, 0], rows(part))


def test_epochs_have_their_own_order_and_every_row_each():
  stream = pipeline.batches(numbered(12), 6, seed=1)
  epochs = [rows(next(stream)) + rows(next(stream)) for _ in range(3)]
  assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
  assert epochs[0] != epochs[1]


def test_full_batches_run_over_the_end_of_small_sets():
  stream = pipeline.batches(numbered(3), 8, seed=1)
  assert [len(rows(next(stream))) for _ in range(3)] == [8, 8, 8]


@pytest.mark.parametrize("repeat", [True, False])
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_together_see_what_one_sees(processes, repeat):
  def take(index, count):
    stream = pipeline.batches(numbered(21), 8, 5, index, count, repeat)
    return [rows(next(stream)) for _ in range(3)]

  whole = take(0, 1)
  parts = [take(index, processes) for index in range(processes)]
  joined = [list(chain(*step)) for step in zip(*parts)]
  assert joined == whole


def test_state_resumes_exactly():
  stream = pipeline.batches(numbered(50), 8, seed=3)
  for _ in range(9):
    next(stream)
  state = stream.get_state()
  ahead = [rows(next(stream)) for _ in range(9)]
  fresh = pipeline.batches(numbered(50), 8, seed=3)
  fresh.set_state(state)
  assert [rows(next(fresh)) for _ in range(9)] == ahead


def test_seeds_differ():
  one, two = (next(pipeline.batches(numbered(50), 20, s)) for s in (0, 1))
  assert rows(one) != rows(two)


@pytest.mark.parametrize(
  "size,index,count", [(0, 0, 1), (7, 0, 2), (8, 2, 2), (8, -1, 2)]
)
def test_wrong_sizes_are_refused(size, index, count):
  with pytest.raises(ValueError):
    pipeline.batches(numbered(10), size, 0, index, count)
  with pytest.raises(ValueError, match="no rows"):
    pipeline.batches(numbered(0), 2, 0)


def test_shuffled_feedback_permutes_whole_rows_of_equal_length():
  columns = numbered(40)
  short = np.arange(0, 40, 3)
  columns.slate[short, 1] = PAD
  columns.feedback[short, 1] = 0
  mixed = pipeline.feedback_control(columns, "shuffled", seed=0)
  for part in (short, np.setdiff1d(np.arange(40), short)):
    before, after = columns.feedback[part, 0, 0], mixed.feedback[part, 0, 0]
    assert sorted(before) == sorted(after)
    assert not np.array_equal(before, after)
  assert (mixed.feedback[columns.slate == PAD] == 0).all()
  assert mixed.request is columns.request


def test_constant_feedback_is_the_mean_of_each_filled_position():
  columns = numbered(4)
  columns.slate[0, 1] = PAD
  columns.feedback[:, :, 0] = [[1, 0], [0, 1], [0, 1], [1, 0]]
  flat = pipeline.feedback_control(columns, "constant", seed=0)
  np.testing.assert_allclose(flat.feedback[1:, 0, 0], 0.5)
  np.testing.assert_allclose(flat.feedback[1:, 1, 0], 2 / 3)
  assert flat.feedback[0, 1, 0] == 0


def test_logged_feedback_is_untouched_and_other_modes_are_refused():
  columns = numbered(4)
  assert pipeline.feedback_control(columns, "logged", 0) is columns
  with pytest.raises(ValueError, match=r"logged.*shuffled.*constant"):
    pipeline.feedback_control(columns, "fake", 0)
