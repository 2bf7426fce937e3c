"""What a run of impressions begins with."""

import dataclasses

import jax
import numpy as np
import pytest

from rerank_rl.config import Config, DataConfig
from rerank_rl.training import mesh, pipeline
from tests.data import movielens_test


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
  """control -> the splits that a run begins with. Nothing is compiled."""
  path = tmp_path_factory.mktemp("ml")
  movielens_test.write(path)
  splits = {}
  for control in ("logged", "shuffled", "constant"):
    data = DataConfig("movielens_1m", str(path), feedback=control)
    config = Config(protocol="recovery", stages=("tokenizer",), data=data)
    setting = pipeline.begin(config, path, mesh.make(jax.devices()[:1]))
    splits[control] = setting.dataset.splits
  return splits


@pytest.mark.parametrize("control", ("shuffled", "constant"))
def test_controls_change_the_feedback_of_training_and_nothing_else(
  begun, control
):
  mine, logged = begun[control], begun["logged"]
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
    begun[control]["train"].feedback.reshape(-1, 6 * 3).tolist()
    for control in ("shuffled", "logged")
  )
  assert sorted(one) == sorted(two)
  stayed = np.mean([a == b for a, b in zip(one, two)])
  assert stayed < 0.2
