"""Systems without parameters, on logs small enough to reason about."""

import types as stdlib

import numpy as np
import pytest

from rerank_rl.training import systems
from rerank_rl.types import PAD, Impression, Request

N, K, M = 8, 2, 40


def _log(n, seed, pull):
  """Clicks that hang on `pull` (score, popularity) of the shown items."""
  rng = np.random.default_rng(seed)
  draw = rng.random((n, M)) * np.linspace(1, 3, M)  # Late items are met more.
  candidates = np.argsort(-draw, 1)[:, :N]
  candidates = rng.permuted(candidates, axis=1).astype(np.int32)
  scores = rng.normal(size=(n, N)).astype(np.float32)
  worth = pull[0] * scores + pull[1] * candidates / M
  slate = np.argsort(-worth, 1)[:, :K].astype(np.int32)
  return Impression(
    request=Request(
      user=np.zeros((n, 0), np.float32),
      history=np.zeros((n, 0), np.int32),
      candidates=candidates,
      scores=scores,
      size=np.full(n, K, np.int32),
    ),
    slate=slate,
    feedback=np.ones((n, K, 1), np.float32),
    propensity=np.full((n, K), np.nan, np.float32),
    hidden=np.zeros((n, 0), np.float32),
  )


def _setting(pull, world=None):
  """What `systems.simple` reads of a Setting."""
  dataset = stdlib.SimpleNamespace(
    slate_size=K,
    item_ids=np.arange(M),
    splits={"train": _log(2000, 0, pull), "test": _log(200, 1, pull)},
  )
  return stdlib.SimpleNamespace(dataset=dataset, world=world)


def _hits(slate, log):
  """Share of the logged items that a slate holds."""
  return np.mean((slate[:, :, None] == log.slate[:, None]).any(1))


@pytest.mark.parametrize("pull", [(2.0, 4.0), (-2.0, 4.0), (1.0, 0.0)])
def test_the_logistic_control_finds_any_mixture(pull):
  setting = _setting(pull)
  test = setting.dataset.splits["test"]
  slates = systems.simple(setting, test)
  share = {name: _hits(slate, test) for name, slate in slates.items()}
  own = share.pop("score_popularity_logistic")
  assert own >= max(share.values()) - 0.02
  assert own > 0.6


def test_a_rows_own_slate_does_not_make_its_items_popular():
  # Scores and popularity are noise here, and every item was shown about
  # once: what a row showed itself would tell all.
  rng = np.random.default_rng(2)
  train = _log(2000, 0, (0.0, 0.0))
  wide = 2000 * N
  candidates = rng.permutation(wide).reshape(2000, N).astype(np.int32)
  train = train.replace(
    request=train.request.replace(candidates=candidates),
    slate=rng.permuted(np.tile(np.arange(N), (2000, 1)), axis=1)[:, :K].astype(
      np.int32
    ),
  )
  setting = stdlib.SimpleNamespace(
    dataset=stdlib.SimpleNamespace(
      slate_size=K, item_ids=np.arange(wide), splits={"train": train}
    ),
    world=None,
  )
  slates = systems.simple(setting, train)
  assert _hits(slates["popularity"], train) == 1
  assert _hits(slates["score_popularity_logistic"], train) < 0.4


def test_leak_controls_are_for_logs_only():
  assert set(_names(world=object())) == {"ranker_order", "popularity"}
  assert len(_names(world=None)) == 5


def _names(world):
  setting = _setting((1.0, 0.0), world)
  return list(systems.simple(setting, setting.dataset.splits["test"]))


def test_by_score_keeps_to_candidates_and_size():
  log = _log(3, 0, (1.0, 0.0))
  candidates = log.request.candidates.copy()
  candidates[0, 3:] = PAD
  candidates[1, 1:] = PAD
  size = np.array([K, K, 1], np.int32)
  log = log.replace(
    request=log.request.replace(candidates=candidates, size=size)
  )
  score = np.tile(np.arange(N), (3, 1))
  slate = systems.by_score(score, log, K)
  assert slate.tolist() == [[2, 1], [0, PAD], [N - 1, PAD]]
