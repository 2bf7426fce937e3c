"""Cutting, histories and candidates, on logs small enough to check."""

import numpy as np
import pytest

from rerank_rl.data import slates
from rerank_rl.types import PAD

USER = np.repeat([0, 1, 3], [7, 2, 4])


@pytest.mark.parametrize(
  "from_end,expected",
  [(False, [[0, 1, 2], [3, 4, 5], [9, 10, 11]]),
   (True, [[1, 2, 3], [4, 5, 6], [10, 11, 12]])],
)  # fmt: skip
def test_cut_keeps_users_apart(from_end, expected):
  index, first = slates.cut(USER, 3, from_end)
  assert index.tolist() == expected
  assert first.tolist() == [0, 0, 9]


def test_windows_hold_the_last_items_before_stop():
  result = slates.windows(
    np.arange(10, 20), np.array([0, 2, 5]), np.array([4, 9, 5]), 5
  )
  assert result.tolist() == [
    [PAD, 10, 11, 12, 13],
    [14, 15, 16, 17, 18],
    [PAD] * 5,
  ]


def test_unmet_items_are_distinct_and_unmet():
  random = np.random.default_rng(0)
  met = random.random((5, 40)) < 0.5
  owner = random.integers(0, 5, 300)
  drawn = slates.draw_unmet(random, owner, met, np.arange(40) + 1.0, 12)
  assert drawn.shape == (300, 12)
  assert not met[owner[:, None], drawn].any()
  assert all(len(set(row)) == 12 for row in drawn.tolist())


def test_unmet_items_follow_plackett_luce():
  mass = np.array([1.0, 2.0, 3.0, 4.0, 90.0])
  met = np.array([[False, False, False, False, True]])
  drawn = slates.draw_unmet(
    np.random.default_rng(1), np.zeros(20_000, np.int64), met, mass, 2
  )
  first = np.bincount(drawn[:, 0], minlength=5) / 20_000
  np.testing.assert_allclose(first, [0.1, 0.2, 0.3, 0.4, 0], atol=0.015)
  # P(second = 3 | first = 2) = 4 / (10 - 3).
  second = drawn[drawn[:, 0] == 2, 1]
  assert abs((second == 3).mean() - 4 / 7) < 0.02


def test_too_few_unmet_items_are_refused():
  with pytest.raises(ValueError, match="all but 2 of 5"):
    slates.draw_unmet(
      np.random.default_rng(0),
      np.zeros(1, np.int64),
      np.array([[True, True, True, False, False]]),
      np.ones(5),
      3,
    )


def test_mix_hides_the_logged_items_anywhere():
  random = np.random.default_rng(0)
  logged = np.tile(np.arange(3, dtype=np.int32), (4000, 1))
  unmet = np.tile(np.arange(3, 10, dtype=np.int32), (4000, 1))
  candidates, slate = slates.mix(random, logged, unmet)
  np.testing.assert_array_equal(
    np.take_along_axis(candidates, slate, 1), logged
  )
  assert (np.sort(candidates, 1) == np.arange(10)).all()
  share = np.bincount(slate[:, 0], minlength=10) / 4000
  np.testing.assert_allclose(share, 0.1, atol=0.02)
