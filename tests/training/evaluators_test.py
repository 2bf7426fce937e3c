"""The stage `evaluators`: who sees which rows, calibration, and its warning."""

import dataclasses
import types as stdlib

import jax.numpy as jnp
import numpy as np

from rerank_rl.data import schema
from rerank_rl.models import ensemble
from rerank_rl.training.stages import evaluators
from rerank_rl.types import PAD
from tests.training import setting_test


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


def test_evaluators_share_no_row_and_miss_none(monkeypatch):
  """Nor is any calibrated on what another was fitted to or stopped by."""
  made = setting_test.setting(train=130)
  fitted, asked, kept = {}, [], {}

  def fit(setting, stage, name, model, rows, config):
    fitted[name] = model, rows
    return ensemble.Fitted(np.array(len(fitted)), jnp.ones(1), jnp.zeros(1))

  def predict(model, own, features, impressions):
    asked.append((list(fitted)[own.params - 1], impressions))
    return np.zeros((*impressions.slate.shape, 1), np.float32)

  monkeypatch.setattr(evaluators, "_fit", fit)
  monkeypatch.setattr(evaluators, "predict", predict)
  monkeypatch.setattr(
    evaluators, "keep", lambda setting, stage, tree: kept.update(tree)
  )
  monkeypatch.setattr(evaluators, "load_artifact", lambda folder: (kept, {}))
  # Each row says who it is.
  rows = {
    split: columns.replace(hidden=np.full((schema.num_rows(columns), 1), -1.0))
    for split, columns in made.dataset.splits.items()
  }
  number = np.arange(130.0)[:, None]
  rows["train"] = rows["train"].replace(hidden=number)
  dataset = dataclasses.replace(made.dataset, splits=rows)
  made = dataclasses.replace(
    made, dataset=dataset, logged=rows["train"], identity={"data": "toy"}
  )
  judges = evaluators.run(made).judges
  assert set(judges) == set(fitted) == {"a", "s", "b"}
  own = {
    name: [part.hidden[:, 0] for part in parts]
    for name, (_, parts) in fitted.items()
  }
  every = np.concatenate([row for parts in own.values() for row in parts])
  np.testing.assert_array_equal(np.sort(every), number[:, 0])
  sizes = [sum(map(len, parts)) for parts in own.values()]
  assert max(sizes) - min(sizes) <= 1
  # Held-out rows are few, and a model's own.
  assert [name for name, _ in asked] == list(fitted)
  for name, held in asked:
    np.testing.assert_array_equal(held.hidden[:, 0], own[name][1])
    assert 0 < len(own[name][1]) < 0.1 * len(own[name][0])
  # The judge is another network than those that reward and select.
  assert fitted["b"][0] not in (fitted["a"][0], fitted["s"][0])
  for number, (name, (model, _)) in enumerate(fitted.items(), 1):
    assert judges[name].model == model
    assert judges[name].fitted.params == number
