"""The closed form against least squares written out, sequence by sequence."""

import numpy as np
import pytest

from rerank_rl.config import ConfigError, ItemToItemConfig
from rerank_rl.data import sequences
from rerank_rl.models import item_to_item
from rerank_rl.types import PAD

ITEMS, WIDTH = 7, 4
CONFIG = ItemToItemConfig(decay=0.5, penalty=0.3)


@pytest.fixture(scope="module")
def events():
  """Users of 4 to 12 items, longer than a row among them."""
  rng = np.random.default_rng(0)
  counts = rng.integers(4, 13, 20)
  item = rng.integers(0, ITEMS, counts.sum()).astype(np.int32)
  return sequences.Events(item, np.r_[0, np.cumsum(counts)])


def _pieces(events):
  """Each user's training items, cut as `sequences.training` says."""
  for begin, end in zip(events.first[:-1], events.first[1:], strict=True):
    seen = events.item[begin : end - 2]  # The last one is a target alone.
    while len(seen) > 1:
      yield seen[-WIDTH - 1 :]
      seen = seen[:-WIDTH]


def test_the_matrix_is_the_least_squares_one(events):
  past, ahead = [], []
  for piece in _pieces(events):
    for t in range(1, len(piece)):
      past.append(np.zeros(ITEMS))
      for age, item in enumerate(piece[:t][::-1]):
        past[-1][item] += CONFIG.decay**age
      ahead.append(np.eye(ITEMS)[piece[t]])
  # Ridge regression as least squares with more rows.
  ridge = np.sqrt(CONFIG.penalty) * np.eye(ITEMS)
  want, *_ = np.linalg.lstsq(
    np.r_[past, ridge], np.r_[ahead, 0 * ridge], rcond=None
  )
  got = item_to_item.fit(sequences.training(events, WIDTH), ITEMS, CONFIG)
  np.testing.assert_allclose(got, want, atol=1e-4)


def test_a_history_s_scores_are_sums_over_its_items(events):
  rng = np.random.default_rng(1)
  matrix = rng.normal(size=(ITEMS, ITEMS)).astype(np.float32)
  windows = sequences.held_out(events, "test", WIDTH)
  got = item_to_item.scores(matrix, windows, CONFIG.decay)
  for row, own in zip(windows.item, got, strict=True):
    seen = row[row != PAD][::-1]
    want = sum(CONFIG.decay**age * matrix[x] for age, x in enumerate(seen))
    np.testing.assert_allclose(own, want, atol=1e-5)


def test_a_catalogue_too_large_is_refused():
  with pytest.raises(ConfigError, match="reward='labels'"):
    item_to_item.check(item_to_item.MOST + 1)
