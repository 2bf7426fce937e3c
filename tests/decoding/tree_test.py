"""The invariants of TokenTree, for chains, merged chains and beams."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rerank_rl.decoding import (
  beam,
  fixed_tree,
  sample,
  tree,
  value_guided,
)
from rerank_rl.rl import learner
from rerank_rl.types import PAD, ROOT
from tests import toys


@functools.cache
def _tree(kind):
  # Each explorer keeps every layer's cache in its own way.
  policy, params = toys.policy("global", layers=2)

  @jax.jit
  def grow(params, game):
    if kind == "beam":
      out = beam.beam(policy, params, game, 8)
    elif kind == "fixed_tree":
      key = jax.random.key(1)
      out = fixed_tree.fixed_tree(policy, params, game, (2, 1, 1, 4), key)
    elif kind == "value_guided":
      out = value_guided.value_guided(policy, params, toys.value, game, 24)
    else:
      out = sample.chains(policy, params, game, jax.random.key(0), 16)
      out = tree.merge(out) if kind == "merged" else out
    return out, learner.score_slates(policy, params, game, out.slate)

  return jax.device_get(grow(params, toys.game(policy, params)))


@functools.cache
def _wide_beam():
  """A beam that holds every slate, and the exact log-probabilities."""
  policy, params = toys.policy("global")
  slates = jnp.asarray(np.broadcast_to(toys.every_slate(), (4, 60, 3)))

  scores = toys.scores(policy, params, toys.request(), slates)
  grow = jax.jit(beam.beam, static_argnums=(0, 3))
  made = grow(policy, params, toys.game(policy, params), 60)
  return made, scores.logp.sum(-1)


@pytest.mark.parametrize(
  "kind", ("chains", "merged", "beam", "fixed_tree", "value_guided")
)
def test_invariants(kind):
  t, scores = _tree(kind)
  token, parent, path = (np.asarray(x) for x in (t.token, t.parent, t.path))
  B, E = token.shape
  G, T = path.shape[1:]
  real = token != PAD
  assert (parent[real] < np.broadcast_to(np.arange(E), (B, E))[real]).all()
  for b in range(B):
    through = np.zeros(E)
    for g in range(G):
      steps = path[b, g][path[b, g] != PAD]
      through[steps] += 1 / G
      assert (np.asarray(t.depth)[b, steps] == np.arange(len(steps))).all()
      before = ROOT
      for edge in steps:
        assert parent[b, edge] == before
        before = edge
    np.testing.assert_allclose(t.weight[b], through, atol=1e-6)
    # weight = sum over children + leaves.
    for edge in np.flatnonzero(real[b]):
      below = np.asarray(t.weight)[b, (parent[b] == edge) & real[b]].sum()
      ends = sum(
        1 / G
        for g in range(G)
        if path[b, g][path[b, g] != PAD][-1:].tolist() == [edge]
      )
      np.testing.assert_allclose(t.weight[b, edge], below + ends, atol=1e-5)
  if kind != "chains":
    for b in range(B):
      pairs = [(parent[b, e], token[b, e]) for e in np.flatnonzero(real[b])]
      assert len(set(pairs)) == len(pairs)
  np.testing.assert_allclose(
    tree.on_path(t, t.logp_old).sum(-1), scores.logp.sum(-1), atol=1e-4
  )
  for name in ("logp_old", "weight", "mean_logp_old"):
    assert (np.asarray(getattr(t, name))[~real] == 0).all()


@functools.cache
def _others():
  """Explorers that no other test here asks; a policy that compiles soon."""
  policy, params = toys.policy("hpn")

  @jax.jit
  def grow(params, game):
    one, two = jax.random.split(jax.random.key(0))
    return (
      sample.stratified(policy, params, game, one, 8),
      sample.chains(policy, params, game, two, 2, temperature=0.0),
    )

  made = jax.device_get(grow(params, toys.game(policy, params)))
  return dict(zip(("stratified", "greedy"), made, strict=True))


@pytest.mark.parametrize(
  ("kind", "iid", "known"),
  [
    ("chains", True, True),
    ("merged", True, True),
    # Each leaf on its own is a sample of the policy, together they are not.
    ("stratified", False, True),
    ("greedy", False, False),
    ("beam", False, False),
    ("value_guided", False, False),
    # Drawn without replacement: no edge has a probability of its own.
    ("fixed_tree", False, False),
  ],
)
def test_the_explorers_probability_is_the_policys_or_none(kind, iid, known):
  """Who weighs rollouts by exp(logp_old - log_q) gets 1, or NaN: no number."""
  others = ("stratified", "greedy")
  t = _others()[kind] if kind in others else _tree(kind)[0]
  assert t.iid is iid
  real = np.asarray(t.token) != PAD
  assert real.any() and (t.log_q[~real] == 0).all()
  if known:
    np.testing.assert_array_equal(t.log_q, t.logp_old)
    leaf = tree.on_path(t, t.log_q).sum(-1)
    np.testing.assert_array_equal(leaf, tree.on_path(t, t.logp_old).sum(-1))
    assert (t.log_q[real] < -1e-3).mean() > 0.2
  else:
    assert np.isnan(t.log_q[real]).all()


def test_siblings_of_a_complete_beam_sum_to_one():
  t, _ = _wide_beam()
  for b in (0, 3):
    real = np.asarray(t.token[b] != PAD)
    parents = np.asarray(t.parent[b])[real]
    mass = np.exp(np.asarray(t.logp_old[b], np.float64))[real]
    for parent in set(parents):
      np.testing.assert_allclose(mass[parents == parent].sum(), 1, atol=1e-5)


def test_mean_logp_is_over_the_next_states_legal_children():
  t, scores = _tree("chains")
  mean = jnp.where(scores.legal, scores.dist, 0).sum(-1)
  mean /= jnp.maximum(scores.legal.sum(-1), 1)
  ahead = tree.on_path(t, t.mean_logp_old)
  real = t.path[:, :, 1:] != PAD
  np.testing.assert_allclose(
    jnp.where(real, ahead[:, :, :-1], 0),
    jnp.where(real, mean[:, :, 1:], 0),
    atol=1e-5,
  )
  assert (ahead[0, :, -1] == 0).all()


def test_beam_is_exact_when_wide_enough():
  t, logp = _wide_beam()
  found = tree.on_path(t, t.logp_old).sum(-1)
  for b in (0, 3):
    best = np.sort(np.asarray(logp)[b])[::-1]
    np.testing.assert_allclose(found[b], best, atol=1e-4)


def test_stochastic_beam_draws_without_replacement_in_proportion():
  policy, params = toys.policy("global", sharpness=1.0)
  slates = toys.every_slate()

  request = toys.request(batch=1)
  every = toys.scores(policy, params, request, slates[None])

  @jax.jit
  def run(params, game, keys):
    draw = lambda key: beam.beam(policy, params, game, 4, key=key).slate[0]
    return jax.lax.map(draw, keys, batch_size=50)

  game = toys.game(policy, params, request)
  keys = jax.random.split(jax.random.key(0), 600)
  drawn = np.asarray(run(params, game, keys))
  p = np.exp(np.float64(every.logp[0].sum(-1)))
  code = np.array([25, 5, 1])
  assert all(len(set(row)) == 4 for row in drawn @ code)
  # The first beam alone is a sample of the policy.
  first = (drawn[:, 0] @ code)[:, None] == (slates @ code)[None]
  np.testing.assert_allclose(first.mean(0), p, atol=0.08)


@pytest.mark.parametrize("kind", ("merged", "fixed_tree"))
def test_choices_are_tokens_that_were_not_the_only_legal_ones(kind):
  made, scores = _tree(kind)
  several = np.asarray(scores.legal.sum(-1)) > 1
  np.testing.assert_array_equal(tree.choices(made), several)
  assert 0 < several.mean() < 1
