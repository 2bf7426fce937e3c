"""The next-item task: a run of seconds, its report, and its remedies."""

import itertools
import json
import shutil

import jax
import numpy as np
import pytest

from configs import tiger
from rerank_rl.config import ConfigError
from rerank_rl.evaluation import next_item as judges
from rerank_rl.evaluation import report
from rerank_rl.training import (
  checkpoint,
  next_item,
  next_item_pipeline,
  pipeline,
  runs,
  tasks,
)
from rerank_rl.types import PAD
from tests import toys

ITEMS, USERS = 27, 150
TINY = {
  "policy.dim": 16,
  "policy.layers": 1,
  "next_item.history": 6,
  "next_item.dropout": 0.0,
  "next_item.item_dropout": 0.0,
  "sft.steps": 60,
  "sft.batch_size": 16,
  "sft.warmup_steps": 5,
  "sft.learning_rate": 0.03,
  "sft.ema": 0.9,
  "sft.eval_every": 30,
  "sft.checkpoint_every": 30,
}


def _config(changes):
  return toys.frozen(tiger.get_config(), TINY | changes)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  """Users who go round one random cycle of all items, from anywhere."""
  folder = tmp_path_factory.mktemp("cycle")
  random = np.random.default_rng(0)
  cycle, lines = random.permutation(ITEMS) + 1, []
  for user in range(USERS):
    at = random.integers(ITEMS) + np.arange(random.integers(4, 14))
    lines.append(" ".join(map(str, [user, *cycle[at % ITEMS]])))
  (folder / "sequences.txt").write_text("\n".join(lines))
  codes = itertools.product(range(3), repeat=3)
  tokens = [[f"<{x}_{c}>" for x, c in zip("abc", sid)] for sid in codes]
  text = json.dumps({str(i): sid for i, sid in enumerate(tokens)})
  (folder / "semantic_ids_4x256.json").write_text(text)
  return _config({"data.name": "amazon_beauty", "data.path": str(folder)})


@pytest.fixture(scope="module")
def done(config, tmp_path_factory):
  folder = tmp_path_factory.mktemp("tiger")
  tasks.of(config).run(config, folder, folder, "command")
  return folder, json.loads((folder / report.REPORT).read_text())


def test_the_report_holds_what_the_protocol_asks(done):
  folder, facts = done
  assert facts["protocol"] == "next_item"
  want = {f"{m}@{k}" for m in ("recall", "ndcg") for k in (5, 10, 50)}
  for row in facts["rows"]:
    assert want | {"coverage@10"} <= set(row["metrics"])
    assert row["metrics"]["requests"] == USERS
    assert row["metrics"]["recall@50"] == 1  # The catalogue is smaller.
  assert (folder / report.PAGE).exists()
  steps = [record["step"] for record in facts["history"]["sft"]]
  assert steps == [0, 30, 60]


def test_what_follows_is_learnt_where_popularity_is_lost(done):
  rows = {row["system"]: row["metrics"] for row in done[1]["rows"]}
  assert set(rows) - {"tiger"} <= set(runs.TAKEN)
  assert rows["tiger"]["ndcg@5"] > 0.9
  assert rows["popularity"]["ndcg@5"] < 0.3


def test_the_best_checkpoint_is_kept(config, done):
  setting = next_item_pipeline.learn(next_item_pipeline.begin(config, done[0]))
  evaluate, (metric, more) = next_item.selection(setting)
  assert (metric, more) == ("ndcg@10", True)
  best = max(record[metric] for record in setting.history["sft"])
  got = evaluate(setting.params["tiger"])[metric]
  np.testing.assert_allclose(got, best, rtol=1e-6)


def test_a_run_resumes_from_its_checkpoint_to_the_same_bytes(
  config, done, tmp_path
):
  folder = tmp_path / "resumed"
  shutil.copytree(done[0], folder)
  (sft,) = folder.glob("sft-*")
  (sft / "meta.json").unlink()  # As if killed after step 30.
  shutil.rmtree(sft / "checkpoints" / "60")
  tasks.of(config).run(config, folder, folder, "command")
  one, two = (
    checkpoint.load_artifact(next(f.glob("sft-*")))[0]
    for f in (done[0], folder)
  )
  jax.tree.map(np.testing.assert_array_equal, one, two)
  same = [(f / report.REPORT).read_bytes() for f in (done[0], folder)]
  assert same[0] == same[1]


def test_items_of_the_world_get_semantic_ids(tmp_path):
  world = {
    "world.num_items": 60,
    "world.num_candidates": 6,
    "world.slate_size": 2,
    "world.num_train": 40,
    "world.history_size": 6,
    "tokenizer.codes": 8,
    "tokenizer.iterations": 2,
  }
  setting = next_item_pipeline.begin(_config(world), tmp_path)
  setting = next_item_pipeline.semantic_ids(setting)
  assert setting.tree.order.shape == (60,)
  assert "tokenizer" in setting.identity


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
    ({"stages": ("tokenizer", "rl")}, "tokenizer and sft"),
    ({"stages": ("tokenizer", "sft", "critic")}, "'critic'"),
    ({"data.name": "kuairand_pure"}, "amazon_beauty"),
    ({"policy.heads": 3}, "multiple"),
    ({"sft.warmup_steps": 60}, "warmup_steps=60"),
    ({"data.name": "amazon_beauty", "data.path": "/nope"}, "/nope"),
  ),
)
def test_what_cannot_run_is_refused(changes, words, tmp_path):
  with pytest.raises(ConfigError, match=words):
    next_item_pipeline.begin(_config(changes), tmp_path)


def test_a_protocol_has_one_pipeline():
  assert tasks.of(_config({})) is next_item_pipeline
  assert tasks.of(_config({"protocol": "value"})) is pipeline
  with pytest.raises(ConfigError, match="next_item"):
    tasks.of(_config({"protocol": "vibes"}))
