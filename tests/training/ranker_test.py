"""The stage `ranker`: each loss against hand calculation, and what it sees."""

import functools

import jax
import numpy as np
import pytest

from rerank_rl.training import pipeline
from rerank_rl.training.stages import ranker
from rerank_rl.types import PAD, Impression
from tests import toys

WEIGHTS = np.float32([1, 3])
SLOTS = toys.SIZES.slots


@functools.cache
def _batch() -> Impression:
  """Five and four candidates; the second slate is one item short."""
  click = [[1, 0, 1], [0, 1, 0]]
  other = [[0, 1, 1], [1, 1, 0]]
  slate = np.array([[4, 0, 2], [3, 0, PAD]], np.int32)
  unknown = np.full(slate.shape, np.nan, np.float32)
  return Impression(
    request=toys.request(batch=2),
    slate=slate,
    feedback=np.stack([click, other], -1).astype(np.float32),
    propensity=unknown,
    hidden=unknown[:, :0],
  )


def _logits(queries: int) -> np.ndarray:
  shape = (2, queries, toys.SIZES.candidates)
  return np.random.default_rng(queries).normal(size=shape).astype(np.float32)


def _entropy(x, y):
  """-y log sigmoid(x) - (1 - y) log sigmoid(-x)."""
  return y * np.log1p(np.exp(-x)) + (1 - y) * np.log1p(np.exp(x))


@functools.partial(jax.jit, static_argnums=0)
def _losses(loss, logits, batch):
  """((sum, count), the sum's gradient by logits)."""
  total = lambda x: loss(x, batch, WEIGHTS)
  value, back, count = jax.vjp(total, logits, has_aux=True)
  return (value, count), back(np.float32(1))[0]


@pytest.mark.parametrize("queries", (1, SLOTS))
def test_what_was_shown_is_fitted_to_its_weighted_feedback(queries):
  batch, logits = _batch(), _logits(queries)
  found, slope = _losses(ranker.shown_loss, logits, batch)
  total, shown = 0.0, 0
  touched = np.zeros(logits.shape, bool)
  for row, slot in zip(*np.nonzero(batch.slate != PAD)):
    at = row, slot if queries > 1 else 0, batch.slate[row, slot]
    worth = 1 * batch.feedback[row, slot, 0] + 3 * batch.feedback[row, slot, 1]
    total += _entropy(logits[at], worth / 4)
    touched[at] = True
    shown += 1
  np.testing.assert_allclose(found, (total, shown), rtol=1e-5)
  # Nobody knows how the others would have been liked.
  np.testing.assert_array_equal(np.asarray(slope) != 0, touched)


@pytest.mark.parametrize("queries", (1, SLOTS))
def test_labels_are_clicks_and_all_unlogged_candidates_are_negatives(queries):
  batch, logits = _batch(), _logits(queries)
  found, slope = _losses(ranker.label_loss, logits, batch)
  clicked = np.zeros((2, toys.SIZES.candidates))
  clicked[0, [4, 2]] = clicked[1, 0] = 1  # The first signal's alone.
  real = np.asarray(batch.request.candidates) != PAD
  assert real.sum(1).tolist() == [5, 4]
  terms = _entropy(logits, clicked[:, None])
  wanted = (terms * real[:, None]).sum(), real.sum() * queries
  np.testing.assert_allclose(found, wanted, rtol=1e-5)
  sign = np.where(real, np.where(clicked > 0, -1, 1), 0)
  assert (np.sign(slope) == sign[:, None]).all()


def test_recovery_alone_takes_unlogged_candidates_as_negatives():
  batch, logits = _batch(), _logits(1)
  pressed = {}
  for protocol in pipeline.PROTOCOLS:
    _, slope = _losses(ranker.LOSSES[protocol], logits, batch)
    pressed[protocol] = float(slope[0, 0, 1]) > 0  # Not in the first slate.
  assert pressed == {"value": False, "oracle": False, "recovery": True}
