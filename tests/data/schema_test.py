"""A data set that breaks one invariant is refused, by name."""

import dataclasses

import numpy as np
import pytest

from rerank_rl.data import schema
from rerank_rl.types import PAD, Impression, Request


def impression(n: int = 4) -> Impression:
  return Impression(
    request=Request(
      user=np.zeros((n, 1), np.float32),
      history=np.tile(np.array([[PAD, 1]], np.int32), (n, 1)),
      candidates=np.tile(np.array([[0, 1, 2, PAD]], np.int32), (n, 1)),
      scores=np.tile(np.array([[0.5, 0.1, 0.2, 0]], np.float32), (n, 1)),
      size=np.full(n, 2, np.int32),
    ),
    slate=np.tile(np.array([[2, 0]], np.int32), (n, 1)),
    feedback=np.ones((n, 2, 1), np.float32),
    propensity=np.full((n, 2), np.nan, np.float32),
    hidden=np.zeros((n, 0), np.float32),
  )


def dataset() -> schema.Dataset:
  return schema.Dataset(
    name="tiny",
    item_ids=np.arange(5),
    features=np.zeros((5, 2), np.float32),
    vectors=np.zeros((5, 2), np.float32),
    groups=np.zeros(5, np.int32),
    splits={name: impression() for name in schema.SPLITS},
    timestamps={name: np.zeros(4, np.int64) for name in schema.SPLITS},
    signals=("click",),
    weights=(1.0,),
    slate_size=2,
    warm=np.array([True, True, True, False, False]),
  )


def test_a_sound_data_set_passes():
  sound = dataset()
  assert schema.validate(sound) is sound


def test_a_version_is_that_of_the_log():
  """What is read decides, not what a loader fits to it."""
  first = dataset()
  row = impression()
  changed = (
    {
      "splits": {
        **first.splits,
        "train": row.replace(feedback=0 * row.feedback),
      }
    },
    {"splits": {**first.splits, "test": row.replace(slate=row.slate[:, ::-1])}},
    {"item_ids": np.array(["a", "b", "c", "d", "e"], object)},
    {"item_ids": np.array(["a", "b", "c", "d", "f"], object)},
    {"timestamps": {**first.timestamps, "valid": np.ones(4, np.int64)}},
    {"weights": tuple(2 * weight for weight in first.weights)},
  )
  found = [
    schema.version(dataclasses.replace(first, **change)) for change in changed
  ]
  assert len({schema.version(first), *found}) == 1 + len(changed)
  again = dataclasses.replace(first, features=np.ones((5, 2), np.float32))
  assert schema.version(again) == schema.version(dataset())


CATALOGUE = {
  "features": np.full((5, 2), np.nan, np.float32),
  "vectors": np.zeros((4, 2), np.float32),
  "item_ids": np.zeros(5, np.int64),
  "groups": np.full(5, -1, np.int32),
  "warm": np.zeros(5, bool),
  "weights": (1.0, 2.0),
  "slate_size": 3,
  "timestamps": {name: np.zeros(3, np.int64) for name in schema.SPLITS},
}


@pytest.mark.parametrize("name", CATALOGUE)
def test_bad_columns_are_refused(name):
  bad = dataclasses.replace(dataset(), **{name: CATALOGUE[name]})
  with pytest.raises(ValueError, match="data set 'tiny'"):
    schema.validate(bad)


ROWS = [
  ("candidates", [0, 0, 2, PAD], "candidates that repeat"),
  ("candidates", [0, PAD, 2, 1], "candidates after padding"),
  ("candidates", [0, 1, 5, PAD], "candidates outside"),
  ("candidates", [-2, 1, 0, PAD], "candidates outside"),
  ("history", [1, PAD], "history before padding"),
  ("history", [1, 9], "history outside"),
  ("slate", [0, 0], "slate positions that repeat"),
  ("slate", [PAD, 0], "slate positions after padding"),
  ("slate", [0, 3], "slate positions that are no candidate"),
  ("slate", [0, 4], "slate positions that are no candidate"),
  ("slate", [0, PAD], "feedback at padding"),
  ("feedback", [[1.5], [0]], "feedback outside"),
  ("feedback", [[np.nan], [0]], "feedback outside"),
  ("propensity", [0, 0.5], "propensity outside"),
  ("scores", [np.inf, 0, 0, 0], "scores that are NaN"),
  ("scores", [0, 0, 0, 1], "scores at padding"),
  ("user", [np.nan], "user features"),
  ("size", 3, "size outside"),
  ("size", 0, "size outside"),
]


@pytest.mark.parametrize("column,value,text", ROWS)
def test_a_bad_row_is_named(column, value, text):
  tiny = dataset()
  part = tiny.splits["valid"]
  owner = part if hasattr(part, column) else part.request
  getattr(owner, column)[2] = value
  with pytest.raises(ValueError, match=f"'valid', row 2 has {text}"):
    schema.validate(tiny)


def test_warm_items_are_those_of_candidates_and_histories():
  np.testing.assert_array_equal(
    schema.warm_items(impression(), 5), [True, True, True, False, False]
  )


def test_take_keeps_rows_together():
  columns = impression()
  columns.request.scores[3, 0] = 7
  columns.slate[3] = [1, 2]
  part = schema.take(columns, np.array([3, 0]))
  assert schema.num_rows(part) == 2
  assert part.request.scores[0, 0] == 7
  assert part.slate[0].tolist() == [1, 2]
