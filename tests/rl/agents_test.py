"""Agents: slates are top-K, what they see, what their losses move."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rerank_rl.config import PolicyConfig, ReplayConfig, SessionConfig
from rerank_rl.rl import agents, offpolicy
from rerank_rl.rl.replay import Transition
from rerank_rl.simulation.session import Answer
from rerank_rl.types import PAD
from tests import toys

K = toys.SIZES.slots
CONFIG = ReplayConfig(epsilon=0.5, noise=0.4)
SESSION = SessionConfig(gamma=0.9, turns=3)
CATALOGUE = toys.catalogue()
REQUEST = toys.request()
# Rows with at least K candidates.
REQUEST = jax.tree.map(lambda x: x[jnp.array([0, 1, 3])], REQUEST)


@functools.cache
def _agent(name):
  """(agent whose functions are jitted, params far from their start)."""
  policy = PolicyConfig(dim=16, layers=1)
  made = agents.AGENTS[name](policy, toys.SIZES, SESSION, CONFIG)
  made = agents.Agent(*map(jax.jit, made))
  params = made.init(jax.random.key(0), CATALOGUE, REQUEST)
  return made, toys.scaled(params, 1.3, 0.05)


@functools.cache
def _move(name):
  agent, params = _agent(name)
  return agent.act(params, CATALOGUE, REQUEST, jax.random.key(1))


@pytest.mark.parametrize("name", agents.AGENTS)
def test_slates_hold_distinct_candidates(name):
  agent, params = _agent(name)
  greedy = agent.greedy(params, CATALOGUE, REQUEST)
  for slate in (greedy, _move(name).slate):
    assert slate.dtype == jnp.int32
    shown = np.take_along_axis(np.asarray(REQUEST.candidates), slate, axis=1)
    assert (shown != PAD).all()
    assert all(len(set(row)) == K for row in shown.tolist())


@pytest.mark.parametrize("name", agents.AGENTS)
def test_the_density_on_record_is_the_policys(name):
  agent, params = _agent(name)
  move = _move(name)
  again = agent.logp(params, CATALOGUE, REQUEST, move)
  np.testing.assert_allclose(move.logp, again, rtol=1e-4)


@pytest.mark.parametrize("name", agents.AGENTS)
def test_values_see_the_action(name):
  agent, params = _agent(name)
  move = _move(name)
  slate = jnp.broadcast_to(jnp.arange(K), (3, K))
  other = slate.at[:, 2].set(3)
  one = move.replace(slate=slate)
  two = move.replace(slate=other, point=move.point + 0.5)
  value = lambda move: agent.quality(params, CATALOGUE, REQUEST, move)
  assert np.abs(value(one) - value(two)).min() > 1e-5


def test_what_v_is_fitted_to_moves_nothing_of_q():
  """Else the disentangled TD would pull at what Q reads of a user.

  All agents that act on points have one critic.
  """
  agent, params = _agent("hac")
  whole = lambda of: lambda p: of(p, CATALOGUE, REQUEST).sum()
  moves = jax.jit(jax.grad(whole(agent.value)))(params)
  moved = jax.tree.map(jnp.add, params, moves)
  for same in (
    agent.ahead,
    functools.partial(agent.quality, move=_move("hac")),
  ):
    before, after = (same(p, CATALOGUE, REQUEST) for p in (params, moved))
    np.testing.assert_array_equal(before, after)
  apart = whole(agent.value)(moved) - whole(agent.value)(params)
  assert abs(apart) > 1e-3


@pytest.mark.parametrize("name", agents.AGENTS)
def test_the_rankers_scores_count_as_much_as_was_learnt(name):
  """With a heavy weight on them, slates are the ranker's order."""
  agent, params = _agent(name)
  params = jax.tree.map(jnp.copy, params)
  if "actor" in params:
    down = params["actor"]["down"]
    down["kernel"] = jnp.zeros_like(down["kernel"])
    down["bias"] = jnp.zeros_like(down["bias"]).at[-1].set(9.0)
  else:
    params["critic"]["prior"] = jnp.float32(1e4)
  slate = agent.greedy(params, CATALOGUE, REQUEST)
  real = REQUEST.candidates != PAD
  order = jnp.argsort(-jnp.where(real, REQUEST.scores, -1e9), axis=1)
  np.testing.assert_array_equal(slate, order[:, :K])


def test_dqns_best_slate_is_the_best_of_all():
  agent, params = _agent("dqn")
  one = jax.tree.map(lambda x: x[:1], REQUEST)
  every = jnp.asarray(toys.every_slate())
  wide = jax.tree.map(
    lambda x: jnp.broadcast_to(x, (len(every), *x.shape[1:])), one
  )
  none = jnp.zeros((len(every), 0))
  move = agents.Move(every, none, none)
  worth = agent.quality(params, CATALOGUE, wide, move)[:, 0]
  ahead = agent.ahead(params, CATALOGUE, one)
  np.testing.assert_allclose(ahead[0], worth.max(), rtol=1e-5)


@pytest.mark.parametrize("name", ["ddpg", "hac"])
def test_the_density_of_points_is_gaussian(name):
  agent, params = _agent(name)
  move = _move(name)
  keys = jax.random.split(jax.random.key(3), 400)
  act = jax.vmap(agent.act, (None, None, None, 0))
  points = act(params, CATALOGUE, REQUEST, keys).point
  np.testing.assert_allclose(points.std(0), CONFIG.noise, rtol=0.25)
  want = offpolicy.gaussian_log_density(
    move.point, points.mean(0), CONFIG.noise
  )
  np.testing.assert_allclose(move.logp, want, atol=1.5)


@pytest.mark.parametrize("name", ["ddpg", "hac", "a2c"])
def test_the_actor_climbs_the_critic_and_does_not_bend_it(name):
  agent, params = _agent(name)
  none = jnp.zeros((3, K))
  answer = Answer(none, none > 0, jnp.zeros((3,), jnp.int32))
  batch = Transition(REQUEST, _move(name), answer, REQUEST)
  loss = lambda params: agent.improve(params, CATALOGUE, batch).sum()
  grads = jax.jit(jax.grad(loss))(params)
  head = grads["critic"]["pair"]
  assert all(np.abs(x).max() == 0 for x in jax.tree.leaves(head))
  actor = grads["actor"]["down"]["kernel"]
  assert np.abs(actor).max() > 1e-6


def test_hac_values_slates_and_points_by_one_function():
  agent, params = _agent("hac")
  found = agent.quality(params, CATALOGUE, REQUEST, _move("hac"))
  assert found.shape == (3, 2)


def test_a2c_makes_likelier_what_did_better_than_foretold():
  """By -beta A grad log pi, A with nothing beyond a leaver."""
  agent, params = _agent("a2c")
  move, left = _move("a2c"), jnp.array([0, 1, 0])
  foretold = agent.ahead(params, CATALOGUE, REQUEST)
  now = jnp.where(left > 0, foretold, (1 - SESSION.gamma) * foretold)

  def pull(better):
    """The gradient when every slate was worth `better` more than that."""
    per_item = jnp.broadcast_to((now[:, None] + better) / K, (3, K))
    answer = Answer(per_item, per_item > 0, left)
    batch = Transition(REQUEST, move, answer, REQUEST)
    loss = lambda params: agent.improve(params, CATALOGUE, batch).sum()
    return jax.grad(loss)(params)["actor"]

  logp = lambda params: agent.logp(params, CATALOGUE, REQUEST, move).sum()
  want = jax.grad(logp)(params)["actor"]
  got = jax.tree.map(np.subtract, *jax.device_get((pull(1.5), pull(0.0))))
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(
      x, -1.5 / SESSION.unit * y, rtol=2e-3, atol=2e-4
    ),
    got,
    want,
  )
