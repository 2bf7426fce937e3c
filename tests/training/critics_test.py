"""Critics of sessions: the disentangled TD, weights, what follows a slate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import hsrl
from rerank_rl.config import ReplayConfig, SessionConfig
from rerank_rl.decoding import sample
from rerank_rl.rl import learner
from rerank_rl.simulation import session as simulation
from rerank_rl.simulation.session import Answer
from rerank_rl.training import critics
from rerank_rl.training import session as sessions
from rerank_rl.training.stages import session as stage
from rerank_rl.training.stages import tokenize
from rerank_rl.world import trust
from tests import toys


def test_disentangled_values_learn_from_q_and_q_from_what_came(tmp_path):
  """The mean of (Q - G)^2 + beta (V - sg Q)^2, each sample with its beta."""
  config = toys.frozen(hsrl.get_config("trust,disentangled"), toys.SESSIONS)
  setting = tokenize.run(toys.begun(config, tmp_path))
  params = stage.init(setting)
  assert set(params) == {"policy", "critic", "quality"}
  method = stage.make_method(setting, None)
  request = jax.vmap(trust.request)(jnp.arange(4))
  slate = jnp.array([[0, 1], [2, 5], [7, 3], [1, 6]])
  value, to_come = jnp.array([[1.0, 2.0, 3.0, 4.0], [5.0, 1.0, 0.0, 2.0]])
  beta = jnp.array([1.0, 0.5, 2.0, 1.0])

  def read(params):
    args = method, params, setting.catalogue, request, slate
    quality = critics.slate_value(*args)
    losses = lambda v, p: critics.disentangled(
      method, p, *args[2:], v, to_come, beta
    )
    fit = lambda p: (critics.slate_value(method, p, *args[2:]) - to_come) ** 2
    return (
      quality,
      losses(value, params),
      jax.grad(losses, (0, 1))(value, params),
      jax.grad(lambda p: fit(p).mean())(params),
    )

  # Values start at nothing: move them.
  params = toys.scaled(params, 1, 0.05)
  quality, loss, (by_value, by_params), want = jax.jit(read)(params)
  total = (quality - to_come) ** 2 + beta * (value - quality) ** 2
  np.testing.assert_allclose(loss, total.mean(), rtol=1e-5)
  want_value = 2 * beta * (value - quality) / 4
  np.testing.assert_allclose(by_value, want_value, rtol=1e-5)
  close = lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5)
  jax.tree.map(close, by_params, want)


def test_a_slate_weighs_what_todays_policy_makes_of_it(tmp_path):
  """exp of the difference of log-probabilities, at most `replay.clip`."""
  config = toys.frozen(hsrl.get_config(""), toys.SESSIONS)
  setting = tokenize.run(toys.begun(config, tmp_path))
  policy, catalogue = setting.policy, setting.catalogue
  once = jax.jit(policy.init)(
    jax.random.key(0), catalogue, sessions.example(setting)
  )
  today = toys.scaled(once, 1.5)
  start = jax.tree.map(lambda x: x[:8], setting.dataset.splits["train"])
  law, key = setting.environment("train"), jax.random.key(1)
  play = jax.jit(sessions.play, static_argnums=(0, 1))
  played = play(policy, 1, once, catalogue, law, start, key)
  request, tree = jax.tree.map(lambda x: x[0], (played.request, played.record))

  @jax.jit
  def scored(params):
    game = sample.prepare(policy, params, catalogue, request)
    return learner.score_slates(policy, params, game, tree.slate)

  before, after = scored(once), scored(today)
  method = stage.make_method(setting, None)
  same = critics.importance(method, tree, before)
  np.testing.assert_allclose(same, 1, atol=1e-4)
  ratio = np.exp((after.logp - before.logp).sum((1, 2)))
  clip = float(np.median(ratio))
  method = method._replace(replay=ReplayConfig(clip=clip))
  found = critics.importance(method, tree, after)
  np.testing.assert_allclose(found, np.minimum(ratio, clip), rtol=1e-4)
  assert (ratio < 0.99 * clip).any() and (ratio > 1.01 * clip).any()


def test_what_the_policy_would_not_show_now_is_not_looked_through():
  """A slate of weight 0 cuts what follows it; none counts more than once."""
  reward = jnp.array([[[1.0]], [[2.0]]])
  answer = Answer(reward, reward > 0, jnp.zeros((2, 1), int))
  played = simulation.Turns(None, None, answer, None)
  session = SessionConfig(gamma=0.9, decay=0.5)
  method = critics.Method(*[None] * 3, session, *[None] * 4)
  value, beyond = jnp.array([[0.0], [8.0]]), jnp.array([16.0])

  def first(weight):
    weights = jnp.array([[1.0], [weight]])
    found = critics.outcome_of(method, played, value, beyond, weights)
    return float(found.bootstrap[0, 0, 0])

  assert first(0.0) == pytest.approx(0.9 * 8)
  on_policy = 0.9 * (4 + 0.5 * (2 + 0.9 * 16))
  assert first(1.0) == first(3.0) == pytest.approx(on_policy)
