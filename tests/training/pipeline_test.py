"""What a run of impressions begins with."""

import dataclasses

import jax
import numpy as np
import pytest

from rerank_rl.config import Config, DataConfig
from rerank_rl.training import (
  mesh,
  next_item_pipeline,
  pipeline,
  session_pipeline,
  tasks,
)
from rerank_rl.training.stages import evaluators
from tests.data import movielens_test


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
  """control -> what a run begins with. Nothing is compiled."""
  path = tmp_path_factory.mktemp("ml")
  movielens_test.write(path)
  settings = {}
  for control in ("logged", "shuffled", "constant"):
    data = DataConfig("movielens_1m", str(path), feedback=control)
    config = Config(protocol="recovery", stages=("tokenizer",), data=data)
    setting = pipeline.begin(config, path, mesh.make(jax.devices()[:1]))
    settings[control] = setting
  return settings


@pytest.mark.parametrize("control", ("shuffled", "constant"))
def test_controls_change_the_feedback_of_training_and_nothing_else(
  begun, control
):
  mine, logged = (begun[x].dataset.splits for x in (control, "logged"))
  equal = lambda *parts: jax.tree.map(np.testing.assert_array_equal, *parts)
  for split in ("valid", "test"):
    equal(mine[split], logged[split])
  blank = lambda part: dataclasses.replace(part, feedback=0)
  equal(blank(mine["train"]), blank(logged["train"]))
  one, two = mine["train"].feedback, logged["train"].feedback
  assert (one != two).any()
  np.testing.assert_allclose(one.mean(0), two.mean(0), atol=1e-6)


def test_shuffled_feedback_is_other_requests_and_whole(begun):
  one, two = (
    begun[control].dataset.splits["train"].feedback.reshape(-1, 6 * 3).tolist()
    for control in ("shuffled", "logged")
  )
  assert sorted(one) == sorted(two)
  stayed = np.mean([a == b for a, b in zip(one, two)])
  assert stayed < 0.2


def test_who_only_reports_is_fitted_to_what_was_logged(begun, monkeypatch):
  monkeypatch.setattr(evaluators, "HELD_OUT", 2)  # There are few rows.
  for name in "asb":
    one, two = (
      evaluators.third(begun[control], name)[0].feedback
      for control in ("constant", "logged")
    )
    assert (one == two).all() == (name == "b")


def test_every_stage_that_learns_in_batches_names_their_size():
  # A codebook, counts, lists that are searched.
  whole = {
    pipeline: {"tokenizer", "mine"},
    session_pipeline: {"tokenizer"},
    next_item_pipeline: {"tokenizer", "evaluators"},
  }
  assert set(whole) == set(tasks.TASKS.values())
  for task, others in whole.items():
    assert set(task.STAGES) - set(task.BATCHES) == others
    for part in task.BATCHES.values():
      assert getattr(Config(), part).batch_size > 0
