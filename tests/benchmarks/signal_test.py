"""The learning signal's yardstick against the exact policy gradient."""

import types as stdlib

import jax
from jax import flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import signal
from rerank_rl.decoding import sample
from rerank_rl.rl import learner
from rerank_rl.types import Impression, Outcome
from tests import toys


def _batch():
  """Requests whose five candidates are all there."""
  request = jax.tree.map(lambda x: x[jnp.array([0, 3])], toys.request())
  slate = jnp.zeros((2, toys.SIZES.slots), jnp.int32)
  nothing = slate.astype(jnp.float32)
  return Impression(
    request, slate, nothing[..., None], nothing, jnp.zeros((2, 0))
  )


def _reward(impression, slate):
  reward = jnp.sin(slate @ jnp.array([5.0, 3.0, 1.0]))
  return Outcome(reward, jnp.zeros(slate.shape), 0 * reward)


def _scaled(impression, slate):
  out = _reward(impression, slate)
  reward = out.reward * impression.hidden
  # Each slot has its share, so that what is to come tells slates apart.
  per_item = jnp.broadcast_to(reward[..., None], slate.shape) / slate.shape[2]
  return out.replace(reward=reward, per_item=per_item)


def _few(monkeypatch, rollouts):
  for name, value in (("ROLLOUTS", rollouts), ("_BLOCK", 128), ("_CHUNK", 2)):
    monkeypatch.setattr(signal, name, value)


def test_many_rollouts_come_to_the_exact_gradient(monkeypatch):
  _few(monkeypatch, 1024)
  policy, params = toys.policy("global")
  catalogue = toys.catalogue()
  batch = jax.tree.map(lambda x: x[:1], _batch())
  every = jnp.asarray(toys.every_slate())[None]

  def expected(params):
    game = sample.prepare(policy, params, catalogue, batch.request)
    scores = learner.score_slates(policy, params, game, every)
    p = jnp.exp(scores.logp.sum(-1))
    return -(p * _reward(batch, every).reward).sum(), p.sum()

  grad, total = jax.jit(jax.grad(expected, has_aux=True))(params)
  np.testing.assert_allclose(total, 1, atol=1e-4)
  exact = flatten_util.ravel_pytree(grad)[0]
  sampled = jax.jit(
    lambda p: signal.true_gradient(
      policy, p, catalogue, _reward, batch, jax.random.key(0)
    )
  )(params)
  assert signal.cosine(sampled, exact) > 0.9


def test_a_signal_points_where_many_rollouts_do(monkeypatch):
  _few(monkeypatch, 256)
  policy, params = toys.policy("global")
  chains = signal.ways(policy, None, 0.9)["chains"]
  # A critic may see a signal where all slates are worth the same.
  plain = {k: f for k, f in chains.credits.items() if k != "critic"}
  todo = {"chains": chains._replace(credits=plain)}
  setting = stdlib.SimpleNamespace(
    policy=policy,
    catalogue=toys.catalogue(),
    key=lambda name: jax.random.key(0),
  )
  # All slates of the second request are worth the same.
  batch = _batch().replace(hidden=jnp.array([[1.0], [0.0]]))
  reward = jax.tree_util.Partial(_scaled)
  cosines, silent = signal.measure(setting, todo, params, reward, batch)
  assert cosines.shape == silent.shape == (2, len(signal.names(todo)))
  assert (0.2 < cosines[0]).all() and (cosines[0] < 1).all()
  assert (silent[0] == 0).all()
  assert (cosines[1] == 0).all() and (silent[1] == 1).all()


def test_a_tree_that_spends_more_than_the_chains_is_refused(monkeypatch):
  policy, _ = toys.policy("global")
  # As in the default world: 16 x 17 tokens.
  six = policy._replace(slots=6)
  assert len(signal.ways(six, None, 0.9)) > 1
  monkeypatch.setattr(signal, "GROUP", 8)
  with pytest.raises(ValueError, match=r"feeds \d+ tokens of 136"):
    signal.ways(six, None, 0.9)


def test_cosine():
  one, two = jnp.array([3.0, 4.0]), jnp.array([4.0, 3.0])
  np.testing.assert_allclose(signal.cosine(one, two), 24 / 25, rtol=1e-6)
  np.testing.assert_allclose(signal.cosine(one, -one), -1, rtol=1e-6)
  assert signal.cosine(one, 0 * one) == 0
