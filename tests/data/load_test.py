"""What every data set goes through, wherever it comes from."""

import dataclasses

import numpy as np

from rerank_rl.config import Config, DataConfig, WorldConfig
from rerank_rl.data import load, schema

WORLD = Config(
  world=WorldConfig(
    num_items=200,
    num_candidates=10,
    slate_size=4,
    num_train=80,
    num_valid=5,
    num_test=30,
  )
)


def _at_most(rows):
  data = DataConfig(max_rows=rows)
  return load.load(dataclasses.replace(WORLD, data=data))


def test_max_rows_thins_every_split_evenly():
  whole, thin = _at_most(0), schema.validate(_at_most(20))
  sizes = {name: schema.num_rows(x) for name, x in thin.splits.items()}
  assert sizes == {"train": 20, "valid": 5, "test": 20}
  slates = {name: whole.splits[name].slate for name in schema.SPLITS}
  rows = np.linspace(0, 79, 20).astype(int)
  np.testing.assert_array_equal(
    thin.splits["train"].slate, slates["train"][rows]
  )
  np.testing.assert_array_equal(thin.splits["valid"].slate, slates["valid"])
  assert rows[0] == 0 and rows[-1] == 79 and np.ptp(np.diff(rows)) <= 1


def test_nothing_that_was_fitted_changes_with_max_rows():
  whole, thin = _at_most(0), _at_most(20)
  np.testing.assert_array_equal(whole.features, thin.features)
  np.testing.assert_array_equal(whole.warm, thin.warm)
