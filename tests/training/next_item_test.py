"""The next-item task: a run of seconds, its report, and its remedies."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from configs import tiger
from rerank_rl import config as config_lib
from rerank_rl.config import ConfigError
from rerank_rl.evaluation import next_item as judges
from rerank_rl.evaluation import report
from rerank_rl.training import (
  checkpoint,
  loop,
  next_item,
  next_item_pipeline,
  pipeline,
  tasks,
)
from rerank_rl.types import PAD

TINY = {
  "world.num_items": 60,
  "world.num_candidates": 6,
  "world.slate_size": 2,
  "world.num_train": 200,
  "world.history_size": 12,
  "tokenizer.codes": 8,
  "tokenizer.iterations": 2,
  "policy.dim": 8,
  "policy.layers": 1,
  "next_item.history": 8,
  "sft.steps": 24,
  "sft.batch_size": 16,
  "sft.warmup_steps": 2,
  "sft.learning_rate": 0.03,
  "sft.ema": 0.9,
  "sft.eval_every": 8,
  "sft.checkpoint_every": 6,
}


def _config(**changes):
  config = tiger.get_config()
  config.update_from_flattened_dict(TINY | changes)
  return config_lib.freeze(config.to_dict())


@pytest.fixture(scope="module")
def done(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tiger")
  rows = tasks.of(_config()).run(_config(), folder, folder, "command")
  return folder, rows


def test_the_report_holds_what_the_protocol_asks(done):
  folder, rows = done
  facts = json.loads((folder / report.REPORT).read_text())
  assert facts["protocol"] == "next_item" and facts["dataset"] == "world"
  assert [row["system"] for row in facts["rows"]] == ["popularity", "tiger"]
  want = {f"{m}@{k}" for m in ("recall", "ndcg") for k in (5, 10, 50)}
  for row in rows:
    assert want | {"coverage@10"} <= set(row["metrics"])
    assert row["metrics"]["requests"] == 200
    assert row["metrics"]["recall@5"] <= row["metrics"]["recall@50"]
  assert (folder / report.PAGE).exists()
  steps = [record["step"] for record in facts["history"]["sft"]]
  assert steps == [0, 8, 16, 24]


def test_the_loss_falls_and_the_best_checkpoint_is_reported(done):
  folder, _ = done
  (sft,) = folder.glob("sft-*")
  lines = [json.loads(x) for x in (sft / "metrics.jsonl").open()]
  losses = [line["loss"] for line in lines if line["split"] == "train"]
  assert np.mean(losses[-4:]) < np.mean(losses[:4]) - 0.05
  setting = next_item_pipeline.learn(
    next_item_pipeline.begin(_config(), folder)
  )
  evaluate, (metric, more) = next_item.selection(setting)
  assert (metric, more) == ("ndcg@10", True)
  best = max(record[metric] for record in setting.history["sft"])
  got = evaluate(setting.params["tiger"])[metric]
  np.testing.assert_allclose(got, best, rtol=1e-6)


def test_a_run_that_was_stopped_ends_with_the_same_bytes(
  done, tmp_path, monkeypatch
):
  class Killed(Exception):
    pass

  save = loop._Fit.save

  def dies(run, batches):
    save(run, batches)
    run.checkpoints.wait()
    if run.progress.step == 12:
      raise Killed

  monkeypatch.setattr(loop._Fit, "save", dies)
  config = _config()
  with pytest.raises(Killed):
    tasks.of(config).run(config, tmp_path, tmp_path, "command")
  monkeypatch.setattr(loop._Fit, "save", save)
  tasks.of(config).run(config, tmp_path, tmp_path, "command")
  folder, _ = done
  one, two = (
    checkpoint.load_artifact(next(f.glob("sft-*")))[0]
    for f in (folder, tmp_path)
  )
  jax.tree.map(np.testing.assert_array_equal, one, two)
  same = [(f / report.REPORT).read_bytes() for f in (folder, tmp_path)]
  assert same[0] == same[1]


def test_metrics_are_those_of_the_ranks():
  items = np.full((3, judges.LISTED), PAD)
  items[:, :3] = [[4, 7, 9], [7, 4, 9], [7, 9, 4]]
  worth = judges.worth(items, np.array([4, 4, 5]))
  want = 1 / np.log2([2.0, 3.0])
  np.testing.assert_allclose(worth["ndcg@10"], [*want, 0])
  np.testing.assert_allclose(worth["recall@5"], [1, 1, 0])
  (found,) = judges.judged({"x": items}, np.array([4, 4, 5]), 6).values()
  assert found["coverage@10"] == 0.5


@pytest.mark.parametrize(
  "changes, words",
  (
    ({"stages": ("sft",)}, "tokenizer and sft"),
    ({"stages": ("tokenizer", "rl")}, "'rl'"),
    ({"data.name": "kuairand_pure"}, "amazon_beauty"),
    ({"policy.heads": 3}, "multiple"),
    ({"sft.warmup_steps": 99}, "warmup_steps=99"),
    ({"data.name": "amazon_beauty", "data.path": "/nope"}, "/nope"),
  ),
)
def test_what_cannot_run_is_refused(changes, words, tmp_path):
  config = tiger.get_config()
  with config.ignore_type():
    config.update_from_flattened_dict(TINY | changes)
  with pytest.raises(ConfigError, match=words):
    next_item_pipeline.begin(config_lib.freeze(config.to_dict()), tmp_path)


def test_a_protocol_has_one_pipeline():
  config = _config()
  assert tasks.of(config) is next_item_pipeline
  value = dataclasses.replace(config, protocol="value")
  assert tasks.of(value) is pipeline
  with pytest.raises(ConfigError, match="next_item"):
    tasks.of(dataclasses.replace(config, protocol="vibes"))
