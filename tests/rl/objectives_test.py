"""Credit and objectives against hand calculation, and merged = unmerged."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rerank_rl.decoding import tree
from rerank_rl.rl import credit, objectives
from tests import toys


@functools.cache
def _play():
  return _played(*toys.policy("global"))


def _played(policy, params):
  chains = toys.chains(policy, params, jax.random.key(0))
  return policy, params, chains, toys.outcome(chains)


def _scored(params):
  """Scores of the slates that `_play` made, by other parameters."""
  policy, _, chains, _ = _play()
  return toys.scores(policy, params, toys.request(), chains.slate)


def _loss(policy, params, t, outcome, objective):
  scores = toys.scores(policy, params, toys.request(), t.slate)
  given = credit.group(t, outcome)
  main = objective(t, scores, given, 0.05)
  wide = objectives.weighted(t, objectives.entropy(scores))
  return main.total / main.denominator + 0.1 * wide.total / wide.denominator


@pytest.mark.parametrize(
  "objective",
  (
    objectives.clipped,
    objectives.reinforce,
    objectives.reference,
    objectives.uniform_q,
  ),
)
def test_merged_and_unmerged_trees_give_one_gradient(objective):
  with jax.enable_x64(True):
    policy, params = toys.wide_policy("global")
    _, _, chains, outcome = _played(policy, params)
    # Away from the sampling policy, so that clipping acts.
    moved = toys.scaled(params, 1.05)
    grad = jax.jit(
      jax.grad(lambda p, t: _loss(policy, p, t, outcome, objective))
    )
    one, two = grad(moved, chains), grad(moved, tree.merge(chains))
  assert max(np.abs(g).max() for g in jax.tree.leaves(one)) > 0.01
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-9)


def test_centred_credit_keeps_what_is_at_stake():
  _, _, chains, outcome = _play()
  given, usual = (f(chains, outcome) for f in (credit.centred, credit.group))
  std = np.asarray(outcome.reward).std(axis=1, keepdims=True)
  assert np.ptp(std) > 0.01
  np.testing.assert_allclose(given.leaf, usual.leaf * (std + 1e-4), atol=1e-5)
  for field in ("positive", "negative"):
    np.testing.assert_allclose(
      getattr(given, field), getattr(usual, field) * (std + 1e-4), atol=1e-5
    )


def test_clipped_equals_the_usual_minimum():
  _, params, chains, outcome = _play()
  scores = _scored(toys.scaled(params, 1.05))
  got = objectives.clipped(chains, scores, credit.group(chains, outcome), 0.1)
  r = np.exp(scores.logp - tree.on_path(chains, chains.logp_old))
  a = np.asarray(credit.normalise(outcome.reward, tree.found(chains)))[
    ..., None
  ]
  real = np.asarray(chains.path >= 0)
  each = np.minimum(r * a, np.clip(r, 0.9, 1.1) * a) * real / 16
  assert (np.abs(r - 1) > 0.1)[real].any()
  np.testing.assert_allclose(got.total, -each.sum(), rtol=1e-4)
  np.testing.assert_allclose(got.denominator, real.sum() / 16, rtol=1e-5)


def test_rovers_first_gradient_is_twice_reinforce():
  policy, params, chains, outcome = _play()

  def loss(params, objective, given):
    scores = toys.scores(policy, params, toys.request(), chains.slate)
    out = objective(chains, scores, given, 0.2)
    return out.total / out.denominator

  grad = jax.jit(jax.grad(loss), static_argnums=1)
  given = credit.centred(chains, outcome)
  with jax.default_matmul_precision("highest"):
    one = grad(params, objectives.uniform_q, given)
    two = grad(params, objectives.reinforce, given)
  size = max(np.abs(g).max() for g in jax.tree.leaves(two))
  assert size > 0.01
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
    np.testing.assert_allclose(a, 2 * np.asarray(b), atol=1e-4 * size)


def test_uniform_q_equals_its_definition():
  _, params, chains, outcome = _play()
  moved = toys.scaled(params, 1.05)
  new, old = map(_scored, (moved, params))
  given = credit.centred(chains, outcome)
  got = objectives.uniform_q(chains, new, given, 0.2)
  new, old = jax.device_get((new, old))
  reward = np.asarray(outcome.reward)
  total = 0.0
  B, G, T = new.logp.shape
  legal = np.asarray(new.legal)
  for b, g, t in np.ndindex(B, G, T):
    if not legal[b, g, t].any():
      continue
    after = 0.0
    if t + 1 < T and legal[b, g, t + 1].any():
      q = np.asarray(new.dist[b, g, t + 1] - old.dist[b, g, t + 1])
      after = q[legal[b, g, t + 1]].mean()
    target = reward[b, g] - reward[b].mean() + after
    total += float(new.logp[b, g, t] - old.logp[b, g, t] - target) ** 2 / G
  np.testing.assert_allclose(got.total, total, rtol=1e-3)


def test_normalise_is_silent_without_variance():
  reward = jnp.array([[0.3, 0.3, 0.3], [1.0, 2.0, 3.0]])
  out = credit.normalise(reward, jnp.ones((2, 3), bool))
  assert (out[0] == 0).all()
  np.testing.assert_allclose(out[1], [-1.2247, 0, 1.2247], atol=1e-3)
  one = jnp.ones((2, 1))
  assert (credit.normalise(one, one > 0) == 0).all()
  # What is not there neither gets nor gives.
  some = jnp.array([[True, True, False], [True, True, True]])
  out = credit.normalise(jnp.array([[1.0, 3.0, 9.0], [1, 2, 3]]), some)
  np.testing.assert_allclose(out[0], [-1, 1, 0], atol=1e-3)


def test_kl_and_entropy_are_exact():
  _, params, _, _ = _play()
  other = toys.scaled(params, 0.7)
  mine, old = map(_scored, (params, other))
  legal = np.asarray(mine.legal)
  p = np.where(legal, np.exp(np.asarray(mine.dist, np.float64)), 0)
  q = np.where(legal, np.exp(np.asarray(old.dist, np.float64)), 1)
  safe = np.where(p > 0, p, 1)
  kl = np.where(legal, p * np.log(safe / q), 0).sum(-1)
  np.testing.assert_allclose(objectives.kl(mine, old), kl, atol=1e-4)
  entropy = -np.where(legal, p * np.log(safe), 0).sum(-1)
  np.testing.assert_allclose(objectives.entropy(mine), entropy, atol=1e-4)
  assert (np.asarray(objectives.kl(mine, mine)) == 0).all()
