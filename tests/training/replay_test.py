"""The stage `replay`: whose states it keeps, what moves, that it resumes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import sessions as benchmark
from configs import dqn, hsrl
from rerank_rl.config import ConfigError, ReplayConfig
from rerank_rl.rl import agents, replay
from rerank_rl.rl.replay import Transition
from rerank_rl.simulation.session import Answer
from rerank_rl.training import replay as keeping
from rerank_rl.training import session as sessions
from rerank_rl.training import session_pipeline
from rerank_rl.training import state as states
from rerank_rl.training.stages import replay as stage
from rerank_rl.training.stages import session as session_stage
from rerank_rl.training.stages import tokenize
from rerank_rl.types import Request
from tests import toys

# Seconds, in the world of trust and on one device.
SMALL = toys.SESSIONS | {
  "rl_train.checkpoint_every": 2,
  "replay.capacity": 3,
  "replay.batch_size": 16,
  "replay.updates": 2,
}
# Policies over tokens, from replay.
AGAIN = {"session.replay": True, "rl.objective": "clipped"}


def _config(variant, changes):
  return toys.frozen(dqn.get_config(variant), changes)


def _move(params, catalogue, request, key):
  del params, catalogue, key
  rows = request.user.shape[0]
  none = jnp.zeros((rows, 0))
  return agents.Move(jnp.zeros((rows, 1), jnp.int32), none, jnp.zeros(rows))


def test_what_is_kept_after_a_leaver_is_his_own():
  """A state after is one more than the state before, also where he left."""
  limits = jnp.array([2.0, 3.0, 99.0])
  idle = agents.Agent(*[_move] * len(agents.Agent._fields))
  method = stage.Method(idle, None, "td", 0.9, 7, None, 0.0)
  play = lambda key: stage.play(method, (), (), toys.counting(), limits, key)
  seen = jax.jit(play)(jax.random.key(0))
  before, after = seen.request.user[:, 0], seen.after.user[:, 0]
  left = seen.answer.left
  assert left.sum() == 3 + 2
  np.testing.assert_array_equal(after, before + 1)
  np.testing.assert_array_equal(seen.answer.per_item[:, 0], before + 1)
  np.testing.assert_array_equal(after[left] >= 2, True)


@pytest.mark.parametrize(
  ("module", "get_config", "variant", "changes"),
  [
    (stage, dqn.get_config, "trust,disentangled", {}),
    (session_stage, hsrl.get_config, "trust", AGAIN),
  ],
  ids=["dqn", "hsrl"],
)
def test_a_killed_run_ends_with_the_same_bytes(
  module, get_config, variant, changes, tmp_path, monkeypatch
):
  """Ring and target are resumed too, or later batches would differ."""
  config = toys.frozen(get_config(variant), SMALL | changes)
  whole = session_pipeline.learn(toys.begun(config, tmp_path / "whole"))
  right, calls = module.watch, []

  def dying(setting):
    evaluate, select = right(setting)

    def once(params):
      calls.append(None)
      if len(calls) == 3:  # At step 0, at 2, and now at 4.
        raise RuntimeError("killed")
      return evaluate(params)

    return once, select

  monkeypatch.setattr(module, "watch", dying)
  setting = toys.begun(config, tmp_path / "killed")
  with pytest.raises(RuntimeError, match="killed"):
    session_pipeline.learn(setting)
  found = session_pipeline.learn(setting)
  assert len(calls) == 4
  got, want = (run.params[config.name] for run in (found, whole))
  jax.tree.map(np.testing.assert_array_equal, got, want)


def test_hsrl_looks_beyond_clicks_from_replay(tmp_path):
  fewer = {
    **AGAIN,
    "rl_train.steps": 100,
    "rl_train.eval_every": 100,
    "rl_train.batch_size": 16,
    "policy.dim": 16,
  }
  config = toys.frozen(hsrl.get_config("trust"), fewer)
  found = benchmark.greedy_shares(
    session_pipeline.learn(toys.begun(config, tmp_path))
  )
  assert found["greedy"] > found["myopic"] + 0.2


def test_of_the_target_only_the_critic_is_read(tmp_path):
  """It reads today's policy, with whose prompt the expected token is found."""
  config = toys.frozen(
    hsrl.get_config(""), SMALL | AGAIN | {"policy.head": "global"}
  )
  setting = tokenize.run(toys.begun(config, tmp_path))
  method = session_stage.make_method(setting, optax.sgd(0.1))
  rng = np.random.default_rng(0)
  noise = lambda x: x + 0.1 * rng.normal(size=x.shape)
  # A fresh critic says 0 of all.
  params = jax.tree.map(noise, session_stage.init(setting))
  other = jax.tree.map(noise, params)
  state = states.create(params, method.tx)
  start = jax.tree.map(lambda x: x[:8], setting.dataset.splits["train"])
  law, key = setting.environment("train"), jax.random.key(1)
  play = jax.jit(sessions.play, static_argnums=(0, 1))
  played = play(
    method.policy, 2, params["policy"], setting.catalogue, law, start, key
  )
  step = jax.jit(session_stage.learn, static_argnums=0)
  learn = lambda target: (
    step(method, setting.catalogue, state, target, played)[0].params
  )
  want = learn(params)
  found = learn(params | {"policy": other["policy"]})
  jax.tree.map(np.testing.assert_array_equal, found, want)
  moved = learn(params | {"critic": other["critic"]})
  far = jax.tree.map(lambda x, y: jnp.abs(x - y).max(), moved, want)
  assert max(jax.tree.leaves(far["critic"])) > 1e-4


# Two users, a table of Q and one of V; the policy would act as the first did.
BETA = jnp.array([2.0, 0.5])


def _table(which):
  def read(params, catalogue, request, *move):
    del catalogue, move
    return request.user @ params[which]

  return read


TABLES = agents.Agent(
  init=_move,
  act=_move,
  greedy=_move,
  logp=lambda params, catalogue, request, move: move.logp + jnp.log(BETA),
  quality=lambda *args: _table("q")(*args)[:, None],
  ahead=_table("q"),
  value=_table("v"),
  improve=lambda params, catalogue, batch: jnp.zeros(2),
)
PARAMS = {"q": jnp.array([1.0, 2.0]), "v": jnp.array([3.0, 4.0])}
TARGET = {"q": jnp.array([10.0, 20.0]), "v": jnp.array([30.0, 40.0])}


def _batch():
  """The first user stays and changes with the second, who leaves."""
  none = jnp.zeros((2, 1), jnp.int32)
  request = lambda user: Request(user, none, none, 1.0 * none, none[:, 0])
  return Transition(
    request(jnp.eye(2)),
    agents.Move(none, jnp.zeros((2, 0)), jnp.zeros(2)),
    Answer(
      jnp.array([[0.5], [0.25]]), jnp.ones((2, 1), bool), jnp.array([0, 1])
    ),
    request(jnp.eye(2)[::-1]),
  )


def _method(difference, **changes):
  config = ReplayConfig(batch_size=64, **changes)
  return stage.Method(TABLES, config, difference, 0.9, 1, optax.sgd(0.1), 0.0)


def _grads(difference, **changes):
  learn = stage.DIFFERENCE[difference]
  method = _method(difference, **changes)
  loss = lambda params: sum(
    one.total / one.denominator
    for one in learn(method, params, TARGET, (), _batch())
  )
  return jax.grad(loss)(PARAMS)


def test_td_bootstraps_from_the_target_where_users_stay():
  grads = _grads("td")
  want = [1 - (0.5 + 0.9 * 20), 2 - 0.25]
  np.testing.assert_allclose(grads["q"], want, rtol=1e-6)
  np.testing.assert_array_equal(grads["v"], [0, 0])


def test_disentangled_values_learn_from_q_by_each_samples_beta():
  grads = _grads("disentangled")
  want = [1 - (0.5 + 0.9 * 40), 2 - 0.25]
  np.testing.assert_allclose(grads["q"], want, rtol=1e-6)
  # Averaged first, both errors would have the same weight.
  np.testing.assert_allclose(grads["v"], BETA * jnp.array([2, 2]), rtol=1e-6)
  clipped = _grads("disentangled", clip=1.0)
  np.testing.assert_allclose(clipped["v"], [2, 1], rtol=1e-6)


def test_an_update_moves_the_target_by_tau():
  state = states.create(PARAMS, optax.sgd(0.1))
  own = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
  ring = replay.empty(2, _batch())
  state = keeping.ReplayState(**own, target=TARGET, ring=ring)
  method = _method("td", tau=0.25, updates=1)
  update = functools.partial(stage._update, method, ())
  key = jax.random.key(0)
  after, _ = keeping.step(method.config, update, state, _batch(), key)
  assert after.ring.count == 1
  assert np.abs(after.params["q"] - PARAMS["q"]).max() > 0.1
  for name, old in TARGET.items():
    want = old + 0.25 * (after.params[name] - old)
    np.testing.assert_allclose(after.target[name], want, rtol=1e-6)


def test_dqn_looks_beyond_clicks(tmp_path):
  """A third of its config's steps."""
  fewer = {
    "rl_train.steps": 100,
    "rl_train.eval_every": 100,
    "replay.updates": 4,
    "policy.dim": 16,
  }
  setting = toys.begun(_config("trust", fewer), tmp_path)
  found = benchmark.greedy_shares(session_pipeline.learn(setting))
  assert found["greedy"] > found["myopic"] + 0.2


@pytest.mark.parametrize("name", ("dqn", "hac"))
def test_an_agent_asked_for_again_is_no_other_to_jit(name, tmp_path):
  config = _config("", SMALL | {"replay.agent": name})
  setting = toys.begun(config, tmp_path)
  assert stage.agent_of(setting) == stage.agent_of(setting)


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"replay.agent": "sac"}, "config.replay.agent='sac'.*dqn, ddpg, hac"),
    ({"session.difference": "mc"}, "difference='mc'.*td, disentangled"),
    ({"stages": ("tokenizer", "session", "replay")}, "one of session, replay"),
    (
      {"session.replay": True, "stages": ("tokenizer", "session")},
      "reinforce.*use clipped",
    ),
    ({"session.replay": True}, "config.session.replay=True has no effect"),
    (
      {"session.difference": "disentangled", "policy.head": "pointer"}
      | {"stages": ("tokenizer", "supervised")},
      "config.session.difference='disentangled' has no effect",
    ),
    ({"replay.tau": 0.0}, "config.replay.tau=0.0"),
    ({"replay.epsilon": 0.0}, "config.replay.epsilon=0.0"),
    ({"rl_train.warmup_steps": 500}, "config.rl_train.warmup_steps=500"),
  ],
)
def test_what_replay_lacks_is_refused(changes, words):
  with pytest.raises(ConfigError, match=words):
    session_pipeline.check(_config("", changes))
