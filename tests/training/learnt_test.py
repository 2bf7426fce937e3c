"""Sessions with users learnt from a log: who learns from whom, who judges."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from benchmarks import fidelity
from configs import hsrl
from rerank_rl.evaluation import report
from rerank_rl.training import (
  fitting,
  session,
  session_pipeline,
  session_setting,
)
from rerank_rl.training.checkpoint import load_artifact
from rerank_rl.training.stages import evaluators, response
from rerank_rl.training.stages import session as stage
from tests import toys

SMALL = toys.SESSIONS | {
  "policy.head": "hpn",  # The least to compile.
  "response.dim": 16,
  "response.max_epochs": 4,
  "response.learning_rate": 1e-2,
  "response.batch_size": 64,
  "response.dropout": 0.0,
  "world.num_train": 4000,
  "world.num_test": 300,
}


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
  """A run with users learnt from the world's log, on one device."""
  folder = tmp_path_factory.mktemp("learnt")
  config = toys.frozen(hsrl.get_config("learnt"), SMALL)
  setting = session_pipeline.learn(toys.begun(config, folder))
  session_pipeline.evaluate(setting, folder, "command")
  return folder, setting


def test_learnt_users_answer_as_the_log_says(learnt):
  """Better than chance (.5 +- .02), calibrated; neither model is the other.

  So do ensembles on them.
  """
  folder, setting = learnt
  assert (folder / report.REPORT).exists()
  simulators = fidelity.simulators(setting)
  log = session_setting.log_of(setting, "test")
  assert len(simulators) == 4
  for law in simulators.values():
    (click,) = fidelity.answers(law, log)
    assert click["auc"] > 0.54
    # 300 rows calibrate, 900 positions judge.
    assert abs(click["predicted"] - click["observed"]) < 0.08
  one, other = (setting.judges[name].fitted.params for name in "ab")
  same = jax.tree.map(lambda x, y: np.array_equal(x, y), one, other)
  assert not all(jax.tree.leaves(same))


def test_test_users_behave_as_the_model_that_trained_no_policy(learnt):
  _, setting = learnt
  by_split = {
    split: setting.environment(split).react.args[0].params
    for split in ("train", "valid", "test")
  }
  for split, name in (("train", "a"), ("valid", "a"), ("test", "b")):
    fitted = jax.tree.map(lambda x: x[0], setting.judges[name].fitted.params)
    jax.tree.map(np.testing.assert_array_equal, by_split[split], fitted)


def test_the_rankers_order_beats_its_reverse(learnt):
  """Order by what most users like, forwards and backwards."""
  folder, setting = learnt
  act, params = fidelity.policies(setting)["ranker_reversed"]
  backwards = session.judge(setting, "test", act, params)["total_reward"].mean()
  rows = json.loads((folder / report.REPORT).read_text())["rows"]
  (forwards,) = (
    row["metrics"]["total_reward"]
    for row in rows
    if row["system"] == "ranker_order"
  )
  assert forwards > backwards


def test_the_worlds_log_is_of_sessions(learnt):
  """Of its own users, at some turn, the same whenever it is asked for."""
  _, setting = learnt
  log = session_setting.log_of(setting, "a")
  rows = setting.dataset.logs["a"]
  np.testing.assert_array_equal(log.hidden, rows.hidden)
  again = session_setting.log_of(setting, "a")
  jax.tree.map(np.testing.assert_array_equal, log, again)
  topics = setting.config.world.num_topics
  lately = log.request.user[:, :topics].sum(1)
  np.testing.assert_array_equal(
    log.request.user[:, topics:], rows.request.user[:, topics:]
  )
  assert (lately == 0).any() and (lately > 1).mean() > 0.5
  assert (log.request.candidates != rows.request.candidates).any(1).all()


def test_models_of_users_hang_on_the_sessions_of_their_log(learnt, monkeypatch):
  _, setting = learnt
  kept = load_artifact(setting.folder(response.STAGE))
  monkeypatch.setattr(evaluators, "ready", lambda *args: True)
  monkeypatch.setattr(evaluators, "load_artifact", lambda folder: kept)
  known = setting.identity[response.STAGE]
  assert response.run(setting).identity[response.STAGE] == known
  rested = dataclasses.replace(setting.config.session, weariness=0.0)
  config = dataclasses.replace(setting.config, session=rested)
  other = dataclasses.replace(setting, config=config)
  assert response.run(other).identity[response.STAGE] != known


def test_other_users_make_another_artifact(learnt, monkeypatch):
  _, setting = learnt
  monkeypatch.setattr(fitting, "ready", lambda *args: True)
  kept = ({}, {"history": []})
  monkeypatch.setattr(fitting, "load_artifact", lambda folder: kept)
  again = stage.run(setting).identity["session"]
  assert again == setting.identity["session"]
  others = setting.identified("response", "other users")
  assert stage.run(others).identity["session"] != again
