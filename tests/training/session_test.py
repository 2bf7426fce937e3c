"""The session task: the exact world's optimum, the mask, reports, remedies."""

import functools
import json
import types as stdlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import sessions as benchmark
from configs import hsrl
from rerank_rl.config import ConfigError
from rerank_rl.evaluation import report
from rerank_rl.rl import values
from rerank_rl.simulation import session as simulation
from rerank_rl.training import runs, session, session_pipeline, tasks
from rerank_rl.training.stages import session as stage
from rerank_rl.types import Outcome, Request
from tests import toys


def _config(variant, changes):
  return toys.frozen(hsrl.get_config(variant), changes)


def _shares(config, folder):
  setting = toys.begun(config, folder)
  setting = session_pipeline.learn(setting)
  return benchmark.shares(benchmark.solve(setting, setting.params["hsrl"]))


# Half of the config's steps, by half as many users.
FEW = {"rl_train.batch_size": 16, "rl_train.steps": 500}


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
  fewer = FEW | {"rl_train.steps": 200, "rl_train.eval_every": 200}
  found = _shares(_config("trust", fewer), tmp_path)
  assert found["greedy"] <= found["myopic"] + 0.05


@pytest.fixture(scope="module")
def done(tmp_path_factory):
  folder = tmp_path_factory.mktemp("hsrl")
  config = _config("trust", toys.SESSIONS)
  tasks.of(config).run(config, folder, folder, "command")
  return folder, config


def test_the_report_holds_what_the_protocol_asks(done):
  facts = json.loads((done[0] / report.REPORT).read_text())
  assert facts["protocol"] == "session"
  systems = [row["system"] for row in facts["rows"]]
  assert systems == ["random", "ranker_order", "hsrl"]
  assert set(systems[:2]) <= set(runs.TAKEN)
  for row in facts["rows"]:
    assert row["metrics"]["requests"] == 40
    for name in ("total_reward", "discounted_reward", "slate_reward"):
      low, high = row["intervals"][name]
      assert low <= row["metrics"][name] <= high


def test_a_finished_run_is_only_judged_again(done):
  folder, config = done
  once = (folder / report.REPORT).read_bytes()
  programs = session._played._cache_size()
  session_pipeline.run(config, folder, folder, "command")
  assert (folder / report.REPORT).read_bytes() == once
  # Systems that are made anew are no others to jit.
  assert session._played._cache_size() == programs > 0


def test_a_finished_run_is_found_or_named_and_never_learnt_again(
  done, tmp_path
):
  folder, config = done
  assert tasks.finished(folder) == config
  good = json.loads((folder / "config.json").read_text())
  wrong = [{}, good | {"seed": "x"}, good | {"sede": 1}]
  assert "hsrl" in tasks.reload(config, folder).params
  with pytest.raises(ConfigError, match=r"stage 'tokenizer'.*own --artifacts"):
    tasks.reload(config, tmp_path)
  assert not list(tmp_path.iterdir())
  with pytest.raises(ConfigError, match=r"config.json is missing; finish"):
    tasks.finished(tmp_path)
  (tmp_path / "config.json").mkdir()
  (tmp_path / report.REPORT).mkdir()
  for path, read, lacking in [
    (tmp_path / "config.json", tasks.finished, map(json.dumps, wrong)),
    (tmp_path / report.REPORT, tasks.command, ["{}", '{"command": 5}']),
  ]:
    words = rf"{path} is damaged .*; remove it and give .* launch.train"
    with pytest.raises(ConfigError, match=words):
      read(tmp_path)
    path.rmdir()
    for text in ["", "[]", "null", "5", "[" * 100_000, "\xff", *lacking]:
      path.write_text(text, encoding="latin-1")
      with pytest.raises(ConfigError, match=words):
        read(tmp_path)


def test_kl_is_to_the_policys_own_average(done):
  """None at the first step, some as soon as there is a past."""
  lines = next(done[0].glob("session-*/metrics.jsonl")).read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  found = [row["kl"] for row in rows if row["split"] == "train"]
  assert abs(found[0]) < 1e-6 < found[-1]


N, K, TURNS = 8, 3, 10


def _novelty():
  """A user who likes what was not in its place a slate before, and stays."""

  def request(state):
    none, row = jnp.zeros((0,)), jnp.arange(N, dtype=jnp.int32)
    return Request(none, row, row, jnp.sin(1.0 * row), jnp.int32(K))

  def react(state, slate, key):
    other = slate != state
    answer = simulation.Answer(1.0 * other, other, jnp.int32(0))
    return slate, answer

  begin = lambda start, key: jnp.full((K,), -1, jnp.int32)
  parts = (simulation.as_is, begin, request, react)
  return simulation.Environment(*map(jax.tree_util.Partial, parts))


def test_one_user_is_enough_to_begin_with(tmp_path):
  config = _config("trust", toys.SESSIONS | {"world.num_train": 1})
  setting = toys.begun(config, tmp_path)
  twice = session.example(setting)
  assert {len(x) for x in jax.tree.leaves(twice)} == {2}


def test_the_random_system_shows_another_slate_every_turn():
  """The ranker's order, of the same program, one and the same."""
  config = stdlib.SimpleNamespace(gamma=0.9, turns=TURNS)
  users = {name: np.zeros((64, 1), np.float32) for name in ("valid", "test")}
  law = _novelty()
  setting = stdlib.SimpleNamespace(
    config=stdlib.SimpleNamespace(session=config),
    dataset=stdlib.SimpleNamespace(splits=users),
    environment=lambda split: law,
    key=lambda name: jax.random.key(len(name)),
  )
  act = session.system(session.by_weights, K)
  judge = lambda weights, split="test": session.judge(
    setting, split, act, weights
  )["total_reward"]
  np.testing.assert_array_equal(judge(session.RANKED), K)  # The first alone.
  found = judge(session.RANDOM)
  # By chance a place holds what it held once in N times.
  share = (found - K) / (K * (TURNS - 1))
  np.testing.assert_allclose(share.mean(), 1 - 1 / N, atol=0.04)
  assert len(set(found.tolist())) > 3  # Users' slates are their own.
  assert (judge(session.RANDOM, "valid") != found).any()


def test_the_random_systems_slates_are_any_whatever_the_ranker_says():
  B = 512
  row = jnp.broadcast_to(jnp.arange(N), (B, N))
  request = Request(None, row, row, 9.0 * row, None)
  show = jax.jit(session.by_weights, static_argnums=0)
  one, two = (
    np.asarray(show(K, session.RANDOM, request, jax.random.key(seed)))
    for seed in range(2)
  )
  assert (one != two).any(1).mean() > 0.9
  for place in one.T:
    share = np.bincount(place, minlength=N) / B
    np.testing.assert_allclose(share, 1 / N, atol=0.06)


def test_credit_by_hand_is_each_tokens_or_one_for_the_whole_slate():
  """Two slots of two tokens, of which the last was no choice."""
  mean = jnp.array([[[0.5, 1.0, 2.0, 9.0]]])
  real = jnp.array([[[True, True, True, False]]])
  read = values.PathValues(0 * mean, mean, real)
  per_item = jnp.array([[[1.0, 2.0]]])
  outcome = Outcome(per_item.sum(-1), per_item, jnp.array([[4.0]]))
  first = jnp.array([0.25])  # V of the state before the slate.

  @functools.partial(jax.jit, static_argnums=0)
  def given(name, trace):
    return stage.CREDIT[name](first, read, outcome, trace)[0, 0]

  # A reward falls due at its item's last token; what follows is worth 4.
  np.testing.assert_allclose(given("gae", 0.0), [0.5, 2.0, 4.0, 0.0])
  np.testing.assert_allclose(given("gae", 1.0), [6.5, 6.0, 4.0, 0.0])
  for trace in (0.0, 1.0):
    np.testing.assert_allclose(given("a2c", trace), [6.75, 6.75, 6.75, 0.0])


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"rl.group": 4}, "config.rl.group=4"),
    ({"rl.epochs": 2}, "config.rl.epochs=2"),
    ({"rl.bonus": "novelty"}, "config.rl.bonus='novelty' has no effect"),
    ({"rl.temperature": 0.5}, "config.rl.temperature=0.5 has no effect"),
    ({"rl.reward": "labels"}, "config.rl.reward='labels' has no effect"),
    ({"data.feedback": "shuffled"}, "data.feedback='shuffled' has no effect"),
    ({"demo.rule": "logged"}, "config.demo.rule='logged' has no effect"),
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
