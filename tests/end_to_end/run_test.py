"""The whole job: report, re-run, SIGKILL anywhere, all to the same bytes."""

import json
import os
import pathlib
import random
import time

from absl import app
import numpy as np
import pytest

from launch import errors
from rerank_rl.data import movielens
from rerank_rl.evaluation import report
from rerank_rl.training import runs
from tests import programs
from tests.data import movielens_test
from tests.end_to_end import micro


def _start(root, *cluster):
  return programs.Program(micro.main, (root, "whole", *cluster), 1)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
  folder = tmp_path_factory.mktemp("run")
  begin = time.monotonic()
  programs.finish(_start(folder / "calm"))
  return folder, time.monotonic() - begin


def test_the_report_holds_what_it_should(undisturbed):
  folder, _ = undisturbed
  facts = json.loads((folder / "calm" / "report.json").read_text())
  assert facts["dataset"] == "world" and facts["protocol"] == "value"
  systems = {row["system"] for row in facts["rows"]}
  assert systems >= {
    "ranker_order",
    "popularity",
    "beam_on_a",
    "glorank_sft",
    "glorank_rl",
    "sft_best16",
    "bayes_pointwise",
    "bayes_list",
    "optimum",
  }
  # A run may not take the name of a system that it is compared with.
  assert systems - {"glorank_sft", "glorank_rl"} <= set(runs.TAKEN)
  for row in facts["rows"]:
    metrics = row["metrics"]
    assert 0 < metrics["share"] <= 1.001
    np.testing.assert_allclose(
      metrics["share"] + metrics["regret"], 1, atol=1e-5
    )
    assert {"evaluator_a", "evaluator_s", "evaluator_b"} <= set(metrics)
  # The chances that A is held against are those that make the true utility.
  (slots,) = (
    found["positions"]
    for title, found in facts["calibrations"].items()
    if "glorank_rl's slates" in title
  )
  (worth,) = (
    row["metrics"]["true_utility"]
    for row in facts["rows"]
    if row["system"] == "glorank_rl"
  )
  total = sum(slot["observed"] for slot in slots)
  np.testing.assert_allclose(total, worth, rtol=1e-4)
  page = (folder / "calm" / "report.html").read_text()
  assert "http://" not in page.replace("http://www.w3.org", "")
  assert "data:image/png;base64" in page


def _same(a: pathlib.Path, b: pathlib.Path) -> None:
  for name in (report.REPORT, "config.json"):
    assert (a / name).read_bytes() == (b / name).read_bytes()
  one, two = (report.load_judgements(f / report.JUDGEMENTS) for f in (a, b))
  for system, values in one.items():
    for metric, value in values.items():
      np.testing.assert_array_equal(value, two[system][metric])


def test_killed_anywhere_the_run_ends_the_same(undisturbed):
  folder, seconds = undisturbed
  root = folder / "killed"
  moments = random.Random(0)
  for _ in range(int(os.environ.get("KILLS", "2"))):
    run = _start(root)
    # What the first run compiled the others load, in half the time.
    run.wait(moments.uniform(0.02, 0.35) * seconds)
    run.kill()
  programs.finish(_start(root))
  _same(folder / "calm", root)


def test_two_processes_make_the_same_report(undisturbed):
  """From evaluators of their own; how they learn policies: parity_test.py."""
  folder, _ = undisturbed
  root, port = folder / "two", programs.free_port()
  programs.lend(folder / "calm", root, "sft", "rl")
  programs.finish(*(_start(root, port, 2, p) for p in range(2)))
  one, two = (
    {
      row["system"]: row["metrics"]
      for row in json.loads((at / "report.json").read_text())["rows"]
    }
    for at in (folder / "calm", root)
  )
  assert one.keys() == two.keys()
  for system, metrics in one.items():
    for metric in ("true_utility", "evaluator_a", "evaluator_b"):
      np.testing.assert_allclose(
        metrics[metric], two[system][metric], rtol=1e-3
      )


def test_a_finished_run_does_no_work_again(undisturbed):
  folder, _ = undisturbed
  files = lambda: {
    p: p.stat().st_mtime_ns for p in (folder / "calm").glob("*-*/**/*")
  }
  before = files()
  programs.finish(_start(folder / "calm"))
  assert files() == before


def _train(argv: list[str]) -> None:
  # Its flags are those of this process alone.
  from launch import train

  errors.run(app, train.main)  # It reads sys.argv.


# Little of everything: the programs' size decides how long this takes.
RECOVERY = {
  "stages": "('tokenizer','sft','rl')",
  "tokenizer.levels": 2,
  "policy.head": "hpn",
  "policy.dim": 8,
  "rl.group": 2,
  **{
    f"{part}.{name}": value
    for part in ("sft", "rl_train")
    for name, value in (
      ("steps", 2),
      ("batch_size", 8),
      ("warmup_steps", 1),
      ("eval_every", 2),
    )
  },
}


def test_logged_items_are_recovered_without_an_evaluator(tmp_path):
  source, work = tmp_path / "source", tmp_path / "work"
  source.mkdir()
  movielens_test.write(source)
  argv = [
    "--config=configs/glorank_rl.py:movielens_1m,recovery,smoke",
    f"--config.data.path={source}",
    *(f"--config.{name}={value}" for name, value in RECOVERY.items()),
    f"--workdir={work}",
  ]
  programs.finish(programs.Program(_train, argv, 1))
  facts = json.loads((work / "report.json").read_text())
  assert (facts["dataset"], facts["protocol"]) == ("movielens_1m", "recovery")
  metrics = {row["system"]: row["metrics"] for row in facts["rows"]}
  assert {"glorank_sft", "glorank_rl"} <= set(metrics)
  # Beside what the set's own user would guess, the controls for leaks.
  assert {"ranker_reversed", "score_popularity_logistic"} <= set(metrics)
  assert set(metrics) - {"glorank_sft", "glorank_rl"} <= set(runs.TAKEN)
  for own in metrics.values():
    assert 0 < own["ndcg@6"] < 1 and 0 < own["precision@6"] < 1
    assert not {"true_utility", "evaluator_a", "evaluator_b"} & set(own)
  for stage in ("sft", "rl"):
    assert [seen["step"] for seen in facts["history"][stage]] == [0, 2]
    assert all(0 < seen["ndcg"] < 1 for seen in facts["history"][stage])
  # The ranker's order by hand: what is relevant was shown and clicked.
  test = movielens.load(movielens_test.config(source)).splits["test"]
  label = np.zeros(test.request.candidates.shape)
  np.put_along_axis(label, test.slate, test.feedback[..., 0], 1)
  best = np.argsort(-test.request.scores, 1, kind="stable")[:, :6]
  discount = 1 / np.log2(np.arange(6) + 2)
  got = np.take_along_axis(label, best, 1) @ discount
  ideal = -np.sort(-label, 1)[:, :6] @ discount
  wanted = (got[ideal > 0] / ideal[ideal > 0]).mean()
  np.testing.assert_allclose(
    metrics["ranker_order"]["ndcg@6"], wanted, rtol=1e-4
  )
