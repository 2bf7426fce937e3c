"""The session task: the exact world's optimum, the mask, reports, remedies."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import sessions as benchmark
from configs import hsrl
from rerank_rl.config import ConfigError
from rerank_rl.evaluation import report
from rerank_rl.rl import values
from rerank_rl.training import mesh, session_pipeline, tasks
from rerank_rl.training.stages import session as stage
from rerank_rl.training.stages import tokenize
from rerank_rl.world import trust
from tests import toys


def _config(variant, changes):
  return toys.frozen(hsrl.get_config(variant), changes)


def _shares(config, folder):
  one = mesh.make(jax.devices()[:1])
  setting = session_pipeline.begin(config, folder, one)
  setting = session_pipeline.learn(setting)
  return benchmark.shares(benchmark.solve(setting, setting.params["hsrl"]))


# As many steps as the config's, by half as many users.
FEW = {"rl_train.batch_size": 16}


def test_hsrl_finds_what_pays_in_the_long_run(tmp_path):
  """Most of a world's optimum in which greed for clicks has half of it."""
  found = _shares(_config("trust", FEW), tmp_path)
  assert found["myopic"] <= 0.7
  assert found["greedy"] >= 0.97
  assert found["critic's error"] <= 0.05


def test_bootstrapping_at_terminals_instead_is_myopic(tmp_path, monkeypatch):
  """The mistake of public code: V(s') where the user left, and only there."""
  right = values.across_slates
  wrong = lambda reward, left, *rest: right(reward, ~left, *rest)
  monkeypatch.setattr(values, "across_slates", wrong)
  fewer = FEW | {"rl_train.steps": 300, "rl_train.eval_every": 300}
  found = _shares(_config("trust", fewer), tmp_path)
  assert found["greedy"] <= found["myopic"] + 0.05


@pytest.fixture(scope="module")
def done(tmp_path_factory):
  folder = tmp_path_factory.mktemp("hsrl")
  config = _config("", toys.SESSIONS)
  tasks.of(config).run(config, folder, folder, "command")
  return folder, config


def test_the_report_holds_what_the_protocol_asks(done):
  facts = json.loads((done[0] / report.REPORT).read_text())
  assert facts["protocol"] == "session"
  systems = [row["system"] for row in facts["rows"]]
  assert systems == ["random", "ranker_order", "hsrl"]
  for row in facts["rows"]:
    assert row["metrics"]["requests"] == 40
    for name in ("total_reward", "discounted_reward", "slate_reward"):
      low, high = row["intervals"][name]
      assert low <= row["metrics"][name] <= high


def test_a_finished_run_is_only_judged_again(done):
  folder, config = done
  once = (folder / report.REPORT).read_bytes()
  session_pipeline.run(config, folder, folder, "command")
  assert (folder / report.REPORT).read_bytes() == once


def test_kl_is_to_the_policys_own_average(done):
  """None at the first step, some as soon as there is a past."""
  lines = next(done[0].glob("session-*/metrics.jsonl")).read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  found = [row["kl"] for row in rows if row["split"] == "train"]
  assert abs(found[0]) < 1e-6 < found[-1]


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"rl.group": 4}, "config.rl.group=4"),
    ({"rl.epochs": 2}, "config.rl.epochs=2"),
    ({"rl.credit": "group"}, "config.rl.credit='group'"),
    ({"rl.explore": "beam"}, "config.rl.explore='beam'"),
    ({"stages": ("tokenizer",)}, "tokenizer and one of session"),
    ({"session.difference": "mc"}, "config.session.difference='mc'"),
    ({"data.name": "movielens_1m"}, "add response to config.stages"),
    ({"data.name": "amazon_beauty"}, "config.data.name='amazon_beauty'"),
    (
      {"data.name": "trust", "stages": ("tokenizer", "response", "session")},
      "no log to learn",
    ),
    ({"session.users": "ensemble"}, "learnt from a log: add response"),
    (
      {
        "session.users": "crowd",
        "stages": ("tokenizer", "response", "session"),
      },
      "config.session.users='crowd'; choose",
    ),
    (
      {
        "response.members": 2,
        "stages": ("tokenizer", "response", "session"),
      },
      "config.response.members=2",
    ),
  ],
)
def test_what_sessions_lack_is_refused(changes, words):
  with pytest.raises(ConfigError, match=words):
    session_pipeline.check(_config("", changes))


def test_disentangled_values_learn_from_q_and_q_from_what_came(tmp_path):
  """The mean of (Q - G)^2 + beta (V - sg Q)^2, each sample with its beta."""
  config = _config("trust,disentangled", toys.SESSIONS)
  one = mesh.make(jax.devices()[:1])
  setting = tokenize.run(session_pipeline.begin(config, tmp_path, one))
  params = stage.init(setting)
  assert set(params) == {"policy", "critic", "quality"}
  method = stage.make_method(setting, None)
  request = jax.vmap(trust.request)(jnp.arange(4))
  slate = jnp.array([[0, 1], [2, 5], [7, 3], [1, 6]])
  value, to_come = jnp.array([[1.0, 2.0, 3.0, 4.0], [5.0, 1.0, 0.0, 2.0]])
  beta = jnp.array([1.0, 0.5, 2.0, 1.0])

  def read(params):
    args = method, params, setting.catalogue, request, slate
    quality = stage.slate_value(*args)
    losses = lambda v, p: stage.disentangled(
      method, p, *args[2:], v, to_come, beta
    )
    fit = lambda p: (stage.slate_value(method, p, *args[2:]) - to_come) ** 2
    return (
      quality,
      losses(value, params),
      jax.grad(losses, (0, 1))(value, params),
      jax.grad(lambda p: fit(p).mean())(params),
    )

  # Values start at nothing: move them.
  params = jax.tree.map(lambda x: x + 0.05, params)
  quality, loss, (by_value, by_params), want = jax.jit(read)(params)
  total = (quality - to_come) ** 2 + beta * (value - quality) ** 2
  np.testing.assert_allclose(loss, total.mean(), rtol=1e-5)
  want_value = 2 * beta * (value - quality) / 4
  np.testing.assert_allclose(by_value, want_value, rtol=1e-5)
  close = lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5)
  jax.tree.map(close, by_params, want)
