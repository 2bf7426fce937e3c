"""The stage `evaluators`: what calibration finds, and whom it warns."""

import types as stdlib

import numpy as np

from rerank_rl.training.stages import evaluators
from rerank_rl.types import PAD


def _shown(rows=4000):
  """Logits [rows, 2, 2], and feedback drawn by them; a third of slots empty."""
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(rows, 2, 2)).astype(np.float32)
  clicks = rng.random(logits.shape) < 1 / (1 + np.exp(-logits))
  slate = np.where(rng.random((rows, 2)) < 1 / 3, PAD, 0)
  # What stands at empty places is nobody's feedback.
  clicks[slate == PAD] = True
  return logits, stdlib.SimpleNamespace(
    slate=slate, feedback=clicks.astype(np.float32)
  )


def test_calibration_undoes_what_was_done_to_a_signals_logits():
  logits, shown = _shown()
  wrong = logits * np.float32([2.0, 0.5]) + np.float32([1.0, -1.0])
  scale, shift = map(np.asarray, evaluators.calibrate(wrong, shown))
  np.testing.assert_allclose(scale, [0.5, 2.0], rtol=0.1)
  np.testing.assert_allclose(shift, [-0.5, 2.0], atol=0.15)
  better = evaluators.log_loss(wrong * scale + shift, shown)
  assert better < evaluators.log_loss(wrong, shown) - 0.05
  assert abs(better - evaluators.log_loss(logits, shown)) < 0.01


def test_a_signal_that_is_learnt_the_wrong_way_round_is_named(caplog):
  logits, shown = _shown()
  scale, _ = evaluators.calibrate(logits * np.float32([1, -1]), shown)
  evaluators._warn("evaluators a", ("click", "like"), np.asarray(scale))
  (record,) = caplog.records
  said = record.getMessage()
  assert "evaluators a" in said and "'like'" in said and "click" not in said
